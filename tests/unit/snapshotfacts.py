"""Everything about a machine that must be the same where it went on and where it was restored and went on; also run as a program."""

import hashlib
import json
import sys
from typing import Any

import numpy as np

from hvcore import Machine
from hvcore.errors import HvlabError
from hvcore.machine.memory import PAGE
from hvcore.snapshot.pages import touched


def memory_digest(machine: Machine) -> str:
    """Of every page that is not all zero: where it is and what it holds."""
    memory = machine.pc.memory
    pages, digest = touched(memory), hashlib.sha256()
    rows = memory.words.view(np.uint8).reshape(-1, PAGE)
    digest.update(pages.tobytes())
    for at in range(0, len(pages), 1024):
        digest.update(rows[pages[at:at + 1024]])
    return digest.hexdigest()


def facts(machine: Machine) -> dict[str, Any]:
    """As plain values.  Wall time is not among them."""
    pc, run = machine.pc, machine.run
    assert run is not None
    return {
        "memory": memory_digest(machine), "time": pc.clock.now, "state": machine.state, "outcome": run.outcome, "why": run.why,
        "config": run.config.to_dict(), "console": str(run.console), "faults": str(run.faults),
        "exits": machine.exits.count if machine.exits else None,
        "units": [unit.file.bytes.hex() for unit in pc.units], "caches": repr([unit.cached for unit in pc.units]),
        "notes": repr([list(unit.notes) for unit in pc.units]), "history": repr(list(pc.journal.happenings)),
        "dma": _digest(repr(list(pc.fabric.trace))), "messages": repr(list(pc.fabric.interrupts)), "registers": _registers(machine),
        "devices": [function.config.hex() for function in pc.root.functions.values()], "writers": sorted(pc.writes.pages),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _registers(machine: Machine) -> dict[str, int] | str:
    try:
        return dict(machine.registers.values)
    except HvlabError as e:
        return str(e)


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of what is not the same."""
    a, b = json.loads(json.dumps(a)), json.loads(json.dumps(b))
    return [name for name in a if a[name] != b[name]]


def type_to(machine: Machine, commands: list[str]) -> list[str]:
    """What the guest answers to each; where it is gone, the sentence that says so."""
    answers = []
    for line in commands:
        try:
            answers.append(machine.send(line + "\n"))
        except HvlabError as e:
            answers.append(str(e))
    return answers


def go_on(path: str, commands: list[str]) -> dict[str, Any]:
    """Restores a machine, lets it go on where it was stopped, types to it."""
    with Machine.restore(path) as machine:
        before = facts(machine)
        if machine.state == "stopped":
            machine.resume()
        return {"before": before, "answers": type_to(machine, commands), "after": facts(machine)}


if __name__ == "__main__":
    print(json.dumps([go_on(path, commands) for path, commands in json.loads(sys.stdin.read())]))
