"""A running QEMU and its dumps, looked at from outside: what the views say is what QEMU does."""

import json
import re
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from labqemu import EDU, Qemu, without_stamps
from vtd_cases import CASES, Case, Plain, read, write
from vtd_play import VARIANTS
from vtd_qemu import QemuUnit
from vtd_scene import BASE, DATA, REQUESTERS, TABLES, Ask, Outcome, Scene
from vtd_scenes import ROOT, context_address

from hvcore.cli import main
from hvcore.errors import BadSource, Unreadable
from hvcore.inspect.domains import Domain, decode
from hvcore.inspect.dump import PageStore
from hvcore.outside import Outside
from hvcore.sources.debugfs import LoggedContext, LoggedTables

pytestmark = pytest.mark.needs("qemu-system-x86_64")

SOCKETS = ["-qmp", "unix:look,server=on,wait=off", "-qmp", "unix:again,server=on,wait=off"]
"""Each has room for one client."""
WHOLE = ("did", "levels", "root", "translation", "devices", "table_pages", "leaves", "runs", "unreadable", "reserved")


def _operations(case: Case) -> tuple[Plain, list[object]]:
    builder = Plain(VARIANTS[0])
    return builder, list(case.operations(builder) if callable(case.operations) else case.operations)


def _decidable(case: Case) -> bool:
    """Scenes in which QEMU does as the specification says, of words only, in which nothing changes between the requests."""
    return VARIANTS[0] in case.variants and not case.differences and all(isinstance(o, Ask) and o.word for o in _operations(case)[1])


class LookedAt(QemuUnit):
    """QEMU with a scene in its memory and translation on, and a second monitor to look through."""

    def __init__(self) -> None:
        super().__init__(VARIANTS[0], SOCKETS)
        self.source, self.again = (f"qemu:{self.folder / name}" for name in ("look", "again"))

    def stands(self, scene: Scene) -> None:
        """The scene as it begins, with its first request not yet made."""
        self._start(scene)
        self._send("")

    def dump(self, path: Path, paging: bool) -> None:
        """QEMU's own dump of the guest's memory."""
        self._command("dump-guest-memory", paging=paging, protocol=f"file:{path}")  # type: ignore[arg-type]

    def running(self) -> bool:
        return bool(self._command("query-status")["running"])


@pytest.fixture(scope="module")
def unit() -> Iterator[LookedAt]:
    with LookedAt() as unit:
        yield unit


@pytest.fixture(scope="module")
def outside(unit: LookedAt) -> Iterator[Outside]:
    with Outside.open(unit.source) as outside:
        yield outside


def _pages(scene: Scene) -> PageStore:
    return PageStore(np.array(list(scene.tables), np.uint64), np.array([np.frombuffer(page, np.uint64) for page in scene.tables.values()]))


def _same(one: Domain, other: Domain) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in WHOLE)


def _arrives(outside: Outside, ask: Ask) -> tuple[int | None, int | None]:
    """What the views say of a request: of a write the address at which it lands, of a read the word there; and the reason recorded."""
    told = outside.what_if(REQUESTERS[ask.device], ask.iova, "write" if ask.write else "read")
    if told.reason is not None:
        return None, told.reason if told.recorded else None
    assert told.host is not None
    try:
        there = int.from_bytes(outside.memory.read(told.host, 8), "little")
    except Unreadable:
        return None, None
    return told.host if ask.write else there or None, None


def _did(result: object) -> tuple[int | None, int | None]:
    """What QEMU's device met."""
    assert isinstance(result, Outcome) and not hasattr(result.where, "ranges")
    return result.where, None if result.high is None else result.high >> 32 & 0xFF  # type: ignore[return-value]


@pytest.mark.parametrize("case", [c for c in CASES if _decidable(c)], ids=lambda c: c.name)
def test_every_request_fares_as_the_views_say(unit: LookedAt, outside: Outside, case: Case) -> None:
    builder, operations = _operations(case)
    scene = builder.scene(operations)  # type: ignore[arg-type]
    done = [_did(result) for result in unit.run(scene)]
    unit.stands(scene)
    with outside.look():
        assert [_arrives(outside, ask) for ask in scene.requests] == done
        found, pages = outside.domains, decode(_pages(scene), ROOT)
        assert outside.units[0].root_table == ROOT and outside.units[0].translating
    if not any(d.problem or d.reserved or d.unreadable for d in [*found, *pages]) and not found.note:
        assert len(found) == len(pages) and all(map(_same, found, pages))


def test_enough_scenes_were_looked_at() -> None:
    assert sum(map(_decidable, CASES)) > 50


