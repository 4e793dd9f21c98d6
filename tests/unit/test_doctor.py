"""`hvlab doctor`: verdicts as measured, each problem where it is and not where it is not, and mends that mend."""

import json
from pathlib import Path

import pytest

from hvcore import Config, Machine
from hvcore.cli import main
from hvcore.doctor import BLAMES, POLICIES, SEVERITIES, Diagnosis, Problem, examine
from hvcore.doctor.evidence import Evidence, gather
from hvcore.sources import images_dir, load
from hvcore.spec.pci import parse_bdf
from hvcore.vmm.config import parse_settings
from hvcore.vmm.dmar import matched_unit

DATA = Path(__file__).parents[1] / "data"
REAL = images_dir() / "machines" / "real"
RAM = [(0, 0x9FC00, "usable"), (0xF0000, 0x100000, "reserved"), (0x100000, 0x7F000000, "usable"), (0x7F000000, 0x80000000, "reserved")]
HIGH = (1 << 32, 3 << 31, "usable")
CLIENT = "cap = 0xd2008c22260206\necap = 0xf4a\n"
"""QEMU's unit with 39 bits and 3 levels, remapping interrupts."""


def machine(folder: Path, *, e820: list[tuple[int, int, str]] = RAM, units: str | None = None, more: str = "",
            dmar: str = "flags = 1") -> Path:
    """A machine described in TOML: one unit at 0xfed90000 that covers all, unless told otherwise."""
    lines = ", ".join(f'[{a:#x}, {b:#x}, "{kind}"]' for a, b, kind in e820)
    unit = f"[[unit]]\nbase = 0xfed90000\ninclude_all = true\n{CLIENT}" if units is None else units
    path = folder / "m.toml"
    path.write_text(f"e820 = [{lines}]\n{more}\n[dmar]\nhost_address_width = 39\n{dmar}\n\n{unit}")
    return path


def ids(found: Diagnosis) -> set[str]:
    return {p.id for p in found.problems}


def problem(found: Diagnosis, name: str) -> Problem:
    there = found.problem(name)
    assert there is not None, f"{name} is not among {ids(found)}"
    return there


# --- verdicts

MEASURED = {
    "q35-2g": {"off": "up", "bitvisor": "up", "ram": "up", "superpages": "up", "mended": "up"},
    "q35-6g": {"off": "up", "bitvisor": "disk-lost", "article": "vmm-panic", "ram": "up", "superpages": "up", "mended": "up"},
    "q35-32g": {"ram": "up"}, "q35-48g": {"ram": "up"},
    "q35-64g": {"bitvisor": "disk-lost", "ram": "vmm-panic", "superpages": "up", "mended": "up"},
    "q35-2g-rootport": {"off": "up", "bitvisor": "vmm-panic", "mended": "up"},
}


@pytest.fixture(scope="module")
def found() -> dict[str, Diagnosis]:
    """The diagnoses of the measured machines."""
    return {name: examine(name) for name in MEASURED}


@pytest.mark.parametrize("name", MEASURED)
def test_verdicts_are_those_measured(found: dict[str, Diagnosis], name: str) -> None:
    assert tuple(v.policy for v in found[name].verdicts) == POLICIES
    assert {p: found[name].verdict(p).outcome for p in MEASURED[name]} == MEASURED[name]


@pytest.mark.parametrize("name", MEASURED)
def test_every_bad_verdict_has_a_problem_that_explains_it(found: dict[str, Diagnosis], name: str) -> None:
    bad = {v.policy for v in found[name].verdicts if v.outcome != "up"}
    assert {policy for p in found[name].problems for policy in p.policies} == bad
    assert "policy-fails" not in ids(found[name])


@pytest.mark.parametrize("name", MEASURED)
def test_mends_mend(found: dict[str, Diagnosis], name: str) -> None:
    """The options that the fatal problems name bring the guest up with its disk, whatever the policy was."""
    fatal = [p for p in found[name].problems if p.severity == "fatal"]
    settings = parse_settings(word for p in fatal for word in p.mend.split(" and "))
    with Machine.load(name) as m:
        for policy in {policy for p in fatal for policy in p.policies}:
            assert m.boot(m.policies[policy].change(**settings)).outcome == "up", f"{policy} with {settings}"


def test_each_mend_alone_mends_what_it_explains(found: dict[str, Diagnosis]) -> None:
    """Where no other problem stands behind it."""
    with Machine.load("q35-6g") as m:
        for p in found["q35-6g"].problems:
            for policy in p.policies:
                assert m.boot(m.policies[policy].change(**parse_settings(p.mend.split(" and ")))).outcome == "up", f"{p.id}: {p.mend}"


