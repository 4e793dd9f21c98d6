"""A bench on which the core's storage driver stands before the controller: accesses to its registers go to the core, as after a trap."""

from types import SimpleNamespace

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nvme_driver import BLOCKS, LISTS, PAGE, Driver
from pci_bench import NVME, Bench

from hvcore.machine.clock import Clock
from hvcore.vmm import storage
from hvcore.vmm.heap import Heap
from hvcore.vmm.layout import HEAP, Data, Part
from hvcore.vmm.nested import build_nested
from hvcore.vmm.pci import find_devices

BASE, SIZE = 32 << 20, 8 << 20
SECRET = bytes(range(100, 132))
HALF = BLOCKS // 2
DNR = 1 << 14


class Lines(list):
    def print(self, text, end="\n"):
        self.append(text)


class TrappedBus:
    """The bus with one trap before it; the core looks after its driver at each access."""

    def __init__(self, core):
        self.core, self.bus = core, core.bench.bus

    def _trap(self, address):
        trap = self.core.held.trap
        return trap if trap.start <= address < trap.end else None

    def read(self, address, width):
        trap = self._trap(address)
        value = trap.device.mmio_read(address - trap.start, width) if trap else self.bus.read(address, width)
        self.core.poll()
        return value & (1 << 8 * width) - 1

    def write(self, address, width, value):
        trap = self._trap(address)
        if trap:
            trap.device.mmio_write(address - trap.start, width, value & (1 << 8 * width) - 1)
        else:
            self.bus.write(address, width, value)
        self.core.poll()


class PolledClock:
    """Time in which the core gets the processor every 20 us."""

    def __init__(self, core):
        self.core, self.clock = core, core.bench.clock

    def advance(self, duration):
        end = self.clock.now + duration
        while self.clock.now < end:
            self.clock.advance(min(20_000, end - self.clock.now))
            self.core.poll()

    def skip(self):
        moved = self.clock.skip()
        self.core.poll()
        return moved


class Behind:
    """A core at [BASE, BASE + SIZE) of the bench's memory, without a processor: its nested tables, its secret, its storage driver.

    It stands in a Bench's place for `nvme_driver.Driver`.
    """

    def __init__(self, stubborn=False, **bench):
        self.bench = Bench(**bench)
        self.memory, self.root, self.lines, self.gate = self.bench.memory, self.bench.root, self.bench.lines, self.bench.gate
        self.bar0, self.config_read, self.config_write = self.bench.bar0, self.bench.config_read, self.bench.config_write
        self.console = Lines()
        heap = Heap(self.memory, BASE + HEAP, BASE + SIZE, BASE + Part.DATA + Data.HEAP_NEXT)
        self.memory.write(BASE + Part.SECRET, SECRET)
        platform = SimpleNamespace(memory=self.memory, bus=self.bench.bus, cpu=SimpleNamespace(clock=self.bench.clock))
        functions = find_devices(self.bench.bus)
        self.held = storage.attach(platform, heap, BASE, SIZE, functions, self.console, stubborn)
        root = build_nested(self.memory, heap, (BASE, BASE + SIZE), BASE + Part.BLANK)
        self.memory.write64(BASE + Part.DATA + Data.N_CR3, root)
        self.bus, self.clock = TrappedBus(self), PolledClock(self)
        assert isinstance(self.bench.clock, Clock)

    @property
    def pages(self):
        return self.held.driver.pages

    @property
    def driver_pages(self):
        """All pages of the driver: the shadow, then its records."""
        return self.pages.shadow, self.pages.state + 3 * 4096

    def poll(self):
        if self.held:
            self.held.driver.poll()

    def core_memory(self):
        """The core's memory but for the driver's pages."""
        start, end = self.driver_pages
        return self.memory.read(BASE, start - BASE) + self.memory.read(end, BASE + SIZE - end)

    def requests(self):
        """Every address that the controller asked for, with its length."""
        return [(r.iova, r.length) for r in self.gate.seen if r.source == NVME.source]

    def outside(self):
        """Those that do not lie in the shadow."""
        return [r for r in self.requests() if not self.pages.shadow <= r[0] <= r[0] + r[1] <= self.pages.end]


def enabled(**options):
    """A driver of the tests' on a controller behind the core, enabled."""
    return Driver(Behind(**options)).enable()


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


def prp_list(d, first, pages, at=LISTS):
    """Writes a PRP list of the pages that follow `first`, and says where."""
    d.pc.memory.write(at, b"".join((first + PAGE * i).to_bytes(8, "little") for i in range(1, pages)))
    return at
