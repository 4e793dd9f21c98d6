"""Exceptions, INT n and SYSCALL of a guest, which the emulator leaves to its hooks: carried out as the processor does it, on the guest's
own descriptor tables and stacks (AMD64 Architecture Programmer's Manual, volume 2, sections 8.9 and 6.1.1; long mode only)."""

from ..spec.svm import EFER_SCE, ControlArea
from .emulator import CONDITIONS, Env, State
from .gates import Gates, Table, Taker
from .memory import Memory

__all__ = ["Exceptions"]

_INVALID_OPCODE = 6
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_RF = 1 << 16
_CPL, _INHIBIT_IRQ, _ADD_SEGMENT, _CODE_64, _LONG_MODE = 3, 1 << 3, 1 << 6, 1 << 15, 1 << 15 | 1 << 5 | 1 << 4
"""Bits of the emulator's HFLAGS: level, STI's shadow, non-zero segment bases, 64-bit code, with 32-bit stack."""
_ALL_ONES = (1 << 64) - 1
_CS, _SS = Env.SEGS + 24, Env.SEGS + 48
_FLAT_CODE, _FLAT_STACK = 0x00A09B00, 0x00C09300
_SYSCALL = 2
"""Bytes of SYSCALL and of SYSENTER, which the emulator adds to RIP after its hook."""


class Exceptions:
    """Delivers to the guest that runs on the processor of `state`; its nested tables are found by the VMCB in `memory`."""

    def __init__(self, memory: Memory, state: State):
        self.memory, self.state, self._q, self._d = memory, state, state.q, state.d
        self._gates = Gates(memory)

    def deliver(self, vector: int, vmcb: int) -> bool:
        """The exception or INT n that the emulator has just raised, by the VMCB at a host-physical address.

        Where it cannot be delivered, what comes of it is; False where a double fault fails, too: the processor shuts down.
        """
        where, d = self.state.where, self._d
        software = bool(d[where.exception_is_int // 4])
        code = d[where.error_code // 4] if vector in _WITH_ERROR_CODE and not software else None
        d[where.exception_is_int // 4] = 0
        d[where.old_exception // 4] = 0xFFFFFFFF
        return self._deliver(vector, code, software, vmcb)

    def syscall(self, vmcb: int) -> bool:
        """SYSCALL of 64-bit code or, by CSTAR, of 32-bit code; #UD where EFER.SCE is 0, and False where that cannot be delivered.

        RIP is left before the target by the instruction's two bytes, which the emulator adds afterwards.
        """
        q, d, where = self._q, self._d, self.state.where
        if not q[where.efer // 8] & EFER_SCE:
            return self.undefined(vmcb)
        flags = self.state.rflags()
        q[1], q[11] = q[Env.EIP // 8] + _SYSCALL & _ALL_ONES, flags & ~_RF
        q[Env.EFLAGS // 8] = q[Env.EFLAGS // 8] & ~(q[where.fmask // 8] | _RF) & _ALL_ONES | 2
        kept = flags & ~q[where.fmask // 8]
        q[Env.CC_SRC // 8], d[Env.CC_OP // 4] = kept & 0x8D5, CONDITIONS
        d[Env.DF // 4] = 0xFFFFFFFF if kept & 1 << 10 else 1
        selector, target = q[where.star // 8] >> 32 & 0xFFFC, where.lstar if d[Env.HFLAGS // 4] & _CODE_64 else where.cstar
        self._segment(_CS, selector, 0xFFFFFFFF, _FLAT_CODE)
        self._segment(_SS, selector + 8, 0xFFFFFFFF, _FLAT_STACK)
        self._enter(0)
        q[Env.EIP // 8] = q[target // 8] - _SYSCALL & _ALL_ONES
        return True

    def undefined(self, vmcb: int) -> bool:
        """The same instruction, or a SYSENTER, as a #UD: what SYSENTER is in long mode (volume 3); RIP and the answer as for `syscall`."""
        q = self._q
        taken = self._deliver(_INVALID_OPCODE, None, False, vmcb)
        q[Env.EIP // 8] = q[Env.EIP // 8] - _SYSCALL & _ALL_ONES
        return taken

    @property
    def without_io(self) -> bool:
        """Whether the code's level is above IOPL, so that the TSS says which ports it may use."""
        return self._d[Env.HFLAGS // 4] & _CPL > self._q[Env.EFLAGS // 8] >> 12 & 3

    def may_use_port(self, port: int, width: int, vmcb: int) -> bool:
        """Whether the bitmap in the TSS allows such code an access of `width` bytes."""
        return self._gates.port_allowed(self._taker(vmcb), port, width)

    def _deliver(self, vector: int, code: int | None, software: bool, vmcb: int) -> bool:
        taker, q = self._taker(vmcb), self._q
        if not self._gates.deliver(taker, vector, code, software):
            return False
        q[4], q[Env.EIP // 8], q[Env.CR2 // 8] = taker.rsp, taker.rip, taker.cr2
        q[Env.EFLAGS // 8] &= ~taker.cleared
        if taker.null_ss:
            self._segment(_SS, taker.cpl, 0, taker.cpl << 13)
        self._segment(_CS, taker.cs, 0xFFFFFFFF, taker.rights)
        self._enter(taker.cpl)
        return True

    def _taker(self, vmcb: int) -> Taker:
        """The guest's registers as they are."""
        q, d = self._q, self._d
        return Taker(q[Env.EIP // 8], q[4], self.state.rflags(), d[_CS // 4] & 0xFFFF, d[_SS // 4] & 0xFFFF, d[Env.HFLAGS // 4] & _CPL,
                     q[Env.CR0 // 8], q[Env.CR2 // 8], q[Env.CR3 // 8], q[Env.CR4 // 8], self.memory.read64(vmcb + ControlArea.N_CR3),
                     self._table(Env.GDT), self._table(Env.LDT), self._table(Env.IDT), self._table(Env.TR), d[Env.TR // 4])

    def _table(self, at: int) -> Table:
        return Table(self._q[at // 8 + 1], self._d[at // 4 + 4])

    def _segment(self, at: int, selector: int, limit: int, attributes: int) -> None:
        d = self._d
        d[at // 4], self._q[at // 8 + 1], d[at // 4 + 4], d[at // 4 + 5] = selector, 0, limit, attributes

    def _enter(self, level: int) -> None:
        d = self._d
        d[Env.HFLAGS // 4] = d[Env.HFLAGS // 4] & ~(_CPL | _INHIBIT_IRQ | _ADD_SEGMENT) | level | _LONG_MODE
