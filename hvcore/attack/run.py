"""Carries an attack out on a machine and reads the verdict off it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import BadConfig, HvlabError, quoted
from ..outcome import is_ready
from ..spec.pci import format_bdf
from ..vmm.config import Config
from .early import start_card
from .result import Attack, Blocked
from .scenarios import ATTACKS, Scenario
from .scene import Scene

if TYPE_CHECKING:
    from ..session import Machine

__all__ = ["DEVICES", "run_attack"]

DEVICES = ("edu", "nvme")
"""Devices that the guest can turn against the core."""


def run_attack(machine: "Machine", name: str, config: Config | None = None, device: str | None = None,
               progress: Callable[[str], None] | None = None) -> Attack:
    """Boots with `config` and attacks; without one, attacks the guest that waits, where there is one, else boots as `boot()` does.

    `device` is one of `DEVICES`, None for the first there is.  An early attack always boots.  Raises HvlabError for an attack or a device
    that does not exist.
    """
    scenario = ATTACKS.get(name) if isinstance(name, str) else None
    if scenario is None:
        raise HvlabError(f"there is no attack {quoted(name)}: the attacks are {', '.join(ATTACKS)}")
    if device not in (None, *DEVICES):
        raise HvlabError(f"no attack uses a device {quoted(device)}: give {' or '.join(DEVICES)}")
    if config is not None and not isinstance(config, Config):
        raise BadConfig(f"attack takes a Config, as in attack({name!r}, Config(VTD_TRANS=False)), not {quoted(config)}")
    if machine.linux and config is None:
        raise HvlabError(f"the attacks are the lab guest's, and a Linux has been booted: give a Config, as in attack({name!r}, Config())")
    if config is not None or scenario.early or machine.state != "waiting":
        config = config or (machine.run.config if machine.run else Config())
        size = config.VMM_SIZE_MIB << 20
        machine.boot(config, progress, early=(lambda pc: start_card(pc, size, device)) if scenario.early else None)
    if machine.state != "waiting" or machine.run is None or not is_ready(machine.run.console.guest):
        return _no_guest(machine, scenario)
    return _attack(machine, scenario, device)


def _no_guest(machine: "Machine", scenario: Scenario) -> Attack:
    run = machine.run
    assert run is not None
    return Attack(scenario.name, machine.name, run.config.to_dict(), "", "boot failed", f"{run.outcome}: {run.why}")


def _attack(machine: "Machine", scenario: Scenario, device: str | None) -> Attack:
    """The guest tries; what it came to is read off the machine."""
    run = machine.run
    assert run is not None and run.vmm.base is not None and run.core is not None and run.core.heap is not None
    scene = Scene(machine.pc, run.vmm.base, run.core.heap.top, run.core.storage.working if run.core.storage else (0, 0))
    console = run.guest.command(f"attack {scenario.name}{f' {device}' if device else ''}")
    with machine.still():
        return _judged(machine, scenario, scene, console)


def _judged(machine: "Machine", scenario: Scenario, scene: Scene, console: str) -> Attack:
    run = machine.run
    assert run is not None
    requests = scene.requests(since_power_on=scenario.early)
    fault = next((Blocked.of(r.fault) for r in requests if r.fault), None)
    proof = scenario.judge(scene, console)
    verdict, why = _verdict(machine, scenario, console, proof, fault)
    source = next((format_bdf(r.request.source) for r in reversed(requests)), "")
    lines = tuple(line for line in console.splitlines() if line.strip())
    return Attack(scenario.name, machine.name, run.config.to_dict(), source, verdict, why, fault if verdict == "blocked" else None,
                  proof, scene.changed(), lines)


def _verdict(machine: "Machine", scenario: Scenario, console: str, proof: object, fault: Blocked | None) -> tuple[str, str]:
    ended = machine.ended
    if proof:
        more = f"; {ended.outcome}: {ended.why}" if ended else ""
        return "succeeded", f"the attacker has {scenario.goal}{more}"
    if ended is not None:
        return "crashed", f"{ended.outcome}: {ended.why}"
    if f"attack: {scenario.name} is over" not in console:
        said = next((line for line in reversed(console.splitlines()) if line.startswith("attack:")), "the guest did not answer")
        return "not tried", said.removeprefix("attack: ")
    return "blocked", f"{fault} was refused" if fault else "the attacker got nothing, and no unit had to refuse anything"
