"""Interrupt remapping by named scenarios, hand-built bytes, and against a second, plain implementation of the specification."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vtd_bench import BASE, FECTL, GCMD, GSTS, NOWHERE, NVME, QEMU_CAP, TABLE2, TABLE3, TE, XEON_CAP, Bench

from hvcore.machine.dma import DmaFabric
from hvcore.spec.dma import RemapFault
from hvcore.spec.interrupts import Interrupt

IR_ECAP = 0xF0_0F5A
"""QEMU's with interrupt remapping and extended interrupt mode; index masks up to 15."""
TABLE, QUEUE = 0x18_0000, 0x30_0000
IRTA, IQT, IQA, FSTS = 0xB8, 0x88, 0x90, 0x34
QIE, IRE, SIRTP, CFI = 1 << 26, 1 << 25, 1 << 24, 1 << 23
EIME, CM = 1 << 11, 1 << 7
SID, BUS = 1 << 18, 2 << 18
EDU, OTHER = 0x0018, 0x0500
MSI = 0xFEE0_0000


def at(index: int, shv: bool = False) -> int:
    """The address of a remappable message with a handle."""
    return MSI | 0x10 | (index & 0x7FFF) << 5 | index >> 15 << 2 | (8 if shv else 0)


def low(vector: int = 0x66, destination: int = 5 << 8, flags: int = 0) -> int:
    """The low word of a present entry; `flags` flips bits."""
    return (1 | vector << 16 | destination << 32) ^ flags


class Remapping(Bench):
    """A bench whose unit remaps interrupts: 16 entries, of which 1 is set: vector 0x66 for APIC 5."""

    def __init__(self, irta: int = TABLE | 3, commands: int = QIE | IRE, cap: int = QEMU_CAP, ideal_caches: bool = False):
        super().__init__(cap=cap, ecap=IR_ECAP, ideal_caches=ideal_caches, on=False)
        self.slot = 0
        self.put(1, low())
        self.write(IRTA, 8, irta)
        self.write(GCMD, 4, SIRTP)
        self.write(IQA, 8, QUEUE)
        command = 0
        for bit in (QIE, CFI, IRE):
            if commands & bit:
                command |= bit
                self.write(GCMD, 4, command)

    def put(self, index: int, word: int, high: int = 0) -> None:
        """Software writes an entry."""
        self.memory.write64(TABLE + 16 * index, word)
        self.memory.write64(TABLE + 16 * index + 8, high)

    def send(self, address: int, data: int = 0, source: int = EDU) -> Interrupt | RemapFault:
        return self.unit.interrupt(source, address, data)

    def arrived(self, address: int, data: int = 0, source: int = EDU) -> tuple[int, int]:
        """The message that must get through, as it arrives."""
        result = self.send(address, data, source)
        assert isinstance(result, Interrupt), result
        return result.message

    def fault(self, address: int, data: int = 0, source: int = EDU) -> int:
        """The reason why a message must be blocked; it is recorded, and the record cleared."""
        result = self.send(address, data, source)
        assert isinstance(result, RemapFault) and result.recorded and result.unit == BASE
        low, high = self.record()
        assert high == 1 << 63 | result.reason << 32 | source and low == (result.address & 0xFFFF) << 48
        self.clear()
        return result.reason

    def clear(self) -> None:
        """Software clears the fault record and the overflow."""
        self.write(self.fro + 8, 8, 1 << 63)
        self.write(FSTS, 4, 1)

    def invalidate(self, descriptor: int = 4) -> bool:
        """One descriptor for the interrupt-entry cache; whether the unit took it."""
        self.memory.write64(QUEUE + 16 * self.slot, descriptor)
        self.memory.write64(QUEUE + 16 * self.slot + 8, 0)
        self.slot = (self.slot + 1) % 256
        self.write(IQT, 8, 16 * self.slot)
        return not self.read(FSTS, 4) & 1 << 4


# What gets through.

def test_status_follows_the_commands():
    bench = Remapping(commands=QIE | CFI | IRE)
    assert bench.read(GSTS, 4) == QIE | CFI | IRE | SIRTP and not bench.unit.notes
    bench.unit.reset()
    assert bench.unit.interrupt_table == 0 and bench.read(GSTS, 4) == 0


