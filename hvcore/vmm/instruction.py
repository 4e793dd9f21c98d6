"""How long the guest's current instruction is: read through the guest's own tables, decoded by capstone."""

from functools import cache
from typing import Any

from ..machine.longmode import translate
from ..machine.memory import Memory
from ..spec.svm import SaveArea
from .vmcb import Vmcb

__all__ = ["length_at_rip"]

LONGEST = 15


@cache
def _decoder() -> Any:
    import capstone
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def length_at_rip(memory: Memory, vmcb: Vmcb) -> int | None:
    """Bytes of the instruction at the guest's RIP; None where it cannot be read or decoded."""
    rip = vmcb.get(SaveArea.RIP)
    code = b""
    for address in (rip, rip + 4096 & ~0xFFF):
        physical = translate(memory, vmcb.get(SaveArea.CR3), address)
        if physical is None or len(code) >= LONGEST:
            break
        code += memory.read(physical, min(LONGEST - len(code), 4096 - address % 4096))
    found = next(_decoder().disasm_lite(code, rip, 1), None)
    return int(found[1]) if found else None
