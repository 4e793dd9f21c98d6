"""Attacks on the core, and with it on the process that it is emulated in: guests of hostile code, and the lab guest told to do its worst.

Whatever the attack does, the run can be looked at, stepped and resumed, what was out of reach is unchanged, and the same machine switched
on anew is the machine it was.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import inf
from random import Random
from typing import Any

from hvcore import Config, Machine, Run, inspect
from hvcore.attack.scenarios import ATTACKS
from hvcore.attack.scene import Scene
from hvcore.errors import BadConfig, HvlabError
from hvcore.inspect.advice import advise
from hvcore.machine.cpu import StopKind
from hvcore.machine.firmware import read_e820
from hvcore.machine.pc import Pc
from hvcore.outcome import OUTCOMES
from hvcore.sources import load
from hvcore.spec.linuxboot import Elf
from hvcore.spec.paging import PAGE
from hvcore.vmm.config import MAP_ENDS, QUIRKS, SWITCHES
from hvcore.vmm.heap import Panic
from hvcore.vmm.ioapic import RedirectionTable
from hvcore.vmm.irte import ENTRIES
from hvcore.vmm.layout import HEAP, Part
from hvcore.vmm.memmap import choose_region
from hvcore.vmm.messages import MessageTable

from .anycode import any_code
from .mutate import check_sentence, number, often
from .programs import Places, program

__all__ = ["TARGETS"]

_MACHINES = (*["q35-2g"] * 7, "q35-2g-bridges", "q35-2g-bridges", "q35-2g-rootport", "q35-6g-intremap")
_PATIENCE = 0.2
"""Seconds of processor time after which a guest that never waits is given up, however busy the host is."""
_EDGES = (0, 0x1000, 0x9FC00, 0xA0000, 0xF0000, 0x100000, 0x8000_0000, 0xB000_0000, 0xB001_8000, 0xC000_0000, 0xFEC0_0000, 0xFEE0_0000,
          0xFEE0_0FFC, 0xFFFF_FFFF, 1 << 32, (1 << 32) + 0x1000, 1 << 39, 1 << 40, (1 << 40) - 8, 1 << 47, (1 << 64) - 8, 1 << 52)
_WRITES = ("write", "register")
"""Words of the claims that what an attack changes must contradict."""


def _any_config(r: Random) -> Config:
    """Any options that go together."""
    while True:
        options: dict[str, Any] = {"PROFILE": r.choice(("bitvisor", "mended"))}
        if often(r, 0.3):
            options |= {name: often(r, 0.5) for name in SWITCHES}
        elif often(r, 0.6):
            options[r.choice(SWITCHES)] = True
        if often(r, 0.3):
            quirks = [q for q in QUIRKS if often(r, 0.03 if q == "ZAPPED_SIGNATURE_ASSERT" else 0.25)]
            options |= {"QUIRKS": quirks, "IOMMU_MAP_END": r.choice([*MAP_ENDS])}
        elif often(r, 0.5):
            options["IOMMU_MAP_END"] = "ram"
        options["VMM_SIZE_MIB"] = r.choice((16, 16, 16, 64, 128))
        try:
            return Config().change(**options)
        except BadConfig as e:
            check_sentence(e)


class _GiveUp:
    """Watches a machine at work, and calls `stop` each time its guest has taken too long."""

    def __init__(self, stop: Callable[[], object]):
        self.stop, self.end = stop, time.process_time() + _PATIENCE

    def __call__(self, phase: str | None) -> None:
        """A phase begins, which is given its time, or some time has passed."""
        now = time.process_time()
        if phase is None and now > self.end:
            self.stop()
        if phase is not None or now > self.end:
            self.end = now + _PATIENCE


def _for_good(machine: Machine) -> _GiveUp:
    return _GiveUp(lambda: machine.pc.stop(StopKind.TIMEOUT, "it took too long"))


def _boot(r: Random, machine: Machine, slots: int = 0, make: Callable[[Random, Places, int], Elf] = program) -> "_Watch":
    """The machine boots, with a guest of hostile code of so many slots that `make` makes, or the lab's."""
    config = _any_config(r)
    watch = _Watch(machine, _places(machine.pc, config))
    guest = make(r, watch.places, slots) if slots else None
    machine.boot(config, watch.entered, guest, limit=inf, watch=_for_good(machine) if slots else None)
    return watch


def _places(pc: Pc, config: Config) -> Places:
    """What can be known of a machine before it boots."""
    size = config.VMM_SIZE_MIB << 20
    try:
        base = choose_region(read_e820(pc.memory), size)
    except Panic:
        base = 0x100_0000
    core = [*(base + part for part in Part), *(base + HEAP + PAGE * i for i in (*range(24), 511, 1040, 2063)), base + size - PAGE]
    registers = [w.start for w in pc.bus.windows] + [unit.base for unit in pc.units]
    windows = {model: next((f.window[0] for f in pc.root.find(model) if f.window), None) for model in ("edu", "nvme")}
    return Places(tuple(core), tuple(registers), _EDGES, windows["edu"], windows["nvme"])


