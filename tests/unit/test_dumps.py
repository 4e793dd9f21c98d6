"""Memory dumps as files: raw, ELF of both classes, LiME; headers that lie; the same views of a machine as it ran and as it was dumped."""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.cli import main
from hvcore.errors import BadSource, HvlabError, Unreadable
from hvcore.inspect.domains import decode, read_contexts
from hvcore.machine.memory import Memory
from hvcore.outside import Outside
from hvcore.run import Run
from hvcore.sources.dump import has_header, open_dump
from hvcore.sources.foundmap import find_e820
from hvcore.spec.e820 import E820Entry
from hvcore.spec.linuxboot import boot_params
from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import context_entry, root_entry

PAGE = 4096
Segment = tuple[int, int, int, int]
"""Of a program header: offset, physical address, bytes in the file, bytes in memory."""


def elf(segments: Sequence[Segment], body: bytes = b"", wide: bool = True, kind: int = 4, machine: int = 62,
        count: int | None = None) -> bytes:
    """An ELF file with PT_LOADs, the body behind them."""
    count = len(segments) if count is None else count
    if wide:
        head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
        rows = [struct.pack("<IIQQQQQQ", 1, 7, offset, 0, paddr, filesz, memsz, 0) for offset, paddr, filesz, memsz in segments]
    else:
        head = b"\x7fELF\1\1\1".ljust(16, b"\0") + struct.pack("<HHIIIIIHHHHHH", kind, 3, 1, 0, 52, 0, 0, 52, 32, count, 0, 0, 0)
        rows = [struct.pack("<8I", 1, offset, 0, paddr, filesz, memsz, 7, 0) for offset, paddr, filesz, memsz in segments]
    return head + b"".join(rows) + body


def placed(parts: Sequence[tuple[int, bytes]], wide: bool = True, shift: int = 0) -> bytes:
    """An ELF core with these bytes at these physical addresses; `shift` moves them in the file."""
    at = (64 + 56 * len(parts) if wide else 52 + 32 * len(parts)) + shift
    segments, body = [], bytes(shift)
    for address, data in parts:
        segments.append((at, address, len(data), len(data)))
        at, body = at + len(data), body + data
    return elf(segments, body, wide)


