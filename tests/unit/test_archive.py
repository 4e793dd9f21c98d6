"""Archives, acpidump's text and raw tables as machines; torn logs; archives that were made to do harm."""

import gzip
import io
import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvcore.cli import main
from hvcore.errors import BadMachine
from hvcore.machine.description import MachineDescription
from hvcore.session import Machine
from hvcore.sources import images_dir, load
from hvcore.sources.archive import MOST_BYTES, MOST_FILES, archive_name, read_archive
from hvcore.sources.tables import parse_acpidump, read_tables
from hvcore.spec.acpi import Mcfg, McfgWindow, build_mcfg, checksum

REAL = images_dir() / "machines" / "real"
LOGS = Path(__file__).parents[1] / "data" / "logs"
FULL = REAL / "huananzhi-x99-qd4-32g"
FILES = {p.name: p.read_bytes() for p in FULL.iterdir()}
PLAIN = load(FULL)
SMALL = {"dmesg.txt": b"BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
                      b"BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable\nend\n"}


def tar(path: Path, files: dict[str, bytes], extra: Iterable[tarfile.TarInfo] = ()) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def zipped(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((modes or {}).get(name, stat.S_IFREG | 0o644)) << 16
            archive.writestr(info, data)
    return path


def facts(m: MachineDescription) -> tuple[object, ...]:
    return m.e820, m.dmar, m.units, m.pci, m.ecam, m.acpi_address, m.source, m.assumptions


def sentence(path: Path) -> str:
    """The one sentence that an archive is refused with."""
    with pytest.raises(BadMachine) as refusal:
        load(path)
    said = str(refusal.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 500 + len(str(path))
    return said


@pytest.mark.parametrize("name", ["board.tar.gz", "board.tgz", "board.tar", "board.zip", "BOARD.TAR.GZ"])
@pytest.mark.parametrize("folder", ["", "some/where/", "./"])
def test_an_archive_is_what_its_folder_is(tmp_path: Path, name: str, folder: str) -> None:
    path = (zipped if name.endswith(".zip") else tar)(tmp_path / name, {folder + n: data for n, data in FILES.items()})
    machine = load(path)
    assert facts(machine) == facts(PLAIN)
    assert machine.name == archive_name(path) == name.split(".")[0]


def test_an_archive_boots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "small.tar.gz", SMALL)
    assert main(["boot", str(path)]) == 0
    assert ": up - " in capsys.readouterr().out
    with Machine.load(path) as machine:
        assert (machine.name, machine.description.source) == ("small", "archive small.tar.gz")


# --- refused


@pytest.mark.parametrize(("name", "words"), [
    ("../dmesg.txt", "climbs out"), ("a/../../dmesg.txt", "climbs out"), ("a/../dmesg.txt", "climbs out"), ("..\\dmesg.txt", "climbs out"),
    ("/etc/dmesg.txt", "no relative"), ("C:/dmesg.txt", "no relative"), ("C:\\dmesg.txt", "no relative"),
    ("\\\\host\\dmesg.txt", "no relative")])
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_path_that_leads_out(tmp_path: Path, name: str, words: str, kind: str) -> None:
    make = zipped if kind == "zip" else tar
    assert words in sentence(make(tmp_path / f"x.{kind}", {**SMALL, name: b"x"}))


@pytest.mark.parametrize(("kind", "words"), [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.CHRTYPE, "a device"),
                                             (tarfile.BLKTYPE, "a device"), (tarfile.FIFOTYPE, "a device")])
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes, words: str) -> None:
    info = tarfile.TarInfo("DMAR.dat")
    info.type, info.linkname = kind, "/etc/passwd"
    assert words in sentence(tar(tmp_path / "x.tar.gz", SMALL, [info]))


