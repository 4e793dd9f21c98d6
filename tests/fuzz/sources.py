"""Machines from outside: logs, tables and TOML files with mutations, whole folders of them; options; the command line."""

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hvcore.cli import main
from hvcore.errors import HvlabError
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.description import MachineDescription, PciDescription
from hvcore.machine.dma import DmaFabric
from hvcore.machine.memory import Memory
from hvcore.machine.pci import RootComplex
from hvcore.machine.pic import Pic
from hvcore.machine.vtd import RemappingUnit
from hvcore.sources import images_dir, load
from hvcore.sources.kernel_log import parse_log
from hvcore.sources.lspci import parse_lspci, parse_qemu_pci
from hvcore.spec.dmar import parse
from hvcore.vmm.config import PROFILES, QUIRKS, Config, parse_settings

from .acpi import mutated_table, real_tables
from .mutate import check_sentence, junk, mutated, number, often, spoilt_text

__all__ = ["TARGETS", "check_machine", "toml_texts"]

LOGS = Path(__file__).resolve().parent.parent / "data" / "logs"
_PILE = 1 << 18
"""Characters of a pile."""
_TEXTS = ("dmesg.txt", "e820.txt", "linux.log", "lspci.txt", "pci.txt", "registers.txt", "memmap.txt", "seabios.txt", "SOURCE.txt",
          "bv.log")


@cache
def _logs() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(LOGS.rglob("*")) if path.is_file()}


@cache
def toml_texts() -> tuple[str, ...]:
    """The machines that come with hvlab."""
    return tuple(path.read_text() for path in sorted((images_dir() / "machines").glob("*.toml")))


def _spoilt_file(r: Random, name: str, data: bytes) -> bytes:
    """A file of a folder with mutations that fit its kind."""
    if often(r, 0.05):
        return junk(r, 500)
    if name.endswith(".dat"):
        return mutated_table(r, data, real_tables())
    text = spoilt_text(r, data.decode("utf-8", "replace")).encode("utf-8", "replace")
    return text if often(r, 0.9) else mutated(r, text) if often(r, 0.7) else text.decode("utf-8", "replace").encode("utf-16")


def check_function(f: PciDescription) -> None:
    """What fits the registers of every function."""
    assert 0 <= f.source < 1 << 16 and 0 <= f.class_code < 1 << 24 and 0 <= f.revision < 256, f"{f}"
    assert 0 <= f.secondary < 256 and 0 <= f.subordinate < 256 and max(f.vendor, f.device_id, *f.subsystem) < 1 << 16, f"{f}"
    assert all(0 <= b.index < 6 and (b.address is None or 0 <= b.address < 1 << 64) for b in f.bars), f"{f}"


def check_machine(machine: MachineDescription) -> None:
    """What every description holds, wherever it is from."""
    starts = [start for start, _ in machine.ram_runs]
    assert starts == sorted(starts) and starts[0] == 0 and all(a < b and not a % 4096 and not b % 4096 for a, b in machine.ram_runs)
    assert all(e.start < e.end <= 1 << 64 for e in machine.e820) and all(a.end <= b.start for a, b in pairwise(machine.e820))
    assert all(t.strip() and "\n" not in t for t in machine.assumptions)
    bases = [u.base for u in machine.units]
    assert len(set(bases)) == len(bases) and (machine.dmar is None or len(parse(machine.dmar).drhds) == len(bases))
    places = [(f.segment, f.source) for f in machine.pci]
    assert len(set(places)) == len(places), "a function is there twice"
    for f in machine.pci:
        check_function(f)
    _build_functions(machine)


def _build_functions(machine: MachineDescription) -> None:
    """The units and functions of a machine that loads can be built."""
    memory = Memory([(0, 1 << 20)])
    bus = Bus(memory)
    for unit in machine.units:
        RemappingUnit(unit, memory, machine.host_address_width)
    root = RootComplex(bus, DmaFabric(memory, lambda segment, source: None), Clock(), machine, Pic(bus))
    assert len(root.functions) == len(machine.pci)


