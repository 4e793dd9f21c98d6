"""A machine into a file, and a file into a machine."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..booting import Booting
from ..errors import BadConfig, BadMachine, BadSnapshot, HvlabError, quoted
from ..guestimage import guest_name
from ..machine.context import layout_name
from ..machine.description import MachineDescription
from ..machine.memory import PAGE, Memory
from ..spec.linuxboot import Elf, Kernel
from . import state
from .decoding import decode
from .description import checked, image_facts, with_image
from .encoding import encode
from .file import Reader, Writer, values
from .graph import Graph
from .pages import CHUNK, ZSTD, Pages, best_codec, by_huge_pages, fill, in_threads, pack, runs_of, touched, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..session import Machine

__all__ = ["Told", "info", "load", "restore", "save"]

Progress = Callable[[str], None]


# --- saving

def save(machine: "Machine", path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Puts all of `machine` into a new file, which replaces an old one only when it is whole; returns its bytes.

    The machine stands still meanwhile, and may run, be stopped or wait.  `progress` is told in words how far it has come.  Raises
    HvlabError where the machine is in its boot, has none behind it, or where the file cannot be written.
    """
    where = Path(os.path.realpath(_path(path)))
    tell = progress or _silent
    with machine.still(), Writer(where) as writer:
        booting = machine.booting
        state.must_be_storable(booting)
        tell("the machine's devices, units and processor")
        header = _header(machine, booting)
        _put_graph(writer, "description", encode(machine.description, {}))
        _put_graph(writer, "guest", encode(booting.guest, {}))
        _put_graph(writer, "machine", state.of(booting))
        header["chunks"], runs = _put_pages(writer, booting.pc.memory, tell)
        writer.put("pages", json.dumps(runs).encode())
        return writer.finish(header)


def _path(path: object) -> Path:
    """Raises HvlabError for what is no path."""
    try:
        where = Path(os.fspath(path))         # type: ignore[call-overload]
    except (TypeError, ValueError) as e:
        raise HvlabError(f"{quoted(path)} is no file: give its path") from e
    if "\0" in str(where):
        raise HvlabError(f"{quoted(path)} is no file: no name has a zero byte")
    return where


def _header(machine: "Machine", booting: Booting) -> dict[str, Any]:
    run, pc, disk = booting.run, booting.pc, machine.description.disk
    assert run is not None
    return {"hvlab": __version__, "machine": machine.name, "state": machine.state, "outcome": run.outcome, "why": run.why,
            "time": pc.clock.now, "config": run.config.to_dict(), "emulator": layout_name(), "public_only": pc.public_only,
            "ideal_caches": pc.ideal_caches, "image": None if disk.image is None else image_facts(disk.image)}


def _put_graph(writer: Writer, name: str, graph: Graph) -> None:
    told = {"root": graph.root, "shapes": graph.shapes, "nodes": graph.nodes}
    writer.put(name, json.dumps(told, separators=(",", ":"), allow_nan=False).encode())
    writer.put(f"{name} bytes", graph.blob)


def _put_pages(writer: Writer, memory: Memory, tell: Progress) -> tuple[list[list[Any]], list[list[int]]]:
    """Every page that is not all zero; where the chunks lie, and which pages they are."""
    pages = touched(memory)
    words = memory.words.view(np.uint8).reshape(-1, PAGE)
    parts = [pages[at:at + CHUNK] for at in range(0, len(pages), CHUNK)]
    chunks = []
    for done, packed in enumerate(in_threads(lambda part: pack(writer.codec, words[part].tobytes()), parts)):
        chunks.append(writer.add(packed, writer.codec, len(parts[done]) * PAGE).told())
        if done % 16 == 0:
            tell(f"memory: {100 * done // len(parts)} %")
    return chunks, runs_of(pages)


# --- what a file says of itself

@dataclass(frozen=True)
class Told:
    """What a snapshot says of itself: which machine and which guest, how it stood, its virtual time (ns since power-on), its options, the
    version of hvlab that made it, its bytes in the file and of memory."""

    machine: str
    state: str
    outcome: str
    why: str
    time: int
    config: dict[str, Any]
    hvlab: str
    size: int
    memory: int
    guest: str


def info(path: str | os.PathLike[str]) -> Told:
    """What the snapshot in a file says of itself; nothing is restored.  Raises BadSnapshot for what is none."""
    with _opened(path) as reader:
        h = reader.header
        texts = [str(h.get(name)) for name in ("machine", "state", "outcome", "why", "hvlab")]
        if type(h.get("time")) is not int or not isinstance(h.get("config"), dict):
            raise BadSnapshot("its header is none")
        memory = sum(reader.section(told).raw for told in _list(h.get("chunks")))
        return Told(texts[0], texts[1], texts[2], texts[3], h["time"], h["config"], texts[4], reader.size, memory, _guest_in(reader))


def _guest_in(reader: Reader) -> str:
    """Which guest was loaded, by its own bytes in the file; what there is to do where they cannot be unpacked here."""
    if reader.section(reader.header["sections"].get("guest")).codec == ZSTD != best_codec():
        return "packed by Zstandard: pip install zstandard, to be told"
    guest, _ = decode(_graph(reader, "guest"), {})
    if not isinstance(guest, Elf | Kernel):
        raise BadSnapshot("its guest is none")
    return guest_name(guest)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadSnapshot("its header is none")
    return value


