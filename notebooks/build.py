"""Makes the course's notebooks: `python notebooks/build.py`, or with names of lessons only these.

A lesson is one text in source/, from which come en/NAME.ipynb and ja/NAME.ipynb.  Its parts begin with a line:

    %% en, %% ja     Markdown of one language
    %% code          a code cell of both; {{English||Japanese}} becomes the one or the other
    %% solution      the solution of the code cell above: in the notebook as text behind a disclosure; what it is put in place of are
                     that cell's lines with `...`

Notebooks are written executed, and always the same: no widget state, no times, pictures as PNG with their words.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

__all__ = ["LANGUAGES", "SOURCES", "Part", "execute", "lesson", "notebook", "parts", "solved"]

HERE = Path(__file__).resolve().parent
SOURCES = tuple(sorted((HERE / "source").glob("*.md")))
LANGUAGES = ("en", "ja")
SUMMARY = {"en": "Solution", "ja": "解答"}
LINKS = {"en": ("Previous", "Contents", "Next"), "ja": ("前へ", "目次", "次へ")}
KERNEL = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
          "language_info": {"name": "python"}}
TIMEOUT = 120
_CHOICE = re.compile(r"\{\{(.*?)\|\|(.*?)\}\}", re.DOTALL)


@dataclass
class Part:
    """A cell to be: `kind` is en, ja, code or solution."""

    kind: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text, without the empty lines around it."""
        return "\n".join(self.lines).strip("\n")


def parts(path: Path) -> list[Part]:
    """The parts of a lesson, in order."""
    found: list[Part] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("%% "):
            found.append(Part(line[3:].strip()))
            if found[-1].kind not in (*LANGUAGES, "code", "solution"):
                raise ValueError(f"{path.name}: there is no part {line!r}: use %% en, %% ja, %% code or %% solution")
        elif found:
            found[-1].lines.append(line)
    return found


def notebook(path: Path, lang: str) -> nbformat.NotebookNode:
    """The student's notebook of a lesson in one language, not executed."""
    return _notebook([*_cells(parts(path), lang), nbformat.v4.new_markdown_cell(_links(path, lang))])


def solved(path: Path, lang: str) -> nbformat.NotebookNode:
    """The same with every solution in its place."""
    return _notebook([nbformat.v4.new_code_cell(source) for source in _solved_sources(parts(path), lang)])


def _notebook(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    for number, cell in enumerate(cells):
        cell.id = f"c{number:02}"
    return nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)


def _cells(found: list[Part], lang: str) -> Iterator[nbformat.NotebookNode]:
    for part in found:
        if part.kind == "code":
            yield nbformat.v4.new_code_cell(_in(lang, part.text))
        elif part.kind == "solution":
            code = f"```python\n{_in(lang, part.text)}\n```"
            yield nbformat.v4.new_markdown_cell(f"<details><summary>{SUMMARY[lang]}</summary>\n\n{code}\n\n</details>")
        elif part.kind == lang:
            yield nbformat.v4.new_markdown_cell(part.text)


def _in(lang: str, code: str) -> str:
    return _CHOICE.sub(lambda choice: choice[1 + LANGUAGES.index(lang)], code)


def _solved_sources(found: list[Part], lang: str) -> list[str]:
    """Code of all cells; a cell that has a solution keeps its last line, the check, behind it."""
    sources: list[str] = []
    for part in found:
        if part.kind == "code":
            sources.append(_in(lang, part.text))
        elif part.kind == "solution":
            sources[-1] = f"{_in(lang, part.text)}\n{sources[-1].splitlines()[-1]}"
    return sources


def _links(path: Path, lang: str) -> str:
    """Where to go from here."""
    at, (before, contents, after) = SOURCES.index(path), LINKS[lang]
    links = [f"[← {before}]({SOURCES[at - 1].stem}.ipynb)"] if at else []
    links.append(f"[{contents}](../README.md)")
    if at + 1 < len(SOURCES):
        links.append(f"[{after}: {_title(SOURCES[at + 1], lang)} →]({SOURCES[at + 1].stem}.ipynb)")
    return " · ".join(links)


def _title(path: Path, lang: str) -> str:
    first = next(part for part in parts(path) if part.kind == lang)
    return first.text.splitlines()[0].removeprefix("# ")


def lesson(path: Path, lang: str) -> Path:
    """Where the notebook of a lesson goes."""
    return HERE / lang / f"{path.stem}.ipynb"


def execute(node: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs every cell in `folder` and makes the outputs fit to be kept.  Raises CellExecutionError where a cell fails."""
    client = NotebookClient(node, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
                            record_timing=False, store_widget_state=False, coalesce_streams=True)
    done = client.execute()
    done.metadata = nbformat.from_dict(KERNEL)
    for cell in done.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            _settle(output, cell.source)
    return done


def _settle(output: Any, source: str) -> None:
    """An output as it is kept: what a widget needs its kernel for is left out, and a picture is a PNG with its words.

    A chart has none of its own: they are the comment with which its cell begins.
    """
    if "data" not in output:
        return
    data = output.data
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if "image/png" in data:
        for kind in ("text/html", "image/svg+xml"):
            data.pop(kind, None)
        if source.startswith("# "):
            data["text/plain"] = source.splitlines()[0].removeprefix("# ")
        output.metadata = nbformat.from_dict({"image/png": {"alt": data["text/plain"]}})


def main(names: list[str]) -> None:
    """Writes the notebooks of the lessons that are named, of all without names."""
    for path in SOURCES:
        if names and path.stem not in names:
            continue
        for lang in LANGUAGES:
            target = lesson(path, lang)
            target.parent.mkdir(exist_ok=True)
            nbformat.write(execute(notebook(path, lang), target.parent), target)
            print(f"{target.relative_to(HERE)}: {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
