"""The first file system of the guest: busybox, the modules it needs, and what lies in the folder `root`, packed without any privilege."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import BadMachine
from .cpio import CpioEntry, archive, device, directory, file, link

__all__ = ["FORMAT", "ROOT", "applets", "initramfs"]

FORMAT = 1
"""Counts up when what is in the archive changes its meaning."""
ROOT = Path(__file__).with_name("root")
"""What hvlab itself puts into the archive: /init and a few scripts."""
_FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "sys", "tmp")
_FIRST = b"[\0[[\0"
"""busybox has the names of its applets one after another, sorted; these come first."""


def initramfs(busybox: bytes, modules: Mapping[str, bytes], versions: Mapping[str, str]) -> bytes:
    """The archive.  `modules` are ELF files by name, in load order; `versions` say what is inside and come to lie in /etc/hvlab.

    The same arguments give the same bytes.  Raises BadMachine where `busybox` is none.
    """
    ours = [file(path.relative_to(ROOT).as_posix(), path.read_bytes(), _permissions(path))
            for path in ROOT.rglob("*") if path.is_file()]
    taken = {entry.name for entry in ours}
    links = [link(f"bin/{name}", "busybox") for name in applets(busybox) if f"bin/{name}" not in taken]
    said = "".join(f"{name} {version}\n" for name, version in {"hvlab-initramfs": str(FORMAT), **versions}.items())
    loaded = [file(f"lib/modules/{name}.ko", data) for name, data in modules.items()]
    return archive([*map(directory, _FOLDERS), *_devices(), file("bin/busybox", busybox, 0o755), *links, *ours, *loaded,
                    file("lib/modules/order", "".join(f"{name}.ko\n" for name in modules).encode()), file("etc/hvlab", said.encode())])


def applets(busybox: bytes) -> list[str]:
    """The names by which a busybox can be called, read from its file.  Raises BadMachine where it is no busybox with a shell."""
    start = busybox.find(_FIRST)
    names = busybox[start:busybox.find(b"\0\0", start)].split(b"\0") if start >= 0 and busybox[:4] == b"\x7fELF" else []
    if not {b"sh", b"mount", b"insmod", b"setsid"} <= set(names):
        raise BadMachine("the busybox is no static busybox with sh, mount, insmod and setsid: take the package busybox-static")
    return [name.decode("ascii", "replace") for name in names if name != b"busybox"]


def _devices() -> list[CpioEntry]:
    """What the kernel and /init open before devtmpfs is there."""
    return [device("dev/console", 5, 1), device("dev/null", 1, 3, 0o666), device("dev/ttyS0", 4, 64)]


def _permissions(path: Path) -> int:
    return 0o755 if path.read_bytes()[:2] == b"#!" else 0o644
