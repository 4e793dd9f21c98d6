"""Everything known of the address that is chosen: what lies there, who may reach it, what the maps say."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import traitlets

from hvcore.errors import HvlabError
from hvcore.inspect.domains import Domain
from hvcore.inspect.format import address as hex_address

from .drawing import Figure
from .selection import Selection, domain_key
from .view import View, module, style

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["LensView"]

PHYSICAL_END = 1 << 52
"""No host-physical address is as high."""
Guard = Callable[[], AbstractContextManager[Any]]


class LensView(View):
    """The facts of `selection.address` in `run`, gathered by the kernel at each choice; `guard` is held while the run is read.

    An IOVA of a chosen domain is followed through its tables first.  An exported page shows what was chosen last.
    """

    _esm = module("lens")
    _css = style("lens")
    facts: traitlets.List[Any] = traitlets.List().tag(sync=True)
    said = traitlets.Unicode("").tag(sync=True)
    address = traitlets.Unicode("").tag(sync=True)

    def __init__(self, run: "Run", selection: Selection | None = None, guard: Guard = nullcontext, **values: Any):
        super().__init__(selection, label="What is this address?", **values)
        self._guard = guard
        self.selection.observe(lambda _change: self._follow(), ["address", "space", "domain", "device"])
        self.show_run(run)

    def show_run(self, run: "Run") -> None:
        """Looks into another run, or into this one as it is now."""
        self._run = run
        self._look()

    def _follow(self) -> None:
        """Looks once for a choice, of which each part is told."""
        if self._chosen() != self._looked:
            self._look()

    def _chosen(self) -> tuple[Any, ...]:
        s = self.selection
        return s.address, s.space, s.domain, s.device

    def _look(self) -> None:
        self._looked = self._chosen()
        chosen = self.selection.address
        if chosen is None:
            self._tell("", "Choose an address in any view, or write one here.", [])
            return
        try:
            with self._guard():
                words, host = self._landing(chosen)
                facts = self._run.lens(host).facts if host is not None else ()
                written = self._written(host) if host is not None else []
        except HvlabError as e:
            self._tell(hex(chosen), str(e), [])
            return
        rows = [[f.about, f.says, f"{hex_address(f.start)} \u2013 {hex_address(f.end)}" if f.end is not None else ""] for f in facts]
        self._tell(hex(chosen), words, rows + written)

    def _written(self, host: int) -> list[list[str]]:
        """Who wrote the word at a host-physical address, as a row; none where no memory is."""
        if host >= PHYSICAL_END:
            return []
        last = self._run.who_wrote(host, 1)[-1]
        if last.now is None:
            return []
        by = f"at {last.asked:#x}" if last.asked is not None else ""
        phase = f"in the phase {last.phase}" if last.phase else ""
        when = f"{last.time:,} ns after power-on" if last.time else ""
        said = ", ".join(filter(None, (last.who, by, phase, when))) + (f"; {last.remark}" if last.remark else "")
        return [["last written by", said, f"{hex_address(last.address)} \u2013 {hex_address(last.address + last.length)}"]]

    def _landing(self, chosen: int) -> tuple[str, int | None]:
        """In words what the address is, and the host-physical address that it comes to (None: none)."""
        domain = self._domain()
        if domain is None:
            return f"host-physical {chosen:#x}", chosen
        run = domain.runs.at(chosen)
        if run is None or run.perm == "-":
            what = "an entry that grants nothing" if run else "nothing mapped"
            return f"IOVA {chosen:#x} of domain {domain.did}: {what}, no device of it gets there. As host-physical {chosen:#x}:", chosen
        host = chosen + run.offset
        return f"IOVA {chosen:#x} of domain {domain.did} leads to host-physical {host:#x} ({run.perm})", host

    def _domain(self) -> Domain | None:
        """The chosen domain, or the one of the chosen device, where an IOVA is chosen."""
        key, device = self.selection.domain, self.selection.device
        if self.selection.space != "iova" or not key and device is None:
            return None
        return next((d for d in self._run.domains if (domain_key(d.unit, d.did) == key if key else device in d.devices)), None)

    def _tell(self, address: str, said: str, facts: list[list[str]]) -> None:
        with self.hold_sync():
            self.address, self.said, self.facts = address, said, facts

    @property
    def figure(self) -> Figure:
        """The facts as a table, without a picture."""
        from hvcore.inspect.records import html_table
        table = html_table(self.said, ("about", "says", "range"), self.facts, (False, False, False)) if self.facts else ""
        return Figure(self.label, self.said, "", table)
