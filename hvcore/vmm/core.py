"""The hypervisor core from its first instruction to the guest's: memory, DMAR, remapping units, nested paging, world switch."""

import hashlib
import struct
from collections.abc import Callable
from importlib.resources import files

from ..errors import BadTable, Unreadable
from ..machine.firmware import read_e820
from ..machine.memory import PAGE
from ..spec import acpi, vtd
from ..spec.bits import align_up
from ..spec.e820 import E820Entry
from ..spec.linuxboot import Elf, Kernel
from ..spec.pci import format_bdf
from ..spec.svm import ControlArea
from . import dmar, ioapic, iommu, irte, messages, msi, nested, passthrough, protection, storage
from .config import Config
from .exits import GUARDED_MSRS, Exits
from .guest import GuestStart, load_guest
from .heap import Heap, Panic
from .layout import HEAP, SECRET_SIZE, Data, Part
from .memmap import FOUR_GIB, choose_region, guest_map
from .mmio import Trap
from .pci import Function, find_devices, requesters, with_aliases
from .platform import Console, Platform, SplitPlatform
from .tiny import TinyVisor
from .tiny.exits import TinyExits
from .vmcb import fresh_vmcb, msr_permissions

__all__ = ["Core"]

_HOST_GDT = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0)
RSI = 6
_RESERVE = 256
"""Pages that a domain whose tables do not fit leaves to the rest of the core, where it does not give up for that."""


def _no_progress(_phase: str) -> None:
    pass


def _open() -> None:
    """A gate at which nobody is held."""