class _Watch:
    """What must not change from the guest's first instruction on, and what an attack aims at."""

    def __init__(self, machine: Machine, places: Places):
        self.machine, self.places = machine, places
        self.scene: Scene | None = None

    def entered(self, phase: str) -> None:
        """A phase of the boot begins: before the guest's, it is proved what nobody can write."""
        run, machine = self.machine.run, self.machine
        if phase == "guest runs" and run and run.core and run.core.heap and run.vmm.base:
            closed = run.config.VTD_TRANS and run.config.HIDE_VTD_REGS and _protected(run)
            self.scene = Scene(machine.pc, run.vmm.base, run.core.heap.top) if closed else None

    def check(self) -> bool:
        """Whether the core was out of reach.  Then it is byte for byte as it was, whatever the outcome."""
        run = self.machine.run
        if self.scene is None or run is None:
            return False
        volatile = list(_volatile(run))
        changed = [c for c in self.scene.changed() if not all(any(a <= page < b for a, b in volatile)
                                                              for page in range(c.start & -PAGE, c.end, PAGE))]
        assert not changed, f"out of reach, and yet changed: {', '.join(map(str, changed))}"
        assert run.outcome != "vmm-taken-over"
        return True


def _protected(run: Run) -> bool:
    """Whether nobody can write the core, as the proof has it, and no bridge can give a device a name that no unit knows."""
    proof = run.proof
    claims = [c for c in proof.claims if any(word in c.claim for word in _WRITES)]
    bridges = run._machine.pc.root.find("bridge")
    return len(claims) > 5 and all(c.holds for c in claims) and not (proof.note and bridges)


def _volatile(run: Run) -> Iterator[tuple[int, int]]:
    """Pages beside Scene's own that the core writes while the guest runs: its storage driver's, the second guest's, and those of the
    interrupt messages that the guest asks for."""
    assert run.core is not None
    if run.core.storage:
        yield run.core.storage.working
    for table in (trap.device for trap in run.core.traps if isinstance(trap.device, MessageTable | RedirectionTable)):
        entries = run._machine.pc.bus.read(table.unit.base + 0xB8, 8) & -PAGE
        kept = 16 * table.vectors if isinstance(table, MessageTable) else 8 * table.pins
        yield from ((table.kept, table.kept + kept), (entries - PAGE, entries + 16 * ENTRIES))
    if run.core.tiny and run.core.tiny.guest:
        for base in (run.core.tiny.guest.base, run.vmm.base or 0):
            yield base + Part.DATA, base + Part.MSRPM


# --- what is done afterwards

@contextmanager
def _mistakes() -> Iterator[None]:
    """What cannot be done any more is refused in a sentence."""
    try:
        yield
    except HvlabError as e:
        check_sentence(e)


def _ask(r: Random, run: Run, addresses: Sequence[int]) -> None:
    """Everything that can be asked of a live run."""
    for address in addresses:
        with _mistakes():
            assert str(run.lens(address))
        with _mistakes():
            assert str(run.who_wrote(address, r.choice((1, 8, 64, 4096))))
        with _mistakes():
            assert str(run.what_if(r.choice((0x10, 0x18, 0xFF, number(r, 16))), address, r.choice(("read", "write"))))
    for fault in run.faults[-2:]:
        assert str(run.explain(fault))
    for request in (*run.dma[-2:], *run.faults[-1:]):
        with _mistakes():
            assert str(run.would_have(request))


def _show(run: Run) -> None:
    """Everything that is shown of a run, as it stood when the machine is about to change."""
    run.freeze()
    proof = inspect.prove(run)
    assert run.why and run.to_json()["outcome"] == run.outcome and str(run) and run._repr_html_()
    for part in (proof, proof.table, run.window, run.guests, run.functions, run.dmar, run.cached, run.interrupts, run.messages, run.history,
                 run.dma, advise(run), *run.registers.values()):
        assert str(part) and part._repr_html_() and json.dumps(part.to_json())


def _poke_at(r: Random, machine: Machine) -> None:
    """Steps, stops and goes on; nothing of it takes long."""
    give_up = _GiveUp(machine.stop)
    actions: tuple[Callable[[], object], ...] = (
        lambda: machine.step(5), lambda: machine.registers, lambda: machine.resume(0.02, watch=give_up), lambda: machine.stop(),
        lambda: machine.step_exit(watch=give_up), lambda: machine.key_in("help\n"), lambda: machine.step(40))
    for action in r.sample(actions, 3):
        with _mistakes():
            action()


def _plain(machine: Machine) -> str:
    """A plain boot of a machine, as text: outcome, consoles, tables, registers, history and every DMA."""
    run = machine.boot(Config(), limit=inf)
    told = run.to_json()
    del told["timings"]
    more = [run.history.to_json(), run.dma.to_json(), run.dmar.to_json(), [r.to_json() for r in run.registers.values()]]
    return json.dumps([told, machine.pc.clock.now, more], sort_keys=True)


