"""Files that are no snapshots, or no longer: one sentence for each, and nothing done."""

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshotfacts import different, facts

from hvcore import Config, Machine
from hvcore.errors import BadSnapshot
from hvcore.snapshot import info
from hvcore.snapshot.pages import RAW, pack, unpack

PREAMBLE = struct.Struct("<8sIIQQI28x")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("snapshots") / "a.snap"
    with Machine.load("q35-2g-rootport") as m:
        m.boot(Config(PROFILE="mended"))
        m.send("nvme read 5\n")
        m.save(path)
    return path.read_bytes()


class File:
    """A snapshot taken apart: `header`, and sections by name, which `bytes` puts together with right checksums."""

    def __init__(self, data: bytes):
        _, _, _, at, size, _ = PREAMBLE.unpack(data[:PREAMBLE.size])
        self.header = json.loads(data[at:at + size])
        self.sections = {name: unpack(s[2], data[s[0]:s[0] + s[1]], s[3]) for name, s in self.header["sections"].items()}
        self.chunks = [unpack(s[2], data[s[0]:s[0] + s[1]], s[3]) for s in self.header["chunks"]]

    def graph(self, name: str) -> Any:
        return json.loads(self.sections[name])

    def put_graph(self, name: str, graph: Any) -> None:
        self.sections[name] = json.dumps(graph).encode()

    def bytes(self) -> bytes:
        body = bytearray(PREAMBLE.size)

        def add(data: bytes) -> list[Any]:
            packed = pack(RAW, data)
            body.extend(packed)
            return [len(body) - len(packed), len(packed), RAW, len(data), zlib.crc32(packed)]

        header = self.header | {"sections": {name: add(data) for name, data in self.sections.items()},
                                "chunks": [add(data) for data in self.chunks]}
        return sealed(bytes(body), json.dumps(header).encode())


def sealed(body: bytes, told: bytes, version: int = 1) -> bytes:
    """A file of sections and a header, with a right preamble."""
    start = PREAMBLE.pack(b"\x89HVLAB\r\n", version, zlib.crc32(told), len(body), len(told), 0)
    start = PREAMBLE.pack(b"\x89HVLAB\r\n", version, zlib.crc32(told), len(body), len(told), zlib.crc32(start[:32]))
    return start + body[PREAMBLE.size:] + told