class Core:
    """One hypervisor on a platform.  `base` and `size` are its region (host-physical), once chosen.

    `progress` is told each phase; at `gate`, which long work passes often, whoever runs the core can hold it.
    """

    def __init__(self, platform: SplitPlatform, config: Config, progress: Callable[[str], None] = _no_progress,
                 gate: Callable[[], None] = _open):
        self.platform, self.config, self.progress, self.gate = platform, config, progress, gate
        self.memory, self.bus = platform.memory, platform.bus
        self.console = Console(platform.bus)
        self.size = config.VMM_SIZE_MIB << 20
        self.base: int | None = None
        self.boot_params: int | None = None
        self.heap: Heap | None = None
        self.passed: passthrough.Passed | None = None
        self.ioapics: tuple[dmar.NamedIoApic, ...] = ()
        self.msi: list[msi.MsiCapability] = []
        self.traps: list[Trap] = []
        self.pollers: list[Callable[[], None]] = []
        self.tiny: TinyVisor | None = None
        self.storage: storage.Attached | None = None

    def boot(self, guest: Elf | Kernel, command_line: str) -> Exits:
        """Everything up to the first VMRUN; the platform's processor then stands at the stub.  Raises Panic, whose message is printed."""
        try:
            return self._boot(guest, command_line)
        except Panic as panic:
            self.console.print(f"panic: {panic}")
            raise
        except Unreadable as fault:
            self.console.print(f"panic: {fault}")
            raise Panic(str(fault)) from fault

    def _boot(self, image: Elf | Kernel, command_line: str) -> Exits:
        self.progress("vmm memory")
        e820 = read_e820(self.memory)
        usable = sum(e.size for e in e820 if e.usable)
        self.console.print(f"{usable} bytes ({usable >> 20} MiB) RAM available.")
        try:
            self.base = base = choose_region(e820, self.size)
        except Panic:
            self.console.print("Out of memory.")
            raise
        self.console.print(f"VMM will use 0x{base:08X}-0x{base + self.size:08X} ({self.size >> 20} MiB).")
        self.memory.u8(base, HEAP)[:] = 0
        self.heap = heap = Heap(self.memory, base + HEAP, base + self.size, base + Part.DATA + Data.HEAP_NEXT)
        early = self.config.EARLY_PROTECTION and self.config.VTD_TRANS
        if not early:
            self.lay_out(base)
        units = self.acpi_dmar_init(e820)
        unit = iommu.Iommu(self.memory, self.bus, heap, units, self.console)
        if early:
            protection.close(unit, (base, base + self.size))
            self.lay_out(base)
        self.console.print("Processor 0 (BSP)")
        self.console.print("Using SVM.")
        self.console.print("Loading drivers.")
        self.iommu_setup(unit, e820, heap, base)
        self.progress("guest")
        if self.passed:
            self.traps += passthrough.watch(self.memory, self.bus, heap, self.passed, (base, base + self.size), self.console)
        guest = guest_map(e820, self.passed.address if self.passed else base)
        guest = self.tiny.rest(guest) if self.tiny else guest
        start = load_guest(self.memory, image, guest, command_line)
        self.boot_params = start.boot_params
        self.start_guest(start, heap, base, units)
        if self.tiny:
            self.tiny.confine_first(heap, base)
            self.tiny.start_second(image, command_line, heap)
        self.console.print("Starting a virtual machine.")
        return self.policy(base, heap)

    def policy(self, base: int, heap: Heap) -> Exits:
        """What the core does at the exits of its guest, of two at those of the first."""
        if self.tiny:
            return TinyExits(self.platform, base, 1, self.traps, self.pollers)
        if not self.msi:
            return Exits(self.platform, base, self.traps, self.pollers)
        msi.guard_ports(self.memory, heap, base)
        exits = msi.MsiExits(self.platform, base, self.traps, self.pollers, self.msi)
        self.platform.cpu.on_io = exits.on_io
        return exits

    def lay_out(self, base: int) -> None:
        """Stub, secret, blank page and permission map into the region: from here on there is something to protect."""
        self.progress("vmm laid")
        self.memory.write(base + Part.TEXT, stub())
        self.memory.write(base + Part.SECRET, hashlib.sha256(f"storage key of the core at {base:#x}".encode()).digest()[:SECRET_SIZE])
        self.memory.write(base + Part.MSRPM, msr_permissions(GUARDED_MSRS))

    # --- remapping

    def acpi_dmar_init(self, e820: tuple[E820Entry, ...]) -> list[dmar.Unit]:
        """Finds the DMAR, takes its units, hides it from the guest or gives it another one."""
        self.progress("acpi")
        address = dmar.find_dmar(self.memory)
        if address is None:
            self.console.print("ACPI DMAR not found.")
            return []
        self.console.print("ACPI DMAR found.")
        units = dmar.parse_dmar_bios_report(self.memory, address, self.console)
        if self.config.VTD_TRANS and "ZAPPED_SIGNATURE_ASSERT" in self.config.QUIRKS:
            dmar.zap(self.memory, address, 1)
            raise Panic("Assertion failed!(r) function acpi_dmar_init file core/x86/acpi_dmar.c line 1039")
        if "SCOPE_BY_EXACT_FUNCTION" not in self.config.QUIRKS:
            units = dmar.parse_by_the_book(self.memory, address, with_aliases(self.bus, find_devices(self.bus)), self.console)
        if self.config.DMAR_PASS_THROUGH and self.base is not None:
            self.passed = passthrough.install(self.memory, self.bus, address, e820, (self.base, self.base + self.size), self.console)
        self.ioapics = dmar.named_ioapics(self.memory, address)
        dmar.zap(self.memory, address, 4)
        if self.config.DISABLE_VTD and not self.config.VTD_TRANS:
            for unit in units:
                self.bus.write(unit.base + 0x18, 4, 0)
        return units

    def iommu_setup(self, unit: iommu.Iommu, e820: tuple[E820Entry, ...], heap: Heap, base: int) -> None:
        """Driver stage 95: domain 0, then the units."""
        self.progress("pci")
        self.console.print("PCI: finding devices...")
        functions = find_devices(self.bus)
        self.console.print(f"PCI: {len(functions)} devices found on PCI segment 0")
        if self.config.TINYVISOR:
            self.tiny = TinyVisor(self, functions, guest_map(e820, base), self.config.GUEST2_DEVICES)
        if self.config.NVME_DRIVER:
            self.load_storage(functions, heap, base)
        functions = functions if "SCOPE_BY_EXACT_FUNCTION" in self.config.QUIRKS else with_aliases(self.bus, functions)
        self._print_mcfg()
        if not self.config.VTD_TRANS or not unit.units:
            return
        unit.refuse_conflict()
        self.progress("iommu tables")
        caps = [cap for cap, _ in unit.caps()]
        levels = iommu.address_width(caps, "AGAW_FROM_LAST_UNIT" in self.config.QUIRKS, self.console)
        self.console.print("(IOMMU) dom 0(PT Devs.) ", end="")
        root = iommu.map_domain(self.memory, heap, levels, self._map_end(e820), (base, base + self.size), self._superpages(caps),
                                self.gate, _RESERVE if "IGNORED_OUT_OF_MEMORY" in self.config.QUIRKS else None)
        self.console.print("... Ready.")
        others = self.tiny.domain_1(heap, root, levels) if self.tiny else []
        functions = senders = self.tiny.of_guest_1(functions) if self.tiny else functions
        if self.storage and "DRIVER_IN_ITS_OWN_HOLE" not in self.config.QUIRKS:
            others, functions = self.storage_domain(self.storage, functions, heap, levels)
        self.progress("iommu on")
        if self.config.INTERRUPT_REMAPPING:
            protection.block_interrupts(unit)
            self.answer_for_interrupts(irte.EntryTables(unit), senders)
        unit.setup(iommu.Domain(0, levels, root), functions, "SCOPE_BY_EXACT_FUNCTION" in self.config.QUIRKS, others)
        if self.config.EARLY_PROTECTION:
            protection.open_up(unit)

    def answer_for_interrupts(self, entries: irte.EntryTables, functions: list[Function]) -> None:
        """Stands in for what sends interrupts of the guest's, each with entries of its unit's table."""
        self.traps += ioapic.trap_ioapics(entries, functions, self.ioapics) + messages.trap_tables(entries, functions)
        self.msi = [] if self.tiny else msi.find_msi(entries, functions)
        self.traps += msi.trap_msi(entries, self.msi)

    def load_storage(self, functions: list[Function], heap: Heap, base: int) -> None:
        """The core's driver for the first NVMe controller, where there is one."""
        stubborn = "DRIVER_IN_ITS_OWN_HOLE" in self.config.QUIRKS
        self.storage = storage.attach(self.platform, heap, base, self.size, functions, self.console, stubborn)
        if self.storage:
            self.traps.append(self.storage.trap)
            self.pollers.append(self.storage.driver.poll)

    def storage_domain(self, held: storage.Attached, functions: list[Function], heap: Heap,
                       levels: int) -> tuple[list[tuple[iommu.Domain, list[Function]]], list[Function]]:
        """Domain 1, for the controller of the core's driver under each of its requester ids, and the functions that are left."""
        seen = requesters(self.bus, functions)
        own = {held.source, seen[held.source]}
        for source in sorted(s for s in seen if seen[s] in own and s not in own):
            self.console.print(f"(IOMMU) {format_bdf(source)} has the requester id of the core's NVMe: it reaches the shadow only")
        table = iommu.map_only(self.memory, heap, levels, *held.shadow)
        members = [f for f in functions if f.source in own]
        return [(iommu.Domain(1, levels, table), members)], [f for f in functions if f.source not in own]

    def _map_end(self, e820: tuple[E820Entry, ...]) -> int:
        """Where domain 0 ends (IOVA), by IOMMU_MAP_END."""
        if self.config.IOMMU_MAP_END == "4gib":
            return FOUR_GIB
        entries = [e for e in e820 if e.usable] if self.config.IOMMU_MAP_END == "ram" else e820
        return align_up(max(e.end for e in entries), PAGE)

    def _superpages(self, caps: list[int]) -> bool:
        """Whether 2 MiB leaves are wanted and every unit has them."""
        return self.config.IOMMU_SUPERPAGES and all(vtd.CAP.get(cap, "SLLPS") & 1 for cap in caps)

    def _print_mcfg(self) -> None:
        try:
            windows = [w for t in acpi.tables(self.memory) if t.signature == "MCFG" and t.length
                       for w in acpi.parse_mcfg(self.memory.read(t.address, t.length)).windows]
        except (BadTable, Unreadable):
            return
        for i, w in enumerate(windows):
            size = (w.last - w.first + 1) << 20
            self.console.print(f"MCFG [{i}] {w.segment:04X}:{w.first:02X}-{w.last:02X} ({w.base:X},{size:X})")

    # --- the guest

    def start_guest(self, start: GuestStart, heap: Heap, base: int, units: list[dmar.Unit]) -> None:
        """Tables of both pagings, VMCB, data page; then the processor stands at the stub."""
        withheld = [page for unit in units for page in self._register_pages(unit)] if self.config.HIDE_VTD_REGS else []
        host = nested.build_host(self.memory, heap, base + Part.TEXT)
        trapped = [page for trap in self.traps for page in range(trap.start, trap.end, PAGE)]
        n_cr3 = nested.build_nested(self.memory, heap, (base, base + self.size), base + Part.BLANK, withheld, trapped)
        self.stand_at_stub(self.platform, base, start, host, n_cr3)

    def stand_at_stub(self, platform: Platform, base: int, start: GuestStart, host: int, n_cr3: int) -> None:
        """VMCB and data page of the block at `base`; then the platform's processor stands at its stub.

        `host` and `n_cr3` are the roots of the core's own tables and of the guest's nested ones.
        """
        self.memory.write(base + Part.VMCB, fresh_vmcb(base + Part.MSRPM, n_cr3, start.entry, start.cr3, start.gdt, start.stack))
        data = base + Part.DATA
        for offset, value in ((Data.VMCB, base + Part.VMCB), (Data.HOST, base + Part.HOST), (Data.CR3, host), (Data.N_CR3, n_cr3),
                              (Data.HSAVE, base + Part.HSAVE), (Data.STACK, base + Part.MSRPM), (Data.GPRS + 8 * RSI, start.boot_params)):
            self.memory.write64(data + offset, value)
        self.memory.write(data + Data.WAIT, b"\1")
        self.memory.write(data + Data.GDT, struct.pack("<4Q", *_HOST_GDT))
        self.memory.write(data + Data.GDTR, struct.pack("<HQ", 31, data + Data.GDT))
        platform.cpu.start(base + Part.TEXT, host, base + Part.HSAVE)

    def _register_pages(self, unit: dmar.Unit) -> range:
        """Host-physical pages that a unit's registers take, by its own capability registers."""
        registers = vtd.registers(self.bus.read(unit.base + 0x08, 8), self.bus.read(unit.base + 0x10, 8))
        return range(unit.base, unit.base + align_up(max(r.offset + r.size for r in registers), PAGE), PAGE)

    def nested_root(self) -> int | None:
        """Root of the guest's nested tables (host-physical) as its VMCB has it; None before there is a guest."""
        if self.base is None or self.boot_params is None:
            return None
        try:
            return self.memory.read64(self.memory.read64(self.base + Part.DATA + Data.VMCB) + ControlArea.N_CR3)
        except Unreadable:
            return None

    def text_intact(self) -> bool:
        """Whether the stub in memory is still the one the core put there, that of a second guest too."""
        second = self.tiny.guest.base if self.tiny and self.tiny.guest else None
        return all(base is None or self.memory.read(base + Part.TEXT, len(stub())) == stub() for base in (self.base, second))


def stub() -> bytes:
    """The world switch's machine code."""
    return (files("hvcore.vmm") / "stub" / "world_switch.bin").read_bytes()
