"""The NVMe controller against a driver that knows it only by its specification."""


import pytest
from nvme_driver import ASQ, BLOCKS, DATA, DNR, LISTS, PAGE, READ, WRITE, Driver, content, disk_of

from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode, Status


@pytest.fixture
def nvme() -> Driver:
    return Driver().enable()


# Registers and life cycle

def test_registers_at_power_on() -> None:
    d = Driver()
    cap = d.read(0, 8)
    assert (cap & 0xFFFF, cap >> 16 & 1, cap >> 24 & 0xFF, cap >> 32 & 0xF, cap >> 37 & 0xFF, cap >> 48) == (1023, 1, 15, 0, 1, 0)
    assert d.read(0x00) | d.read(0x04) << 32 == cap and d.read(0x08) == 0x00010400
    assert [d.read(o) for o in (0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x1000)] == [0] * 11
    assert d.read(0x0A, 2) == 1 and d.read(0x09, 1) == 4
    assert d.read(0x3000, 8) == 0 and [d.read(o) for o in (0x2000, 0x2004, 0x2008, 0x200C)] == [0, 0, 0, 1]


def test_read_only_registers_and_reserved_bits_hold() -> None:
    d = Driver()
    cap = d.read(0, 8)
    for offset in (0x00, 0x04, 0x08, 0x1C, 0x38):
        d.write(offset, 0xFFFFFFFF)
    assert (d.read(0, 8), d.read(0x08), d.read(0x1C), d.read(0x38)) == (cap, 0x00010400, 0, 0)
    d.write(0x24, 0xFFFFFFFF)
    d.write(0x28, (1 << 64) - 1, 8)
    d.write(0x34, 0x12345678)
    assert (d.read(0x24), d.read(0x28, 8), d.read(0x30, 8)) == (0x0FFF0FFF, 0xFFFF_FFFF_FFFF_F000, 0x12345678 << 32)
    d.write(0x28, 0xABCD, 2)
    assert d.read(0x28, 8) == 0xFFFF_FFFF_FFFF_F000, "a narrow store is lost"


def test_enable_takes_time_and_disable_does_not() -> None:
    d = Driver()
    d.begin()
    assert d.read(0x1C) == 0
    d.pc.clock.advance(100_000)
    assert d.read(0x1C) == 1
    d.disable()
    assert d.read(0x1C) == 0 and d.read(0x28, 8) == ASQ


def test_enable_cut_short_never_becomes_ready() -> None:
    d = Driver()
    d.write(0x24, 0x00070007)
    d.write(0x14, 0x460001)
    d.disable()
    d.pc.clock.advance(10_000_000)
    assert d.read(0x1C) == 0


@pytest.mark.parametrize(("cc", "aqa"), [(0x460011, 0x70007), (0x460081, 0x70007), (0x460801, 0x70007), (0x460001, 0x70000), (0x460001, 7)])
def test_an_unsupported_configuration_is_fatal(cc: int, aqa: int) -> None:
    d = Driver()
    d.write(0x24, aqa)
    d.write(0x14, cc)
    assert d.wait(3) == 2


@pytest.mark.parametrize("how", [1, 2])
def test_shutdown_completes_and_stops_commands(nvme: Driver, how: int) -> None:
    nvme.write(0x14, 0x460001 | how << 14)
    assert nvme.read(0x1C) == 1
    assert nvme.wait(0xC) == 0x9
    nvme.admin.put(Command(AdminOpcode.IDENTIFY, prp1=DATA, cdw10=1))
    nvme.admin.ring()
    nvme.pc.clock.advance(1_000_000)
    assert nvme.admin.poll() is None
    nvme.write(0x14, 0)
    assert nvme.enable().identify(1)[2:4] == b"\xf4\x1a"


# Admin commands

def test_identify_controller_byte_for_byte(nvme: Driver) -> None:
    fields = {0: bytes.fromhex("361bf41a"), 4: b"HVLAB-0000:00:02.0".ljust(20), 24: b"hvlab NVMe controller".ljust(40), 64: b"1".ljust(8),
              72: b"\x06", 77: b"\x05", 80: bytes.fromhex("00040100"), 258: bytes([3, 3, 3]), 512: b"\x66\x44",
              516: bytes([1, 0, 0, 0, 0x0C]), 525: b"\x01", 768: b"nqn.2014-08.org.nvmexpress:hvlab:0000:00:02.0", 2048: b"\xc4\x09"}
    expected = bytearray(PAGE)
    for offset, value in fields.items():
        expected[offset:offset + len(value)] = value
    assert nvme.identify(1) == expected


