"""How fast a guest computes under the core, beside the emulator alone on the same code: nested paging, exits, counted blocks."""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn import x86_const as x86

from hvcore import Config, Machine
from hvcore.spec.linuxboot import Elf, load_elf
from hvcore.spec.svm import EFER, EFER_LMA, EFER_LME, EFER_NXE

from .rows import REPEATS, Row

__all__ = ["guest_speed"]

HERE = Path(__file__).resolve().parent
ROUNDS, LEAST = 20, 0.8
"""Rounds of work, and the least share of the emulator's own speed that a guest must have."""
FLAGS = ["-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-mno-red-zone", "-mgeneral-regs-only", "-nostdlib", "-static",
         "-fno-stack-protector", "-fcf-protection=none", "-Wl,-Ttext=0x1000000,--entry=start,--build-id=none"]
MEMORY, TABLES, STACK = 64 << 20, 0x70000, 0x90000


def program() -> Elf:
    """The guest, built by gcc."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/guest.elf"
        subprocess.run(["gcc", *FLAGS, f"-DROUNDS={ROUNDS}", "-o", out, HERE / "guest.c"], check=True)
        return load_elf(Path(out).read_bytes())


def alone(elf: Elf) -> tuple[float, int]:
    """Seconds in the emulator alone, and the checksum: long mode, the first GiB mapped to itself as a loader does it."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(x86.UC_CPU_X86_EPYC)
    uc.mem_map(0, MEMORY, UC_PROT_ALL)
    uc.mem_write(TABLES, (TABLES + 0x1003).to_bytes(8, "little"))
    uc.mem_write(TABLES + 0x1000, (0x83).to_bytes(8, "little"))
    for segment in elf.segments:
        uc.mem_write(segment.address, segment.data)
    uc.msr_write(EFER, EFER_LME | EFER_LMA | EFER_NXE)
    for register, value in ((x86.UC_X86_REG_CR4, 0x620), (x86.UC_X86_REG_CR3, TABLES), (x86.UC_X86_REG_CR0, 0x80010011),
                            (x86.UC_X86_REG_RSP, STACK)):
        uc.reg_write(register, value)
    uc.ctl_exits_enabled(True)
    start = time.perf_counter()
    uc.emu_start(elf.entry, 0)
    return time.perf_counter() - start, uc.reg_read(x86.UC_X86_REG_RAX)


def under_the_core(machine: Machine, elf: Elf) -> tuple[float, int]:
    """Seconds that the guest runs, and its checksum."""
    run = machine.boot(Config(VTD_TRANS=False), guest=elf)
    return run.timings["guest runs"], machine.registers["rax"]


def guest_speed() -> list[Row]:
    """Both in turn, several times."""
    elf = program()
    with Machine.load("q35-6g") as machine:
        pairs = [(alone(elf), under_the_core(machine, elf)) for _ in range(REPEATS)]
    if len({checksum for pair in pairs for _, checksum in pair}) != 1:
        raise SystemExit("the guest and the emulator alone did not compute the same")
    theirs, ours = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
    return [Row("a guest that computes under the core", f"{ours:.3f} s", f"the emulator alone, same code: {theirs:.3f} s", ours / theirs,
                ours * LEAST <= theirs)]
