import json
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import HvlabError
from hvcore.machine.bus import Bus, Window
from hvcore.machine.clock import Clock
from hvcore.machine.cpu import StopKind
from hvcore.machine.memory import PAGE, Memory
from hvcore.machine.nvmequeue import CompletionQueue, Reply, SubmissionQueue
from hvcore.machine.pic import Pic
from hvcore.machine.pit import Pit
from hvcore.machine.printed import Printed
from hvcore.snapshot import pages
from hvcore.snapshot.decoding import decode
from hvcore.snapshot.encoding import encode
from hvcore.snapshot.graph import Graph
from hvcore.spec.vtd import CAP, FaultReason

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 200), 1 << 200) | st.text(max_size=8) | FLOATS
LEAVES = SCALARS | st.binary(max_size=20) | st.sampled_from([StopKind.HALT, FaultReason.ROOT_NOT_PRESENT, CAP, range(3, 9, 2)])
KEYS = st.integers(0, 99) | st.text(max_size=3) | st.tuples(st.integers(0, 9), st.binary(max_size=2))
VALUES = st.recursive(LEAVES, lambda inner: (
    st.lists(inner, max_size=6) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4) | st.frozensets(KEYS, max_size=4)
    | st.sets(KEYS, max_size=4) | st.lists(inner, max_size=4).map(lambda v: deque(v, maxlen=7)) | st.binary(max_size=9).map(bytearray)
    | st.binary(max_size=9).map(Printed) | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict) | inner.map(lambda v: [v] * 9)))


def there_and_back(thing: Any, share: bool = False, **outside: object) -> Any:
    """Through JSON, unless it stays in this process."""
    graph = encode(thing, outside, share=share)
    if not share:
        told = json.loads(json.dumps([graph.root, graph.nodes, graph.shapes]))
        graph = Graph(*told, graph.blob)
    value, fill = decode(graph, outside)
    fill()
    return value


def alike(a: Any, b: Any) -> bool:
    """Whether two are equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple | deque):
        return getattr(a, "maxlen", None) == getattr(b, "maxlen", None) and len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans())
def test_any_value_comes_back(value: Any, share: bool) -> None:
    assert alike(there_and_back(value, share), value)


def test_what_is_one_thing_stays_one_and_circles_close() -> None:
    a: list[Any] = [1]
    a += [a, (a, a), {"a": a}, deque([a])]
    b = there_and_back(a)
    assert b[1] is b and b[2][0] is b and b[2][1] is b and b[3]["a"] is b and b[4][0] is b


def test_enum_members_and_declarations_are_the_ones_that_there_are() -> None:
    found = there_and_back([StopKind.PAUSE, CAP, FaultReason.ROOT_NOT_PRESENT])
    assert found[0] is StopKind.PAUSE and found[1] is CAP and found[2] is FaultReason.ROOT_NOT_PRESENT


def test_devices_with_their_timers_and_methods_come_back() -> None:
    memory = Memory(((0, 1 << 20),))
    clock, bus = Clock(), Bus(memory)
    pic = Pic(bus)
    pit = Pit(bus, clock, pic)
    for port, value in ((0x43, 0x34), (0x40, 0x34), (0x40, 0x12)):
        bus.port_write(port, 1, value)
    clock.advance(1_000_000)
    clock2, bus2, pic2, pit2 = there_and_back([clock, bus, pic, pit], memory=memory)
    assert bus2.memory is memory and bus2._ports[0x40] is pit2 and bus2._ports[0x20] is pic2
    for each, ports in ((clock, bus), (clock2, bus2)):
        each.advance(50_000_000)
        ports.port_write(0x43, 1, 0)
    assert clock.now == clock2.now and bus.port_read(0x40, 1) == bus2.port_read(0x40, 1) and clock.next() == clock2.next()
    assert pic.pending() == pic2.pending()
    memory.close()


def test_records_with_and_without_slots() -> None:
    queue = CompletionQueue(1, 0x1000, 16, 2, True)
    source = SubmissionQueue(1, 0x2000, 16, queue)
    queue.waiting.append((source, 7, Reply()))
    back = there_and_back(queue)
    assert type(back) is CompletionQueue and back.waiting[0][0].completions is back and back.waiting[0][2] == Reply()
    window = there_and_back(Window(1, 2, "w", queue))       # type: ignore[arg-type]
    assert (window.start, window.end, window.name, window.device.base) == (1, 2, "w", 0x1000)


@pytest.mark.parametrize("thing", [object(), lambda: None, print, json, Memory, type, np.zeros(3), iter([]), HvlabError("x"), [open]])
def test_what_no_snapshot_holds_is_refused_when_it_is_saved(thing: Any) -> None:
    with pytest.raises(HvlabError, match="no snapshot can hold"):
        encode(thing, {})


# --- pages

@pytest.fixture
def memory() -> Any:
    made = Memory(((0, 0xA0000), (1 << 20, 1 << 31)))
    for page in (0, 3, 0x9F, 0x100, 0x101, 0x7_FFFF, 0x40000):
        made.write(page * PAGE + page % 4096, b"x")
    made.u8(0x50000 * PAGE, PAGE)[:] = 0
    yield made
    made.close()


def test_pages_are_found_by_whatever_the_host_tells(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [0, 3, 0x9F, 0x100, 0x101, 0x40000, 0x7_FFFF]
    assert pages.touched(memory).tolist() == expected
    monkeypatch.setattr(pages, "_swapped", lambda: True)
    assert pages.touched(memory).tolist() == expected
    monkeypatch.setattr(pages, "_swapped", lambda: False)
    monkeypatch.setattr(pages, "_libc", lambda: None)
    small = Memory(((0, 1 << 24),))
    small.write(5 * PAGE, b"x")
    assert pages.touched(small).tolist() == [5]
    small.close()


def test_looking_for_pages_touches_none(memory: Memory) -> None:
    def resident() -> int:
        return sum(len(pages._present(memory, a // PAGE, b // PAGE)) for a, b in memory.runs)

    before = resident()
    pages.touched(memory)
    assert resident() == before < 100


@pytest.mark.parametrize("codec", [pages.RAW, pages.ZSTD])
def test_packed_and_unpacked(codec: str) -> None:
    if codec == pages.ZSTD:
        pytest.importorskip("zstandard")
    for data in (b"", b"x" * 10_000, bytes(range(256)) * 40):
        assert pages.unpack(codec, pages.pack(codec, data), len(data)) == data


def test_filling_memory_by_runs_and_page_by_page(memory: Memory) -> None:
    for numbers in (np.arange(0x200, 0x300), np.arange(0x200, 0x400, 2), np.array([1, 2, 3, 9]), np.zeros(0, np.int64)):
        data = np.random.default_rng(1).integers(0, 256, (len(numbers), PAGE), np.uint8)
        pages.fill(memory, numbers, data)
        for number, row in zip(numbers.tolist(), data, strict=True):
            assert memory.read(number * PAGE, PAGE) == row.tobytes()
