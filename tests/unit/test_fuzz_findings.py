"""What fuzzing found, each as the smallest case that showed it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import BadConfig, BadMachine, HvlabError, Unreadable, quoted
from hvcore.inspect.diff import diff_e820
from hvcore.inspect.domains import read_domains
from hvcore.inspect.dump import PageStore
from hvcore.inspect.e820 import E820Map
from hvcore.machine import printed
from hvcore.machine.bus import Bus
from hvcore.machine.description import UnitDescription
from hvcore.machine.events import deliver_injected_exception
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.interrupts import InterruptEntry, InterruptEntryCache
from hvcore.sources import load
from hvcore.sources.kernel_log import parse_log
from hvcore.sources.lspci import parse_qemu_pci
from hvcore.spec.dmar import Dmar, Drhd, build
from hvcore.spec.e820 import E820Entry
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.spec.svm import EVENT_EXCEPTION, EVENT_VALID, ControlArea, SaveArea
from hvcore.spec.vtd import CAP, CONTEXT_HIGH, context_entry
from hvcore.vmm.config import parse_settings
from hvcore.vmm.dmar import parse_dmar_bios_report
from hvcore.vmm.layout import Data, Part
from hvcore.vmm.platform import Console

HUGE = 10**5000


def test_a_drhd_that_the_tables_end_cuts_ends_the_list() -> None:
    table = bytearray(build(Dmar(39, 0, (Drhd(1, 0, 0, 0xFED90000), Drhd(0, 0, 0, 0xFED91000)))))
    table[4:8] = (len(table) - 2).to_bytes(4, "little")
    memory = Memory([(0, 1 << 20)])
    memory.write(0x1000, bytes(table))
    assert [u.base for u in parse_dmar_bios_report(memory, 0x1000, Console(Bus(memory)))] == [0xFED90000]


@pytest.mark.parametrize("options", [
    {"QUIRKS": [["AGAW_FROM_LAST_UNIT"]]}, {"QUIRKS": [5, "A"]}, {"QUIRKS": HUGE}, {"VMM_SIZE_MIB": HUGE}, {"VMM_SIZE_MIB": "9" * 5000},
    {"VTD_TRANS": HUGE}, {"PROFILE": HUGE}, {"IOMMU_MAP_END": "9" * 5000}, {"X" * 5000: 1}], ids=lambda o: next(iter(o))[:16])
def test_options_of_any_kind_are_refused_in_a_short_sentence(options: dict[str, object]) -> None:
    with pytest.raises(BadConfig) as told:
        Config().change(**options)
    assert len(str(told.value)) < 400
    with pytest.raises(BadConfig):
        Config(**parse_settings([f"VMM_SIZE_MIB={'9' * 5000}"]))  # type: ignore[arg-type]


def test_a_value_is_quoted_as_far_as_it_is_short() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert [quoted(v) for v in ("a\nb", 5, HUGE, loop)] == ["'a\\nb'", "5", "a int too long to be written", "[[...]]"]
    assert quoted("x" * 100) == "'" + "x" * 79 + "..."


@pytest.mark.parametrize("text", [
    f"ram = {'[' * 3000}", f"ram = {'9' * 5000}", f"ram = 0x{'f' * 5000}", f'ram = "{"9" * 5000}"', f'"{"k" * 5000}" = 1',
    f'ram = "1 GiB"\n[[pci]]\nat = "{"1.1" * 5000}"\nid = "1:1"\nclass = 1'])
def test_toml_that_is_too_deep_or_too_long(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(BadMachine) as told:
        load(path)
    assert str(told.value).startswith(f"{path}: ") and len(str(told.value)) < 700


SPACES = " " * 100_000


@pytest.mark.parametrize(("name", "text"), [
    ("pci.txt", "  Bus  0, device   0, function 0:\n" + " \n" * 50_000), ("pci.txt", "secondary bus 1. " * 50_000),
    ("pci.txt", f"  Bus  0, device   0, function 0:\n{SPACES}"), ("lspci.txt", "00:00.0 Host [0600]: Intel [8086:1234]\n" + "\n" * 200_000),
    ("lspci.txt", "00:00.0 Host " + "[0600]: " * 50_000), ("dmesg.txt", f"BIOS-e820: [mem 0x0-0x1] {SPACES}"),
    ("dmesg.txt", "".join(f"RMRR base: {i:#x} end: {i:#x}\n" for i in range(50_000)))], ids=range(7))
def test_a_file_takes_time_by_its_length_alone(tmp_path: Path, name: str, text: str) -> None:
    """Some of these took hours: patterns that begin anywhere in spaces, or lists searched for each line."""
    (tmp_path / "e820.txt").write_text("BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x3fffffff] usable\n")
    (tmp_path / name).write_text(text)
    assert load(tmp_path).ram_bytes == 1 << 30


def test_units_and_functions_without_number(tmp_path: Path) -> None:
    log = parse_log("".join(f"DRHD base: {i << 12:#x} flags: 0x0\n" for i in range(1000)))
    assert list(log.units) == [i << 12 for i in range(256)]
    (tmp_path / "e820.txt").write_text("BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x3fffffff] usable\n")
    lines = (f"{i >> 8:02x}:{i >> 3 & 31:02x}.{i & 7} Thing [0200]: X [1234:5678]\n" for i in range(5000))
    (tmp_path / "lspci.txt").write_text("".join(lines))
    with pytest.raises(BadMachine, match="5000 PCI functions are listed, 4096 are the most"):
        load(tmp_path)


def test_numbers_that_no_register_holds() -> None:
    torn, = parse_log("pci 0000:00:00.0: [8086:1234] type 0 class 0x060400\n").functions
    assert torn.class_code == 0x040000
    text = "  Bus  0, device   1, function 0:\n    PCI bridge: PCI device 8086:1234\n      secondary bus 999.\n      subordinate bus 300.\n"
    bridge, = parse_qemu_pci(text)
    assert (bridge.secondary, bridge.subordinate) == (255, 255)


def _unit(cap: int, aw: int, tt: int) -> tuple[Memory, RemappingUnit]:
    """A unit with one context, of bus 0, function 0."""
    memory = Memory([(0, 1 << 20)])
    memory.write64(0x1000, 0x2000 | 1)
    low, high = context_entry(0x3000, aw, 7, tt)
    memory.write64(0x2000, low)
    memory.write64(0x2008, high)
    unit = RemappingUnit(UnitDescription(0xFED90000, cap, 0xF42), memory, 39)
    unit.mmio_write(0x20, 8, 0x1000)
    unit.mmio_write(0x18, 4, 1 << 30)
    return memory, unit


@pytest.mark.parametrize(("tt", "remark"), [(0, "not scanned: tables of 6 levels"), (2, None)])
def test_contexts_of_64_bit_addresses(tt: int, remark: str | None) -> None:
    cap = CAP["SAGAW"].put(CAP["MGAW"].put(0xD2008C222F0606, 63), 0b10110)
    memory, unit = _unit(cap, 4, tt)
    domain, = read_domains(memory, [unit], 39)
    assert CONTEXT_HIGH.get(domain.did << 8, "DID") == 7 and domain.levels == 6
    assert (domain.remark or "").startswith(remark or "") and [r.end for r in domain.runs] == ([] if remark else [1 << 63])


def test_a_queue_of_interrupt_entry_invalidations_ends() -> None:
    """It took minutes: each descriptor went through all entries of the cache."""
    memory = Memory([(0, 4 << 20)])
    unit = RemappingUnit(UnitDescription(0xFED90000, 0xD2008C22260206, 0xF00F4A), memory, 39)
    cache = unit._interrupts.cache
    for index in range(1 << 16):
        cache.insert(InterruptEntry(index, 1, 0))
    kept = {index for index in range(1 << 16) if index >> 15 and index % 2}
    for i in range(1 << 15):
        low = 15 << 27 | 0x14 if i % 2 else (0x8000 | i) << 32 | 0x14
        memory.write64(0x10_0000 + 16 * i, low)
    unit.mmio_write(0x90, 8, 0x10_0000 | 7)
    unit.mmio_write(0x18, 4, 1 << 26)
    unit.mmio_write(0x88, 8, 0x7_FFF0)
    assert (unit.peek(0x80, 8), unit.peek(0x34, 4)) == (0x7_FFF0, 0)
    assert set(cache.entries) == kept


@given(st.lists(st.one_of(st.integers(0, 40), st.tuples(st.integers(0, 70), st.integers(0, 7))), max_size=60))
def test_the_interrupt_entry_cache_forgets_what_it_is_told_to(steps: list[int | tuple[int, int]]) -> None:
    cache, plain = InterruptEntryCache(), dict[int, InterruptEntry]()
    for step in steps:
        if isinstance(step, int):
            plain[step] = InterruptEntry(step, 1, 0)
            cache.insert(plain[step])
        else:
            cache.invalidate_indices(*step)
            plain = {i: e for i, e in plain.items() if i >> step[1] != step[0] >> step[1]}
        assert cache.entries == plain


def test_an_e820_entry_beyond_64_bits_is_compared() -> None:
    entry = E820Entry((1 << 64) - 0x1000, (1 << 64) + 0x1000, 1)
    change, = diff_e820(E820Map([entry]), E820Map([E820Entry(0x1000, 0x1000, 1)]))
    assert (change.start, change.end, change.left, change.right) == (entry.start, (1 << 64) - 1, "usable", None)


def test_the_last_page_of_64_bits_in_a_file() -> None:
    last = (1 << 64) - 0x1000
    store = PageStore(np.array([0, last], np.uint64), np.arange(1024, dtype=np.uint64).reshape(2, 512))
    assert store.read(last, 8) == (512).to_bytes(8, "little") and store.read((1 << 64) - 8, 8) == (1023).to_bytes(8, "little")
    for address in (last - 8, (1 << 64) - 4):
        with pytest.raises(Unreadable):
            store.read(address, 16)


def _guest(code: str) -> Elf:
    """A guest of machine code, which begins with RDI = 0xFEBF0000, where q35-2g's NVMe controller has its registers."""
    return Elf(0x1000000, (Segment(0x1000000, bytes.fromhex(f"bf0000bffe {code}"), 4096),))


