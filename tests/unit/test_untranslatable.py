"""What ends the process in the emulator as it is, and not on a processor: LOCK before a BT, BTS, BTR or BTC of a register, and a task
register that is not there."""

import contextlib
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import pytest
from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from unicorn import UC_ARCH_X86, UC_MODE_16, UC_MODE_32, UC_MODE_64, Uc, UcError
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86

from hvcore import Config, Machine, Run
from hvcore.machine import cpu as cpu_module
from hvcore.machine import emulator, library, untranslatable
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cpu import Cpu, StopKind
from hvcore.machine.memory import Memory
from hvcore.machine.rawhook import hook_tsc
from hvcore.spec.linuxboot import Elf, Segment
from tests.fuzz.anycode import piece

MODES = {16: UC_MODE_16, 32: UC_MODE_32, 64: UC_MODE_64}
OPCODES = ("a3", "ab", "b3", "bb")
LOCKED_BIT = re.compile(rb"\xf0[\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf0\xf2\xf3]*\x0f[\xa3\xab\xb3\xba\xbb][\xc0-\xff]")
RANDOM = re.compile(rb"\x0f\xc7[\xf0-\xff]")
AT, DATA, END = 0x1010, 0x8000, 0x20000
NAMES = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI", "IP")


@pytest.fixture
def _mended() -> None:
    assert untranslatable.mend()


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    """Nothing is mended before the test; afterwards it may be again."""
    untranslatable._once.undo()
    yield
    untranslatable._once.undo()


class Told(NamedTuple):
    """What an emulator did: exceptions, -1 for an invalid opcode, -2 for a byte of code that is not there; what it left behind."""

    seen: list[int]
    rip: int
    memory: bytes
    registers: list[int]


def execute(code: str, bits: int = 64, at: int = AT, count: int = 0) -> Told:
    """An emulator of its own executes code at `at`, up to a HLT."""
    uc, seen = Uc(UC_ARCH_X86, MODES[bits]), []

    def on_invalid(uc: Uc, _data: object) -> bool:
        seen.append(-1)
        return False

    def on_exception(uc: Uc, number: int, _data: object) -> None:
        seen.append(number)
        uc.emu_stop()

    kept = hook_tsc(uc, lambda _with_number: None)
    uc.mem_map(0, END)
    uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, on_invalid)
    uc.hook_add(uc_const.UC_HOOK_INTR, on_exception)
    uc.mem_write(at, bytes.fromhex(code)[:END - at])
    registers = [getattr(x86, f"UC_X86_REG_{'R' if bits == 64 else 'E'}{name}") for name in NAMES]
    for n, register in enumerate(registers[:8]):
        uc.reg_write(register, DATA + 16 * n)
    try:
        uc.emu_start(at, 0xF000, count=count)
    except UcError as e:
        if e.errno == uc_const.UC_ERR_FETCH_UNMAPPED:
            seen.append(-2)
    told = [uc.reg_read(register) for register in (*registers, x86.UC_X86_REG_EFLAGS)]
    memory = bytes(uc.mem_read(DATA, 0x100))
    emulator.release(uc)
    del kept
    return Told(seen, told[8], memory, told)


def of_registers(bits: int) -> "list[str]":
    """All that a processor refuses of them, with some prefixes around."""
    prefixes = ["f0", "66f0", "f066", "f2f0", "f0f3", "2ef0", "f064", "67f0", "f0f0", "f0363e2665"]
    prefixes += ["f048", "f04f", "4ff0", "66f045"] if bits == 64 else []
    last = [f"{0xC0 | n:02x}" for n in range(64)]
    return [prefix + "0f" + code for prefix in prefixes
            for code in (*(opcode + modrm for opcode in OPCODES for modrm in last[::7]), *("ba" + modrm + "05" for modrm in last[32::5]))]


@pytest.mark.parametrize("bits", MODES)
@pytest.mark.usefixtures("_mended")
def test_of_a_register_it_is_an_invalid_opcode(bits: int) -> None:
    for code in of_registers(bits):
        assert execute("90" + code + "f4", bits)[:2] == ([-1], AT + 1), code


@pytest.mark.usefixtures("_mended")
def test_an_address_that_is_left_over_is_not_used() -> None:
    """The emulator as it is takes RSI's here, which the instruction before has used, and sets a bit."""
    for code in ("f00fabc0", "f00fbae805"):
        seen, rip, memory, _ = execute("8806" + code + "f4")
        assert (seen, rip) == ([-1], AT + 2)
        assert memory == bytes(0x60) + (DATA & 0xFF).to_bytes(1, "little") + bytes(0x9F), code


