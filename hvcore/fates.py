"""How a guest fares: by what it printed, by what stopped it, and by the first fault that a unit recorded of its devices."""

from collections.abc import Sequence

from . import outcome
from .inspect.faults import Fault
from .machine.schedule import waits
from .spec.interrupts import INTERRUPT_REASONS
from .spec.pci import format_bdf
from .twoguests import Resident
from .vmm.core import Core

__all__ = ["by_console", "of_resident", "text_of"]


def by_console(linux: bool, text: str, faults: Sequence[Fault]) -> outcome.Ending:
    """A guest at rest, a Linux or the lab guest, which printed `text`; `faults` are its devices'."""
    tell = outcome.of_linux if linux else outcome.of_console
    return tell(text, _sentence(faults[0]) if faults else None)


def of_resident(resident: Resident, core: Core | None, linux: bool, faults: Sequence[Fault]) -> outcome.Ending:
    """One of two guests; a fault is of the guest whose domain the requester belongs to."""
    if resident.ended is None and not waits(resident.seat):
        return outcome.Ending("running", "its processor is at work: it does not wait for input")
    share = core.tiny.share if core and core.tiny else None
    own = [f for f in faults if (share is not None and f.source in share.requesters) == (resident.number == 2)]
    return resident.ended or by_console(linux, text_of(resident.seat.serial), own)


def text_of(serial: bytes | bytearray) -> str:
    """A serial line's bytes as text: UTF-8 where all of it is, as a Linux prints it, else a character a byte."""
    data = bytes(serial).replace(b"\r", b"")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _sentence(fault: Fault) -> str:
    if fault.reason in INTERRUPT_REASONS:
        return f"{format_bdf(fault.source)}'s interrupt with index {fault.address:#x} was blocked ({fault.text}, reason {fault.reason:#x})"
    return f"{format_bdf(fault.source)}'s DMA {fault.access} at {fault.address:#x} was blocked ({fault.text}, reason {fault.reason})"
