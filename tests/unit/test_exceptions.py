"""Exceptions through a guest's gates: the checks one by one, noise, and guests whose tables and stacks no processor can use."""

import struct
import time
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.machine.gates import Gates, Table, Taker
from hvcore.machine.memory import Memory
from hvcore.sources import images_dir
from hvcore.spec.linuxboot import Elf, Segment, load_elf

SIZE = 2 << 20
NESTED, PML4, PDPT, PD, PT = 0x1000, 0x3000, 0x4000, 0x5000, 0x6000
GDT, IDT, TSS, STACK, RING0, IST, HANDLER = 0x10000, 0x11000, 0x12000, 0x20000, 0x30000, 0x40000, 0x50000
ABSENT = 0x60000
NONCANONICAL = 1 << 47
CS, USER_CS, USER_DS, TR = 0x10, 0x33, 0x2B, 0x38
DE, NMI, BP, UD, DF, TS, NP, SS, GP, PF = 0, 2, 3, 6, 8, 10, 11, 12, 13, 14
PRESENT, WRITABLE, USER = 1, 2, 4
DESCRIPTORS = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0, 0,
               0x00CF9B000000FFFF, 0x00AF1B000000FFFF, 0x00AF9F000000FFFF)


@pytest.fixture
def memory():
    """2 MiB in pages of 4 KiB, to themselves; page ABSENT is not there."""
    made = Memory([(0, SIZE)])
    for table, entry in ((NESTED, 0x2000 | 7), (0x2000, 0x83), (PML4, PDPT | 7), (PDPT, PD | 7), (PD, PT | 7)):
        made.write64(table, entry)
    for page in range(512):
        made.write64(PT + 8 * page, 0 if page == ABSENT >> 12 else page << 12 | PRESENT | WRITABLE)
    made.write(GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS))
    for vector in range(256):
        gate(made, vector)
    made.write64(TSS + 4, RING0)
    made.write64(TSS + 0x24, IST)
    yield made
    made.close()


def gate(memory, vector, kind=0x8E, selector=CS, ist=0):
    to = HANDLER + 16 * vector
    memory.write(IDT + 16 * vector, struct.pack("<HHHHII", to & 0xFFFF, selector, kind << 8 | ist, to >> 16 & 0xFFFF, to >> 32, 0))


def taker(**values):
    """Ring 3, in the middle of something."""
    fresh = Taker(0x70000, STACK, 0x202, USER_CS, USER_DS, 3, 0x80010033, 0, PML4, 0x620, NESTED, Table(GDT, 8 * len(DESCRIPTORS) - 1),
                  Table(0, 0), Table(IDT, 0xFFF), Table(TSS, 0x67), TR)
    return replace(fresh, **values)


def frame(memory, g, words=5):
    return struct.unpack(f"<{words}Q", memory.read(g.rsp, 8 * words))


def vector_of(g):
    return (g.rip - HANDLER) // 16


def test_a_plain_exception(memory):
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert (vector_of(g), g.rsp, g.cs, g.cpl, g.null_ss) == (UD, RING0 - 40, CS, 0, True)
    assert g.cleared & 0x200
    assert frame(memory, g) == (0x70000, USER_CS, 0x202, STACK, USER_DS)


def test_an_error_code_and_the_same_ring(memory):
    g = taker(cs=CS, ss=0x18, cpl=0, rsp=STACK - 3)
    assert Gates(memory).deliver(g, GP, 0x1234)
    assert (vector_of(g), g.rsp, g.null_ss) == (GP, STACK - 16 - 48, False)
    assert frame(memory, g, 6) == (0x1234, 0x70000, CS, 0x202, STACK - 3, 0x18)


@pytest.mark.parametrize(("kind", "software", "result"), [
    (0x8E, False, (UD, None)), (0xEE, True, (UD, None)), (0x8E, True, (GP, 8 * UD + 2)), (0xCE, True, (GP, 8 * UD + 2)),
    (0x0E, False, (NP, 8 * UD + 2)), (0x6E, True, (NP, 8 * UD + 2)), (0x8C, False, (GP, 8 * UD + 2)), (0x85, False, (GP, 8 * UD + 2)),
    (0x9E, False, (GP, 8 * UD + 2)), (0, False, (GP, 8 * UD + 2))])
def test_the_gate_is_checked(memory, kind, software, result):
    gate(memory, UD, kind)
    g = taker()
    assert Gates(memory).deliver(g, UD, None, software)
    vector, code = result
    assert vector_of(g) == vector
    where = 0x70000 - (2 if software and vector != UD else 0)
    assert frame(memory, g, 6)[:2] == ((where, USER_CS) if code is None else (code, where))


