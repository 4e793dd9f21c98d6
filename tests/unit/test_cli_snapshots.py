"""The command line and snapshots: boot --save, resume, snapshot info, report and dump --from; mistakes are one line."""

import json
import os
import pty
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from hvcore import Machine
from hvcore.cli import main
from hvcore.machine.description import DiskDescription
from hvcore.sources import load

DISK = 64 << 20


def run(capsys, *words):
    status = main(list(map(str, words)))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A lab guest at its prompt, in a file."""
    path = tmp_path_factory.mktemp("saved") / "lab.snap"
    with Machine.load("q35-2g") as machine:
        machine.boot()
        machine.save(path)
    return path


@pytest.fixture(scope="module")
def imaged(tmp_path_factory):
    """A file of a machine whose disk lies over an image, and the image."""
    folder = tmp_path_factory.mktemp("imaged")
    image = folder / "disk.img"
    image.write_bytes(os.urandom(1 << 16) + bytes(DISK - (1 << 16)))
    description = replace(load("q35-2g"), disk=DiskDescription(DISK, 0, str(image)))
    with Machine(description) as machine:
        machine.boot()
        machine.save(folder / "imaged.snap")
    return folder / "imaged.snap", image


def test_what_is_saved_goes_on_where_it_was(capsys, tmp_path):
    whole = run(capsys, "boot", "q35-2g", "--command", "nvme load 0x1000000 5", "--command", "nvme read 5", "--json")
    half = run(capsys, "boot", "q35-2g", "--command", "nvme load 0x1000000 5", "--save", tmp_path / "a.snap")
    rest = run(capsys, "resume", tmp_path / "a.snap", "--command", "nvme read 5", "--save", tmp_path / "b.snap", "--json")
    assert whole[0] == half[0] == rest[0] == 0 and not rest[2]
    one, other = json.loads(whole[1]), json.loads(rest[1])
    del one["timings"], other["timings"]
    assert one == other
    _, first, _ = run(capsys, "snapshot", "info", tmp_path / "a.snap", "--json")
    _, second, _ = run(capsys, "snapshot", "info", tmp_path / "b.snap", "--json")
    assert json.loads(first)["time"] < json.loads(second)["time"]


def test_commands_are_shown_with_their_answers(capsys, saved):
    status, out, _ = run(capsys, "resume", saved, "--command", "time")
    assert status == 0 and out.startswith("lab> time\n") and "Run 1 of q35-2g: " in out


def test_info_tells_what_it_is_and_nothing_that_a_terminal_acts_upon(capsys, saved, tmp_path):
    status, out, _ = run(capsys, "snapshot", "info", saved)
    assert status == 0
    told = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert list(told) == ["machine", "state", "outcome", "virtual time", "guest", "options", "made by", "file", "memory in it"]
    assert told["machine"] == "q35-2g" and told["guest"] == "lab"
    assert told["state"] == "waiting" and "VTD_TRANS=y DISABLE_VTD=y" in told["options"]
    (tmp_path / "x.snap").write_bytes(with_header(saved.read_bytes(), machine="\x1b[2Jx\ny\x9b"))
    status, out, _ = run(capsys, "snapshot", "info", tmp_path / "x.snap")
    assert status == 0 and out.startswith("machine       ?[2Jx?y?\n")


def test_info_needs_no_package(saved):
    program = "import sys; sys.modules['zstandard'] = None; from hvcore.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, "snapshot", "info", str(saved)], capture_output=True, text=True, check=True)
    assert "guest         packed by Zstandard: pip install zstandard, to be told\n" in done.stdout and not done.stderr


def with_header(data, version=1, **changes):
    """A snapshot whose header says something else."""
    at, size = struct.unpack_from("<QQ", data, 16)
    header = json.dumps(json.loads(data[at:at + size]) | changes).encode()
    start = struct.pack("<8sIIQQ", data[:8], version, zlib.crc32(header), at, len(header))
    return start + struct.pack("<I", zlib.crc32(start)) + data[36:at] + header


def test_a_machine_that_was_stopped_goes_on_by_itself(capsys, tmp_path):
    with Machine.load("q35-2g") as machine:
        machine.boot(progress=lambda phase: machine.stop() and None if phase == "guest runs" else None)
        assert machine.state == "stopped"
        machine.save(tmp_path / "a.snap")
    status, out, _ = run(capsys, "resume", tmp_path / "a.snap", "--command", "time", "--json")
    assert status == 0 and json.loads(out)["outcome"] == "up"


def test_two_guests_are_saved_and_resumed(capsys, tmp_path):
    assert run(capsys, "boot", "q35-6g", "--set", "TINYVISOR=y", "--save", tmp_path / "a.snap")[0] == 0
    status, out, _ = run(capsys, "resume", tmp_path / "a.snap", "--json")
    assert status == 0 and [g["name"] for g in json.loads(out)["guests"]] == ["guest 1", "guest 2"]


def test_a_core_that_gave_up_is_saved_too(capsys, tmp_path):
    assert run(capsys, "boot", "server-64g", "--set", "IOMMU_MAP_END=ram", "--save", tmp_path / "a.snap")[0] == 0
    status, out, err = run(capsys, "resume", tmp_path / "a.snap", "--command", "time")
    assert status == 0 and "vmm-panic" in out and err.startswith("hvlab: no guest was left for 'time': ")


@pytest.mark.parametrize("command", [["resume"], ["snapshot", "info"], ["report", "-o", "r.html", "--from"], ["dump", "-o", "d", "--from"],
                                     ["report", "-o", "r.ipynb", "--from"]])
def test_what_is_no_snapshot_is_one_line(capsys, tmp_path, saved, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    data = saved.read_bytes()
    for name, content, why in (("a", b"", "it is no snapshot of a machine"), ("b", data[:-100], "it is cut off"),
                               ("c", with_header(data, version=2), "it has format 2, and this version reads format 1"),
                               ("d", None, r"d cannot be read \(No such file or directory\)")):
        if content is not None:
            Path(name).write_bytes(content)
        status, out, err = run(capsys, *command, name)
        assert (status, out, err.count("\n")) == (2, "", 1) and re.match(f"hvlab: .*{why}", err)
    assert not Path("r.html").exists() and not Path("d").exists()


@pytest.mark.parametrize("command", [["resume"], ["snapshot", "info"], ["linux", "fetch", "--deb"], ["boot", "q35-2g", "--kernel"]])
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(capsys, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    status, out, err = run(capsys, *command, tmp_path / "pipe")
    assert (status, out, err.count("\n")) == (2, "", 1) and "cannot be read" in err and "it is no file" in err


def test_what_a_link_leads_to_is_replaced(capsys, saved, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.snap").symlink_to("real/a.snap")
    for _ in range(2):
        assert run(capsys, "resume", saved, "--save", tmp_path / "a.snap")[0] == 0
        assert (tmp_path / "a.snap").is_symlink() and [p.name for p in (tmp_path / "real").iterdir()] == ["a.snap"]
    assert run(capsys, "resume", tmp_path / "a.snap")[0] == 0


def test_a_disk_image_is_named_again(capsys, imaged, tmp_path):
    file, image = imaged
    other = tmp_path / "other.img"
    other.write_bytes(bytes(DISK))
    for words, why in (((), "disk.img, which is not in the snapshot: give it as image=, or by --image"),
                       (("--image", "nosuch"), "the disk image nosuch cannot be read (No such file or directory)"),
                       (("--image", other), "is not the disk image that the machine had")):
        status, out, err = run(capsys, "resume", file, *words)
        assert (status, out, err.count("\n")) == (2, "", 1) and why in err
    assert run(capsys, "resume", file, "--image", image)[0] == 0
    assert run(capsys, "dump", "--from", file, "--image", image, "-o", tmp_path / "d")[0] == 0
    assert (tmp_path / "d" / "tables.npz").exists()


def test_a_snapshot_that_is_booted_is_told_what_to_do_with_it(capsys, saved):
    for command in ("boot", "doctor"):
        status, out, err = run(capsys, command, saved)
        assert (status, out, err.count("\n")) == (2, "", 1) and "is a snapshot of a machine: `hvlab resume`" in err


def test_an_image_for_a_disk_without_one(capsys, saved):
    status, out, err = run(capsys, "resume", saved, "--image", __file__)
    assert (status, out, err.count("\n")) == (2, "", 1) and "lies over no image: leave out --image" in err


@pytest.mark.parametrize("place", [".", "/dev/null", "no/such/a.snap", "\0", "x" * 300, "/proc/x"])
def test_where_nothing_can_be_saved_is_said_in_one_line_before_anything_is_booted(capsys, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "boot", "q35-2g", "--save", place)
    assert (status, out, err.count("\n")) == (2, "", 1) and re.search("cannot be written|is no file", err)
    assert not list(tmp_path.iterdir()) and Path("/dev/null").is_char_device()


def test_a_full_disk_is_one_line_the_run_is_told_and_the_old_file_stays(saved, tmp_path):
    (tmp_path / "a.snap").write_bytes(b"old")
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from hvcore.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, "resume", str(saved), "--save", str(tmp_path / "a.snap")], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 2 and re.fullmatch(r"hvlab: .*a\.snap cannot be written \(File too large\): is there room\?\n", done.stderr)
    assert "Run 1 of q35-2g" in done.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.snap", b"old")]


@pytest.mark.parametrize("words", [["report", "-o", "r.html"], ["report", "q35-2g", "--from", "F", "-o", "r.html"], ["dump", "-o", "d"],
                                   ["report", "--from", "F", "--set", "VTD_TRANS=n", "-o", "r.html"],
                                   ["report", "--from", "F", "--guest", "lab", "-o", "r.ipynb"],
                                   ["dump", "q35-2g", "--image", "F", "-o", "d"], ["dump", "--from", "F", "--append", "x", "-o", "d"],
                                   ["attack", "steal-key", "q35-2g", "--guest", "linux"], ["matrix", "q35-2g", "--guest", "linux-6.1"],
                                   ["doctor", "q35-2g", "--guest", "linux-1.2"], ["doctor", "q35-2g", "--guest", "windows"],
                                   ["resume"], ["snapshot"], ["snapshot", "show", "F"]])
def test_what_does_not_go_together_is_one_line(capsys, saved, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    try:
        status = main([str(saved) if word == "F" else word for word in words])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_reported_as_it_stands(capsys, saved, tmp_path):
    assert run(capsys, "report", "--from", saved, "-o", tmp_path / "r.html") == (0, f"{tmp_path / 'r.html'}\n", "")
    page = (tmp_path / "r.html").read_text()
    assert "Report: q35-2g" in page and "hvlab boot q35-2g" in page and "<dt>guest</dt>" not in page


def test_on_a_terminal_it_shows_how_far_it_is(saved, tmp_path):
    master, slave = pty.openpty()
    words = ["resume", str(saved), "--save", str(tmp_path / "long-name\x1b.snap")]
    with subprocess.Popen([sys.executable, "-m", "hvcore.cli", *words], stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        said = b""
        try:
            while part := os.read(master, 4096):
                said += part
        except OSError:
            pass
    os.close(master)
    assert process.returncode == 0
    lines = said.split(b"\r\x1b[K")
    assert b"restoring lab.snap ..." in lines and any(re.match(rb"saving long-name\.snap: memory: \d+ % \.\.\.", line) for line in lines)
    assert lines[-1] == b"" and b"\x1b" not in b"".join(lines)
