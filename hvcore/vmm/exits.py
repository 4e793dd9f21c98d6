"""What the core does at each #VMEXIT.  It remembers nothing: the VMCB, the tables and the registers in memory are all it knows."""

from collections.abc import Callable, Mapping, Sequence

from ..machine.longmode import translate
from ..spec import svm
from ..spec.apic import APIC_BASE, APIC_BASE_MSR, LOCAL_APIC_ADDRESS
from ..spec.svm import ControlArea, ExitCode, SaveArea, exit_name
from .heap import Panic
from .instruction import length_at_rip
from .layout import Data, Part
from .mmio import Trap, carry_out, trap_at
from .platform import Platform
from .vmcb import RFLAGS_IF, Vmcb

__all__ = ["GUARDED_MSRS", "Exits", "GuestDead"]

GUARDED_MSRS = (svm.EFER, svm.VM_CR, svm.VM_HSAVE_PA, APIC_BASE_MSR)
"""MSRs by which a guest could leave its cage, or lay the local APIC over what it may not see."""
APIC_BASE_VALUE = APIC_BASE.make(BASE=LOCAL_APIC_ADDRESS >> 12, EN=1, BSP=1)
RAX, RCX, RDX, RBX = range(4)
SVM_FEATURE_LEAF, SVM_LEAF, SVM_FEATURE = 0x80000001, 0x8000000A, 1 << 2
DOUBLE_FAULT, GENERAL_PROTECTION, PAGE_FAULT, INVALID_OPCODE = 8, 13, 14, 6
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_EVENT_TYPE = 7 << 8


class GuestDead(Exception):
    """The guest cannot go on; the message says how it died."""


