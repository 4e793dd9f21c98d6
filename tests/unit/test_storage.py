"""NVME_DRIVER: the core's own NVMe driver between a guest and its controller, and the disk that it encrypts."""

import random
from dataclasses import replace

import pytest
import test_nvme
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nvme_driver import ACQ, ASQ, BLOCKS, DATA, LISTS, PAGE, READ, WRITE, Driver, content, disk_of
from pci_bench import HOST_BRIDGE, NVME, Bench
from storage_bench import BASE, SECRET, SIZE, Behind, enabled

from hvcore import Config, Machine
from hvcore.errors import BadConfig
from hvcore.machine.description import BarDescription
from hvcore.sources import load, shipped
from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode, Status
from hvcore.vmm.heap import Panic
from hvcore.vmm.layout import Part
from hvcore.vmm.storage import crypt
from hvcore.vmm.storage.layout import SHADOW_PAGES, TAGS, Phase

HALF = BLOCKS // 2
DNR = 1 << 14


def xts(key, lba, data, encrypt):
    """AES-XTS of one data unit by IEEE 1619's own steps over plain AES: nothing of a library's XTS."""
    def aes(half, block, inward):
        cipher = Cipher(algorithms.AES(half), modes.ECB())
        return (cipher.encryptor() if inward else cipher.decryptor()).update(block)

    tweak = int.from_bytes(aes(key[16:], lba.to_bytes(16, "little"), True), "little")
    out = b""
    for at in range(0, len(data), 16):
        mask = tweak.to_bytes(16, "little")
        block = bytes(a ^ b for a, b in zip(data[at:at + 16], mask, strict=True))
        out += bytes(a ^ b for a, b in zip(aes(key[:16], block, encrypt), mask, strict=True))
        tweak = (tweak << 1 ^ (0x87 if tweak >> 127 else 0)) & (1 << 128) - 1
    return out


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
    assert nvme.transfer(READ, 0, 256, DATA, _list(nvme, DATA, 32)) == 0
    nvme.pc.memory.write(DATA, b"\xaa" * 2 * PAGE)
    assert nvme.status(Command(AdminOpcode.GET_LOG_PAGE, prp1=DATA, cdw10=(2048 // 4 - 1) << 16 | 2)) == 0
    assert nvme.pc.memory.read(DATA, PAGE) == bytes(2048) + b"\xaa" * 2048


def _list(d, first, pages, at=LISTS):
    d.pc.memory.write(at, b"".join((first + PAGE * i).to_bytes(8, "little") for i in range(1, pages)))
    return at


# --- the deputy is not confused

FOREIGN = {"the core's text": BASE, "the core's secret": BASE + Part.SECRET, "its last page": BASE + SIZE - PAGE, "no memory": 0xF000_0000,
           "beyond the processor": 1 << 40, "an alias of RAM": 1 << 48 | DATA, "the end of all": (1 << 64) - PAGE}


@pytest.mark.parametrize("where", FOREIGN)
@pytest.mark.parametrize("way", ["prp1", "prp2", "list", "in the list", "chain"])
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_an_address_that_is_not_the_guests_is_refused(nvme, where, way, opcode):
    nvme.add_queue()
    address, count = FOREIGN[where], {"prp1": 8, "prp2": 16}.get(way, 64)
    prp1, prp2 = DATA, DATA + PAGE
    if way == "prp1":
        prp1 = address
    elif way in ("prp2", "list"):
        prp2 = address
    elif way == "in the list":
        prp2 = _list(nvme, DATA, 8)
        nvme.pc.memory.write64(LISTS + 8 * 5, address)
    else:
        prp2 = LISTS + PAGE - 8
        nvme.pc.memory.write64(prp2, address)
    nvme.pc.memory.write(DATA, b"\x55" * PAGE * 8)
    core, disk, data = nvme.pc.core_memory(), disk_of(nvme).read(0, 64), nvme.pc.memory.read(DATA, PAGE * 8)
    assert nvme.transfer(opcode, 0, count, prp1, prp2) in (Status.DATA_TRANSFER_ERROR, Status.PRP_OFFSET_INVALID)
    assert nvme.pc.core_memory() == core
    assert disk_of(nvme).read(0, 64) == disk
    assert nvme.pc.memory.read(DATA, PAGE * 8) == data
    assert not nvme.pc.outside()
    assert nvme.transfer(READ, 1, 1, DATA) == 0, "the next one is served"


@pytest.mark.parametrize("where", FOREIGN)
def test_queues_that_are_not_the_guests_are_refused(nvme, where):
    address = FOREIGN[where]
    core = nvme.pc.core_memory()
    for opcode in (AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ):
        assert nvme.status(Command(opcode, prp1=address, cdw10=0x000F0001, cdw11=1 << 16 | 1)) in (Status.INVALID_FIELD, Status.CQ_INVALID)
    long = Command(AdminOpcode.CREATE_CQ, prp1=BASE - PAGE, cdw10=0x03FF0001, cdw11=1)
    assert nvme.status(long) == Status.INVALID_FIELD, "it begins in the guest's memory and ends in the core's"
    nvme.disable()
    for asq, acq in ((address, ACQ), (ASQ, address)):
        d = Driver(nvme.pc)
        d.write(0x24, 0x70007)
        d.write(0x28, asq, 8)
        d.write(0x30, acq, 8)
        d.write(0x14, 0x460001)
        assert d.wait(3) == 2
        d.disable()
    assert nvme.pc.core_memory() == core
    assert nvme.enable().identify(0, 1)[:8] == BLOCKS.to_bytes(8, "little")


def test_identify_and_logs_do_not_write_to_the_core(nvme):
    core = nvme.pc.core_memory()
    for address in FOREIGN.values():
        for command in (Command(AdminOpcode.IDENTIFY, prp1=address, cdw10=1),
                        Command(AdminOpcode.GET_LOG_PAGE, prp1=address, cdw10=0x7F0002),
                        Command(AdminOpcode.IDENTIFY, prp1=DATA + 0x800, prp2=address, cdw10=1)):
            assert nvme.status(command) == Status.DATA_TRANSFER_ERROR
    assert nvme.pc.core_memory() == core


def test_a_list_that_changes_under_way_does_not_lead_elsewhere(nvme):
    """The pages were noted when the command was taken: what the guest writes into its list afterwards means nothing."""
    queue = nvme.add_queue()
    queue.put(Command(READ, cid=1, nsid=1, prp1=DATA, prp2=_list(nvme, DATA, 8), cdw12=63))
    queue.ring()
    core = nvme.pc.core_memory()
    _list(nvme, BASE, 8)
    nvme.pc.clock.advance(1_000_000)
    assert queue.poll().status == 0
    assert nvme.pc.memory.read(DATA, 64 * 512) == content(0, 64)
    assert nvme.pc.core_memory() == core


def test_completions_are_not_taken_before_they_were_given(nvme):
    """A head that runs ahead would let the controller write over what the core has not seen."""
    queue = nvme.add_queue(size=8)
    for head in (5, 3, 7, 1, 0):
        nvme.write(0x100C, head)
        assert nvme.pc.root.find("nvme")[0].completions[1].head == 0
    for round_ in range(30):
        assert nvme.transfer(READ, round_, 1, DATA) == 0
        nvme.write(0x100C, (queue.head + 3) % 8)


OPCODES = [*AdminOpcode, *NvmOpcode, 0x0D, 0x15, 0x7C, 0x80, 0xC0]


def _noise(d, rng):
    """One thing that a hostile guest might do."""
    address = rng.choice([*FOREIGN.values(), DATA, DATA + 8, LISTS, LISTS + PAGE - 8, ASQ, ACQ, BASE - PAGE, BASE + SIZE,
                          rng.getrandbits(64), rng.getrandbits(26), d.pc.pages.shadow, d.pc.pages.state, d.pc.pages.sq(0)])
    kind = rng.random()
    if kind < 0.6:
        number = rng.choice([0, 0, 1, 1, 2, 3])
        base = d.queues[0].sq if number == 0 else 0x400000 + 0x20000 * number
        fields = {n: rng.choice([0, 1, 2, 7, rng.getrandbits(16), rng.getrandbits(32), 1 << 16 | 1, 15 << 16 | number, 255])
                  for n in ("cdw10", "cdw11", "cdw12", "cdw13")}
        other = rng.choice([address, DATA + PAGE, LISTS, rng.getrandbits(64)])
        prps = (address, other) if rng.random() < 0.5 else (DATA, other)
        command = Command(rng.choice(OPCODES), rng.choice([0, 0, 0, rng.getrandbits(8)]), rng.getrandbits(16),
                          rng.choice([1, 1, 0, rng.getrandbits(32)]), rng.getrandbits(32), rng.getrandbits(64), *prps, **fields)
        if number and rng.random() < 0.7:
            command = command._replace(opcode=rng.choice([READ, WRITE]), flags=0, nsid=1, cdw10=rng.randrange(BLOCKS), cdw11=0,
                                       cdw12=rng.randrange(300))
        d.pc.memory.write(base + 64 * rng.randrange(8), command.pack())
        d.write(0x1000 + 8 * number, rng.choice([rng.randrange(8), rng.getrandbits(16)]))
    elif kind < 0.75:
        d.write(0x1000 + 4 * rng.randrange(40), rng.choice([rng.randrange(8), rng.getrandbits(32)]), rng.choice([4, 4, 8, 2, 1]))
    elif kind < 0.8:
        d.pc.memory.write64(LISTS + 8 * rng.randrange(512), address)
    elif kind < 0.83:
        offset = rng.choice([0, 8, 0xC, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x20, 0x38, 0xFFC, 0x1FF8])
        d.write(offset, rng.choice([0, 0x460001, address, rng.getrandbits(32), 0x464001, 0x70007]), rng.choice([4, 4, 8]))
    elif kind < 0.86:
        d.read(rng.randrange(0x2000), rng.choice([1, 2, 4, 8]))
    else:
        d.pc.clock.advance(rng.choice([1000, 20_000, 200_000]))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_guest_does_the_core_stays_whole(seed):
    """Hostile commands, addresses, doorbells, registers and lists: no crash, no write to the core, no address for the controller."""
    rng = random.Random(seed)
    d = enabled()
    for number in (1, 2, 3):
        d.add_queue(number, 8)
    core, served = d.pc.core_memory(), 0
    for step in range(700):
        _noise(d, rng)
        if step % 100 == 99:
            served += bool(d.pc.requests())
            assert not d.pc.outside()
            d.pc.gate.seen.clear()
            assert d.pc.core_memory() == core
            d.disable()
            d.enable()
            for number in (1, 2, 3):
                d.add_queue(number, 8)
    assert served == 7
    assert d.transfer(READ, 3, 1, DATA) == 0
    assert d.pc.memory.read(DATA, 512) == disk_of(d).read(3, 1)


def _orderly(rng):
    """A command that both a bare controller and the core's driver understand alike."""
    lba, count = rng.randrange(HALF - 40), rng.choice([1, 2, 8, 9, 16, 17, 33])
    kind = rng.randrange(8)
    prp1 = DATA + PAGE * rng.randrange(4) + rng.choice([0, 0, 512, 4, 2])
    prp2 = rng.choice([DATA + PAGE * 5, LISTS, LISTS + 8, DATA + 12])
    if kind < 5:
        return 1, Command(rng.choice([READ, WRITE]), nsid=rng.choice([1, 1, 1, 2]), prp1=prp1, prp2=prp2,
                          cdw10=rng.choice([lba, lba, lba, BLOCKS]), cdw12=count - 1)
    if kind == 5:
        return 1, Command(rng.choice([NvmOpcode.FLUSH, NvmOpcode.DATASET_MANAGEMENT, 0x55]), nsid=rng.choice([1, 0]), prp1=DATA, prp2=prp2)
    if kind == 6:
        return 0, Command(rng.choice([AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES]), cdw10=rng.choice([1, 4, 6, 7, 9, 0xD, 0x306]),
                          cdw11=rng.getrandbits(8))
    return 0, Command(AdminOpcode.IDENTIFY, nsid=1, prp1=prp1, prp2=prp2, cdw10=rng.choice([0, 2, 3, 5]))


@pytest.mark.parametrize("seed", range(6))
def test_the_same_guest_with_and_without_the_core_in_between(seed):
    """Every completion, the guest's memory and the plain half of the disk are the same after each of 150 commands.

    Where a command is wrong in two ways, the core looks at its pages before the controller looks at its blocks.
    """
    both = [enabled(), Driver().enable()]
    for d in both:
        d.add_queue(1, 8)
    rng = random.Random(seed)
    for number in range(150):
        queue, command = _orderly(rng)
        command = command._replace(cid=number)
        fill = rng.randbytes(64)
        answers = []
        for d in both:
            d.pc.memory.write(DATA + 0x100, fill)
            _list(d, DATA + PAGE * 8, 16)
            answers.append(d.queues[queue].run(command))
        if answers[0].status == Status.PRP_OFFSET_INVALID | DNR and answers[1].status:
            answers[0] = answers[0]._replace(status=answers[1].status)
        assert answers[0] == answers[1], command
        assert both[0].pc.memory.read(DATA, 32 * PAGE) == both[1].pc.memory.read(DATA, 32 * PAGE), command
    assert disk_of(both[0]).read(0, HALF) == disk_of(both[1]).read(0, HALF)


# --- what goes wrong

def test_a_controller_that_fails_at_once(nvme):
    """The shadow cannot be reached: the mended core tells the guest, the stubborn one panics."""
    nvme.disable()
    nvme.pc.gate.blocks = lambda request: True
    d = Driver(nvme.pc)
    d.write(0x24, 0x70007)
    d.write(0x28, ASQ, 8)
    d.write(0x30, ACQ, 8)
    d.write(0x14, 0x460001)
    assert d.wait(3) == 2
    assert "the controller has failed" in nvme.pc.console[-1]
    nvme.pc.gate.blocks = lambda request: False
    d.disable()
    assert d.enable().identify(0, 1)[:8] == BLOCKS.to_bytes(8, "little")
    stubborn = Driver(Behind(stubborn=True))
    stubborn.pc.gate.blocks = lambda request: True
    with pytest.raises(Panic, match="no answer to Identify Namespace, CSTS=0x2"):
        stubborn.enable()


def test_a_controller_that_is_not_there_for_a_while(nvme):
    """Decoding off, as software does when it sizes base address registers."""
    nvme.add_queue()
    command = nvme.pc.config_read(NVME.source, 4, 2)
    nvme.pc.config_write(NVME.source, 4, command & ~2, 2)
    assert nvme.read(0x1C) == 0xFFFFFFFF
    nvme.pc.clock.advance(1_000_000)
    nvme.pc.config_write(NVME.source, 4, command, 2)
    assert nvme.transfer(READ, 0, 1, DATA) == 0


def test_a_controller_that_is_gone_while_it_starts():
    d = Driver(Behind())
    d.write(0x24, 0x70007)
    d.write(0x28, ASQ, 8)
    d.write(0x30, ACQ, 8)
    d.write(0x14, 0x460001)
    command = d.pc.config_read(NVME.source, 4, 2)
    d.pc.config_write(NVME.source, 4, command & ~2, 2)
    d.pc.clock.advance(1_000_000)
    assert d.pc.held.driver.phase == Phase.ENABLING
    d.pc.config_write(NVME.source, 4, command, 2)
    assert d.wait(3) == 1


def test_no_more_event_requests_than_tags_can_bear(nvme):
    """Those beyond the limit do not reach the controller, whatever it would hold."""
    for cid in range(7):
        nvme.admin.put(Command(AdminOpcode.ASYNC_EVENT_REQUEST, cid=cid))
    nvme.admin.ring()
    nvme.pc.clock.advance(1_000_000)
    assert [(e.cid, e.status & ~DNR) for e in iter(nvme.admin.poll, None)] == [(cid, Status.ASYNC_EVENT_LIMIT) for cid in (4, 5, 6)]
    entries = nvme.pc.memory.read(nvme.pc.pages.sq(0), PAGE)
    assert entries[::64].count(AdminOpcode.ASYNC_EVENT_REQUEST) == 4


@pytest.mark.parametrize("seed", range(40))
def test_damaged_records_are_a_panic_at_worst(seed):
    """Whatever a device that reaches them leaves in the driver's pages, nothing but a panic or a failed controller comes of it."""
    rng = random.Random(seed)
    d = enabled()
    d.add_queue()
    start, end = d.pc.driver_pages
    for _ in range(30):
        state = d.pc.pages.state
        at = rng.choice([state + rng.randrange(3 * PAGE - 8), rng.randrange(start, d.pc.pages.buffer(0)), state + rng.randrange(0x40),
                         state + PAGE + rng.randrange(TAGS * 512 - 8)])
        d.pc.memory.write(at, rng.choice([rng.randbytes(rng.choice([1, 2, 8])), rng.randrange(1, 40).to_bytes(8, "little")]))
        try:
            d.queues[1].put(Command(READ, nsid=1, prp1=DATA, prp2=LISTS, cdw10=HALF, cdw12=rng.randrange(256)))
            d.queues[1].ring()
            d.pc.clock.advance(50_000)
        except Panic:
            break
    assert end - start == (SHADOW_PAGES + 3) * PAGE


def test_what_is_not_driven_is_said():
    nothing = Behind(pci=(HOST_BRIDGE,))
    assert nothing.held is None
    assert nothing.console == ["nvme: no controller"]
    nowhere = Behind(pci=(HOST_BRIDGE, replace(NVME, bars=(BarDescription(0, "mem64", 0x1000),))))
    assert nowhere.held is None
    assert nowhere.console == ["nvme: 00:02.0: its registers do not lie in memory, not driven"]


def test_one_guest_only():
    with pytest.raises(BadConfig, match="NVME_DRIVER=y drives the controller for one guest"):
        Config(NVME_DRIVER=True, TINYVISOR=True)


# --- on whole machines

LAST = 131071


@pytest.fixture(scope="module")
def six():
    with Machine.load("q35-6g") as machine:
        yield machine


def lab_disk(machine):
    return machine.pc.root.find("nvme")[0].disk


@pytest.mark.parametrize("options", [{"VTD_TRANS": False}, {"PROFILE": "mended"}, {"PROFILE": "mended", "VTD_TRANS": False},
                                     {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False},
                                     {"QUIRKS": "AGAW_FROM_LAST_UNIT,SCOPE_BY_EXACT_FUNCTION"}])
def test_the_guest_has_its_disk_and_the_disk_has_ciphertext(six, options):
    run = six.boot(Config(NVME_DRIVER=True, **options))
    assert run.outcome == "up", run.why
    assert "64 blocks read, checked" in run.console.guest
    assert f"block {LAST} written, flushed, read back" in run.console.guest
    assert "nvme: 00:02.0: 131072 blocks, encrypted from block 65536 on" in run.console.vmm
    block = lab_disk(six).read(LAST, 1)
    key = six.pc.memory.read(run.vmm.base + Part.SECRET, 32)
    plain = xts(key, LAST, block, False)
    assert b"HVLABBLK" not in block
    assert plain[:16] == b"HVLABBLK" + LAST.to_bytes(8, "little")
    assert lab_disk(six).read(0, 1)[:8] == b"HVLABBLK"
    shown = run.guest.command(f"nvme read {LAST}")
    assert f"block {LAST}: checked" in shown
    assert plain[16:32].hex(" ") == shown.splitlines()[1][18:66].replace("  ", " ")


def test_probed_again_stopped_and_resumed(six):
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    for _ in range(3):
        assert "written, flushed, read back" in run.guest.command("nvme probe")
    key = six.pc.memory.read(run.vmm.base + Part.SECRET, 32)
    assert xts(key, LAST, lab_disk(six).read(LAST, 1), False)[16:24] == (3).to_bytes(8, "little"), "the seed grows with each start"
    six.key_in("nvme probe\n")
    for _ in range(60):
        six.step_exit()
    assert six.run.outcome == "stopped"
    six.resume()
    assert six.run.outcome == "up"
    assert run.console.guest.count("written, flushed, read back") == 5


def test_a_domain_of_its_own_with_the_shadow_and_nothing_else(six):
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    zero, own = run.domains
    shadow = six.core.storage.shadow
    assert (own.did, own.devices) == (1, (NVME.source,))
    assert [(r.start, r.end, r.perm) for r in own.runs] == [(*shadow, "rw")]
    assert NVME.source not in zero.devices
    assert run.vmm.base <= shadow[0] < shadow[1] <= run.vmm.base + run.vmm.size
    for address in (0, 0x100000, 0x1000000, 4 << 30, run.vmm.base, run.vmm.base + Part.SECRET, shadow[0] - PAGE, shadow[1],
                    six.core.storage.driver.pages.state, own.root):
        for access in ("read", "write"):
            assert run.what_if(NVME.source, address, access).reason == {"read": 6, "write": 5}[access]
    assert run.what_if(NVME.source, shadow[0]).host == shadow[0]
    for address in (shadow[0], shadow[1] - PAGE):
        assert "no data arrived" in run.guest.command(f"dma r {address:#x} 16")
    assert {f.source for f in run.faults} == {0x18}


def test_the_drive_is_no_weapon_and_a_stolen_key_opens_the_disk(six):
    config = Config(VTD_TRANS=False, NVME_DRIVER=True)
    attack = six.attack("steal-key", config, "nvme")
    assert attack.verdict == "blocked"
    assert six.attack("steal-key", config.change(NVME_DRIVER=False), "nvme").verdict == "succeeded"
    stolen = six.attack("steal-key", config, "edu")
    assert stolen.verdict == "succeeded"
    assert xts(bytes.fromhex(stolen.proof["key"]), LAST, lab_disk(six).read(LAST, 1), False)[:8] == b"HVLABBLK"
    assert six.attack("steal-key", Config(PROFILE="mended", NVME_DRIVER=True), "nvme").verdict == "blocked"


@pytest.mark.parametrize("name", [*shipped()])
def test_every_machine_that_is_up_without_it_is_up_with_it(name):
    with Machine.load(name) as machine:
        run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
        assert run.outcome == "up"
        assert "driven by the core" in run.console.vmm
        assert "written, flushed, read back" in run.console.guest


def test_phases_are_read_from_memory(six):
    six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True))
    driver = six.core.storage.driver
    assert driver.phase == six.pc.memory.read64(driver.pages.state) == Phase.READY


def test_a_bench_without_the_core_sees_the_guests_addresses():
    """What `outside` must find, it finds: on a bare controller every request is the guest's."""
    d = Driver(Bench()).enable()
    assert all(not BASE <= r.iova < BASE + SIZE for r in d.pc.gate.seen)
    d.identify(1)
    assert d.pc.gate.seen


def test_a_controller_behind_a_bridge_that_speaks_for_it():
    """Its unit knows it as 02:00.0: the bridge's secondary bus, function 0.  edu, which shares that id, cannot get another domain."""
    description = load("q35-2g-bridges")
    moved = replace(next(f for f in description.pci if f.source == NVME.source), source=0x228)
    description = replace(description, pci=(*(f for f in description.pci if f.source != NVME.source), moved))
    with Machine(description) as machine:
        run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
        assert run.outcome == "up", run.why
        own = next(d for d in run.domains if d.did == 1)
        assert own.devices == (0x200, 0x228)
        assert "02:04.0 has the requester id of the core's NVMe: it reaches the shadow only" in run.console.vmm
        assert [(r.start, r.end) for r in own.runs] == [machine.core.storage.shadow]


@pytest.mark.parametrize("seed", range(10))
def test_noise_in_the_drivers_pages_ends_in_an_outcome(seed, six):
    rng = random.Random(seed)
    run = six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True))
    pages = six.core.storage.driver.pages
    for _ in range(10):
        page = rng.choice([pages.state, pages.state + PAGE, pages.state + 2 * PAGE, pages.cq(0), pages.cq(1), pages.sq(0), pages.sq(1)])
        six.pc.memory.write(page + rng.randrange(PAGE - 64), rng.randbytes(rng.choice([1, 8, 64])))
        if run.outcome == "up":
            run.guest.command(rng.choice(["nvme read 5", "nvme read 131071", "nvme probe"]))
    assert run.outcome in ("up", "disk-lost", "vmm-panic")
    assert six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True)).outcome == "up"


