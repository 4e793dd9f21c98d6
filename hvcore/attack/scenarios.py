"""The attacks by name: what the attacker wants, how it goes about it, and how one sees afterwards whether it has it."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..machine.nvme import Nvme
from ..spec.interrupts import DeliveryMode
from ..spec.pci import format_bdf
from ..vmm.storage.crypt import decrypt, first_encrypted
from .scene import Scene, loot_addresses, mark_address

__all__ = ["ATTACKS", "Scenario"]

Proof = Mapping[str, Any]
_BLOCK = b"HVLABBLK"
"""How a block of the lab's disk begins."""
_SIGNATURE = int.from_bytes(b"HVLABOWN", "little")
_MARK = struct.Struct("<4Q")


def _key_stolen(scene: Scene, console: str) -> Proof:
    """The key, where the bytes in the guest's memory are the core's."""
    at = next((a for a in loot_addresses(console) if scene.read(a, len(scene.key)) == scene.key), None)
    return {} if at is None else {"key": scene.read(at, len(scene.key)).hex(), "kept_at": at, **_disk_opened(scene, scene.key)}


def _disk_opened(scene: Scene, key: bytes) -> Proof:
    """What the key is good for: the first drive's last block, where it lies encrypted on the disk, read with the key that was stolen."""
    drive = next((d for d in scene.pc.root.find("nvme") if isinstance(d, Nvme)), None)
    if drive is None or drive.disk.read(drive.disk.blocks - 1, 1).startswith(_BLOCK):
        return {}
    last = drive.disk.blocks - 1
    plain = decrypt(key, last, drive.disk.read(last, 1), first_encrypted(drive.disk.blocks))
    return {"opens": f"block {last} of the disk, which is ciphertext there"} if plain.startswith(_BLOCK) else {}


def _mark_left(scene: Scene, console: str) -> Proof:
    """What the attacker's code wrote from host mode: nobody else can know the core's CR3 and VM_HSAVE_PA."""
    at = mark_address(console)
    signature, cr3, hsave, count = _MARK.unpack(scene.read(at, _MARK.size)) if at is not None else (0, 0, 0, 0)
    if signature != _SIGNATURE or cr3 != scene.host_root or not count:
        return {}
    return {"mark": "HVLABOWN", "kept_at": at, "host_cr3": cr3, "vm_hsave_pa": hsave, "times_run": count}


def _message_arrived(scene: Scene, _console: str) -> Proof:
    """The first message that reached the processors though no table entry allowed it, or as one that no guest may send."""
    forged = next((i for i in scene.interrupts() if i.index is None or i.delivery == DeliveryMode.INIT), None)
    if forged is None:
        return {}
    kind = DeliveryMode(forged.delivery).name if forged.delivery in set(DeliveryMode) else f"reserved {forged.delivery}"
    return {"address": forged.message[0], "data": forged.message[1], "by": format_bdf(forged.source), "delivery": kind,
            "destination": forged.destination}


@dataclass(frozen=True)
class Scenario:
    """An attack: what is wanted (`goal`), the way, what stands against it, and `judge`, which gives the proof where it succeeded."""

    name: str
    goal: str
    way: str
    against: str
    judge: Callable[[Scene, str], Proof]
    early: bool = False


ATTACKS: dict[str, Scenario] = {s.name: s for s in (
    Scenario("steal-key", "the core's storage key", "a device reads the core's memory into the guest's",
             "domain 0 without the core's memory (VTD_TRANS)", _key_stolen),
    Scenario("overwrite-stub", "the guest's code in host mode",
             "a device writes code into the core's text page and bends a branch to it; the next exit runs it",
             "domain 0 without the core's memory (VTD_TRANS)", _mark_left),
    Scenario("open-nested-page", "the core's memory for the guest's CPU",
             "a device reads the nested page tables and writes an entry that maps the core; the CPU reads the key",
             "domain 0 without the core's memory (VTD_TRANS)", _key_stolen),
    Scenario("rewrite-iommu-entry", "a device that may reach the core for good",
             "a device follows RTADDR to its own second-level entry for the key's page and writes it anew, then reads the key",
             "domain 0 without the core's memory (VTD_TRANS), in which its tables lie", _key_stolen),
    Scenario("redirect-vmcb", "nested tables of the guest's own making",
             "a device writes N_CR3 in the VMCB; from the next VMRUN on the CPU walks the guest's tables and reads the key",
             "domain 0 without the core's memory (VTD_TRANS)", _key_stolen),
    Scenario("clear-te", "no translation at all", "the CPU stores 0 to the units' GCMD and PMEN; then a device reads the key",
             "registers that the guest cannot reach (HIDE_VTD_REGS)", _key_stolen),
    Scenario("forge-interrupt", "an interrupt that nobody allowed",
             "a device writes 4 bytes to 0xfee00000: an INIT message, which would reset the processor",
             "interrupt remapping (INTERRUPT_REMAPPING)", _message_arrived),
    Scenario("before-te", "the key, from a device at work before the core",
             "a card that firmware or a guest before left running reads where the core's key will lie until translation begins",
             "the core's memory closed before anything lies in it (EARLY_PROTECTION)", _key_stolen, early=True),
)}
"""Every attack, in the order of the matrix.  Each is carried out by the guest's command `attack NAME`."""