@pytest.mark.parametrize(("kind", "words"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device"), (stat.S_IFIFO, "a device")])
def test_links_and_devices_in_a_zip(tmp_path: Path, kind: int, words: str) -> None:
    assert words in sentence(zipped(tmp_path / "x.zip", {**SMALL, "DMAR.dat": b"/etc/passwd"}, {"DMAR.dat": kind | 0o777}))


def test_bombs(tmp_path: Path) -> None:
    zeros = bytes(MOST_BYTES + 1)
    for path in (tar(tmp_path / "x.tar.gz", {"dmesg.txt": zeros}), zipped(tmp_path / "x.zip", {"dmesg.txt": zeros})):
        assert path.stat().st_size < 1 << 20
        assert "32 MiB are the most" in sentence(path)
    many = {f"{n}/other": zeros[:24 << 20] for n in range(3)}
    assert "64 MiB unpacked" in sentence(tar(tmp_path / "y.tar.gz", many))
    assert f"{MOST_FILES} entries" in sentence(tar(tmp_path / "z.tar.gz", {str(n): b"" for n in range(MOST_FILES + 1)}))
    assert f"{MOST_FILES} entries" in sentence(zipped(tmp_path / "z.zip", {str(n): b"" for n in range(MOST_FILES + 1)}))


def test_a_bomb_in_a_header(tmp_path: Path) -> None:
    """A name of 4 GiB: the library would read it whole before anybody sees an entry."""
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as out:
        out.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(80):
            out.write(bytes(1 << 20))
    assert "more than any machine's files need" in sentence(tmp_path / "x.tar.gz")


def test_attributes_that_are_slow_to_search(tmp_path: Path) -> None:
    """A pax header of digits takes the library time that grows with the square of its length."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 1 << 20
    (tmp_path / "x.tar").write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + b"1" * (1 << 20) + bytes(1024))
    began = time.process_time()
    assert "more than any machine's files need" in sentence(tmp_path / "x.tar")
    head.size = 2048
    (tmp_path / "x.tar").write_bytes((head.tobuf(tarfile.USTAR_FORMAT) + b"1" * 2048) * 5000)
    assert "x.tar" in sentence(tmp_path / "x.tar")
    assert time.process_time() - began < 20


def test_a_stream_without_end(tmp_path: Path) -> None:
    """Entries that are small by their headers and yet never end."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as out:
        out.write(tarfile.TarInfo("a").tobuf())
        for n in range(20):
            info = tarfile.TarInfo(f"{n}/b")
            info.size = 4 << 20
            out.write(info.tobuf() + bytes(4 << 20))
    assert "64 MiB unpacked" in sentence(tmp_path / "x.tar.gz")


def test_headers_nested_without_end(tmp_path: Path) -> None:
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as out:
        out.write((head.tobuf(tarfile.GNU_FORMAT) + b"a" + bytes(511)) * 5000)
    assert "x.tar.gz" in sentence(tmp_path / "x.tar.gz")


def test_two_machines_in_one(tmp_path: Path) -> None:
    both = {f"{n}/dmesg.txt": SMALL["dmesg.txt"] for n in "ab"}
    assert "in it twice" in sentence(tar(tmp_path / "x.tar", both))
    assert "none of" in sentence(tar(tmp_path / "y.tar", {"readme.md": b"hello"}))


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", SMALL)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 24:at + 28] = (len(SMALL["dmesg.txt"]) + 50).to_bytes(4, "little")
    path.write_bytes(data)
    assert "x.zip" in sentence(path)


def test_not_an_archive_at_all(tmp_path: Path) -> None:
    for name in ("x.tar.gz", "x.tar", "x.zip"):
        (tmp_path / name).write_bytes(b"no archive at all" * 100)
        assert "cannot be read" in sentence(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert "x." in sentence(tmp_path / name)


def test_a_name_of_nothing(tmp_path: Path) -> None:
    """The library stumbles over it by itself."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"x")
    assert "no relative path" in sentence(path)


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar.gz")
    assert "not a file" in sentence(tmp_path / "x.tar.gz")


BASES = {"x.tar.gz": tar, "x.tar": tar, "x.zip": zipped}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bases")
    files = {**SMALL, "DMAR.dat": FILES["DMAR.dat"], "lspci.txt": FILES["lspci.txt"][:2000]}
    return {name: make(folder / name, files).read_bytes() for name, make in BASES.items()}


def machine_or_sentence(path: Path) -> None:
    said = ""
    try:
        assert load(path).ram_runs
    except BadMachine as e:
        said = str(e)
    assert "\n" not in said
    assert len(said) < 700 + len(str(path))


@settings(max_examples=150)
@given(st.sampled_from(sorted(BASES)), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12),
       st.integers(0, 1 << 20) | st.none())
def test_damaged_archives(tmp_path_factory: pytest.TempPathFactory, bases: dict[str, bytes], name: str, changes: list[tuple[int, int]],
                          cut: int | None) -> None:
    data = bytearray(bases[name])
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}-{name}"
    path.write_bytes(data[:cut % len(data)] if cut is not None else data)
    machine_or_sentence(path)


CONTENTS = st.sampled_from([b"", b"x", *SMALL.values(), FILES["DMAR.dat"]])
NAMES = st.lists(st.sampled_from(["..", ".", "", "a", "dmesg.txt", "DMAR.dat", "lspci.txt", "acpidump.txt", "C:", "\0", "é\n", "x" * 200]),
                 min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
                         tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"Z"])


@settings(max_examples=100)
@given(st.lists(st.tuples(NAMES, KINDS, CONTENTS, st.integers(-600, 600)), max_size=6))
@example([("../dmesg.txt", tarfile.REGTYPE, SMALL["dmesg.txt"], 0)])
def test_hostile_archives(tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bytes, int]]) -> None:
    """Whatever the entries are called and claim to be, what comes of it is a machine or a sentence, and no file appears."""
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "x.tar"
    with path.open("wb") as out:
        for name, kind, data, lie in members:
            info = tarfile.TarInfo(name.replace("\0", "?"))
            info.type, info.size, info.linkname = kind, max(len(data) + lie, 0), "/etc/passwd"
            out.write(info.tobuf(tarfile.GNU_FORMAT, errors="replace") + data + bytes(-len(data) % 512))
    machine_or_sentence(path)
    assert [p.name for p in folder.iterdir()] == ["x.tar"]
    try:
        found = read_archive(path, lambda _: True)
    except BadMachine:
        return
    assert all("/" not in name and name not in ("..", ".") for name in found)


# --- tables


def dumped(signature: str, data: bytes, address: int = 0x7BFC2000) -> str:
    lines = [f"    {at:04X}: {data[at:at + 16].hex(' ').upper():48}  ................" for at in range(0, len(data), 16)]
    return "\n".join([f"{signature} @ 0x{address:016X}", *lines, "", ""])


def test_acpidump_is_the_table(tmp_path: Path) -> None:
    text = dumped("FACP", bytes(120)) + dumped("DMAR", FILES["DMAR.dat"], 0x7FFD8000) + dumped("SSDT", b"x" * 40)
    assert parse_acpidump(text) == [("DMAR", 0x7FFD8000, FILES["DMAR.dat"])]
    files = {n: d for n, d in FILES.items() if n != "DMAR.dat"} | {"acpidump.txt": text.encode()}
    machine = load(tar(tmp_path / "x.tar.gz", files))
    assert (machine.dmar, machine.units, machine.pci) == (PLAIN.dmar, PLAIN.units, PLAIN.pci)


def test_hex_text_of_one_table() -> None:
    text = "\n".join(f"{at:04x}: {FILES['DMAR.dat'][at:at + 16].hex(' ')}" for at in range(0, len(FILES["DMAR.dat"]), 16))
    assert read_tables({"dmar.hex": text.encode()}).data == {"DMAR": FILES["DMAR.dat"]}


def test_an_acpidump_with_a_line_lost_or_doubled(tmp_path: Path) -> None:
    lines = dumped("DMAR", FILES["DMAR.dat"]).split("\n")
    for torn in (lines[:3] + lines[4:], lines[:3] + lines[2:]):
        path = tar(tmp_path / "x.tar.gz", SMALL | {"acpidump.txt": "\n".join(torn).encode()})
        assert "lines are missing or doubled" in sentence(path)


@pytest.mark.parametrize("name", ["DMAR.dat", "dmar.aml", "DMAR", "Dmar.bin"])
def test_raw_tables_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "dmesg.txt").write_bytes(FILES["dmesg.txt"])
    (tmp_path / name).write_bytes(FILES["DMAR.dat"])
    assert load(tmp_path).dmar == FILES["DMAR.dat"]


@pytest.mark.parametrize("signature", ["DMAR", "MCFG", "IVRS", "APIC"])
@pytest.mark.parametrize("length", [0, 8, 35, 5000, (1 << 32) - 1])
def test_a_table_that_lies_about_its_length(tmp_path: Path, signature: str, length: int) -> None:
    body = signature.encode() + length.to_bytes(4, "little") + bytes(60)
    body = body[:9] + bytes([checksum(body)]) + body[10:]
    said = sentence(tar(tmp_path / "x.tar.gz", SMALL | {f"{signature}.dat": body}))
    assert f"{signature}.dat: {signature}: " in said


def test_windows_of_the_mcfg(tmp_path: Path) -> None:
    windows = (McfgWindow(0xC0000000, 0, 127), McfgWindow(0xD0000000, 0, 15, 1), McfgWindow(1 << 63, 0, 255, 2))
    machine = load(tar(tmp_path / "x.tar.gz", SMALL | {"MCFG.dat": build_mcfg(Mcfg(windows))}))
    assert [(e.base, e.last, e.segment) for e in machine.ecams] == [(0xC0000000, 127, 0), (0xD0000000, 15, 1)]


# --- logs that were torn


WHOLE = SMALL["dmesg.txt"].decode().splitlines()
LONG = (REAL / "gigabyte-b150m-16g" / "dmesg.txt").read_text().splitlines()
LOCALES = ("[Mo Nov 25 10:00:00 2026] ", "11月 25 10:00:00 ホスト kernel: ", "nov. 25 10:00:00 hôte kernel: ",
           "кас 25 10:00:00 вузел kernel: ", "\ufeff", "<6>[    0.000000] ", "2026-11-25T10:00:00,000000+01:00 ")


def of_log(folder: Path, lines: Iterable[str], encoding: str = "utf-8") -> MachineDescription:
    return load(tar(folder / "x.tar.gz", {"journal.log": "\n".join(lines).encode(encoding)}))


def compared(m: MachineDescription) -> tuple[object, ...]:
    return m.e820, m.units, m.pci, m.dmar


@pytest.mark.parametrize("prefix", LOCALES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_a_log_of_another_locale(tmp_path: Path, prefix: str, encoding: str) -> None:
    plain = compared(of_log(tmp_path, LONG))
    bare = [line.partition("] ")[2] if line.startswith("[") else line for line in LONG]
    assert compared(of_log(tmp_path, [prefix + line for line in bare], encoding)) == plain


def test_a_log_with_every_line_doubled(tmp_path: Path) -> None:
    plain, doubled = of_log(tmp_path, LONG), of_log(tmp_path, [line for line in LONG for _ in range(2)])
    assert compared(doubled) == compared(plain)
    assert any("overlap" in a for a in doubled.assumptions)


def test_two_copies_interleaved_with_other_lines(tmp_path: Path) -> None:
    plain = of_log(tmp_path, LONG)
    noise = ["systemd[1]: Starting something ...", "audit: type=1400 apparmor", ""]
    mixed = [part for n, line in enumerate(LONG) for part in (line, noise[n % 3])]
    assert compared(of_log(tmp_path, [*mixed, *LONG])) == compared(plain)


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 200))
def test_torn_logs(tmp_path_factory: pytest.TempPathFactory, seed: int, lost: float, twice: float, cut: int) -> None:
    """Lines lost, doubled and cut in the middle: a machine, or one sentence."""
    random = Random(seed)
    lines = [line[:cut] if random.random() < 0.05 else line for line in LONG if random.random() >= lost
             for _ in range(2 if random.random() < twice else 1)]
    path = tar(tmp_path_factory.getbasetemp() / f"torn-{os.getpid()}.tar", {"dmesg.txt": "\n".join(lines).encode()})
    machine_or_sentence(path)


def test_a_lost_line_is_a_hole_that_is_told(tmp_path: Path) -> None:
    """The map's lines lost one by one: what lies there is not RAM, and where RAM goes on above, the hole is named."""
    entries = [n for n, line in enumerate(LONG) if "BIOS-e820: [mem" in line and "0000100000-" not in line]
    plain = of_log(tmp_path, LONG)
    assert not any("does not say" in a for a in plain.assumptions)
    holes = 0
    for n in entries[3:-1]:
        machine = of_log(tmp_path, [line for m, line in enumerate(LONG) if m != n])
        assert len(machine.e820) == len(plain.e820) - 1
        lost, = set(plain.e820) - set(machine.e820)
        told = [a for a in machine.assumptions if "does not say" in a]
        top = max(e.end for e in machine.e820 if e.usable and e.end < 1 << 32)
        assert bool(told) == (lost.size >= 1 << 20 and lost.end <= top)
        assert not told or f"{lost.start:#x}" in told[0]
        holes += bool(told)
    assert holes
