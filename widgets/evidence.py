"""What came of an attack as views have it: verdict, why, proof, what changed, what the guest said, and what to choose to look closer."""

import html
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hvcore.attack import ATTACKS, Attack
from hvcore.attack.result import VERDICTS, Blocked
from hvcore.inspect.format import address as hex_address
from hvcore.inspect.matrix import MARKS
from hvcore.spec.interrupts import INTERRUPT_REASONS
from hvcore.spec.pci import format_bdf, parse_bdf
from hvcore.vmm.config import POLICIES, Config

from .drawing import Fill
from .table import wire_choice

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["VERDICT_FILLS", "attack_words", "brief", "choice_of", "evidence_html", "policy_words", "wire_attack", "without_unit"]

VERDICT_FILLS = {"blocked": Fill("blocked", "#56B4E9"), "succeeded": Fill("succeeded", "#D55E00", "x"),
                 "crashed": Fill("crashed", "#E69F00", "/"), "boot failed": Fill("boot failed", "#999999", "-"),
                 "not tried": Fill("not tried", "#DDDDDD", ".")}
"""Of a picture; each has a sign and its word, too."""
_STOLEN = re.compile(r"attack: \d+ bytes at (0x[0-9a-f]+) by")
_NAMES = {"key": "the core's key, as the attacker has it", "kept_at": "where it keeps it", "opens": "what it opens",
          "mark": "what its code wrote", "host_cr3": "the core's CR3, which only host mode can tell",
          "vm_hsave_pa": "the core's VM_HSAVE_PA, likewise",
          "times_run": "times it ran", "address": "the message's address", "data": "its data", "by": "its sender",
          "delivery": "what it asks for", "destination": "for the processor"}
"""What the parts of a proof are."""


def attack_words() -> list[dict[str, str]]:
    """The attacks, in the matrix's order: what each wants, its way, what stands against it, and whether it begins before the core."""
    return [{"name": s.name, "goal": s.goal, "way": s.way, "against": s.against, "early": "yes" if s.early else ""}
            for s in ATTACKS.values()]


def policy_words(options: Mapping[str, Any]) -> str:
    """A policy's options in words."""
    if not options:
        return "the profile bitvisor as it is: VTD_TRANS=y"
    return ", ".join(f"{name}={'y' if value is True else 'n' if value is False else value}" for name, value in options.items())


def brief(config: Config) -> str:
    """A core's options in few words: the policy's name, else what differs from the defaults."""
    name = next((name for name, options in POLICIES.items() if Config(**options) == config), None)
    if name is not None:
        return f"policy {name}"
    usual = Config(PROFILE=config.PROFILE).to_dict()
    changed = {key: ",".join(v) or "none" if isinstance(v, list) else v for key, v in config.to_dict().items() if v != usual[key]}
    return policy_words({"PROFILE": config.PROFILE} | changed)


def choice_of(result: Attack) -> tuple[dict[str, Any] | None, str]:
    """What choosing an attack's result chooses, as arguments of `Selection.choose`, and in words; None where it says nothing.

    The refused request, else what was changed in the core's memory, else the forged message, else where the stolen bytes lie.
    """
    device = {"device": parse_bdf(result.device)[1]} if result.device else {}
    fault, proof = result.fault, result.proof
    if fault is not None and fault.reason in INTERRUPT_REASONS:
        return {"device": fault.source}, f"device {format_bdf(fault.source)}"
    if fault is not None:
        return ({"address": fault.address, "space": "iova", "device": fault.source},
                f"{format_bdf(fault.source)} at IOVA {fault.address:#x}, which was refused")
    if result.changed:
        first = result.changed[0]
        return {"address": first.start} | device, f"{first.start:#x}, which was changed"
    if "address" in proof:
        return {"address": proof["address"], "space": "iova"} | device, f"{result.device}'s message to {proof['address']:#x}"
    stolen = [found for line in result.console if (found := _STOLEN.match(line))] if proof else []
    if stolen:
        return {"address": int(stolen[-1][1], 16)} | device, f"{stolen[-1][1]}, what was stolen"
    return None, ""


def wire_attack(result: Attack, without: str = "") -> dict[str, Any]:
    """A result as the browser has it: words, and addresses in hex; `without` is what the refused request would have done."""
    choice, chooses = choice_of(result)
    return {"attack": result.attack, "verdict": result.verdict, "mark": MARKS[result.verdict], "meaning": VERDICTS[result.verdict],
            "why": result.why, "machine": result.machine, "device": result.device,
            "fault": str(result.fault) if result.fault else "", "without": without,
            "proof": [[_NAMES.get(name, name), _shown(name, value)] for name, value in result.proof.items()],
            "changed": [str(c) for c in result.changed], "console": list(result.console), "choice": wire_choice(choice), "chooses": chooses}


def without_unit(run: "Run", fault: Blocked) -> str:
    """What a refused request would have done had there been no unit, as memory is now; "" where it is not kept any more."""
    if not run.live:
        return ""
    found = next((d for d in reversed(run.dma) if d.result == "blocked" and d.source == fault.source and d.access == fault.access
                  and (d.iova + d.carried) & -4096 == fault.address & -4096), None)
    return run.would_have(found).sentence.partition(".  ")[2] if found else ""


def _shown(name: str, value: Any) -> str:
    return hex_address(value) if isinstance(value, int) and name not in ("times_run", "destination") else str(value)


def evidence_html(cell: Mapping[str, Any]) -> str:
    """The evidence of one result, without scripts."""
    rows = [("why", [cell["why"]]), ("refused", [cell["fault"], cell["without"]]),
            ("proof", [f"{name}: {value}" for name, value in cell["proof"]]),
            ("changed", cell["changed"]), ("the guest said", cell["console"])]
    return f"<dl>{''.join(_entry(name, lines) for name, lines in rows if any(lines))}</dl>"


def _entry(name: str, lines: Iterable[str]) -> str:
    return f"<dt>{name}</dt><dd>{'<br>'.join(html.escape(line) for line in lines)}</dd>"
