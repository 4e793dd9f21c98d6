"""What a fool or an attacker does to hvlab ends in an outcome or in one sentence, and the machine can be used afterwards."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import Config, Machine, Run, session
from hvcore.cli import main
from hvcore.errors import BadConfig, BadMachine, HvlabError
from hvcore.machine.description import DiskDescription
from hvcore.machine.disk import Disk
from hvcore.phases import DOING
from hvcore.sources import load
from hvcore.spec.dmar import Dmar, Drhd, Scope, ScopeType, build

LOG = "BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x3fffffff] usable\n"
TOML = 'ram = "1 GiB"\n'


def _special(folder: Path, kind: str) -> Path:
    """A path that must not be read whole: a pipe nobody writes to, a device without end, or a sparse file of 1 TiB."""
    if kind == "device":
        return Path("/dev/zero")
    path = folder / "special"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    return path


@pytest.mark.parametrize(("kind", "why"), [("pipe", "not a file"), ("device", "not a file"), ("huge", "too many for an ACPI table")])
def test_no_table_that_is_no_file(tmp_path: Path, kind: str, why: str) -> None:
    special = _special(tmp_path, kind)
    toml = tmp_path / "m.toml"
    toml.write_text(f'{TOML}dmar = "{special}"\n')
    with pytest.raises(BadMachine, match=rf"m\.toml: dmar: {special}: .*{why}"):
        load(toml)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "e820.txt").write_text(LOG)
    (folder / "DMAR.dat").symlink_to(special)
    with pytest.raises(BadMachine, match=why):
        load(folder)


@pytest.mark.parametrize("step", [(0xAA, 7), (0x1F, 0xFF)])
@pytest.mark.parametrize("path", [0, 1], ids=["first", "last"])
def test_a_scope_whose_path_is_no_function(tmp_path: Path, step: tuple[int, int], path: int) -> None:
    steps = [(2, 0), (3, 0)]
    steps[path] = step
    scope = Scope(ScopeType.ENDPOINT, 0, 0, tuple(steps))
    table = build(Dmar(39, 0, (Drhd(0, 0, 0, 0xFED90000, (scope,)), Drhd(1, 0, 0, 0xFED91000))))
    (tmp_path / "e820.txt").write_text(LOG)
    (tmp_path / "DMAR.dat").write_bytes(table)
    with Machine.load(tmp_path) as m:
        assert m.boot(Config(PROFILE="mended")).outcome == "up"


def test_a_size_beyond_64_bits(tmp_path: Path) -> None:
    toml = tmp_path / "m.toml"
    for text, key in ((f'{TOML}[disk]\nsize = "99999999 TiB"\n', "disk.size"), ('ram = "16777216 TiB"\n', "ram")):
        toml.write_text(text)
        with pytest.raises(BadMachine, match=rf"m\.toml: {key}: '.* TiB' is beyond 64 bits"):
            load(toml)


def test_no_disk_that_is_no_file(tmp_path: Path) -> None:
    for image in (_special(tmp_path, "pipe"), tmp_path, Path("/dev/zero")):
        with pytest.raises(BadMachine, match=rf"{image} is not a file: correct `image`"):
            Disk(DiskDescription(image=str(image)))
    with pytest.raises(BadMachine, match="embedded null"):
        Disk(DiskDescription(image="a\0b"))


def test_a_machine_whose_firmware_map_was_overwritten_reboots() -> None:
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        assert "sent" in run.guest.command("dma w 0xf0000 64 0")
        assert run.e820.firmware == () and run.e820.guest
        assert run.to_json()["e820"]["firmware"] == []
        again = m.reboot()
        assert again.outcome == "up" and len(again.e820.firmware) == 10
        assert run.e820.firmware == ()


def test_a_guest_map_that_counts_more_entries_than_fit_is_read_as_far_as_it_fits() -> None:
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        assert run.core is not None and run.core.boot_params is not None
        run.guest.command(f"poke {run.core.boot_params + 0x1e8:#x} 255 1")
        assert len(run.e820.guest) == 128


def test_mistakes_on_the_command_line_are_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["decode", "x.npz", "--root", "zz"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "'zz' is no address" in said
    text = tmp_path / "x.npz"
    text.write_text("not an archive")
    assert main(["decode", str(text), "--root", "0"]) == 2
    assert capsys.readouterr().err == f"hvlab: {text} is not a readable .npz file: it holds no arrays of numbers\n"
    (tmp_path / "two\nlines").mkdir()
    assert main(["boot", str(tmp_path / "two\nlines")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


LOOPS = {"jmp": 0xFEEBFEEBFEEBFEEB, "cpuid; jmp": 0xFCEBA20FFCEBA20F, "in; jmp": 0xFCEBE0E4FCEBE0E4, "pause; jmp": 0xFCEB90F3FCEB90F3}


def _loop(machine: Machine, code: int) -> None:
    """Puts code that never ends over the guest's own, by DMA."""
    assert machine.run is not None
    for page in (0x1001000, 0x1002000):
        if machine.ended is None:
            machine.run.guest.command(f"dma w {page:#x} 4096 {code:#x}")


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_a_guest_that_loops_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        monkeypatch.setattr(session, "WALL_LIMIT", 0.5)
        _loop(m, code)
        assert (run.outcome, run.why) == ("guest-crash", "still running after 0.5 s of wall time")
        monkeypatch.undo()
        assert m.reboot().outcome == "up"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="only a main thread is interrupted")