def test_remapping_off_lets_everything_through():
    bench = Remapping(commands=0)
    result = bench.send(MSI | 0x7F01C, 0xC1AB)
    assert result == Interrupt(EDU, MSI | 0x7F01C, 0xC1AB, None, 0x7F, True, True, 0xAB, 1, True)
    assert bench.arrived(MSI | 0x7F01C, 0xC1AB) == (MSI | 0x7F01C, 0xC1AB)


def test_every_field_of_an_entry_arrives():
    bench = Remapping()
    bench.put(2, 0x0000_AB00_00CD_0FBD)
    assert bench.send(at(2), 0x1234) == Interrupt(EDU, at(2), 0x1234, 2, 0xAB, True, True, 0xCD, 5, True)
    assert bench.arrived(at(2)) == (0xFEEA_B00C, 0xC5CD)


def test_x2apic_destinations_have_32_bits():
    bench = Remapping(TABLE | 3 | EIME)
    bench.put(2, low(0x31, 0x89AB_CDEF))
    assert bench.arrived(at(2)) == (0x89AB_CD00_FEEE_F000, 0x4031)


@pytest.mark.parametrize(("address", "data", "index"), [
    (at(5), 0, 5), (at(5), 0xFFFF_0003, 5), (at(5, True), 3, 8), (at(0, True), 8, 8), (at(8, True), 0, 8), (MSI | 0x10 | 1 << 5, 0, 1)])
def test_index_of_a_message(address, data, index):
    bench = Remapping()
    for i in range(16):
        bench.put(i, low(0x40 + i))
    assert bench.arrived(address, data) == (0xFEE0_5000, 0x4040 + index)


def test_handle_bit_15_lies_in_address_bit_2():
    bench = Remapping(TABLE | 15)
    bench.put(0x8003, low(0x99))
    assert bench.arrived(0xFEE0_0074) == (0xFEE0_5000, 0x4099)


def test_translation_does_not_matter():
    bench = Remapping()
    bench.write(GCMD, 4, TE | IRE | QIE)
    assert bench.arrived(at(1)) == (0xFEE0_5000, 0x4066)


# What does not, and in which order.

def test_reasons_in_the_order_of_the_hardware():
    """Everything is wrong at first; one thing after the other is put right."""
    bench = Remapping(NOWHERE | 3)
    bench.put(4, 1 << 12, SID | OTHER)
    assert bench.fault(at(99, True), 0x8000_0000) == 0x20
    assert bench.fault(at(99, True)) == 0x21
    assert bench.fault(at(4)) == 0x23
    bench.write(IRTA, 8, TABLE | 3)
    bench.write(GCMD, 4, SIRTP | IRE | QIE)
    assert bench.fault(at(4)) == 0x22
    bench.put(4, 1 | 1 << 12, SID | OTHER)
    assert bench.fault(at(4)) == 0x24
    bench.put(4, 1, SID | OTHER)
    assert bench.fault(at(4)) == 0x26
    assert bench.arrived(at(4), source=OTHER) == (MSI, 0x4000)


@pytest.mark.parametrize(("commands", "irta", "passes"), [
    (QIE | IRE, 0, False), (QIE | IRE | CFI, 0, True), (QIE | IRE | CFI, EIME, False), (QIE | IRE, EIME, False), (QIE | CFI, EIME, True)])
def test_compatibility_format(commands, irta, passes):
    bench = Remapping(TABLE | 3 | irta, commands)
    if passes:
        assert bench.arrived(MSI | 0x5000, 0x66) == (MSI | 0x5000, 0x66)
    else:
        assert bench.fault(MSI | 0x5000, 0x66) == 0x25


@pytest.mark.parametrize(("size", "entries"), [(0, 2), (1, 4), (3, 16), (15, 65536)])
def test_table_sizes(size, entries):
    bench = Remapping(TABLE | size)
    bench.put(entries - 1, low())
    assert bench.arrived(at(entries - 1)) == (0xFEE0_5000, 0x4066)
    if entries < 65536:
        assert bench.fault(at(entries)) == 0x21
    assert bench.fault(at(0xFFFF, True), min(entries, 0xFFFF)) == 0x21, "an index beyond 16 bits does not wrap"


def test_index_in_the_record_has_16_bits():
    bench = Remapping()
    result = bench.send(at(0xFFFF, True), 0x12)
    assert isinstance(result, RemapFault) and result.address == 0x1_0011
    assert bench.record()[0] == 0x0011 << 48


