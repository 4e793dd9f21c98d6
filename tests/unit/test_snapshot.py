import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import snapshotfacts
from snapshotfacts import different, facts, type_to
from unicorn import x86_const as x86

from hvcore import Config, Machine
from hvcore.attack.early import start_card
from hvcore.errors import BadSnapshot, HvlabError
from hvcore.snapshot import info
from hvcore.sources import shipped

BEFORE = ["dma r 0x1000000 64", "nvme read 5", "lspci", "nvme dump 0x2000000 7", "nvme load 0x1000000 9"]
AFTER = ["time", "nvme read 9", "dma w 0x1000000 128 0x55", "iommu on", "nvme probe", "peek 0x1000000 64", "acpi", "crash"]
OPTIONS: dict[str, dict[str, Any]] = {
    "on": {}, "off": {"VTD_TRANS": False}, "mended": {"PROFILE": "mended"}, "two guests": {"PROFILE": "mended", "TINYVISOR": True},
    "storage": {"PROFILE": "mended", "NVME_DRIVER": True}, "pass-through": {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False},
    "panic": {"NVME_DRIVER": True}}


def in_another_process(*jobs: tuple[Path, list[str]]) -> list[dict[str, Any]]:
    """What `snapshotfacts.go_on` comes to for each, all in one other process."""
    told = json.dumps([(str(path), commands) for path, commands in jobs])
    done = subprocess.run([sys.executable, snapshotfacts.__file__], input=told, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def booted(machine: str = "q35-6g", **options: Any) -> Machine:
    m = Machine.load(machine)
    m.boot(Config(**options))
    return m


def scenes() -> list[tuple[str, str]]:
    """Every way to drive q35-6g, and each fourth of the other shipped machines in one way."""
    names = [name for name in shipped() if name != "q35-6g"][::4]
    return [("q35-6g", how) for how in OPTIONS] + [(name, ("mended", "on", "off")[i % 3]) for i, name in enumerate(names)]


def test_restored_in_another_process_every_machine_goes_on_as_the_one_that_was_never_saved(tmp_path: Path) -> None:
    jobs, wanted = [], []
    for number, (name, how) in enumerate(scenes()):
        chance = random.Random(number)
        first, then = chance.sample(BEFORE, chance.randint(0, 3)), chance.sample(AFTER, 3)
        with booted(name, **OPTIONS[how]) as saved, booted(name, **OPTIONS[how]) as never_saved:
            assert type_to(saved, first) == type_to(never_saved, first)
            path = tmp_path / f"{number}.snap"
            assert saved.save(path) == path.stat().st_size
            jobs.append((path, then))
            wanted.append((name, how, facts(never_saved), type_to(never_saved, then), facts(never_saved)))
    for (name, how, before, answers, after), restored in zip(wanted, in_another_process(*jobs), strict=True):
        assert (name, how, different(before, restored["before"])) == (name, how, [])
        assert (name, how, restored["answers"]) == (name, how, answers)
        assert (name, how, different(after, restored["after"])) == (name, how, [])


def stopped_at_work(chance: random.Random, **options: Any) -> Machine:
    """A machine that was stopped somewhere while its guest computes, as somebody who presses Stop at that virtual time would."""
    m = booted(**options)
    m.key_in(chance.choice(["nvme read 5\n", "e820\n", "acpi\n", "lspci\n"]))
    m.pc.clock.after(chance.randint(1_000, 200_000), m.booting.engine.ask)
    m.resume()
    return m


@pytest.mark.parametrize("how", ["on", "mended", "storage", "two guests"])
def test_stopped_in_the_middle_of_the_guests_code_it_goes_on_from_there(tmp_path: Path, how: str) -> None:
    jobs, wanted, inside = [], [], 0
    for seed in range(3):
        chance = random.Random(seed)
        with stopped_at_work(chance, **OPTIONS[how]) as m:
            assert m.state == "stopped"
            inside += m.pc.cpu.in_guest()
            path = tmp_path / f"{seed}.snap"
            m.save(path)
            jobs.append((path, ["time", "nvme read 6"]))
            before = facts(m)
            m.resume()
            wanted.append((before, type_to(m, ["time", "nvme read 6"]), facts(m)))
    for (before, answers, after), restored in zip(wanted, in_another_process(*jobs), strict=True):
        assert different(before, restored["before"]) == []
        assert restored["answers"] == answers
        assert different(after, restored["after"]) == []
    assert inside, "none of them was stopped in the guest's code"


def test_restored_twice_it_is_the_same_twice(tmp_path: Path) -> None:
    with booted(PROFILE="mended") as m:
        m.save(tmp_path / "a.snap")
    with Machine.restore(tmp_path / "a.snap") as one, Machine.restore(tmp_path / "a.snap") as other:
        assert different(facts(one), facts(other)) == []
        assert type_to(one, ["nvme read 3", "time"]) == type_to(other, ["nvme read 3", "time"])
        assert different(facts(one), facts(other)) == []
        one.save(tmp_path / "b.snap")
        with Machine.restore(tmp_path / "b.snap") as again:
            assert different(facts(one), facts(again)) == []


def test_restoring_in_place_replaces_everything_and_keeps_the_run_before_as_it_stood(tmp_path: Path) -> None:
    with booted() as m:
        m.send("dma r 0x1000000 64\n")
        m.save(tmp_path / "a.snap")
        there = facts(m)
        run = m.reboot(PROFILE="mended", NVME_DRIVER=True)
        m.send("nvme load 0x1000000 5\nnvme read 5\n")
        run.watch(0x1000000, 0x1001000)
        m.pc.memory.write(0x3000000, b"something else")
        console = str(run.console)
        back = m.load_snapshot(tmp_path / "a.snap")
        assert different(there, facts(m)) == []
        assert back is m.run and back.live and not run.live and str(run.console) == console
        assert back.number == run.number + 1
        assert "lab>" in m.send("time\n")
        assert m.reboot(VTD_TRANS=False).outcome == "up"


def test_what_a_run_shows_is_the_same_after_it_was_restored(tmp_path: Path) -> None:
    with booted(PROFILE="mended") as m:
        m.send("dma w 0x1000000 64 0x55\n")
        m.save(tmp_path / "a.snap")
        with Machine.restore(tmp_path / "a.snap") as restored:
            mine, theirs = m.run, restored.run
            assert mine is not None and theirs is not None
            assert mine.config == theirs.config and mine.number == theirs.number and mine.timings == theirs.timings
            for part in ("e820", "units", "domains", "permissions", "cached", "faults", "history", "window", "dma", "console", "vmm",
                         "functions", "proof", "interrupts", "messages", "ending"):
                assert str(getattr(mine, part)) == str(getattr(theirs, part)), part
            assert str(mine.who_wrote(0x1000000)) == str(theirs.who_wrote(0x1000000))
            assert restored.description == m.description and restored.assumptions == m.assumptions


def test_watched_memory_is_watched_on(tmp_path: Path) -> None:
    with booted(VTD_TRANS=False) as m:
        assert m.run is not None
        m.run.watch(0x1000000, 0x1001000)
        m.save(tmp_path / "a.snap")
    with Machine.restore(tmp_path / "a.snap") as restored:
        assert restored.run is not None
        restored.send("poke 0x1000010 0x1234\n")
        assert "guest" in str(restored.run.who_wrote(0x1000010))


def test_vector_and_floating_point_registers_survive(tmp_path: Path) -> None:
    with booted() as m:
        uc = m.pc.cpu.uc
        values = {getattr(x86, f"UC_X86_REG_XMM{n}"): random.Random(n).getrandbits(128) for n in range(16)}
        for register, value in values.items():
            uc.reg_write(register, value)
        for n in range(8):
            uc.reg_write(x86.UC_X86_REG_FP0 + n, (0x8000_0000_0000_0000 | n << 5, 0x3FFF + n))
        uc.reg_write(x86.UC_X86_REG_MXCSR, 0x7F80)
        uc.reg_write(x86.UC_X86_REG_FPCW, 0x0E7F)
        uc.reg_write(x86.UC_X86_REG_FPSW, 5 << 11)
        m.save(tmp_path / "a.snap")
        kept = [*values, *(x86.UC_X86_REG_FP0 + n for n in range(8)), x86.UC_X86_REG_MXCSR, x86.UC_X86_REG_FPCW, x86.UC_X86_REG_FPSW]
        with Machine.restore(tmp_path / "a.snap") as restored:
            for register in kept:
                assert restored.pc.cpu.uc.reg_read(register) == uc.reg_read(register), register


def test_by_the_public_interface_alone_it_goes_on_too(tmp_path: Path) -> None:
    def make() -> Machine:
        m = Machine(Machine.load("q35-6g").description, public_only=True)
        m.boot(Config(VTD_TRANS=False))
        return m

    with make() as m:
        m.save(tmp_path / "a.snap")
        with Machine.restore(tmp_path / "a.snap") as restored:
            assert restored.pc.public_only
            assert type_to(restored, ["nvme read 5", "time"]) == type_to(m, ["nvme read 5", "time"])
            assert different(facts(m), facts(restored)) == []


def test_the_disks_written_blocks_are_in_it_and_its_image_is_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 2 * 4096)
    text = next(iter(shipped().values())).parent / "q35-6g.toml"
    folder = tmp_path / "m.toml"
    folder.write_text(text.read_text() + "\n" if "[disk]" in text.read_text() else text.read_text() + f'\n[disk]\nimage = "{image}"\n')
    with Machine.load(folder) as m:
        if m.description.disk.image is None:
            pytest.skip("the machine describes its own disk")
        m.boot(Config(VTD_TRANS=False))
        m.pc.root.find("nvme")[0].disk.write(7, b"w" * 512)     # type: ignore[attr-defined]
        m.save(tmp_path / "a.snap")
    with pytest.raises(BadSnapshot, match=r"disk\.img.*give it as image="):
        Machine.restore(tmp_path / "a.snap")
    other = tmp_path / "other.img"
    other.write_bytes(b"x" * image.stat().st_size)
    with pytest.raises(BadSnapshot, match=r"is not the disk image that the machine had"):
        Machine.restore(tmp_path / "a.snap", image=other)
    moved = image.rename(tmp_path / "moved.img")
    with Machine.restore(tmp_path / "a.snap", image=moved) as restored:
        disk = restored.pc.root.find("nvme")[0].disk            # type: ignore[attr-defined]
        assert disk.read(7, 1) == b"w" * 512 and disk.read(8, 1) == bytes(range(256)) * 2
        assert restored.reboot(VTD_TRANS=False).live


