"""The exercises of the lessons on attacks, policies and two guests: answers that are tried on machines of the check's own."""

from collections.abc import Callable
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.guests import GuestView
from hvcore.inspect.walk import Walk, walk
from hvcore.run import Run
from hvcore.spec.paging import NESTED
from hvcore.spec.pci import format_bdf
from hvcore.vmm.config import SWITCHES
from hvcore.vmm.layout import SECRET_SIZE, Part

from .finding import EDU, RIGHT, Finding, are_commands, booted, found, is_number, requester, vmm_range

__all__ = ["ATTACK_EXERCISES", "crime_scene"]

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


# --- 8: policies and proof

_LEFT = ("clear-te", "before-te", "forge-interrupt")
"""What domain 0 alone does not stop."""


def _mends(answer: Any) -> Finding:
    if not isinstance(answer, dict) or set(answer) != set(_LEFT):
        return found("no dict")
    base = Config(IOMMU_MAP_END="ram")
    with Machine.load("q35-6g-intremap") as m:
        for attack, option in answer.items():
            if option not in SWITCHES:
                return found("no option", option=repr(option))
            verdict = m.attack(attack, base.change(**{option: True})).verdict
            if verdict != "blocked":
                return found("not stopped", attack=attack, option=option, verdict=verdict)
    return found(RIGHT)


def _hole(answer: Any) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(map(is_number, answer)) or not all(0 <= n < 1 << 64 for n in answer):
        return found("no pair")
    at, value = answer
    with booted("q35-6g-intremap", Config(PROFILE="mended")) as (m, run):
        if at % 8 or not m.pc.memory.backed(at, 8):
            return found("no word", at=at)
        m.pc.memory.write64(at, value)
        broken = next((c for c in run.proof.claims if not c.holds), None)
        if broken is None:
            return found("no hole", at=at)
        caught = _caught(m)
        said = broken.counterexample.sentence if broken.counterexample else broken.why
        return found("caught", attack=caught) if caught else found(RIGHT, claim=broken.claim, said=said)


def _caught(m: Machine) -> str | None:
    """The first attack on the guest that waits which gets somewhere."""
    for name, scenario in m.attacks.items():
        if not scenario.early:
            result = m.attack(name)
            if result.verdict != "blocked" or result.changed:
                return name
    return None


def crime_scene() -> Machine:
    """A machine that has booted without VTD_TRANS, on which two devices have written into the nested tables since; one did harm."""
    m = Machine.load("q35-6g")
    run = m.boot(_OFF)
    core, memory = vmm_range(run).start, m.pc.memory
    root = run.core.nested_root() if run.core else None
    assert root is not None
    entry = walk(memory, NESTED, root, 4, core).steps[-2].entry
    block = (entry & ~0x1FF) + 0x200
    copy, harm = 0x400_0000, 10
    for line in (f"nvme dump {block:#x} 200", f"nvme load 200 {copy:#x}", f"poke {copy + 8 * harm:#x} {core | 0x87:#x} 8",
                 f"nvme dump {copy:#x} 201", f"nvme load 201 {block:#x}", f"dma w {entry:#x} 8 {memory.read64(entry):#x}"):
        run.guest.command(line)
    return m


def _culprit(answer: Any, m: Machine) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not is_number(answer[0]) or (source := requester(answer[1])) is None:
        return found("no pair")
    run = m.run
    assert run is not None
    example = run.proof.claim("processor cannot write the core's memory").counterexample
    way = [step.entry for step in example.walk.steps] if example and isinstance(example.walk, Walk) else []
    if answer[0] not in way:
        return found("not the way", at=answer[0])
    writer = run.who_wrote(answer[0])[0]
    if writer.writer != "dma":
        return found("not by a device", at=answer[0])
    return found(RIGHT if writer.who == format_bdf(source) else "other device", at=answer[0], source=format_bdf(source))


# --- 9: two guests

_GUEST_2_BYTE = 0x400_0000
"""A guest-physical address of guest 2."""


def _where(answer: Any, m: Machine) -> Finding:
    run = m.run
    assert run is not None
    if not is_number(answer):
        return found("number")
    if len(run.guests) < 2:
        return found("not split")
    if answer < 0 or not m.pc.memory.backed(answer, 4):
        return found("no memory", at=answer)
    first, second = run.guests
    if all(_arrives(m, second, answer, value) for value in (0x0BADCAFE, 0x600DCAFE)):
        return found(RIGHT, at=answer)
    for key, ranges in (("guest 1's", first.ram), ("core's own", [(vmm_range(run).start, vmm_range(run).stop)])):
        if any(start <= answer < end for start, end in ranges):
            return found(key, at=answer)
    return found("elsewhere", at=answer)


def _arrives(m: Machine, guest: GuestView, at: int, value: int) -> bool:
    """Whether what the guest's processor writes is to be found at a host-physical address."""
    guest.command(f"poke {_GUEST_2_BYTE:#x} {value:#x}")
    return m.pc.memory.read(at, 4) == value.to_bytes(4, "little")


_DISK = 0x0010
"""Requester id (00:02.0) of the NVMe controller on the q35 machines."""


def _disk(answer: Any) -> Finding:
    if not isinstance(answer, Config):
        return found("no config")
    with Machine.load("q35-6g") as m:
        try:
            run = m.boot(answer)
        except HvlabError as e:
            return found("refused", error=e)
        if run.outcome == "vmm-panic":
            return found("panic", why=run.why)
        if len(run.guests) < 2:
            return found("not split")
        first, second = run.guests
        if _DISK not in second.devices:
            return found("no disk")
        for guest in (first, second):
            if guest.outcome != "up":
                return found("not up", guest=guest.name, why=guest.why)
        return found("open" if _leaks(run, first, second) else RIGHT, why=second.why)


def _leaks(run: Run, first: GuestView, second: GuestView) -> bool:
    """Whether the tables of a device of guest 2 lead into guest 1's RAM."""
    theirs = [d for d in run.domains if set(d.devices) & set(second.devices)]
    reached = [(r.start + r.offset, r.end + r.offset) for d in theirs for r in d.runs if r.perm != "-"]
    return not theirs or any(a < end and start < b for a, b in reached for start, end in first.ram)


def _group(answer: Any) -> Finding:
    if not isinstance(answer, (set, frozenset, list, tuple)):
        return found("no set")
    if not all(isinstance(name, str) and requester(name) is not None for name in answer):
        return found("no set")
    with booted("q35-2g-bridges", Config(PROFILE="mended", TINYVISOR=True, GUEST2_DEVICES="04:05.0")) as (_, run):
        got = {format_bdf(source) for source in run.guests[1].devices}
        bridges = {format_bdf(f.source) for f in run.functions if "bridge" in f.kind}
    names = {format_bdf(requester(name) or 0) for name in answer}
    if names == got:
        return found(RIGHT)
    key = "bridge" if names & bridges else "alone" if names == {"04:05.0"} else "too many" if names > got else "other"
    return found(key, names=", ".join(sorted(names - got)) or "none")


ATTACK_EXERCISES: dict[str, tuple[bool, Callable[..., Finding]]] = {
    "07-find": (False, _find),
    "07-open": (False, _open),
    "07-drive": (False, _drive),
    "08-mends": (False, _mends),
    "08-hole": (False, _hole),
    "08-culprit": (True, _culprit),
    "09-where": (True, _where),
    "09-disk": (False, _disk),
    "09-group": (False, _group),
}
"""By name, as `EXERCISES` has them."""
