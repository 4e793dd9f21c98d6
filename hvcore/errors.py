"""What is raised: the user's mistakes, and memory that cannot be read.  Faults of the machine are values, never exceptions."""

__all__ = ["BadConfig", "BadMachine", "BadRequest", "BadSnapshot", "BadSource", "BadTable", "HvlabError", "Unreadable", "quoted"]


class HvlabError(Exception):
    """A mistake of the user's, told in one sentence that says what, where and what to do."""


class BadMachine(HvlabError):
    """A machine description, kernel log or folder that cannot become a machine."""


class BadConfig(HvlabError):
    """An option that does not exist, or a value it does not take."""


class BadRequest(HvlabError):
    """DMA requests that no device can make, or a file of requests that cannot be read."""


class BadSnapshot(HvlabError):
    """A file that is no snapshot of a machine, or none that this version can restore."""


class BadSource(HvlabError):
    """A memory dump, or a running machine, that cannot be looked at."""


class Overdue(HvlabError):
    """A command in the guest that had not ended when its time was over; `output` is what it had printed until then."""

    def __init__(self, what: str, output: str):
        super().__init__(what)
        self.output = output


class BadTable(HvlabError):
    """A firmware table whose bytes do not fit its format (length, checksum, a structure of length 0)."""


class Unreadable(Exception):
    """Physical memory that is not there.

    `address` is host-physical; `length` in bytes.  Readers catch it and show "unreadable", which is not "not mapped".
    """

    def __init__(self, address: int, length: int = 1, why: str = "no memory there"):
        super().__init__(f"{length} bytes at physical {address:#x} cannot be read: {why}")
        self.address, self.length, self.why = address, length, why


_LONGEST = 80
"""Characters of a value that a sentence quotes."""


def quoted(value: object) -> str:
    """A value as a sentence quotes it: as Python writes it, on one line, and cut where that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to be written"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