def refused(tmp_path: Path, data: bytes) -> str:
    """The sentence that a file is refused with."""
    path = tmp_path / "bad.snap"
    path.write_bytes(data)
    with pytest.raises(BadSnapshot) as raised:
        Machine.restore(path).close()
    text = str(raised.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 400
    return text


def test_taken_apart_and_put_together_it_is_restored(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "again.snap"
    path.write_bytes(File(whole).bytes())
    (tmp_path / "a.snap").write_bytes(whole)
    with Machine.restore(path) as one, Machine.restore(tmp_path / "a.snap") as other:
        assert different(facts(one), facts(other)) == []


@pytest.mark.parametrize("data", [b"", b"x", b"\x89HVLAB\r\n", bytes(64), b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}" * 100])
def test_what_is_no_snapshot(tmp_path: Path, data: bytes) -> None:
    assert "it is no snapshot of a machine" in refused(tmp_path, data)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.snap", tmp_path):
        with pytest.raises(BadSnapshot, match="cannot be read"):
            Machine.restore(path)
        with pytest.raises(BadSnapshot, match="cannot be read"):
            info(path)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The file with some of its bits turned, cut off, longer, or a piece of it elsewhere."""
    changed = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del changed[chance.randrange(len(changed)):]
    elif kind == 2:
        changed += chance.randbytes(chance.randint(1, 100))
    elif kind == 3:
        at, length = chance.randrange(len(changed)), chance.randint(1, 5000)
        changed[at:at + length] = chance.randbytes(len(changed[at:at + length]))
    else:
        del changed[chance.randrange(len(changed)):][:chance.randint(1, 5000)]
        at = chance.randrange(max(len(changed), 1))
        changed[at:at] = chance.randbytes(50)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_is_seen(whole: bytes, tmp_path: Path, seed: int) -> None:
    data = damaged(whole, random.Random(seed))
    if data != whole:
        refused(tmp_path, data)


def mangled(value: Any, chance: random.Random) -> Any:
    """A plain value with one place of it changed to something else."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(list(value))
        return {k: mangled(v, chance) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and chance.random() < 0.97:
        at = chance.randrange(len(value))
        return [mangled(v, chance) if i == at else v for i, v in enumerate(value)]
    others: list[Callable[[], Any]] = [
        lambda: None, lambda: chance.randrange(-5, 5000), lambda: chance.getrandbits(80), lambda: -chance.getrandbits(40),
        lambda: "x" * chance.randrange(20), list, lambda: [chance.randrange(4000)], lambda: [chance.randrange(1 << 40), None],
        dict, lambda: True, lambda: 1.5, lambda: "machine.pc.Pc", lambda: "__init__", lambda: [[]], lambda: value * 2
        if isinstance(value, str | list | int) else 0, lambda: value + 1 if isinstance(value, int) else value]
    return chance.choice(others)()


def edited(data: bytes, chance: random.Random) -> bytes:
    """A file whose header or one of whose graphs says something else, with right checksums."""
    file = File(data)
    name = chance.choice(["header", "machine", "machine", "machine", "description", "guest", "pages"])
    if name == "header":
        told = mangled({k: v for k, v in file.header.items() if k not in ("sections", "chunks")}, chance)
        file.header = told if isinstance(told, dict) else {"told": told}
    else:
        file.put_graph(name, mangled(file.graph(name), chance))
    return file.bytes()


def restored_or_refused(tmp_path: Path, data: bytes) -> bool:
    """Whether a file is restored; it is refused in a sentence else."""
    path = tmp_path / "edited.snap"
    path.write_bytes(data)
    try:
        Machine.restore(path).close()
    except BadSnapshot:
        return False
    return True


@pytest.mark.parametrize("seed", range(60))
def test_what_a_file_says_otherwise_is_restored_or_refused(whole: bytes, tmp_path: Path, seed: int) -> None:
    restored_or_refused(tmp_path, edited(whole, random.Random(seed)))


def test_a_machine_is_left_as_it_is_by_a_damaged_file(whole: bytes, tmp_path: Path) -> None:
    with Machine.load("q35-2g-rootport") as m:
        m.boot(Config(VTD_TRANS=False))
        there, path = facts(m), tmp_path / "bad.snap"
        for seed in range(15):
            path.write_bytes(damaged(whole, random.Random(seed)))
            with pytest.raises(BadSnapshot):
                m.load_snapshot(path)
        assert different(there, facts(m)) == [] and m.run is not None and m.run.live
        assert "lab>" in m.send("time\n")


# --- files that were made to deceive

def with_node(data: bytes, node: list[Any], *, more: list[list[Any]] | None = None) -> bytes:
    """A file whose machine begins with other nodes."""
    file = File(data)
    graph = file.graph("machine")
    graph["nodes"] += [node, *(more or [])]
    graph["root"] = [len(graph["nodes"]) - 1]
    file.put_graph("machine", graph)
    return file.bytes()


@pytest.mark.parametrize("shape", [["subprocess.Popen", [], []], ["os.system", [], []], ["machine.memory.Memory", ["end"], ["end"]],
                                   ["machine.emulator.Private", ["cpu", "handle"], ["cpu", "handle"]], ["booting.Booting", [], []],
                                   ["builtins.eval", [], []], ["machine.vmexit.ExportedExit", ["private"], ["private"]],
                                   [["machine"], [], []], [None, [], []], ["machine.pc.Pc.__class__", [], []], ["run.Run", [], []],
                                   ["errors.HvlabError", [], []], ["snapshot.file.Writer", [], []]])
def test_no_class_is_made_but_those_of_the_machine(whole: bytes, tmp_path: Path, shape: list[Any]) -> None:
    file = File(whole)
    graph = file.graph("machine")
    graph["shapes"].append(shape)
    graph["nodes"].append(["o", len(graph["shapes"]) - 1, *[0] * len(shape[2])])
    file.put_graph("machine", graph)
    assert "this version has no" in refused(tmp_path, file.bytes())


def number_of(graph: Any, cls: str) -> int:
    """A node of the graph that is an object of a class."""
    if cls == "machine.cpu.Cpu":
        return next(i for i, node in enumerate(graph["nodes"]) if node[0] == "p")
    return next(i for i, node in enumerate(graph["nodes"]) if node[0] == "o" and graph["shapes"][node[1]][0] == cls)


@pytest.mark.parametrize(("cls", "method"), [
    ("machine.disk.Disk", "write_image"), ("machine.disk.Disk", "lay_over"), ("machine.cpu.Cpu", "close"), ("machine.cpu.Cpu", "load"),
    ("machine.pc.Pc", "power_on"), ("machine.pc.Pc", "close"), ("machine.pc.Pc", "__init__"), ("machine.uart.Uart", "__class__"),
    ("machine.uart.Uart", "nothing"), ("machine.uart.Uart", "__init__"), ("machine.uart.Uart", "waiting"), ("vmm.core.Core", "boot"),
    ("machine.clock.Clock", "alarm_at"), ("machine.pic.Pic", None), ("machine.pic.Pic", ["reset"])])
def test_no_method_is_kept_but_those_that_machines_keep(whole: bytes, tmp_path: Path, cls: str, method: Any) -> None:
    number = number_of(File(whole).graph("machine"), cls)
    assert "no machine keeps a method" in refused(tmp_path, with_node(whole, ["m", [number], method]))


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "machine.clock.heapq", "machine.disk._open", "machine.clock._nothing.x"])
def test_no_function_is_taken_but_those_that_do_nothing(whole: bytes, tmp_path: Path, name: str) -> None:
    assert "a function is not there" in refused(tmp_path, with_node(whole, ["f", name]))


@pytest.mark.parametrize("node", [
    ["t", [10 ** 9]], ["t", [-1]], ["b", 0, 1 << 40], ["b", -5, 3], ["x", "os"], ["e", "machine.cpu.StopKind", "mro"], ["z"], [], ["o"],
    ["r", 0], ["l", [1 << 62, None]], ["l", [1 << 40, [0]]], ["i", 0, 10, 0], ["d", 1], ["q", 1 << 40], ["q", -1], ["s", [0, 0, 0]],
    ["t", {}], ["B", "machine.uart.Uart", 0, 1], ["p", "machine.uart.Uart", None], ["c", "spec.vtd.sys"], "o", None, 5,
    ["c", "spec.bits.Enum"]])
def test_nodes_that_cannot_be(whole: bytes, tmp_path: Path, node: Any) -> None:
    refused(tmp_path, with_node(whole, node))


def test_a_circle_of_what_never_changes(whole: bytes, tmp_path: Path) -> None:
    count = len(File(whole).graph("machine")["nodes"])
    assert "comes before its parts" in refused(tmp_path, with_node(whole, ["t", [count + 1]], more=[["t", [count]]]))


def test_other_fields_are_another_version(whole: bytes, tmp_path: Path) -> None:
    file = File(whole)
    graph = file.graph("machine")
    shape = next(s for s in graph["shapes"] if s[0] == "machine.uart.Uart")
    shape[1].append("_overrun")
    file.put_graph("machine", graph)
    assert "made by a version that lays out Uart otherwise" in refused(tmp_path, file.bytes())


def test_other_formats_and_emulators_are_told(whole: bytes, tmp_path: Path) -> None:
    file = File(whole)
    assert "it has format 7, and this version reads format 1" in refused(tmp_path, sealed(bytes(64), b"{}", 7))
    file.header["emulator"] = "unicorn 1.0, 12 bytes"
    assert "install that version of unicorn" in refused(tmp_path, file.bytes())


@pytest.mark.parametrize("runs", [[[0, 1 << 40]], [[-1, 2]], [[5, 0]], [[5, 3], [6, 1]], [[0, 1], [0, 1]], [[1 << 30, 1]], {}, [[1]],
                                  [["a", 1]], 7])
def test_memory_that_cannot_be(whole: bytes, tmp_path: Path, runs: Any) -> None:
    file = File(whole)
    file.sections["pages"] = json.dumps(runs).encode()
    refused(tmp_path, file.bytes())


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 10_000, b"{", b"NaN", b"\xff\xfe", b'{"nodes": NaN}', b"null"])
def test_json_that_is_none(whole: bytes, tmp_path: Path, text: bytes) -> None:
    file = File(whole)
    file.sections["machine"] = text
    refused(tmp_path, file.bytes())
    refused(tmp_path, sealed(bytes(64), text))