def test_after_an_attack_and_with_a_card_that_is_still_at_work(tmp_path: Path) -> None:
    with Machine.load("q35-6g-intremap") as m:
        m.attack("steal-key", Config(VTD_TRANS=False))
        m.save(tmp_path / "a.snap")
        with Machine.restore(tmp_path / "a.snap") as restored:
            assert type_to(restored, ["time", "nvme read 3"]) == type_to(m, ["time", "nvme read 3"])
            assert different(facts(m), facts(restored)) == []
        m.boot(Config(), early=lambda pc: start_card(pc, 128 << 20, None), progress=lambda phase: phase == "guest runs" and m.stop())
        assert m.state == "stopped" and m.pc.clock.next() is not None
        m.save(tmp_path / "b.snap")
        with Machine.restore(tmp_path / "b.snap") as restored:
            m.resume()
            restored.resume()
            assert m.run is not None and len(m.run.dma) > 50
            assert different(facts(m), facts(restored)) == []


def test_a_machine_that_runs_is_saved_as_it_stands(tmp_path: Path) -> None:
    with booted() as m:
        saved: list[int] = []

        def watch(_phase: str | None) -> None:
            if not saved and m.state == "running":
                saved.append(m.save(tmp_path / "a.snap"))

        while not saved:
            m.key_in("nvme probe\n" * 4)
            m.resume(watch=watch)
        with Machine.restore(tmp_path / "a.snap") as restored:
            assert restored.state in ("stopped", "waiting")
            restored.resume()
            m.resume()
            assert different(facts(m), facts(restored)) == []


