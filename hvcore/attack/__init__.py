"""Attacks on the core: a wicked driver in the guest programs a device, and what came of it is read off the machine afterwards."""

from .result import Attack, Blocked, Changed
from .run import run_attack
from .scenarios import ATTACKS, Scenario

__all__ = ["ATTACKS", "Attack", "Blocked", "Changed", "Scenario", "run_attack"]
