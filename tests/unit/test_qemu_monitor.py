"""The reader of a running QEMU against a monitor that the test plays: what it is asked, and how it fails."""

import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvcore.cli import main
from hvcore.errors import BadSource, HvlabError, Unreadable
from hvcore.outside import Outside
from hvcore.sources.qemu import QemuMachine, parse_memory_map
from hvcore.spec.vtd import CAP, ECAP, context_entry, root_entry

PAGE, BASE = 4096, 0xFED90000
GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
HARMLESS = {"qmp_capabilities", "query-status", "stop", "cont", "human-monitor-command", "pmemsave"}
LINES = re.compile(r"info mtree -f|info pci|xp /\d+gx 0x[0-9a-f]+")
MTREE = """FlatView #0
 AS "I/O", root: io
  0000000000000000-000000000000ffff (prio 0, ram): no.ram

FlatView #1
 AS "cpu-smm-0", root: memory
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000000ffff (prio 0, ram): pc.ram KVM
  0000000000010000-0000000000010fff (prio 0, rom): pc.ram @0000000000010000
  0000000000012000-0000000000012fff (prio 1, i/o): edu-mmio
  00000000fed90000-00000000fed9022f (prio 0, i/o): intel_iommu
  0000000100000000-0000000100003fff (prio 0, nv-ram): dimm0
  00000001000a0000-00000001000a0fff (prio 0, ramd): vfio-bar
"""
PCI = "  Bus  0, device   3, function 0:\n    Class 0255: PCI device 1234:11e8\n      id \"\"\n"
ROOT, CONTEXTS, TOP = 0x1000, 0x2000, 0x3000