def pattern(address: int, pages: int = 1) -> bytes:
    """Bytes that say where they lie."""
    return (np.arange(pages * PAGE // 8, dtype=np.uint64) * 8 + np.uint64(address)).tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "core"


# --- files

@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("shift", [0, 1, 3, 4000])
def test_elf_wherever_its_bytes_lie(path: Path, wide: bool, shift: int) -> None:
    path.write_bytes(placed([(0x5000, pattern(0x5000, 2)), (0x1000, pattern(0x1000)), (0x7000, pattern(0x7000))], wide, shift))
    memory = open_dump(path)
    assert memory.runs == ((0x1000, 0x2000), (0x5000, 0x8000)) and not memory.notes
    asked = np.array([0x7000, 0x1000, 0x2000, 0x6000, 0, 1 << 60, (1 << 64) - PAGE, 0x5800], np.uint64)
    words, readable = memory.tables(asked)
    assert readable.tolist() == [True, True, False, True, False, False, False, False]
    assert words[readable][:, 0].tolist() == [0x7000, 0x1000, 0x6000] and not words[~readable].any()
    assert memory.read(0x6FF8, 16) == struct.pack("<QQ", 0x6FF8, 0x7000), "across segments that touch"
    following, all_there = memory.tables(np.array([0x5000, 0x6000], np.uint64))
    assert all_there.all() and following.reshape(-1).tolist() == list(range(0x5000, 0x7000, 8))
    for address in (0x1FFC, 0x0FFF, 1 << 60, (1 << 64) - 4, -1):
        with pytest.raises(Unreadable):
            memory.read(address, 8)


def test_a_page_that_begins_in_one_segment_and_ends_in_another(path: Path) -> None:
    whole = pattern(0x1000, 2)
    path.write_bytes(placed([(0x1000, whole[:0x1800]), (0x3000, b""), (0x2800, whole[0x1800:])]))
    memory = open_dump(path)
    words, readable = memory.tables(np.array([0x2000, 0x1000, 0x3000], np.uint64))
    assert readable.tolist() == [True, True, False] and words[0].tolist() == list(range(0x2000, 0x3000, 8))


def test_what_a_dump_leaves_out_is_absent_and_not_zero(path: Path) -> None:
    path.write_bytes(elf([(120, 0x1000, PAGE, 3 * PAGE)], bytes(PAGE)))
    memory = open_dump(path)
    assert memory.runs == ((0x1000, 0x2000),)
    with pytest.raises(Unreadable):
        memory.read(0x2000, 1)


def test_segments_that_overlap(path: Path) -> None:
    """Two that say the same are one (dumps with page tables have such); two that contradict each other are refused."""
    path.write_bytes(elf([(176, 0x1000, 2 * PAGE, 2 * PAGE), (176 + PAGE, 0x2000, PAGE, PAGE)], pattern(0x1000, 2)))
    assert open_dump(path).runs == ((0x1000, 0x3000),)
    path.write_bytes(elf([(176, 0x1000, 2 * PAGE, 2 * PAGE), (176, 0x2000, PAGE, PAGE)], pattern(0x1000, 2)))
    with pytest.raises(BadSource, match="two segments give different bytes for address 0x2000"):
        open_dump(path)


def test_segments_that_lie(path: Path) -> None:
    path.write_bytes(elf([(232, 0x1000, PAGE, PAGE), (232, 1 << 60, PAGE, PAGE), (232, (1 << 64) - 1, PAGE, PAGE)], pattern(0x1000)))
    memory = open_dump(path)
    assert memory.runs == ((0x1000, 0x2000),) and memory.notes[0].startswith("2 segments ")
    path.write_bytes(elf([(120, 0x1000, 1 << 40, 1 << 40)], pattern(0x1000)))
    memory = open_dump(path)
    assert memory.runs == ((0x1000, 0x2000),) and "is cut short" in memory.notes[0]
    path.write_bytes(elf([(1 << 63, 0x1000, PAGE, PAGE), (232, 0x4000, PAGE, (1 << 64) - 1), (232, 0x9000, PAGE, PAGE)], pattern(0x9000)))
    assert open_dump(path).runs == ((0x9000, 0xA000),)


def test_more_program_headers_than_the_header_counts(path: Path) -> None:
    """PN_XNUM: their number is in section header 0."""
    rows = [(0x200, 0x1000, PAGE, PAGE), (0x200, 0x9000, PAGE, PAGE)]
    data = bytearray(elf(rows, count=0xFFFF).ljust(0x200, b"\0") + pattern(0x1000))
    struct.pack_into("<Q", data, 40, 0x100)
    struct.pack_into("<I", data, 0x100 + 44, 2)
    path.write_bytes(data)
    assert open_dump(path).runs == ((0x1000, 0x2000), (0x9000, 0xA000))


def test_very_many_segments(path: Path) -> None:
    """50,000 pages of memory, each apart from the others and all of the same bytes in the file."""
    count, page = 50_000, pattern(0)
    path.write_bytes(elf([(64 + 56 * count, 0x1000 + 2 * PAGE * i, PAGE, PAGE) for i in range(count)], page))
    with Outside.open(path) as outside:
        assert len(outside.memory.runs) == count and len(outside.e820) == 256 and "49744 more" in outside.e820.note
        assert not outside.guesses and outside.memory.read(0x1000 + 2 * PAGE * 777, 16) == page[:16]


@pytest.mark.parametrize(("data", "why"), [
    (b"", "core"), (b"\x7fELF", "cut short"), (elf([])[:40], "cut short"), (elf([]), "program headers"),
    (elf([], count=900), "program headers"), (elf([(0, 0, 64, 64)], kind=2), "no core dump"),
    (elf([(0, 0, 64, 64)], machine=183), "machine of type 183"),
    (b"\x7fELF\2\2" + bytes(100), "big-endian"), (elf([], count=0xFFFF), "program headers"), (elf([(0, 1 << 60, 64, 64)]), "no memory"),
    (elf([(1 << 40, 0, 64, 64)]), "no memory"), (b"KDUMP   " + bytes(5000), "kdump-compressed"),
    (b"makedumpfile\0" + bytes(5000), "kdump-compressed"), (b"\x1f\x8b" + bytes(5000), "unpack"), (b"QEVM" + bytes(5000), "saved state"),
    (b"EMiL" + bytes(28), "LiME header"), (bytes(100), "less than one page")])
def test_what_is_no_dump_is_one_sentence(path: Path, data: bytes, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(data)
    with pytest.raises(BadSource, match=why):
        open_dump(path)
    assert main(["look", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lime(path: Path) -> None:
    parts = [(0x1000, pattern(0x1000)), (0x8000, pattern(0x8000, 2))]
    data = b"".join(struct.pack("<4sIQQQ", b"EMiL", 1, at, at + len(d) - 1, 0) + d for at, d in parts)
    path.write_bytes(data)
    memory = open_dump(path)
    assert memory.runs == ((0x1000, 0x2000), (0x8000, 0xA000)) and memory.read(0x9000, 8) == struct.pack("<Q", 0x9000)
    path.write_bytes(data[:-100])
    assert open_dump(path).runs[1] == (0x8000, 0xA000 - 100) and "cut short" in open_dump(path).notes[0]
    with pytest.raises(BadSource, match="leave the ranges of RAM out"):
        open_dump(path, [(0, PAGE)])


def test_raw(path: Path) -> None:
    path.write_bytes(pattern(0, 8)[:-8])
    memory = open_dump(path)
    assert memory.runs == ((0, 0x7FF8),) and memory.read(0x6FF8, 8) == struct.pack("<Q", 0x6FF8)
    assert memory.tables(np.array([0x6000, 0x7000], np.uint64))[1].tolist() == [True, False]
    memory = open_dump(path, [(0x1000, 0x2000), (0x6000, 0x10000), (1 << 40, 1 << 41)])
    assert memory.runs == ((0x1000, 0x2000), (0x6000, 0x7FF8)) and "beyond the end" in memory.notes[1]
    assert not has_header(path)


@settings(max_examples=80)
@given(st.binary(max_size=300), st.integers(0, 3000), st.integers(0, 8), st.booleans())
def test_damaged_dumps_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, cut: int, wide: bool) -> None:
    """Whatever stands in the headers: a memory of which every run can be read, or one sentence."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    data = bytearray(placed([(0x1000, pattern(0x1000)), (0x5000, pattern(0x5000))], wide))
    data[at:at + len(noise)] = noise
    path.write_bytes(data[:len(data) - cut * 1000])
    try:
        with Outside.open(path) as outside:
            memory = outside.memory
            assert all(len(memory.read(start, min(end - start, 64))) for start, end in memory.runs)
            assert str(outside)
    except HvlabError as e:
        told = str(e)
        assert len(told.splitlines()) == 1 and path.name in told


# --- maps

class Low:
    """Reads the first MiB of a bytearray."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 20)

    def read(self, address: int, length: int) -> bytes:
        if address + length > len(self.data):
            raise Unreadable(address, length)
        return bytes(self.data[address:address + length])


MAP = (E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2), E820Entry(0x100000, 0x8000_0000, 1))


def test_a_map_that_a_linux_loader_left() -> None:
    low = Low()
    assert find_e820(low) is None
    low.data[0x90000:0x90000 + PAGE] = boot_params(MAP, 0x20000)
    found = find_e820(low)
    assert found and found[0] == MAP and "Linux loader" in found[1]
    low.data[0x901FE:0x90200] = bytes(2)
    assert find_e820(low) is None


def test_a_map_that_a_pvh_loader_left() -> None:
    low = Low()
    low.data[0x5000:0x5000 + 56] = struct.pack("<IIIIQQQQII", 0x336EC578, 1, 0, 0, 0, 0, 0xF5000, 0x6000, 3, 0)
    low.data[0x6000:0x6000 + 72] = b"".join(struct.pack("<QQII", e.start, e.size, e.type, 0) for e in MAP)
    found = find_e820(low)
    assert found and found[0] == MAP and "PVH" in found[1]
    struct.pack_into("<Q", low.data, 0x6008, 0)
    assert find_e820(low) is None, "an entry of no bytes: noise"
    struct.pack_into("<Q", low.data, 0x5000 + 40, 1 << 60)
    assert find_e820(low) is None


# --- a machine

@pytest.fixture(scope="module")
def booted() -> Iterator[tuple[Machine, Run]]:
    with Machine.load("q35-2g") as machine:
        yield machine, machine.boot(Config())


@pytest.fixture(scope="module")
def folder(booted: tuple[Machine, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dump of its first MiB and of all from its core on, and an ELF core of the same."""
    machine, run = booted
    found = tmp_path_factory.mktemp("dumps")
    assert run.vmm.base is not None
    parts = [(start, machine.pc.memory.read(start, end - start)) for start, end in ((0, 1 << 20), (run.vmm.base, 2 << 30))]
    (found / "core").write_bytes(placed(parts))
    with (found / "raw").open("wb") as file:
        for address, data in parts:
            file.seek(address)
            file.write(data)
    run.dump(found)
    return found


def _region(run: Run) -> tuple[int, int]:
    assert run.vmm.base is not None
    return run.vmm.base, run.vmm.base + run.vmm.size


@pytest.mark.parametrize("name", ["core", "raw"])
def test_a_dump_shows_what_the_run_shows(booted: tuple[Machine, Run], folder: Path, name: str) -> None:
    _, run = booted
    with Outside.open(folder / name, registers=folder / "registers.json", region=_region(run)) as outside:
        assert outside.e820.firmware == run.e820.firmware
        assert outside.dmar.table == run.dmar.table and outside.dmar.hidden
        assert [r.value for r in outside.registers[0xFED90000]] == [r.value for r in run.registers[0xFED90000]]
        assert list(outside.domains) == list(run.domains) and list(outside.permissions.domains) == list(run.domains)
        assert list(outside.faults) == list(run.faults)
        assert outside.what_if(0x10, 0x1000).to_json() == run.what_if(0x10, 0x1000).to_json()
        for fault in run.faults:
            assert outside.explain(fault).to_json() == run.explain(fault).to_json()
        ours = {c.claim.replace("the region", "the core's memory").replace("a unit walks", "a unit or the guest's processor walks"): c.holds
                for c in outside.proof.claims}
        assert len(ours) == 7 and ours == {c.claim: c.holds for c in run.proof.claims if c.claim in ours}


@pytest.mark.parametrize("name", ["core", "raw"])
def test_without_registers_the_root_is_given(booted: tuple[Machine, Run], folder: Path, name: str) -> None:
    _, run = booted
    root = run.units[0].root_table
    with Outside.open(folder / name) as outside:
        assert not outside.units and not outside.domains and "root table" in outside.domains.note
        for ask in (lambda: outside.what_if(0x10, 0x1000), lambda: outside.proof):
            with pytest.raises(HvlabError, match=r"give"):
                ask()
    with Outside.open(folder / name, root=root, region=_region(run)) as outside:
        assert [replace(d, unit=None, input_bits=0) for d in outside.domains] == [
            replace(d, input_bits=0) for d in decode(outside.memory, root or 0)]
        assert [(d.did, d.root, d.runs) for d in outside.domains] == [(d.did, d.root, d.runs) for d in run.domains]
        assert outside.what_if(0x10, 0x1000).host == 0x1000 and len(outside.proof.claims) == 4 and outside.proof.holds
        assert any("assumed" in sentence for sentence in outside.assumptions)
        assert outside.lens(_region(run)[0]).facts[0].about == "region"
    reached = 0x100000, 0x101000
    with Outside.open(folder / name, root=root, region=reached) as outside:
        claim = outside.proof.claim("can write the region")
        assert not claim.holds and claim.counterexample is not None and claim.counterexample.host == reached[0]


def test_the_views_of_a_run_show_a_dump(booted: tuple[Machine, Run], folder: Path) -> None:
    from widgets import E820View, FaultTable, GraphView, LensView, PageMap, PermissionsView, Selection, WalkExplainer
    _, run = booted
    with Outside.open(folder / "core", root=run.units[0].root_table, region=_region(run)) as outside:
        chosen = Selection()
        shown = [view(outside, chosen) for view in (E820View, FaultTable, GraphView, LensView, PageMap, PermissionsView, WalkExplainer)]
        lens = shown[3]
        chosen.address = _region(run)[0]
        assert len(shown) == 7 and "must be out of reach" in lens.figure.html
        assert "domain 0" in outside.permissions.figure().html and outside.domains.figure() and outside.e820.figure()


def test_root_tables_are_guessed(booted: tuple[Machine, Run], folder: Path) -> None:
    with Outside.open(folder / "core") as outside:
        assert [g.address for g in outside.guesses] == [booted[1].units[0].root_table]
        assert outside.guesses[0].contexts == len(booted[1].domains[0].devices)
        assert outside.to_json()["guesses"][0]["address"] == booted[1].units[0].root_table


def test_the_command_line(booted: tuple[Machine, Run], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, core = hex(booted[1].units[0].root_table or 0), str(folder / "core")
    decoded = []
    for words in (["decode", str(folder / "tables.npz")], ["decode", core], ["decode", str(folder / "raw"), "--raw"]):
        assert main([*words, "--root", root, "--json"]) == 0
        decoded.append(json.loads(capsys.readouterr().out))
    assert decoded[0] == decoded[1] == decoded[2] and decoded[0]["domains"]
    assert main(["look", core, "--root", root, "--region", "0x1000-0x2000", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [d | {"unit": None} for d in told["domains"]] == decoded[0]["domains"] and told["proof"]["holds"] is False
    assert main(["look", core]) == 0
    assert "Guessed root tables: 1" in capsys.readouterr().out
    for words in (["look", core, "--root", "0x1234"], ["look", core, "--region", "0-0x40000000000000"], ["look", "nothing"],
                  ["look", "/"], ["look", "qemu:/nothing"], ["look", "qemu:/nothing", "--ram", "0-4096"], ["look", "\0"],
                  ["look", core, "--registers", core], ["look", core, "--linux", core], ["decode", str(folder / "raw"), "--root", "0"],
                  ["look", core, "--root", "0x200000"]):
        assert main(words) == 2, words
        assert len(capsys.readouterr().err.splitlines()) == 1


def _printed(run: Run, memory: Memory) -> str:
    """The tables of a run as Linux would print them."""
    root = run.units[0].root_table or 0
    words = struct.unpack("<512Q", memory.read(root, PAGE))
    pairs = [(c.source, words[2 * (c.source >> 8) + 1], words[2 * (c.source >> 8)], c.high, c.low) for c in read_contexts(memory, root)]
    nothing = "\t-1    \t0x0000000000000000:0x0000000000000000:0x0000000000000000"
    rows = [f"{format_bdf(source)}\t0x{a:016x}:0x{b:016x}\t0x{c:016x}:0x{d:016x}{nothing}" for source, a, b, c, d in pairs]
    return "\n".join([f"IOMMU dmar0: Root Table Address: {root:#x}", "B.D.F\tRoot_entry", *rows, "", ""])


def test_what_linux_would_print_agrees(booted: tuple[Machine, Run], folder: Path, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    machine, run = booted
    text = _printed(run, machine.pc.memory)
    (tmp_path / "text").write_text(text)
    words = ["look", str(folder / "core"), "--registers", str(folder / "registers.json"), "--linux", str(tmp_path / "text")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["linux"] == {"dmar0": []} and [u["base"] for u in told["units"]] == [0xFED90000] and len(told["domains"]) == 1
    (tmp_path / "text").write_text(text.replace("00:02.0", "00:02.1"))
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "Where Linux and memory differ: dmar0: 2" in shown and "only printed" in shown and "only in memory" in shown


@settings(max_examples=12)
@given(st.data())
def test_tables_of_noise_are_looked_at(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Every page of a small memory holds words that look like entries, and every one is tried as a root."""
    path = tmp_path_factory.getbasetemp() / "noise"
    r = data.draw(st.randoms(use_true_random=False))
    words = np.zeros((16, 512), np.uint64)
    for page in words:
        for _ in range(r.randrange(40)):
            page[r.randrange(512)] = r.choice((r.getrandbits(64), r.randrange(16) << 12 | r.randrange(4) | r.choice((0, 0x80, 1 << 60)), 1))
    words[1, :2], words[2, :2] = (root_entry(0x2000), 0), context_entry(r.randrange(16) << 12, r.randrange(1, 4), 5)
    path.write_bytes(words.tobytes())
    with Outside.open(path) as outside:
        assert all(g.contexts > 0 for g in outside.guesses) and str(outside)
    for root in range(0, len(words) * PAGE, 5 * PAGE):
        with Outside.open(path, root=root, region=(0x3000, 0x5000)) as outside:
            assert len(outside.proof.claims) == 4 and outside.to_json() and str(outside.what_if(r.randrange(512), r.getrandbits(40)))


def test_a_search_among_pages_that_all_look_like_roots_ends(path: Path) -> None:
    """1,024 pages each of which names all the others."""
    count = 1024
    page = np.zeros(512, np.uint64)
    page[0::2] = np.arange(1, 257, dtype=np.uint64) * PAGE + 1
    path.write_bytes(np.tile(page, (count, 1)).tobytes())
    with Outside.open(path) as outside:
        assert not outside.guesses and "cut" in outside.guesses.note
