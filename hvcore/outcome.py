"""How a run ended, read off the machine: its processor, its memory, its consoles.  Nothing is concluded from the configuration."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .machine.cpu import Stop, StopKind

__all__ = ["OUTCOMES", "Ending", "began_init", "death_words", "is_ready", "of_console", "of_foreign_text", "of_guests", "of_linux",
           "of_stop", "panic_in", "said_last"]

OUTCOMES = {
    "up": "the guest runs and its disk answers",
    "disk-lost": "the guest runs, but its disk did not answer",
    "off": "the guest switched the machine off",
    "guest-crash": "the guest died",
    "vmm-panic": "the core gave up",
    "vmm-taken-over": "code that is not the core's runs in its place",
}

_FROM_BEST_TO_WORST = ("up", "running", *[name for name in OUTCOMES if name != "up"])
_READY = re.compile(r"^lab: ready", re.MULTILINE)
_LOST = re.compile(r"nvme nvme0: (Removing after probe failure.*|Device not ready; aborting.*|.*disabled?, .*)")
_TIMEOUT = re.compile(r"nvme nvme0: (I/O \d+ QID \d+ timeout.*)")

_STAMP = r"^(?:lab# )?\[ *(\d+\.\d+)\] "
"""How a line of a kernel begins, behind a prompt perhaps; the group is seconds since it began."""
_FAILED = re.compile(_STAMP + r"(nvme [\w:.]+: (?:I/O .* timeout, (?:disable|reset) controller|Identify Controller failed.*"
                     r"|Device not ready.*|Removing after probe failure.*|Disabling device after reset failure.*"
                     r"|probe with driver nvme failed.*|controller is down.*))", re.MULTILINE)
_WORKS = re.compile(_STAMP + r"(nvme nvme\d+: \d+/\d+/\d+ default/read/poll queues)", re.MULTILINE)
_READ = re.compile(r"^lab: nvme\S+: md5 of ", re.MULTILINE)
_UNREAD = re.compile(r"^lab: (?:nvme.* cannot be read|an NVMe controller has not settled.*)", re.MULTILINE)
_PANIC = re.compile(_STAMP + r"(Kernel panic - not syncing: .*)", re.MULTILINE)
_BEFORE_PANIC = re.compile(_STAMP + r"((?:BUG|Oops|Initramfs unpacking failed): .*)", re.MULTILINE)
_INIT = re.compile(_STAMP + r"Run (\S+) as init process", re.MULTILINE)
_CONTROLLER = re.compile(_STAMP + r"pci [\w:.]+: \[\w+:\w+\] type 00 class 0x010802", re.MULTILINE)
"""A kernel that finds an NVMe controller on PCI; its driver has not seen it yet."""

@dataclass(frozen=True)
class Ending:
    """An outcome by its name, and why in a sentence."""

    outcome: str
    why: str


def is_ready(text: str) -> bool:
    """Whether the guest says in `text` that its monitor is ready."""
    return bool(_READY.search(text))


def began_init(text: str) -> str | None:
    """The path of the first process that a Linux says it began; None where it has not come so far, or does not say."""
    found = _INIT.search(text)
    return found[2] if found else None


def of_stop(stop: Stop) -> Ending:
    """A processor that stopped by itself."""
    if stop.kind is StopKind.CRASH and not stop.guest and "in the host" in stop.detail:
        return Ending("vmm-panic", f"the core's own code crashed: {stop.detail}")
    if stop.kind is StopKind.OFF:
        return Ending("off", stop.detail)
    if stop.kind is StopKind.GUEST_HALT:
        return Ending("guest-crash", f"the guest's processor halted at RIP {stop.rip:#x} with no exit to the core")
    return Ending("guest-crash", stop.detail or stop.kind.value)


def of_foreign_text(stop: Stop | None) -> Ending:
    """The core's text page is not what the core put there: its processor still runs what lies there now, or has crashed on it."""
    if stop is not None and stop.kind is StopKind.CRASH:
        return Ending("vmm-panic", f"the core's text page was overwritten, and its processor crashed on that: {stop.detail}")
    return Ending("vmm-taken-over", "the code in the core's text page is not the core's")