@pytest.mark.parametrize(("selector", "vector", "code"), [
    (0, GP, 0), (3, GP, 0), (0x1000, GP, 0x1000), (0x18, GP, 0x18), (0x48, GP, 0x48), (0x50, NP, 0x50), (0x38, GP, 0x38), (0x14, GP, 0x14),
    (0x60, GP, 0x60), (0x13, UD, None)])
def test_the_code_segment_is_checked(memory, selector, vector, code):
    """Null, beyond the GDT, data, 32-bit code, not present, a system segment, an LDT that is not there; an RPL does not matter."""
    gate(memory, UD, selector=selector)
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert vector_of(g) == vector
    assert code is None or frame(memory, g, 6)[0] == code


def test_an_outer_ring_has_no_handlers_for_an_inner_one(memory):
    gate(memory, UD, selector=USER_CS)
    g = taker(cs=CS, cpl=0)
    assert Gates(memory).deliver(g, UD, None)
    assert (vector_of(g), g.cpl, frame(memory, g, 6)[0]) == (GP, 0, USER_CS & ~3)


def test_conforming_code_runs_in_the_same_ring(memory):
    gate(memory, UD, selector=0x58)
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert (vector_of(g), g.cpl, g.cs, g.rsp) == (UD, 3, 0x5B, STACK - 40)


@pytest.mark.parametrize(("limit", "vector"), [(0xFFF, 0x80), (0x80F, 0x80), (0x80E, GP), (0x7FF, GP)])
def test_the_limit_of_the_idt(memory, limit, vector):
    gate(memory, 0x80, 0xEE)
    g = taker(idt=Table(IDT, limit))
    assert Gates(memory).deliver(g, 0x80, None, True)
    assert vector_of(g) == vector


@pytest.mark.parametrize(("limit", "vector"), [(0x67, UD), (0x2B, UD), (0x2A, TS), (0x1F, TS)])
def test_the_limit_of_the_tss(memory, limit, vector):
    gate(memory, UD, ist=1)
    g = taker(tss=Table(TSS, limit))
    assert Gates(memory).deliver(g, UD, None)
    assert vector_of(g) == vector
    if vector == TS:
        assert frame(memory, g, 6)[0] == TR


@pytest.mark.parametrize(("stack", "cr2", "code"), [(ABSENT + 0x1000, ABSENT + 0xFF8, 2), (ABSENT + 0x1010, ABSENT + 0xFF8, 2),
                                                    (ABSENT + 0x1030, 0, None), (16, (1 << 64) - 8, 2)])
def test_a_stack_that_is_absent_is_a_page_fault(memory, stack, cr2, code):
    """The address is that of the first word that finds no place."""
    gate(memory, PF, ist=1)
    memory.write64(TSS + 4, stack)
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert (vector_of(g), g.cr2) == (PF if code else UD, cr2)
    assert code is None or frame(memory, g, 6)[0] == code


def test_a_frame_across_two_pages(memory):
    memory.write64(PT + 8 * 0x2F, 0x99000 | 3)
    memory.write64(TSS + 4, RING0 + 16)
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert memory.read(0x99FE8, 24) + memory.read(RING0, 16) == struct.pack("<5Q", 0x70000, USER_CS, 0x202, STACK, USER_DS)


@pytest.mark.parametrize(("entry", "cr0", "cr4", "code"), [
    (PRESENT, 0x80010033, 0x620, 3), (PRESENT, 0x80000033, 0x620, None), (PRESENT | WRITABLE | USER, 0x80010033, 0x620, None),
    (PRESENT | WRITABLE | USER, 0x80010033, 1 << 21 | 0x620, 3), (PRESENT | WRITABLE | 1 << 45, 0x80010033, 0x620, 0xB)])
def test_rights_of_the_stack(memory, entry, cr0, cr4, code):
    """Read-only with and without CR0.WP, a user's page with and without SMAP, a reserved bit."""
    gate(memory, PF, ist=1)
    memory.write64(PT + 8 * ((RING0 >> 12) - 1), RING0 - 0x1000 | entry)
    g = taker(cr0=cr0, cr4=cr4)
    assert Gates(memory).deliver(g, UD, None)
    assert vector_of(g) == (PF if code else UD)
    assert code is None or frame(memory, g, 6)[0] == code


@pytest.mark.parametrize(("first", "code", "gates", "result"), [
    (UD, None, (UD,), NP), (UD, None, (UD, NP), DF), (UD, None, (UD, NP, DF), None), (GP, 0, (GP,), DF), (PF, 2, (PF,), DF),
    (DE, None, (DE,), DF), (NMI, None, (NMI,), NP), (DF, 0, (DF,), None)])
