"""Devices behind bridges in a running machine: what their configuration space says, and under which requester id their DMA arrives."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from pci_bench import EDU, HOST_BRIDGE, Bench

from hvcore import Config, Machine
from hvcore.machine.description import PciDescription
from hvcore.machine.pcifunction import PciFunction
from hvcore.spec.dma import RemapFault
from hvcore.spec.pci import PortType, bdf, format_bdf

SEEN = {"02:04.0": "02:00.0", "03:00.0": "03:00.0", "04:05.0": "00:1e.0", "05:06.0": "00:1e.0"}
"""The edu devices of the machine, and as whom its unit sees them."""
PORT = PciDescription(bdf(0, 0x1C, 0), 0x1B36, 0x000C, 0x060400, "bridge", secondary=1, subordinate=3)
TO_PCI = PciDescription(bdf(1, 0, 0), 0x1B36, 0x000E, 0x060400, "bridge", secondary=2, subordinate=3,
                        port_type=PortType.PCIE_TO_PCI_BRIDGE)
INNER = PciDescription(bdf(2, 1, 0), 0x1B36, 0x0001, 0x060400, "bridge", secondary=3, subordinate=3)
FAR = replace(EDU, source=bdf(3, 5, 0))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine.load("q35-2g-bridges") as m:
        yield m


def edu(machine: Machine, name: str) -> PciFunction:
    return next(f for f in machine.pc.root.find("edu") if format_bdf(f.description.source) == name)


def test_the_guest_s_dma_faults_under_the_bridge_s_id(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True))
    assert run.outcome == "up"
    assert "does not reach" in run.guest.command("dma r 0x5000000 16")
    fault = run.faults[0]
    assert (format_bdf(fault.source), fault.reason) == ("02:00.0", 2)
    assert "the context entry" in str(run.explain(fault)).lower()
    traced = {format_bdf(r.request.source) for r in machine.pc.fabric.trace if r.fault}
    assert traced == {"02:00.0"}


def test_every_bridge_s_id_arrives_at_the_unit(machine: Machine) -> None:
    machine.boot(Config(VTD_TRANS=True))
    sources = {name: format_bdf(edu(machine, name).dma_read(0x1000, 4).request.source) for name in SEEN}
    assert sources == SEEN
    reached = {name for name in SEEN if edu(machine, name).dma_read(0x1000, 4).data is not None}
    assert reached == set(SEEN) - {"02:04.0"}, "only 02:00.0, where no function is, got no context entry"


def test_the_mended_core_lets_what_is_behind_bridges_work(machine: Machine) -> None:
    run = machine.boot(Config(PROFILE="mended"))
    assert "48 56 4c 41" in run.guest.command("dma w 0x5000000 16") + run.guest.command("dma r 0x5000000 16")
    assert not run.faults
    assert all(edu(machine, name).dma_read(0x1000, 4).data is not None for name in SEEN)
    core = edu(machine, "05:06.0").dma_read(run.vmm.base or 0, 4)
    assert isinstance(core.fault, RemapFault) and format_bdf(core.fault.request.source) == "00:1e.0"


def test_configuration_space_says_what_kind_a_bridge_is(machine: Machine) -> None:
    root = machine.pc.root
    types = {format_bdf(f.description.source): root.config_read(0, source, 0x42, 2) >> 4 & 0xF
             for (_, source), f in root.functions.items() if root.config_read(0, source, 0x40, 1) == 0x10}
    assert types == {"00:1c.0": 4, "00:1d.0": 4, "01:00.0": 7, "03:00.0": 0, "00:02.0": 9}


def test_what_lies_on_a_conventional_bus_has_no_express_capability() -> None:
    pc = Bench((HOST_BRIDGE, PORT, TO_PCI, INNER, FAR))
    assert pc.config_read(INNER.source, 0x34, 1) == pc.config_read(FAR.source, 0x34, 1) == 0
    assert pc.config_read(TO_PCI.source, pc.capability(TO_PCI.source, 0x10) + 2, 2) >> 4 & 0xF == 7
    beyond = pc.bus.read(0xB000_0000 + (FAR.source << 12) + 0x100, 4)
    assert beyond == 0xFFFF_FFFF, "no extended configuration space"


def test_the_id_follows_the_bus_numbers_that_software_sets() -> None:
    pc = Bench((HOST_BRIDGE, PORT, TO_PCI, INNER, FAR))
    far = pc.root.functions[0, FAR.source]
    assert format_bdf(far.port.source) == "02:00.0"
    pc.config_write(PORT.source, 0x1A, 9, 1)
    pc.config_write(TO_PCI.source, 0x19, 0x0907, 2)
    assert format_bdf(far.port.source) == "07:00.0"
    assert far.dma_read(0x1000, 4).request.source == bdf(7, 0, 0)
    pc.root.reset()
    assert format_bdf(far.port.source) == "02:00.0"


def test_a_conventional_bridge_passes_its_own_captured_bus_on() -> None:
    bridge = replace(TO_PCI, pcie=False, port_type=None)
    pc = Bench((HOST_BRIDGE, PORT, bridge, replace(EDU, source=bdf(2, 5, 0))))
    device = pc.root.functions[0, bdf(2, 5, 0)]
    assert format_bdf(device.port.source) == "01:00.0"
    pc.config_write(PORT.source, 0x18, 0x040400, 4)
    pc.config_write(bdf(4, 0, 0), 0x0C, 0, 1)
    assert format_bdf(device.port.source) == "04:00.0"


def test_messages_carry_the_bridge_s_id_too() -> None:
    pc = Bench((HOST_BRIDGE, PORT, TO_PCI, INNER, FAR))
    assert pc.root.functions[0, FAR.source].dma_write(0xFEE0_0000, b"\x41\0\0\0").fault is None
    assert [m[0] for m in pc.messages] == [bdf(2, 0, 0)]
