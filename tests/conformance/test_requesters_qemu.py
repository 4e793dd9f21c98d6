"""Under which requester id a unit sees a device behind bridges: what QEMU's `intel-iommu` records, and ours, for the same tree of bridges.

Translation is on with an empty root table, so that every request faults with reason 1 and its source is recorded.
"""

from dataclasses import replace

import pytest
from qtest import Qtest

from hvcore.machine.description import EcamDescription, MachineDescription, PciDescription, UnitDescription
from hvcore.machine.pc import Pc
from hvcore.machine.topology import Topology
from hvcore.spec.dmar import Dmar, Drhd, build
from hvcore.spec.e820 import E820Entry
from hvcore.spec.pci import PortType, bdf, format_bdf
from hvcore.spec.vtd import FRCD_HIGH, frcd_offset

BASE, ROOT, CAP, ECAP = 0xFED9_0000, 0x10_0000, 0xD2_008C_2226_0206, 0xF42
GCMD, RTADDR, FSTS, TE, SRTP = 0x18, 0x20, 0x34, 1 << 31, 1 << 30
WINDOW = 0xE000_0000
BRIDGE = PciDescription(0, 0x1B36, 0x000C, 0x060400, "bridge")
EDU = PciDescription(0, 0x1234, 0x11E8, 0x00FF00, "edu")

BRIDGES = (
    ("pcie-root-port,id=b1,addr=1c.0,chassis=1", bdf(0, 0x1C, 0), 1, 3, PortType.ROOT_PORT),
    ("pcie-pci-bridge,id=b2,bus=b1", bdf(1, 0, 0), 2, 3, PortType.PCIE_TO_PCI_BRIDGE),
    ("pci-bridge,id=b3,bus=b2,addr=7,chassis_nr=3", bdf(2, 7, 0), 3, 3, None),
    ("pcie-root-port,id=b4,addr=1d.0,chassis=4", bdf(0, 0x1D, 0), 4, 6, PortType.ROOT_PORT),
    ("x3130-upstream,id=b5,bus=b4", bdf(4, 0, 0), 5, 6, PortType.UPSTREAM_PORT),
    ("xio3130-downstream,id=b6,bus=b5,chassis=6", bdf(5, 0, 0), 6, 6, PortType.DOWNSTREAM_PORT),
    ("i82801b11-bridge,id=b7,addr=1e.0", bdf(0, 0x1E, 0), 7, 8, None),
    ("pci-bridge,id=b8,bus=b7,addr=1f,chassis_nr=8", bdf(7, 0x1F, 0), 8, 8, None),
    ("pci-bridge,id=b9,addr=19.0,chassis_nr=9", bdf(0, 0x19, 0), 9, 9, None),
    ("pcie-pci-bridge,id=b10,addr=1a.0", bdf(0, 0x1A, 0), 10, 10, PortType.PCIE_TO_PCI_BRIDGE),
)
"""QEMU's device, function, buses behind, and the port type in its PCI Express capability."""

EDUS = {"edu,addr=3": bdf(0, 3, 0), "edu,bus=b2,addr=4": bdf(2, 4, 0), "edu,bus=b3,addr=5": bdf(3, 5, 0), "edu,bus=b6": bdf(6, 0, 0),
        "edu,bus=b7,addr=5": bdf(7, 5, 0), "edu,bus=b8,addr=6": bdf(8, 6, 0), "edu,bus=b9,addr=2": bdf(9, 2, 0),
        "edu,bus=b10,addr=3": bdf(10, 3, 0)}
EXPECTED = {"00:03.0": "00:03.0", "02:04.0": "02:00.0", "03:05.0": "02:00.0", "06:00.0": "06:00.0", "07:05.0": "00:1e.0",
            "08:06.0": "00:1e.0", "09:02.0": "00:19.0", "0a:03.0": "0a:00.0"}


def tree() -> tuple[PciDescription, ...]:
    bridges = [replace(BRIDGE, source=source, secondary=first, subordinate=last, pcie=kind is not None, port_type=kind)
               for _, source, first, last, kind in BRIDGES]
    return (PciDescription(0, 0x8086, 0x29C0, 0x060000, pcie=False), *bridges, *(replace(EDU, source=s, pcie=False) for s in EDUS.values()))


