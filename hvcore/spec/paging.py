"""Page-table formats as data: one walker and one scanner serve every table of the machine.

An address is cut into a 12-bit offset and 9 index bits a level; level 1 is the lowest:

    level    4      3      2      1    offset
    bits   47:39  38:30  29:21  20:12   11:0       an entry spans 512 GiB, 1 GiB, 2 MiB, 4 KiB

Sources: Intel VT-d 4.1, section 9.8 (second-stage entries) and 10.4.2-3 (CAP, ECAP); Intel SDM 3A, section 4.5 and 3C, section 29.3;
AMD64 APM 2, sections 5.3 and 15.25.
"""

from dataclasses import dataclass

from . import vtd
from .bits import bit, mask

__all__ = ["EPT", "LONG_MODE", "NESTED", "PAGE", "SIZE_NAMES", "VTD", "PagingFormat", "Permission", "vtd_format"]

PAGE = 4096
ENTRIES = 512
SIZE_NAMES = vtd.PAGE_SIZE_NAMES
"""What a leaf of a level is called."""



@dataclass(frozen=True, slots=True)
class Permission:
    """One right: an entry grants it when every bit of `needs` is set and every bit of `forbids` is clear."""

    letter: str
    needs: int
    forbids: int = 0

    def granted(self, word: int) -> bool:
        """Whether `word` grants this right (to its own level; rights AND down the levels)."""
        return word & self.needs == self.needs and not word & self.forbids


@dataclass(frozen=True, slots=True)
class PagingFormat:
    """How the 8-byte entries of one kind of page table are read.

    An entry is present when any bit of `present` is set.  A set of rights is a number: bit i stands for `permissions[i]`.
    `superpage` marks a leaf at the levels of `superpage_levels`.  `reserved_table` and `reserved_leaf` hold, per level from level 1 up,
    the bits that must be zero in a present entry; empty means that nothing is known and nothing is checked.
    """

    name: str
    present: int
    permissions: tuple[Permission, ...]
    superpage_levels: frozenset[int]
    address: int = vtd.ADDRESS
    superpage: int = vtd.SP
    reserved_table: tuple[int, ...] = ()
    reserved_leaf: tuple[int, ...] = ()

    @property
    def all(self) -> int:
        """The set of every right."""
        return (1 << len(self.permissions)) - 1

    @property
    def permission_bits(self) -> int:
        """Every entry bit that takes part in presence or rights."""
        bits = self.present
        for p in self.permissions:
            bits |= p.needs | p.forbids
        return bits

    @staticmethod
    def shift(level: int) -> int:
        """Bits of address below the index of `level`."""
        return 12 + 9 * (level - 1)

    @classmethod
    def span(cls, level: int) -> int:
        """Bytes that one entry of `level` covers."""
        return 1 << cls.shift(level)

    @classmethod
    def index(cls, address: int, level: int) -> int:
        """Which entry of a `level` table serves `address`."""
        return address >> cls.shift(level) & ENTRIES - 1

    def is_present(self, word: int) -> bool:
        """Whether the walk goes on at this entry."""
        return bool(word & self.present)

    def is_leaf(self, word: int, level: int) -> bool:
        """Whether the entry maps memory rather than naming a table."""
        return level == 1 or level in self.superpage_levels and bool(word & self.superpage)

    def target(self, word: int, level: int) -> int:
        """The physical address in the entry: of the page it maps, or of the next table."""
        address = word & self.address
        return address & -self.span(level) if self.is_leaf(word, level) else address

    def rights(self, word: int) -> int:
        """The rights that the entry alone grants; none where it is not present."""
        if not self.is_present(word):
            return 0
        return sum(1 << i for i, p in enumerate(self.permissions) if p.granted(word))

    def text(self, rights: int) -> str:
        """A set of rights in letters: `rw`, `r`, `-`."""
        return "".join(p.letter for i, p in enumerate(self.permissions) if rights >> i & 1) or "-"

    def reserved(self, word: int, level: int) -> int:
        """The bits set in a present entry that must be zero."""
        masks = self.reserved_leaf if self.is_leaf(word, level) else self.reserved_table
        return word & masks[level - 1] if masks and self.is_present(word) else 0


_BIG = frozenset({2, 3})
_PRESENT, _WRITE, _USER, _NO_EXECUTE = bit(0), bit(1), bit(2), bit(63)

VTD = PagingFormat("VT-d second level", vtd.R | vtd.W, (Permission("r", vtd.R), Permission("w", vtd.W)), _BIG)
"""VT-d legacy mode with nothing known of the unit: every superpage allowed, no reserved bits."""

EPT = PagingFormat("EPT", mask(2), (Permission("r", bit(0)), Permission("w", bit(1)), Permission("x", bit(2))), _BIG)
"""Intel nested paging."""

LONG_MODE = PagingFormat("x86-64", _PRESENT, (Permission("r", _PRESENT), Permission("w", _PRESENT | _WRITE),
                                              Permission("x", _PRESENT, _NO_EXECUTE), Permission("u", _PRESENT | _USER)), _BIG)
"""A CPU's own tables under EFER.LMA: rights of the supervisor, and `u` where user code has them too."""

NESTED = PagingFormat("AMD nested", _PRESENT, (Permission("r", _PRESENT | _USER), Permission("w", _PRESENT | _USER | _WRITE),
                                               Permission("x", _PRESENT | _USER, _NO_EXECUTE)), _BIG)
"""AMD nested paging: long-mode entries, every guest access counting as a user's."""


def vtd_format(cap: int, ecap: int, host_address_width: int = 52) -> PagingFormat:
    """The second-level format of a unit with these capabilities: superpages by CAP.SLLPS, reserved bits by `vtd.entry_reserved`.

    `host_address_width` in bits; 52 where it is not known.
    """
    tables, leaves = (tuple(vtd.entry_reserved(level, leaf, cap, ecap, host_address_width) for level in range(1, 7))
                      for leaf in (False, True))
    superpages = frozenset(vtd.leaf_levels(cap)) - {1}
    return PagingFormat(VTD.name, VTD.present, VTD.permissions, superpages, reserved_table=tables, reserved_leaf=leaves)