class Exits:
    """The policy of one guest on the core's region at `base` (host-physical).

    `traps` are registers that the core answers in a device's place; each of `pollers` is called whenever the core has the processor.
    """

    def __init__(self, platform: Platform, base: int, traps: Sequence[Trap] = (), pollers: Sequence[Callable[[], None]] = ()):
        self.platform, self.base, self.memory = platform, base, platform.memory
        self.traps, self.pollers = tuple(traps), tuple(pollers)
        self.count = 0
        named: Mapping[ExitCode, Callable[[Vmcb], None]] = {
            ExitCode.INTR: self.intr, ExitCode.CPUID: self.cpuid, ExitCode.HLT: self.hlt, ExitCode.MSR: self.msr,
            ExitCode.INVD: self.invd, ExitCode.SHUTDOWN: self.shutdown, ExitCode.VMMCALL: self.vmmcall,
            ExitCode.NPF: self.nested_page_fault,
        } | dict.fromkeys((ExitCode.VMRUN, ExitCode.VMLOAD, ExitCode.VMSAVE, ExitCode.STGI, ExitCode.CLGI, ExitCode.SKINIT), self.undefined)
        self.handlers = {int(code): handler for code, handler in named.items()}

    def on_door(self) -> None:
        """The stub asks: an exit to handle, or the processor woke from a halt."""
        vmcb = Vmcb(self.memory, self.base)
        waiting = self.base + Part.DATA + Data.WAIT
        if self.memory.map[waiting]:
            self.memory.write(waiting, b"\0")
        else:
            self.count += 1
            self.handle(vmcb)
        for poll in self.pollers:
            poll()
        self.deliver_interrupt(vmcb)

    def on_io(self) -> None:
        """An access to an intercepted port: the VMCB says which, and takes the answer."""
        self.count += 1
        self.handle(Vmcb(self.memory, self.base))

    def handle(self, vmcb: Vmcb) -> None:
        """One exit."""
        code = vmcb.get(ControlArea.EXITCODE)
        if ExitCode.EXCEPTION <= code < ExitCode.EXCEPTION + 32:
            self.reflect(vmcb, code - ExitCode.EXCEPTION)
        elif handler := self.handlers.get(code):
            handler(vmcb)
        else:
            raise Panic(f"{exit_name(code)} at guest RIP {vmcb.get(SaveArea.RIP):#x}, which the core did not ask for")

    def deliver_interrupt(self, vmcb: Vmcb) -> None:
        """Injects what the interrupt controller has for a guest that would take it."""
        if self.platform.interrupts.pending() is not None and vmcb.interruptible:
            vmcb.inject(svm.EVENT_EXTERNAL | self.platform.interrupts.acknowledge())
            self.memory.write(self.base + Part.DATA + Data.WAIT, b"\0")

    # --- exits, by name

    def intr(self, vmcb: Vmcb) -> None:
        """An interrupt waits, and the guest would take it: it is injected like one that came at any other exit."""

    def cpuid(self, vmcb: Vmcb) -> None:
        """The processor as it is, but without AMD-V."""
        leaf = vmcb.register(RAX) & 0xFFFF_FFFF
        values = list(self.platform.cpu.cpuid(leaf, vmcb.register(RCX) & 0xFFFF_FFFF)) if leaf != SVM_LEAF else [0] * 4
        if leaf == SVM_FEATURE_LEAF:
            values[2] &= ~SVM_FEATURE
        for register, value in zip((RAX, RBX, RCX, RDX), values, strict=True):
            vmcb.set_register(register, value)
        vmcb.skip(2)

    def hlt(self, vmcb: Vmcb) -> None:
        """Lets the processor halt until an interrupt; a guest that has shut interrupts off will never wake."""
        if not vmcb.get(SaveArea.RFLAGS) & RFLAGS_IF:
            raise GuestDead(f"the guest halted for good (HLT with interrupts off) at RIP {vmcb.get(SaveArea.RIP):#x}")
        vmcb.skip(1)
        if not vmcb.get(ControlArea.EVENTINJ) & svm.EVENT_VALID:
            self.memory.write(self.base + Part.DATA + Data.WAIT, b"\1")

    def reflect(self, vmcb: Vmcb, vector: int) -> None:
        """Gives the guest its own exception.  One that came up while another was being delivered is a double fault, then a shutdown."""
        code = vmcb.get(ControlArea.EXITINFO1) & 0xFFFF_FFFF if vector in _WITH_ERROR_CODE else None
        before = vmcb.get(ControlArea.EXITINTINFO)
        if before & svm.EVENT_VALID and before & _EVENT_TYPE == svm.EVENT_EXCEPTION:
            if before & 0xFF == DOUBLE_FAULT:
                raise GuestDead(f"triple fault: exception {vector} while a double fault was delivered, at RIP {vmcb.get(SaveArea.RIP):#x}")
            vector, code = DOUBLE_FAULT, 0
        elif vector == PAGE_FAULT:
            vmcb.set(SaveArea.CR2, vmcb.get(ControlArea.EXITINFO2))
        vmcb.inject_exception(vector, code)

    def msr(self, vmcb: Vmcb) -> None:
        """RDMSR or WRMSR of a guarded register."""
        number, write = vmcb.register(RCX) & 0xFFFF_FFFF, vmcb.get(ControlArea.EXITINFO1) & 1
        if number == APIC_BASE_MSR:
            return self._apic_base(vmcb, bool(write))
        if number != svm.EFER:
            return vmcb.inject_exception(GENERAL_PROTECTION, 0)
        efer = vmcb.get(SaveArea.EFER)
        if not write:
            vmcb.set_register(RAX, efer & ~svm.EFER_SVME & 0xFFFF_FFFF)
            vmcb.set_register(RDX, 0)
            return vmcb.skip(2)
        value = vmcb.register(RAX) & 0xFFFF_FFFF | (vmcb.register(RDX) & 0xFFFF_FFFF) << 32
        if value & ~(svm.EFER_SCE | svm.EFER_LME | svm.EFER_LMA | svm.EFER_NXE):
            return vmcb.inject_exception(GENERAL_PROTECTION, 0)
        vmcb.set(SaveArea.EFER, value & ~svm.EFER_LMA | efer & svm.EFER_LMA | svm.EFER_SVME)
        return vmcb.skip(2)

    def _apic_base(self, vmcb: Vmcb, write: bool) -> None:
        """IA32_APIC_BASE: the local APIC stays on and where it is; it may be written as it was."""
        low, high = vmcb.register(RAX) & 0xFFFF_FFFF, vmcb.register(RDX) & 0xFFFF_FFFF
        if write and (high << 32 | low) != APIC_BASE_VALUE:
            return vmcb.inject_exception(GENERAL_PROTECTION, 0)
        if not write:
            vmcb.set_register(RAX, APIC_BASE_VALUE)
            vmcb.set_register(RDX, 0)
        return vmcb.skip(2)

    def invd(self, vmcb: Vmcb) -> None:
        """Nothing to write back here."""
        vmcb.skip(2)

    def shutdown(self, vmcb: Vmcb) -> None:
        """A triple fault."""
        raise GuestDead(f"triple fault at RIP {vmcb.get(SaveArea.RIP):#x}")

    def vmmcall(self, vmcb: Vmcb) -> None:
        """RAX 0 asks whether somebody is there and gets 1; every other number gets all ones."""
        vmcb.set_register(RAX, 1 if vmcb.register(RAX) == 0 else -1)
        vmcb.skip(3)

    def undefined(self, vmcb: Vmcb) -> None:
        """The guest's processor has no AMD-V."""
        vmcb.inject_exception(INVALID_OPCODE)

    def nested_page_fault(self, vmcb: Vmcb) -> None:
        """An access to registers that the core answers; or a write to the blank page behind which it hides, which is lost, as writes to a
        ROM are.  Anything else should not happen."""
        address = vmcb.get(ControlArea.EXITINFO2)
        if trap := trap_at(self.traps, address):
            if why := carry_out(self.memory, vmcb, trap, address):
                raise GuestDead(f"the access to {address:#x} at RIP {vmcb.get(SaveArea.RIP):#x} cannot be carried out: {why}")
            return
        root = self.memory.read64(self.base + Part.DATA + Data.N_CR3)
        page = translate(self.memory, root, address & ~0xFFF)
        if page != self.base + Part.BLANK:
            raise Panic(f"nested page fault at guest-physical {address:#x} (error code {vmcb.get(ControlArea.EXITINFO1):#x}, "
                        f"guest RIP {vmcb.get(SaveArea.RIP):#x}): the nested tables do not map it")
        length = length_at_rip(self.memory, vmcb)
        if length is None:
            raise GuestDead(f"the instruction at RIP {vmcb.get(SaveArea.RIP):#x}, which writes to {address:#x}, cannot be decoded")
        vmcb.skip(length)
