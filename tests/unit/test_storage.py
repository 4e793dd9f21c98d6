"""NVME_DRIVER: the core's own NVMe driver between a guest and its controller, and the disk that it encrypts."""

import random

import pytest
import test_nvme
from nvme_driver import ACQ, ASQ, BLOCKS, DATA, LISTS, PAGE, READ, WRITE, Driver, content, disk_of
from storage_bench import BASE, DNR, HALF, SECRET, Behind, enabled, prp_list, xts

from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode, Status
from hvcore.vmm.heap import Panic
from hvcore.vmm.layout import Part
from hvcore.vmm.storage import crypt
from hvcore.vmm.storage.layout import SHADOW_PAGES, TAGS


@pytest.fixture
def nvme() -> Driver:
    return enabled()


# --- the cipher

IEEE_KEY = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
IEEE_4 = bytes.fromhex(
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89cc78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412")
IEEE_5 = bytes.fromhex("264d3ca8512194fec312c8c9891f279fefdd608d0c027b60483a3fa811d65ee5")


def test_vectors_of_the_standard():
    """IEEE 1619-2007, vectors 4 and 5: data units of 512 bytes, numbers 0 and 1."""
    plain = bytes(range(256)) * 2
    first = crypt.encrypt(IEEE_KEY, 0, plain, 0)
    assert first[:64] == IEEE_4
    assert crypt.encrypt(IEEE_KEY, 1, first, 0)[:32] == IEEE_5
    assert crypt.decrypt(IEEE_KEY, 0, first, 0) == plain


@pytest.mark.parametrize("lba", [0, 1, 255, 256, 0x123456789A, (1 << 64) - 2])
def test_a_unit_is_tweaked_by_its_number(lba):
    data = random.Random(lba).randbytes(1024)
    sealed = crypt.encrypt(SECRET, lba, data, 0)
    assert sealed == xts(SECRET, lba, data[:512], True) + xts(SECRET, lba + 1, data[512:], True)
    assert crypt.decrypt(SECRET, lba, sealed, 0) == data


def test_blocks_below_the_first_stay_plain():
    data = random.Random(1).randbytes(512 * 6)
    sealed = crypt.encrypt(SECRET, 10, data, 13)
    assert sealed[:3 * 512] == data[:3 * 512]
    assert sealed[3 * 512:] == b"".join(xts(SECRET, 13 + i, data[512 * (3 + i):512 * (4 + i)], True) for i in range(3))
    assert crypt.encrypt(SECRET, 10, data, 16) == data
    assert crypt.first_encrypted(BLOCKS) == HALF


def test_a_key_of_two_like_halves_is_a_panic():
    with pytest.raises(Panic, match="two different halves"):
        crypt.encrypt(bytes(32), 0, bytes(512), 0)


# --- what a guest's driver sees is the controller it knows

for name in ("test_shutdown_completes_and_stops_commands", "test_identify_namespace", "test_identify_of_what_is_not_there",
             "test_number_of_queues", "test_features_are_kept_until_reset", "test_features_at_power_on",
             "test_refused_admin_commands_say_why_and_not_to_retry", "test_event_requests_are_held_limited_and_aborted",
             "test_wrong_queues_are_refused", "test_queues_need_the_entry_sizes_in_cc", "test_queues_are_deleted_in_order_and_made_again",
             "test_a_list_at_the_end_of_its_page_goes_on_in_the_next", "test_every_queue_is_served_and_rings_wrap",
             "test_a_full_completion_queue_waits_for_the_host", "test_doorbells_of_no_queue_and_beyond_the_queue_are_ignored"):
    globals()[name] = getattr(test_nvme, name)
"""The controller's own tests, with the core in between."""

def test_registers_are_the_guests_own():
    d = Driver(Behind())
    assert d.read(0, 8) == Driver().read(0, 8) & ~0xFF_0000_0000_0000
    assert d.read(0) | d.read(4) << 32 == d.read(0, 8)
    assert [d.read(o) for o in (0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x38, 0x1000)] == [0x10400] + [0] * 9
    d.write(0x24, 0xFFFFFFFF)
    d.write(0x28, (1 << 64) - 1, 8)
    d.write(0x34, 0x12345678)
    assert (d.read(0x24), d.read(0x28, 8), d.read(0x30, 8)) == (0x0FFF0FFF, 0xFFFF_FFFF_FFFF_F000, 0x12345678 << 32)
    d.write(0x28, 0xABCD, 2)
    assert d.read(0x28, 8) == 0xFFFF_FFFF_FFFF_F000
    assert (d.read(0x0A, 2), d.read(0x09, 1)) == (1, 4)


def test_the_controller_gets_shadow_queues(nvme):
    bar, pages = nvme.base, nvme.pc.pages
    real = nvme.pc.bench.bus
    assert (nvme.read(0x28, 8), nvme.read(0x30, 8), nvme.read(0x14)) == (ASQ, ACQ, 0x460001)
    assert (real.read(bar + 0x28, 8), real.read(bar + 0x30, 8)) == (pages.sq(0), pages.cq(0))
    nvme.add_queue()
    assert nvme.transfer(READ, 0, 8, DATA) == 0
    assert nvme.pc.requests() and not nvme.pc.outside()


def test_identify_offers_what_the_driver_does(nvme):
    page, bare = nvme.identify(1), Driver().enable().identify(1)
    assert page[520:522] == b"\x04\0", "Dataset Management, and no Write Zeroes"
    assert bare[520:522] == b"\x0c\0"
    assert [i for i in range(PAGE) if page[i] != bare[i]] == [520]


def test_interrupts_last_until_the_guest_takes_the_completion(nvme):
    queue = nvme.add_queue(interrupts=True)
    line = next(irq for irq in (10, 11) if irq == nvme.pc.bench.root.find("nvme")[0].irq)
    nvme.pc.lines.levels.clear()
    queue.put(Command(READ, cid=3, nsid=1, prp1=DATA))
    queue.ring()
    nvme.pc.clock.advance(100_000)
    assert nvme.pc.lines.levels[line]
    assert queue.poll(acknowledge=False).cid == 3
    assert nvme.pc.lines.levels[line]
    queue.acknowledge()
    assert not nvme.pc.lines.levels[line]


def test_more_commands_than_tags_complete_each_once():
    d = enabled()
    queue = d.add_queue(size=200)
    for i in range(150):
        queue.put(Command(READ, cid=1000 + i, nsid=1, prp1=DATA + PAGE * i, cdw10=i))
    queue.ring()
    d.pc.clock.advance(10_000_000)
    assert [e.cid for e in iter(queue.poll, None)] == [1000 + i for i in range(150)]
    assert all(d.pc.memory.read(DATA + PAGE * i, 512) == content(i, 1) for i in range(150))
    assert len(d.pc.held.driver.state.tags()) == 0 < TAGS < 150


@pytest.mark.parametrize("size", [2, 3, 7, 256])
def test_admin_queues_of_every_size_wrap(size):
    d = Driver(Behind(), entries=size).enable(acq=ACQ + 0x80000)
    for _ in range(3 * size + 2):
        assert d.identify(0, 1)[:8] == BLOCKS.to_bytes(8, "little")


def test_a_deleted_queues_commands_come_first(nvme):
    queue = nvme.add_queue(size=64)
    for i in range(40):
        queue.put(Command(READ, cid=i, nsid=1, prp1=DATA))
    nvme.admin.put(Command(AdminOpcode.DELETE_SQ, cid=77, cdw10=1))
    queue.ring()
    nvme.admin.ring()
    nvme.pc.clock.advance(5_000_000)
    assert nvme.admin.poll().cid == 77
    assert [e.cid for e in iter(queue.poll, None)] == list(range(40))
    assert nvme.pc.held.driver.state.tags() == []
    assert nvme.status(Command(AdminOpcode.DELETE_CQ, cdw10=1)) == 0
    nvme.add_queue()
    assert nvme.transfer(READ, 7, 1, DATA) == 0


# --- the disk

@pytest.mark.parametrize(("count", "offset"), [(1, 0), (8, 0), (8, 512), (16, 0), (9, 0x204), (64, 0), (256, 0), (256, 0x804)])
@pytest.mark.parametrize("lba", [0, HALF - 4, HALF, BLOCKS - 256])
def test_every_kind_of_prp_through_the_shadow(nvme, lba, count, offset):
    """Plain below the middle, ciphertext above it, and the guest reads what it wrote."""
    nvme.add_queue()
    pages = -(-(offset + count * 512) // PAGE)
    prp2 = DATA + PAGE
    if pages > 2:
        order = [DATA + PAGE * i for i in range(1, pages)]
        random.Random(pages).shuffle(order)
        nvme.pc.memory.write(LISTS + 0x10, b"".join(a.to_bytes(8, "little") for a in order))
        prp2 = LISTS + 0x10
        spread = [DATA, *order]
    else:
        spread = [DATA, DATA + PAGE][:pages]

    def put(data):
        nvme.pc.memory.write(DATA + offset, data[:PAGE - offset % PAGE])
        for i, page in enumerate(spread[1:]):
            nvme.pc.memory.write(page, data[PAGE - offset + PAGE * i:][:PAGE])

    def got():
        rest = b"".join(nvme.pc.memory.read(page, PAGE) for page in spread[1:])
        return (nvme.pc.memory.read(DATA + offset, PAGE - offset) + rest)[:count * 512]

    data = random.Random(lba + count).randbytes(count * 512)
    put(data)
    assert nvme.transfer(WRITE, lba, count, DATA + offset, prp2) == 0
    on_disk = disk_of(nvme).read(lba, count)
    for i in range(count):
        block = data[512 * i:512 * i + 512]
        assert on_disk[512 * i:512 * i + 512] == (block if lba + i < HALF else xts(SECRET, lba + i, block, True)), lba + i
    put(bytes(count * 512))
    assert nvme.transfer(READ, lba, count, DATA + offset, prp2) == 0
    assert got() == data
    assert not nvme.pc.outside()


def test_no_plain_text_of_the_encrypted_part_in_what_the_controller_reaches(nvme):
    nvme.add_queue()
    mark = b"never in the clear" * 14
    nvme.pc.memory.write(DATA, mark)
    assert nvme.transfer(WRITE, HALF + 5, 1, DATA) == nvme.transfer(READ, HALF + 5, 1, DATA + PAGE) == 0
    assert nvme.pc.memory.read(DATA + PAGE, len(mark)) == mark
    shadow = nvme.pc.memory.read(nvme.pc.pages.shadow, SHADOW_PAGES * PAGE)
    assert mark[:16] not in shadow
    assert nvme.transfer(WRITE, 5, 1, DATA) == 0
    assert mark[:16] in nvme.pc.memory.read(nvme.pc.pages.shadow, SHADOW_PAGES * PAGE)


def test_the_key_is_the_one_in_memory_now(nvme):
    nvme.add_queue()
    nvme.pc.memory.write(DATA, b"secret".ljust(512, b"."))
    assert nvme.transfer(WRITE, HALF, 1, DATA) == 0
    other = SECRET[::-1]
    nvme.pc.memory.write(BASE + Part.SECRET, other)
    assert nvme.transfer(READ, HALF, 1, DATA + PAGE) == 0
    assert nvme.pc.memory.read(DATA + PAGE, 512) == xts(other, HALF, disk_of(nvme).read(HALF, 1), False)
    nvme.pc.memory.write(BASE + Part.SECRET, bytes(32))
    with pytest.raises(Panic, match="storage key"):
        nvme.transfer(READ, HALF, 1, DATA)


@pytest.mark.parametrize("lba", [0, HALF])
def test_write_zeroes_is_not_carried_out(nvme, lba):
    nvme.add_queue()
    before = disk_of(nvme).read(lba, 8)
    assert nvme.status(Command(NvmOpcode.WRITE_ZEROES, nsid=1, cdw10=lba, cdw12=7), 1) == Status.INVALID_OPCODE
    assert disk_of(nvme).read(lba, 8) == before


@pytest.mark.parametrize(("opcode", "nsid", "lba", "count", "status"), [
    (READ, 1, BLOCKS, 1, Status.LBA_OUT_OF_RANGE), (READ, 1, BLOCKS - 1, 2, Status.LBA_OUT_OF_RANGE),
    (WRITE, 1, (1 << 64) - 1, 1, Status.LBA_OUT_OF_RANGE), (READ, 0, 0, 1, Status.INVALID_NAMESPACE),
    (WRITE, 2, 0, 1, Status.INVALID_NAMESPACE), (NvmOpcode.FLUSH, 2, 0, 1, Status.INVALID_NAMESPACE),
    (NvmOpcode.DATASET_MANAGEMENT, 0, 0, 1, Status.INVALID_NAMESPACE), (READ, 1, 0, 257, Status.INVALID_FIELD),
    (WRITE, 1, 0, 1024, Status.INVALID_FIELD), (0x7F, 1, 0, 1, Status.INVALID_OPCODE), (NvmOpcode.FLUSH, 1, 0, 1, Status.SUCCESS),
    (NvmOpcode.FLUSH, 0xFFFFFFFF, 0, 1, Status.SUCCESS), (NvmOpcode.DATASET_MANAGEMENT, 1, 0, 1, Status.SUCCESS)])
def test_status_of_io_commands(nvme, opcode, nsid, lba, count, status):
    nvme.add_queue()
    command = Command(opcode, nsid=nsid, prp1=DATA, prp2=DATA + PAGE, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=count - 1)
    assert nvme.queues[1].run(command).status == (status | DNR if status else 0)


def test_a_log_page_leaves_nothing_of_others_in_the_guests_memory(nvme):
    nvme.add_queue()
    assert nvme.transfer(READ, 0, 256, DATA, prp_list(nvme, DATA, 32)) == 0
    nvme.pc.memory.write(DATA, b"\xaa" * 2 * PAGE)
    assert nvme.status(Command(AdminOpcode.GET_LOG_PAGE, prp1=DATA, cdw10=(2048 // 4 - 1) << 16 | 2)) == 0
    assert nvme.pc.memory.read(DATA, PAGE) == bytes(2048) + b"\xaa" * 2048