def commands(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects as they come, with or without anything between them."""
    text = ""
    while data := connection.recv(65536):
        text += data.decode()
        while text := text.lstrip():
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except json.JSONDecodeError:
                break
            yield command
            text = text[end:]


class Played:
    """A monitor with some memory behind it.  `answers` takes the place of what it would say to a command (an exception ends it)."""

    def __init__(self, path: Path, **answers: Callable[[dict[str, Any]], Any]):
        self.asked: list[str] = []
        self.running, self.answers = True, answers
        pages = [*range(0, 0x11000, PAGE), *range(1 << 32, (1 << 32) + 0x4000, PAGE)]
        self.memory = {address: np.zeros(512, np.uint64) for address in pages}
        self.memory[ROOT][0] = root_entry(CONTEXTS)
        self.memory[CONTEXTS][2 * 0x18:][:2] = context_entry(TOP, 1, 7)
        self.memory[TOP][0] = 0x83
        page = bytearray(0x230)
        cap, ecap = CAP.make(MGAW=38, SAGAW=2, FRO=0x22, SLLPS=3), ECAP.make(IRO=0xF)
        struct.pack_into("<IIQQII", page, 0, 0x10, 0, cap, ecap, 0, 0xC0000000)
        struct.pack_into("<Q", page, 0x20, ROOT)
        self.registers = bytes(page)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._talk(connection)
        except OSError:
            return

    def _talk(self, connection: socket.socket) -> None:
        connection.sendall(json.dumps(GREETING).encode() + b"\n")
        for command in commands(connection):
            name, arguments = command["execute"], command.get("arguments", {})
            self.asked.append(arguments.get("command-line", name))
            assert name in HARMLESS and (name != "human-monitor-command" or LINES.fullmatch(arguments["command-line"]))
            reply = self.answers.get(name.replace("-", "_"), self._answer)({"name": name, **arguments})
            reply = reply if isinstance(reply, dict) and "error" in reply else {"return": reply}
            known = {"id": command["id"]} if "id" in command else {}
            connection.sendall(json.dumps({**reply, **known}).encode() + b"\n")

    def _answer(self, asked: dict[str, Any]) -> Any:
        name, line = asked["name"], asked.get("command-line", "")
        if name == "pmemsave":
            Path(asked["filename"]).write_bytes(self.bytes(asked["val"], asked["size"]))
        if name in ("stop", "cont"):
            self.running = name == "cont"
        if name == "query-status":
            return {"running": self.running, "status": "running"}
        if line.startswith("xp"):
            count, at = int(line[4:line.index("gx")]), int(line.split()[2], 16)
            return "".join(f"{at:016x}: 0x{word:016x}\r\n" for word in struct.unpack(f"<{count}Q", self.bytes(at, 8 * count)))
        return {"info mtree -f": MTREE, "info pci": PCI}.get(line, {})

    def bytes(self, address: int, length: int) -> bytes:
        if address == BASE:
            return self.registers[:length]
        pages = range(address - address % PAGE, address + length, PAGE)
        return b"".join(self.memory[p].tobytes() if p in self.memory else b"\xcc" * PAGE for p in pages)[address % PAGE:][:length]


def _refuses(_: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": "Could not open"}}


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., tuple[Played, Path]]]:
    started: list[Played] = []

    def start(**answers: Callable[[dict[str, Any]], Any]) -> tuple[Played, Path]:
        path = tmp_path / f"qmp{len(started)}"
        started.append(Played(path, **answers))
        return started[-1], path

    yield start
    for one in started:
        one.close()


def test_the_memory_map_is_that_of_the_processors() -> None:
    regions = parse_memory_map(MTREE)
    assert [(hex(r.start), hex(r.end), r.kind, r.name) for r in regions[:2]] == [
        ("0x0", "0x10000", "ram", "pc.ram"), ("0x10000", "0x11000", "rom", "pc.ram")]
    assert [r.kind for r in regions] == ["ram", "rom", "i/o", "i/o", "ram", "ramd"]
    assert parse_memory_map("") == parse_memory_map("FlatView #0\n AS \"I/O\", root: io\n") == ()


@pytest.mark.parametrize("saves", [True, False], ids=["saved", "printed"])
def test_only_memory_and_the_unit_are_read(play: Callable[..., tuple[Played, Path]], saves: bool) -> None:
    """Nothing of a device but the remapping unit's registers, by either way of reading; nothing is ever written."""
    read: list[tuple[int, int]] = []

    def noted(asked: dict[str, Any]) -> Any:
        if not saves:
            return _refuses(asked)
        read.append((asked["val"], asked["size"]))
        return played._answer(asked)

    played, path = play(pmemsave=noted)
    with Outside.open(f"qemu:{path}") as outside:
        assert outside.memory.runs == ((0, 0x11000), (1 << 32, (1 << 32) + 0x4000))
        domain, = outside.domains
        assert (domain.did, domain.root, domain.leaves, domain.unit) == (7, TOP, {"4K": 0, "2M": 0, "1G": 1}, BASE)
        assert outside.units[0].devices == (0x18,) and outside.what_if(0x18, 0x1234).host == 0x1234
        for address in (0x12000, 0x10FFC, 1 << 60, 0xFED90000, -8):
            with pytest.raises(Unreadable):
                outside.memory.read(address, 8)
        pages = np.array([0x12000, 0x3000, 0xFED90000, 0x1_0000_1000, 0x1_000A_0000, 0x3000, (1 << 64) - PAGE], np.uint64)
        words, readable = outside.memory.tables(pages)
        assert readable.tolist() == [False, True, False, True, False, True, False] and words[1, 0] == words[5, 0] == 0x83
        outside.guesses  # noqa: B018 -- which reads all of the memory
    read += [(int(m[2], 16), 8 * int(m[1])) for line in played.asked if (m := re.match(r"xp /(\d+)gx (0x\w+)", line))]
    assert read and all(start + size <= 0x11000 or (start, size) == (BASE, 0x230) or start >= 1 << 32 and start + size <= (1 << 32) + 0x4000
                        for start, size in read)
    assert "stop" not in played.asked


def test_without_a_unit_devices_reach_everything(play: Callable[..., tuple[Played, Path]]) -> None:
    bare = MTREE.replace("intel_iommu", "something")
    _, path = play(human_monitor_command=lambda asked: {"info mtree -f": bare, "info pci": PCI}[asked["command-line"]])
    with Outside.open(f"qemu:{path}", region=(0x3000, 0x4000)) as outside:
        assert not outside.units and not outside.domains and "no remapping unit" in outside.domains.note
        claim = outside.proof.claim("can write the region")
        assert not claim.holds and claim.counterexample is not None and claim.counterexample.source == 0x18
        assert claim.pages == 1 and "(the region)" in claim.why and "no unit on its way" in claim.why
        with pytest.raises(HvlabError, match="no remapping unit"):
            outside.what_if(0x18, 0)
        assert not outside.proof.claim("forge an interrupt").holds and str(outside)


def test_pages_far_apart_and_near_are_what_they_are(play: Callable[..., tuple[Played, Path]]) -> None:
    played, path = play()
    for address, page in played.memory.items():
        page[:] = np.arange(512, dtype=np.uint64) + np.uint64(address)
    machine = QemuMachine(path)
    pages = np.random.default_rng(5).permutation(np.array(list(played.memory), np.uint64))
    for wanted in (pages, pages[:3], np.concatenate([pages, pages])):
        words, readable = machine.tables(wanted)
        assert readable.all() and (words[:, 0] == wanted).all() and (words[:, 511] == wanted + 511).all()
    assert machine.read(0xFFFC, 8) == played.bytes(0xFFFC, 8)
    machine.close()


def test_a_guest_is_paused_and_goes_on_whatever_happens(play: Callable[..., tuple[Played, Path]]) -> None:
    played, path = play()
    with Outside.open(f"qemu:{path}", consistent=True) as outside:
        with contextlib.suppress(RuntimeError), outside.look():
            assert not played.running and outside.domains
            raise RuntimeError("oops")
        assert played.running
        played.running = False
        assert outside.domains and not played.running, "it had been paused by somebody else"
    assert played.asked.count("stop") == played.asked.count("cont") > 0


@pytest.mark.parametrize(("answers", "why"), [
    ({"human_monitor_command": lambda _: ""}, "where its memory is"), ({"human_monitor_command": lambda _: 7}, "where its memory is"),
    ({"human_monitor_command": _refuses}, "refuses human-monitor-command"), ({"qmp_capabilities": _refuses}, "QMP socket"),
    ({"human_monitor_command": lambda _: time.sleep(1)}, "did not answer human-monitor-command"),
    ({"qmp_capabilities": lambda _: 1 / 0}, "QMP socket"), ({"human_monitor_command": lambda _: 1 / 0}, "QMP socket")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_monitor_that_answers_nonsense_is_one_sentence(play: Callable[..., tuple[Played, Path]], answers: dict[str, Any],
                                                         why: str) -> None:
    _, path = play(**answers)
    with pytest.raises(BadSource, match=why) as told:
        QemuMachine(path, deadline=0.3)
    assert len(str(told.value).splitlines()) == 1 and str(path) in str(told.value)


def test_memory_that_comes_short(play: Callable[..., tuple[Played, Path]]) -> None:
    def short(asked: dict[str, Any]) -> Any:
        Path(asked["filename"]).write_bytes(b"x")
        return {}

    _, path = play(pmemsave=short)
    with pytest.raises(BadSource, match="saved 1 bytes of"), Outside.open(f"qemu:{path}") as outside:
        outside.domains  # noqa: B018


@pytest.mark.parametrize("greeting", [b"", b"hello\n", b"{}\n", b'{"QMP": 3}\n', b'{"QMP": {}}\n', bytes(1 << 16), None])
def test_what_is_no_monitor_is_one_sentence(tmp_path: Path, greeting: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting or b"")
                if greeting is None:
                    time.sleep(1)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(BadSource) as told:
            QemuMachine(path, deadline=0.3)
        thread.join()
    assert len(str(told.value).splitlines()) == 1
    assert main(["look", f"qemu:{path}"]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "file").write_text("x")
    for name in ("file", "nothing", "x" * 300):
        with pytest.raises(BadSource):
            QemuMachine(tmp_path / name)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    assert main(["look", "qemu:/nothing"]) == 2
    told, = capsys.readouterr().err.splitlines()
    assert "not installed: pip install 'hvlab[qemu]'" in told


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, hvcore.outside; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"qemu", "unicorn", "capstone", "pandas", "widgets"} & set(loaded)


def test_it_works_beside_an_event_loop(play: Callable[..., tuple[Played, Path]]) -> None:
    """As in a notebook, where a loop runs in the thread that asks; on a thread of its own, for other tests leave theirs running."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    _, path = play()

    async def cell() -> int:
        with Outside.open(f"qemu:{path}") as outside:
            return len(outside.domains)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: asyncio.run(cell())).result() == 1
