"""What every test shares: the `needs` marker and the settings of Hypothesis."""

import os
import shutil

import pytest
from hypothesis import settings

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
