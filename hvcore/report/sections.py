"""The sections of a report of one run, in their order.  Everything is read here and now: the machine may go on afterwards."""

import html
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..doctor import Diagnosis
from ..errors import HvlabError
from ..inspect.advice import advise
from ..inspect.format import size
from ..inspect.matrix import Matrix
from ..outcome import OUTCOMES
from .again import DMAR, TOML, commands, settings
from .alive import Alive, alive, quiet
from .chapter import Chapter, Part, Section, coded, facts, folded, listed, log, paragraph, shown, table, unprinted
from .linux import in_short, linux_of

if TYPE_CHECKING:
    from ..run import Run
    from ..session import Machine

__all__ = ["chapter_of", "facts_of", "findings", "outcome_of"]

WAYS = 8
"""Faults whose ways are drawn."""
FEW = 12
"""Interrupt messages that are shown at once; more are folded away."""
Progress = Callable[[str], None]


def chapter_of(machine: "Machine", grid: Matrix | None = None, diagnosis: Diagnosis | None = None,
               progress: Progress = lambda _name: None, mark: str = "") -> Chapter:
    """All that is to be said of a machine's current run, with a matrix of attacks and a diagnosis of the machine where these are given.

    `mark` is put before anchors, where a page has two chapters; the machine's files are in the one that is not `a-`.  Raises HvlabError
    where the machine has no run.
    """
    run = machine.run
    if run is None:
        raise HvlabError(f"{machine.name} was not booted: there is nothing to report")
    if find_spec("anywidget") is None:
        raise HvlabError("a report is made of the workbench's views, whose packages are not installed: `pip install hvlab[ui]`")
    teller = _Teller(machine, run, grid, diagnosis, mark)
    sections = []
    with machine.still():
        for key, title, tell in teller.table:
            progress(f"report: {title[0].lower()}{title[1:]}")
            if parts := tuple(tell()):
                sections.append(Section(mark + key, title, parts))
    return Chapter(f"{machine.name}, run {run.number}", tuple(sections))


def outcome_of(run: "Run") -> str:
    """How the run stands, in words."""
    meaning = OUTCOMES.get(run.outcome, "")
    kind = "up" if run.outcome == "up" else "bad" if meaning else ""
    said = f"{meaning}: {run.why}" if meaning else run.why
    return f'<p class="outcome {kind}"><strong>{html.escape(run.outcome)}</strong>, {html.escape(said)}</p>'


def facts_of(machine: "Machine", run: "Run") -> str:
    """The machine and the core in a few facts."""
    d, vmm, linux = machine.description, run.vmm, linux_of(machine) if run.live else None
    core = "none" if vmm.base is None else f"{vmm.base:#x}-{vmm.base + vmm.size:#x}, {size(vmm.size)}"
    heap = f"{vmm.heap_pages_used:,} of {vmm.heap_pages_total:,} pages in use"
    return facts([("machine", d.name), ("from", d.source), ("RAM", size(d.ram_bytes)),
                  ("host address width", f"{d.host_address_width} bits"), ("the core's memory", core), ("its heap", heap),
                  ("options", " ".join(settings(run.config)) or f"the profile {run.config.PROFILE} as it is"),
                  *([("guest", linux.name), ("its command line", linux.told)] if linux else [])])


def findings(diagnosis: Diagnosis, assumptions: Collection[str] = ()) -> Iterator[str]:
    """What `hvlab doctor` finds: verdicts, problems with their evidence, what is not known besides the `assumptions`."""
    booted = "The machine was booted under each policy, with the lab guest."
    yield paragraph(f"{booted} Problems: {diagnosis.summary}.") + shown(diagnosis.verdicts)
    for problem in diagnosis.problems:
        told = [("evidence", problem.evidence), ("mend", problem.mend or "no option helps"), ("explains", ", ".join(problem.policies))]
        title = f"{problem.severity[0].upper()}{problem.severity[1:]}, {problem.blame}: {problem.id}"
        yield f"<h3>{html.escape(title)}</h3>{facts(told)}"
    if unknown := [words for words in diagnosis.unknown if words not in assumptions]:
        yield "<h3>Not known</h3>" + listed(unknown)


