"""The NVMe controller where DMA is blocked, its interrupts, its reset, and transfers against a plain disk and against hostility."""

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_driver import ACQ, ASQ, BLOCKS, DATA, LISTS, PAGE, READ, WRITE, Driver, Queue, content, disk_of
from pci_bench import HOST_BRIDGE, NVME, Bench

from hvcore.machine.description import BarDescription
from hvcore.spec.dma import Direction
from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode, Status


@pytest.fixture
def nvme() -> Driver:
    return Driver().enable()


# What fails

def test_a_blocked_command_fetch_is_fatal_until_enabled_anew(nvme: Driver) -> None:
    nvme.pc.gate.blocks = lambda request: request.iova >> 12 == ASQ >> 12
    nvme.admin.put(Command(AdminOpcode.IDENTIFY, prp1=DATA, cdw10=1))
    nvme.admin.ring()
    assert nvme.wait(2) == 2
    fault = nvme.pc.fabric.trace[-1].fault
    assert fault and (fault.address, fault.request.access, fault.request.source) == (ASQ, Direction.READ, NVME.source)
    nvme.pc.gate.blocks = lambda request: False
    nvme.admin.ring()
    nvme.pc.clock.advance(60_000_000_000)
    assert nvme.admin.poll() is None, "the controller has stopped"
    nvme.disable()
    assert nvme.read(0x1C) == 2, "as measured: CFS stays over the driver's disable"
    assert nvme.enable().read(0x1C) == 1 and nvme.identify(1)[77] == 5


def test_a_queue_where_no_memory_is_is_fatal() -> None:
    d = Driver()
    d.write(0x24, 0x00070007)
    d.write(0x28, 0x80000000, 8)
    d.write(0x14, 0x460001)
    assert d.wait(3) == 1
    d.write(0x1000, 1)
    assert d.wait(2) == 2


def test_a_blocked_completion_is_fatal(nvme: Driver) -> None:
    nvme.pc.gate.blocks = lambda request: request.access is Direction.WRITE and request.iova >> 12 == ACQ >> 12
    nvme.admin.put(Command(AdminOpcode.GET_FEATURES, cdw10=7))
    nvme.admin.ring()
    assert nvme.wait(2) == 2 and nvme.admin.poll() is None


@pytest.mark.parametrize("blocked", [DATA, DATA + PAGE, DATA + 7 * PAGE, LISTS])
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_blocked_data_and_lists_are_transfer_errors(nvme: Driver, opcode: NvmOpcode, blocked: int) -> None:
    nvme.add_queue()
    nvme.pc.memory.write(LISTS, b"".join((DATA + PAGE * i).to_bytes(8, "little") for i in range(1, 8)))
    nvme.pc.gate.blocks = lambda request: request.iova >> 12 == blocked >> 12
    command = Command(opcode, nsid=1, prp1=DATA, prp2=LISTS, cdw12=63)
    assert nvme.queues[1].run(command).status == Status.DATA_TRANSFER_ERROR, "worth a retry"
    nvme.pc.gate.blocks = lambda request: False
    assert nvme.transfer(READ, 0, 1, DATA) == 0 and nvme.pc.memory.read(DATA, 512) == content(0, 1), "nothing was written"


def test_without_bus_mastering_the_fetch_fails(nvme: Driver) -> None:
    nvme.pc.config_write(NVME.source, 4, 2, 2)
    nvme.admin.put(Command(AdminOpcode.GET_FEATURES, cdw10=7))
    nvme.admin.ring()
    assert nvme.wait(2) == 2


# Interrupts