def _loaded(path: Path) -> str:
    """A machine, or a sentence that begins with the path."""
    try:
        machine = load(path)
    except HvlabError as e:
        check_sentence(e, str(path if path.is_dir() else path.parent))
        return "refused"
    try:
        check_machine(machine)
    except HvlabError as e:
        check_sentence(e)
        return "refused when it is built"
    return f"a machine, {'a' if machine.units else 'no'} unit"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="hvlab-fuzz-") as name:
        yield Path(name)


def one_log(seed: int) -> str:
    """A single kernel log."""
    r = Random(seed)
    with _folder() as folder:
        texts = {p: d for p, d in _logs().items() if p.name in ("dmesg.txt", "e820.txt", "linux.log", "e820-line-forms.txt")}
        path = r.choice(sorted(texts))
        (folder / path.name).write_bytes(_spoilt_file(r, path.name, texts[path]))
        return _loaded(folder / path.name)


def whole_folder(seed: int) -> str:
    """A folder of logs and tables: some files spoilt, lost, or of another machine, some that were not there."""
    r = Random(seed)
    with _folder() as folder:
        home = r.choice(sorted({p.parent for p in _logs()} - {LOGS}))
        for path, data in _logs().items():
            if path.parent == home and often(r, 0.95):
                (folder / path.name).write_bytes(_spoilt_file(r, path.name, data) if often(r, 0.5) else data)
        if often(r, 0.4):
            (folder / "DMAR.dat").write_bytes(mutated_table(r, r.choice(real_tables()), real_tables()))
        if often(r, 0.3):
            path = r.choice(sorted(_logs()))
            (folder / r.choice(_TEXTS)).write_bytes(_spoilt_file(r, path.name, _logs()[path]))
        return _loaded(folder)


def lists(seed: int) -> str:
    """Lists of PCI functions and logs as their readers take them: what cannot be read is left out, nothing is raised."""
    r = Random(seed)
    name, read = r.choice((("lspci.txt", parse_lspci), ("pci.txt", parse_qemu_pci), ("dmesg.txt", lambda text: parse_log(text).functions)))
    data = r.choice([d for p, d in _logs().items() if p.name == name])
    found = read(_spoilt_file(r, name, data).decode("utf-8", "replace"))
    for f in found:
        check_function(f)
    return "functions" if found else "none"


_PIECES = (" ", "\t", "\n", " \n", "a", "1", "1.1 ", "[0600]: ", "[8086:1234] ", "(", "secondary bus 1. ", "BAR0: ", "MMCONFIG ",
           "ACPI device ", "nvme1", "BIOS-e820: ", "[mem 0x0-0x1] ", "Region 0: Memory at ", "Capabilities: [40] Express ",
           " for domain ", ",")
_LINES = ("RMRR base: {0:#x} end: {1:#x}", "DRHD base: {0:#x} flags: 0x0", "BIOS-e820: [mem {0:#x}-{1:#x}] usable", "Linux version {0}",
          "RHSA base: {0:#x} proximity domain: 0x0", "pci 0000:{2:02x}:{3:02x}.0: [8086:1234] type 00 class 0x060400", "BIOS-e820: {0:x}",
          "{2:02x}:{3:02x}.0 PCI bridge [0604]: Intel [8086:1234]", "nvme nvme{0}: pci function 0000:{2:02x}:{3:02x}.0",
          "  Bus {0}, device {3}, function 0:\n    Class 0604: PCI device 8086:1234", "memmap/{0}/start: {0:#x}\nmemmap/{0}/end: {1:#x}",
          "pci 0000:{2:02x}:{3:02x}.0: reg 0x10: [mem {0:#x}-{1:#x}]", "{4}")


