"""NVME_DRIVER: guests that lie to the core's driver, and controllers that fail it."""

import random
from dataclasses import replace

import pytest
from nvme_driver import ACQ, ASQ, BLOCKS, DATA, LISTS, PAGE, READ, WRITE, Driver, content, disk_of
from pci_bench import HOST_BRIDGE, NVME
from storage_bench import BASE, DNR, HALF, SIZE, Behind, enabled, prp_list

from hvcore import Config
from hvcore.errors import BadConfig
from hvcore.machine.description import BarDescription
from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode, Status
from hvcore.vmm.heap import Panic
from hvcore.vmm.layout import Part
from hvcore.vmm.storage.layout import SHADOW_PAGES, TAGS, Phase


@pytest.fixture
def nvme() -> Driver:
    return enabled()


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
        prp2 = prp_list(nvme, DATA, 8)
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
        d.begin(asq, acq)
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
    queue.put(Command(READ, cid=1, nsid=1, prp1=DATA, prp2=prp_list(nvme, DATA, 8), cdw12=63))
    queue.ring()
    core = nvme.pc.core_memory()
    prp_list(nvme, BASE, 8)
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
            prp_list(d, DATA + PAGE * 8, 16)
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
    d.begin()
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
    d.begin()
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