def test_what_becomes_of_two_exceptions(memory, first, code, gates, result):
    """Benign and then contributory: the second.  Contributory, or a page fault, and then contributory: a double fault; then no more."""
    for vector in gates:
        gate(memory, vector, 0x0E)
    g = taker()
    before = replace(g)
    delivered = Gates(memory).deliver(g, first, code)
    assert delivered == (result is not None)
    assert vector_of(g) == result if delivered else g == before


def test_a_stack_that_is_not_canonical(memory):
    memory.write64(TSS + 4, NONCANONICAL + 0x1000)
    gate(memory, SS, ist=1)
    g = taker()
    assert Gates(memory).deliver(g, UD, None)
    assert (vector_of(g), frame(memory, g, 6)[0]) == (SS, 0)


@pytest.mark.parametrize("tables", [{"idt": Table(1 << 39, 0xFFF)}, {"gdt": Table(SIZE, 0xFF)}, {"cr3": 1 << 39}, {"n_cr3": 1 << 45},
                                    {"tss": Table(SIZE - 4, 0x67)}, {"idt": Table(NONCANONICAL, 0xFFF)}])
def test_tables_that_are_no_memory(memory, tables):
    g = taker(**tables)
    assert not Gates(memory).deliver(g, UD, None)


@pytest.mark.parametrize(("limit", "bits", "port", "width", "allowed"), [
    (0x67, 0xFF, 0x80, 1, False), (0x167, 0, 0x80, 4, True), (0x167, 1 << 4, 0x83, 1, True), (0x167, 1 << 4, 0x83, 2, False),
    (0x77, 0, 0x80, 1, False), (0x79, 0, 0x80, 1, True)])
def test_ports_by_the_bitmap_of_the_tss(memory, limit, bits, port, width, allowed):
    memory.write(TSS + 0x66, struct.pack("<H", 0x68))
    memory.write(TSS + 0x68 + 16, bytes((bits,)))
    assert Gates(memory).port_allowed(taker(tss=Table(TSS, limit)), port, width) == allowed


WORD = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, SIZE), st.sampled_from((0, 8, NONCANONICAL, (1 << 64) - 8, SIZE - 8)))
TABLE = st.builds(Table, WORD, st.one_of(st.integers(0, (1 << 32) - 1), st.just(0xFFFF)))


