"""The exercises of the lesson with a real Linux: commands for its shell, tried out on a copy of the machine, and a server's options."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.inspect.trace import Dma
from hvcore.run import Run
from hvcore.vmm.layout import SECRET_SIZE, Part

from .finding import EDU, RIGHT, Finding, are_commands, found, vmm_range

__all__ = ["LINUX_EXERCISES"]

_SERVER = "q35-64g"
_BOOT_LIMIT = 110
"""Seconds of wall time: a server's Linux takes longer than most guests."""


@contextmanager
def _copy(m: Machine) -> Iterator[tuple[Machine, Run]]:
    """A machine that is what `m` is now, by a snapshot, and its run: what is done to it is not done to `m`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "copy.snap"
        m.save(path)
        with Machine.restore(path) as copy:
            assert copy.run is not None
            yield copy, copy.run


def _asks_linux(answer: Any, m: Machine) -> Finding | None:
    """What is wrong before anything is tried."""
    if not are_commands(answer):
        return found("no commands")
    return None if m.linux and m.ended is None and m.state == "waiting" else found("no shell")


def _typed(run: Run, commands: Sequence[str]) -> str:
    """What the shell says to the commands.  Raises HvlabError where one does not come to an end."""
    return "\n".join(run.guest.shell(command) for command in commands)


def _key(run: Run) -> range:
    """Where the core keeps its key (host-physical)."""
    start = vmm_range(run).start + Part.SECRET
    return range(start, start + SECRET_SIZE)


def _by_edu(run: Run, since: int) -> list[Dma]:
    """What the edu device has asked for since a moment of virtual time (ns)."""
    return [d for d in run.dma if d.source == EDU and d.time >= since]


def _takes(dma: Dma, key: range) -> bool:
    """Whether a request reads the key's first bytes, and gets them."""
    return dma.access == "read" and dma.landing is not None and dma.landing <= key.start < dma.landing + dma.length


def _shows(said: str, key: bytes) -> bool:
    """Whether the key's first eight bytes are in what the shell printed: as words of devmem, or as bytes."""
    text = said.lower()
    words = [int.from_bytes(key[at:at + 4], "little") for at in (0, 4)]
    whole = int.from_bytes(key[:8], "little")
    return f"{whole:016x}" in text or all(f"{word:08x}" in text for word in words) or key[:8].hex(" ") in text


def _steal(answer: Any, m: Machine) -> Finding:
    if (wrong := _asks_linux(answer, m)) is not None:
        return wrong
    with _copy(m) as (copy, run):
        since = copy.pc.clock.now
        try:
            said = _typed(run, answer)
        except HvlabError as e:
            return found("failed", error=e)
        asked = _by_edu(run, since)
        if not any(_takes(d, _key(run)) for d in asked):
            return found("not taken" if asked else "no dma")
        key = copy.pc.memory.read(_key(run).start, SECRET_SIZE)
        return found(RIGHT, word=f"0x{int.from_bytes(key[:8], 'little'):016X}") if _shows(said, key) else _not_shown(run, asked)


def _not_shown(run: Run, asked: list[Dma]) -> Finding:
    """The device has the key: why the guest has not."""
    left = [d for d in asked if d.access == "write"]
    if not left:
        return found("in the device")
    own = any(e.usable and e.start <= left[-1].iova < e.end for e in run.e820.guest)
    return found("in RAM" if own else "not shown", at=left[-1].iova)


def _tracks(answer: Any, m: Machine) -> Finding:
    if (wrong := _asks_linux(answer, m)) is not None:
        return wrong
    with _copy(m) as (copy, run):
        since, before, was = copy.pc.clock.now, len(run.faults), [unit.gsts for unit in run.units]
        try:
            _typed(run, answer)
        except HvlabError as e:
            return found("failed", error=e)
        asked = _by_edu(run, since)
        if not any(_takes(d, _key(run)) for d in asked):
            blocked = next((d for d in asked if d.result == "blocked"), None)
            return found("blocked", at=blocked.iova, reason=blocked.reason) if blocked else found("not taken")
        if not all(unit.translating for unit in run.units):
            return found("left open")
        if (now := [unit.gsts for unit in run.units]) != was:
            return found("left changed", was=was[0], now=now[0])
        return found("recorded") if len(run.faults) > before else found(RIGHT)


def _server(answer: Any, m: Machine) -> Finding:
    if not isinstance(answer, Config):
        return found("no config")
    if not m.linux:
        return found("no shell")
    with Machine.load(_SERVER) as server:
        try:
            run = server.boot(answer, guest=m.guest, limit=_BOOT_LIMIT)
        except HvlabError as e:
            return found("refused", error=e)
        if run.outcome != "up":
            return found("not up", outcome=run.outcome, why=run.why)
        was = all(unit.translating for unit in run.units)
        _typed(run, _attack(_key(run).start))
        still = all(unit.translating for unit in run.units)
        taken = any(_takes(d, _key(run)) for d in run.dma)
        return found(RIGHT) if still and not taken else found("switched off" if was else "never on")


def _attack(key: int) -> list[str]:
    """Root switches translation off and has the edu device read the key."""
    return ["for d in /sys/bus/pci/devices/*; do read v <$d/vendor; read e <$d/device; [ $v$e = 0x12340x11e8 ] && break; done",
            "printf '\\006' | dd of=$d/config bs=1 seek=4 conv=notrunc 2>/dev/null; read edu rest <$d/resource",
            "devmem 0xfed90018 32 0",
            f"devmem $((edu + 0x80)) 64 {key:#x}; devmem $((edu + 0x88)) 64 0x40000; devmem $((edu + 0x90)) 64 {SECRET_SIZE}",
            "devmem $((edu + 0x98)) 64 1; sleep 0.1"]


LINUX_EXERCISES: dict[str, tuple[bool, Callable[..., Finding]]] = {
    "11-key": (True, _steal),
    "11-tracks": (True, _tracks),
    "11-server": (True, _server),
}
"""By name, as `EXERCISES` has them."""