class _Teller:
    """Tells of one run, section by section."""

    def __init__(self, machine: "Machine", run: "Run", grid: Matrix | None, diagnosis: Diagnosis | None, mark: str):
        from widgets.selection import Selection
        self.machine, self.run, self.grid, self.diagnosis, self.mark = machine, run, grid, diagnosis, mark
        self.selection = quiet(Selection)()
        self.linux = linux_of(machine)
        self.table: tuple[tuple[str, str, Callable[[], Iterator[Part]]], ...] = (
            ("outcome", "Outcome and advice", self.outcome), ("machine", "The machine", self.description),
            ("doctor", "What the doctor finds", self.doctor), ("domains", "Who is translated by what", self.domains),
            ("permissions", "Who may reach which memory", self.permissions), ("faults", "Faults, step by step", self.faults),
            ("window", "The protection window", self.window), ("proof", "Proof", self.proof), ("attacks", "Attacks", self.attacks),
            ("guests", "Guests", self.guests), ("consoles", "Consoles", self.consoles), ("again", "Run it again", self.again))

    def _view(self, name: str, view: object, **more: object) -> Alive:
        return alive(self.mark + name, view, self.mark or "run", **more)  # type: ignore[arg-type]

    def outcome(self) -> Iterator[Part]:
        yield outcome_of(self.run)
        yield facts_of(self.machine, self.run)
        for advice in advise(self.run):
            told = [("why", advice.why), ("to change", advice.change), ("price", advice.price)]
            yield f"<h3>{html.escape(advice.what)}</h3>{facts(told)}"
        words = (word.partition("=") for word in str(self.run.config).split())
        options = [(name, value) for name, _, value in words]
        yield folded("Every option of the core", table(("option", "value"), options, "Options"))

    def description(self) -> Iterator[Part]:
        from widgets.views import E820View
        run = self.run
        yield "<h3>What was not known and assumed</h3>"
        yield listed(self.machine.assumptions) if self.machine.assumptions else paragraph("Nothing: the description says it all.")
        yield "<h3>Memory map</h3>"
        yield self._view("e820", quiet(E820View)(run, self.selection))
        yield "<h3>DMAR table, remapping units, functions</h3>"
        if len(run.dmar):
            yield shown(run.dmar) + shown(run.dmar.scopes)
        yield shown(run.units)
        yield from (folded(f"What the unit at {unit.base:#x} can do and does", shown(unit.details)) for unit in run.units)
        yield shown(run.functions)

    def doctor(self) -> Iterator[Part]:
        if self.diagnosis is not None:
            yield from findings(self.diagnosis, self.machine.assumptions)

    def domains(self) -> Iterator[Part]:
        from widgets.views import GraphView
        yield self._view("graph", quiet(GraphView)(self.run, self.selection))
        yield shown(self.run.domains)
        yield from (shown(records) if len(records) <= FEW else folded(f"{records.title}: {len(records):,}", shown(records))
                    for records in (self.run.interrupts, self.run.messages) if len(records))

    def permissions(self) -> Iterator[Part]:
        from widgets.pagemap import PageMap
        from widgets.table import RunTable
        yield self._view("pages", quiet(PageMap)(self.run, self.selection))
        yield self._view("runs", quiet(RunTable)(self.run, self.selection))

    def faults(self) -> Iterator[Part]:
        from widgets.table import DmaTable, FaultTable
        from widgets.walk import WalkExplainer
        from widgets.walkfigure import walk_figure
        run = self.run
        yield self._view("faults", quiet(FaultTable)(run, self.selection))
        if len(run.faults) and run.live:
            walk = quiet(WalkExplainer)(run, self.selection)
            walk.devices = []
            yield self._view("walk", walk, stills=[walk_figure(run.explain(fault)) for fault in run.faults[:WAYS]])
            yield from self._would_have()
        yield self._view("dma", quiet(DmaTable)(run, self.selection))

    def _would_have(self) -> Iterator[Part]:
        told = []
        for fault in self.run.faults[:WAYS]:
            try:
                told.append(self.run.would_have(fault).sentence)
            except HvlabError:
                continue
        if told:
            yield "<h3>Without the unit</h3>" + listed(dict.fromkeys(told))

    def window(self) -> Iterator[Part]:
        from widgets.views import TimelineView
        yield self._view("timeline", quiet(TimelineView)(self.run, self.selection))
        yield shown(self.run.window)

    def proof(self) -> Iterator[Part]:
        from widgets.proof import ProofView
        view = quiet(ProofView)(self.run, self.selection)
        against = [(c.claim, str(c.counterexample)) for c in self.run.proof.claims if c.counterexample is not None]
        yield self._view("proof", view, printed="".join(f"<h3>Not so: {html.escape(claim)}</h3>{log(words, claim)}"
                                                        for claim, words in against))

    def attacks(self) -> Iterator[Part]:
        from widgets.matrix import MatrixView
        if self.grid is not None:
            if self.linux:
                yield paragraph("The attacks are the lab guest's: its driver is the wicked one. They ran on another machine of the kind.")
            view = quiet(MatrixView)(self.grid, self.selection)
            yield self._view("matrix", view, printed=view.figure.table)

    def guests(self) -> Iterator[Part]:
        if len(self.run.guests) > 1:
            yield shown(self.run.guests)

    def consoles(self) -> Iterator[Part]:
        console = self.run.console
        texts = [("The core's console", console.vmm), ("The guest's console", console.guest),
                 ("The second guest's console", console.guest2)]
        for name, text in texts:
            if text:
                yield f"<h3>{name}</h3>"
                yield self._long(text, name) if self.linux and text is console.guest else log(text, name)

    def _long(self, text: str, name: str) -> str:
        """A Linux's console: what tells most of it; all of it is folded away, and not printed."""
        short, lines = in_short(text), len(text.splitlines())
        if len(short.splitlines()) >= lines:
            return log(text, name)
        whole = unprinted(folded(f"All {lines:,} lines", log(text, f"{name}, all of it")))
        return paragraph(f"Of its {lines:,} lines, those that tell of disks, units, failures and the shell:") + log(short, name) + whole

    def again(self) -> Iterator[Part]:
        from ..sources import load, shipped
        d, name = self.machine.description, self.machine.name
        if self.mark == "a-":
            yield paragraph("With the machine's files, which are in this section of B:")
            yield coded(commands(d, self.run.config, TOML, self.linux.choice if self.linux else ()), "the command")
            return
        known = name in shipped() and load(shipped()[name]) == d
        guest = self.linux.choice if self.linux else ()
        if self.linux:
            yield paragraph(self.linux.needs)
        if known:
            yield paragraph("The machine comes with hvlab:") + coded(commands(d, self.run.config, name, guest), "the command")
            yield paragraph("Without it:")
        beside = f" and {DMAR}, its DMAR table" if d.dmar is not None else ""
        yield paragraph(f"In a shell this writes {TOML}, which describes the machine{beside}, and boots it with the same options.")
        yield coded(commands(d, self.run.config, guest=guest), "the machine's description and the command")
        if d.disk.image:
            yield paragraph("The disk's image is not in this report: put it beside the file.")