@given(st.builds(Taker, WORD, WORD, WORD, WORD, WORD, st.integers(0, 3), WORD, WORD, st.one_of(st.just(PML4), WORD), WORD,
                 st.one_of(st.just(NESTED), WORD), TABLE, TABLE, TABLE, TABLE, st.integers(0, 0xFFFF)),
       st.integers(0, 255), st.one_of(st.none(), st.integers(0, (1 << 32) - 1)), st.booleans(), st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_noise_is_delivered_or_not(g, vector, code, software, seed):
    """Whatever registers and tables are, it ends, with nothing raised."""
    r = Random(seed)
    noise = Memory([(0, SIZE)])
    try:
        for table in (NESTED, 0x2000, PML4, PDPT, PD):
            noise.write(table, struct.pack("<512Q", *(r.choice((0x2083, 0x83, PT | 7, PD | 7, r.getrandbits(64))) for _ in range(512))))
        assert Gates(noise).deliver(g, vector, code, software) in (True, False)
    finally:
        noise.close()


# --- whole guests

CODE, DATA = 0x1000000, 0x1010000
GIDT, GTSS, GGDT, IDTR, GDTR = DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x3010


def guest(code, handler="fa f4", idt=GIDT, tss=GTSS, ist=0):
    """A guest with descriptor tables; all of its gates lead to `handler`.  `idt` is where it says its IDT is."""
    to = CODE + 0x800
    gates = struct.pack("<HHHHII", to & 0xFFFF, CS, 0x8E00 | ist, to >> 16, 0, 0) * 256
    words = [*DESCRIPTORS[:7], 0x67 | (tss & 0xFFFFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56, tss >> 32]
    data = gates + struct.pack("<4xQ24xQ", 0x1018000, 0x1019000).ljust(0x1000, b"\0") + struct.pack("<9Q", *words).ljust(0x1000, b"\0")
    data += struct.pack("<HQ6xHQ", 0xFFF, idt, 71, GGDT)
    start = (bytes.fromhex("0f011425") + struct.pack("<I", GDTR) + bytes.fromhex("0f011c25") + struct.pack("<I", IDTR)
             + bytes.fromhex("b838000000 0f00d8") + bytes.fromhex(code))
    text = start.ljust(0x800, b"\x90") + bytes.fromhex(handler)
    return Elf(CODE, (Segment(CODE, text, len(text)), Segment(DATA, data, 0x10000)))


def mov_rsp(value):
    return (b"\x48\xbc" + struct.pack("<Q", value)).hex()


HOSTILE = {
    "a stack that is not there": (guest(mov_rsp(1 << 45) + "0f0b"), "triple fault"),
    "an IDT in MMIO": (guest("0f0b", idt=0xFED90000), "triple fault"),
    "an IDT beyond memory": (guest("cd80", idt=1 << 39), "triple fault"),
    "a TSS beyond memory": (guest("0f0b", tss=1 << 39, ist=1), "triple fault"),
    "a good one": (guest("0f0b", ist=1), "halted for good"),
    "a good one by INT": (guest("cd80"), "halted for good"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_end_the_guest_and_nothing_else(name):
    elf, why = HOSTILE[name]
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(), guest=elf, limit=20)
        assert run.outcome == "guest-crash"
        assert why in run.why
        assert machine.boot(Config()).outcome == "up"


TOLD = 0x101A000
STEPPED = {"CPUID": "0fa2", "RDMSR of EFER": "0f32", "WRMSR of EFER": "0f30", "INVD": "0f08", "VMMCALL": "0f01d9", "HLT": "f4", "NOP": "90"}


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_over_an_instruction_that_the_core_carries_out_traps_behind_it(name):
    """RFLAGS.TF: #DB with DR6.BS at the next instruction (volume 2, 13.1.3.1)."""
    load = "b9800000c0 b801050000 31d2"                    # mov ecx, EFER; mov eax, 0x501; xor edx, edx
    code = load + "9c 66810c240003 9d" + STEPPED[name]     # pushfq; or word ptr [rsp], TF and IF; popfq
    told = TOLD.to_bytes(4, "little").hex(), (TOLD + 8).to_bytes(4, "little").hex()
    elf = guest(mov_rsp(0x101F000) + code + "90 90 f4", handler=f"58 48890425{told[0]} 0f21f1 48890c25{told[1]} faf4")
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(), guest=elf, limit=20)
        assert "halted for good" in run.why
        rip, dr6 = struct.unpack("<QQ", machine.pc.memory.read(TOLD, 16))
    begin = elf.segments[0].data.index(bytes.fromhex(code))
    assert (rip - CODE - begin, bool(dr6 & 1 << 14)) == (len(bytes.fromhex(code)), True)


def test_sysenter_is_an_invalid_opcode_as_amd_has_it_in_long_mode():
    """Its handler finds RIP at the instruction."""
    told = TOLD.to_bytes(4, "little").hex()
    elf = guest(mov_rsp(0x101F000) + "0f34 90 f4", handler=f"58 48890425{told} faf4")
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(), guest=elf, limit=20)
        assert "halted for good" in run.why
        rip, = struct.unpack("<Q", machine.pc.memory.read(TOLD, 8))
    assert rip - CODE == elf.segments[0].data.index(bytes.fromhex("0f3490f4"))


def test_a_stack_in_the_core_gets_no_frame():
    with Machine.load("q35-2g") as machine:
        base = machine.boot(Config()).vmm.base
        run = machine.boot(Config(), guest=guest(mov_rsp(base + 0x6000) + "0f0b"), limit=20)
        assert run.vmm.base == base
        assert run.outcome == "guest-crash" and "triple fault" in run.why
        assert not any(machine.pc.memory.read(base + 0x6000 - 64, 64)[i:i + 8] == struct.pack("<Q", 0x202) for i in range(0, 64, 8))


@pytest.mark.parametrize("handler", ["488b042500000080 ebf6", "0f0b", "cd80"], ids=["#PF", "#UD", "INT"])
def test_faults_without_end_can_be_stopped(handler):
    """The handler of each fault faults, on the same IST stack."""
    with Machine.load("q35-2g") as machine:
        asked = []

        def watch(phase):
            if phase is None and not asked:
                asked.append(time.process_time())
                machine.stop()

        run = machine.boot(Config(), guest=guest("0f0b", handler=handler, ist=1), limit=20, watch=watch)
        took = time.process_time() - asked[0]
        assert run.outcome == "stopped"
        assert took < 0.1, f"stopping took {took:.3f} s"


TRAPS = images_dir() / "guests" / "traps.elf"


def test_stops_anywhere_change_nothing():
    """The guest that causes every exception, stopped again and again and resumed: every line and the virtual time are the same."""
    elf = load_elf(TRAPS.read_bytes())
    with Machine.load("q35-2g") as machine:
        told = machine.boot(Config(), guest=elf, limit=60).console.guest, machine.pc.clock.now
    assert told[0].endswith("traps: done\n")
    with Machine.load("q35-2g") as machine:
        def stop(phase):
            if phase is None:
                machine.stop()

        run, stops = machine.boot(Config(), guest=elf, limit=60, watch=stop), 0
        while run.outcome == "stopped":
            stops += 1
            machine.resume(60, watch=stop)
        assert stops > 2
        assert (run.console.guest, machine.pc.clock.now) == told