@pytest.mark.parametrize("bit", [12, 13, 14, 15, 24, 31, 32, 39, 48, 63, 84, 127])
def test_reserved_bits(bit):
    bench = Remapping()
    word = low() | 1 << bit
    bench.put(1, word % (1 << 64), word >> 64)
    assert bench.fault(at(1)) == 0x24


@pytest.mark.parametrize("bit", [8, 11, 40, 47, 64, 79, 80, 81])
def test_bits_that_are_not_reserved(bit):
    bench = Remapping()
    word = low() | 1 << bit
    bench.put(1, word % (1 << 64), word >> 64)
    assert isinstance(bench.send(at(1)), Interrupt)


def test_destination_bits_are_reserved_without_eime_only():
    bench = Remapping(TABLE | 3 | EIME)
    bench.put(1, low(destination=0xFFFF_FFFF))
    assert bench.arrived(at(1))[0] == 0xFFFF_FF00_FEEF_F000


REQUESTERS = {EDU, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x100, OTHER, 0x600}
BUS_0 = {EDU, 0x19, 0x1A, 0x1C, 0x1D, 0x1E, 0x1F, 0x20}


@pytest.mark.parametrize(("high", "accepted"), [
    (0, REQUESTERS), (OTHER, REQUESTERS), (SID | EDU, {EDU}), (SID | 1 << 16 | EDU, {EDU, 0x1C}),
    (SID | 2 << 16 | EDU, {EDU, 0x1A, 0x1C, 0x1E}), (SID | 3 << 16 | EDU, BUS_0 - {0x20}), (BUS | 0x0000, BUS_0),
    (BUS | 0x0105, {OTHER, 0x100}), (BUS | 0x0005, REQUESTERS - {0x600}), (BUS | 0x0501, set()), (BUS | 0x0505, {OTHER}),
    (3 << 18 | EDU, set())])
def test_source_checks(high, accepted):
    bench = Remapping()
    bench.put(1, low(), high)
    assert {s for s in REQUESTERS if isinstance(bench.send(at(1), source=s), Interrupt)} == accepted
    bench.clear()
    assert {bench.fault(at(1), source=s) for s in REQUESTERS - accepted} <= {0x26}


@pytest.mark.parametrize(("word", "high", "reason"), [(2, 0, 0x22), (low() | 2 | 1 << 12, 0, 0x24), (low() | 2, SID | OTHER, 0x26)])
def test_fpd_silences_what_the_entry_is_to_blame_for(word, high, reason):
    bench = Remapping()
    bench.put(1, word, high)
    result = bench.send(at(1))
    assert isinstance(result, RemapFault) and (result.reason, result.address, result.recorded) == (reason, 1, False)
    assert bench.record() == (0, 0) and bench.read(FSTS, 4) == 0


def test_faults_raise_the_event_which_nothing_remaps():
    bench = Remapping()
    for offset, value in ((0x3C, 0x41), (0x40, MSI | 0x3000), (FECTL, 0)):
        bench.write(offset, 4, value)
    bench.fault(at(2))
    assert bench.messages == [(MSI | 0x3000, 0x41)], "a compatibility-format message, though CFIS is clear"


def test_posted_entries():
    without, posting = Remapping(), Remapping(cap=XEON_CAP)
    for bench in (without, posting):
        bench.put(1, low(flags=1 << 15))
    assert without.fault(at(1)) == 0x24 and not without.unit.notes
    result = posting.send(at(1))
    assert isinstance(result, RemapFault) and not result.recorded and posting.read(FSTS, 4) == 0
    assert [n.text for n in posting.unit.notes] == ["interrupt entry 1 is posted, which is not modelled: a message of it is dropped"]


# Registers.

def test_the_table_counts_once_it_is_latched():
    bench = Remapping()
    bench.write(IRTA, 8, TABLE + 0x1000 | 3)
    assert bench.arrived(at(1)) == (0xFEE0_5000, 0x4066) and bench.unit.interrupt_table == TABLE | 3
    bench.write(GCMD, 4, SIRTP | IRE | QIE)
    assert bench.arrived(at(1)) == (0xFEE0_5000, 0x4066), "the entry is still cached"
    bench.invalidate()
    assert bench.fault(at(1)) == 0x22