def test_6_gib(found: dict[str, Diagnosis]) -> None:
    high = problem(found["q35-6g"], "ram-above-4gib")
    assert (high.severity, high.blame, high.mend, high.policies) == ("fatal", "bitvisor", "IOMMU_MAP_END=ram", ("bitvisor",))
    assert "4 GiB of usable RAM lie above" in high.evidence
    assert "00:02.0 was refused at 0x1" in high.evidence and "reason 0x6" in high.evidence
    giants = problem(found["q35-6g"], "reserved-giants")
    assert giants.policies == ("article",)
    assert "0x000000fd00000000" in giants.evidence and "525,312 table pages" in giants.evidence
    assert "ram-above-4gib" not in ids(found["q35-2g"])
    assert "heap-too-small" not in ids(found["q35-48g"])


def test_64_gib(found: dict[str, Diagnosis]) -> None:
    heap = problem(found["q35-64g"], "heap-too-small")
    assert (heap.severity, heap.mend) == ("fatal", "IOMMU_SUPERPAGES=y")
    assert "ram" in heap.policies
    assert problem(found["q35-64g"], "ram-above-4gib").mend == "IOMMU_MAP_END=ram and IOMMU_SUPERPAGES=y"


def test_behind_a_root_port(found: dict[str, Diagnosis]) -> None:
    missed = problem(found["q35-2g-rootport"], "behind-bridge-missed")
    assert (missed.severity, missed.blame, missed.mend) == ("fatal", "bitvisor", "PROFILE=mended")
    assert "null pointer" in missed.evidence
    assert "function-uncovered" not in ids(found["q35-2g-rootport"]), "firmware's table is right"


# --- problems one by one


def test_a_machine_without_problems(tmp_path: Path) -> None:
    unit = "[[unit]]\nbase = 0xfed90000\ninclude_all = true\ncap = 0xd2008c62260266\necap = 0xf4a\n"
    found = examine(machine(tmp_path, units=unit))
    assert [v.outcome for v in found.verdicts] == ["up"] * 6
    assert ids(found) <= {"no-superpages"}


def test_rmrrs(tmp_path: Path) -> None:
    more = ('rmrr = [{ start = 0x1000_0000, end = 0x1000_1000, scopes = ["endpoint 00:02.0"] }, '
            '{ start = 0x9000_0000, end = 0x9000_2000, scopes = ["endpoint 00:02.0"] }, '
            '{ start = 0x7f00_0000, end = 0x7f00_1000, scopes = ["endpoint 00:02.0"] }, '
            '{ start = 0x7eff_e000, end = 0x7eff_f000, scopes = ["endpoint 00:02.0"] }]')
    found = examine(machine(tmp_path, more=more))
    inside = problem(found, "rmrr-in-ram")
    assert (inside.severity, inside.blame) == ("serious", "firmware")
    assert "[0x10000000, 0x10001000)" in inside.evidence
    assert "0x7f000000" not in inside.evidence
    outside = problem(found, "rmrr-not-reserved")
    assert "[0x90000000, 0x90002000)" in outside.evidence and "in no entry" in outside.evidence
    vmm = problem(found, "rmrr-in-vmm")
    assert "0x7effe000" in vmm.evidence and "0x10000000" not in vmm.evidence


def two_units(first: str, last: str) -> str:
    return (f'[[unit]]\nbase = 0xfed91000\n{first}scopes = ["endpoint 00:01.0"]\n'
            f"[[unit]]\nbase = 0xfed90000\ninclude_all = true\n{last}")


def cap(mgaw: int, levels: int, more: int = 0) -> str:
    return f"cap = {0xD2008C22000006 | (mgaw - 1) << 16 | 1 << 8 + levels - 2 | more:#x}\necap = 0xf4a\n"


def test_the_last_unit_lacks_its_own_width(tmp_path: Path) -> None:
    found = examine(machine(tmp_path, units=f"[[unit]]\nbase = 0xfed90000\ninclude_all = true\n{cap(39, 4)}"))
    width = problem(found, "address-width-missing")
    assert (width.severity, width.blame, width.mend) == ("fatal", "bitvisor", "PROFILE=mended")
    assert width.policies == ("bitvisor", "article", "ram", "superpages")
    assert "39 bits of input address ask for tables of 3 levels" in width.evidence
    assert found.verdict("mended").outcome == "up"


def test_another_unit_lacks_the_width_of_the_last(tmp_path: Path) -> None:
    both = f"cap = {0xD2008C22000006 | 47 << 16 | 6 << 8:#x}\necap = 0xf4a\n"
    found = examine(machine(tmp_path, units=two_units(cap(39, 3), both)))
    width = problem(found, "address-width-missing")
    assert "0xfed91000" in width.evidence and "0xfed90000" not in width.evidence
    assert width.blame == "bitvisor"
    differ = problem(found, "units-differ")
    assert (differ.severity, differ.blame) == ("serious", "machine")
    assert "input address width 39 (the unit at 0xfed91000), 48 (the unit at 0xfed90000)" in differ.evidence


