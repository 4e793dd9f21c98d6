"""Where a mistake is: the file before the sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BadMachine, BadTable

__all__ = ["located"]


@contextmanager
def located(where: object) -> Iterator[None]:
    """Puts `where` before what is said of a bad machine or table inside, as a `BadMachine`."""
    try:
        yield
    except (BadMachine, BadTable) as e:
        raise BadMachine(f"{where}: {e}") from e