def test_what_cannot_be_saved_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    with Machine.load("q35-6g") as m:
        with pytest.raises(HvlabError, match="boot the machine first"):
            m.save(path)
        m.boot(progress=lambda phase: m.stop() and None if phase == "pci" else None)
        assert m.state == "stopped"
        with pytest.raises(HvlabError, match=r"resume\(\) it until its guest runs"):
            m.save(path)
        m.resume()
        m.save(path)
        with pytest.raises(HvlabError, match="cannot be written"):
            m.save(tmp_path / "no" / "folder.snap")
        with pytest.raises(HvlabError, match="is no file"):
            m.save(3)           # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["a.snap"]


def test_a_save_that_breaks_off_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.snap"
    with booted() as m:
        m.save(path)
        before = path.read_bytes()

        def interrupt(text: str) -> None:
            if text.startswith("memory"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            m.save(path, interrupt)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.snap"]


def test_a_file_says_what_it_is_without_being_restored(tmp_path: Path) -> None:
    with booted() as m:
        size = m.save(tmp_path / "a.snap")
        told = info(tmp_path / "a.snap")
        assert (told.machine, told.state, told.outcome, told.time, told.size) == (m.name, "waiting", "disk-lost", m.pc.clock.now, size)
        assert told.config == Config().to_dict() and told.memory > 1 << 20


def test_another_machines_snapshot_is_not_loaded_in_place(tmp_path: Path) -> None:
    with booted("q35-2g") as other:
        other.save(tmp_path / "a.snap")
    with booted() as m:
        there = facts(m)
        with pytest.raises(BadSnapshot, match=r"another machine.*Machine\.restore"):
            m.load_snapshot(tmp_path / "a.snap")
        assert different(there, facts(m)) == [] and m.run is not None and m.run.live