@pytest.mark.parametrize(("code", "at"), [("f00fa306", 4), ("f00fab0e", 4), ("f00fba2e05", 5), ("f0480fbaae0000000005", 10), ("0fa3c0", 3),
                                          ("0fbae805", 4), ("b0f00fa3c0", 5), ("f0830e0f0fa3c0", 7), ("f083040f0f83040fba", 9),
                                          ("f08344240fba", 6), ("f00fb1c0", -1), ("f00fb2c0", -1), ("f00fbac005", -1)])
@pytest.mark.usefixtures("_mended")
def test_what_looks_like_it_is_taken_as_before(code: str, at: int) -> None:
    """Memory operands, no LOCK, LOCK that is data or another instruction's, opcodes that are data; and what was invalid already."""
    seen, rip, _, _ = execute(code + "f4")
    if at < 0:
        assert (seen, rip) == ([-1], AT)
    else:
        assert (seen, rip) == ([], AT + at + 1)


@pytest.mark.parametrize(("code", "seen"), [
    ("f0" * 12 + "0fabc0", [-1]), ("f0" * 11 + "0fbae805", [-1]), ("f0" * 13 + "0fabc0", [13]), ("f0" * 12 + "0fbae805", [13]),
    ("66" * 11 + "f0" + "0fabc0", [-1]), ("66" * 12 + "f0" + "0fabc0", [13])])
@pytest.mark.usefixtures("_mended")
def test_an_instruction_of_more_than_15_bytes_is_a_general_protection_fault(code: str, seen: "list[int]") -> None:
    assert execute(code + "f4")[0] == seen


@pytest.mark.parametrize(("code", "seen"), [("f00fabc0", [-1]), ("f00fbae805", [-1]), ("f00fab", [-2]), ("f00fba", [-2]),
                                            ("f00fbae8", [-2]), ("f00f", [-2]), ("f0", [-2])])
@pytest.mark.usefixtures("_mended")
def test_at_the_end_of_memory(code: str, seen: "list[int]") -> None:
    """Where a byte of it is not there, that comes first."""
    assert execute(code, at=END - len(code) // 2)[0] == seen


@pytest.mark.usefixtures("_mended")
def test_code_that_changes() -> None:
    """ModRM becomes a memory operand's and a register's again, at the same place, in code that has run."""
    uc, seen = Uc(UC_ARCH_X86, UC_MODE_64), []
    uc.mem_map(0, 0x10000)
    uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, lambda *_: seen.append(uc.reg_read(x86.UC_X86_REG_RIP)))
    # add edi, 1; mov [the last byte of the next], al; lock bts [rsi] or a register, eax; hlt
    uc.mem_write(AT, bytes.fromhex("83c701 8804251d100000 f00fab06 f4"))
    uc.reg_write(x86.UC_X86_REG_RSI, DATA)
    for n, modrm in enumerate((0x06, 0xC0, 0x06, 0xC6, 0xC0, 0x06)):
        uc.reg_write(x86.UC_X86_REG_RAX, modrm)
        invalid = len(seen)
        with contextlib.suppress(UcError):
            uc.emu_start(AT, 0xF000)
        assert len(seen) - invalid == (modrm >= 0xC0), n
        assert uc.reg_read(x86.UC_X86_REG_RDI) == n + 1
    assert set(seen) == {AT + 10}
    assert bytes(uc.mem_read(DATA, 32)).count(0) < 32
    emulator.release(uc)


def test_nothing_else_is_changed() -> None:
    """The same code with it and without: registers, flags, memory and exceptions are the same."""
    untranslatable._once.undo()
    r, told = Random(7), []
    codes = [code for code in (piece(r) for _ in range(150)) if not LOCKED_BIT.search(code) and not RANDOM.search(code)]
    for _ in range(2):
        told.append([execute(code.hex(), bits, count=12) for code in codes for bits in MODES])
        assert untranslatable.mend()
    assert told[0] == told[1]


def test_the_machine_code_is_what_the_listing_says() -> None:
    lines = [line.split("#")[0].split(maxsplit=1) for line in untranslatable._LISTING.splitlines() if line.strip()]
    told = [f"{i.mnemonic} {i.op_str}".strip() for i in Cs(CS_ARCH_X86, CS_MODE_64).disasm(untranslatable._CODE, 0)]
    assert [text.strip() for _code, text in lines] == told
    assert len(untranslatable._CODE) <= untranslatable._DATA


# --- where the library is another one

WORDS = (*untranslatable._NAMES, "gen_intermediate_code_x86_64")


