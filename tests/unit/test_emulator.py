"""The emulator's private fields: found and checked, or refused; and what is left where they are refused."""

from collections.abc import Iterator

import pytest
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn import x86_const as x86

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.machine import emulator
from hvcore.machine.emulator import Env
from hvcore.sources import load
from hvcore.spec.linuxboot import Elf, Kernel, Segment

FUNCTIONS = ("x86_cpu_do_interrupt_x86_64", "x86_cpu_exec_interrupt_x86_64", "helper_hlt_x86_64", "uc_reg_read")
FIELDS = ("cpu", "env", "interrupt_request", "halted", "error_code", "exception_is_int", "old_exception")


@pytest.fixture(autouse=True)
def _found_anew() -> Iterator[None]:
    """What was found is forgotten before and after each test."""
    emulator.layout.cache_clear()
    yield
    emulator.layout.cache_clear()


def _changes(monkeypatch: pytest.MonkeyPatch, function: str, change: "bytes | None" = None) -> None:
    """The machine code of one function reads otherwise: as `change`, or as nothing."""
    real = emulator._code

    def code(name: str, size: int) -> bytes:
        return (change or b"\xc3" * size) if name == function else real(name, size)

    monkeypatch.setattr(emulator, "_code", code)


def test_this_build_has_them_all() -> None:
    found = emulator.layout()
    assert found is not None
    assert all(getattr(found, name) > 0 for name in (*FIELDS, "star", "lstar", "cstar", "fmask", "efer"))


def test_registers_are_where_it_says() -> None:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    state = emulator.state(uc)
    assert state is not None
    for n, register in enumerate((x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RSP)):
        uc.reg_write(register, 0x1111 * (n + 1))
        assert state.q[n] == 0x1111 * (n + 1)
    for msr, at in ((0xC0000081, state.where.star), (0xC0000082, state.where.lstar), (0xC0000083, state.where.cstar),
                    (0xC0000084, state.where.fmask)):
        uc.msr_write(msr, 0xABCD + at)
        assert state.q[at // 8] == 0xABCD + at
    uc.msr_write(0xC0000080, uc.msr_read(0xC0000080) | 1)
    assert state.q[state.where.efer // 8] & 1
    uc.reg_write(x86.UC_X86_REG_EFLAGS, 0x8D7 | 1 << 10)
    assert state.rflags() & (0x8D5 | 1 << 10) == 0x8D5 | 1 << 10
    assert state.q[Env.CR0 // 8] == uc.reg_read(x86.UC_X86_REG_CR0)
    emulator.release(uc)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_reads_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    _changes(monkeypatch, function)
    assert emulator.layout() is None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    real = emulator._code
    monkeypatch.setattr(emulator, "_code", lambda name, size: b"" if name == function else real(name, size))
    assert emulator.layout() is None


@pytest.mark.parametrize("by", [8, -8, 0x1000, 1 << 20])
def test_fields_that_have_moved_are_refused(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    """The code says another place than where things are: the check on a live emulator finds out."""
    real = emulator._from_code
    found = real()
    assert found is not None
    for name in ("error_code", "exception_is_int", "old_exception"):
        moved = emulator.Layout(**{**found.__dict__, name: min(getattr(found, name) + by, 0x1FF0)})
        monkeypatch.setattr(emulator, "_from_code", lambda moved=moved: moved)
        emulator.layout.cache_clear()
        assert emulator.layout() is None, name


@pytest.mark.parametrize("name", ["REGS", "EIP", "CR2", "CR4", "GDT", "IDT", "TR", "EFLAGS", "CC_OP", "HFLAGS"])
def test_registers_that_have_moved_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    moved = {**{member.name: int(member) for member in Env}, name: int(Env[name]) + 8}
    monkeypatch.setattr(emulator, "Env", type("Env", (), moved))
    assert emulator.layout() is None


def test_an_emulator_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_MARKER", 0)
    assert emulator.layout() is None


# --- the whole way

@pytest.fixture
def kernel() -> Kernel:
    """What counts as a Linux: it has a setup header."""
    code = bytes.fromhex("faf4")
    return Kernel(Elf(0x1000000, (Segment(0x1000000, code, 0x1000),)), b"\x01" * 64)


def test_linux_is_refused_and_the_lab_guest_boots(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    _changes(monkeypatch, "helper_hlt_x86_64")
    with Machine.load("q35-2g") as machine:
        assert machine.pc.cpu.state is None
        with pytest.raises(HvlabError, match=r"^a Linux needs parts of the emulator that lie elsewhere in this version of it: "
                                             r"install unicorn 2\.1\.4 for x86-64, or boot the lab guest$"):
            machine.boot(Config(), guest=kernel)
        assert machine.run is None
        run = machine.boot(Config())
        assert run.outcome == "up"
        assert "lab: ready" in run.console.guest


def test_linux_is_refused_by_the_public_interface(kernel: Kernel) -> None:
    with Machine(load("q35-2g"), public_only=True) as machine:
        with pytest.raises(HvlabError, match="a Linux needs parts of the emulator"):
            machine.boot(Config(), guest=kernel)
        assert machine.boot(Config()).outcome == "up"


def test_where_they_are_a_linux_is_not_refused(kernel: Kernel) -> None:
    with Machine.load("q35-2g") as machine:
        assert "halted for good" in machine.boot(Config(), guest=kernel).why
