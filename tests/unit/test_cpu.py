"""The processor by itself: machine code of ours in host mode, memory, MMIO, ports, and code that changes under it."""

import struct
import threading

import pytest

from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cpu import ACCESS_NS, DOOR, Cpu, StopKind
from hvcore.machine.memory import Memory
from hvcore.machine.meter import BLOCK_NS

GIB = 1 << 30
LOW, HIGH = 0x10000, 4 * GIB + 0x3000
TABLES, HSAVE = 0x100000, 0x200000
RUNS = [(0, 2 * GIB), (4 * GIB, 4 * GIB + (64 << 20)), (8 * GIB, 8 * GIB + (4 << 20))]


class Probe:
    """An MMIO device and a port that remember."""

    def __init__(self):
        self.seen = []

    def mmio_read(self, offset, width):
        self.seen.append(("read", offset, width))
        return 0x1122334455667788

    def mmio_write(self, offset, width, value):
        self.seen.append(("write", offset, width, value))

    def port_read(self, port, width):
        return 0x5A

    def port_write(self, port, width, value):
        self.seen.append(("port", port, width, value))


@pytest.fixture(params=[False, True], ids=["exported", "public"])
def cpu(request):
    memory = Memory(RUNS)
    bus = Bus(memory)
    memory.write64(TABLES, TABLES + 0x1003)
    memory.u64(TABLES + 0x1000, 512)[:] = [i * GIB | 0x83 for i in range(512)]
    unit = Cpu(memory, bus, Clock(), request.param)
    unit.probe = Probe()
    bus.map_mmio(3 * GIB, 0x1000, "probe", unit.probe)
    bus.map_ports(0x99, 1, unit.probe)
    yield unit
    unit.close()


def run(cpu, code, at=LOW, doors=None):
    """Runs host code that ends in HLT; `doors` are called one by one when it writes to the door."""
    waiting = list(doors or [])
    cpu.on_door = lambda: waiting.pop(0)() if waiting else None
    cpu.memory.write(at, code)
    cpu.start(at, TABLES, HSAVE)
    return cpu.run()


def mov(register_code, value):
    return bytes.fromhex(register_code) + struct.pack("<Q", value)


RAX, RBX = "48b8", "48bb"
STORE = b"\x48\x89\x03"                # mov [rbx], rax
LOAD = b"\x48\x8b\x03"                 # mov rax, [rbx]
OUT_DOOR = bytes([0xE6, DOOR])
HLT = b"\xf4"


def test_halts(cpu):
    stop = run(cpu, HLT)
    assert stop.kind is StopKind.HALT
    assert stop.rip == LOW + 1
    assert not stop.guest


@pytest.mark.parametrize("where", [0x300000, 4 * GIB + 0x1000, 8 * GIB + 0x8])
def test_stores_reach_the_memory_that_numpy_sees(cpu, where):
    run(cpu, mov(RAX, 0xFEEDFACE12345678) + mov(RBX, where) + STORE + HLT)
    assert cpu.memory.u64(where, 1)[0] == 0xFEEDFACE12345678


def test_mmio_and_ports_reach_the_bus(cpu):
    code = mov(RBX, 3 * GIB + 0x10) + b"\x8b\x03" + b"\x89\x43\x04" + b"\xe4\x99" + b"\xe6\x99" + HLT
    run(cpu, code)
    assert cpu.probe.seen == [("read", 0x10, 4), ("write", 0x14, 4, 0x55667788), ("port", 0x99, 1, 0x5A)]
    assert cpu.clock.now == 4 * ACCESS_NS + BLOCK_NS


@pytest.mark.parametrize("hole", [2 * GIB, 3 * GIB + 0x2000, 5 * GIB, 9 * GIB])
def test_a_hole_reads_as_ones(cpu, hole):
    run(cpu, mov(RBX, hole) + LOAD + mov(RBX, 0x300000) + STORE + HLT)
    assert cpu.memory.read64(0x300000) == (1 << 64) - 1


@pytest.mark.parametrize("where", [0x400000, HIGH, 8 * GIB + 0x1000])
def test_code_that_is_rewritten_from_outside_is_run_anew(cpu, where):
    """mov eax, N; ret, called three times, rewritten in between: in each of the emulator's RAM blocks."""
    def function(n):
        return b"\xb8" + struct.pack("<I", n) + b"\xc3"

    cpu.memory.write(where, function(1))
    call = mov(RBX, where) + b"\xff\xd3" + OUT_DOOR
    values = []
    def next_version(n):
        values.append(cpu.uc.reg_read(35) & 0xFFFFFFFF)
        cpu.memory.write(where, function(n))

    stack = b"\x48\xbc" + struct.pack("<Q", 0x80000)
    loop = b"\x48\xc7\xc1\x03\x00\x00\x00"          # mov rcx, 3
    body = call + b"\x48\xff\xc9"                    # dec rcx
    code = stack + loop + body + b"\x75" + struct.pack("<b", -(len(body) + 2)) + HLT
    run(cpu, code, doors=[lambda: next_version(2), lambda: next_version(3), lambda: next_version(4)])
    assert values == [1, 2, 3]


def test_an_exception_in_the_host_is_a_crash(cpu):
    stop = run(cpu, b"\x0f\x0b")
    assert stop.kind is StopKind.CRASH
    assert "in the host" in stop.detail


def test_a_loop_is_ended_from_outside(cpu):
    threading.Timer(0.2, cpu.stop, [StopKind.TIMEOUT, "enough"]).start()
    stop = run(cpu, b"\xeb\xfe")
    assert (stop.kind, stop.detail) == (StopKind.TIMEOUT, "enough")


def test_a_stop_before_the_run_counts(cpu):
    cpu.stop(StopKind.REQUEST, "early")
    assert run(cpu, HLT).detail == "early"




def test_a_halt_that_no_interrupt_ends_is_ended_by_the_limit():
    """The 8254 ticks for ever and its line is masked: time passes, nothing wakes the processor."""
    from hvcore.machine.pc import Pc
    from hvcore.sources import load
    pc = Pc(load("q35-2g"))
    for port, value in ((0x43, 0x34), (0x40, 0), (0x40, 1), (0x21, 0xFF), (0xA1, 0xFF)):
        pc.bus.port_write(port, 1, value)
    pc.memory.write(LOW, HLT + HLT)
    pc.memory.write64(TABLES, TABLES + 0x1003)
    pc.memory.u64(TABLES + 0x1000, 512)[:] = [i * GIB | 0x83 for i in range(512)]
    pc.cpu.start(LOW, TABLES, HSAVE)
    threading.Timer(0.3, pc.cpu.stop, [StopKind.TIMEOUT, "enough"]).start()
    stop = pc.run()
    assert stop is not None
    assert stop.kind is StopKind.TIMEOUT
    pc.close()
