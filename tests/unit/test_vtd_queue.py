"""The invalidation queue: descriptors laid out by hand in memory, errors, wait status and completion event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vtd_bench import FSTS, GCMD, GSTS, NOWHERE, NVME, QEMU_CAP, QEMU_ECAP, QIE, TABLE1, TE, Bench

QUEUE, STATUS = 0x30_0000, 0x31_0000
IQH, IQT, IQA, ICS, IECTL, IEDATA, IEADDR = 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8
IQE = 1 << 4
DT, IR, SMTS = 1 << 2, 1 << 3, 1 << 43
DW = 1 << 11


class Queue(Bench):
    """A bench with the queue on; `put` adds a descriptor, `ring` moves the tail behind it."""

    def __init__(self, ecap: int = QEMU_ECAP, base: int = QUEUE):
        super().__init__(ecap=ecap)
        self.slot = 0
        self.write(IQT, 8, 0)
        self.write(IQA, 8, base)
        self.write(GCMD, 4, TE | QIE)

    def put(self, low: int, high: int = 0) -> None:
        self.memory.write64(QUEUE + 16 * self.slot, low)
        self.memory.write64(QUEUE + 16 * self.slot + 8, high)
        self.slot = (self.slot + 1) % 256

    def ring(self) -> None:
        self.write(IQT, 8, 16 * self.slot)

    def go(self, low: int, high: int = 0) -> bool:
        """One descriptor; whether the unit took it."""
        self.put(low, high)
        self.ring()
        return self.read(IQH, 8) == self.read(IQT, 8) and not self.read(FSTS, 4) & IQE


def test_enabling_shows_in_gsts_and_clears_the_head():
    queue = Queue()
    assert queue.read(GSTS, 4) == 0xC400_0000 and queue.read(IQH, 8) == 0
    queue.go(5 | 1 << 6)
    assert queue.read(IQH, 8) == 16
    queue.write(GCMD, 4, TE)
    assert queue.read(GSTS, 4) == 0xC000_0000 and queue.read(IQH, 8) == 0


def test_a_queue_filled_before_it_is_enabled_runs_when_it_is():
    bench = Bench()
    bench.memory.write64(QUEUE, 5 | 1 << 5 | 0xC0DE << 32)
    bench.memory.write64(QUEUE + 8, STATUS)
    bench.write(IQA, 8, QUEUE)
    bench.write(IQT, 8, 16)
    assert bench.memory.read32(STATUS) == 0
    bench.write(GCMD, 4, TE | QIE)
    assert bench.memory.read32(STATUS) == 0xC0DE and bench.read(IQH, 8) == 16


@pytest.mark.parametrize(("low", "high", "mended"), [
    (2 | 1 << 4, 0, True), (2 | 2 << 4 | 7 << 16, 0, True), (2 | 2 << 4 | 8 << 16, 0, False), (2 | 3 << 4 | 7 << 16, 0x5000, True),
    (2 | 3 << 4 | 7 << 16 | 3 << 6, 0x4000 | 1 << 6 | 2, True), (2 | 3 << 4 | 7 << 16, 0x6000, False),
])
def test_iotlb_descriptors(low, high, mended):
    queue = Queue()
    assert queue.ask(0x5000) == 0x9000
    queue.memory.write64(TABLE1 + 40, 0xD003)
    assert queue.go(low, high)
    assert queue.ask(0x5000) == (0xD000 if mended else 0x9000)


@pytest.mark.parametrize(("low", "mended"), [
    (1 | 1 << 4, True), (1 | 2 << 4 | 7 << 16, True), (1 | 2 << 4 | 8 << 16, False), (1 | 3 << 4 | 7 << 16 | NVME << 32, True),
    (1 | 3 << 4 | 7 << 16 | (NVME | 7) << 32 | 3 << 48, True), (1 | 3 << 4 | 7 << 16 | 0x18 << 32, False),
])
def test_context_descriptors(low, mended):
    queue = Queue()
    queue.ask(0x5000)
    queue.context(NVME, 0, 0)
    assert queue.go(low)
    if mended:
        assert queue.reason(0x5000) == 2
    else:
        assert queue.ask(0x5000) == 0x9000


def test_wait_writes_its_status_word_and_nothing_else():
    queue = Queue()
    queue.memory.write64(STATUS, (1 << 64) - 1)
    assert queue.go(5 | 1 << 5 | 0x1234_5678 << 32, STATUS)
    assert queue.memory.read64(STATUS) == 0xFFFF_FFFF_1234_5678
    assert queue.go(5 | 1 << 5 | 1 << 32, NOWHERE), "a status word where no memory is gets lost"
    assert queue.read(ICS, 4) == 0


def test_wait_with_if_raises_one_event_until_it_is_cleared():
    queue = Queue()
    queue.write(IEADDR, 4, 0xFEE0_2000)
    queue.write(IEDATA, 4, 0x55)
    queue.go(5 | 1 << 4)
    assert queue.messages == [] and queue.read(ICS, 4) == 1 and queue.read(IECTL, 4) == 3 << 30
    queue.write(IECTL, 4, 0)
    assert queue.messages == [(0xFEE0_2000, 0x55)]
    queue.go(5 | 1 << 4)
    assert len(queue.messages) == 1
    queue.write(ICS, 4, 1)
    queue.go(5 | 1 << 4)
    assert len(queue.messages) == 2


def test_a_masked_completion_event_is_withdrawn_by_clearing_ics():
    queue = Queue()
    queue.go(5 | 1 << 4)
    queue.write(ICS, 4, 1)
    queue.write(IECTL, 4, 0)
    assert queue.messages == [] and queue.read(ICS, 4) == 0


@pytest.mark.parametrize(("low", "high"), [
    (0, 0), (6, 0), (0xF, 0), (1, 0), (2, 0), (1 | 1 << 4 | 1 << 6, 0), (1 | 1 << 4, 1), (1 | 1 << 4 | 1 << 50, 0),
    (2 | 1 << 4 | 1 << 8, 0), (2 | 1 << 4 | 1 << 32, 0), (2 | 3 << 4, 1 << 7), (2 | 3 << 4 | 7 << 16, 19), (5 | 1 << 7, 0),
    (5 | 1 << 5, STATUS | 2), (3, 0), (4, 0),
])
def test_a_wrong_descriptor_stops_the_queue_until_it_is_mended(low, high):
    queue = Queue()
    queue.write(0x38, 4, 0)
    assert queue.go(5)
    assert not queue.go(low, high)
    assert queue.read(FSTS, 4) == IQE and queue.read(IQH, 8) == 16 and len(queue.messages) == 1
    queue.put(5 | 1 << 5 | 9 << 32, STATUS)
    queue.ring()
    assert queue.memory.read32(STATUS) == 0, "nothing is fetched while IQE is set"
    queue.memory.write64(QUEUE + 16, 5)
    queue.memory.write64(QUEUE + 24, 0)
    queue.write(FSTS, 4, IQE)
    assert queue.read(FSTS, 4) == 0 and queue.read(IQH, 8) == 48 and queue.memory.read32(STATUS) == 9


def test_descriptors_for_what_other_units_have():
    assert Queue(QEMU_ECAP | DT).go(3 | NVME << 32, 0x5000)
    assert Queue(QEMU_ECAP | IR).go(4)
    assert not Queue(QEMU_ECAP | IR).go(4 | 1 << 5)


@pytest.mark.parametrize(("low", "high"), [(1 << 4, 0), (1 << 11, 0), (1 << 21, 0), (1 << 31, 0), (1 << 48, 0), (1 << 51, 0), (0, 2),
                                           (0, 1 << 11)])
def test_reserved_bits_of_a_device_tlb_descriptor(low, high):
    assert not Queue(QEMU_ECAP | DT).go(3 | low, high)


def test_a_device_tlb_descriptor_with_every_field():
    assert Queue(QEMU_ECAP | DT).go(3 | 0xF << 12 | 0x1F << 16 | 0xFFFF << 32 | 0xFFF << 52, 0xFFFF_FFFF_FFFF_F001)


# --- descriptors of 256 bits, which a unit with scalable mode takes

class Wide(Queue):
    """A queue of 256-bit descriptors, in the legacy mode of a unit with scalable mode."""

    def __init__(self):
        super().__init__(QEMU_ECAP | SMTS, QUEUE | DW)

    def put(self, low, high=0, upper=(0, 0)):
        super().put(low, high)
        super().put(*upper)


def test_wide_descriptors_are_carried_out_one_after_another():
    queue = Wide()
    assert queue.ask(0x5000) == 0x9000
    queue.memory.write64(TABLE1 + 40, 0xD003)
    queue.put(2 | 1 << 4)
    assert queue.go(5 | 1 << 5 | 7 << 32, STATUS)
    assert (queue.ask(0x5000), queue.memory.read32(STATUS), queue.read(IQH, 8)) == (0xD000, 7, 64)
    for n in range(300):
        assert queue.go(5 | 1 << 5 | n << 32, STATUS)
    assert queue.memory.read32(STATUS) == 299 and queue.read(IQH, 8) == 32 * (302 % 128)


@pytest.mark.parametrize("upper", [(1, 0), (0, 1 << 63)])
def test_the_upper_half_of_a_wide_descriptor_is_reserved(upper):
    queue = Wide()
    queue.put(5 | 1 << 5 | 7 << 32, STATUS, upper)
    queue.ring()
    assert queue.read(FSTS, 4) == IQE and queue.read(IQH, 8) == 0 and queue.memory.read32(STATUS) == 0
    queue.memory.write64(QUEUE + 16, 0)
    queue.memory.write64(QUEUE + 24, 0)
    queue.write(FSTS, 4, IQE)
    assert queue.read(FSTS, 4) == 0 and queue.read(IQH, 8) == 32 and queue.memory.read32(STATUS) == 7


def test_a_tail_within_a_wide_descriptor_is_an_error():
    queue = Wide()
    queue.put(5)
    queue.put(5)
    queue.write(IQT, 8, 48)
    assert queue.read(FSTS, 4) == IQE and queue.read(IQH, 8) == 0
    assert "within a 256-bit descriptor" in queue.unit.notes[-1].text
    queue.write(IQT, 8, 64)
    queue.write(FSTS, 4, IQE)
    assert queue.read(FSTS, 4) == 0 and queue.read(IQH, 8) == 64


def test_without_scalable_mode_descriptors_stay_small():
    queue = Queue(base=QUEUE | DW)
    assert queue.read(IQA, 8) == QUEUE and queue.go(5) and queue.read(IQH, 8) == 16


def test_a_head_left_within_a_wide_descriptor_ends_the_queue_and_not_the_unit():
    queue = Queue(QEMU_ECAP | SMTS)
    assert queue.go(5)
    queue.write(IQA, 8, QUEUE | DW)
    queue.write(IQT, 8, 64)
    assert queue.read(FSTS, 4) == IQE and queue.read(IQH, 8) == 16


def test_a_tail_beyond_the_queue_and_a_queue_in_no_memory_are_errors():
    queue = Queue()
    queue.write(IQT, 8, 4096)
    assert queue.read(FSTS, 4) & IQE and queue.read(IQH, 8) == 0
    assert not Queue(base=NOWHERE).go(5)


def test_the_queue_wraps():
    queue = Queue()
    for n in range(600):
        assert queue.go(5 | 1 << 5 | n << 32, STATUS)
    assert queue.read(IQH, 8) == 16 * (600 % 256) and queue.memory.read32(STATUS) == 599


def test_a_larger_queue():
    queue = Queue(base=QUEUE | 1)
    queue.write(IQT, 8, 4096)
    assert queue.read(FSTS, 4) & IQE and queue.read(IQH, 8) == 0, "slot 0 is empty, not out of bounds"
    assert "wrong descriptor" in queue.unit.notes[-1].text


def test_register_commands_do_nothing_while_the_queue_is_on():
    queue = Queue()
    queue.ask(0x5000)
    queue.memory.write64(TABLE1 + 40, 0)
    assert queue.invalidate_iotlb(1) == 0 and queue.invalidate_contexts(1) == 0
    assert queue.ask(0x5000) == 0x9000
    assert "queued invalidation is enabled" in queue.unit.notes[-1].text


def test_a_unit_without_a_queue_has_no_queue_registers():
    bench = Bench(QEMU_CAP, QEMU_ECAP & ~2)
    for offset in (IQT, IQA, ICS, IECTL, IEDATA, IEADDR):
        bench.write(offset, 4, 0xFFFF_FFFF)
        assert bench.read(offset, 4) == 0
    bench.write(GCMD, 4, TE | QIE)
    assert bench.read(GSTS, 4) == 0xC000_0000


slots = st.tuples(st.integers(0, 7), st.integers(0, (1 << 60) - 1), st.integers(0, (1 << 64) - 1))


@given(st.lists(slots, max_size=12), st.integers(0, 255))
def test_noise_in_the_queue_ends(descriptors, tail):
    queue = Queue()
    for kind, low, high in descriptors:
        queue.put(low << 4 | kind, high)
    queue.write(IQT, 8, 16 * tail)
    assert queue.read(IQH, 8) == 16 * tail or queue.read(FSTS, 4) & IQE
    queue.memory.close()