def test_identify_namespace(nvme: Driver) -> None:
    page = nvme.identify(0, 1)
    assert [int.from_bytes(page[o:o + 8], "little") for o in (0, 8, 16)] == [BLOCKS] * 3
    assert page[25] == page[26] == 0 and page[130] == 9
    assert nvme.identify(2) == (1).to_bytes(4, "little") + bytes(PAGE - 4)
    assert nvme.identify(2, 1) == bytes(PAGE)
    assert nvme.identify(3, 1)[:12] == bytes([1, 8, 0, 0]) + page[120:128]


@pytest.mark.parametrize(("cns", "nsid", "status"), [(0, 0, 0xB), (0, 2, 0xB), (0, 0xFFFFFFFF, 0xB), (3, 9, 0xB), (2, 0xFFFFFFFE, 0xB),
                                                     (6, 0, 2), (0x10, 1, 2)])
def test_identify_of_what_is_not_there(nvme: Driver, cns: int, nsid: int, status: int) -> None:
    assert nvme.status(Command(AdminOpcode.IDENTIFY, nsid=nsid, prp1=DATA, cdw10=cns)) == status


def test_number_of_queues(nvme: Driver) -> None:
    for opcode in (AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES):
        entry = nvme.admin.run(Command(opcode, cdw10=7, cdw11=0))
        assert (entry.status, entry.result) == (0, 0x000F000F)
    assert nvme.status(Command(AdminOpcode.SET_FEATURES, cdw10=7, cdw11=0xFFFF0000)) == Status.INVALID_FIELD
    nvme.add_queue()
    assert nvme.status(Command(AdminOpcode.SET_FEATURES, cdw10=7)) == Status.COMMAND_SEQUENCE


def test_features_are_kept_until_reset(nvme: Driver) -> None:
    def get(select: int) -> int:
        return nvme.admin.run(Command(AdminOpcode.GET_FEATURES, cdw10=select << 8 | 6)).result

    assert get(0) == 1
    assert nvme.status(Command(AdminOpcode.SET_FEATURES, cdw10=6, cdw11=0)) == 0
    assert (get(0), get(1), get(3)) == (0, 1, 4)
    nvme.disable()
    nvme.enable()
    assert get(0) == 1


@pytest.mark.parametrize(("feature", "value"), [(1, 0), (2, 0), (4, 0x157), (5, 0), (6, 1), (8, 0), (9, 0x10000), (10, 0), (11, 0)])
def test_features_at_power_on(nvme: Driver, feature: int, value: int) -> None:
    entry = nvme.admin.run(Command(AdminOpcode.GET_FEATURES, cdw10=feature))
    assert (entry.status, entry.result) == (0, value)


def test_every_interrupt_vector_tells_that_it_never_coalesces(nvme: Driver) -> None:
    replies = [nvme.admin.run(Command(AdminOpcode.GET_FEATURES, cdw10=9, cdw11=number)) for number in (0, 16, 17)]
    assert [(r.status & ~DNR, r.result) for r in replies] == [(0, 0x10000), (0, 0x10010), (Status.INVALID_FIELD, 0)]


@pytest.mark.parametrize(("command", "status"), [
    (Command(AdminOpcode.SET_FEATURES, cdw10=1 << 31 | 6), Status.FEATURE_NOT_SAVEABLE),
    (Command(AdminOpcode.SET_FEATURES, cdw10=9), Status.FEATURE_NOT_CHANGEABLE),
    (Command(AdminOpcode.SET_FEATURES, cdw10=0xD), Status.INVALID_FIELD),
    (Command(AdminOpcode.GET_FEATURES, cdw10=0xC), Status.INVALID_FIELD),
    (Command(AdminOpcode.GET_LOG_PAGE, prp1=DATA, cdw10=0x7F0005), Status.INVALID_LOG_PAGE),
    (Command(0x18), Status.INVALID_OPCODE), (Command(0x80), Status.INVALID_OPCODE), (Command(0xFF), Status.INVALID_OPCODE),
    (Command(AdminOpcode.IDENTIFY, flags=0x40, prp1=DATA, cdw10=1), Status.INVALID_FIELD),
    (Command(AdminOpcode.IDENTIFY, flags=0x01, prp1=DATA, cdw10=1), Status.INVALID_FIELD),
    (Command(AdminOpcode.IDENTIFY, prp1=DATA + 1, cdw10=1), Status.PRP_OFFSET_INVALID),
    (Command(AdminOpcode.IDENTIFY, prp1=DATA + 8, prp2=DATA + 0x2008, cdw10=1), Status.PRP_OFFSET_INVALID)])
