"""Archives of machines with mutations: entries that lie, lead out or are no files; compressed bytes that are damaged; text of acpidump."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from hvcore.errors import HvlabError
from hvcore.sources.archive import read_archive
from hvcore.sources.tables import parse_acpidump

from .acpi import mutated_table, real_tables
from .mutate import check_sentence, junk, mutated, often, spoilt_text
from .sources import _folder, _loaded, _logs, _spoilt_file

__all__ = ["TARGETS"]

_NAMES = ("../dmesg.txt", "/DMAR.dat", "a/../../lspci.txt", "a\\..\\dmesg.txt", "C:x", "", ".", "..", "dmesg.txt/", "a" * 300, "é",
          "iommu.txt", "kern.log", "acpidump.txt", "dmar.hex", "MCFG.dat", "IVRS.dat", "APIC.dat", "lspci-nn.txt", "x\ny")
_KINDS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE,
          tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"\0", b"Z")
_ENDINGS = (".tar.gz", ".tar", ".zip")


def dump_text(name: str, data: bytes, address: int) -> str:
    """A table as `acpidump` prints it."""
    lines = (f"    {at:04X}: {data[at:at + 16].hex(' ').upper()}  ...." for at in range(0, len(data), 16))
    return "\n".join([f"{name} @ 0x{address:016X}", *lines, ""])


def _files(r: Random) -> dict[str, bytes]:
    """Files of a machine, some spoilt, lost or of another one, some with names that no honest archive has."""
    home = r.choice(sorted({p.parent for p in _logs() if p.parent.name != "logs"}))
    files = {p.name: _spoilt_file(r, p.name, d) if often(r, 0.2) else d for p, d in _logs().items() if p.parent == home and often(r, 0.95)}
    if often(r, 0.4):
        files["DMAR.dat"] = mutated_table(r, r.choice(real_tables()), real_tables())
    if often(r, 0.3):
        files["acpidump.txt"] = spoilt_text(r, dump_text("DMAR", r.choice(real_tables()), r.getrandbits(40))).encode("utf-8", "replace")
    if often(r, 0.3):
        files[r.choice(_NAMES)] = junk(r, 300) if often(r, 0.5) else r.choice(real_tables())
    top = r.choice(("", "hvlab-machine/", "./", "a/b/"))
    return {top + name: data for name, data in files.items()}


def _tar(r: Random, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    odd = r.choice(sorted(files)) if files and often(r, 0.3) else None
    for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        if name == odd:
            info.type, info.linkname = r.choice(_KINDS), "/etc/passwd"
            info.size = max(0, r.choice((len(data), 0, len(data) + r.randint(-600, 600), 1 << r.randint(20, 33))))
        out.write(info.tobuf(r.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)), "utf-8", "replace") + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024 if often(r, 0.8) else 0)


def _zip(r: Random, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.compress_type = r.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            info.external_attr = r.choice((0, 0o100644, 0o100644, 0o100644, 0o120777, 0o020666)) << 16
            archive.writestr(info, data)
    return out.getvalue()


def archive(seed: int) -> str:
    """A whole archive: a machine or a sentence, and nothing beside it in its folder."""
    r = Random(seed)
    ending = r.choice(_ENDINGS)
    data = _zip(r, _files(r)) if ending == ".zip" else _tar(r, _files(r))
    if often(r, 0.2):
        data = mutated(r, data)
    if ending == ".tar.gz":
        data = gzip.compress(data, 1, mtime=0)
        data = mutated(r, data) if often(r, 0.2) else data
    with _folder() as folder:
        path = folder / f"machine{ending if often(r, 0.95) else r.choice(_ENDINGS)}"
        path.write_bytes(data)
        told = _loaded(path)
        assert list(folder.iterdir()) == [path]
        _names(path)
        return told


def _names(path: Path) -> None:
    """Whatever is wanted of an archive has a name without folders."""
    try:
        found = read_archive(path, lambda _: True)
    except HvlabError:
        return
    assert all("/" not in name and name not in ("..", ".") for name in found)


def acpidump(seed: int) -> str:
    """The text of acpidump: tables whole, or a sentence."""
    r = Random(seed)
    tables = [(r.choice(("DMAR", "MCFG", "FACP")), r.choice(real_tables())) for _ in range(r.randint(1, 3))]
    text = "\n".join(dump_text(name, data, r.getrandbits(40)) for name, data in tables)
    try:
        found = parse_acpidump(spoilt_text(r, text) if often(r, 0.7) else text)
    except HvlabError as e:
        check_sentence(e)
        return "refused"
    return f"{len(found)} tables"


TARGETS: dict[str, Callable[[int], str]] = {"archive": archive, "acpidump": acpidump}
