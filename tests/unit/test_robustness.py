"""What a fool or an attacker does to hvlab ends in an outcome or in one sentence, and the machine can be used afterwards."""

import os
from pathlib import Path

import pytest

from hvcore import Config, Machine
from hvcore.cli import main
from hvcore.errors import BadMachine
from hvcore.machine.description import DiskDescription
from hvcore.machine.disk import Disk
from hvcore.sources import load

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