def test_address_bits_beyond_the_host_width_are_not_there():
    bench = Remapping(TABLE | 3 | 1 << 39 | 1 << 63)
    assert bench.unit.interrupt_table == TABLE | 3 and isinstance(bench.send(at(1)), Interrupt)


def test_enabled_without_a_table():
    bench = Bench(ecap=IR_ECAP, on=False)
    bench.write(GCMD, 4, IRE)
    assert "without a table" in bench.unit.notes[0].text
    bench.memory.write64(16, low())
    result = bench.unit.interrupt(EDU, at(1), 0)
    assert isinstance(result, Interrupt) and result.vector == 0x66


def test_a_unit_without_the_capability():
    bench = Bench(on=False)
    bench.write(IRTA, 8, TABLE | 3)
    bench.write(GCMD, 4, IRE)
    assert bench.read(IRTA, 8) == 0 and bench.read(GSTS, 4) == 0
    assert isinstance(bench.unit.interrupt(EDU, MSI, 0x66), Interrupt)


# The interrupt-entry cache.

@pytest.mark.parametrize(("descriptor", "mended"), [
    (None, set()), (4, {4, 5, 6, 7}), (4 | 1 << 4 | 5 << 32, {5}), (4 | 1 << 4 | 5 << 32 | 1 << 27, {4, 5}),
    (4 | 1 << 4 | 5 << 32 | 2 << 27, {4, 5, 6, 7}), (4 | 1 << 4 | 8 << 32 | 2 << 27, set()), (4 | 1 << 4 | 15 << 27, {4, 5, 6, 7})])
def test_entries_are_stale_until_they_are_invalidated(descriptor, mended):
    bench = Remapping()
    for i in range(4, 8):
        bench.put(i, low())
        bench.send(at(i))
        bench.put(i, low(0x77))
    assert [e.index for e in bench.unit.cached.interrupts] == [4, 5, 6, 7]
    if descriptor is not None:
        assert bench.invalidate(descriptor)
    assert {i for i in range(4, 8) if bench.arrived(at(i))[1] == 0x4077} == mended


@pytest.mark.parametrize("descriptor", [4 | 1 << 4 | 16 << 27, 4 | 1 << 5, 4 | 1 << 26, 4 | 1 << 48])
def test_descriptors_that_are_wrong(descriptor):
    bench = Remapping()
    bench.send(at(1))
    assert not bench.invalidate(descriptor) and bench.unit.cached.interrupts


def test_other_invalidations_leave_the_entries():
    bench = Remapping()
    bench.send(at(1))
    assert bench.invalidate(1 | 1 << 4) and bench.invalidate(2 | 1 << 4) and len(bench.unit.cached.interrupts) == 1


def test_what_refuses_is_cached_in_caching_mode_only():
    plain, caching = Remapping(), Remapping(cap=QEMU_CAP | CM)
    for bench, kept in ((plain, False), (caching, True)):
        assert bench.fault(at(2)) == 0x22
        bench.put(2, low())
        assert isinstance(bench.send(at(2)), RemapFault) == kept


def test_a_refused_requester_leaves_the_entry_cached():
    bench = Remapping()
    bench.put(1, low(), SID | OTHER)
    bench.fault(at(1))
    bench.put(1, low())
    assert bench.fault(at(1)) == 0x26 and bench.invalidate() and isinstance(bench.send(at(1)), Interrupt)


def test_ideal_caches_remember_nothing():
    bench = Remapping(ideal_caches=True)
    bench.send(at(1))
    bench.put(1, low(0x77))
    assert bench.arrived(at(1)) == (0xFEE0_5000, 0x4077) and not bench.unit.cached.interrupts


# The way of a device's message.

def test_a_message_of_a_device_goes_through_its_unit():
    bench, sent = Remapping(), []
    fabric = DmaFabric(bench.memory, lambda segment, source: bench.unit if source == EDU else None, lambda *m: sent.append(m))
    edu, free = fabric.port(EDU), fabric.port(NVME)
    assert edu.write(at(1), bytes(4)).ok and free.write(MSI | 0x7000, (0x55).to_bytes(4, "little")).ok
    blocked = edu.write(at(2), bytes(4))
    assert not blocked.ok and blocked.fault and (blocked.fault.reason, blocked.fault.address) == (0x22, 2)
    assert sent == [(EDU, 0xFEE0_5000, 0x4066), (NVME, MSI | 0x7000, 0x55)]
    assert [(i.source, i.address, i.index) for i in fabric.interrupts] == [(EDU, at(1), 1), (NVME, MSI | 0x7000, None)]
    assert fabric.trace[-1] is blocked


