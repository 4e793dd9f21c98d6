"""What several files of the unit tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore import Machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A q35-6g for all tests of a file."""
    with Machine.load("q35-6g") as m:
        yield m


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Lets processes import `fleet_fakes`; returns the file in which they count their calls."""
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("FLEET_CALLS", str(calls))
    return calls
