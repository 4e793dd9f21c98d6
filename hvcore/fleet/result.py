"""What became of an item, as it goes from process to process and into the file of results: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FAILURES", "Done", "Failure", "Work"]

FAILURES = {
    "bad": "no machine can be made of it",
    "crash": "the examination itself failed: a mistake of hvlab's",
    "killed": "it ended the process that examined it, twice",
    "time": "it took longer than the limit",
    "memory": "it took more memory than the limit",
    "changed": "its content was another when it was examined",
}


@dataclass(frozen=True, slots=True)
class Work:
    """How items are examined: the function as `module:name`, seconds and bytes that one may take, after how many a process is renewed."""

    examine: str = "hvcore.doctor:examine"
    limit: float = 300.0
    memory: int = 4 << 30
    turns: int = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no record: one of `FAILURES`, and a sentence."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """A finished item: the doctor's record as plain values, or the failure; wall and CPU time in seconds."""

    path: str
    digest: str
    kind: str
    record: Mapping[str, Any] | None
    failure: Failure | None = None
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """By what it is known again: path and digest."""
        return self.path, self.digest

    def to_json(self) -> dict[str, Any]:
        """Plain values, all of it."""
        failure = {"kind": self.failure.kind, "text": self.failure.text} if self.failure else None
        return {"path": self.path, "digest": self.digest, "kind": self.kind, "record": self.record, "failure": failure,
                "seconds": round(self.seconds, 4), "cpu": round(self.cpu, 4)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Done":
        """From plain values.  Raises KeyError or TypeError for what are none."""
        failure = Failure(str(values["failure"]["kind"]), str(values["failure"]["text"])) if values["failure"] else None
        return cls(str(values["path"]), str(values["digest"]), str(values["kind"]), values["record"], failure, float(values["seconds"]),
                   float(values["cpu"]))