@pytest.mark.parametrize("option", ["NVME_DRIVER", "TINYVISOR"])
@pytest.mark.parametrize(("code", "said"), [("668c1f", "mov word ptr [rdi], ds"), ("8e1f", "mov ds, word ptr [rdi]")], ids=["from", "to"])
def test_a_segment_register_is_not_moved_to_registers_that_the_core_answers(code: str, said: str, option: str) -> None:
    """It was a KeyError.  With TINYVISOR nobody answers guest 2 there: it gets a #GP, which without an IDT it does not survive."""
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(**{option: True}), guest=_guest(code + "fbf4ebfc"), limit=5)  # type: ignore[arg-type]
        assert run.outcome == "guest-crash"
        assert (f"`{said}` is no instruction" if option == "NVME_DRIVER" else "exception 13") in run.why


def test_an_exception_on_a_stack_that_begins_at_0() -> None:
    """The frame lies at the end of the address space; it was an OverflowError."""
    memory, vmcb, root = Memory([(0, 1 << 20)]), 0x1000, 0x2000
    memory.write64(root, 0x3000 | 3)
    memory.write64(0x3000, 0x83)
    for table, last in ((root, 0x4000 | 3), (0x4000, 0x5000 | 3), (0x5000, 0x6000 | 3), (0x6000, 0x9000 | 3)):
        memory.write64(table + 8 * 511, last)
    for offset, value in ((ControlArea.EVENTINJ, EVENT_VALID | EVENT_EXCEPTION | 6), (ControlArea.N_CR3, 0x7000), (SaveArea.CR3, root),
                          (SaveArea.IDTR, 0xFFF << 32), (SaveArea.IDTR + 8, 0xA000), (SaveArea.RIP, 0x1234)):
        memory.write64(vmcb + offset, value)
    memory.write64(0x7000, 0x8000 | 3)
    memory.write64(0x8000, 0x83)
    memory.write64(0xA000 + 16 * 6, 0x8E00 << 32 | 0x10 << 16 | 0x5678)
    for offset, value in ((SaveArea.GDTR, 0x1F << 32), (SaveArea.GDTR + 8, 0xB000)):
        memory.write64(vmcb + offset, value)
    memory.write64(0xB010, 0x00AF9B000000FFFF)
    assert deliver_injected_exception(memory, vmcb) is None
    assert (memory.read64(vmcb + SaveArea.RSP), memory.read64(vmcb + SaveArea.RIP)) == ((1 << 64) - 40, 0x5678)
    assert memory.read64(0x9000 + 4096 - 40) == 0x1234


