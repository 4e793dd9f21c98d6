# hvlab.  `make lab` opens the workbench, `make test` runs every test; both set everything up first.

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOT  := $(filter 0,$(shell id -u))
# The first interpreter that is new enough; Debian 12's python3 is.
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# What some tests run, and Debian's package for it.
PROGRAMS := gcc:gcc ld:binutils qemu-system-x86_64:qemu-system-x86 iasl:acpica-tools chromium:chromium pdftotext:poppler-utils
APT_GET  := DEBIAN_FRONTEND=noninteractive apt-get -q -y
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup tools lab voila test lint images bench bench-browser fuzz report notebooks lock clean distclean
.DEFAULT_GOAL := help

help:
	@echo 'make lab      JupyterLab on the workbench notebook'
	@echo 'make voila    the workbench as an app on port 8866 of this machine: every visitor has a machine of their own'
	@echo 'make test     ruff, mypy and every test'
	@echo 'make report   a report of a run that works without a network, as build/report.html; `make report MACHINE=q35-6g REPORT=build/q35.pdf`'
	@echo 'make notebooks  the course in English and Japanese from notebooks/source, executed'
	@echo 'make bench    speed beside plain C and beside `import pandas`'
	@echo 'make fuzz     parsers, readers and devices under random input; `make fuzz MINUTES=60` for an hour'
	@echo 'make bench-browser   the page map and the workbench, measured in Chromium'
	@echo 'make images   builds the lab guest with gcc'
	@echo 'make lint     ruff and mypy only'
	@echo 'make setup    the environment only ($(VENV), exactly the versions of requirements.lock)'
	@echo 'make lock     new requirements.lock, constraints.txt and environment.yml from pyproject.toml'
	@echo 'make clean    what the tests and notebooks left; `make distclean` also $(VENV)'

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo 'hvlab needs Python 3.11 or newer, and there is none in PATH: install it (Debian 12: apt-get install python3)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ -n "$(ROOT)" ] && $(APT_GET) update && $(APT_GET) install python3-venv; } || \
		{ echo 'Python cannot make a virtual environment here: run `sudo apt-get install python3-venv`, then make again' >&2; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Installs what is missing where that is possible; elsewhere the tests that need it are skipped (in CI they fail).
tools:
	@missing=; for pair in $(PROGRAMS); do command -v "$${pair%%:*}" >/dev/null || missing+=" $${pair#*:}"; done; \
	[ -e /usr/include/stdio.h ] || missing+=' libc6-dev'; \
	[ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || missing+=' fonts-dejavu-core'; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ -n "$(ROOT)" ] && command -v apt-get >/dev/null; then \
		$(APT_GET) update && $(APT_GET) install --no-install-recommends $$missing; \
	else \
		echo "Some tests need programs that are not here and will be skipped; to run them: sudo apt-get install$$missing" >&2; \
	fi

# Terminals and cells of this JupyterLab find `hvlab` by its name.
lab: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab $(if $(ROOT),--allow-root) $(if $(DISPLAY)$(WAYLAND_DISPLAY),,--no-browser) notebooks/00-workbench.ipynb

# A page that is closed ends its kernel; one whose browser is gone without a word is ended after half an hour.  For others: ADDRESS=0.0.0.0
ADDRESS := 127.0.0.1
voila: $(STAMP)
	JUPYTER_PATH=$(CURDIR)/widgets $(BIN)/voila notebooks/workbench-app.ipynb --template=hvlab --no-browser --Voila.ip=$(ADDRESS) \
		--MappingKernelManager.cull_idle_timeout=1800 --MappingKernelManager.cull_interval=60 $(VOILA)

# With their bytecode kept the kernels and commands that tests start need not compile hvlab anew.
test: $(STAMP) tools lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

images:
	$(MAKE) -C images/guests
	$(MAKE) -C hvcore/vmm/stub

bench: $(STAMP)
	$(BIN)/python -m bench

bench-browser: $(STAMP) tools
	$(BIN)/python -m bench.browser
	$(BIN)/python -m bench.workbench

MINUTES := 10
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

MACHINE := nvme-desktop-16g
REPORT := build/report.html
report: $(STAMP)
	@mkdir -p build
	$(BIN)/hvlab report $(MACHINE) -o $(REPORT) $(foreach option,$(SET),--set $(option))

# One lesson boots Debian's kernel.
notebooks: $(STAMP)
	$(BIN)/hvlab linux list | grep -q cloud || $(BIN)/hvlab linux fetch
	$(BIN)/python notebooks/build.py

lock:
	$(BIN)/python -m pip install --quiet uv
	UV_PYTHON_DOWNLOADS=never UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --all-extras pyproject.toml -o requirements.lock
	@{ echo '# requirements.lock without hashes, for conda. Made by `make lock`.'; sed -nE 's/^([a-z0-9].*==[^\\]*[^ \\]) *\\?$$/\1/p' requirements.lock; } > constraints.txt
	@for name in jupyterlab ipywidgets matplotlib pandas unicorn; do \
		version=$$(sed -nE "s/^$$name==([^ ]+).*/\1/p" constraints.txt | head -n 1); \
		sed -i -E "s/^( *- $$name==).*/\1$$version/" environment.yml; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints
	find hvcore widgets tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
