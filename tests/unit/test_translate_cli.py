"""`hvlab translate`: requests from a file under tables from a file."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vtd_batch import POOL, SOURCES, any_bench, any_iova
from vtd_bench import CONTEXTS, NOWHERE, QEMU_CAP, QEMU_ECAP, ROOT, TABLE1, TABLE2, TABLE3

from hvcore import translate
from hvcore.cli import main
from hvcore.errors import Unreadable
from hvcore.inspect.dump import PageStore
from hvcore.machine.vtd.walk import Walk, Walker
from hvcore.spec.dma import Direction
from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import CAP, in_interrupt_range

MEASURED = Path(__file__).parents[1] / "data" / "bitvisor" / "tables.npz"
MEASURED_ROOT = 0x79BE0000
HOLE = (0x77C00000, 0x7FC00000)
READ, WRITE = "read", "write"
THROUGH = {"ok": True, "how": "translated", "page_size": 4096, "fault": None}


def request(bdf, addr, size=8, kind=READ):
    return {"bdf": bdf, "addr": addr, "size": size, "type": kind}


def call(capsys, folder, tables, root, lines, *options):
    """Exit status, standard output and standard error of `hvlab translate`."""
    file = folder / "requests.jsonl"
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text)
    try:
        status = main(["translate", str(tables), "--root", hex(root), "--requests", str(file), *options])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def answers(capsys, folder, tables, root, lines, *options):
    status, out, err = call(capsys, folder, tables, root, lines, "--json", *options)
    assert (status, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def blocked(reason, bdf, addr, kind=READ):
    return {"ok": False, "how": "blocked", "phys": [], "page_size": 4096,
            "fault": {"reason": reason, "source": bdf, "addr": addr, "type": kind}}


# --- the real BitVisor's tables: everything 1:1 below 4 GiB, but not the hypervisor's own 128 MiB

TRUTH = [
    (request("00:02.0", 0x1000), THROUGH | {"phys": [[0x1000, 0x1008]]}),
    (request("0000:00:1F.2", hex(HOLE[0] - 1), "0x1", WRITE), THROUGH | {"phys": [[HOLE[0] - 1, HOLE[0]]]}),
    (request("00:02.0", HOLE[0]), blocked(6, "00:02.0", HOLE[0])),
    (request("00:02.0", HOLE[0] - 0x1800, 0x2000, WRITE), blocked(5, "00:02.0", HOLE[0], WRITE)),
    (request("00:02.0", HOLE[1] - 1, 1), blocked(6, "00:02.0", HOLE[1] - 0x1000)),
    (request("00:02.0", HOLE[1], 0x10000), THROUGH | {"phys": [[HOLE[1], HOLE[1] + 0x10000]]}),
    (request("00:02.0", 0x100123, 1 << 30), THROUGH | {"phys": [[0x100123, 0x40100123]]}),
    (request("00:02.0", (1 << 32) - 8), THROUGH | {"phys": [[(1 << 32) - 8, 1 << 32]]}),
    (request("00:02.0", (1 << 32) - 8, 9), blocked(6, "00:02.0", 1 << 32)),
    (request("00:02.0", 1 << 39), blocked(4, "00:02.0", 1 << 39)),
    (request("00:02.0", (1 << 64) - 1, 1), blocked(4, "00:02.0", (1 << 64) - 4096)),
    (request("00:03.0", 0), blocked(2, "00:03.0", 0)),
    (request("01:00.0", 0), blocked(1, "01:00.0", 0)),
    (request("00:02.0", 0xFEE01004, 4, WRITE), THROUGH | {"how": "interrupt-range", "phys": [[0xFEE01004, 0xFEE01008]]}),
    (request("00:02.0", 0xFEE01004, 4), blocked(14, "00:02.0", 0xFEE01000)),
    (request("00:02.0", 0xFEE01004, 8, WRITE), blocked(14, "00:02.0", 0xFEE01000, WRITE)),
    (request("00:02.0", 0xFEE01002, 4, WRITE), blocked(14, "00:02.0", 0xFEE01000, WRITE)),
    (request("00:02.0", 0xFEDFFFFC, 8, WRITE), blocked(14, "00:02.0", 0xFEE00000, WRITE)),
    (request("00:02.0", 0x5123, 0), THROUGH | {"phys": [[0x5123, 0x5123]]}),
    (request("00:02.0", HOLE[0], 0, WRITE), blocked(5, "00:02.0", HOLE[0], WRITE)),
]


def test_the_tables_of_the_real_bitvisor(capsys, tmp_path):
    found = answers(capsys, tmp_path, MEASURED, MEASURED_ROOT, [asked for asked, _ in TRUTH])
    assert found == [truth for _, truth in TRUTH]


def test_the_same_under_the_unit_it_ran_on(capsys, tmp_path):
    unit = "--cap", hex(QEMU_CAP), "--ecap", hex(QEMU_ECAP)
    found = answers(capsys, tmp_path, MEASURED, MEASURED_ROOT, [asked for asked, _ in TRUTH], *unit)
    assert found == [truth for _, truth in TRUTH]


def test_a_table_for_people(capsys, tmp_path):
    status, out, err = call(capsys, tmp_path, MEASURED, MEASURED_ROOT, [asked for asked, _ in TRUTH])
    lines = out.splitlines()
    assert (status, err, len(lines)) == (0, "", len(TRUTH) + 2)
    assert lines[2].split() == ["00:02.0", "read", "0x1000", "8", "B", "translated", "0x1000-0x1008", "4", "KiB"]
    assert lines[4].endswith("0x6 at 0x77c00000: no read permission on the way down, or nothing mapped")


# --- any tables, against one walk for each page

class PlainMemory:
    """Pages in a dictionary; RAM of zeros from 0 up to `ram`."""

    def __init__(self, pages: dict[int, bytes], ram: int):
        self.pages, self.ram = pages, ram

    def read(self, address: int, length: int, /) -> bytes:
        page = self.pages.get(address & ~0xFFF, bytes(4096) if address < self.ram else None)
        if page is None:
            raise Unreadable(address, length)
        return page[address % 4096:address % 4096 + length]

    def read64(self, address: int, /) -> int:
        return int.from_bytes(self.read(address, 8), "little")


def judged(walk: Walk, kind: str, size: int, zlr: bool) -> tuple[int, int | None]:
    """Reason and address of a request of one page."""
    reason = walk.refusal(Direction(kind))
    if reason and kind == READ and not size and zlr and walk.write in (None, 14):
        reason = walk.write
    return (int(reason), None) if reason else (0, walk.address)


def one_by_one(walker: Walker, root: int, asked: dict) -> dict:
    """The answer to a request by a walk for each page that it touches."""
    source, addr, size, kind = (asked[key] for key in ("source", "addr", "size", "type"))
    if in_interrupt_range(addr) and (kind, size, addr % 4) == (WRITE, 4, 0):
        return THROUGH | {"how": "interrupt-range", "phys": [[addr, addr + 4]]}
    phys, sizes, at = [], [], addr
    while at < addr + size or not sizes:
        walk = walker.walk(root, source, at)
        reason, address = judged(walk, kind, size, bool(CAP.get(walker.cap, "ZLR")))
        if address is None:
            return blocked(reason, format_bdf(source), at & ~0xFFF, kind)
        length = min(4096 - at % 4096, addr + size - at)
        if phys and phys[-1][1] == address:
            phys[-1][1] += length
        else:
            phys.append([address, address + length])
        sizes.append(walk.size or 4096)
        at += length or 1
    return {"ok": True, "how": "pass-through" if walk.context.tt == 2 else "translated", "phys": phys, "page_size": sizes[0], "fault": None}


def some_requests(r: Random, count: int) -> list[dict]:
    sizes = (0, 1, 4, 8, 4096, 8192, 0x5001, 0x1000 * 600)
    return [{"source": r.choice(SOURCES), "addr": min(any_iova(r, r.random() < 0.5), (1 << 64) - 0x1000 * 600), "size": r.choice(sizes),
             "type": r.choice((READ, WRITE))} for _ in range(count)]


@settings(max_examples=150)
@given(st.integers(0, 1 << 48))
def test_any_tables_as_one_walk_for_each_page(seed):
    r = Random(seed)
    bench = any_bench(r)
    cap, ecap, haw = bench.unit.walker.cap, bench.unit.walker.ecap, bench.unit.walker.haw
    held = [page for page in (0x8000, *POOL) if r.random() < 0.97]
    store = PageStore(np.array(held, np.uint64), np.array([bench.memory.u64(page, 512) for page in held]).reshape(-1, 512))
    ram, root = r.choice((0, 0x10_5000, 0x20_0000)), r.choice((0x8000, 0x8000, 0x8400, NOWHERE))
    walker = Walker(PlainMemory({page: bench.memory.read(page, 4096) for page in held}, ram), cap, ecap, haw)
    asked = some_requests(r, 12)
    unit = translate.FileUnit(translate.FilePages(store, [(0, ram)] if ram else []), root, cap, ecap, haw)
    arrays = translate.Asked(np.array([a["source"] for a in asked]), np.array([a["addr"] for a in asked], np.uint64),
                             np.array([a["size"] for a in asked]), np.array([a["type"] == WRITE for a in asked], np.uint8))
    found = [json.loads(json.dumps(answer.to_json())) for answer in unit.answers(arrays)]
    assert found == [one_by_one(walker, root, a) for a in asked]


def test_long_files_in_pieces(monkeypatch):
    unit = translate.FileUnit(translate.FilePages(translate_store()), ROOT)
    r = Random(1)
    size = np.array([r.choice((0, 1, 0x3000, 0x10000)) for _ in range(200)])
    asked = translate.Asked(np.full(200, 0x10), np.array([r.randrange(0x50_0000) for _ in range(200)], np.uint64), size,
                            np.array([r.randrange(2) for _ in range(200)], np.uint8))
    whole = list(unit.answers(asked))
    monkeypatch.setattr(translate, "_AT_ONCE", 3)
    assert list(unit.answers(asked)) == whole and len(whole) == 200


# --- small tables by hand

def words(**entries: int) -> np.ndarray:
    page = np.zeros(512, np.uint64)
    for index, entry in entries.items():
        page[int(index[1:])] = entry
    return page


def translate_store() -> PageStore:
    """Function 00:02.0: 0x5000 and 0x6000 to 0x9000 and 0xa000, 0x7000 to 0x20000 for writes, 2 MiB at 2 MiB and 4 MiB 1:1."""
    pages = {ROOT: words(_0=CONTEXTS | 1), CONTEXTS: words(_32=TABLE3 | 1, _33=7 << 8 | 1, _48=NOWHERE | 1 | 2 << 2, _49=1),
             TABLE3: words(_0=TABLE2 | 3), TABLE2: words(_0=TABLE1 | 3, _1=0x20_0083, _2=0x40_0083, _5=NOWHERE | 3),
             TABLE1: words(_5=0x9003, _6=0xA003, _7=0x2_0002)}
    return PageStore(np.array(list(pages), np.uint64), np.array(list(pages.values())))


@pytest.fixture
def small(tmp_path):
    store = translate_store()
    np.savez(tmp_path / "small.npz", address=store.address, page=store.page)
    return tmp_path / "small.npz"


def test_pieces_that_touch_are_one(capsys, tmp_path, small):
    found = answers(capsys, tmp_path, small, ROOT, [
        request("00:02.0", 0x5800, 0x1000), request("00:02.0", 0x5800, 0x2000, WRITE), request("00:02.0", 0x20_0800, 0x30_0000),
        request("00:03.0", 0x1234, 0x10_0000, WRITE), request("00:02.0", 0x7800, 0), request("00:02.0", 0x7800, 0, WRITE),
        request("00:02.0", 0x5800, 0x2000)])
    assert found[0] == THROUGH | {"phys": [[0x9800, 0xA800]]}
    assert found[1] == THROUGH | {"phys": [[0x9800, 0xB000], [0x2_0000, 0x2_0800]]}
    assert found[2] == THROUGH | {"phys": [[0x20_0800, 0x50_0800]], "page_size": 2 << 20}
    assert found[3] == THROUGH | {"how": "pass-through", "phys": [[0x1234, 0x10_1234]]}
    assert found[6] == blocked(6, "00:02.0", 0x7000)
    assert found[4] == found[5] == THROUGH | {"phys": [[0x2_0800, 0x2_0800]]}


@pytest.mark.parametrize(("options", "asked", "answer"), [
    ((), request("00:02.0", 0xA0_0000), blocked(7, "00:02.0", 0xA0_0000)),
    (("--ram", f"{NOWHERE:#x}-{NOWHERE + 4096:#x}"), request("00:02.0", 0xA0_0000), blocked(6, "00:02.0", 0xA0_0000)),
    (("--ram", f"{NOWHERE - 1}-{NOWHERE + 4095}"), request("00:02.0", 0xA0_0000), blocked(7, "00:02.0", 0xA0_0000)),
    (("--ram", f"{NOWHERE - 1}-{NOWHERE + 100}", "--ram", f"{NOWHERE + 50}-{NOWHERE + 4096}"), request("00:02.0", 0xA0_0000),
     blocked(6, "00:02.0", 0xA0_0000)),
    (("--cap", hex(CAP.make(SAGAW=4, MGAW=47, SLLPS=3))), request("00:02.0", 0x5000), blocked(3, "00:02.0", 0x5000)),
    (("--cap", hex(CAP.make(SAGAW=2, MGAW=38))), request("00:02.0", 0x20_0000), blocked(12, "00:02.0", 0x20_0000)),
    (("--cap", hex(CAP.make(SAGAW=2, MGAW=21))), request("00:02.0", 0x40_0000), blocked(4, "00:02.0", 0x40_0000)),
    (("--cap", hex(CAP.make(SAGAW=2, MGAW=38))), request("00:02.0", 0x7000, 0), blocked(6, "00:02.0", 0x7000)),
    (("--ecap", "0"), request("00:03.0", 0x5000), blocked(3, "00:03.0", 0x5000)),
    (("--haw", "20"), request("00:02.0", 0x5000), blocked(10, "00:02.0", 0x5000)),
    (("--haw", "21"), request("00:02.0", 0x20_0000), blocked(12, "00:02.0", 0x20_0000)),
])
def test_what_the_unit_and_the_memory_are(capsys, tmp_path, small, options, asked, answer):
    assert answers(capsys, tmp_path, small, ROOT, [asked], *options) == [answer]


@pytest.mark.parametrize(("root", "ram", "reason"), [(0x5000, (), 8), (0x5000, ("--ram", "0x5000-0x6000"), 1), (ROOT | 1 << 10, (), 8),
                                                     (TABLE3, ("--ram", "0-0x100000"), 10)])
def test_other_roots(capsys, tmp_path, small, root, ram, reason):
    assert answers(capsys, tmp_path, small, root, [request("00:02.0", 0x5000)], *ram) == [blocked(reason, "00:02.0", 0x5000)]


def test_no_context_table(capsys, tmp_path, small):
    with np.load(small) as file:
        keep = file["address"] != CONTEXTS
        np.savez(tmp_path / "less.npz", address=file["address"][keep], page=file["page"][keep])
        np.savez(tmp_path / "empty.npz", address=file["address"][:0], page=file["page"][:0])
    asked = [request("00:02.0", 0x5000)]
    assert answers(capsys, tmp_path, tmp_path / "less.npz", ROOT, asked)[0]["fault"]["reason"] == 9
    assert answers(capsys, tmp_path, tmp_path / "empty.npz", ROOT, asked)[0]["fault"]["reason"] == 8
    assert answers(capsys, tmp_path, tmp_path / "less.npz", ROOT, asked, "--ram", "0-0x200000")[0]["fault"]["reason"] == 2


# --- mistakes

GOOD = json.dumps(request("00:02.0", 0x5000)) + "\n"


@pytest.mark.parametrize(("line", "word"), [
    ('{"bdf":"00:02.0","addr":4096,', "JSON"), ("[1]", "JSON"), ("7", "JSON"), ("[" * 100000, "JSON"), ("nothing", "JSON"),
    ('{"bdf":"00:02.0","addr":' + "9" * 5000 + ',"size":1,"type":"read"}', "JSON"),
    ('{"addr":0,"size":1,"type":"read"}', "`bdf` is missing"), (json.dumps(request("00:20.0", 0)), "00:20.0"),
    (json.dumps(request("2.0", 0)), "2.0"), (json.dumps(request(16, 0)), "bdf"), (json.dumps(request("0001:00:02.0", 0)), "segment"),
    (json.dumps(request("00:02.0", -1)), "addr"), (json.dumps(request("00:02.0", 1.5)), "addr"),
    (json.dumps(request("00:02.0", None)), "addr"), (json.dumps(request("00:02.0", True)), "addr"),
    (json.dumps(request("00:02.0", 1 << 64)), "addr"),
    (json.dumps(request("00:02.0", "here")), "addr"), (json.dumps(request("00:02.0", "\u0660x1000")), "addr"),
    (json.dumps(request("00:02.0", "1_000")), "addr"), (json.dumps(request("00:02.0", 0, "\u0661")), "size"),
    ('{"bdf":"00:02.0","addr":1e400,"size":1,"type":"read"}', "addr"), ('{"bdf":"00:02.0","addr":NaN,"size":1,"type":"read"}', "addr"),
    (json.dumps(request("00:02.0", 0, -1)), "size"),
    (json.dumps(request("00:02.0", 0, 1 << 40)), "size"), (json.dumps(request("00:02.0", (1 << 64) - 1, 2)), "64 bits"),
    (json.dumps(request("00:02.0", 0, 1, "look")), "type"), (json.dumps(request("00:02.0", 0, 1, ["read"])), "type"),
])
def test_a_bad_line_is_told_by_its_number(capsys, tmp_path, small, line, word):
    status, out, err = call(capsys, tmp_path, small, ROOT, GOOD + "\n" + GOOD + line + "\n" + GOOD, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "line 4" in err and word in err and len(err) < 400


@pytest.mark.parametrize("options", [("--ram", "1"), ("--ram", "5-5"), ("--ram", "0-x"), ("--ram", "-5-7"), ("--cap", "x"), ("--haw", "0"),
                                     ("--haw", "65"), ("--cap", "0x10000000000000000"), ("--ecap=-1",),
                                     ("--ram=--",), ("--haw=--",), ("--haw", "\u0663\u0669"), ("--haw", "39.0"), ("--cap", "1_0"),
                                     ("--ram", "0-\u0664\u0660\u0669\u0666"), ("--ram", "0x2000-0x1000")])
def test_bad_options_are_one_line(capsys, tmp_path, small, options):
    status, out, err = call(capsys, tmp_path, small, ROOT, GOOD, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_unit_without_an_address_is_named_by_its_option(capsys, tmp_path, small):
    assert "--cap 0x0" in call(capsys, tmp_path, small, ROOT, GOOD, "--cap", "0")[2]


def test_files_that_are_no_requests(capsys, tmp_path, small):
    (tmp_path / "latin").write_bytes(GOOD.encode() + b"\xff\n")
    for file, word in ((tmp_path / "none", "No such file"), (tmp_path, "not a file"), (tmp_path / "latin", "line 2")):
        assert main(["translate", str(small), "--root", "0x1000", "--requests", str(file)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and word in err


def test_no_requests_no_answers(capsys, tmp_path, small):
    assert answers(capsys, tmp_path, small, ROOT, "\ufeff\n  \r\n") == []
    assert call(capsys, tmp_path, small, ROOT, "")[0] == 0