def test_refused_admin_commands_say_why_and_not_to_retry(nvme: Driver, command: Command, status: Status) -> None:
    assert nvme.admin.run(command).status == status | 1 << 14


@pytest.mark.parametrize(("page", "asked", "size"), [(1, 64, 64), (2, 512, 512), (3, 512, 512), (2, 1024, 512), (2, 16, 16)])
def test_log_pages_are_zeros_of_their_size(nvme: Driver, page: int, asked: int, size: int) -> None:
    nvme.pc.memory.write(DATA, b"\xaa" * 1024)
    assert nvme.status(Command(AdminOpcode.GET_LOG_PAGE, nsid=0xFFFFFFFF, prp1=DATA, cdw10=(asked // 4 - 1) << 16 | page)) == 0
    assert nvme.pc.memory.read(DATA, 1024) == bytes(size) + b"\xaa" * (1024 - size)


def test_the_upper_half_of_a_log_length_counts(nvme: Driver) -> None:
    nvme.pc.memory.write(DATA, b"\xaa" * 1024)
    assert nvme.status(Command(AdminOpcode.GET_LOG_PAGE, prp1=DATA, cdw10=3 << 16 | 2, cdw11=1)) == 0
    assert nvme.pc.memory.read(DATA, 513) == bytes(512) + b"\xaa"


def test_event_requests_are_held_limited_and_aborted(nvme: Driver) -> None:
    for cid in range(4):
        nvme.admin.put(Command(AdminOpcode.ASYNC_EVENT_REQUEST, cid=cid))
    nvme.admin.ring()
    nvme.pc.clock.advance(1_000_000)
    assert nvme.admin.poll() is None
    assert nvme.status(Command(AdminOpcode.ASYNC_EVENT_REQUEST, cid=4)) == Status.ASYNC_EVENT_LIMIT
    nvme.admin.put(Command(AdminOpcode.ABORT, cid=50, cdw10=2 << 16))
    nvme.admin.ring()
    nvme.pc.clock.advance(1_000_000)
    aborted, abort = nvme.admin.poll(), nvme.admin.poll()
    assert aborted and (aborted.cid, aborted.status) == (2, Status.ABORT_REQUESTED)
    assert abort and (abort.cid, abort.status, abort.result) == (50, 0, 0)
    assert nvme.admin.run(Command(AdminOpcode.ABORT, cdw10=2 << 16)).result == 1


QUEUE = 0x420000


@pytest.mark.parametrize(("command", "status"), [
    (Command(5, prp1=QUEUE, cdw10=0x000F0000, cdw11=1), Status.INVALID_QUEUE_ID),
    (Command(5, prp1=QUEUE, cdw10=0x000F0011, cdw11=1), Status.INVALID_QUEUE_ID),
    (Command(5, prp1=QUEUE, cdw10=0x000F0001, cdw11=1), Status.INVALID_QUEUE_ID),
    (Command(5, prp1=QUEUE, cdw10=0x00000002, cdw11=1), Status.INVALID_QUEUE_SIZE),
    (Command(5, prp1=QUEUE, cdw10=0x04000002, cdw11=1), Status.INVALID_QUEUE_SIZE),
    (Command(5, prp1=QUEUE + 64, cdw10=0x000F0002, cdw11=1), Status.PRP_OFFSET_INVALID),
    (Command(5, prp1=QUEUE, cdw10=0x000F0002, cdw11=0), Status.INVALID_FIELD),
    (Command(5, prp1=QUEUE, cdw10=0x000F0002, cdw11=17 << 16 | 3), Status.INVALID_VECTOR),
    (Command(1, prp1=QUEUE, cdw10=0x000F0001, cdw11=1 << 16 | 1), Status.INVALID_QUEUE_ID),
    (Command(1, prp1=QUEUE, cdw10=0x000F0002, cdw11=3 << 16 | 1), Status.CQ_INVALID),
    (Command(1, prp1=QUEUE, cdw10=0x000F0002, cdw11=1), Status.CQ_INVALID),
    (Command(1, prp1=QUEUE, cdw10=0xFFFF0002, cdw11=1 << 16 | 1), Status.INVALID_QUEUE_SIZE),
    (Command(0, cdw10=0), Status.INVALID_QUEUE_ID), (Command(0, cdw10=5), Status.INVALID_QUEUE_ID),
    (Command(4, cdw10=0), Status.INVALID_QUEUE_ID), (Command(4, cdw10=5), Status.INVALID_QUEUE_ID),
    (Command(4, cdw10=1), Status.INVALID_QUEUE_DELETION)])
def test_wrong_queues_are_refused(nvme: Driver, command: Command, status: Status) -> None:
    nvme.add_queue()
    assert nvme.status(command) == status


def test_queues_need_the_entry_sizes_in_cc(nvme: Driver) -> None:
    nvme.write(0x14, 0x000001)
    assert nvme.status(Command(5, prp1=QUEUE, cdw10=0x000F0002, cdw11=1)) == Status.INVALID_FIELD


def test_queues_are_deleted_in_order_and_made_again(nvme: Driver) -> None:
    nvme.add_queue()
    assert nvme.transfer(READ, 0, 1, DATA) == 0
    assert nvme.status(Command(0, cdw10=1)) == 0 and nvme.status(Command(4, cdw10=1)) == 0
    nvme.write(0x1008, 5)
    nvme.pc.clock.advance(1_000_000)
    nvme.add_queue(size=4)
    assert nvme.transfer(READ, 9, 1, DATA) == 0 and nvme.pc.memory.read(DATA, 512) == content(9, 1)


# I/O commands

@pytest.mark.parametrize(("count", "offset"), [(1, 0), (1, 4), (8, 0), (8, 512), (16, 0), (9, 0x204), (64, 0), (256, 0), (256, 0x804)])
def test_read_and_write_by_every_kind_of_prp(nvme: Driver, count: int, offset: int) -> None:
    nvme.add_queue()
    pages = -(-(offset + count * 512) // PAGE)
    prp2 = DATA + PAGE
    if pages > 2:
        nvme.pc.memory.write(LISTS + 0x10, b"".join((DATA + PAGE * i).to_bytes(8, "little") for i in range(1, pages)))
        prp2 = LISTS + 0x10
    assert nvme.transfer(READ, 100, count, DATA + offset, prp2) == 0
    assert nvme.pc.memory.read(DATA + offset, count * 512) == content(100, count)
    data = bytes(i * 7 & 0xFF for i in range(count * 512))
    nvme.pc.memory.write(DATA + offset, data)
    assert nvme.transfer(WRITE, 1000, count, DATA + offset, prp2) == 0
    assert disk_of(nvme).read(999, count + 2) == content(999, 1) + data + content(1000 + count, 1)


def test_a_list_at_the_end_of_its_page_goes_on_in_the_next(nvme: Driver) -> None:
    nvme.add_queue()
    first, second = LISTS + PAGE - 16, LISTS + 2 * PAGE
    order = [DATA + PAGE * i for i in (5, 3, 8, 1, 9, 2, 0)]
    nvme.pc.memory.write(first, order[0].to_bytes(8, "little") + second.to_bytes(8, "little"))
    nvme.pc.memory.write(second, b"".join(a.to_bytes(8, "little") for a in order[1:]))
    assert nvme.transfer(READ, 0, 64, DATA + 20 * PAGE, first) == 0
    got = b"".join(nvme.pc.memory.read(a, PAGE) for a in (DATA + 20 * PAGE, *order))
    assert got == content(0, 64)
    nvme.pc.memory.write(LISTS + PAGE - 8, (second + 8).to_bytes(8, "little"))
    assert nvme.transfer(READ, 0, 64, DATA, LISTS + PAGE - 8) == Status.PRP_OFFSET_INVALID


@pytest.mark.parametrize(("opcode", "nsid", "lba", "count", "status"), [
    (READ, 1, BLOCKS, 1, Status.LBA_OUT_OF_RANGE), (READ, 1, BLOCKS - 1, 2, Status.LBA_OUT_OF_RANGE),
    (WRITE, 1, (1 << 64) - 1, 1, Status.LBA_OUT_OF_RANGE), (NvmOpcode.WRITE_ZEROES, 1, BLOCKS, 1, Status.LBA_OUT_OF_RANGE),
    (READ, 0, 0, 1, Status.INVALID_NAMESPACE), (WRITE, 2, 0, 1, Status.INVALID_NAMESPACE),
    (NvmOpcode.FLUSH, 2, 0, 1, Status.INVALID_NAMESPACE), (NvmOpcode.DATASET_MANAGEMENT, 0, 0, 1, Status.INVALID_NAMESPACE),
    (NvmOpcode.WRITE_ZEROES, 7, 0, 1, Status.INVALID_NAMESPACE),
    (READ, 1, 0, 257, Status.INVALID_FIELD), (WRITE, 1, 0, 1024, Status.INVALID_FIELD), (0x7F, 1, 0, 1, Status.INVALID_OPCODE),
    (NvmOpcode.FLUSH, 1, 0, 1, Status.SUCCESS), (NvmOpcode.FLUSH, 0xFFFFFFFF, 0, 1, Status.SUCCESS),
    (NvmOpcode.DATASET_MANAGEMENT, 1, 0, 1, Status.SUCCESS)])
def test_status_of_io_commands(nvme: Driver, opcode: int, nsid: int, lba: int, count: int, status: Status) -> None:
    nvme.add_queue()
    command = Command(opcode, nsid=nsid, prp1=DATA, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=count - 1)
    assert nvme.queues[1].run(command).status == (status | 1 << 14 if status else 0)


def test_write_zeroes(nvme: Driver) -> None:
    nvme.add_queue()
    assert nvme.status(Command(NvmOpcode.WRITE_ZEROES, nsid=1, cdw10=10, cdw12=4), 1) == 0
    assert nvme.transfer(READ, 9, 7, DATA) == 0
    assert nvme.pc.memory.read(DATA, 7 * 512) == content(9, 1) + bytes(5 * 512) + content(15, 1)


def test_every_queue_is_served_and_rings_wrap(nvme: Driver) -> None:
    for number, size in ((1, 3), (2, 5), (16, 2)):
        nvme.add_queue(number, size)
    for i in range(40):
        for number in (1, 2, 16):
            assert nvme.transfer(READ, i, 1, DATA, queue=number) == 0
            assert nvme.pc.memory.read(DATA, 512) == content(i, 1)


def test_queues_take_turns(nvme: Driver) -> None:
    for number in (1, 2):
        nvme.add_queue(number)
        for i in range(4):
            nvme.queues[number].put(Command(READ, cid=i, nsid=1, prp1=DATA + PAGE * number))
    nvme.pc.gate.seen.clear()
    nvme.queues[1].ring()
    nvme.queues[2].ring()
    nvme.pc.clock.advance(1_000_000)
    assert [r.iova - 0x400000 >> 17 for r in nvme.pc.gate.seen if r.length == 64] == [1, 2] * 4


def test_a_full_completion_queue_waits_for_the_host(nvme: Driver) -> None:
    queue = nvme.add_queue(size=4)
    nvme.add_queue(2, 16)
    for i in range(3):
        queue.put(Command(READ, cid=i, nsid=1, prp1=DATA))
    queue.ring()
    nvme.pc.clock.advance(1_000_000)
    assert [entry.cid for entry in iter(lambda: queue.poll(acknowledge=False), None)] == [0, 1, 2]
    for i in range(3, 6):
        queue.put(Command(READ, cid=i, nsid=1, prp1=DATA))
    queue.ring()
    nvme.pc.clock.advance(1_000_000)
    assert queue.poll() is None
    assert nvme.transfer(READ, 5, 1, DATA, queue=2) == 0, "the other queue goes on"
    queue.acknowledge()
    nvme.pc.clock.advance(1_000_000)
    assert [entry.cid for entry in iter(queue.poll, None)] == [3, 4, 5]


def test_nothing_completes_inside_the_doorbell(nvme: Driver) -> None:
    nvme.admin.put(Command(AdminOpcode.IDENTIFY, prp1=DATA, cdw10=1))
    nvme.pc.gate.seen.clear()
    nvme.admin.ring()
    nvme.pc.clock.advance(9_999)
    assert nvme.pc.gate.seen == [] and nvme.admin.poll() is None
    nvme.pc.clock.advance(1)
    assert nvme.admin.poll()


def test_doorbells_of_no_queue_and_beyond_the_queue_are_ignored(nvme: Driver) -> None:
    nvme.write(0x1000, 8)
    nvme.write(0x1004, 8)
    nvme.write(0x1008, 1)
    nvme.write(0x1FFC, 1)
    nvme.pc.clock.advance(1_000_000)
    assert nvme.read(0x1C) == 1 and nvme.identify(1)[77] == 5