def test_a_guest_that_moves_the_registers_away_reaches_no_more(six):
    """Without the trap it commands the controller itself, which still has domain 1: its own queue in the guest's memory faults."""
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    bus, elsewhere, queue = six.pc.bus, 0xE8000000, 0x2000000
    for register, value in ((0x10, elsewhere), (0x14, 0)):
        run.guest.command(f"out 0xcf8 {1 << 31 | NVME.source << 8 | register:#x} 4")
        run.guest.command(f"out 0xcfc {value:#x} 4")
    assert bus.read(elsewhere, 4) & 0xFFFF == 1023
    for offset, value in ((0x14, 0), (0x24, 0x70007), (0x28, queue), (0x2C, 0), (0x30, queue + PAGE), (0x34, 0), (0x14, 0x460001)):
        run.guest.command(f"poke {elsewhere + offset:#x} {value:#x}")
    six.pc.clock.advance(1_000_000)
    assert bus.read(elsewhere + 0x1C, 4) == 1
    run.guest.command(f"poke {elsewhere + 0x1000:#x} 1")
    six.pc.clock.advance(1_000_000)
    assert bus.read(elsewhere + 0x1C, 4) == 2
    fault, = run.faults
    assert (fault.source, fault.access, fault.reason, fault.address) == (NVME.source, "read", 6, queue)
    run.guest.command("nvme read 5")
    assert run.outcome in ("up", "disk-lost")
    assert six.core.text_intact()
