"""MSI under INTERRUPT_REMAPPING: the guest sees its own registers by both ways to configuration space, and plain interrupts arrive."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine, inspect
from hvcore.machine import pci as pci_module
from hvcore.machine.description import PciDescription
from hvcore.machine.pcifunction import PciFunction
from hvcore.spec.interrupts import IRTE_LOW, DeliveryMode
from hvcore.vmm.irte import entry_for
from hvcore.vmm.mmio import trap_at
from hvcore.vmm.msi import ConfigPage, ConfigPorts, MsiExits

SOURCE, NARROW = 0x28, 0x30
FIXED, VECTOR, ECAM = 0xFEE00000, 0x40, 0xF8000000
CONTROL, ADDRESS = 2, 4


class MsiDevice(PciFunction):
    """A function that does nothing but signal by MSI: four vectors, addresses of 64 bits."""

    wide = True

    def add_capabilities(self) -> None:
        body = (0x80 * self.wide | 2 << 1).to_bytes(2, "little") + bytes(12)
        high = b"\xff" * 4 if self.wide else b""
        self.at = self.add_capability(0x05, body, b"\x71\0" + b"\xfc\xff\xff\xff" + high + b"\xff\xff")

    @property
    def data(self) -> int:
        return self.at + (12 if self.wide else 8)

    def signal(self, vector: int) -> None:
        control = self.get(self.at + CONTROL, 2)
        used = 1 << (control >> 4 & 7)
        if control & 1 and vector < used:
            data = self.get(self.data, 2) & ~(used - 1) | vector
            self.dma_write(self.get(self.at + ADDRESS, 8 if self.wide else 4), data.to_bytes(4, "little"))


class NarrowDevice(MsiDevice):
    """The same with addresses of 32 bits."""

    wide = False


class Bench:
    def __init__(self, machine: Machine):
        self.machine, self.pc = machine, machine.pc
        self.device, self.narrow = (machine.pc.root.functions[0, source] for source in (SOURCE, NARROW))

    def say(self, line: str) -> str:
        return self.machine.run.guest.command(line)

    def put(self, offset: int, value: int, width: int = 4, source: int = SOURCE) -> None:
        """A write by the guest, by mechanism 1."""
        self.say(f"out 0xcf8 {1 << 31 | source << 8 | offset & 0xFC:#x} 4")
        self.say(f"out {0xCFC + (offset & 3):#x} {value:#x} {width}")

    def get(self, offset: int, width: int = 4, source: int = SOURCE) -> int:
        self.say(f"out 0xcf8 {1 << 31 | source << 8 | offset & 0xFC:#x} 4")
        return int(self.say(f"in {0xCFC + (offset & 3):#x} {width}").split()[-1], 16)

    def program(self, address: int, data: int, vectors: int = 0) -> None:
        """As an operating system does: off, message, on with 2**`vectors` vectors."""
        at = self.device.at
        self.put(at + CONTROL, vectors << 4, 2)
        self.put(at + ADDRESS, address & 0xFFFFFFFF)
        self.put(at + ADDRESS + 4, address >> 32)
        self.put(self.device.data, data, 2)
        self.put(at + CONTROL, vectors << 4 | 1, 2)

    def sent(self, *vectors: int) -> list[tuple[int, int]]:
        """Vector and destination of what arrives."""
        self.pc.messages.clear()
        for vector in vectors:
            self.device.signal(vector)
        return [(data & 0xFF, address >> 12 & 0xFF) for _, address, data in self.pc.messages]


def described(name: str) -> Machine:
    description = Machine.load(name).description
    extra = tuple(PciDescription(source, 0x1234, 0x5678, 0xFF0000, model=model) for source, model in ((SOURCE, "msi"), (NARROW, "narrow")))
    return Machine(replace(description, pci=(*description.pci, *extra)))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pci_module.MODELS, "msi", MsiDevice)
        patch.setitem(pci_module.MODELS, "narrow", NarrowDevice)
        with described("nvme-desktop-16g") as machine:
            machine.boot(Config(PROFILE="mended"))
            yield Bench(machine)


def test_a_vector_arrives_and_the_guest_reads_what_it_wrote(bench: Bench) -> None:
    bench.program(FIXED | 3 << 12, VECTOR)
    at = bench.device.at
    assert [bench.get(at + ADDRESS), bench.get(at + ADDRESS + 4), bench.get(bench.device.data, 2)] == [FIXED | 3 << 12, 0, VECTOR]
    assert f"{0x00:02x} 30 e0 fe" in bench.say(f"peek {ECAM + SOURCE * 4096 + at + ADDRESS:#x} 4")
    assert bench.device.get(at + ADDRESS, 8) & 0x18 == 0x18 and bench.device.get(bench.device.data, 2) == 0
    assert bench.sent(0) == [(VECTOR, 3)]
    assert inspect.prove(bench.machine.run).holds
    bench.say(f"poke {ECAM + SOURCE * 4096 + bench.device.data:#x} {VECTOR + 4:#x}")
    assert bench.sent(0) == [(VECTOR + 4, 3)] and bench.get(bench.device.data, 2) == VECTOR + 4


def test_each_of_several_vectors_has_an_entry_and_no_more(bench: Bench) -> None:
    bench.program(FIXED, VECTOR, vectors=1)
    assert bench.sent(0, 1, 2) == [(VECTOR, 0), (VECTOR + 1, 0)]
    bench.program(FIXED, VECTOR, vectors=2)
    assert bench.sent(0, 1, 2, 3) == [(VECTOR + n, 0) for n in range(4)]
    bench.program(FIXED, VECTOR)
    bench.put(bench.device.at + CONTROL, 2 << 4 | 1, 2)
    assert bench.sent(3) == [(VECTOR + 3, 0)], "more vectors without a word about the message"


@pytest.mark.parametrize(("address", "data"), [(FIXED, 0x400), (FIXED, 0x500), (FIXED, 0x200), (FIXED, 0x0F), (FIXED | 0x10, 0x40)])
def test_what_is_no_plain_interrupt_is_blocked_with_a_fault(bench: Bench, address: int, data: int) -> None:
    bench.program(address, data)
    assert bench.sent(0) == []
    fault = bench.pc.fabric.trace[-1].fault
    assert fault is not None and (fault.request.source, fault.reason) == (SOURCE, 0x22)
    assert bench.get(bench.device.at + ADDRESS) == address and bench.get(bench.device.data, 2) == data


def test_with_addresses_of_32_bits(bench: Bench) -> None:
    at, data = bench.narrow.at, bench.narrow.data
    for offset, value, width in ((ADDRESS, FIXED, 4), (data - at, VECTOR, 2), (CONTROL, 1, 2)):
        bench.put(at + offset, value, width, NARROW)
    bench.pc.messages.clear()
    bench.narrow.signal(0)
    assert [(a, d & 0xFF) for _, a, d in bench.pc.messages] == [(FIXED, VECTOR)]
    assert bench.get(data, 4, NARROW) == VECTOR and bench.narrow.get(data, 2) == 0


def test_the_selector_of_mechanism_1_is_the_guests(bench: Bench) -> None:
    """An access to a trapped page between selector and data does not disturb it."""
    bench.say(f"out 0xcf8 {1 << 31 | NARROW << 8:#x} 4")
    bench.say(f"poke {ECAM + SOURCE * 4096 + bench.device.data:#x} {VECTOR:#x}")
    assert int(bench.say("in 0xcfc 4").split()[-1], 16) == 0x56781234
    bench.say("out 0xcf8 0 4")
    assert int(bench.say("in 0xcfc 4").split()[-1], 16) == 0xFFFFFFFF


accesses = st.lists(st.tuples(st.booleans(), st.integers(-8, 20), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=12)


@settings(max_examples=100)
@given(accesses)
def test_the_guest_sees_what_it_would_see_without_a_core(bench: Bench, traffic: list[tuple[bool, int, int, int]]) -> None:
    """Against the same capability on its own: every byte from before it to behind it, after each write by either way."""
    alone, pc = bytearray(bench.device._power_on), bench.pc
    capability = bench.machine.exits.capabilities[SOURCE]
    ways = ConfigPorts(pc.bus, SOURCE), ConfigPage(pc.bus, ECAM + SOURCE * 4096)
    capability.write(ways[1], capability.at + CONTROL, 2, 0)
    for offset in range(12):
        capability.write(ways[1], capability.at + ADDRESS + offset, 1, 0)
    for by_page, offset, width, value in traffic:
        at = capability.at + offset & ~(width - 1)
        capability.write(ways[by_page], at, width, value & (1 << 8 * width) - 1)
        for i in range(width):
            w, byte = bench.device.writable[at + i], value >> 8 * i & 0xFF
            alone[at + i] = alone[at + i] & ~w | byte & w
        seen = bytes(capability.read(ways[not by_page], capability.at + i, 1) for i in range(16))
        assert seen == alone[capability.at:capability.at + 16]
    message = (int.from_bytes(alone[capability.at + a:capability.at + b], "little") for a, b in ((4, 12), (12, 14)))
    address, data = message
    used = min(1 << (alone[capability.at + CONTROL] >> 4 & 7), 4)
    wanted = [entry_for(address, data & ~(used - 1) | n, SOURCE)[0] if n < used else 0 for n in range(4)]
    slot = (pc.bus.read(capability.unit.base + 0xB8, 8) & ~0xFFF) + 16 * capability.first
    assert [pc.memory.read64(slot + 16 * n) for n in range(4)] == wanted
    assert all(IRTE_LOW.get(low, "DLM") in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY) for low in wanted)


@pytest.mark.parametrize("options", [{"INTERRUPT_REMAPPING": False}, {"TINYVISOR": True}])
def test_else_configuration_space_is_left_alone(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    """Without remapping; and with two guests, where MSI stays blocked."""
    monkeypatch.setitem(pci_module.MODELS, "msi", MsiDevice)
    monkeypatch.setitem(pci_module.MODELS, "narrow", NarrowDevice)
    with described("nvme-desktop-16g") as machine:
        machine.boot(Config(PROFILE="mended", **options))
        assert not isinstance(machine.exits, MsiExits) and trap_at(machine.exits.traps, ECAM + SOURCE * 4096) is None


def test_a_machine_without_msi_has_no_exits_for_it() -> None:
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config(PROFILE="mended"))
        assert not isinstance(machine.exits, MsiExits) and machine.pc.cpu.on_io is None