def test_units_with_no_width_in_common(tmp_path: Path) -> None:
    found = examine(machine(tmp_path, units=two_units(cap(39, 3), cap(48, 4))))
    width = problem(found, "address-width-missing")
    assert (width.blame, width.mend) == ("machine", "")
    assert found.verdict("mended").outcome == "vmm-panic"
    assert "no table width in common" in problem(found, "policy-fails").evidence


def test_units_that_are_alike_differ_in_nothing(tmp_path: Path) -> None:
    assert "units-differ" not in ids(examine(machine(tmp_path, units=two_units(CLIENT, CLIENT))))


def test_no_superpages_where_they_are_needed(tmp_path: Path) -> None:
    e820 = [*RAM, (1 << 32, 66 << 30, "usable")]
    bare = "[[unit]]\nbase = 0xfed90000\ninclude_all = true\ncap = 0xd2008022260266\necap = 0xf4a\n"
    found = examine(machine(tmp_path, e820=e820, units=bare))
    pages = problem(found, "no-superpages")
    assert (pages.severity, pages.blame) == ("serious", "machine")
    heap = problem(found, "heap-too-small")
    assert set(heap.policies) >= {"ram", "superpages"}
    assert heap.mend.startswith("VMM_SIZE_MIB=")
    with Machine.load(machine(tmp_path, e820=e820, units=bare)) as m:
        assert m.boot(Config(IOMMU_MAP_END="ram", **parse_settings([heap.mend]))).outcome == "up"  # type: ignore[arg-type]


def test_protected_memory_and_interrupts(tmp_path: Path) -> None:
    found = examine(machine(tmp_path))
    assert problem(found, "no-protected-memory").severity == "note"
    assert not ids(found) & {"no-interrupt-remapping", "interrupt-remapping-denied", "core-within-reach"}
    found = examine(machine(tmp_path, dmar="flags = 4"))
    assert problem(found, "interrupt-remapping-denied").blame == "firmware"
    assert "DMA_CTRL_PLATFORM_OPT_IN" in problem(found, "platform-opt-in").evidence
    bare = "[[unit]]\nbase = 0xfed90000\ninclude_all = true\ncap = 0xd2008c22260266\necap = 0xf42\n"
    found = examine(machine(tmp_path, units=bare))
    assert problem(found, "no-interrupt-remapping").blame == "machine"
    assert not ids(found) & {"no-protected-memory", "interrupt-remapping-denied", "platform-opt-in"}


def test_a_function_that_no_unit_covers(tmp_path: Path) -> None:
    found = examine(machine(tmp_path, units=f'[[unit]]\nbase = 0xfed90000\n{CLIENT}scopes = ["endpoint 00:00.0"]\n'))
    bare = problem(found, "function-uncovered")
    assert (bare.severity, bare.blame) == ("fatal", "firmware")
    assert "bitvisor" in bare.policies
    assert problem(found, "no-include-all").severity == "note"
    assert "behind-bridge-missed" not in ids(found)


def test_several_segments(tmp_path: Path) -> None:
    whole = f"include_all = true\n{CLIENT}"
    found = examine(machine(tmp_path, units=f"[[unit]]\nbase = 0xfed91000\nsegment = 1\n{whole}[[unit]]\nbase = 0xfed90000\n{whole}"))
    assert "0000, 0001" in problem(found, "several-segments").evidence
    missed = problem(found, "units-missed")
    assert "1 of 2 units" in missed.evidence and "only one INCLUDE_PCI_ALL" in missed.evidence


def test_no_room_for_the_core(tmp_path: Path) -> None:
    e820 = [(0, 0x9FC00, "usable"), (0x100000, 0x5000000, "usable"), (0x5000000, 0x5100000, "reserved")]
    found = examine(machine(tmp_path, e820=e820))
    room = problem(found, "no-room-for-vmm")
    assert set(room.policies) == set(POLICIES)
    assert room.mend.startswith("VMM_SIZE_MIB=")


def test_machines_without_units() -> None:
    amd = examine(DATA / "logs" / "qemu-q35-6g-amd")
    assert ids(amd) == {"amd-iommu"}
    assert problem(amd, "amd-iommu").blame == "bitvisor"
    none = examine(DATA / "logs" / "partial-fujitsu-cx2550-256g")
    assert ids(none) == {"no-dmar"}
    assert any("no DMAR line" in text for text in none.unknown)


def test_firmware_that_leaves_interrupt_remapping_on(tmp_path: Path) -> None:
    log = tmp_path / "dmesg.txt"
    log.write_text((REAL / "dell-r630-64g" / "dmesg.txt").read_text())
    assert "interrupt-remapping-left-on" not in ids(examine(log))
    with log.open("a") as out:
        out.write("[    0.4] DMAR-IR: IRQ remapping was enabled on dmar0 but we are not in kdump mode\n")
    found = examine(log)
    left = problem(found, "interrupt-remapping-left-on")
    assert (left.severity, left.blame) == ("fatal", "firmware")
    assert "dmar0" in left.evidence
    assert not any("is not told" in text for text in found.unknown)


