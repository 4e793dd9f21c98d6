"""The guest's memory as the storage driver reaches it: only what the guest's own processor reaches as RAM, and where PRP entries lead."""

from collections.abc import Iterator

from ...machine.longmode import translate
from ...machine.memory import PAGE, Memory
from ...spec.nvme import Status
from ..layout import Data, Part
from ..nested import REACH

__all__ = ["GuestMemory", "prp_pages"]


class GuestMemory:
    """Guest-physical memory by the nested tables of the core whose region is [base, base + size), which is never the guest's."""

    def __init__(self, memory: Memory, base: int, size: int):
        self.memory, self.base, self.size = memory, base, size

    def host(self, address: int) -> int | None:
        """Where the page of a guest-physical address lies (host-physical); None where it is no RAM of the guest's."""
        if address >= REACH:
            return None
        root = self.memory.read64(self.base + Part.DATA + Data.N_CR3)
        page = translate(self.memory, root, address & -PAGE)
        if page is None or not self.memory.backed(page, PAGE) or self.base <= page < self.base + self.size:
            return None
        return page

    def owns(self, address: int, length: int) -> bool:
        """Whether all of [address, address + length) is the guest's."""
        return all(self.host(page) is not None for page in range(address & -PAGE, address + length, PAGE))

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes at a guest-physical address; None, and nothing read, where one is not the guest's."""
        places = list(self._places(address, length))
        return None if None in places else b"".join(self.memory.read(p[0], p[1]) for p in places if p)

    def write(self, address: int, data: bytes) -> bool:
        """Bytes to a guest-physical address; False, and nothing written, where one is not the guest's."""
        places = list(self._places(address, len(data)))
        if None in places:
            return False
        at = 0
        for place in places:
            assert place is not None
            self.memory.write(place[0], data[at:at + place[1]])
            at += place[1]
        return True

    def _places(self, address: int, length: int) -> Iterator[tuple[int, int] | None]:
        """The (host-physical address, length) pieces of a range, page by page; None for a page that is not the guest's."""
        end = address + length
        while address < end:
            size = min(end - address, PAGE - address % PAGE)
            page = self.host(address)
            yield None if page is None else (page + address % PAGE, size)
            address += size


def prp_pages(guest: GuestMemory, prp1: int, prp2: int, length: int) -> list[int] | Status:
    """Guest-physical addresses at which `length` bytes of a command lie, one for each page (NVM Express Base 1.4, section 4.3).

    The core follows the lists; a status where an entry is wrong or leads to what is not the guest's.
    """
    if prp1 % 4:
        return Status.PRP_OFFSET_INVALID
    rest = length - (PAGE - prp1 % PAGE)
    more: list[int] | Status = []
    if rest > 0:
        more = [prp2] if rest <= PAGE else _listed(guest, prp2, -(-rest // PAGE))
    if isinstance(more, Status):
        return more
    if any(page % PAGE for page in more):
        return Status.PRP_OFFSET_INVALID
    pages = [prp1, *more]
    return pages if all(guest.host(page) is not None for page in pages) else Status.DATA_TRANSFER_ERROR


def _listed(guest: GuestMemory, address: int, count: int) -> list[int] | Status:
    """`count` entries of the PRP list at `address`; the last entry of a full page of it points to the next one."""
    if address % 8:
        return Status.PRP_OFFSET_INVALID
    entries: list[int] = []
    while True:
        slots, missing = (PAGE - address % PAGE) // 8, count - len(entries)
        data = guest.read(address, 8 * min(slots, missing))
        if data is None:
            return Status.DATA_TRANSFER_ERROR
        entries += (int.from_bytes(data[i:i + 8], "little") for i in range(0, len(data), 8))
        if missing <= slots:
            return entries
        address = entries.pop()
        if address % PAGE:
            return Status.PRP_OFFSET_INVALID
