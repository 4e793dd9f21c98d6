"""The guest's current instruction: read through the guest's own tables and the nested ones, its length told by capstone."""

from functools import cache
from typing import Any

from ..machine.longmode import translate_nested
from ..machine.memory import Memory
from ..spec.svm import ControlArea, SaveArea
from .vmcb import Vmcb

__all__ = ["code_at_rip", "length_at_rip"]

LONGEST = 15


@cache
def _decoder() -> Any:
    import capstone
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def code_at_rip(memory: Memory, vmcb: Vmcb) -> bytes:
    """Up to 15 bytes from the guest's RIP on; fewer where they cannot be read."""
    rip = vmcb.get(SaveArea.RIP)
    code = b""
    for address in (rip, rip + 4096 & ~0xFFF):
        physical = translate_nested(memory, vmcb.get(SaveArea.CR3), vmcb.get(ControlArea.N_CR3), address)
        length = min(LONGEST - len(code), 4096 - address % 4096)
        if physical is None or not length or not memory.backed(physical, length):
            break
        code += memory.read(physical, length)
    return code


def length_at_rip(memory: Memory, vmcb: Vmcb) -> int | None:
    """Bytes of the instruction at the guest's RIP; None where it cannot be read or decoded."""
    found = next(_decoder().disasm_lite(code_at_rip(memory, vmcb), 0, 1), None)
    return int(found[1]) if found else None