@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_a_long_run_can_be_interrupted(code: int) -> None:
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        interrupt = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            _loop(m, code)
        assert m.ended is None and "LAB" in str(run.console).upper()
        assert m.reboot().outcome == "up"


def _boot_until(machine: Machine, phase: str) -> Run:
    """A boot that is interrupted when `phase` begins."""
    def interrupt(now: str) -> None:
        if now == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.boot(Config(PROFILE="mended"), interrupt)
    assert machine.run is not None
    return machine.run


def test_a_boot_broken_off_leaves_a_machine_that_boots() -> None:
    with Machine.load("q35-6g") as m:
        phases: list[str] = []
        m.boot(Config(PROFILE="mended"), phases.append)
        assert phases[0] == "firmware" and phases[-1] == "guest runs"
        for phase in phases[1:-1]:
            run = _boot_until(m, phase)
            assert (run.outcome, run.why) == ("stopped", f"stopped by you while {DOING[phase]}; it can go on")
            assert run.to_json()["outcome"] == m.state == "stopped"
        assert m.reboot().outcome == "up"


def test_commands_go_to_the_guest_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "q35-6g", "--set", "VTD_TRANS=n", "--command", "reboot", "--command", "cpuid 0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outcome"] == "up" and said["console"]["guest"][-2].startswith("cpuid: eax")
    assert main(["boot", "q35-6g", "--set", "VTD_TRANS=n", "--command", "crash", "--command", "help", "--command", "help", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["outcome"] == "guest-crash"
    assert shown.err.startswith("hvlab: no guest was left for 'help': the guest halted") and shown.err.count("\n") == 1


def test_what_is_no_config_is_refused_and_the_machine_goes_on() -> None:
    with Machine.load("q35-6g") as m:
        for wrong in ("VTD_TRANS=n", {"VTD_TRANS": True}, False, 0):
            with pytest.raises(BadConfig, match=r"boot takes a Config, as in boot\(Config\(VTD_TRANS=False\)\), not "):
                m.boot(wrong)  # type: ignore[arg-type]
        assert m.boot(Config(VTD_TRANS=False)).outcome == "up"
        with pytest.raises(BadConfig, match="QUIRKS takes names"):
            m.reboot(QUIRKS=5)
        with pytest.raises(BadConfig, match="QUIRKS takes AGAW"):
            m.reboot(QUIRKS=[5])
        for address in (-1, 1 << 64, "0x1000", 1.5, None):
            with pytest.raises(HvlabError, match="is no physical address"):
                m.lens(address)  # type: ignore[arg-type]
        assert m.reboot().outcome == "up"


def test_a_closed_machine_keeps_its_last_run_and_nothing_else(tmp_path: Path) -> None:
    m = Machine.load("q35-6g")
    run = m.boot(Config(VTD_TRANS=False))
    guest = run.guest
    assert [p.name for p in run.dump(str(tmp_path))] == ["tables.npz", "registers.json"]
    m.close()
    m.close()
    to_the_guest: list[Callable[[], object]] = [lambda: guest.command("help"), lambda: m.send("help\n")]
    for use in to_the_guest:
        with pytest.raises(HvlabError, match="no guest to send to: boot the machine first"):
            use()
    at_memory: list[Callable[[], object]] = [lambda: run.guest, lambda: run.lens(0), lambda: m.lens(0), lambda: run.dump(tmp_path)]
    for use in at_memory:
        with pytest.raises(HvlabError, match="the machine was rebooted or closed"):
            use()
    assert run.outcome == "up" and run.e820.guest and "lab: ready" in run.console.guest
