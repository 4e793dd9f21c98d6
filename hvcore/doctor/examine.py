"""Examines a machine: boots it under each policy and judges what it met."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..guestimage import choose_guest
from ..machine.description import MachineDescription
from ..session import Machine
from ..sources import load
from ..sources.assemble import LEFT_ON
from ..spec import vtd
from .evidence import Evidence, gather
from .hardware import hardware_problems
from .memory import memory_problems
from .records import Diagnosis, Problem, Verdict
from .wiring import wiring_problems

__all__ = ["POLICIES", "examine"]

POLICIES = ("off", "bitvisor", "article", "ram", "superpages", "mended")
"""The policies that are tried, in order."""


def examine(source: str | Path | MachineDescription | Machine, progress: Callable[[str], None] | None = None,
            guest: str | None = None) -> Diagnosis:
    """The diagnosis of a machine: whatever `Machine.load` takes, a description, or a machine (it is left booted under the last policy).

    `progress` is told each policy before it is tried.  `guest` is `lab` (also None), or a Linux by its name, whose verdicts take five
    seconds each.  Raises BadMachine, and BadConfig for what is no guest.
    """
    if isinstance(source, Machine):
        return _diagnose(source, progress, guest)
    with Machine(source if isinstance(source, MachineDescription) else load(source)) as machine:
        return _diagnose(machine, progress, guest)


def _diagnose(machine: Machine, progress: Callable[[str], None] | None, guest: str | None) -> Diagnosis:
    verdicts: list[Verdict] = []
    policies = {name: machine.policies[name] for name in POLICIES}
    if progress:
        progress(POLICIES[0])
    problems: list[Problem] = []
    for found in gather(machine, policies, choose_guest(guest)):
        if isinstance(found, Evidence):
            problems = list(_problems(found))
        else:
            verdicts.append(Verdict(found.policy, found.outcome, found.why))
            if progress and len(verdicts) < len(POLICIES):
                progress(POLICIES[len(verdicts)])
    return Diagnosis(machine.name, verdicts, problems, (*machine.assumptions, *_not_told(machine.description)), guest or "")


def _problems(found: Evidence) -> Iterator[Problem]:
    told = [*memory_problems(found), *hardware_problems(found), *wiring_problems(found)]
    yield from told
    yield from _within_reach(found)
    explained = {policy for problem in told for policy in problem.policies}
    for boot in found.boots.values():
        if boot.outcome != "up" and boot.policy not in explained:
            mend = next((a.change for a in boot.advice if a.options), "")
            blame = "bitvisor" if boot.outcome.startswith("vmm") else "machine"
            yield Problem("policy-fails", "fatal", blame, f"{boot.policy}: {boot.outcome}, {boot.why}", mend, (boot.policy,))


def _within_reach(found: Evidence) -> Iterator[Problem]:
    """What the proof under the last policy leaves open, besides what units cannot do at all."""
    boot = list(found.boots.values())[-1]
    told = any(not vtd.ECAP.get(u.ecap, "IR") for u in found.units)
    left = [c for c in boot.open_claims if not (told and "interrupt" in c.claim)]
    if left and found.units:
        said = "; ".join(f"{c.claim} Not so: {c.why}" for c in left[:3])
        yield Problem("core-within-reach", "serious", "machine", f"even under {boot.policy}: {said}")


def _not_told(description: MachineDescription) -> Iterator[str]:
    """What no source of this kind tells."""
    if description.units and not any(a.startswith(LEFT_ON) for a in description.assumptions):
        yield "Whether firmware leaves interrupt remapping or translation on at the core's start is not told: both were taken to be off."