@pytest.mark.parametrize("public_only", [False, True], ids=["exported", "public"])
def test_a_save_area_that_names_no_vmcb(public_only: bool) -> None:
    """A device that reaches the save area puts another address for the VMCB's there before the exit; it was an Unreadable."""
    with Machine(load("q35-2g"), public_only) as machine:
        def overwrite(_phase: str | None) -> None:
            with machine.still():
                if machine.pc.cpu.in_guest():
                    machine.pc.memory.write64(machine.pc.cpu.hsave + SaveArea.RAX, (1 << 64) - 16)
                    left.append(1)
            if len(left) > 3:
                machine.stop()

        left: list[int] = []
        run = machine.boot(Config(VTD_TRANS=False), guest=_guest("b900400000 e480 ffc9 75fa 0f01d9 ebf0"), watch=overwrite)
        assert left
        assert run.outcome in ("guest-crash", "stopped")
        assert not public_only or "a #VMEXIT whose state nothing can hold" in run.why


@pytest.mark.parametrize("by", ["step", "step_exit"])
def test_a_core_that_has_lost_its_vmcb(by: str) -> None:
    """The guest's registers, and a step to the next exit, were an Unreadable each."""
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(VTD_TRANS=False))
        machine.pc.memory.write64((run.vmm.base or 0) + Part.DATA + Data.VMCB, 1 << 63)
        with pytest.raises(HvlabError, match="registers cannot be told: the core's pointer to the VMCB leads nowhere, to 0x8000"):
            _ = machine.registers
        machine.key_in("help\n")
        if by == "step":
            assert machine.step(3).note == "The guest cannot go on."
        else:
            assert machine.step_exit() is None
        assert (run.outcome, "leads nowhere" in run.why) == ("vmm-panic", True)
        with pytest.raises(HvlabError, match="registers cannot be told"):
            _ = machine.registers


