"""An NVMe driver for the tests: queues in memory, doorbells by MMIO, completions by their phase bit."""

from pci_bench import NVME, Bench

from hvcore.machine.disk import Disk, lab_blocks
from hvcore.machine.nvme import Nvme
from hvcore.spec.nvme import AdminOpcode, Command, Completion, NvmOpcode, Status

PAGE = 4096
DNR = 1 << 14
ASQ, ACQ, DATA, LISTS = 0x100000, 0x101000, 0x200000, 0x300000
BLOCKS = 2048
READ, WRITE = NvmOpcode.READ, NvmOpcode.WRITE


class Queue:
    """A pair of queues: submission at `sq`, completion at `cq`, both physical addresses."""

    def __init__(self, driver: "Driver", number: int, sq: int, cq: int, size: int):
        self.driver, self.number, self.sq, self.cq, self.size = driver, number, sq, cq, size
        self.tail = self.head = 0
        self.phase = 1
        driver.pc.memory.write(cq, bytes(16 * size))

    def put(self, command: Command) -> None:
        """Lays a command at the tail without ringing."""
        self.driver.pc.memory.write(self.sq + 64 * self.tail, command.pack())
        self.tail = (self.tail + 1) % self.size

    def ring(self) -> None:
        self.driver.write(0x1000 + 8 * self.number, self.tail)

    def poll(self, acknowledge: bool = True) -> Completion | None:
        """The next completion, if its phase says that there is one."""
        entry = Completion.unpack(self.driver.pc.memory.read(self.cq + 16 * self.head, 16))
        if entry.phase != self.phase:
            return None
        self.head = (self.head + 1) % self.size
        self.phase ^= self.head == 0
        if acknowledge:
            self.acknowledge()
        return entry

    def acknowledge(self) -> None:
        self.driver.write(0x1004 + 8 * self.number, self.head)

    def run(self, command: Command) -> Completion:
        """One command to its completion."""
        self.put(command)
        self.ring()
        while (entry := self.poll()) is None:
            assert self.driver.pc.clock.skip(), f"no completion; CSTS={self.driver.read(0x1C):#x}"
        assert (entry.cid, entry.sq_id, entry.sq_head) == (command.cid, self.number, self.tail)
        return entry


class Driver:
    """The controller at NVME's address, reached through its BAR 0."""

    def __init__(self, pc: Bench | None = None, entries: int = 8):
        self.pc = pc or Bench()
        self.base, self.entries = self.pc.bar0(NVME.source), entries
        self.queues: dict[int, Queue] = {}

    def read(self, offset: int, width: int = 4) -> int:
        return self.pc.bus.read(self.base + offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.pc.bus.write(self.base + offset, width, value)

    def wait(self, mask: int) -> int:
        """CSTS when one of the bits of `mask` is set."""
        while not self.read(0x1C) & mask:
            assert self.pc.clock.skip()
        return self.read(0x1C)

    def begin(self, asq: int = ASQ, acq: int = ACQ) -> None:
        """Sets CC.EN, and does not wait for what comes of it."""
        self.write(0x24, (self.entries - 1) * 0x10001)
        self.write(0x28, asq, 8)
        self.write(0x30, acq, 8)
        self.write(0x14, 0x460001)

    def enable(self, asq: int = ASQ, acq: int = ACQ) -> "Driver":
        self.queues = {0: Queue(self, 0, asq, acq, self.entries)}
        self.begin(asq, acq)
        self.wait(3)
        return self

    def disable(self) -> None:
        self.write(0x14, 0x460000)

    @property
    def admin(self) -> Queue:
        return self.queues[0]

    def add_queue(self, number: int = 1, size: int = 16, vector: int = 0, interrupts: bool = False) -> Queue:
        sq, cq = 0x400000 + 0x20000 * number, 0x410000 + 0x20000 * number
        queue = self.queues[number] = Queue(self, number, sq, cq, size)
        for opcode, address, last in ((AdminOpcode.CREATE_CQ, cq, vector << 16 | interrupts << 1 | 1),
                                      (AdminOpcode.CREATE_SQ, sq, number << 16 | 1)):
            entry = self.admin.run(Command(opcode, cid=9, prp1=address, cdw10=number | size - 1 << 16, cdw11=last))
            assert entry.status == Status.SUCCESS
        return queue

    def status(self, command: Command, queue: int = 0) -> int:
        """A command's status without Do Not Retry."""
        return self.queues[queue].run(command).status & ~DNR

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        assert self.status(Command(AdminOpcode.IDENTIFY, nsid=nsid, prp1=DATA, cdw10=cns)) == Status.SUCCESS
        return self.pc.memory.read(DATA, PAGE)

    def transfer(self, opcode: NvmOpcode, lba: int, count: int, prp1: int, prp2: int = 0, queue: int = 1) -> int:
        """Status of a Read or Write of `count` blocks."""
        return self.status(Command(opcode, cid=lba & 0xFF, nsid=1, prp1=prp1, prp2=prp2, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32,
                                   cdw12=count - 1), queue)


def content(lba: int, count: int) -> bytes:
    """What the generated disk of the bench holds."""
    return lab_blocks(7, lba, count).tobytes()


def disk_of(nvme: "Driver") -> Disk:
    controller = nvme.pc.root.find("nvme")[0]
    assert isinstance(controller, Nvme)
    return controller.disk