@contextmanager
def _opened(path: str | os.PathLike[str]) -> "Iterator[Reader]":
    """The file, open; whatever is wrong with it is told as BadSnapshot that names it."""
    where = _path(path)
    if where.exists() and not where.is_file():
        raise BadSnapshot(f"{where} cannot be read (it is no file)")
    try:
        with open(where, "rb") as file:
            yield Reader(file)
    except OSError as e:
        raise BadSnapshot(f"{where} cannot be read ({e.strerror})") from e
    except BadSnapshot as e:
        raise BadSnapshot(f"{where} cannot be restored: {e}") from e
    except (BadMachine, BadConfig) as e:
        raise BadSnapshot(f"{where} cannot be restored: its machine is none ({e})") from e
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError,
            ValueError) as e:
        raise BadSnapshot(f"{where} cannot be restored: it is damaged ({type(e).__name__})") from e


# --- restoring

def restore(make: "Callable[[MachineDescription, bool, bool], Machine]", path: str | os.PathLike[str],
            image: str | os.PathLike[str] | None = None) -> "Machine":
    """A new machine, made by `make(description, public_only, ideal_caches)`, that is what the one in the file was.

    `image` is the disk image that lies beneath its disk, where one does.  Raises BadSnapshot.
    """
    with _opened(path) as reader:
        _must_be_this_emulators(reader)
        description, _ = decode(_graph(reader, "description"), {})
        described = with_image(checked(description), reader.header.get("image"), None if image is None else _path(image))
        machine = make(described, reader.header.get("public_only") is True, reader.header.get("ideal_caches") is True)
        try:
            _fill(machine, reader, None)
        except BaseException:
            machine.close()
            raise
        return machine


def load(machine: "Machine", path: str | os.PathLike[str]) -> None:
    """Makes `machine` what the one in the file was, which must have had the same description.  What it ran before is frozen.

    Raises BadSnapshot; the machine then stays as it is, unless the file was made to deceive: then it is off.
    """
    with _opened(path) as reader:
        _must_be_this_emulators(reader)
        description, _ = decode(_graph(reader, "description"), {})
        if checked(description) != machine.description:
            raise BadSnapshot(f"it is of another machine ({quoted(description.name)}): Machine.restore makes it")
        pc = machine.pc
        if (reader.header.get("public_only") is True, reader.header.get("ideal_caches") is True) != (pc.public_only, pc.ideal_caches):
            raise BadSnapshot("it is of a machine that was made with other options: Machine.restore makes it")
        boots = machine.booting.boots
        _fill(machine, reader, boots + 1 if boots else None)


def _must_be_this_emulators(reader: Reader) -> None:
    made, mine = reader.header.get("emulator"), layout_name()
    if made != mine:
        raise BadSnapshot(f"its processor is laid out as by {quoted(made)}, and here it is {mine}: install that version of unicorn")


def _graph(reader: Reader, name: str) -> Graph:
    told = values(reader.get(name))
    if not isinstance(told, dict) or not all(isinstance(told.get(part), list) for part in ("nodes", "shapes")):
        raise BadSnapshot("what it says of itself cannot be read")
    return Graph(told.get("root"), told["nodes"], told["shapes"], reader.get(f"{name} bytes"))


def _fill(machine: "Machine", reader: Reader, number: int | None) -> None:
    """Everything is read and checked before anything changes."""
    booting = machine.booting
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_graph, reader, "guest")
        ready = state.prepare(_graph(reader, "machine"), booting)
        pages = _pages(reader, booting.pc.memory)
        guest, _ = decode(waiting.result(), {})
    if booting.run is not None:
        for told in reader.header["chunks"]:
            reader.packed(reader.section(told))
    machine.settle()
    try:
        booting.pc.close_processors()
        booting.pc.memory.reset()
        _fill_memory(booting.pc.memory, reader, pages)
        ready.take(booting, number)
        booting.guest = guest
    except BaseException:
        booting.forget()
        raise
    machine.stop()


def _pages(reader: Reader, memory: Memory) -> Pages:
    """The numbers of the pages that are in the file: in order, and all of them RAM of the machine."""
    runs = np.array(_list(values(reader.get("pages"))), np.int64).reshape(-1, 2)
    first, end = runs[:, 0], runs[:, 0] + runs[:, 1]
    total = memory.end // PAGE
    if (runs[:, 1] < 1).any() or (first < 0).any() or (end > total).any() or (first[1:] < end[:-1]).any():
        raise BadSnapshot("its memory is none")
    if not all(memory.backed(a * PAGE, (b - a) * PAGE) for a, b in zip(first.tolist(), end.tolist(), strict=True)):
        raise BadSnapshot("its memory lies where the machine has none")
    pages = np.repeat(first - np.concatenate([[0], np.cumsum(runs[:, 1])[:-1]]), runs[:, 1]) + np.arange(int(runs[:, 1].sum()))
    chunks = [reader.section(told) for told in _list(reader.header.get("chunks"))]
    if [c.raw for c in chunks] != [PAGE * len(pages[at:at + CHUNK]) for at in range(0, len(pages), CHUNK)]:
        raise BadSnapshot("its memory has another size than was written down")
    return pages


def _fill_memory(memory: Memory, reader: Reader, pages: Pages) -> None:
    by_huge_pages(memory, pages)

    def put(number: int) -> None:
        section, some = reader.section(reader.header["chunks"][number]), pages[CHUNK * number:CHUNK * (number + 1)]
        fill(memory, some, unpack(section.codec, reader.packed(section), section.raw))

    for _ in in_threads(put, range(len(reader.header["chunks"]))):
        pass


def _silent(_text: str) -> None:
    """Where nobody wants to know."""
