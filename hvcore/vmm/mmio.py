"""Registers that the core answers in a device's place: the guest's access faults, its instruction is decoded and carried out here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..machine.bus import MmioDevice
from ..machine.memory import Memory
from .instruction import code_at_rip
from .vmcb import Vmcb

__all__ = ["Trap", "carry_out", "trap_at"]


@dataclass(frozen=True)
class Trap:
    """Guest-physical addresses [start, end), in whole pages, at which accesses go to `device`; its offsets count from `start`."""

    start: int
    end: int
    device: MmioDevice


def trap_at(traps: Sequence[Trap], address: int) -> Trap | None:
    """The trap that holds a guest-physical address."""
    return next((t for t in traps if t.start <= address < t.end), None)


@cache
def _decoder() -> Any:
    import capstone
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    return decoder


_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_NUMBERS = {name: (i, 0) for i, name in enumerate(_REGISTERS)} | {
    name: (i, 0) for i, stem in enumerate(("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")) for name in (f"e{stem}", stem)} | {
    name: (i, 0) for i, name in enumerate(("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"))} | {
    name: (i, 8) for i, name in enumerate(("ah", "ch", "dh", "bh"))} | {
    f"r{n}{width}": (n, 0) for n in range(8, 16) for width in "dwb"}
"""The registers of an operand: number in the instruction set, and the bit where it begins."""
_LOADS = {"mov": False, "movabs": False, "movzx": False, "movsx": True, "movsxd": True}
"""Instructions that move a value, and whether they extend its sign."""


def carry_out(memory: Memory, vmcb: Vmcb, trap: Trap, address: int) -> str | None:
    """Does what the instruction at the guest's RIP wants of guest-physical `address` and steps behind it; why not, where it cannot.

    Knows the moves (MOV, MOVZX, MOVSX): what drivers use for registers.
    """
    instruction = next(_decoder().disasm(code_at_rip(memory, vmcb), 0, 1), None)
    if instruction is None:
        return "its instruction cannot be decoded"
    if not _is_move(instruction):
        return f"`{instruction.mnemonic} {instruction.op_str}` is no instruction that is carried out for registers"
    target, source = instruction.operands
    if target.type == _memory_operand():
        trap.device.mmio_write(address - trap.start, target.size, _value(vmcb, instruction, source, target.size))
    else:
        value = trap.device.mmio_read(address - trap.start, source.size) & (1 << 8 * source.size) - 1
        if _LOADS[instruction.mnemonic] and value >> 8 * source.size - 1:
            value |= -1 << 8 * source.size
        _store(vmcb, instruction.reg_name(target.reg), target.size, value)
    vmcb.skip(instruction.size)
    return None


def _is_move(instruction: Any) -> bool:
    """Whether it moves a value between memory and a general register, or a number to memory."""
    kinds = [operand.type for operand in instruction.operands]
    named = [instruction.reg_name(operand.reg) for operand in instruction.operands if operand.type == 1]
    return (instruction.mnemonic in _LOADS and len(kinds) == 2 and kinds.count(_memory_operand()) == 1
            and all(name in _NUMBERS for name in named))


@cache
def _memory_operand() -> int:
    import capstone.x86
    return int(capstone.x86.X86_OP_MEM)


def _value(vmcb: Vmcb, instruction: Any, operand: Any, width: int) -> int:
    """What an operand that is no memory holds, in `width` bytes."""
    name = instruction.reg_name(operand.reg) if operand.type == 1 else None
    if name is None:
        return int(operand.imm) & (1 << 8 * width) - 1
    number, shift = _NUMBERS[name]
    return vmcb.register(number) >> shift & (1 << 8 * width) - 1


def _store(vmcb: Vmcb, name: str, width: int, value: int) -> None:
    """A register gets `width` bytes; 4 of them clear the upper half, as the processor has it."""
    number, shift = _NUMBERS[name]
    if width >= 4:
        vmcb.set_register(number, value & (1 << 8 * width) - 1)
        return
    mask = (1 << 8 * width) - 1 << shift
    vmcb.set_register(number, vmcb.register(number) & ~mask | value << shift & mask)