def test_registers_that_were_assumed_are_told() -> None:
    found = examine(REAL / "surface-pro-7-16g")
    assert "what the unit at 0xfed92000 can do was not logged" in problem(found, "address-width-missing").evidence
    assert "was not logged" not in problem(found, "platform-opt-in").evidence
    assert any("0xfed92000 were not logged" in text for text in found.unknown)


# --- what BitVisor's look-up misses is what the tables lack


@pytest.mark.parametrize("name", ["q35-2g-bridges", "server-64g", "q35-6g", "nvme-desktop-16g"])
def test_missed_functions_have_no_context_entry(name: str) -> None:
    with Machine.load(name) as m:
        *_, found = gather(m, {p: m.policies[p] for p in ("off", "superpages")})
    assert isinstance(found, Evidence)
    contexts = found.boots["superpages"].contexts
    for f in (f for f in found.functions if not f.segment):
        unit = matched_unit(list(found.seen), f.requester)
        listed = any(other.source == f.requester for other in found.functions)
        assert ((f.unit, f.requester) in contexts) == (unit is not None and unit.base == f.unit and listed)
    told = problem(examine(name), "behind-bridge-missed").evidence if name in ("q35-2g-bridges", "server-64g") else ""
    blocked = [f for f in found.functions if not f.segment and (f.unit, f.requester) not in contexts]
    assert bool(blocked) == bool(told)
    if told:
        assert parse_bdf(told.split(" (")[0])[1] == blocked[0].source


# --- the record


def test_the_record_shows_itself(found: dict[str, Diagnosis]) -> None:
    d = found["q35-6g"]
    text, html = str(d), d._repr_html_()
    for words in ("disk-lost", "ram-above-4gib", "mend: IOMMU_MAP_END=ram", "Not known:"):
        assert words in text
    assert "<table" in html and "ram-above-4gib" in html and "<li>" in html
    frame = d.frame
    assert list(frame["id"]) == [p.id for p in d.problems]
    assert list(frame.columns) == ["id", "severity", "blame", "evidence", "mend", "policies"]
    order = [list(SEVERITIES).index(p.severity) for p in d.problems]
    assert order == sorted(order)
    assert all(p.blame in BLAMES for p in d.problems)


def test_html_is_escaped() -> None:
    d = Diagnosis("<b>", [], [Problem("x", "note", "machine", "<script>")], ["<i>"])
    assert "<script>" not in d._repr_html_() and "<i>" not in d._repr_html_()
    with pytest.raises(KeyError):
        d.verdict("off")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "q35-2g", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"machine", "verdicts", "problems", "unknown"}
    assert told["machine"] == "q35-2g"
    assert [set(v) for v in told["verdicts"]] == [{"policy", "outcome", "why"}] * 6
    assert {"id", "severity", "blame", "evidence", "mend"} == set(told["problems"][0])
    assert main(["doctor", "q35-2g"]) == 0
    assert "reserved-giants" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nowhere", str(DATA / "logs" / "partial-dell-r740-192g"), str(DATA / "logs" / "amd-5700u-32g")])
def test_what_cannot_be_loaded_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hvlab: ") and err.count("\n") == 1


def test_a_machine_of_ones_own_is_examined() -> None:
    told: list[str] = []
    with Machine.load("q35-2g") as m:
        found = examine(m, told.append)
        assert m.run is not None and m.run.config.PROFILE == "mended"
    assert tuple(told) == POLICIES
    assert found.machine == "q35-2g"
    assert examine(load("q35-2g")).to_json() == found.to_json()


TABLES = sorted((DATA / "acpi").glob("DMAR-*.dat"))[::40]


@pytest.mark.parametrize("table", TABLES, ids=lambda p: p.stem)
def test_real_tables_with_a_made_up_map(table: Path, tmp_path: Path) -> None:
    """A table alone with a map that is not its own: no crash, and what is assumed is said."""
    lines = [f"BIOS-e820: [mem {a:#018x}-{b - 1:#018x}] {kind}" for a, b, kind in [*RAM, HIGH]]
    (tmp_path / "dmesg.txt").write_text("\n".join([*lines, "end"]))
    (tmp_path / "DMAR.dat").write_bytes(table.read_bytes())
    found = examine(tmp_path)
    assert found.verdict("off").outcome == "up"
    bad = {v.policy for v in found.verdicts if v.outcome != "up"}
    assert bad == {policy for p in found.problems for policy in p.policies}
    assert any("were not logged" in text for text in found.unknown)
