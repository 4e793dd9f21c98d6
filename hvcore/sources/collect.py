"""`hvlab collect`: what is needed to rebuild this machine elsewhere, in one archive.

The work is done by `collect.sh`, which can be read in a minute and run without Python; both write the same archive.
"""

import shutil
import subprocess
from pathlib import Path

from ..errors import HvlabError

__all__ = ["DEFAULT", "SCRIPT", "collect"]

SCRIPT = Path(__file__).with_name("collect.sh")
"""The shell script, for machines that have no Python."""
DEFAULT = "hvlab-machine.tar.gz"
_LIMIT = 300
"""Seconds after which it is given up; it takes a few."""


def collect(output: Path = Path(DEFAULT), root: Path | None = None) -> str:
    """Writes the archive `output` (.tar.gz) of this Linux machine, or of the copy of /sys and of the log under `root`.

    Returns what was taken, what was left out and what could not be read, a line each.  Raises HvlabError.
    """
    shell = shutil.which("sh")
    if shell is None:
        raise HvlabError("there is no sh: collect on the Linux machine itself, or give hvlab its kernel log (`dmesg`)")
    if root is not None and not root.is_dir():
        raise HvlabError(f"{root}: no folder: --root wants one with a copy of /sys and the kernel's log as `dmesg`")
    words = [shell, str(SCRIPT), "-o", str(output), *(["--root", str(root.absolute())] if root is not None else [])]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_LIMIT, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        raise HvlabError(f"collecting did not work: {e}") from e
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise HvlabError(f"collecting did not work: {said[-1].strip() if said else f'exit status {done.returncode}'}")
    return done.stdout.strip()
