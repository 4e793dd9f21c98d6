"""Whatever a user pastes: logs cut at any line, with lines lost, swapped or full of noise, give a machine or one sentence."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.machine.description import MachineDescription
from hvcore.sources import images_dir
from hvcore.sources.assemble import Findings, describe
from hvcore.sources.folder import load_folder
from hvcore.sources.kernel_log import decode, parse_log
from hvcore.sources.lspci import parse_lspci
from hvcore.spec.dmar import parse

LOGS = Path(__file__).parents[1] / "data" / "logs"
FILES = [p for folder in (LOGS, images_dir() / "machines" / "real") for p in sorted(folder.glob("*/*"))
         if p.name in ("dmesg.txt", "e820.txt", "linux.log", "seabios.txt")]
FILE = st.sampled_from(FILES)
LINES = {path: path.read_text().splitlines() for path in FILES}


def machine_or_sentence(text: str, lspci: str = "") -> MachineDescription | None:
    """What a log gives; anything but a machine or one BadMachine sentence goes up."""
    log = parse_log(text)
    refusal = ""
    try:
        machine = describe(Findings("cut", "", log, log.map, "log", parse_lspci(lspci)))
    except BadMachine as e:
        refusal = str(e)
    if refusal:
        assert refusal.startswith("log: ") and "\n" not in refusal and len(refusal) < 400
        return None
    assert machine.ram_runs[0][0] == 0 and all(a < b for a, b in machine.ram_runs)
    assert any(f.model == "nvme" for f in machine.pci) and any(f.source == 0 for f in machine.pci)
    assert len(machine.units) == (len(parse(machine.dmar).drhds) if machine.dmar else 0)
    return machine


@given(FILE, st.integers(0, 1 << 16))
def test_a_log_cut_at_any_line(path: Path, at: int) -> None:
    lines = LINES[path]
    machine_or_sentence("\n".join(lines[:at % (len(lines) + 1)]))


@given(FILE, st.integers(0, 1 << 16))
def test_a_log_cut_at_any_character(path: Path, at: int) -> None:
    text = "\n".join(LINES[path])
    machine_or_sentence(text[:at % (len(text) + 1)])


@given(FILE, st.integers(0, 1 << 16))
def test_a_log_whose_beginning_is_lost(path: Path, at: int) -> None:
    lines = LINES[path]
    machine_or_sentence("\n".join(lines[at % (len(lines) + 1):]))


@given(FILE, st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_log_with_lines_lost_and_swapped(path: Path, random: object, share: float) -> None:
    assert hasattr(random, "random") and hasattr(random, "shuffle")
    lines = [line for line in LINES[path] if random.random() < share]
    if share < 0.5:
        random.shuffle(lines)
    machine_or_sentence("\n".join(lines))


NUMBER = st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 33)
TEMPLATES = st.sampled_from([
    "BIOS-e820: [mem 0x{:x}-0x{:x}] usable", "BIOS-e820: [mem 0x{:x}-0x{:x}] type {}", " BIOS-e820: {:016x} - {:016x} (reserved)",
    "DMAR: DRHD base: 0x{:x} flags: 0x{:x}", "DMAR: RMRR base: 0x{:x} end: 0x{:x}", "DMAR: RHSA base: 0x{:x} proximity domain: 0x{:x}",
    "DMAR: dmar0: reg_base_addr {:06x} ver 1:0 cap {:x} ecap {:x}", "DMAR: Host address width {}", "DMAR: ATSR flags: 0x{:x}",
    "DMAR-IR: IOAPIC id {} under DRHD base  0x{:x} IOMMU 1", "pci 0000:00:02.0: reg 0x10: [mem 0x{:x}-0x{:x} 64bit]",
    "PCI: MMCONFIG for domain 0000 [bus 00-ff] at [mem 0x{:x}-0x{:x}] (base 0x0)", "ACPI: DMAR 0x{:X} {:06X} (v01 X)",
    "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable", "BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable",
    "pci 0000:00:02.0: [8086:1912] type 00 class 0x030000", "pci 0000:00:1c.0: [8086:a114] type 01 class 0x060400",
    "pci 0000:01:00.0: [144d:a802] type 00 class 0x010802", "nvme nvme0: pci function 0000:ff:1f.7"])


@given(st.lists(st.tuples(TEMPLATES, NUMBER, NUMBER, st.integers(0, 99)), max_size=25))
def test_lines_of_the_right_form_with_any_numbers(lines: list[tuple[str, int, int, int]]) -> None:
    whole = "BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n"
    text = "\n".join(template.format(a, b, c) for template, a, b, c in lines)
    machine_or_sentence(text)
    machine_or_sentence(whole + text)


@given(st.binary(max_size=2000))
def test_noise(data: bytes) -> None:
    machine_or_sentence(decode(data), decode(data))


@given(st.text(max_size=500))
def test_text(text: str) -> None:
    machine_or_sentence(text, text)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_each_log_alone(path: Path) -> None:
    """Whole logs give a machine, but for those that hold no map that could boot."""
    refused = path.parent.name in ("amd-5700u-32g", "partial-dell-r740-192g")
    assert (machine_or_sentence("\n".join(LINES[path])) is None) == refused


@settings(max_examples=40)
@given(st.sampled_from(sorted({p.parent for p in FILES})), st.sampled_from(["dmesg.txt", "e820.txt", "lspci.txt", "DMAR.dat"]),
       st.integers(0, 1 << 20))
def test_a_folder_with_one_file_cut(tmp_path_factory: pytest.TempPathFactory, folder: Path, name: str, at: int) -> None:
    copy = tmp_path_factory.mktemp("machine")
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    if (copy / name).exists():
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:at % (len(data) + 1)])
    refusal = str(copy)
    try:
        load_folder(copy)
    except BadMachine as e:
        refusal = str(e)
    assert refusal.startswith(str(copy)) and "\n" not in refusal