@cache
def _fresh(name: str, public_only: bool, ideal_caches: bool) -> str:
    """The same of a machine that is new."""
    with Machine(load(name), public_only, ideal_caches) as machine:
        return _plain(machine)


def _attacked(r: Random, act: Callable[[Random, Machine], "_Watch"]) -> str:
    """A machine is attacked, played with, asked, shown, and is the same machine at its next boot."""
    kind = r.choice(_MACHINES), often(r, 0.05), often(r, 0.05)
    with Machine(load(kind[0]), *kind[1:]) as machine:
        try:
            watch = act(r, machine)
        except HvlabError as e:
            check_sentence(e)
            return "refused"
        run = machine.run
        assert run is not None and run.outcome in OUTCOMES
        told = f"{run.outcome}{', out of reach' if watch.check() else ''}{'' if 'guest runs' in run.timings else ' at boot'}"
        if often(r, 0.5):
            _poke_at(r, machine)
            watch.check()
        assert machine.run is not None and machine.run.outcome in {*OUTCOMES, "running", "stopped"}
        if often(r, 0.5):
            _ask(r, machine.run, [watch.places.address(r) for _ in range(2)])
        _show(machine.run)
        if often(r, 0.2):
            assert _plain(machine) == _fresh(*kind), "the machine is not what it was"
        return told


# --- the attacks

def attack_code(seed: int) -> str:
    """A guest of hostile code."""
    return _attacked(Random(seed), lambda r, machine: _boot(r, machine, r.choice((8, 24, 60, 120))))


def attack_bytes(seed: int) -> str:
    """A guest that executes any bytes, in ring 0 or ring 3."""
    return _attacked(Random(seed), lambda r, machine: _boot(r, machine, r.choice((24, 100, 400)), any_code))


def _lines(r: Random, run: Run, places: Places) -> Iterator[str]:
    """Lines for the guest's monitor, without end."""
    live = [u.root_table or 0 for u in run.units] + [run.core.nested_root() or 0 if run.core else 0]
    live += [run._machine.pc.bus.read(u.base + offset, 8) & -PAGE for u in run.units for offset in (0x20, 0x90, 0xB8)]
    while True:
        at = (r.choice(live) + 8 * r.randrange(512)) if often(r, 0.3) else places.address(r)
        value = r.choice((number(r, 64), places.address(r), places.address(r) & (1 << 52) - 0x1000 | 7))
        yield r.choice((
            f"attack {r.choice([*ATTACKS])}{r.choice(('', ' edu', ' nvme'))}", f"attack {r.choice([*ATTACKS])}",
            f"dma w {at:#x} {r.choice((1, 4, 8, 64, 4096))} {value:#x}", f"dma w {at:#x} {r.choice((4, 8, 4096))} {value:#x}",
            f"dma r {at:#x} {r.choice((8, 4096))}", f"nvme dump {at:#x} {r.randrange(64)}", f"nvme load {r.randrange(64)} {at:#x}",
            f"nvme load {number(r, 12)} {at & -512:#x}", f"poke {at:#x} {value:#x} 8", f"poke {at:#x} {value & 0xFFFFFFFF:#x}",
            f"peek {at:#x} {r.choice((8, 64, 4096))}", f"vmmcall {number(r, 64)}", f"iommu {r.choice(('', 'on', 'on norms', 'off'))}",
            f"out {r.choice((0xCF8, 0xCFC, 0x20, 0x43, 0x3F9, 0xE0, 0x608, number(r, 16))):#x} {value & 0xFF:#x}",
            f"out 0xcf8 {0x80000000 | r.getrandbits(16) & ~3:#x} 4", f"out 0xcfc {value & 0xFFFFFFFF:#x} 4", f"in {number(r, 16):#x} 4",
            "nvme probe", "nvme", "reboot" if often(r, 0.2) else "time", "crash" if often(r, 0.2) else "lspci"))


def attack_program(seed: int) -> str:
    """The lab guest does wicked things, in up to eight programs, as long as it lives."""
    ran = 0

    def act(r: Random, machine: Machine) -> _Watch:
        nonlocal ran
        watch = _boot(r, machine)
        while machine.state == "waiting" and ran < 8:
            _tell(r, machine, watch.places)
            watch.check()
            ran += 1
        return watch

    return f"{_attacked(Random(seed), act)}, {ran} programs"


def _tell(r: Random, machine: Machine, places: Places) -> None:
    """One program: up to a dozen lines for the guest's monitor."""
    for _ in range(r.randint(2, 12)):
        assert machine.run is not None
        guest = r.choice((1, 1, 2)) if machine.run.config.TINYVISOR else 1
        with _mistakes():
            machine.send(next(_lines(r, machine.run, places)) + "\n", guest, limit=inf, watch=_for_good(machine))


TARGETS: dict[str, Callable[[int], str]] = {"attack-code": attack_code, "attack-program": attack_program, "attack-bytes": attack_bytes}
