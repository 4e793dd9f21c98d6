"""NVMe's data pointers and data pages: where a command's data lie, what Identify returns (NVM Express Base Specification 1.4)."""

from collections.abc import Callable

from ..spec.nvme import PAGE, VERSION, Status
from ..spec.pci import format_bdf
from .description import PciDescription
from .disk import BLOCK

__all__ = ["ENTRY_SIZES", "EVENT_LIMIT", "MAX_TRANSFER", "NAMESPACE", "active_namespaces", "identify_controller",
           "identify_namespace", "namespace_descriptors", "prp_pieces"]

MAX_TRANSFER = PAGE << 5
"""Bytes that one command may move (MDTS = 5)."""

NAMESPACE = 1
"""The only namespace."""

ABORT_LIMIT = EVENT_LIMIT = 4
"""Abort commands and Asynchronous Event Requests that may wait at once."""

ENTRY_SIZES = (6, 4)
"""Log2 of the bytes of a submission and a completion queue entry: what CC.IOSQES and CC.IOCQES must say."""

_DATASET_MANAGEMENT, _WRITE_ZEROES = 1 << 2, 1 << 3

Pieces = list[tuple[int, int]]


def prp_pieces(fetch: Callable[[int, int], bytes | None], prp1: int, prp2: int, length: int) -> Pieces | Status:
    """The (IOVA, length) pieces of `length` bytes (section 4.3), or why there are none.

    `fetch(iova, length)` reads a PRP list; None from it is a failed transfer.
    """
    if prp1 % 4:
        return Status.PRP_OFFSET_INVALID
    first = min(length, PAGE - prp1 % PAGE)
    rest = length - first
    if rest == 0:
        return [(prp1, first)]
    pages = [prp2] if rest <= PAGE else _list_entries(fetch, prp2, -(-rest // PAGE))
    if isinstance(pages, Status):
        return pages
    if any(page % PAGE for page in pages):
        return Status.PRP_OFFSET_INVALID
    sizes = [PAGE] * (len(pages) - 1) + [rest - PAGE * (len(pages) - 1)]
    return [(prp1, first), *zip(pages, sizes, strict=True)]


def _list_entries(fetch: Callable[[int, int], bytes | None], address: int, count: int) -> list[int] | Status:
    """`count` page addresses from the PRP list at `address`: the last entry of a full list page points to the next one."""
    if address % 8:
        return Status.PRP_OFFSET_INVALID
    entries: list[int] = []
    while True:
        slots, missing = (PAGE - address % PAGE) // 8, count - len(entries)
        data = fetch(address, 8 * min(slots, missing))
        if data is None:
            return Status.DATA_TRANSFER_ERROR
        entries += (int.from_bytes(data[i:i + 8], "little") for i in range(0, len(data), 8))
        if missing <= slots:
            return entries
        address = entries.pop()
        if address % PAGE:
            return Status.PRP_OFFSET_INVALID


def _text(data: bytearray, offset: int, size: int, text: str) -> None:
    data[offset:offset + size] = text.encode("ascii").ljust(size)[:size]


def identify_controller(description: PciDescription) -> bytes:
    """The Identify Controller page (figure 247)."""
    data, name = bytearray(PAGE), format_bdf(description.source)
    data[0:2], data[2:4] = description.vendor.to_bytes(2, "little"), description.subsystem[0].to_bytes(2, "little")
    _text(data, 4, 20, f"HVLAB-{description.segment:04x}:{name}")
    _text(data, 24, 40, "hvlab NVMe controller")
    _text(data, 64, 8, "1")
    data[72] = 6
    data[77] = (MAX_TRANSFER // PAGE).bit_length() - 1
    data[80:84] = VERSION.to_bytes(4, "little")
    data[258], data[259], data[260] = ABORT_LIMIT - 1, EVENT_LIMIT - 1, 0x03
    data[512], data[513] = ENTRY_SIZES[0] * 0x11, ENTRY_SIZES[1] * 0x11
    data[516:520] = NAMESPACE.to_bytes(4, "little")
    data[520:522] = (_DATASET_MANAGEMENT | _WRITE_ZEROES).to_bytes(2, "little")
    data[525] = 1
    nqn = f"nqn.2014-08.org.nvmexpress:hvlab:{description.segment:04x}:{name}".encode("ascii")
    data[768:768 + len(nqn)] = nqn
    data[2048:2050] = (2500).to_bytes(2, "little")
    return bytes(data)


def _eui64(description: PciDescription) -> bytes:
    """An identifier of the namespace, made from the function's address."""
    return b"\x02hvlab" + description.source.to_bytes(2, "big")


def active_namespaces(after: int) -> bytes:
    """The list of namespace ids greater than `after`."""
    return (NAMESPACE.to_bytes(4, "little") if after < NAMESPACE else b"").ljust(PAGE, b"\0")


def identify_namespace(description: PciDescription, blocks: int) -> bytes:
    """The Identify Namespace page (figure 245): one format, blocks of 512 bytes."""
    data = bytearray(PAGE)
    for offset in (0, 8, 16):
        data[offset:offset + 8] = blocks.to_bytes(8, "little")
    data[120:128] = _eui64(description)
    data[130] = BLOCK.bit_length() - 1
    return bytes(data)


def namespace_descriptors(description: PciDescription) -> bytes:
    """The Namespace Identification Descriptor list (figure 246): its EUI64."""
    return (bytes([1, 8, 0, 0]) + _eui64(description)).ljust(PAGE, b"\0")