def seen_by_ours() -> dict[str, str]:
    e820 = (E820Entry(0, 0x9FC00, 1), E820Entry(0x100000, 64 << 20, 1))
    table = build(Dmar(39, 0, (Drhd(1, 0, 0, BASE),)))
    pc = Pc(MachineDescription("bridges", e820, ((0, 64 << 20),), 0x3F00000, table, (UnitDescription(BASE, CAP, ECAP, include_all=True),),
                               tree(), EcamDescription(0xB0000000)))
    try:
        pc.bus.write(BASE + RTADDR, 8, ROOT)
        pc.bus.write(BASE + GCMD, 4, SRTP)
        pc.bus.write(BASE + GCMD, 4, TE)
        return {format_bdf(source): _ours(pc, source) for source in EDUS.values()}
    finally:
        pc.close()


def _ours(pc: Pc, source: int) -> str:
    edu = next(f for f in pc.root.find("edu") if f.description.source == source)
    assert edu.dma_read(0x5000, 8).fault
    record = BASE + frcd_offset(CAP) + 8
    high = pc.bus.read(record, 8)
    pc.bus.write(record, 8, high)
    return format_bdf(FRCD_HIGH.get(high, "SID"))


def seen_by_qemu() -> dict[str, str]:
    devices = ["intel-iommu,intremap=off", *(b[0] for b in BRIDGES), *(f"{e},dma_mask=0xffffffffffffffff" for e in EDUS)]
    with Qtest([word for d in devices for word in ("-device", d)]) as qemu:
        for _, source, first, last, _ in BRIDGES:
            inside = [i for i, s in enumerate(EDUS.values()) if first <= s >> 8 <= last]
            low, high = (WINDOW + (i << 20) >> 16 for i in (min(inside), max(inside)))
            qemu.configure(source, 0x18, last << 16 | first << 8 | source >> 8)
            qemu.configure(source, 0x20, high << 16 | low)
            qemu.configure(source, 0x04, 6)
        for i, source in enumerate(EDUS.values()):
            qemu.configure(source, 0x10, WINDOW + (i << 20))
            qemu.configure(source, 0x04, 6)
        qemu.exchange(f"writeq {BASE + RTADDR:#x} {ROOT:#x}", f"writel {BASE + GCMD:#x} {SRTP:#x}", f"writel {BASE + GCMD:#x} {TE:#x}")
        return {format_bdf(source): _qemu(qemu, WINDOW + (i << 20)) for i, source in enumerate(EDUS.values())}


def _qemu(qemu: Qtest, bar: int) -> str:
    """Lets the `edu` at `bar` read memory; the source that is then recorded."""
    qemu.exchange(f"writeq {bar + 0x80:#x} 0x5000", f"writeq {bar + 0x88:#x} 0x40000", f"writeq {bar + 0x90:#x} 8",
                  f"writeq {bar + 0x98:#x} 1")
    while qemu.exchange(f"readq {bar + 0x98:#x}")[0] & 1:
        pass
    cap, = qemu.exchange(f"readq {BASE + 8:#x}")
    record = BASE + frcd_offset(cap) + 8
    high, = qemu.exchange(f"readq {record:#x}")
    assert FRCD_HIGH.get(high, "F") and FRCD_HIGH.get(high, "FR") == 1
    qemu.exchange(f"writeq {record:#x} {high:#x}", f"writel {BASE + FSTS:#x} 1")
    return format_bdf(FRCD_HIGH.get(high, "SID"))


def test_our_unit_sees_what_linux_expects() -> None:
    assert seen_by_ours() == EXPECTED
    topology = Topology(None, tree())
    assert {format_bdf(s): format_bdf(topology.requester(0, s)) for s in EDUS.values()} == EXPECTED


@pytest.mark.needs("qemu-system-x86_64")
def test_qemu_records_the_same_sources() -> None:
    assert seen_by_qemu() == seen_by_ours()