def test_what_the_registers_say(unit: LookedAt, outside: Outside) -> None:
    """The same bytes by the processor's bus and through the monitor; a fault as the unit recorded it."""
    scene = Plain(VARIANTS[0]).scene([read(0x8000)])
    unit.stands(scene)
    unit._ask(Ask(0, 0x8000, sweep=False), 0)
    with outside.look():
        seen = {r.offset: r.value for r in outside.registers[BASE] if r.offset + r.width // 8 <= 0x230}
        fault, = outside.faults
        assert (fault.source, fault.address, fault.access, fault.reason) == (REQUESTERS[0], 0x8000, "read", 6)
        assert outside.explain(fault).reason == 6 and outside.explain(fault).steps[-1].raw == (0,)
    by_bus = {r.offset: unit.read(r.offset, r.width // 8) for r in outside.registers[BASE] if r.offset in seen}
    assert seen == by_bus and seen[0x1C] == 0xC0000000 and len(seen) == 40


def test_a_look_sees_what_changed_and_a_longer_one_does_not(unit: LookedAt, outside: Outside) -> None:
    builder = Plain(VARIANTS[0])
    unit.stands(builder.scene([]))
    before = outside.domains[0].mapped
    with outside.look():
        assert outside.domains[0].mapped == before
        unit.write_memory(builder.at[0x5000], struct.pack("<Q", 0))
        assert outside.domains[0].mapped == before and outside.what_if(REQUESTERS[0], 0x5000).reason is None
    assert outside.domains[0].mapped == before - 4096
    assert outside.what_if(REQUESTERS[0], 0x5000).reason == 6


@pytest.mark.parametrize("paging", [False, True])
def test_a_dump_of_the_same_qemu_has_the_same_domains(unit: LookedAt, outside: Outside, tmp_path: Path, paging: bool) -> None:
    scene = Plain(VARIANTS[0]).scene([])
    unit.stands(scene)
    unit.dump(tmp_path / "core", paging)
    live = outside.domains
    with Outside.open(tmp_path / "core", root=ROOT) as dumped:
        assert len(live) == len(dumped.domains) == 1 and all(map(_same, live, dumped.domains))
        assert dumped.memory.read(DATA, 4096) == outside.memory.read(DATA, 4096)
        assert ROOT in [g.address for g in dumped.guesses]
        assert dumped.what_if(REQUESTERS[0], 0x5000).host == DATA + 0x5000 and dumped.what_if(REQUESTERS[1], 0x5000).reason == 2


def test_the_proof_finds_what_a_device_then_does(unit: LookedAt) -> None:
    """Of a region that the tables reach by one page the proof names that page and the way; QEMU's device takes it."""
    scene = Plain(VARIANTS[0]).scene([write(0x7000)])
    (landed, reason), = map(_did, unit.run(scene))
    assert landed == DATA + 0x7000 and reason is None
    unit.stands(scene)
    with Outside.open(unit.again, region=(DATA + 0x7000, DATA + 0x8000)) as outside:
        claim = outside.proof.claim("can write the region")
        assert not claim.holds and claim.counterexample is not None
        assert claim.counterexample.host == landed and claim.counterexample.source == REQUESTERS[0]
    with Outside.open(unit.again, region=(TABLES, TABLES + 0x1000)) as outside:
        hit = outside.what_if(REQUESTERS[0], 0x4000_0000 + TABLES)  # the 1 GiB page reaches everything
        assert hit.host == TABLES and not outside.proof.claim("can read the region").holds


def test_a_root_table_of_ones_own_choice(unit: LookedAt) -> None:
    """A root table that the unit does not use; its capabilities are asked for all the same."""
    other = Plain(VARIANTS[0]).scene([])
    moved = {at + 0x10_0000: page for at, page in other.tables.items()}
    unit.stands(Plain(VARIANTS[0]).scene([]))
    for at, page in moved.items():
        unit.write_memory(at, bytes(page))
    with Outside.open(unit.again, root=ROOT + 0x10_0000) as outside:
        assert {r.name: r.value for r in outside.registers[BASE]}["RTADDR"] == ROOT
        domain, = outside.domains
        assert outside.units[0].root_table == ROOT + 0x10_0000 and domain.root == TABLES + 0x4000
        assert outside.what_if(REQUESTERS[0], 0x5000).host == DATA + 0x5000 and outside.what_if(REQUESTERS[0], 1 << 39).reason == 4


def test_linux_like_text_is_compared_with_memory(unit: LookedAt, outside: Outside) -> None:
    builder = Plain(VARIANTS[0])
    unit.stands(builder.scene([]))
    at = context_address(0)
    root, entry = (builder.words[ROOT], 0), (builder.words[at], builder.words[at + 8])
    right = LoggedTables("dmar0", ROOT, (LoggedContext(REQUESTERS[0], root, entry),))
    assert not outside.compare(right) and outside.compare(right).note.startswith("1 context entries of both were compared")
    wrong = LoggedTables("dmar0", ROOT, (LoggedContext(REQUESTERS[0], root, (entry[0] ^ 2, entry[1])), LoggedContext(0x28, root, (1, 1))))
    assert [d.remark for d in outside.compare(wrong)] == ["differs in bits: low 0x2, high 0x0", "only printed"]


# --- the lab guest

@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Qemu, str]]:
    path = tmp_path_factory.mktemp("look") / "look"
    with Qemu(["-device", EDU, "-device", "intel-iommu", "-qmp", f"unix:{path},server=on,wait=off"]) as q:
        q.boot()
        yield q, f"qemu:{path}"


def _usable(q: Qemu) -> list[tuple[int, int]]:
    rows = re.findall(r"\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] usable", q.command("e820"))
    return [(int(a, 16), int(b, 16) + 1) for a, b in rows]


def test_the_guest_that_drives_the_unit(guest: tuple[Qemu, str]) -> None:
    q, source = guest
    with Outside.open(source) as outside:
        assert [str(e) for e in outside.e820.firmware] == [line.removeprefix("BIOS-e820: ") for line in q.command("e820").splitlines()]
        assert outside.dmar.table is not None and outside.dmar.table.host_address_width == 39
        assert not outside.units[0].translating and not outside.domains
        lines = without_stamps(q.command("iommu on"))
        functions, levels, tables = map(int, re.findall(r"\d+", lines[3])[:2] + re.findall(r"(\d+) tables", lines[3]))
        domain, = outside.domains
        runs = [(r.start, r.end, r.perm, r.offset) for r in domain.runs]
        assert runs == [(-(-a // 4096) * 4096, b // 4096 * 4096, "rw", 0) for a, b in _usable(q)]
        assert (len(domain.devices), domain.levels, domain.table_pages + 2) == (functions, levels, tables)
        q.command("poke 0x100000000 0x11223344")
        assert outside.memory.read(0x100000000, 4) == bytes.fromhex("44332211")
        assert outside.what_if(0x18, 0x100000000).host == 0x100000000
        q.command("dma r 0xf0000 16")
        fault, = outside.faults
        assert (fault.source, fault.address, fault.reason) == (0x18, 0xF0000, 6)
        words = re.search(r"GSTS (0x[0-9a-f]+), RTADDR (0x[0-9a-f]+)", q.command("iommu"))
        assert words and (outside.units[0].gsts, outside.units[0].rtaddr) == (int(words[1], 16), int(words[2], 16))


def test_the_guest_is_paused_only_while_it_is_read(guest: tuple[Qemu, str]) -> None:
    q, source = guest
    q.command("iommu on")
    with Outside.open(source, consistent=True) as outside:
        with outside.look():
            assert not q.qmp("query-status")["running"]
            assert len(outside.domains) == 1 and not q.qmp("query-status")["running"]
        assert q.qmp("query-status")["running"] and q.command("time").startswith("time: ")
        q.qmp("stop")
        assert len(outside.domains) == 1 and not q.qmp("query-status")["running"]
        q.qmp("cont")


def test_a_part_of_a_64_bit_guest(guest: tuple[Qemu, str], tmp_path: Path) -> None:
    """A dump of the top of RAM, where the guest has its tables."""
    q, source = guest
    q.command("iommu on")
    with Outside.open(source) as outside:
        root, live = outside.units[0].root_table, outside.domains
        monitor = outside.memory._monitor  # type: ignore[attr-defined]
        top = outside.memory.runs[-1][1]
        monitor.execute("dump-guest-memory", protocol=f"file:{tmp_path / 'core'}", paging=False, begin=top - (8 << 20), length=8 << 20)
    with Outside.open(tmp_path / "core", root=root) as dumped:
        assert (tmp_path / "core").read_bytes()[4] == 2, "an ELF file of 64 bits"
        assert all(map(_same, live, dumped.domains)) and len(live) == 1
        assert dumped.memory.runs == ((top - (8 << 20), top),)


def test_the_command_line(guest: tuple[Qemu, str], capsys: pytest.CaptureFixture[str]) -> None:
    q, source = guest
    q.command("iommu on")
    assert main(["look", source, "--region", "0x1000000-0x1100000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [u["base"] for u in told["units"]] == [BASE] and len(told["domains"]) == 1 and told["proof"]["holds"] is False
    assert main(["look", source, "--consistent"]) == 0
    assert "Remapping units: 1" in capsys.readouterr().out


def test_a_qemu_that_dies_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "look"
    with Qemu(["-qmp", f"unix:{path},server=on,wait=off", "-device", "intel-iommu"], memory="1G") as q:
        q.boot()
        with Outside.open(f"qemu:{path}") as outside:
            assert len(outside.units) == 1
            q._process.send_signal(signal.SIGKILL)
            started = time.monotonic()
            with pytest.raises(BadSource, match="look"):
                outside.domains  # noqa: B018 -- reading is what it is about
            assert time.monotonic() - started < 15
    assert main(["look", f"qemu:{path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