def test_a_packed_bomb(whole: bytes, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))
    body = bytes(64) + bomb
    for raw in (100, 1 << 28, 1 << 50):
        told = {"sections": {"description": [64, len(bomb), "zstd", raw, zlib.crc32(bomb)]}, "emulator": File(whole).header["emulator"]}
        refused(tmp_path, sealed(body, json.dumps(told).encode()))


def test_a_processor_out_of_a_file_stays_in_its_emulator(whole: bytes, tmp_path: Path) -> None:
    """Registers full of noise: the guest may crash, this process does not."""
    file = File(whole)
    graph = file.graph("machine")
    cpu = graph["nodes"][number_of(graph, "machine.cpu.Cpu")]
    values = graph["nodes"][cpu[2][0]]
    at, length = graph["nodes"][next(v for k, v in zip(values[1::2], values[2::2], strict=True) if k == "registers")[0]][1:]
    for seed in range(12):
        chance, blob = random.Random(seed), bytearray(file.sections["machine bytes"])
        if seed % 2:
            blob[at:at + length] = chance.randbytes(length)
        else:
            for _ in range(40):
                blob[at + chance.randrange(length)] = chance.randrange(256)
        other = File(whole)
        other.sections["machine bytes"] = bytes(blob)
        path = tmp_path / f"{seed}.snap"
        path.write_bytes(other.bytes())
        with Machine.restore(path) as m:
            assert m.state in ("waiting", "stopped", "ended")