@pytest.mark.parametrize(("port", "which"), [(0x3F8, "guest"), (0xE9, "vmm")], ids=["serial", "debug"])
def test_a_guest_that_prints_for_ever_fills_no_memory(monkeypatch: pytest.MonkeyPatch, port: int, which: str) -> None:
    """REP OUTSB from its own memory, for ever: its console grew by megabytes a second."""
    monkeypatch.setattr(printed, "LONGEST", 5000)
    with Machine.load("q35-2g") as machine:
        code = f"66ba{port.to_bytes(2, 'little').hex()} be00000001 b900100000 f36e ebf2"
        console = machine.boot(Config(VTD_TRANS=False), guest=_guest(code), limit=1).console
        text = getattr(console, which)
        assert 5000 < len(text) < 5100
        assert text.endswith("[8 MiB were printed: what follows is not kept]\r\n".replace("\r", "" if which == "guest" else "\r"))


def test_a_step_into_the_death_of_one_guest_while_the_other_computes() -> None:
    """Guest 1, which is told more E820 entries than guest 2, meets UD2; guest 2 jumps to itself.  The step never came back."""
    with Machine.load("q35-2g") as machine:
        def stop(_phase: str | None) -> None:
            if machine.phase == "guest runs" and machine.pc.clock.now > 10_000_000:
                machine.stop()

        code = "8a86e8010000 3c04 7702 ebfe b900000010 e480 ffc9 75fa"
        run = machine.boot(Config(TINYVISOR=True), guest=_guest(code), watch=stop)
        assert run.outcome == "stopped"
        machine.pc.memory.write(0x1000016, b"\x0f\x0b" * 2)
        assert machine.step(9).note == "The guest cannot go on."
        assert (machine.state, [g.outcome for g in run.guests]) == ("stopped", ["guest-crash", "running"])
        assert "exception 6" in run.guests[0].why