def test_the_pin_is_high_until_the_host_takes_the_completion(nvme: Driver) -> None:
    line = nvme.pc.config_read(NVME.source, 0x3C, 1)
    nvme.admin.put(Command(AdminOpcode.GET_FEATURES, cdw10=7))
    nvme.admin.ring()
    nvme.pc.clock.skip()
    assert nvme.pc.lines.levels[line]
    nvme.write(0x0C, 1)
    assert not nvme.pc.lines.levels[line] and nvme.read(0x0C) == nvme.read(0x10) == 1
    nvme.write(0x10, 1)
    assert nvme.pc.lines.levels[line] and nvme.read(0x0C) == 0
    nvme.admin.poll()
    assert not nvme.pc.lines.levels[line]


def test_a_queue_without_interrupts_pulls_no_pin(nvme: Driver) -> None:
    queue, line = nvme.add_queue(), nvme.pc.config_read(NVME.source, 0x3C, 1)
    queue.put(Command(READ, nsid=1, prp1=DATA))
    queue.ring()
    nvme.pc.clock.skip()
    assert not nvme.pc.lines.levels[line] and queue.poll()


def test_switching_to_messages_drops_the_pin(nvme: Driver) -> None:
    line, at = nvme.pc.config_read(NVME.source, 0x3C, 1), nvme.pc.capability(NVME.source, 0x11)
    nvme.admin.put(Command(AdminOpcode.GET_FEATURES, cdw10=7))
    nvme.admin.ring()
    nvme.pc.clock.skip()
    assert nvme.pc.lines.levels[line]
    nvme.pc.config_write(NVME.source, at + 2, 0x8000, 2)
    assert not nvme.pc.lines.levels[line]
    nvme.pc.config_write(NVME.source, at + 2, 0, 2)
    assert nvme.pc.lines.levels[line]


def test_the_msix_table_takes_whole_dwords_and_pending_bits_are_read_only(nvme: Driver) -> None:
    nvme.write(0x2110, 0x1122334455667788, 8)
    assert nvme.read(0x2110, 8) == 0, "beyond the last vector there is no table"
    nvme.write(0x2100, 0x1122334455667788, 8)
    for offset, width in ((0x2100, 1), (0x2101, 2), (0x2102, 4), (0x2104, 2)):
        nvme.write(offset, 0, width)
    assert nvme.read(0x2100, 8) == 0x1122334455667788 and nvme.read(0x2103, 1) == 0x55
    nvme.pc.config_write(NVME.source, nvme.pc.capability(NVME.source, 0x11) + 2, 0x8000, 2)
    unseen(nvme, nvme.add_queue(vector=16, interrupts=True))
    nvme.write(0x3000, 0)
    assert nvme.read(0x3000) == 0x10000 and nvme.read(0x3002, 1) == 1


def unseen(nvme: Driver, queue: Queue) -> None:
    """A read whose completion the host leaves where it is."""
    queue.put(Command(READ, nsid=1, prp1=DATA))
    queue.ring()
    assert nvme.pc.clock.skip()


def vector(nvme: Driver, number: int, masked: int = 0) -> None:
    for i, value in enumerate((0xFEE00000 | number << 12, 0, 0x40 + number, masked)):
        nvme.write(0x2000 + 16 * number + 4 * i, value)


def test_msix_sends_messages_masks_and_pends(nvme: Driver) -> None:
    pc, at = nvme.pc, nvme.pc.capability(NVME.source, 0x11)
    assert [pc.config_read(NVME.source, at + o) for o in (4, 8)] == [0x2000, 0x3000] and pc.config_read(NVME.source, at + 2, 2) == 16
    assert nvme.read(0x200C) == 1
    pc.config_write(NVME.source, at + 2, 0xC000, 2)
    queue = nvme.add_queue(vector=3, interrupts=True)
    vector(nvme, 0)
    vector(nvme, 3, masked=1)
    unseen(nvme, queue)
    unseen(nvme, nvme.admin)
    assert pc.messages == [] and nvme.read(0x3000) == 0b1001, "the whole function is masked"
    pc.config_write(NVME.source, at + 2, 0x8000, 2)
    assert pc.messages == [(NVME.source, 0xFEE00000, 0x40)] and nvme.read(0x3000) == 0b1000
    nvme.write(0x203C, 0)
    assert pc.messages[1:] == [(NVME.source, 0xFEE03000, 0x43)] and nvme.read(0x3000) == 0
    unseen(nvme, queue)
    assert len(pc.messages) == 3 and not any(pc.lines.levels.values())


