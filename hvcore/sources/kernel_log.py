"""What a kernel log says of a machine: firmware's memory map, DMAR, PCI functions, configuration windows, NVMe controllers.

Any prefix (time stamps, syslog, host names) is skipped: lines are known by their words.  A log may hold two boots (kexec) and may be cut
anywhere; what cannot be read whole is left out.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import BadMachine
from ..machine.description import BarDescription, EcamDescription, PciDescription
from ..spec.pci import PortType, parse_bdf
from .e820_lines import LoggedMap, read_maps
from .files import read_bytes

__all__ = ["KernelLog", "LoggedUnit", "decode", "parse_log", "read_text", "text_of"]

_MOST_BYTES = 64 << 20
_LONGEST_LINE = 1024
"""Characters of a line that are read: the kernel prints no longer ones."""
_MOST = 256
"""Units, reserved regions and the like that are kept of each kind; there are fewer on every machine."""
_T = TypeVar("_T")


@dataclass(slots=True)
class LoggedUnit:
    """What a log says of a remapping unit: register base, DRHD flags (None: no DRHD line), registers (None: not printed).

    `namespace` are requester ids of ACPI devices below it, `ioapics` and `hpets` their numbers.
    """

    base: int
    flags: int | None = None
    version: int | None = None
    cap: int | None = None
    ecap: int | None = None
    namespace: list[int] = field(default_factory=list)
    ioapics: list[int] = field(default_factory=list)
    hpets: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Function:
    """A PCI function while its lines are being read."""

    source: int
    segment: int
    vendor: int | None = None
    device_id: int = 0
    class_code: int = 0
    bridge: bool = False
    conventional: bool = False
    port_type: PortType | None = None
    bars: dict[int, BarDescription] = field(default_factory=dict)
    buses: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class KernelLog:
    """The findings.  RMRRs are half-open; `rmrr_devices` has (start, end, requester id) where Linux named the device of one.

    `tables` has address and length of each ACPI table by signature; `nvme` are (segment, requester id); `root_buses` are those of
    segment 0; `left_on` are Linux's names of units that firmware left remapping interrupts; `numa` says whether there are memory nodes,
    `amd` whether AMD-Vi spoke.
    """

    maps: tuple[LoggedMap, ...] = ()
    host_address_width: int | None = None
    units: dict[int, LoggedUnit] = field(default_factory=dict)
    rmrrs: list[tuple[int, int]] = field(default_factory=list)
    rmrr_devices: list[tuple[int, int, int]] = field(default_factory=list)
    atsrs: list[int] = field(default_factory=list)
    rhsas: list[tuple[int, int]] = field(default_factory=list)
    andds: list[tuple[int, str]] = field(default_factory=list)
    tables: dict[str, tuple[int, int]] = field(default_factory=dict)
    ecams: list[EcamDescription] = field(default_factory=list)
    functions: tuple[PciDescription, ...] = ()
    nvme: list[tuple[int, int]] = field(default_factory=list)
    root_buses: set[int] = field(default_factory=set)
    x2apic_opt_out: bool = False
    left_on: list[str] = field(default_factory=list)
    numa: bool = False
    amd: bool = False

    @property
    def map(self) -> LoggedMap | None:
        """The firmware's map: the first that is whole, else the longest."""
        whole = (m for m in self.maps if m.whole)
        return next(whole, max(self.maps, key=lambda m: len(m.entries), default=None))

    def unit(self, base: int) -> LoggedUnit:
        """The unit with registers at `base`, made if new; one too many is not kept."""
        unit = self.units.get(base) or LoggedUnit(base)
        if len(self.units) < _MOST:
            self.units[base] = unit
        return unit


def decode(data: bytes) -> str:
    """A log's text; bytes that are not UTF-8 become marks that match nothing."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return data.decode(encoding, "replace")


def read_text(path: Path) -> str:
    """A text file's content.  Raises `BadMachine` for what is no readable file, is compressed, or is too large to be a log."""
    return text_of(read_bytes(path, _MOST_BYTES, "a log: give the part from one boot"), str(path))


def text_of(data: bytes, where: str) -> str:
    """The text in a file's bytes; `where` names the file.  Raises `BadMachine` for what is compressed."""
    if data[:2] == b"\x1f\x8b":
        raise BadMachine(f"{where}: compressed with gzip: unpack it first")
    return decode(data)


def parse_log(text: str) -> KernelLog:
    """The findings of one boot: the one whose memory map is used, of several in one log."""
    lines = [line[:_LONGEST_LINE] for line in text.splitlines()]
    log = KernelLog(maps=read_maps(lines))
    functions: dict[tuple[int, int], _Function] = {}
    for line in _one_boot(lines, log.map.lines[0] if log.map else 1):
        _read_line(log, functions, line)
    log.functions = tuple(_finish(f) for f in functions.values() if f.vendor is not None)
    return log


