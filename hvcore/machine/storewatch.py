"""Who is told of a processor's stores to some ranges of memory."""

from collections.abc import Callable, Iterable

from unicorn import UC_HOOK_MEM_WRITE, Uc
from unicorn import x86_const as x86

__all__ = ["StoreWatch", "Stores"]

Stores = Callable[[int, bytes, int, bool], None]
"""Told of stores: host-physical address, data, RIP, whether it is the guest's."""


class StoreWatch:
    """Watches the code of `uc`; `in_guest` tells whether a store is the guest's.  Every store, wherever it goes, takes 27 ns longer once
    there is a range to be watched."""

    def __init__(self, uc: Uc, in_guest: Callable[[], bool]):
        self._uc, self._in_guest = uc, in_guest
        self._wanted: list[tuple[int, int, Stores]] = []

    def want(self, ranges: Iterable[tuple[int, int]], stores: Stores) -> None:
        """`stores` is to be called before each store to the host-physical half-open `ranges`, from the next `begin` on."""
        self._wanted += [(start, end, stores) for start, end in ranges]

    def begin(self) -> bool:
        """Outside emulation: hooks what is wanted, for which all code is translated anew.  True: there was something."""
        wanted, self._wanted = self._wanted, []
        for start, end, stores in wanted:
            self._uc.hook_add(UC_HOOK_MEM_WRITE, self._on_store, stores, start, end - 1)
        if wanted:
            self._uc.ctl_flush_tb()
        return bool(wanted)

    def _on_store(self, uc: Uc, _access: int, address: int, size: int, value: int, stores: Stores) -> None:
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        stores(address, data, uc.reg_read(x86.UC_X86_REG_RIP), self._in_guest())