def test_a_masked_vector_is_pending_until_the_host_has_taken_all_of_it(nvme: Driver) -> None:
    pc, at = nvme.pc, nvme.pc.capability(NVME.source, 0x11)
    pc.config_write(NVME.source, at + 2, 0x8000, 2)
    queues = [nvme.add_queue(number, vector=5, interrupts=True) for number in (1, 2)]
    vector(nvme, 5, masked=1)
    for queue in queues:
        unseen(nvme, queue)
        assert nvme.read(0x3000) >> 5 & 1
    for queue, left in zip(queues, (1, 0), strict=True):
        assert queue.poll() and nvme.read(0x3000) >> 5 & 1 == left, "both queues share the vector"
    vector(nvme, 5)
    assert pc.messages == [], "nothing is told that is known"
    unseen(nvme, queues[1])
    assert pc.messages == [(NVME.source, 0xFEE05000, 0x45)]


def test_a_small_bar_has_no_msix() -> None:
    pc = Bench((HOST_BRIDGE, replace(NVME, bars=(BarDescription(0, "mem64", 0x2000),))))
    with pytest.raises(AssertionError, match="no capability"):
        pc.capability(NVME.source, 0x11)
    assert Driver(pc).enable().identify(1)[77] == 5


# Reset

def test_reset_equals_power_on(nvme: Driver) -> None:
    nvme.add_queue()
    nvme.transfer(WRITE, 3, 1, DATA)
    vector(nvme, 2)
    nvme.pc.root.reset()
    fresh = Driver()
    assert [nvme.read(o) for o in range(0, 0x4000, 4)] == [fresh.read(o) for o in range(0, 0x4000, 4)]
    assert nvme.pc.clock.next() is None
    nvme.enable().add_queue()
    assert nvme.transfer(READ, 3, 1, DATA + PAGE) == 0 and nvme.pc.memory.read(DATA + PAGE, 512) == bytes(512), "the disk keeps its content"


# Against a plain model, and against hostility

@dataclass(frozen=True)
class Transfer:
    """Blocks from `lba` on, to or from an offset in the first of `pages`; `list_offset` is where the PRP list lies in its page."""

    opcode: NvmOpcode
    lba: int
    count: int
    offset: int
    pages: list[int]
    list_offset: int
    data: bytes


