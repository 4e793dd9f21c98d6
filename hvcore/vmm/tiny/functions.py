"""PCI functions as two guests share them: who may reach which configuration space, and where a function's windows lie.

A function map in the core's memory has two bits for each requester id: bit 0 lets the guest read its configuration space, bit 1 write it.
"""

from collections.abc import Callable, Iterable

from ...errors import BadTable, Unreadable
from ...machine.bus import Bus
from ...machine.memory import PAGE, Memory
from ...spec import acpi, pci
from ..platform import config_read

__all__ = ["MAP_PAGES", "allowed", "config_pages", "config_write", "config_window", "function_map", "mapped_functions",
           "put_within", "windows"]

MAP_PAGES = 4
"""Pages of a function map: 2^16 requester ids of two bits each."""
READ, WRITE = 1, 2
_BARS = 6
_IO, _TYPE, _WIDE = 1, 6, 4
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
Range = tuple[int, int]


def function_map(everything: bool, given: Iterable[int], shared: Iterable[int]) -> bytes:
    """A map that grants everything but `given`, or nothing but that; of `shared` reading only."""
    bits = bytearray(b"\xff" * (MAP_PAGES * PAGE) if everything else MAP_PAGES * PAGE)
    for source in given:
        _put(bits, source, 0 if everything else READ | WRITE)
    for source in shared:
        _put(bits, source, READ)
    return bytes(bits)


def _put(bits: bytearray, source: int, rights: int) -> None:
    shift = 2 * (source % 4)
    bits[source // 4] = bits[source // 4] & ~(3 << shift) | rights << shift


def allowed(memory: Memory, at: int, source: int, write: bool) -> bool:
    """Whether the function map at `at` (host-physical) lets its guest read or write the configuration space of a function.

    Raises Unreadable where no map can be there.
    """
    rights = memory.read(at + source // 4, 1)[0] >> 2 * (source % 4)
    return bool(rights & (WRITE if write else READ))


def mapped_functions(memory: Memory, at: int, sources: Iterable[int]) -> tuple[int, ...]:
    """Those of `sources` that are the guest's own by the function map at `at`: it may write their configuration space."""
    return tuple(source for source in sources if allowed(memory, at, source, write=True))


# --- windows

def config_write(bus: Bus, source: int, offset: int, width: int, value: int) -> None:
    """A write to PCI configuration space of segment 0 by mechanism 1."""
    bus.port_write(CONFIG_ADDRESS, 4, 1 << 31 | source << 8 | offset & 0xFC)
    bus.port_write(CONFIG_DATA + (offset & 3), width, value)


def put_within(bus: Bus, source: int, offset: int, width: int, value: int, own: Callable[[int, int], bool]) -> None:
    """A write to configuration space that takes no effect where the function would then answer memory that is not all `own`."""
    first = offset & ~3
    if first != pci.COMMAND and not pci.BAR0 <= first < pci.BAR0 + 4 * _BARS:
        return config_write(bus, source, offset, width, value)
    command, before = config_read(bus, source, pci.COMMAND, 2), config_read(bus, source, first, 4)
    if first == pci.COMMAND:
        config_write(bus, source, offset, width, value)
    else:
        config_write(bus, source, pci.COMMAND, 2, command & ~pci.COMMAND_MEMORY)
        config_write(bus, source, offset, width, value)
    wanted = config_read(bus, source, pci.COMMAND, 2) if first == pci.COMMAND else command
    if wanted & pci.COMMAND_MEMORY and not all(own(*window) for window in windows(bus, source)):
        wanted = command
        if first != pci.COMMAND:
            config_write(bus, source, first, 4, before)
    return config_write(bus, source, pci.COMMAND, 2, wanted)


def windows(bus: Bus, source: int) -> list[Range]:
    """The half-open host-physical ranges of a function's memory base address registers, sized as software does it; the function does
    not answer there meanwhile."""
    command = config_read(bus, source, pci.COMMAND, 2)
    config_write(bus, source, pci.COMMAND, 2, command & ~(pci.COMMAND_MEMORY | pci.COMMAND_IO))
    found, index = [], 0
    while index < _BARS:
        low = config_read(bus, source, pci.BAR0 + 4 * index, 4)
        dwords = 2 if not low & _IO and low & _TYPE == _WIDE and index < _BARS - 1 else 1
        if not low & _IO and (window := _window(bus, source, pci.BAR0 + 4 * index, dwords)):
            found.append(window)
        index += dwords
    config_write(bus, source, pci.COMMAND, 2, command)
    return found


def _window(bus: Bus, source: int, offset: int, dwords: int) -> Range | None:
    """What a memory register of one or two dwords decodes; None where it holds no address or has no size."""
    values, kept = [], []
    for at in range(offset, offset + 4 * dwords, 4):
        values.append(config_read(bus, source, at, 4))
        config_write(bus, source, at, 4, 0xFFFFFFFF)
        kept.append(config_read(bus, source, at, 4))
        config_write(bus, source, at, 4, values[-1])
    start, mask = (sum(v << 32 * i for i, v in enumerate(words)) & ~0xF for words in (values, kept))
    return (start, start + (mask & -mask)) if start and mask else None


def config_pages(memory: Memory, sources: Iterable[int]) -> list[int]:
    """The pages of the configuration windows (MCFG) in which functions of segment 0 are found, host-physical."""
    found = _config_windows(memory)
    return [w.base + source * PAGE for source in sources for w in found if w.first <= source >> 8 <= w.last]


def config_window(memory: Memory) -> int:
    """Where the first configuration window of segment 0 has bus 0 (host-physical); 0 where there is none."""
    return next((w.base for w in _config_windows(memory)), 0)


def _config_windows(memory: Memory) -> list[acpi.McfgWindow]:
    try:
        return [w for t in acpi.tables(memory) if t.signature == "MCFG" and t.length
                for w in acpi.parse_mcfg(memory.read(t.address, t.length)).windows if not w.segment]
    except (BadTable, Unreadable):
        return []
