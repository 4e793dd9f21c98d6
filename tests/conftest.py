"""What every test shares: the `needs` marker, how several processes share the work, the settings of Hypothesis, and Debian's kernels."""

import fcntl
import os
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import settings

from hvcore.errors import BadMachine

IN_CI = bool(os.environ.get("HVLAB_CI"))

# No deadline: a test never depends on how fast the machine is.  In CI the same examples every time.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if IN_CI else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose external program is absent; in CI, where nothing may be absent, fails it."""
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if not shutil.which(program)]
        if missing and IN_CI:
            pytest.fail(f"{', '.join(missing)} not installed, and CI must have it", pytrace=False)
        if missing:
            pytest.skip(f"{', '.join(missing)} not installed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one process, so that what they share is made once; all of `browser/`, too, which shares a JupyterLab.

    The long ones come first: files are handed out in the order of folders.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "browser" if "/browser/" in file else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def linux_cache() -> dict[str, str]:
    """The releases of Debian's `default` kernel and of the archive's `newest` and `second` newest, in the user's own cache.

    Fetched once, and again when the archive has newer ones; skipped where that cannot be done, an error in CI.
    """
    from hvcore.linux import cache
    cache.folder().mkdir(parents=True, exist_ok=True)
    with (cache.folder() / ".tests").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return _fetch_kernels()
        except BadMachine as e:
            if not IN_CI:
                pytest.skip(str(e))
            if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
                subprocess.run(["apt-get", "-q", "update"], check=True)
            return _fetch_kernels()


def _fetch_kernels() -> dict[str, str]:
    from hvcore.linux.fetch import fetch
    [default], newest = fetch(), fetch(newest=2)
    return {"default": default.entry.release, "newest": newest[0].entry.release, "second": newest[-1].entry.release}
