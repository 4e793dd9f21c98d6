"""The block counter against a plain count, the time that blocks take, timers to the block, and stops that change nothing."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_HOOK_BLOCK, Uc
from unicorn import x86_const as x86

from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cpu import ACCESS_NS, Cpu, StopKind
from hvcore.machine.instructions import TSC_NS
from hvcore.machine.memory import Memory
from hvcore.machine.meter import BLOCK_NS

CODE, STACK, TABLES, HSAVE, COUNTER = 0x10000, 0x80000, 0x100000, 0x180000, 0x70000
REGISTERS = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RSP,
             x86.UC_X86_REG_EFLAGS)
INC_COUNTER = b"\x48\xff\x04\x25" + struct.pack("<I", COUNTER)


class Silence:
    """A port that reads 0."""

    def port_read(self, port: int, width: int) -> int:
        return 0

    def port_write(self, port: int, width: int, value: int) -> None:
        pass


@contextmanager
def processor(program: bytes) -> Iterator[Cpu]:
    """One that will run a program of host code from its start."""
    memory = Memory([(0, 2 << 20)])
    bus = Bus(memory)
    bus.map_ports(0x99, 1, Silence())
    memory.write64(TABLES, TABLES + 0x1003)
    memory.write64(TABLES + 0x1000, 0x83)
    memory.write(CODE, program)
    cpu = Cpu(memory, bus, Clock())
    cpu.start(CODE, TABLES, HSAVE)
    cpu.uc.reg_write(x86.UC_X86_REG_RSP, STACK)
    try:
        yield cpu
    finally:
        cpu.close()
        memory.close()


def loop(turns: int, body: bytes) -> bytes:
    """MOV ECX; body; DEC ECX; JNZ."""
    inner = body + b"\xff\xc9"
    return b"\xb9" + struct.pack("<I", turns) + inner + b"\x0f\x85" + struct.pack("<i", -len(inner) - 6)


BODIES = (b"\x90", INC_COUNTER, b"\x83\xf8\x05\x74\x02\xff\xc0", b"\xe8\x00\x00\x00\x00\x5a", b"\x50\x5b", b"\xe4\x99", b"\x0f\x31",
          b"\xeb\x00", b"\x48\x89\xc3\xeb\x01\xcc", b"\xf7\xd3\x70\x00")
LOOPS = st.builds(loop, st.integers(1, 40), st.lists(st.sampled_from(BODIES), max_size=3).map(b"".join))
PIECES = st.one_of(st.sampled_from(BODIES), LOOPS)
PROGRAMS = st.lists(PIECES, min_size=1, max_size=12).map(b"".join).map(lambda code: code + b"\xf4")


class Count:
    """Blocks counted one by one; a block at which emulation stopped and went on is one."""

    def __init__(self, cpu: Cpu):
        self.cpu, self.blocks, self.last = cpu, 0, -1
        cpu.uc.hook_add(UC_HOOK_BLOCK, self._block)

    def _block(self, _uc: Uc, address: int, _size: int, _data: object) -> None:
        self.blocks += 1
        self.last = address


def result(cpu: Cpu) -> tuple[object, ...]:
    """All that a program can have changed, and the time."""
    return ([cpu.uc.reg_read(r) for r in REGISTERS], cpu.memory.read64(COUNTER), cpu.memory.read(STACK - 64, 64), cpu.rip, cpu.clock.now,
            cpu.meter.total)


@given(PROGRAMS)
@settings(max_examples=60, deadline=None)
def test_as_many_as_a_plain_count(program: bytes) -> None:
    with processor(program) as cpu:
        count = Count(cpu)
        accesses, ticks = program.count(b"\xe4\x99"), program.count(b"\x0f\x31")
        assert cpu.run().kind is StopKind.HALT
        assert cpu.meter.total == count.blocks
        assert cpu.clock.now >= BLOCK_NS * count.blocks
        if not accesses and not ticks:
            assert cpu.clock.now == BLOCK_NS * count.blocks


@given(st.integers(1, 500), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_time_is_blocks_and_accesses(turns: int, reads: int, ticks: int) -> None:
    with processor(loop(turns, b"\x90") + b"\xe4\x99" * reads + b"\x0f\x31" * ticks + b"\xf4") as cpu:
        count = Count(cpu)
        cpu.run()
        assert cpu.clock.now == BLOCK_NS * count.blocks + ACCESS_NS * reads + TSC_NS * ticks
        assert count.blocks >= turns


@given(PROGRAMS, st.lists(st.integers(0, 4000), max_size=6))
@settings(max_examples=60, deadline=None)
def test_pauses_change_nothing(program: bytes, times: list[int]) -> None:
    with processor(program) as cpu:
        assert cpu.run().kind is StopKind.HALT
        undisturbed = result(cpu)
    with processor(program) as cpu:
        for at in times:
            cpu.clock.after(at, cpu.pause)
        stops = 0
        while (stop := cpu.run()).kind is StopKind.PAUSE:
            stops += 1
        assert stop.kind is StopKind.HALT
        assert stops <= len(times)
        assert result(cpu) == undisturbed


@given(st.integers(1, 3000), st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_a_timer_comes_at_its_block(turns: int, after: int) -> None:
    """A timer runs at its own time, when the first block has been counted that takes time up to it or beyond it."""
    with processor(loop(turns, INC_COUNTER) + b"\xf4") as cpu:
        seen: list[tuple[int, int]] = []
        cpu.clock.after(after, lambda: seen.append((cpu.clock.now, cpu.memory.read64(COUNTER))))
        cpu.run()
        assert len(seen) == (after <= cpu.clock.now)
        for now, done in seen:
            assert now == after
            assert done == turns or abs(BLOCK_NS * done - after) <= 2 * BLOCK_NS


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_timers_come_in_order_and_each_at_its_time(delays: list[int]) -> None:
    with processor(loop(2000, b"\x90") + b"\xf4") as cpu:
        seen: list[tuple[int, int]] = []
        for delay in delays:
            cpu.clock.after(delay, lambda delay=delay: seen.append((delay, cpu.clock.now)))
        cpu.run()
        assert seen == [(delay, delay) for delay in sorted(delays)]


@pytest.mark.parametrize("period", [2, 7, 100])
def test_a_timer_that_starts_itself_anew(period: int) -> None:
    with processor(loop(1000, b"\x90") + b"\xf4") as cpu:
        seen: list[int] = []

        def tick() -> None:
            seen.append(cpu.clock.now)
            cpu.clock.after(period, tick)

        cpu.clock.after(period, tick)
        cpu.run()
        assert seen == list(range(period, cpu.clock.now + 1, period))