def entries() -> "list[int]":
    """What its entries hold."""
    found = library.entries(untranslatable._NAMES)
    assert found is not None
    return [entry.value for entry in found]


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.usefixtures("_as_it_was")
def test_without_a_function_nothing_is_changed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, real = entries(), library.exported
    with monkeypatch.context() as patch:
        for module in (library, untranslatable):
            patch.setattr(module, "exported", lambda wanted: 0 if wanted == name else real(wanted))
        assert not untranslatable.mend()
    assert entries() == before


@pytest.mark.parametrize("value", ["arm64", "AMD64"])
@pytest.mark.usefixtures("_as_it_was")
def test_on_another_computer_nothing_is_changed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    before = entries()
    monkeypatch.setattr("platform.machine", lambda: value)
    assert not untranslatable.mend()
    assert entries() == before


@pytest.mark.usefixtures("_as_it_was")
def test_what_does_not_meet_it_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose fetch of a byte has other prefixes, as far as the machine code knows: its check finds out before it would abort."""
    before = entries()
    monkeypatch.setattr(untranslatable, "_PREFIXES", (0x66,))
    assert not untranslatable.mend()
    assert entries() == before


@pytest.mark.usefixtures("_as_it_was")
def test_twice_is_once() -> None:
    assert untranslatable.mend()
    mending = untranslatable._once.get()
    assert mending is not None and untranslatable.mend() and untranslatable._once.get() is mending
    assert library.entries(untranslatable._NAMES) is None


@pytest.mark.parametrize("code", ["f00fbbdc", "f00fbae805"], ids=["LOCK BTC ESP, EBX", "LOCK BTS EAX, 5"])
@pytest.mark.parametrize("mended", [True, False])
def test_the_process_goes_on(code: str, mended: bool) -> None:
    """And what it would do otherwise: an emulator that does not abort needs none of this."""
    program = (f"from unicorn import *; from hvcore.machine import untranslatable; {mended} and untranslatable.mend(); "
               f"uc = Uc(UC_ARCH_X86, UC_MODE_64); uc.mem_map(0, 4096); uc.mem_write(0, bytes.fromhex('{code}f4')); "
               f"uc.emu_start(0, {len(code) // 2})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if mended:
        assert done.returncode == 1 and "UC_ERR_INSN_INVALID" in done.stderr
    else:
        assert done.returncode == -signal.SIGABRT, "the emulator takes it now: untranslatable.py can go"


# --- whole guests

CODE, TABLES, IDT, TSS, GDT, POINTERS, STACK, WORD = (0x1000000 + 0x10000 * n for n in range(8))
DESCRIPTORS = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
FORMS = ("f00fa3c0", "f00fabd8", "f00fb3c3", "f00fbbdc", "f00fbae005", "f0480fbaf83f", "66f00fbaf003", "f0410fbbc4", "f3f00fabc1",
         "2ef0480fbae901")
VALUE = 0x1234567
PRINT_EDI = "be08000000 c1c704 89f8 83e00f 0461 66baf803 ee ffce 75ed"


def le(value: int) -> str:
    return struct.pack("<I", value).hex()


def guest(ring: int, rounds: int) -> Elf:
    """Executes each form so often, each after a store whose address the emulator remembers, and prints how many #UDs came, and a sum.

    The handler counts in EBP and goes on with the next slot of 16 bytes; every other exception halts.
    """
    slots = "".join(("8906" + form).ljust(32, "9") for form in FORMS)
    program = (f"be{le(WORD)} b8{le(VALUE)} b9{le(rounds)} 31ed 31db eb07".replace(" ", "")).ljust(64, "9") + slots
    program += f"6bdb1f 01cb 031e ffc9 0f85{le(-(len(slots) // 2 + 13) & 0xFFFFFFFF)}"
    program += f"89ef {PRINT_EDI} 89df {PRINT_EDI} 66baf803 b00a ee {'cd21' if ring else 'faf4'}"
    start = f"b8{le(TABLES)} 0f22d8 0f011425{le(POINTERS)} 0f011c25{le(POINTERS + 16)} b838000000 0f00d8"
    if ring:
        start += f"6a2b 68{le(STACK + 0x8000)} 6802300000 6a33 68{le(CODE + 0x400)} 48cf"
    else:
        start += f"bc{le(STACK + 0x8000)} b8{le(CODE + 0x400)} ffe0"
    text = bytes.fromhex(start).ljust(0x400, b"\x90") + bytes.fromhex(program)
    text = text.ljust(0x800, b"\x90") + bytes.fromhex("ffc5 4883042410 48832424f0 48cf").ljust(0x100, b"\x90") + b"\xfa\xf4"
    gates = b"".join(struct.pack("<HHHHII", 0x800 if n == 6 else 0x900, 0x10, 0x8E00, CODE >> 16, 0, 0) for n in range(256))
    tables = struct.pack("<Q4088x512Q", TABLES + 0x1000 | 7, *(n << 30 | 0x87 for n in range(512)))
    descriptors = struct.pack("<9Q", *DESCRIPTORS, 0x67 | (TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (TSS >> 24) << 56, 0)
    parts = ((CODE, text), (TABLES, tables), (IDT, gates), (TSS, struct.pack("<4xQ", STACK + 0x4000).ljust(0x68, b"\0")),
             (GDT, descriptors), (POINTERS, struct.pack("<HQ6xHQ", 71, GDT, 0xFFF, IDT)), (STACK, bytes(0x9000)), (WORD, bytes(16)))
    return Elf(CODE, tuple(Segment(address, data, len(data)) for address, data in parts))


def printed(rounds: int) -> str:
    """What it prints."""
    total = 0
    for left in range(rounds, 0, -1):
        total = total * 31 + left + VALUE & 0xFFFFFFFF
    words = f"{len(FORMS) * rounds:08x}{total:08x}"
    return "".join(chr(0x61 + int(digit, 16)) for digit in words) + "\n"


def boot(machine: Machine, ring: int, rounds: int, watch: "Callable[[str | None], None] | None" = None) -> Run:
    return machine.boot(Config(), guest=guest(ring, rounds), limit=60, watch=watch)


@pytest.mark.parametrize(("ring", "rounds"), [(0, 50), (3, 1000)])
def test_a_guest_gets_the_exception_each_time(ring: int, rounds: int) -> None:
    """Up to 10,000 of them; then the machine boots as ever."""
    with Machine.load("q35-2g") as machine:
        run = boot(machine, ring, rounds)
        assert run.console.guest == printed(rounds)
        assert "halted for good" in run.why
        assert machine.boot(Config()).outcome == "up"


@pytest.mark.parametrize("ring", [0, 3])
def test_the_same_each_time_whoever_stops_it(ring: int) -> None:
    """Stopped again and again and resumed, it is the same guest at the same virtual time."""
    with Machine.load("q35-2g") as machine:
        told = boot(machine, ring, 300).console.guest, machine.pc.clock.now
    with Machine.load("q35-2g") as machine:
        def stop(phase: str | None) -> None:
            if phase is None and machine.phase == "guest runs":
                machine.stop()

        run, stops = boot(machine, ring, 300, watch=stop), 0
        while run.outcome == "stopped":
            stops += 1
            machine.resume(60, watch=stop)
        assert stops > 2, stops
        assert (run.console.guest, machine.pc.clock.now) == told == (printed(300), told[1])


def test_step_by_step() -> None:
    """One instruction: into the handler; and what is printed is the same."""
    with Machine.load("q35-2g") as machine:
        def stop(phase: str | None) -> None:
            if phase is None and machine.phase == "guest runs":
                machine.stop()

        run = boot(machine, 3, 300, watch=stop)
        assert run.outcome == "stopped"
        steps = machine.step(200)
        slots = range(CODE + 0x400 + 32, CODE + 0x400 + 32 + 16 * len(FORMS))
        faults = [n for n, step in enumerate(steps[:-1]) if step.rip in slots and step.rip % 16 == 2]
        assert len(faults) > 20
        assert all(steps[n + 1].rip == CODE + 0x800 for n in faults)
        machine.resume(60)
        assert run.console.guest == printed(300)


def test_machines_in_threads() -> None:
    told: list[str] = []

    def one(ring: int) -> None:
        with Machine.load("q35-2g") as machine:
            told.append(boot(machine, ring, 200).console.guest)

    threads = [threading.Thread(target=one, args=(ring,)) for ring in (0, 3, 0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [printed(200)] * 4


NO_TASK, TIMER = "31c0 0f00d8", (f"b8{le(0xFEE000F0)} c700ff010000 b8{le(0xFEE00320)} c70040000000 b8{le(0xFEE003E0)} c7000b000000 "
                                f"b8{le(0xFEE00380)} c70000100000")
RING3 = f"6a2b 68{le(STACK + 0x8000)} 6802320000 6a33 68{le(CODE + 0x400)} 48cf"
GATE = CODE + 0x800 & 0xFFFF | 0x10 << 16 | 0xEC << 40 | CODE + 0x800 >> 16 << 48


@pytest.mark.parametrize("task", [True, False])
@pytest.mark.parametrize(("ist", "start", "then"), [
    (0, TIMER + RING3, "ebfe"), (1, TIMER + "fb ebfe", ""), (0, RING3, f"b8{le(WORD)} 66c740044b00 ff18")],
    ids=["an interrupt in ring 3", "an interrupt with an IST stack", "a call gate"])
def test_without_a_task_register_there_is_no_inner_stack(task: bool, ist: int, start: str, then: str) -> None:
    """A guest that has loaded a null selector into it is shut down; with a good one it halts in its handler."""
    elf = guest(0, 1)
    parts = {segment.address: bytearray(segment.data) for segment in elf.segments}
    text = bytes.fromhex(f"b8{le(TABLES)} 0f22d8 0f011425{le(POINTERS)} 0f011c25{le(POINTERS + 16)} b838000000 0f00d8 "
                         f"bc{le(STACK + 0x8000)} {'' if task else NO_TASK} {start}").ljust(0x400, b"\x90") + bytes.fromhex(then)
    parts[CODE] = bytearray(text.ljust(0x800, b"\x90") + b"\xfa\xf4")
    for vector in range(256):
        struct.pack_into("<HHHHII", parts[IDT], 16 * vector, 0x800, 0x10, 0x8E00 | ist, CODE >> 16, 0, 0)
    parts[TSS][0x24:0x2C] = struct.pack("<Q", STACK + 0x3000)
    parts[GDT] += struct.pack("<2Q", GATE, 0)
    struct.pack_into("<H", parts[POINTERS], 0, len(parts[GDT]) - 1)
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(), guest=Elf(CODE, tuple(Segment(at, bytes(data), len(data)) for at, data in parts.items())), limit=20)
        assert run.outcome == "guest-crash"
        assert ("halted for good" in run.why and "RIP 0x1000801" in run.why) == task, run.why
        assert ("triple fault" in run.why) != task
        assert machine.boot(Config()).outcome == "up"


@pytest.mark.parametrize("code", ["0fc7f0", "480fc7fb", "660fc7f7", "410fc7f8"])
def test_there_is_no_instruction_for_randomness(code: str) -> None:
    """RDRAND and RDSEED, which CPUID does not tell."""
    memory = Memory([(0, 1 << 22)])
    memory.write64(0x1000, 0x2003)
    memory.write64(0x2000, 0x83)
    memory.write(0x10000, bytes.fromhex(code + "f4"))
    cpu = Cpu(memory, Bus(memory), Clock())
    cpu.start(0x10000, 0x1000, 0x3000)
    stop = cpu.run()
    assert (stop.kind, stop.detail) == (StopKind.CRASH, "invalid opcode that nobody takes, in the host at RIP 0x10000")
    cpu.close()
    memory.close()


def test_in_the_host_it_is_a_crash() -> None:
    """Nobody takes exceptions there; the process goes on."""
    for public in (False, True):
        memory = Memory([(0, 1 << 22)])
        memory.write64(0x1000, 0x2003)
        memory.write64(0x2000, 0x83)
        memory.write(0x10000, bytes.fromhex("90f00fabc0f4"))
        cpu = Cpu(memory, Bus(memory), Clock(), public)
        cpu.start(0x10000, 0x1000, 0x3000)
        stop = cpu.run()
        assert (stop.kind, stop.detail) == (StopKind.CRASH, "invalid opcode that nobody takes, in the host at RIP 0x10001")
        cpu.close()
        memory.close()


def test_a_guest_that_rewrites_its_code_for_ever_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for translated code is bounded, and running out of it changes nothing: 18 MB of it in 1 MiB."""
    place = CODE + 0x100000
    rewritten = b"\x05\x78\x56\x34\x12" * 2000 + b"\xc3"
    parts = {segment.address: segment.data for segment in guest(0, 1).segments}
    program = bytes.fromhex(f"b9{le(3000)} bb{le(place)} 894301 ffd3 ffc9 75f7 89c7 {PRINT_EDI} faf4")
    parts[CODE] = parts[CODE][:0x400] + program + parts[CODE][0x400 + len(program):]
    elf = Elf(CODE, tuple(Segment(at, data, len(data)) for at, data in (*parts.items(), (place, rewritten))))
    told = []
    for room in (cpu_module.TRANSLATED, 1 << 20):
        monkeypatch.setattr(cpu_module, "TRANSLATED", room)
        with Machine.load("q35-2g") as machine:
            assert machine.pc.cpu.uc.ctl_get_tcg_buffer_size() == room
            run = machine.boot(Config(), guest=elf, limit=60)
            told.append((run.why, run.console.guest, machine.pc.clock.now, machine.pc.cpu.meter.total))
    assert told[0] == told[1]
    assert "halted for good" in told[0][0] and len(told[0][1]) == 8