@st.composite
def transfers(draw: st.DrawFn) -> Transfer:
    count, offset, chance = draw(st.integers(1, 96)), draw(st.integers(0, 1023)) * 4, Random(draw(st.integers(0, 1 << 32)))
    pages = chance.sample(range(40), -(-(offset + count * 512) // PAGE))
    slot = draw(st.integers(0, PAGE // 8 - 1) | st.integers(PAGE // 8 - 5, PAGE // 8 - 1))
    return Transfer(draw(st.sampled_from([READ, WRITE])), draw(st.integers(0, BLOCKS - count)), count, offset, pages, slot * 8,
                    chance.randbytes(count * 512))


def lay_list(nvme: Driver, pages: list[int], offset: int) -> int:
    """A PRP list from LISTS + offset on, chained at the end of each page; the PRP2 to use."""
    at, rest = LISTS + offset, [DATA + PAGE * p for p in pages]
    while rest:
        slots = (PAGE - at % PAGE) // 8
        chained = len(rest) > slots
        here, rest = (rest[:slots - 1], rest[slots - 1:]) if chained else (rest, [])
        following = (at & ~(PAGE - 1)) + 2 * PAGE
        words = [*here, following] if chained else here
        nvme.pc.memory.write(at, b"".join(w.to_bytes(8, "little") for w in words))
        at = following
    return LISTS + offset


@settings(max_examples=40)
@given(st.lists(transfers(), min_size=1, max_size=8))
def test_transfers_of_all_shapes_agree_with_a_plain_disk(todo: list[Transfer]) -> None:
    nvme = Driver().enable()
    nvme.add_queue()
    memory, model = nvme.pc.memory, bytearray(content(0, BLOCKS))
    for t in todo:
        blocks = slice(t.lba * 512, (t.lba + t.count) * 512)
        places = [DATA + PAGE * t.pages[0] + t.offset, *(DATA + PAGE * p for p in t.pages[1:])]
        cuts = [0, *range(PAGE - t.offset, t.count * 512, PAGE), t.count * 512]
        pieces = list(zip(places, cuts, cuts[1:], strict=False))
        assert len(pieces) == len(places)
        for place, a, b in pieces:
            memory.write(place, t.data[a:b])
        prp2 = 0 if len(places) == 1 else places[1] if len(places) == 2 else lay_list(nvme, t.pages[1:], t.list_offset)
        assert nvme.transfer(t.opcode, t.lba, t.count, places[0], prp2) == 0
        if t.opcode == WRITE:
            model[blocks] = t.data
        else:
            assert b"".join(memory.read(place, b - a) for place, a, b in pieces) == model[blocks]
    assert disk_of(nvme).read(0, BLOCKS) == model


WORD = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, ASQ, ACQ, DATA, LISTS, (1 << 64) - PAGE, 0xFEE00000]))
OFFSETS = st.one_of(st.integers(0, 0x3FFF),
                    st.sampled_from([0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000, 0x1004, 0x1008, 0x2000, 0x200C]))


@settings(max_examples=60)
@given(st.lists(st.tuples(OFFSETS, st.sampled_from([1, 2, 4, 8]), WORD), max_size=30))
def test_random_registers_never_raise(writes: list[tuple[int, int, int]]) -> None:
    nvme = Driver().enable()
    nvme.pc.config_write(NVME.source, nvme.pc.capability(NVME.source, 0x11) + 2, 0x8000, 2)
    for offset, width, value in writes:
        nvme.write(offset, value, width)
        nvme.read(offset, width)
        nvme.pc.clock.advance(50_000)
    nvme.pc.clock.advance(1_000_000_000)
    nvme.pc.root.reset()
    assert Driver(nvme.pc).enable().identify(1)[77] == 5


COMMANDS = st.builds(
    Command, opcode=st.one_of(st.integers(0, 255), st.sampled_from([*AdminOpcode, *NvmOpcode])),
    flags=st.sampled_from([0, 0, 0, 0x40, 1]), cid=st.integers(0, 0xFFFF), nsid=st.sampled_from([0, 1, 1, 1, 2, 0xFFFFFFFF]),
    prp1=WORD, prp2=WORD, cdw10=st.one_of(st.integers(0, 0x20), st.integers(0, 0xFFFFFFFF)),
    cdw11=st.one_of(st.integers(0, 3), st.integers(0, 0xFFFFFFFF)), cdw12=st.integers(0, 0xFFFFFFFF),
    **dict.fromkeys(("cdw2", "mptr", "cdw13", "cdw14", "cdw15"), st.just(0)))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), COMMANDS), max_size=30), st.binary(max_size=256))
def test_hostile_commands_end_in_a_completion_or_a_dead_controller(commands: list[tuple[int, Command]], noise: bytes) -> None:
    nvme = Driver(entries=64).enable()
    nvme.add_queue(size=64)
    nvme.pc.memory.write(LISTS, noise)
    for number, command in commands:
        nvme.queues[number].put(command)
    for queue in nvme.queues.values():
        queue.ring()
    before = nvme.pc.clock.now
    while nvme.pc.clock.skip():
        assert nvme.pc.clock.now - before <= len(commands) * 10_000, "one command costs one turn"
    assert nvme.read(0x1C) in (1, 2)
