"""Linux's own view of its remapping tables, as records, and where it differs from what lies in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from .inspect import format as show
from .inspect.domains import Context, Domain, context_problem, read_contexts
from .inspect.reader import MemoryReader
from .inspect.records import Column, Record, Records
from .inspect.runs import Runs
from .sources.debugfs import LoggedTables
from .spec.pci import format_bdf
from .spec.vtd import PAGE_SIZE_NAMES, aw_bits

__all__ = ["ContextDifference", "compare", "contexts_of", "domains_of"]

_Pair = tuple[int, int]
_HIGH_BITS = -1 << 52
_ONLY_CONTEXTS = "its tables were not printed: only its context entries are known"


def contexts_of(tables: LoggedTables) -> Records[Context]:
    """The context entries of one unit, as Linux printed them, each once."""
    entries = dict.fromkeys((c.source, *c.entry) for c in tables.contexts)
    note = "The unit is in scalable mode: its entries name PASID directories, which are not decoded." if tables.scalable else ""
    found = [_judged(Context(*entry), tables.scalable) for entry in entries]
    return Records(Context, found, title=f"Context entries of {tables.name}, as Linux has them", note=note)


def _judged(context: Context, scalable: bool) -> Context:
    problem = None if scalable else context_problem(context, None, _HIGH_BITS)
    return Context(context.source, context.low, context.high, problem[1]) if problem else context


def domains_of(tables: LoggedTables) -> Records[Domain]:
    """The domains that the printed context entries make, without what their tables grant; none of a unit in scalable mode."""
    groups: dict[tuple[int, int, int, str], list[Context]] = {}
    for c in () if tables.scalable else contexts_of(tables):
        groups.setdefault((c.did, c.levels, c.root, c.translation), []).append(c)
    return Records(Domain, [_domain(*key, group) for key, group in sorted(groups.items())],
                   title=f"Domains of {tables.name}, as Linux has them")


def _domain(did: int, levels: int, root: int, translation: str, group: list[Context]) -> Domain:
    nothing = Runs.of([])
    return Domain(None, did, levels, root, translation, tuple(c.source for c in group), 0, dict.fromkeys(PAGE_SIZE_NAMES.values(), 0),
                  nothing, nothing, quiet=tuple(c.source for c in group if c.fpd), problem=group[0].problem or _ONLY_CONTEXTS,
                  input_bits=aw_bits(levels - 2))


def _words(value: object) -> str:
    return " ".join(f"{word:#x}" for word in value) if isinstance(value, tuple) else "none"


@dataclass(frozen=True, slots=True, repr=False)
class ContextDifference(Record):
    """A requester whose context entry Linux printed otherwise than it lies in memory; each as (low, high), None: there is none."""

    source: int
    printed: _Pair | None
    memory: _Pair | None

    title = "Where Linux and memory differ"
    legend = "low and high word of the context entry"
    columns = (
        Column("source", lambda d: format_bdf(d.source)), Column("printed", lambda d: d.printed, _words),
        Column("memory", lambda d: d.memory, _words), Column("remark", lambda d: d.remark),
    )

    @property
    def remark(self) -> str:
        """The difference in words."""
        if self.printed is None:
            return "only in memory"
        if self.memory is None:
            return "only printed"
        low, high = (a ^ b for a, b in zip(self.printed, self.memory, strict=True))
        return f"differs in bits: low {show.address(low)}, high {show.address(high)}"


def compare(tables: LoggedTables, reader: MemoryReader) -> Records[ContextDifference]:
    """Every difference between the context entries that Linux printed for a unit and those in memory, by the same root table.

    None where both agree; the note says how many entries were compared, or why none could be.
    """
    title = f"{ContextDifference.title}: {tables.name}"
    if tables.root is None:
        return Records(ContextDifference, title=title, note=f"{tables.name} does not translate: there is nothing to compare.")
    if tables.scalable:
        return Records(ContextDifference, title=title, note=f"{tables.name} is in scalable mode: only legacy mode is compared.")
    found = read_contexts(reader, tables.root)
    printed = {c.source: c.entry for c in tables.contexts}
    memory = {c.source: (c.low, c.high) for c in found}
    both = len(printed.keys() & memory.keys())
    note = " ".join(filter(None, [f"{both} context entries of both were compared, under the root table at {tables.root:#x}.", found.note]))
    return Records(ContextDifference, list(_differences(printed, memory)), title=title, note=note)


def _differences(printed: dict[int, _Pair], memory: dict[int, _Pair]) -> Iterator[ContextDifference]:
    for source in sorted(printed.keys() | memory.keys()):
        one, other = printed.get(source), memory.get(source)
        if one != other:
            yield ContextDifference(source, one, other)
