"""What a lesson needs besides hvlab: where it is missing, a sentence says what to do, and the lesson's cells rest instead of failing."""

from collections.abc import Callable
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import BadMachine
from hvcore.guestimage import refuse_linux
from hvcore.linux import cache

__all__ = ["find_linux", "rest", "wake"]

Transformer = Callable[[list[str]], list[str]]
_LARGEST = "q35-64g"
"""The machine with most RAM that a lesson boots a Linux on."""
_STARTS = (".linux(", "!", "%")
"""What a cell that asks again has in it; what a cell that runs a program begins with."""


def find_linux(release: str) -> str:
    """The guest's name of the newest kernel in the cache whose release begins with `release`, or, where there is none such, of the newest.

    Raises HvlabError, one sentence, where there is none, or where the emulator or this computer's memory cannot bear one.
    """
    with Machine.load(_LARGEST) as machine:
        refuse_linux(machine.pc, Config(), "")
    try:
        entry = cache.find(release)
    except BadMachine:
        entry = cache.find()
    return f"linux-{entry.release}"


def rest(sentence: str) -> bool:
    """From now on the notebook's cells say `sentence` instead of what they would do, until `wake`; False where there is no notebook.

    Cells that ask for a Linux again, or run a program, do so.
    """
    shell = _shell()
    if shell is None:
        return False
    wake()

    def resting(lines: list[str]) -> list[str]:
        text = "".join(lines).lstrip()
        return lines if _STARTS[0] in text or text.startswith(_STARTS[1:]) else [f"print({sentence!r})\n"]

    resting.rests = True  # type: ignore[attr-defined]
    shell.input_transformers_cleanup.append(resting)
    return True


def wake() -> None:
    """The cells do again what they say."""
    shell = _shell()
    if shell is not None:
        kept: list[Transformer] = [t for t in shell.input_transformers_cleanup if not hasattr(t, "rests")]
        shell.input_transformers_cleanup[:] = kept


def _shell() -> Any:
    """The IPython that runs this; None where none does."""
    from IPython.core.getipython import get_ipython
    return get_ipython()
