"""How `make test` shares the tests between processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILES = ("browser/test_a", "browser/test_b", "unit/test_long", "unit/test_short", "unit/test_x")
COLLECTED = [f"tests/{file}.py::test_{i}[a::b]" for file in FILES for i in range(5)]


class Process:
    """One of several that execute tests."""

    shutting_down = False

    def __init__(self, name: str):
        self.gateway, self.given = SimpleNamespace(id=name), list[int]()

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.given += numbers

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduler(config: pytest.Config) -> Any:
    """That of the whole tree's conftest, for two processes."""
    here = Path(__file__).parents[1] / "conftest.py"
    tree = next(p for p in config.pluginmanager.get_plugins() if getattr(p, "__file__", None) and Path(p.__file__) == here)
    return tree.pytest_xdist_make_scheduler(SimpleNamespace(getvalue=lambda _: ["popen", "popen"], option=SimpleNamespace()), None)


def test_a_file_is_one_processs_and_so_are_all_that_share_a_jupyterlab(pytestconfig: pytest.Config) -> None:
    pytest.importorskip("xdist")
    schedule, processes = scheduler(pytestconfig), [Process("first"), Process("second")]
    for process in processes:
        schedule.add_node(process)
        schedule.add_node_collection(process, COLLECTED)
    schedule.schedule()
    while schedule.has_pending:
        process = next(p for p in processes if any(not done for unit in schedule.assigned_work[p].values() for done in unit.values()))
        name = next(name for unit in schedule.assigned_work[process].values() for name, done in unit.items() if not done)
        schedule.mark_test_complete(process, COLLECTED.index(name))
    assert sorted(n for p in processes for n in p.given) == list(range(len(COLLECTED)))
    files = [{COLLECTED[n].partition("::")[0] for n in p.given} for p in processes]
    assert files[0].isdisjoint(files[1]) and all(files)
    assert {"tests/browser/test_a.py", "tests/browser/test_b.py"} <= files[0], "the long ones come first"
