"""`hvlab linux ...`: what is in the cache of kernels, and what comes into it."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadMachine

if TYPE_CHECKING:
    from .cache import Entry

__all__ = ["add_linux"]

_TEXT = "Fetches Debian's Linux kernels, which can be booted as the guest, and shows which are here."


def add_linux(above: "argparse._SubParsersAction[Any]") -> None:
    """Adds `hvlab linux` with its subcommands to those of `hvlab`."""
    parser = above.add_parser("linux", help=_TEXT, description=_TEXT)
    commands = parser.add_subparsers(required=True, metavar="WHAT", parser_class=type(parser))

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    fetch = add("fetch", _fetch, "Brings a kernel and busybox from Debian's archive into the cache, by apt and without root.")
    fetch.add_argument("--release", metavar="VERSION", help="6.1, 6.12, 6.12.117, ...: the newest of those; or the whole of "
                       "one that is no cloud kernel, as 6.1.0-56-amd64 (default: the one that linux-image-cloud-amd64 stands for)")
    fetch.add_argument("--all-newest", type=_count, default=0, metavar="N", help="the N newest kernels that the archive offers")
    fetch.add_argument("--deb", nargs="+", type=Path, default=[], metavar="FILE", help="packages that you have downloaded instead: "
                       "linux-image-VERSION-amd64 (or -cloud-amd64, -rt-amd64) and busybox-static")
    fetch.add_argument("--json", action="store_true", help="one JSON object: what is in the cache now, of what was asked for")
    here = add("list", _list, "Lists the kernels in the cache, the newest first.")
    here.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")
    remove = add("remove", _remove, "Takes kernels out of the cache.")
    remove.add_argument("release", nargs="*", metavar="VERSION", help="the beginning of a kernel's release, or its folder's name")
    remove.add_argument("--all", action="store_true", help="all of them")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100")
    return int(text)


def _fetch(options: argparse.Namespace) -> None:
    from .fetch import fetch
    if options.deb and (options.release or options.all_newest):
        raise BadMachine("--deb names the packages itself: leave out --release and --all-newest")
    try:
        fetched = fetch(options.release, options.all_newest, options.deb, _progress())
    finally:
        _end_progress()
    if options.json:
        print(json.dumps({"kernels": [{**one.entry.to_json(), "new": one.new} for one in fetched]}))
    else:
        print("\n".join(map(str, fetched)))


def _list(options: argparse.Namespace) -> None:
    from . import cache
    entries, damaged = cache.entries(), cache.damaged()
    if options.json:
        print(json.dumps({"folder": str(cache.folder()), "kernels": [entry.to_json() for entry in entries],
                          "damaged": [{"folder": str(path), "why": why} for path, why in damaged.items()]}))
        return
    for entry in entries:
        print(f"{entry.release:28} {entry.size / (1 << 20):6.1f} MiB ({_parts(entry)})  {entry.package} {entry.version}, "
              f"busybox {entry.busybox}")
    for path, why in damaged.items():
        print(f"{path.name}: damaged: {why}; `hvlab linux remove {path.name}` takes it away")
    if not entries and not damaged:
        print(f"no Linux kernel in {cache.folder()}: run `hvlab linux fetch`")


def _parts(entry: "Entry") -> str:
    """Its files and their sizes in MiB, the modules together."""
    sizes = Counter[str]()
    for name, (size, _) in entry.files.items():
        sizes[name.partition("/")[0]] += size
    return ", ".join(f"{name} {size / (1 << 20):.1f}" for name, size in sorted(sizes.items()))


def _remove(options: argparse.Namespace) -> None:
    from . import cache
    if bool(options.release) == options.all:
        raise BadMachine("say which kernels to remove, or --all; `hvlab linux list` shows what is there")
    folders = [entry.folder for entry in cache.entries()] + list(cache.damaged())
    chosen = folders if options.all else [_one(text) for text in options.release]
    for folder in dict.fromkeys(chosen):
        cache.remove(folder)
        print(f"removed {folder}")


def _one(text: str) -> Path:
    from . import cache
    fitting = {e.folder: e.release for e in cache.entries() if cache.matches(e.release, text) or e.folder.name == text} | {
        path: path.name for path in cache.damaged() if path.name == text}
    if not fitting:
        raise BadMachine(f"no Linux kernel {text} in {cache.folder()}: `hvlab linux list` shows what is there")
    if len(fitting) > 1:
        raise BadMachine(f"{text} fits several kernels ({', '.join(fitting.values())}): name one, or --all")
    return next(iter(fitting))


def _progress() -> Callable[[str], None]:
    if not sys.stderr.isatty():
        return lambda _text: None
    return lambda text: print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)


def _end_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
