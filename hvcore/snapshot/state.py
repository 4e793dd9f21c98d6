"""What of a machine is in a snapshot besides its memory, and how a machine becomes that again.

Everything hangs on `Booting`: the hardware (`Pc`) with its devices, units and processors, the core, its policy, both guests where there are
two, and what the current run is.  What belongs to this process (the emulator, the engine's thread, the memory) is not stored but made anew.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..booting import Booting
from ..errors import HvlabError
from ..machine.cpu import Cpu
from ..machine.memory import Memory
from ..machine.nvme import Nvme
from ..machine.pc import Pc
from ..machine.vmexit import PublicExit
from ..phases import doing
from .decoding import decode
from .encoding import encode
from .graph import Graph, Special
from .kinds import kinds_of, must_agree, must_be_alike

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RUNNING", "State", "must_be_storable", "of", "prepare"]

RUNNING = "guest runs"


def must_be_storable(booting: Booting) -> None:
    """Raises HvlabError where a machine cannot be put into a snapshot as it stands."""
    if booting.run is None or not booting.run.live:
        raise HvlabError("there is nothing to save: boot the machine first")
    if booting.phase not in (None, RUNNING):
        raise HvlabError(f"the machine is not yet where it could be saved ({doing(booting.phase)}): resume() it until its guest runs")


def of(booting: Booting, share: bool = False) -> Graph:
    """All of a machine that stands still, but for its memory and the guest that it was booted with; `share` as `encode` has it."""
    run = booting.run
    assert run is not None
    root = {"pc": booting.pc, "booting": booting.save(), "running": booting.phase == RUNNING, "config": run.config, "number": run.number,
            "timings": dict(run.timings)}
    return encode(root, {"memory": booting.pc.memory, "booting": booting}, _special(booting.pc.memory), share)


def _special(memory: Memory) -> dict[type, Special]:
    def save_cpu(cpu: Cpu) -> dict[str, Any]:
        return cpu.save() | {"bus": cpu.bus, "clock": cpu.clock, "on_door": cpu.on_door, "on_io": cpu.on_io,
                             "public": isinstance(cpu.exit, PublicExit)}

    def fill_cpu(cpu: Cpu, values: dict[str, Any]) -> None:
        Cpu.__init__(cpu, memory, values["bus"], values["clock"], values["public"])
        cpu.on_door, cpu.on_io = values["on_door"], values["on_io"]
        cpu.load(values)

    return {Cpu: Special(save_cpu, fill_cpu)}


@dataclass(frozen=True)
class State:
    """A state that a machine can take: `take` makes it the machine's, whose memory already is as it was."""

    values: dict[str, Any]
    _fill: "Callable[[], None]"

    def take(self, booting: Booting, number: int | None = None, same_run: bool = False) -> None:
        """Everything of `booting` becomes what was stored; its run is a new one, by `number` if that is not None, or the `same_run`.

        The machine must be at rest, with its processors closed.  Raises BadSnapshot.
        """
        pc = booting.pc
        machine, memory, on_line = pc.machine, pc.memory, pc.on_line
        vars(pc).clear()
        pc.memory, pc.on_line = memory, on_line
        memory.listeners.clear()
        self._fill()
        pc.machine = machine
        _wire(pc)
        v = self.values
        booting.take(v["booting"])
        if same_run and booting.run is not None:
            booting.run.put_back(booting.core)
        else:
            booting.boots = number or v["number"]
            run = booting.run = booting.new_run(v["config"], booting.boots)
            run.timings, run.core = v["timings"], booting.core
        if booting.core is not None:
            booting.core.gate, booting.core.progress = booting.engine.gate, _silent
        if v["running"]:
            booting.go_on(stopped=True)


def _wire(pc: Pc) -> None:
    """What belongs to this process: disks that are files, clocks of this computer, hooks of the emulator."""
    pc.memory.recorder = pc.writes.written
    for function in pc.root.functions.values():
        if isinstance(function, Nvme):
            function.disk.lay_over(pc.machine.disk)
    if pc.schedule is not None:
        pc.schedule.forget_wall_time()
    for cpu in (pc.cpu, *([pc.partition.cpu] if pc.partition is not None else [])):
        pc.writes.rearm(cpu.watch_stores)


def prepare(graph: Graph, booting: Booting, check: bool = True) -> State:
    """The state in a graph, for `booting`, which does not change yet; `check` where the graph comes from a file.  Raises BadSnapshot."""
    outside = {"memory": booting.pc.memory, "booting": booting}
    values, fill = decode(graph, outside, _special(booting.pc.memory), {Pc: booting.pc})
    if check:
        must_be_alike(graph)
        must_agree(kinds_of(graph), kinds_of(encode(booting.pc, outside, _special(booting.pc.memory), share=True)))
    return State(values, fill)


def _silent(_phase: str) -> None:
    """Where nobody waits for the phases of a boot."""
