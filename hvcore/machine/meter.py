"""How much code the processor has executed, and the virtual time that it takes: the emulator's own code counts blocks down, and stops at
zero, when the next timer is due.

A block is what runs without a jump.  The counter is a few bytes of machine code behind the emulator's block hook, for x86-64 computers
with the System V calling convention; it costs about 2 ns a block.  Elsewhere nothing is counted and computing takes no virtual time.
"""

import ctypes
import mmap
import platform

from unicorn import UC_HOOK_BLOCK, Uc
from unicorn.unicorn_py3.unicorn import uclib

from .clock import Clock
from .rawhook import raw_hook

__all__ = ["BLOCK_NS", "Meter"]

BLOCK_NS = 2
"""Virtual time that a block of code takes, which is 7 or 8 instructions of a kernel."""
_ENDLESS = 1 << 40
"""Blocks where no timer is due."""

_COUNT = bytes.fromhex("48897110 48ff09 7407 80791800 7501 c3 ff6108")
"""mov [rcx + 16], rsi; dec qword [rcx]; je +7; cmp byte [rcx + 24], 0; jne +1; ret; jmp [rcx + 8]: rdi is the emulator, rsi the block's
address, rcx the `_Fuel`; the jump goes to `uc_emu_stop`."""
_NOWHERE = (1 << 64) - 1


class _Fuel(ctypes.Structure):
    _fields_ = (("left", ctypes.c_int64), ("stop", ctypes.c_uint64), ("block", ctypes.c_uint64), ("poked", ctypes.c_uint64))


class Meter:
    """Counts the blocks that `uc` executes from now on and lets the time of `clock` pass for them.  `total` is what has been accounted."""

    def __init__(self, uc: Uc, clock: Clock):
        self.clock, self.total = clock, 0
        self._fuel, self._filled = _Fuel(_ENDLESS, 0, _NOWHERE, 0), _ENDLESS
        self._was_empty = False
        self._page = _machine_code()
        if self._page is not None:
            self._fuel.stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value or 0
            code = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
            raw_hook(uc, UC_HOOK_BLOCK, ctypes.c_void_p(code), ctypes.c_void_p(ctypes.addressof(self._fuel)))

    @property
    def works(self) -> bool:
        """Whether blocks are counted on this computer."""
        return self._page is not None

    def elapse(self, nanoseconds: int = 0) -> None:
        """Time passes: for what was computed since it last did, and `nanoseconds` more."""
        left = int(self._fuel.left)
        done, self._filled = self._filled - left, left
        self.total += done
        self.clock.advance(done * BLOCK_NS + nanoseconds)

    def refuel(self) -> None:
        """After `elapse`: code may run until the next timer is due; then emulation stops."""
        due = self.clock.next()
        blocks = _ENDLESS if due is None else max((due - self.clock.now) // BLOCK_NS, 0) + 1
        self._fuel.left = self._filled = blocks + 1

    def poke(self) -> None:
        """Stops emulation at the beginning of the next block; from hooks and from any thread.

        `uc_emu_stop` from there would have the emulator skip the hooks of what is left of the block: an OUT would be lost.
        """
        self._fuel.poked = 1

    def begin(self) -> None:
        """Emulation begins: whoever poked before has been heard."""
        self._fuel.poked = 0

    def stopped_at(self, rip: int) -> None:
        """Emulation has stopped: a stop comes at the beginning of a block that is counted already and has not run yet."""
        self._was_empty = self.empty
        if self._fuel.block == rip:
            self._fuel.left += 1
        self._fuel.block = _NOWHERE

    @property
    def was_empty(self) -> bool:
        """Whether all of them had run when emulation stopped last."""
        return self._was_empty

    @property
    def empty(self) -> bool:
        """Whether all of them have run."""
        return bool(self._fuel.left <= 0)


def _machine_code() -> mmap.mmap | None:
    """An executable page with the counter; None where that cannot be."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() == "Windows":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page[:len(_COUNT)] = _COUNT
    return page
