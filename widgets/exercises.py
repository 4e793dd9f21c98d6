"""The course's exercises: each a function that holds an answer against a machine and says what it found.  The words are in `hints`.

An answer that is a function, a list of commands or a configuration is tried out on machines of its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.machine.vtd.unit import RemappingUnit
from hvcore.machine.vtd.walk import Step, Walk
from hvcore.run import Run
from hvcore.spec import dmar
from hvcore.spec.e820 import E820Entry
from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import SP, R

from .exercises_attacks import ATTACK_EXERCISES, crime_scene
from .exercises_linux import LINUX_EXERCISES
from .exercises_machines import MACHINE_EXERCISES
from .finding import EDU, NOT_ANSWERED, RIGHT, Finding, are_commands, booted, found, is_number, requester, vmm_range

__all__ = ["EXERCISES", "NOT_ANSWERED", "RIGHT", "WALK_IOVA", "WALK_SOURCE", "Finding", "broken_machine", "crime_scene", "examine"]

MIB, GIB = 1 << 20, 1 << 30
WALK_SOURCE, WALK_IOVA = 0x0100, 0x1234_5678
"""The requester id (01:00.0) and the IOVA that lesson 4 walks by hand."""


def examine(name: str, answer: Any, machine: Machine | None = None) -> Finding:
    """What the check of exercise `name` finds.  Raises HvlabError for an exercise that does not exist, or one that lacks its machine."""
    if name not in EXERCISES:
        raise HvlabError(f"there is no exercise {name!r}: the exercises are {', '.join(EXERCISES)}")
    if _open(answer):
        return Finding(NOT_ANSWERED)
    needs_machine, judge = EXERCISES[name]
    if not needs_machine:
        return judge(answer)
    if machine is None or machine.run is None:
        raise HvlabError(f"exercise {name} is checked on a machine that has booted: give it as the third argument")
    return judge(answer, machine)


def _open(answer: Any) -> bool:
    """Whether three dots still stand in the answer, or nothing."""
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, (tuple, list)) else (answer,)
    return any(part is ... or part is None for part in parts)


def _unit(machine: Machine, source: int) -> RemappingUnit | None:
    index = machine.pc.topology.unit_index(0, source)
    return None if index is None else machine.pc.units[index]


# --- 1: what the IOMMU is

def _stopped(answer: Any, m: Machine) -> Finding:
    source = requester(answer)
    if source is None:
        return found("no id")
    run = m.run
    assert run is not None
    if source in {fault.source for fault in run.faults}:
        return found(RIGHT, source=format_bdf(source))
    if source in {fault.unit for fault in run.faults}:
        return found("unit")
    known = source in {f.source for f in run.functions}
    return found("other device" if known else "no device", source=format_bdf(source) if source < 1 << 16 else source)


def _edge(answer: Any, m: Machine) -> Finding:
    if not is_number(answer):
        return found("number")
    if answer % 4096:
        return found("unaligned", at=answer)
    unit, vmm = _unit(m, EDU), vmm_range(m.run)  # type: ignore[arg-type]
    assert unit is not None
    if answer >= vmm.stop:
        return found("above", at=answer)
    if unit.walk(EDU, answer).read:
        return found("blocked", at=answer, reason=int(unit.walk(EDU, answer).read or 0))
    return found(RIGHT, next=answer + 4096) if unit.walk(EDU, answer + 4096).read else found("not last", next=answer + 4096)


# --- 2: E820

def _lost(answer: Any, m: Machine) -> Finding:
    if not is_number(answer):
        return found("number")
    assert m.run is not None
    usable = [sum(e.size for e in entries if e.usable) for entries in (m.run.e820.firmware, m.run.e820.guest)]
    lost = usable[0] - usable[1]
    wrong = {m.run.vmm.size: "only vmm", lost // MIB: "mebibytes", usable[1]: "rest", -lost: "sign"}
    return found(RIGHT, lost=lost) if answer == lost else found(wrong.get(answer, "other"))


_PLACED_ON = ("q35-6g", "nvme-desktop-16g", "laptop-16g", "server-64g")


def _place(answer: Any) -> Finding:
    if not callable(answer):
        return found("no function")
    for name in _PLACED_ON:
        with booted(name, Config(VTD_TRANS=False)) as (_, run):
            try:
                got = answer(run.e820.firmware, run.vmm.size)
            except Exception as e:  # noqa: BLE001 - the student's code may raise anything
                return found("raised", name=name, error=f"{type(e).__name__}: {e}")
            if got != run.vmm.base:
                return _misplaced(got, name, run)
    return found(RIGHT)


def _misplaced(got: Any, name: str, run: Run) -> Finding:
    base, size = run.vmm.base or 0, run.vmm.size
    if not is_number(got):
        return found("no address", name=name, got=repr(got))
    inside = any(e.usable and e.start <= got and got + size <= e.end for e in run.e820.firmware)
    for key, wrong in (("above 4 GiB", got >= 4 * GIB), ("not usable", not inside), ("unaligned", got % (4 * MIB) != 0),
                       ("low", got < base)):
        if wrong:
            return found(key, name=name, got=got)
    return found("other", name=name, got=got)


# --- 3: DMAR

def _drhd(answer: Any, m: Machine) -> Finding:
    if not is_number(answer):
        return found("number")
    table = m.description.dmar or b""
    bases = [s.base for s in dmar.parse(table).structures if isinstance(s, dmar.Drhd)]
    if answer == bases[0]:
        return found(RIGHT, base=answer)
    rmrrs = [s.base for s in dmar.parse(table).structures if isinstance(s, dmar.Rmrr)]
    near = [int.from_bytes(table[at:at + 8], "little") for at in range(48, 66) if at != 56]
    key = "another unit" if answer in bases else "rmrr" if answer in rmrrs else "offset" if answer in near else "other"
    return found(key, got=answer)


def _covering(answer: Any, m: Machine) -> Finding:
    if not isinstance(answer, dict):
        return found("no dict")
    for name, base in answer.items():
        source = requester(name)
        unit = None if source is None else _unit(m, source)
        if unit is None:
            return found("no device", source=name)
        if base != unit.base:
            known = base in {u.base for u in m.pc.units}
            return found("other unit" if known else "no unit", source=name, got=base)
    return found(RIGHT)


_NVME_SCOPE = bytes((1, 8, 0, 0, 0, 0, 2, 0))


def broken_machine() -> Machine:
    """A q35 machine whose DMAR table names a function that does not exist in place of its NVMe controller, checksum right."""
    with Machine.load("q35-2g") as good:
        table = bytearray(good.description.dmar or b"")
        at = table.index(_NVME_SCOPE)
        table[at + 7] += 1
        table[9] = (table[9] - 1) % 256
        return Machine(replace(good.description, name="q35-2g with a wrong DMAR", dmar=bytes(table)))


def _mended(answer: Any) -> Finding:
    if not isinstance(answer, (bytes, bytearray)):
        return found("no bytes")
    with Machine.load("q35-2g") as good:
        description = good.description
    if len(answer) != len(description.dmar or b""):
        return found("length", got=len(answer))
    if answer[:4] != b"DMAR":
        return found("signature")
    if sum(answer) % 256:
        return found("checksum", sum=sum(answer) % 256)
    try:
        machine = Machine(replace(description, dmar=bytes(answer)))
    except HvlabError as e:
        return found("no machine", error=e)
    with machine:
        run = machine.boot()
        if run.outcome != "up":
            return found("not up", outcome=run.outcome, why=run.why)
        return found(RIGHT if all(unit.translating for unit in run.units) else "not used")


# --- 4: a walk by hand

def _walked(m: Machine) -> Walk:
    unit = _unit(m, WALK_SOURCE)
    assert unit is not None
    return unit.walk(WALK_SOURCE, WALK_IOVA)


def _context_table(answer: Any, m: Machine) -> Finding:
    if not is_number(answer):
        return found("number")
    root, context = _walked(m).steps[:2]
    wrong = {root.entry: "present bit", root.table: "root table", root.address: "entry address", context.address: "context entry"}
    if answer == context.table:
        return found(RIGHT)
    return found(wrong.get(answer, "other bus" if answer == 0 else "other"), got=answer)


def _context(answer: Any, m: Machine) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 3 or not all(map(is_number, answer)):
        return found("no triple")
    levels, did, root = answer
    context = _walked(m).context
    assert context.low is not None and context.high is not None
    for key, wrong in (("aw", levels == context.levels - 2), ("levels", levels != context.levels), ("did", did != context.did),
                       ("flags", root == context.low), ("root", root != context.root)):
        if wrong:
            return found(key, got=root)
    return found(RIGHT)


def _leaf(answer: Any, m: Machine) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(map(is_number, answer)):
        return found("no pair")
    at, entry = answer
    steps = _walked(m).steps
    if (at, entry) == (steps[-1].address, steps[-1].entry):
        return found(RIGHT)
    wrong = {step.address: f"level {step.level}" for step in steps[2:-1]} | {steps[-1].table: "index", steps[-1].table + 4096: "other"}
    if at == steps[-1].address:
        return found("entry", got=entry)
    if at == steps[-1].table + (steps[-1].index):
        return found("eight bytes")
    return found(wrong.get(at, "other"), got=at)


Walking = Callable[[Any, int, int, int], Any]


def _walking(answer: Any) -> Finding:
    if not callable(answer):
        return found("no function")
    for name, config in (("q35-6g", Config()), ("q35-6g", Config(IOMMU_MAP_END="ram", IOMMU_SUPERPAGES=True)),
                         ("server-64g", Config(IOMMU_MAP_END="ram", IOMMU_SUPERPAGES=True))):
        with booted(name, config) as (m, run):
            disk = next(f.source for f in run.functions if f.kind == "NVMe")
            unit = _unit(m, disk)
            assert unit is not None
            finding = _walks_right(answer, m, unit, _cases(m, unit, disk))
        if finding.key != RIGHT:
            return finding
    return found(RIGHT)


_NO_BUS = 0xFE00


def _cases(m: Machine, unit: RemappingUnit, disk: int) -> list[tuple[str, int, int]]:
    """(what is special, requester, IOVA); where an answer could be guessed, the tables are changed so that it cannot."""
    base, end = vmm_range(m.run).start, m.description.ram_runs[-1][1]  # type: ignore[arg-type]
    moved, no_read, upper, big = 0x0234_5678, 0x0345_6000, 0x5000_0008, 5 * GIB + 0x12_3456
    _change(m, unit.walk(disk, moved).steps[-1], lambda entry: entry + 0x77_7000)
    _change(m, unit.walk(disk, no_read).steps[-1], lambda entry: entry & ~R)
    _change(m, unit.walk(disk, upper).steps[-2], lambda entry: entry & ~R)
    _change(m, unit.walk(disk, big).steps[-1], lambda entry: entry + 2 * MIB if entry & SP else entry)
    absent = _leave_behind(m, unit.walk(disk, moved))
    return [("address", disk, moved), ("hole", disk, base + 0x1234), ("beyond", disk, end + GIB), ("read bit", disk, no_read),
            ("upper bit", disk, upper), ("superpage", disk, big), ("no context", absent, moved), ("bus", _NO_BUS, moved)]


def _change(m: Machine, step: Step, change: Callable[[int], int]) -> None:
    if step.entry:
        m.pc.memory.write64(step.address, change(step.entry))


def _leave_behind(m: Machine, walk: Walk) -> int:
    """A root and a context entry like those of `walk` but not present, in places that are free; the requester id of the latter."""
    root, context = walk.steps[:2]
    free = next(devfn for devfn in range(0xFF, 0, -1) if not m.pc.memory.read64(context.table + 16 * devfn))
    for step, index in ((root, _NO_BUS >> 8), (context, free)):
        m.pc.memory.write64(step.table + 16 * index, (step.entry or 0) & ~1)
        m.pc.memory.write64(step.table + 16 * index + 8, step.high or 0)
    return walk.source & 0xFF00 | free


def _walks_right(walk: Walking, m: Machine, unit: RemappingUnit, cases: Iterable[tuple[str, int, int]]) -> Finding:
    for key, source, iova in cases:
        true = unit.walk(source, iova)
        expected = None if true.read else true.address
        try:
            got = walk(m.pc.memory, unit.root & ~0xFFF, source, iova)
        except Exception as e:  # noqa: BLE001 - the student's code may raise anything
            return found("raised", name=m.name, error=f"{type(e).__name__}: {e}", iova=iova)
        if got != expected:
            return found("levels" if true.context.levels == 4 else key, name=m.name, source=format_bdf(source), iova=iova,
                          got=got, expected=expected)
    return found(RIGHT)


# --- 5: toggle and reboot

def _escape(answer: Any) -> Finding:
    if not are_commands(answer):
        return found("no commands")
    with booted("q35-6g", Config(VTD_TRANS=True)) as (m, run):
        try:
            for command in answer:
                run.guest.command(command)
        except HvlabError as e:
            return found("crash", error=e)
        assert m.run is not None
        return _escaped(m.run)


def _escaped(run: Run) -> Finding:
    vmm = vmm_range(run)
    reads = [d for d in run.dma if d.source == EDU and d.access == "read" and d.iova in vmm]
    if any(d.landing is not None and d.landing in vmm and d.result == "ok" for d in reads):
        return found(RIGHT)
    off = not any(unit.translating for unit in run.units)
    if off:
        return found("no read")
    return found("blocked" if reads else "not tried")


def _lock(answer: Any) -> Finding:
    if not isinstance(answer, Config):
        return found("no config")
    with booted("q35-6g", answer) as (_, run):
        if run.outcome in ("vmm-panic", "guest-crash"):
            return found("panic", why=run.why)
        if not any(unit.translating for unit in run.units):
            return found("off")
        for unit in run.units:
            run.guest.command(f"poke {unit.base + 0x18:#x} 0")
        run.guest.command(f"dma r {vmm_range(run).start:#x} 64")
        escaped = _escaped(run).key == RIGHT
        return found("escaped" if escaped else RIGHT, outcome=run.outcome)


# --- 6: the 4 GiB bug and its mends

def _table_pages(answer: Any) -> Finding:
    if not is_number(answer):
        return found("number")
    with booted("q35-6g", Config(IOMMU_MAP_END="ram")) as (_, run):
        domain = run.domains[0]
    pages = domain.leaves["4K"]
    if answer == domain.table_pages:
        return found(RIGHT)
    wrong = {pages // 512: "level 1 only", domain.table_pages - 1: "no top", 6 * 512: "ram size", 6 * 513 + 1: "ram size",
             4 * 513 + 1: "4 GiB", pages: "leaves"}
    return found(wrong.get(answer, "other"))


def _with_ram_to(end: int) -> Machine:
    """A q35 machine whose RAM ends at `end` (host-physical)."""
    with Machine.load("q35-64g") as m:
        d = m.description
    entries = tuple(E820Entry(e.start, end, e.type) if e.usable and e.start == 4 * GIB else e for e in d.e820)
    return Machine(replace(d, name=f"q35 with RAM to {end // GIB} GiB", e820=entries, ram_runs=(d.ram_runs[0], (4 * GIB, end))))


def _limit(answer: Any) -> Finding:
    if not is_number(answer):
        return found("number")
    if not 4 < answer <= 512:
        return found("range", got=str(answer))
    panics = []
    for end in (answer, answer + 1):
        with _with_ram_to(end * GIB) as machine:
            panics.append(machine.boot(Config(IOMMU_MAP_END="ram")).outcome == "vmm-panic")
    return found({(False, True): RIGHT, (False, False): "more fits"}.get((panics[0], panics[1]), "too much"), got=str(answer))


def _mend(answer: Any) -> Finding:
    if not isinstance(answer, Config):
        return found("no config")
    with booted("server-64g", answer) as (m, run):
        if run.outcome != "up":
            return found(run.outcome, why=run.why)
        vmm, sources = vmm_range(run), [s for unit in run.units for s in unit.devices]
        if not all(unit.translating for unit in run.units):
            return found("unprotected")
        walks = [unit.walk(s, at) for s in sources if (unit := _unit(m, s)) for at in (vmm.start, vmm.stop - 1)]
        open_ = any(w.read is None or w.write is None for w in walks)
        return found("open" if open_ else RIGHT, used=str(run.vmm.heap_pages_used))


EXERCISES: dict[str, tuple[bool, Callable[..., Finding]]] = {
    "01-source": (True, _stopped),
    "01-edge": (True, _edge),
    "02-lost": (True, _lost),
    "02-place": (False, _place),
    "03-drhd": (True, _drhd),
    "03-units": (True, _covering),
    "03-mend": (False, _mended),
    "04-context-table": (True, _context_table),
    "04-context": (True, _context),
    "04-leaf": (True, _leaf),
    "04-walk": (False, _walking),
    "05-escape": (False, _escape),
    "05-lock": (False, _lock),
    "06-tables": (False, _table_pages),
    "06-limit": (False, _limit),
    "06-mend": (False, _mend),
    **ATTACK_EXERCISES,
    **MACHINE_EXERCISES,
    **LINUX_EXERCISES,
}
"""By name: whether the check looks at the student's machine, and the check."""