def piles(seed: int) -> str:
    """Far too much of the same: one short piece on a line, or many lines that differ in their numbers; it takes no more than its length."""
    r = Random(seed)
    head = r.choice(("", "00:00.0 Host bridge [0600]: ", "  Bus  0, device   0, function 0:\n ", "BIOS-e820: [mem 0x0-0x1] ", "pci "))
    if often(r, 0.5):
        piece = "".join(r.choices(_PIECES, k=r.randint(1, 4)))
        text = head + piece * (_PILE // len(piece))
    else:
        line, step = r.choice(_LINES), r.choice((1, 4096))
        text = head + "\n".join(line.format(i * step, i * step + 4095, i >> 5 & 255, i & 31, head) for i in range(_PILE // 40))
    with _folder() as folder:
        (folder / "e820.txt").write_text("BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x3fffffff] usable\n")
        (folder / r.choice(("dmesg.txt", "lspci.txt", "pci.txt"))).write_text(text)
        return _loaded(folder)


def toml(seed: int) -> str:
    """A machine's TOML file; its `dmar` may be a file that is there, or is not."""
    r = Random(seed)
    with _folder() as folder:
        text = r.choice(toml_texts())
        if often(r, 0.2):
            (folder / "DMAR.dat").write_bytes(mutated_table(r, r.choice(real_tables()), real_tables()))
            text = 'name = "with a table"\ndmar = "DMAR.dat"\nram = "4 GiB"\n' + ("" if often(r, 0.5) else "[[unit]]\nbase = 0xfed90000\n")
        path = folder / "machine.toml"
        path.write_text(spoilt_text(r, text, 3), "utf-8", "replace")
        return _loaded(path)


_VALUES: tuple[Any, ...] = (
    True, False, None, 0, 1, -4, 8, 64, 128, 3072, 10**5000, 1.5, "", "y", "no", "mended", "bitvisor", "4gib", "ram", "e820", "9" * 5000,
    "٣٢", "²", [], [[]], {}, {"A": 1}, [5, "A"], b"x", "AGAW_FROM_LAST_UNIT", "A,B", "none", frozenset(QUIRKS), object())


def options(seed: int) -> str:
    """Options of the core, as a program and as a command line give them."""
    r = Random(seed)
    names = [*Config.__dataclass_fields__, "VTD", "quirks", ""]
    given = {r.choice(names): r.choice(_VALUES) for _ in range(r.randint(1, 3))}
    try:
        if often(r, 0.4):
            given = dict(parse_settings(f"{name}{r.choice('==:')}{value}" for name, value in given.items() if type(value) is not int))
        config = Config(PROFILE=r.choice([*PROFILES])).change(**given)
    except HvlabError as e:
        check_sentence(e)
        return "refused"
    assert Config(**config.to_dict()) == config and str(config)
    return "taken"


def _arguments(r: Random, folder: Path) -> list[str]:
    file = folder / r.choice(("a.toml", "a.txt", "a.npz", "a.dat", "none", "two\nlines", "a\0b"))
    with contextlib.suppress(ValueError):
        file.write_bytes(junk(r, 200) if often(r, 0.5) else spoilt_text(r, r.choice(toml_texts())).encode("utf-8", "replace"))
    root = r.choice(("0", "0x1000", "-1", "zz", hex(number(r, 70)), "9" * 5000, "", "1_0"))
    setting = r.choice(("VTD_TRANS=n", "VTD_TRANS", "=", "X=1", "VMM_SIZE_MIB=" + "9" * 5000, "QUIRKS=,", "PROFILE="))
    place = str(file) if often(r, 0.8) else r.choice(("q35", "", "/", "/dev/zero", "x" * 5000))
    return r.choice((["decode", place, "--root", root], ["boot", place, "--set", setting], ["dump", place, "-o", str(folder)],
                     ["boot", "q35-2g", "--set", setting + "\n"], ["machines", "--json"], ["decode", place], [place], []))


def command_line(seed: int) -> str:
    """`hvlab` with wrong files and words: an exit status, and at most one line of error.  None of these starts a machine."""
    r = Random(seed)
    out, err = io.StringIO(), io.StringIO()
    with _folder() as folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        arguments = _arguments(r, folder)
        if arguments[:1] == ["boot"] and "VTD_TRANS=n" in arguments[-1]:
            arguments[-1] += "x"
        try:
            status = main(arguments)
        except SystemExit as e:
            status = int(e.code or 0)
    told = err.getvalue()
    good = status == 0 and not told or status == 2 and told.startswith("hvlab") and told.count("\n") == 1
    assert good, f"{arguments}: {status}, {told!r}"
    return f"exit status {status}"


TARGETS: dict[str, Callable[[int], str]] = {
    "log": one_log, "folder": whole_folder, "lists": lists, "piles": piles, "toml": toml, "options": options, "cli": command_line}