def _one_boot(lines: Sequence[str], anchor: int) -> Sequence[str]:
    """The lines of the boot that line number `anchor` (from 1) lies in; a boot starts at its `Linux version`, the first one at the top."""
    starts = [n for n, line in enumerate(lines) if "Linux version " in line]
    first = max([n for n in starts[1:] if n < anchor], default=0)
    return lines[first:min([n for n in starts[1:] if n >= anchor], default=len(lines))]


_Handler = Callable[[KernelLog, re.Match[str]], None]


def _drhd(log: KernelLog, m: re.Match[str]) -> None:
    log.unit(int(m[1], 16)).flags = int(m[2], 16)


def _registers(log: KernelLog, m: re.Match[str]) -> None:
    unit = log.unit(int(m[1], 16))
    unit.version, unit.cap, unit.ecap = int(m[2]) << 4 | int(m[3]), int(m[4], 16), int(m[5], 16)


def _rmrr(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.rmrrs, (int(m[1], 16), int(m[2], 16) + 1))


def _rmrr_device(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.rmrr_devices, (int(m[2], 16), int(m[3], 16) + 1, parse_bdf(m[1])[1]))


def _atsr(log: KernelLog, m: re.Match[str]) -> None:
    if len(log.atsrs) < _MOST:
        log.atsrs.append(int(m[1], 16))


def _rhsa(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.rhsas, (int(m[1], 16), int(m[2], 16)))


def _andd(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.andds, (int(m[1], 16), m[2]))


def _ioapic(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.unit(int(m[2], 16)).ioapics, int(m[1]))


def _hpet(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.unit(int(m[2], 16)).hpets, int(m[1]))


def _namespace(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.unit(int(m[1], 16)).namespace, parse_bdf(m[2])[1])


def _width(log: KernelLog, m: re.Match[str]) -> None:
    log.host_address_width = int(m[1]) or None


def _table(log: KernelLog, m: re.Match[str]) -> None:
    log.tables.setdefault(m[1], (int(m[2], 16), int(m[3], 16)))


def _ecam(log: KernelLog, m: re.Match[str]) -> None:
    base, first, last, segment = (int(m[name], 16) for name in ("base", "first", "last", "segment"))
    if first <= last and base % (1 << 20) == 0:
        _once(log.ecams, EcamDescription(base, first, last, segment))


def _nvme(log: KernelLog, m: re.Match[str]) -> None:
    segment, source = parse_bdf(m[1])
    _once(log.nvme, (segment, source))


def _root_bus(log: KernelLog, m: re.Match[str]) -> None:
    log.root_buses.add(int(m[1], 16))


def _opt_out(log: KernelLog, m: re.Match[str]) -> None:
    log.x2apic_opt_out = True


def _left_on(log: KernelLog, m: re.Match[str]) -> None:
    _once(log.left_on, m[1])


def _numa(log: KernelLog, m: re.Match[str]) -> None:
    log.numa = True


def _amd(log: KernelLog, m: re.Match[str]) -> None:
    log.amd = True


def _once(items: list[_T], item: _T) -> None:
    if len(items) < _MOST and item not in items:
        items.append(item)


_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})\b"
_DOMAIN = r"for domain (?P<segment>[0-9a-f]{4}) \[bus (?P<first>[0-9a-f]{2})-(?P<last>[0-9a-f]{2})\]"
_BDF = r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7])"

_HANDLERS: tuple[tuple[str, re.Pattern[str], _Handler], ...] = tuple((word, re.compile(pattern), handler) for word, pattern, handler in (
    ("Host address width", r"Host address width (\d{1,2})\b", _width),
    ("DRHD base", rf"DRHD base: {_HEX} flags: {_HEX}", _drhd),
    (" ecap ", rf"(?:reg_base_addr|IOMMU) ([0-9a-f]{{6,16}}):? ver (\d):(\d) cap {_HEX} ecap {_HEX}", _registers),
    ("RMRR base", rf"RMRR base: {_HEX} end: {_HEX}", _rmrr),
    ("identity map", rf"etting identity map for device {_BDF} \[(?:mem )?{_HEX} ?- ?{_HEX}\]", _rmrr_device),
    ("ATSR flags", rf"ATSR flags: {_HEX}", _atsr),
    ("RHSA base", rf"RHSA base: {_HEX} proximity domain: {_HEX}", _rhsa),
    ("ANDD device", r"ANDD device: ([0-9a-f]{1,2}) name: ([!-~]{1,255})", _andd),
    ("under DMAR at", r"ACPI device .* under DMAR at ([0-9a-f]{6,16}) as ([0-9a-f]{2}:[01][0-9a-f]\.[0-7])", _namespace),
    ("under DRHD base", rf"IOAPIC id (\d{{1,3}}) under DRHD base +{_HEX}", _ioapic),
    ("under DRHD base", rf"HPET id (\d{{1,3}}) under DRHD base +{_HEX}", _hpet),
    ("ACPI: ", rf"ACPI: ([A-Z][A-Z0-9]{{3}}) {_HEX} {_HEX} \(v", _table),
    (" for domain ", rf"MMCONFIG {_DOMAIN} at \[mem (?P<base>0x[0-9a-f]{{1,16}})-", _ecam),
    (" for domain ", rf"ECAM \[mem (?P<base>0x[0-9a-f]{{1,16}})-0x[0-9a-f]+\] \(base 0x[0-9a-f]+\) {_DOMAIN}", _ecam),
    ("pci function", rf"nvme\d+: pci function {_BDF}", _nvme),
    ("root bus resource", r"pci_bus 0000:([0-9a-f]{2}): root bus resource", _root_bus),
    ("x2apic", r"x2apic is disabled because BIOS sets x2apic opt out", _opt_out),
    ("IRQ remapping was", r"IRQ remapping was enabled on ([a-z0-9]{1,16}) but we are not in kdump mode", _left_on),
    ("SRAT", r"SRAT: (?:Node \d|PXM \d)|ACPI: SRAT ", _numa),
    ("AMD-Vi", r"AMD-Vi: (?!AMD IOMMUv2)", _amd),
))
"""A word that the line must have, what it looks like, what to do with it."""