def of_guests(endings: Sequence[tuple[int, Ending]]) -> Ending:
    """Several guests, each by its number: the outcome of the one that fared worst, and how it went for each."""
    worst = max((e.outcome for _, e in endings), key=_FROM_BEST_TO_WORST.index)
    return Ending(worst, "; ".join(f"guest {number}: {e.why}" for number, e in endings))


def of_console(text: str, first_fault: str | None) -> Ending:
    """A guest that waits for input: what it printed tells whether it is up and whether it has its disk.

    `first_fault` describes the first fault a unit recorded, if any did.
    """
    if not is_ready(text):
        return Ending("guest-crash", "the guest waits for an interrupt that will not come, before its monitor was ready")
    lost = _LOST.search(text)
    if lost:
        timeout = _TIMEOUT.search(text)
        said = f"the guest says: nvme nvme0: {(timeout or lost)[1].strip()}"
        return Ending("disk-lost", f"{first_fault}; {said}" if first_fault else said)
    if "nvme nvme0:" not in text:
        return Ending("up", "the guest's monitor is ready; it found no NVMe controller")
    return Ending("up", "the guest's monitor is ready and its disk was read and checked")


def of_linux(text: str, first_fault: str | None) -> Ending:
    """A Linux at rest: what its kernel and its init printed, in `text` with lines that end in a line feed.

    The disk is lost where the kernel's newest word on it is a failure, by the times in front of its lines: a driver may be bound again,
    and `dmesg` repeats what was.  `first_fault` describes the first fault a unit recorded, if any did.  A Linux whose first
    process is not hvlab's tells nothing of its shell, and of its disk what its kernel says.
    """
    ready = is_ready(text)
    if not ready and began_init(text) is None:
        return Ending("guest-crash", f"there is no shell{said_last(text)}")
    failures = [(float(m[1]), m[2].strip()) for m in _FAILED.finditer(text)]
    works = {float(m[1]) for m in _WORKS.finditer(text)}
    since = max(works, default=-1.0)
    lost = [words for time, words in sorted(failures, key=lambda f: f[0]) if time > since]
    if not lost and len(works) < 2:
        lost = [m[0].strip() for m in _UNREAD.finditer(text)]
    if lost:
        said = f"the guest says: {'; '.join(dict.fromkeys(lost))}"
        return Ending("disk-lost", f"{first_fault}; {said}" if first_fault else said)
    runs = "the guest's shell is ready" if ready else f"the guest runs {began_init(text)}, an init that is not hvlab's"
    if failures and works:
        return Ending("up", f"{runs}; its disk was lost and has come back")
    if _READ.search(text):
        return Ending("up", f"{runs} and its disk was read")
    if works and not ready:
        return Ending("up", f"{runs}; its driver has its NVMe controller at work")
    if "nvme nvme" in text:
        return Ending("disk-lost", "the kernel found an NVMe controller, and no disk that could be read came of it")
    if _CONTROLLER.search(text):
        return Ending("up", f"{runs}; its kernel has no driver for the NVMe controller")
    return Ending("up", f"{runs}; its kernel found no NVMe controller")


def panic_in(line: str) -> bool:
    """Whether a line on the console is a Linux's panic."""
    return bool(_PANIC.search(line))


def death_words(text: str) -> str:
    """What a Linux that has panicked said of it: what went before, if it was a bug, and the panic's own words."""
    panic = _PANIC.search(text)
    before = _BEFORE_PANIC.search(text, 0, panic.start() if panic else len(text))
    return "; ".join(m[2].strip() for m in (before, panic) if m)


def said_last(text: str) -> str:
    """The last line of a console, as the end of a sentence; nothing where there is none."""
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return f"; its console ends with: {last}" if last else ", and its console is empty"
