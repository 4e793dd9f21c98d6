"""Code that is written by one address and runs at another: the emulator runs it as it was written last."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from hvcore.machine import codepages
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cpu import Cpu
from hvcore.machine.memory import Memory

TABLES, STACK, CALLER, CODE, ALIAS, PAGES = 0x1000, 0x9000, 0xA000, 0x100000, 0x200000, 4


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    """Nothing is mended before the test; afterwards it may be again."""
    codepages._once.undo()
    yield
    codepages._once.undo()


class Writer:
    """A processor that writes code by an alias that is not executable, and calls it: as a Linux fills pages of programs."""

    def __init__(self) -> None:
        self.memory = Memory([(0, 0x400000)])
        self.cpu = Cpu(self.memory, Bus(self.memory), Clock())
        entries = {n: n << 12 | 3 for n in range(512)}
        entries |= {(ALIAS >> 12) + n: CODE + 0x1000 * n | 1 << 63 | 3 for n in range(PAGES)}
        for n, table in enumerate(({0: TABLES + 0x1003}, {0: TABLES + 0x2003}, {0: TABLES + 0x3003, 1: TABLES + 0x4003})):
            for slot, entry in table.items():
                self.memory.write64(TABLES + 0x1000 * n + 8 * slot, entry)
        for n, entry in entries.items():
            self.memory.write64(TABLES + 0x3000 + 8 * n, entry)
        self.cpu.start(CALLER, TABLES, 0)

    def close(self) -> None:
        self.cpu.close()
        self.memory.close()

    def run(self, code: bytes) -> int:
        """Executes code behind an HLT that the last one left; what is in RAX then."""
        self.memory.write(CALLER, code + b"\xf4")
        self.cpu.rip = CALLER
        self.cpu.uc.reg_write(x86.UC_X86_REG_RSP, STACK)
        self.cpu.run()
        return int(self.cpu.uc.reg_read(x86.UC_X86_REG_RAX))


def put(address: int, data: bytes) -> bytes:
    """Code that stores bytes one by one: mov byte ptr [address], n."""
    return b"".join(b"\xc6\x04\x25" + (address + n).to_bytes(4, "little") + bytes((byte,)) for n, byte in enumerate(data))


def call(address: int) -> bytes:
    """mov ecx, address; call rcx."""
    return b"\xb9" + address.to_bytes(4, "little") + b"\xff\xd1"


def tells(number: int) -> bytes:
    """mov eax, number; ret."""
    return b"\xb8" + number.to_bytes(4, "little") + b"\xc3"


def told(steps: list[tuple[int, int]]) -> list[int]:
    """What is told at (place, number) after each of the steps, on one processor: pages are full of code, of which one piece changes."""
    writer = Writer()
    try:
        for place in range(8 * PAGES):
            writer.memory.write(CODE + 0x200 * place, tells(place))
        sums = []
        for place, number in steps:
            writer.run(put(ALIAS + 0x200 * place, tells(number)) + call(CODE + 0x200 * place))
            sums.append(writer.run(call(CODE + 0x200 * place)))
        return sums
    finally:
        writer.close()


@pytest.mark.usefixtures("_as_it_was")
def test_the_emulator_alone_runs_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codepages, "mend", lambda: None)
    assert not codepages._runs_what_was_written(None)


@pytest.mark.usefixtures("_as_it_was")
def test_it_is_mended_once() -> None:
    mending = codepages.mend()
    assert mending is not None and codepages.mend() is mending and codepages._runs_what_was_written(mending)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from((0, 1, 7, 8, 31)), st.integers(0, 0xFFFF)), min_size=1, max_size=12))
def test_what_was_written_last_runs(steps: list[tuple[int, int]]) -> None:
    assert told(steps) == [number for _, number in steps]


def test_a_page_that_is_filled_anew_runs_nothing_of_what_was_there() -> None:
    """As a kernel fills it: by a repeated store."""
    writer = Writer()
    try:
        for number in (1, 2, 3):
            page = tells(number) * 600
            writer.memory.write(0x50000, page)
            copy = b"\xbe\x00\x00\x05\x00\xbf" + ALIAS.to_bytes(4, "little") + b"\xb9" + len(page).to_bytes(4, "little") + b"\xf3\xa4"
            writer.run(copy)
            assert [writer.run(call(CODE + 6 * place)) for place in (0, 77, 400, 599)] == [number] * 4
        assert writer.cpu.code_pages.met
    finally:
        writer.close()


def test_two_processors_at_once() -> None:
    """Each in a thread of its own, with its own pages."""
    found: dict[int, list[int]] = {}
    steps = {n: [(place % 5, 1000 * n + place) for place in range(60)] for n in range(2)}
    threads = [threading.Thread(target=lambda n=n: found.update({n: told(steps[n])})) for n in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [number for _, number in steps[n]] for n in steps}


def test_by_the_public_interface_alone_nothing_is_noted() -> None:
    memory = Memory([(0, 0x100000)])
    cpu = Cpu(memory, Bus(memory), Clock(), public_only=True)
    assert cpu.code_pages.met is None
    cpu.close()
    memory.close()