def _read_line(log: KernelLog, functions: dict[tuple[int, int], _Function], line: str) -> None:
    for word, pattern, handler in _HANDLERS:
        m = pattern.search(line) if word in line else None
        if m:
            handler(log, m)
    m = _PCI.search(line)
    if m:
        segment, source = parse_bdf(m[1])
        _read_function(functions.setdefault((segment, source), _Function(source, segment)), m[2])


_PCI = re.compile(rf"\bpci {_BDF}: (.+)")
_FOUND = re.compile(r"(?:found )?\[([0-9a-fA-F]{4}):([0-9a-fA-F]{4})\] "
                    r"(?:type (\d{1,2}) class 0x([0-9a-fA-F]{6})|class ([0-9a-fA-F]{6}) header type (\d{2}))(.*)")
_PORT_TYPES = {
    "PCIe Endpoint": PortType.ENDPOINT, "PCIe Legacy Endpoint": PortType.LEGACY_ENDPOINT, "PCIe Root Port": PortType.ROOT_PORT,
    "PCIe Switch Upstream Port": PortType.UPSTREAM_PORT, "PCIe Switch Downstream Port": PortType.DOWNSTREAM_PORT,
    "PCIe to PCI/PCI-X bridge": PortType.PCIE_TO_PCI_BRIDGE, "PCI/PCI-X to PCIe bridge": PortType.PCI_TO_PCIE_BRIDGE,
    "PCIe Root Complex Integrated Endpoint": PortType.INTEGRATED_ENDPOINT,
    "PCIe Root Complex Event Collector": PortType.EVENT_COLLECTOR}
"""The port type in the words of kernels that print it; "conventional PCI" begins what has none."""
_BAR = re.compile(r"(?:reg (?:0x)?([12][048c])|BAR ([0-5])):? (?:(64bit mmio|32bit mmio|io port): )?"
                  r"\[(?:(mem|io) +)?0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})( 64bit)?( pref)?")
_BUSES = re.compile(r"PCI bridge to \[bus ([0-9a-f]{2})(?:-([0-9a-f]{2}))?\](.*)")


def _read_function(function: _Function, text: str) -> None:
    m = _FOUND.match(text)
    if m:
        _identify(function, m)
    m = _BAR.match(text)
    if m:
        index = int(m[2]) if m[2] else (int(m[1], 16) - 0x10) // 4
        function.bars.setdefault(index, _bar(index, m))
    m = _BUSES.match(text)
    if m:
        function.buses = int(m[1], 16), int(m[2] or m[1], 16)
        function.conventional |= "subtractive" in m[3]


def _identify(function: _Function, m: re.Match[str]) -> None:
    """Vendor, device, class.  Kernels before 3.3 print `type 0` and the class without its interface byte; new ones the port type."""
    function.vendor, function.device_id = int(m[1], 16), int(m[2], 16)
    function.class_code = int(m[4] or m[5], 16) << (8 if m[3] and len(m[3]) == 1 else 0) & 0xFFFFFF
    function.bridge = int(m[3] or m[6]) == 1
    function.conventional = m[7].strip().startswith("conventional PCI")
    function.port_type = _PORT_TYPES.get(m[7].strip())


def _bar(index: int, m: re.Match[str]) -> BarDescription:
    start, end = int(m[5], 16), int(m[6], 16) + 1
    port = m[4] == "io" or m[3] == "io port"
    kind = "io" if port else "mem64" if m[7] or m[3] == "64bit mmio" else "mem32"
    return BarDescription(index, kind, end - start, start or None, bool(m[8]))


def _finish(f: _Function) -> PciDescription:
    secondary, subordinate = f.buses if f.bridge else (0, 0)
    bars = tuple(f.bars[i] for i in sorted(f.bars))
    return PciDescription(f.source, f.vendor or 0, f.device_id, f.class_code, "bridge" if f.bridge else "stub", f.segment, bars=bars,
                          secondary=secondary, subordinate=subordinate, pcie=not f.conventional, port_type=f.port_type)