@pytest.mark.parametrize(("address", "data"), [(MSI | 2, bytes(4)), (MSI, bytes(2)), (MSI, bytes(8))])
def test_other_writes_to_the_range_are_no_messages(address, data):
    bench = Remapping()
    bench.enable()
    fabric = DmaFabric(bench.memory, lambda segment, source: bench.unit)
    result = fabric.port(NVME).write(address, data)
    assert result.fault and result.fault.reason == 0xE and not fabric.interrupts


def test_a_piece_of_a_request_that_is_cut_is_a_message_like_any_other():
    bench, data = Remapping(), bytes.fromhex("0102030466000000")
    bench.memory.write64(TABLE3 + 8 * 3, TABLE2 | 3)
    bench.memory.write64(TABLE2 + 8 * 0x1F6, 0x60_0083)
    fabric = DmaFabric(bench.memory, lambda segment, source: bench.unit)
    port = fabric.port(NVME)
    bench.enable()
    bench.write(GCMD, 4, TE | IRE)
    blocked = port.write(MSI - 4, data)
    assert blocked.fault and blocked.fault.reason == 0x25 and not fabric.interrupts
    bench.write(GCMD, 4, TE)
    assert port.write(MSI - 4, data).ok and bench.memory.read(0x7F_FFFC, 4) == data[:4]
    assert [(i.address, i.data) for i in fabric.interrupts] == [(MSI, 0x66)]


@pytest.mark.parametrize(("iova", "access", "reason"), [(0x5000, "read", None), (0x7000, "write", None), (0x7000, "read", 6),
                                                        (0x8000, "read", 6), (0x8000, "write", 5)])
def test_a_request_of_no_bytes_is_judged_and_touches_nothing(iova, access, reason):
    bench = Remapping()
    bench.enable()
    fabric = DmaFabric(bench.memory, lambda segment, source: bench.unit)
    touched = []
    bench.memory.listeners.append(lambda start, end: touched.append(start))
    result = fabric.port(NVME).read(iova, 0) if access == "read" else fabric.port(NVME).write(iova, b"")
    assert (result.fault.reason if result.fault else None, result.data) == (reason, None if reason else b"")
    assert not touched


# A second implementation, from the text of the specification alone.

