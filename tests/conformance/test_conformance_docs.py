"""docs/conformance.md tells every departure of QEMU's, in the words of vtd_differences.py, and each has a directed scene."""

from pathlib import Path

from vtd_cases import CASES
from vtd_differences import DIFFERENCES
from vtd_register_cases import REGISTER_CASES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
ROWS = "\n".join(["| name | QEMU | specification |", "| --- | --- | --- |", *(
    f"| `{name}` | {d.qemu} | {'*choice*: ' * d.allowed}{d.specification} |" for name, d in DIFFERENCES.items())])


def test_the_table_of_departures_is_that_of_the_tests() -> None:
    table = DOCUMENT.read_text().partition("<!-- departures -->\n")[2].partition("\n<!-- end -->")[0]
    assert table == ROWS, f"the table of docs/conformance.md should be:\n{ROWS}"


def test_every_departure_has_a_directed_scene() -> None:
    shown = set().union(*(c.differences for c in CASES), *(c.differences for c in REGISTER_CASES))
    assert shown | {"junk-pasid"} == set(DIFFERENCES)
