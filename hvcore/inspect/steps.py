"""What a guest's processor did and holds: instructions executed one by one, exits to the core, registers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..spec.svm import exit_name
from . import format as show
from .records import Column, Record

__all__ = ["REGISTERS", "ExitStep", "Registers", "Step", "decode"]

REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "cr0", "cr2",
             "cr3", "cr4", "cs", "ss")
"""The registers that are shown, in this order; of the segments the selectors."""


@cache
def _decoder() -> Any:
    import capstone
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def decode(code: bytes, address: int) -> tuple[int, str] | None:
    """Length and text of the 64-bit instruction that begins `code`, which lies at the guest-virtual `address`; None for what is none."""
    found = next(_decoder().disasm_lite(code, address, 1), None)
    return (found[1], f"{found[2]} {found[3]}".rstrip()) if found else None


@dataclass(frozen=True, slots=True, repr=False)
class Step(Record):
    """One instruction of the guest, executed.

    `rip` is its guest-virtual address and `fetched` up to 15 bytes there, read before it ran (None where they could not be).  `changed`
    has (register, before, after), but for RIP; `note` what else happened: an exit to the core.
    """

    rip: int
    fetched: bytes | None
    changed: tuple[tuple[str, int, int], ...]
    note: str = ""

    title = "Instructions executed"
    legend = "rip: guest-virtual"
    columns = (
        Column("rip", lambda s: s.rip, show.address, True), Column("code", lambda s: s.code.hex(" ")),
        Column("instruction", lambda s: s.instruction), Column("changed", lambda s: s.changes), Column("note", lambda s: s.note),
    )

    @property
    def code(self) -> bytes:
        """The instruction's own bytes; none where they could not be read or decoded."""
        found = decode(self.fetched, self.rip) if self.fetched else None
        return self.fetched[:found[0]] if self.fetched and found else b""

    @property
    def instruction(self) -> str:
        """Its text, in Intel's syntax."""
        found = decode(self.fetched, self.rip) if self.fetched else None
        return found[1] if found else "(not decoded)"

    @property
    def changes(self) -> str:
        """The registers that changed, in words."""
        return ", ".join(f"{name} {before:#x} -> {after:#x}" for name, before, after in self.changed)


@dataclass(frozen=True, slots=True, repr=False)
class ExitStep(Record):
    """An exit to the core: EXITCODE and EXITINFO as its VMCB had them, `rip` the guest-virtual address at which the guest stood."""

    code: int
    rip: int
    info1: int
    info2: int

    title = "Exit to the core"
    legend = "rip: guest-virtual"
    columns = (
        Column("name", lambda e: e.name), Column("code", lambda e: e.code, show.address, True),
        Column("rip", lambda e: e.rip, show.address, True), Column("info1", lambda e: e.info1, show.address, True),
        Column("info2", lambda e: e.info2, show.address, True),
    )

    @property
    def name(self) -> str:
        """The exit code in the manual's words: `VMEXIT_NPF`."""
        return exit_name(self.code)


def _value(name: str) -> Any:
    return lambda registers: registers[name]


@dataclass(frozen=True, slots=True, repr=False)
class Registers(Record):
    """Registers of the guest by name: `registers["rip"]`."""

    values: Mapping[str, int]

    title = "Registers of the guest"
    columns = tuple(Column(name, _value(name), show.address, True) for name in REGISTERS)

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def changed(self, after: "Registers") -> tuple[tuple[str, int, int], ...]:
        """What is different in `after`, but for RIP, as (register, here, there)."""
        return tuple((name, self[name], after[name]) for name in REGISTERS if name != "rip" and self[name] != after[name])
