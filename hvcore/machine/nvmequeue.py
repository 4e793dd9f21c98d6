"""NVMe's queues as the controller sees them (NVM Express Base Specification 1.4, section 4.1)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from ..spec.nvme import Status

__all__ = ["IO_QUEUES", "MAX_ENTRIES", "VECTORS", "CompletionQueue", "Reply", "SubmissionQueue"]

IO_QUEUES, VECTORS, MAX_ENTRIES = 16, 17, 1024
"""I/O queue pairs that can exist, MSI-X vectors, entries of a queue."""


class Reply(NamedTuple):
    """What a command comes to: its status and dword 0 of the completion."""

    status: Status = Status.SUCCESS
    result: int = 0


@dataclass(slots=True)
class CompletionQueue:
    """Entries at IOVA `base`; `head` is the host's index, `tail` the controller's.

    `waiting` are completions for which there was no room yet: submission queue, command id, reply.
    """

    number: int
    base: int
    size: int
    vector: int
    interrupts: bool
    head: int = 0
    tail: int = 0
    phase: int = 1
    waiting: deque[tuple[SubmissionQueue, int, Reply]] = field(default_factory=deque)

    @property
    def full(self) -> bool:
        """Whether one more entry would overtake the host."""
        return (self.tail + 1) % self.size == self.head

    def advance(self) -> None:
        """The entry at the tail is written; the phase turns with every round."""
        self.tail = (self.tail + 1) % self.size
        self.phase ^= self.tail == 0


@dataclass(slots=True)
class SubmissionQueue:
    """Entries at IOVA `base`; `head` is the controller's index, `tail` the host's."""

    number: int
    base: int
    size: int
    completions: CompletionQueue
    head: int = 0
    tail: int = 0

    @property
    def ready(self) -> bool:
        """Whether a command waits that could also be completed."""
        return self.head != self.tail and not self.completions.full and not self.completions.waiting
