"""The exercises of the lessons on attacks, policies and two guests: answers that are tried on machines of the check's own."""

from collections.abc import Callable
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.run import Run
from hvcore.vmm.layout import SECRET_SIZE, Part

from .finding import EDU, RIGHT, Finding, are_commands, booted, found, is_number, vmm_range

__all__ = ["ATTACK_EXERCISES"]

_OFF = Config(VTD_TRANS=False)


# --- 7: the wicked driver

_HIDDEN_ON = (("q35-6g", _OFF), ("laptop-16g", _OFF), ("nvme-desktop-16g", _OFF.change(VMM_SIZE_MIB=256)), ("server-64g", _OFF))


def _find(answer: Any) -> Finding:
    if not callable(answer):
        return found("no function")
    for name, config in _HIDDEN_ON:
        with booted(name, config) as (m, run):
            typed: list[str] = []
            try:
                got = answer(_typing(run, typed))
            except Exception as e:  # noqa: BLE001 - the student's code may raise anything
                return found("raised", name=name, error=f"{type(e).__name__}: {e}")
            if any(line.split()[:1] == ["attack"] for line in typed):
                return found("by hand")
            if got != run.vmm.base:
                return _not_there(got, m, run)
    return found(RIGHT)


def _typing(run: Run, typed: list[str]) -> Callable[[str], str]:
    def command(line: str) -> str:
        typed.append(line)
        return run.guest.command(line)

    return command


def _not_there(got: Any, m: Machine, run: Run) -> Finding:
    if not is_number(got):
        return found("no address", name=m.name, got=repr(got))
    in_map = any(e.start <= got < e.end for e in run.e820.guest)
    key = "in the map" if in_map else "not its start" if got in vmm_range(run) else "other"
    return found(key, name=m.name, got=got)


def _secret(m: Machine, run: Run) -> bytes:
    """The core's key."""
    return m.pc.memory.read(vmm_range(run).start + Part.SECRET, SECRET_SIZE)


def _hex(data: bytes) -> str:
    """As the guest's peek shows the first bytes of a line."""
    return data[:8].hex(" ")


def _open(answer: Any) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(map(is_number, answer)) or not all(0 <= n < 1 << 64 for n in answer):
        return found("no pair")
    slot, entry = answer
    with booted("q35-6g", _OFF) as (m, run):
        key, place = _hex(_secret(m, run)), vmm_range(run).start + Part.SECRET
        before = m.pc.memory.read64(slot) if m.pc.memory.backed(slot, 8) else 0
        if not before & 1 or slot not in vmm_range(run):
            return found("no entry", slot=slot)
        try:
            run.guest.command(f"dma w {slot:#x} 8 {entry:#x}")
            seen = run.guest.command(f"peek {place:#x} 16")
        except HvlabError as e:
            return found("crash", error=e)
        return found(RIGHT, before=before, entry=entry) if key in seen else _still_shut(entry, place)


def _still_shut(entry: int, place: int) -> Finding:
    """Why the guest's CPU does not see the key at `place`."""
    for key, wrong in (("absent", not entry & 1), ("not user", not entry & 4), ("elsewhere", entry >> 21 << 21 != place >> 21 << 21)):
        if wrong:
            return found(key, entry=entry)
    return found("small" if not entry & 0x80 else "other", entry=entry)


def _drive(answer: Any) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not are_commands(answer[0]) or not is_number(answer[1]):
        return found("no commands")
    commands, at = answer
    if any(c.split()[:1] == ["attack"] for c in commands):
        return found("by hand")
    with booted("q35-6g", _OFF) as (m, run):
        key = _secret(m, run)
        try:
            for command in commands:
                run.guest.command(command)
        except HvlabError as e:
            return found("crash", error=e)
        return _carried(m, run, key, at)


def _carried(m: Machine, run: Run, key: bytes, at: int) -> Finding:
    """Whether the key lies at `at` in the guest's memory, and by which device it came."""
    by_edu = any(d.source == EDU for d in run.dma)
    taken = any(d.source != EDU and d.access == "read" and d.landing in vmm_range(run) for d in run.dma)
    if at in vmm_range(run):
        return found("core's own", at=at)
    if at >= 0 and m.pc.memory.backed(at, len(key)) and m.pc.memory.read(at, len(key)) == key:
        return found("edu" if by_edu else RIGHT, at=at)
    return found("on the disk" if taken else "not taken", at=at)


ATTACK_EXERCISES: dict[str, tuple[bool, Callable[..., Finding]]] = {
    "07-find": (False, _find),
    "07-open": (False, _open),
    "07-drive": (False, _drive),
}
"""By name, as `EXERCISES` has them."""
