"""Whole machines, few and slow: boots of machines with mutations, and a guest whose monitor is told nonsense."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from hvcore import Config, Machine, Run, session
from hvcore.errors import HvlabError
from hvcore.inspect.advice import advise
from hvcore.machine.description import MachineDescription
from hvcore.outcome import OUTCOMES
from hvcore.sources import load
from hvcore.spec.bits import bit
from hvcore.vmm.config import MAP_ENDS, QUIRKS

from .acpi import mutated_table, real_tables
from .mutate import check_sentence, number, often, spoilt_text
from .sources import toml_texts

__all__ = ["TARGETS"]

_SECONDS = 4.0
"""Wall time of a guest that never waits."""
_TRIES = 40


@contextmanager
def _short_runs() -> Iterator[None]:
    """A guest that never waits is given up soon."""
    before = session.WALL_LIMIT
    session.WALL_LIMIT = _SECONDS
    try:
        yield
    finally:
        session.WALL_LIMIT = before


def _config(r: Random) -> Config:
    """Any options."""
    config = Config(PROFILE=r.choice(("bitvisor", "mended")), VTD_TRANS=often(r, 0.8), DISABLE_VTD=often(r, 0.5))
    if often(r, 0.5):
        config = config.change(IOMMU_MAP_END=r.choice([*MAP_ENDS]), IOMMU_SUPERPAGES=often(r, 0.5), HIDE_VTD_REGS=often(r, 0.5),
                               QUIRKS=[q for q in QUIRKS if often(r, 0.4)], VMM_SIZE_MIB=r.choice((8, 16, 64, 128, 256)))
    return config


def _machine(r: Random) -> MachineDescription:
    """A machine of a TOML file with mutations, if one loads; then its table and its units' registers are changed, too."""
    texts = [t for t in toml_texts() if "1 TiB" not in t]
    with TemporaryDirectory(prefix="hvlab-fuzz-") as name:
        path = Path(name) / "machine.toml"
        for _ in range(_TRIES):
            path.write_text(spoilt_text(r, r.choice(texts), 2), "utf-8", "replace")
            try:
                machine = load(path)
            except HvlabError:
                continue
            return _changed(r, machine)
    return load("q35-2g")


def _changed(r: Random, machine: MachineDescription) -> MachineDescription:
    units = tuple(replace(u, cap=u.cap ^ bit(r.randrange(64)), ecap=u.ecap ^ bit(r.randrange(64))) if often(r, 0.2) else u
                  for u in machine.units)
    table = machine.dmar
    if table and often(r, 0.3):
        table = mutated_table(r, table, real_tables())
    return replace(machine, units=units, dmar=table)


def _look(r: Random, run: Run) -> None:
    """Everything that is shown of a run."""
    assert run.outcome in OUTCOMES and run.why
    assert run.to_json()["outcome"] == run.outcome and str(run) and run._repr_html_()
    for fault in run.faults[:3]:
        assert str(run.explain(fault))
    for part in (run.functions, run.dmar, run.cached, run.interrupts, run.messages, run.history, run.dma, advise(run)):
        assert str(part) and part._repr_html_() and json.dumps(part.to_json())
    assert str(run.lens(r.choice((0, run.vmm.base or 0, number(r, 64)))))


def boot(seed: int) -> str:
    """A machine with mutations boots, is looked at, and boots again."""
    r = Random(seed)
    try:
        with _short_runs(), Machine(_machine(r)) as machine:
            run = machine.boot(_config(r))
            _look(r, run)
            if often(r, 0.2):
                again = machine.boot(_config(r))
                _look(r, again)
                assert str(run.diff(again))
                assert run.outcome in OUTCOMES and run.to_json()
            return run.outcome
    except HvlabError as e:
        check_sentence(e)
        return "refused"


def _line(r: Random, run: Run) -> str:
    """A line for the guest's monitor, with addresses that hurt."""
    base = run.vmm.base or 0
    places = [base, base + 0x1000, base + 0x2000, base + 0x3000, base + r.randrange(1 << 20), 0x1000000, 0x1001000, 0xFED90000, 0xFED90018,
              0xFEE00000, 0xB0000000, 0, number(r, 40), number(r, 64), *(u.root_table or 0 for u in run.units)]
    at = f"{r.choice(places):#x}"
    value = f"{number(r, 64):#x}"
    return r.choice((
        f"peek {at} {r.choice((1, 64, 4096, 100000))}", f"poke {at} {value} {r.choice((1, 2, 4, 8, 3))}", f"poke {at} {value}",
        f"dma w {at} {r.choice((1, 8, 64, 4096, 5000))} {value}", f"dma r {at} {r.choice((8, 4096))}", "nvme", "nvme probe",
        f"nvme read {number(r, 40)}", f"vmmcall {number(r, 8)}", f"cpuid {number(r, 32)}", f"in {number(r, 16)} {r.choice((1, 2, 4))}",
        f"out {r.choice((0xCF8, 0xCFC, 0x43, 0x20, 0x3F9, number(r, 16))):#x} {value} {r.choice((1, 2, 4))}", "e820", "lspci", "acpi",
        "time", spoilt_text(r, "dma w 0x1000 4096 0x5a"), "x" * r.randrange(300), "reboot" if often(r, 0.1) else "help",
        "crash" if often(r, 0.1) else "help"))


def monitor(seed: int) -> str:
    """A guest is told nonsense until it is gone, or ten times."""
    r = Random(seed)
    said = 0
    with _short_runs(), Machine.load("q35-2g") as machine:
        machine.boot(_config(r))
        for _ in range(10):
            assert machine.run is not None
            try:
                machine.run.guest.command(_line(r, machine.run))
            except HvlabError as e:
                check_sentence(e)
                break
            said += 1
        assert machine.run is not None
        _look(r, machine.run)
        return f"{machine.run.outcome}{'' if said == 10 else ', no guest left'}"


TARGETS: dict[str, Callable[[int], str]] = {"boot": boot, "monitor": monitor}
