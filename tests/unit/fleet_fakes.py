"""What the fleet's tests examine instead of machines: small files whose words say what is to happen.  Its processes import this."""

import os
import re
import signal
import sys
import time
from pathlib import Path

from hvcore.errors import BadMachine


def examine(path):
    """Does what the last line of a file says; the calls are counted in the file that FLEET_CALLS names."""
    if calls := os.environ.get("FLEET_CALLS"):
        with open(calls, "a", errors="surrogateescape") as file:
            file.write(f"{os.getpid()} {path.name}\n")
    word, _, rest = path.read_text().splitlines()[-1].partition(" ")
    return ACTS[word](path, rest)


def _record(path, rest=""):
    """A record that depends on the item alone."""
    number = sum(os.fsencode(path.name))
    verdicts = [{"policy": policy, "outcome": "up" if (number + i) % 3 else "disk-lost", "why": f"because {rest}"}
                for i, policy in enumerate(("off", "mended"))]
    problems = [{"id": f"problem-{i}", "severity": "fatal" if i else "note", "blame": "firmware", "evidence": rest, "mend": ""}
                for i in range(number % 3)]
    return {"machine": path.stem, "verdicts": verdicts, "problems": problems, "unknown": ["the weather"]}


def _sleep(path, rest):
    time.sleep(float(rest))
    return _record(path)


def _noise(path, rest):
    print('{"record": null}' * 1000)
    os.write(1, b"\n\n{}\n")
    sys.stdin.read()
    return _record(path, rest)


def _bad(path, rest):
    raise BadMachine(f"{path}: {rest}")


def _raise(path, rest):
    raise ValueError(rest)


def _exit(path, rest):
    sys.exit(3)


def _kill(path, rest):
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_once(path, rest):
    """Dies at its first try; the second finds the mark."""
    mark = Path(os.environ["FLEET_CALLS"]).with_name(f"{path.name}.mark")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _record(path)


def _hang(path, rest):
    """In C code that holds the interpreter's lock and never comes back."""
    re.match(r"(a+)+b", "a" * 60)


def _grow(path, rest):
    held = []
    while True:
        held.append(b"x" * (16 << 20))
        time.sleep(0.01)


def _rewrite(path, rest):
    path.write_text("Linux version 2\nok changed\n")
    return _record(path)


def _endless(path, rest):
    return {"machine": "x" * (9 << 20), "verdicts": [], "problems": [], "unknown": []}


ACTS = {"ok": _record, "sleep": _sleep, "noise": _noise, "bad": _bad, "raise": _raise, "exit": _exit, "kill": _kill,
        "kill-once": _kill_once, "hang": _hang, "grow": _grow, "rewrite": _rewrite, "endless": _endless,
        "nothing": lambda path, rest: object()}