class Plain:
    """Interrupt remapping as one function on integers."""

    def __init__(self, eime: bool, cfi: bool, size: int, caching_mode: bool, ideal: bool):
        self.eime, self.cfi, self.entries = eime, cfi, 1 << size + 1
        self.caching_mode, self.ideal = caching_mode, ideal
        self.table: dict[int, int] = {}
        self.cache: dict[int, int] = {}

    def invalidate(self, index: int | None, mask: int) -> None:
        for i in list(self.cache):
            if index is None or i // 2 ** mask == index // 2 ** mask:
                del self.cache[i]

    def send(self, source: int, address: int, data: int) -> tuple[str, int, int]:
        """("arrives", address, data) or ("blocked", reason, index), "silent" where FPD hides it."""
        if address // 16 % 2 == 0:
            return ("arrives", address, data) if self.cfi and not self.eime else ("blocked", 0x25, 0)
        index = address // 32 % 2 ** 15 + (2 ** 15 if address & 4 else 0)
        if address & 8:
            if data >= 2 ** 16:
                return "blocked", 0x20, 0
            index += data
        if index >= self.entries:
            return "blocked", 0x21, index
        entry = self.cache[index] if index in self.cache else self.table.get(index, 0)
        reason = self.judge(entry)
        if not self.ideal and (reason == 0 or self.caching_mode):
            self.cache[index] = entry
        if reason == 0 and not self.may(entry, source):
            reason = 0x26
        if reason:
            return "silent" if entry & 2 else "blocked", reason, index
        return "arrives", *self.message(entry)

    def judge(self, entry: int) -> int:
        if entry % 2 == 0:
            return 0x22
        zero = [*range(12, 16), *range(24, 32), *range(84, 128)] + ([] if self.eime else [*range(32, 40), *range(48, 64)])
        return 0x24 if any(entry >> i & 1 for i in zero) else 0

    def may(self, entry: int, source: int) -> bool:
        sid, sq, svt = entry >> 64 & 0xFFFF, entry >> 80 & 3, entry >> 82 & 3
        ignored = [[], [2], [1, 2], [0, 1, 2]][sq]
        same = all(sid >> i & 1 == source >> i & 1 for i in range(16) if i not in ignored)
        return [True, same, sid // 256 <= source // 256 <= sid % 256, False][svt]

    def message(self, entry: int) -> tuple[int, int]:
        destination = entry >> 32 & 0xFFFF_FFFF if self.eime else entry >> 40 & 0xFF
        address = destination // 256 << 40 | 0xFEE00000 | destination % 256 << 12 | (entry & 0b1100)
        return address, entry >> 16 & 0xFF | (entry >> 5 & 7) << 8 | 1 << 14 | (entry >> 4 & 1) << 15


SOURCES = st.sampled_from([EDU, 0x19, 0x1C, OTHER, 0x0100, 0xFFFF])
NOISE = st.lists(st.sampled_from([0, 1, 12, 15, 24, 31, 32, 40, 47, 48, 63, 84, 127]), max_size=2)
INDEX = st.one_of(st.integers(0, 15), st.integers(0, 0xFFFF))


@st.composite
def entries(draw: st.DrawFn) -> int:
    """A present entry that is mostly in order."""
    word = 1 | draw(st.integers(0, 0x7FFF)) << 2 & 0xFFC | draw(st.integers(0, 255)) << 16 | draw(st.integers(0, 255)) << 40
    sid = draw(st.one_of(SOURCES, st.sampled_from([0, 0x0105, 0x0501, 0x0000])))
    word |= (sid | draw(st.integers(0, 15)) << 16) << 64
    for bit in draw(NOISE):
        word ^= 1 << bit
    return word


MESSAGES = st.one_of(
    st.builds(lambda source, index, data: (source, at(index), data), SOURCES, INDEX, st.integers(0, 0xFFFF_FFFF)),
    st.builds(lambda source, index, data: (source, at(index, True), data), SOURCES, INDEX, st.one_of(INDEX, st.integers(0, 0x1_0003))),
    st.builds(lambda source, bits, data: (source, MSI | bits << 12 | bits % 4 << 2, data), SOURCES, st.integers(0, 255),
              st.integers(0, 0xFFFF)))
OPERATIONS = st.lists(st.one_of(
    st.tuples(st.just("send"), MESSAGES), st.tuples(st.just("send"), MESSAGES),
    st.tuples(st.just("put"), st.tuples(st.integers(0, 15), entries())),
    st.tuples(st.just("invalidate"), st.tuples(st.one_of(st.none(), st.integers(0, 20)), st.integers(0, 15)))), max_size=25)


@given(st.booleans(), st.booleans(), st.integers(0, 4), st.booleans(), st.booleans(), st.lists(entries(), min_size=4, max_size=16),
       OPERATIONS)
def test_against_a_plain_implementation(eime, cfi, size, caching_mode, ideal, table, operations):
    plain = Plain(eime, cfi, size, caching_mode, ideal)
    bench = Remapping(TABLE | size | (EIME if eime else 0), QIE | IRE | (CFI if cfi else 0), QEMU_CAP | (CM if caching_mode else 0), ideal)
    bench.put(1, 0)
    for what, words in [*(("put", pair) for pair in enumerate(table)), *operations]:
        if what == "put":
            index, entry = words
            plain.table[index] = entry
            bench.put(index, entry % (1 << 64), entry >> 64)
        elif what == "invalidate":
            plain.invalidate(*words)
            assert bench.invalidate(4 if words[0] is None else 4 | 1 << 4 | words[0] << 32 | words[1] << 27)
        else:
            assert outcome(bench, *words) == plain.send(*words)
    assert {e.index: e.low | e.high << 64 for e in bench.unit.cached.interrupts} == plain.cache


def outcome(bench: Remapping, source: int, address: int, data: int) -> tuple[str, int, int]:
    """What the unit says became of a message; the record agrees."""
    result = bench.send(address, data, source)
    if isinstance(result, Interrupt):
        return "arrives", *result.message
    low, high = bench.record()
    assert bool(high >> 63) == result.recorded
    if result.recorded:
        assert (high, low >> 48) == (1 << 63 | result.reason << 32 | source, result.address & 0xFFFF)
        bench.clear()
    return "blocked" if result.recorded else "silent", result.reason, result.address
