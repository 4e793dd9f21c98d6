"""Values in words, for text and HTML alike.  Absence is an empty cell; addresses and unknown bits are hex."""

from collections.abc import Iterable

from ..spec.pci import format_bdf

__all__ = ["address", "devices", "plain", "size", "source", "yes_no"]

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def plain(value: object) -> str:
    """As `str` does; nothing for None."""
    return "" if value is None else str(value)


def address(value: object) -> str:
    """An address or a register in hex: `0x79be0000`."""
    return f"{value:#x}" if isinstance(value, int) else ""


def size(value: object) -> str:
    """Bytes in the largest unit that fits: `128 MiB`, `3.98 GiB`, `640 B`."""
    if not isinstance(value, int):
        return ""
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value // unit} {name}" if value % unit == 0 else f"{value / unit:.2f} {name}"
    return f"{value} B"


def source(value: object) -> str:
    """A requester id as Linux prints it: `00:02.0`."""
    return format_bdf(value) if isinstance(value, int) else ""


def devices(values: object) -> str:
    """Requester ids in one cell; beyond 12 the rest is counted."""
    if not isinstance(values, Iterable):
        return ""
    names = [v if isinstance(v, str) else source(v) for v in values]
    more = len(names) - 12
    return " ".join(names[:12]) + (f" and {more} more" if more > 0 else "")


def yes_no(value: object) -> str:
    """A flag in words."""
    return "" if value is None else "yes" if value else "no"
