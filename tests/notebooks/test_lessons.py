"""The course: every lesson runs unanswered in both languages, its solutions are right, and what is committed is what its source says."""

import ast
import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import nbformat
import pytest

from widgets.course import Predict
from widgets.exercises import EXERCISES

ROOT = Path(__file__).resolve().parents[2]
UNANSWERED = "not answered yet"
UNPREDICTED = {"en": "no prediction", "ja": "予想なし"}
RESTING = {"en": "Not run: there is no Linux yet, see the first cell.",
           "ja": "実行していません。Linux がまだありません（最初のセルを見てください）。"}
CHECK = re.compile(r'^course\.check\("([\w-]+)", .+\)$')


def _build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("course_build", ROOT / "notebooks" / "build.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _build()
LESSONS = pytest.mark.parametrize("path", build.SOURCES, ids=lambda p: p.stem)
BOTH = pytest.mark.parametrize("lang", build.LANGUAGES)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell: nbformat.NotebookNode) -> str:
    """What a cell printed or showed, as plain text."""
    return "\n".join(o.text if o.output_type == "stream" else o.data.get("text/plain", "") for o in cell.outputs)


def fetched(path: Path, request: pytest.FixtureRequest) -> None:
    """Has Debian's kernels in the cache before a lesson that boots one."""
    if "course.linux(" in path.read_text():
        request.getfixturevalue("linux_cache")


def committed(path: Path, lang: str) -> nbformat.NotebookNode:
    return nbformat.read(build.lesson(path, lang), as_version=4)


def test_the_course_has_its_lessons_in_order_and_uses_every_exercise():
    assert [p.stem[:2] for p in build.SOURCES] == ["01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11"]
    last_lines = [cell.source.splitlines()[-1] for path in build.SOURCES for cell in code(build.notebook(path, "en"))]
    asked = [match[1] for line in last_lines if (match := CHECK.match(line))]
    assert asked == list(EXERCISES)


def executed(notebook: nbformat.NotebookNode, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
             request: pytest.FixtureRequest) -> list[nbformat.NotebookNode]:
    """The code cells of a lesson's notebook, executed from top to bottom; none prints a warning."""
    fetched(path, request)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = code(build.execute(notebook, folder))
    assert not [o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    return cells


# Both languages have the same code but for words: one runs unanswered, the other solved; the exercises' words are tested in both elsewhere.

@LESSONS
def test_it_runs_unanswered(path, tmp_path, monkeypatch, request):
    for cell in executed(build.notebook(path, "en"), path, tmp_path, monkeypatch, request):
        if CHECK.match(cell.source.splitlines()[-1]):
            assert UNANSWERED in words(cell)
        if ".reveal(" in cell.source:
            assert UNPREDICTED["en"] in words(cell)


@LESSONS
def test_its_solutions_are_right(path, tmp_path, monkeypatch, request):
    cards = {}
    for cell in executed(build.solved(path, "ja"), path, tmp_path, monkeypatch, request):
        if match := CHECK.match(cell.source.splitlines()[-1]):
            cards[match[1]] = words(cell)
        if ".reveal(" in cell.source:
            assert UNPREDICTED["ja"] in words(cell)
    assert len(cards) >= 2
    assert {name: said for name, said in cards.items() if not said.startswith("✓")} == {}


@BOTH
def test_a_lesson_without_a_linux_says_what_to_do_and_its_cells_rest(lang, tmp_path, monkeypatch):
    [path] = [path for path in build.SOURCES if "course.linux(" in path.read_text()]
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    first, *others = code(build.execute(build.notebook(path, lang), tmp_path))
    assert "hvlab linux fetch" in words(first)
    assert {words(cell).strip() for cell in others} == {RESTING[lang]}


def _run(source: str, names: dict[str, Any]) -> Any:
    """Executes a cell; the value of its last line, where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    body: CodeType = compile(tree, "<cell>", "exec")
    exec(body, names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if isinstance(last, ast.Expr) else None


@LESSONS
@BOTH
def test_what_is_committed_is_its_source_executed_and_plain(path, lang):
    kept, made = committed(path, lang), build.notebook(path, lang)
    cells = [[(c.id, c.cell_type, c.source) for c in notebook.cells] for notebook in (kept, made)]
    assert cells[0] == cells[1], "run `make notebooks`"
    assert build.lesson(path, lang).stat().st_size < 600_000
    assert "widgets" not in kept.metadata
    assert not any(cell.metadata for cell in kept.cells)
    assert [cell.execution_count for cell in code(kept)] == list(range(1, len(code(kept)) + 1))
    outputs = [o for cell in code(kept) for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    parts = [pair for cell in code(kept) for pair in pairwise(cell.outputs)]
    assert not [one.text for one, other in parts if one.output_type == other.output_type == "stream" and one.name == other.name]
    kinds = {kind for o in outputs if "data" in o for kind in o.data}
    assert kinds <= {"text/plain", "text/html", "image/png"}
    assert all(o.metadata["image/png"]["alt"] == o.data["text/plain"] for o in outputs if "data" in o and "image/png" in o.data)
    assert not [cell for cell in code(kept) if RESTING[lang] in words(cell)], "run `hvlab linux fetch`, then `make notebooks`"
    assert not re.search(r"Figure size|object at 0x|/home/|/tmp/|site-packages", "".join(words(c) for c in code(kept)))


@LESSONS
def test_both_languages_have_the_same_code_but_for_words(path):
    (english, said), (japanese, said_in_japanese) = (_without_words(build.notebook(path, lang)) for lang in build.LANGUAGES)
    assert english == japanese
    differing = [(e, j) for e, j in zip(said, said_in_japanese, strict=True) if e != j]
    assert differing[0] == ("en", "ja")
    assert all(not j.isascii() for _, j in differing[1:])


def _without_words(notebook: nbformat.NotebookNode) -> tuple[list[str], list[str]]:
    """The code of the cells with every string emptied, and the strings."""
    trees, strings = [ast.parse(cell.source) for cell in code(notebook)], []
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
                node.value = ""
    return [ast.dump(tree) for tree in trees], strings


@LESSONS
@BOTH
def test_its_shape(path, lang):
    notebook = build.notebook(path, lang)
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    headings = [line for text in texts for line in text.splitlines() if re.match(r"#+ ", line)]
    assert texts[0].startswith("# ")
    assert sum(h.startswith("# ") for h in headings) == 1
    assert any(word in texts[0] for word in ("**Time**", "**所要時間**"))
    goals = re.search(r"(\*\*Goals\*\*|\*\*目標\*\*).*", texts[0])
    assert goals and len(re.findall(r"(?<!\*)\*[^*]+\*(?!\*)", goals[0].replace("**", ""))) == 3
    assert max(len(c.source.splitlines()) for c in code(notebook)) <= 10
    for text in texts:
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert target.startswith("https://") or (build.HERE / lang / target).exists(), target


@LESSONS
def test_every_exercise_has_a_hidden_solution(path):
    kinds = [part.kind for part in build.parts(path)]
    texts = [part.text for part in build.parts(path)]
    for i, text in enumerate(texts):
        if kinds[i] == "code" and CHECK.match(text.splitlines()[-1]):
            assert "..." in text
            assert kinds[i + 1] == "solution"
    notebook = build.notebook(path, "ja")
    hidden = [c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("<details>")]
    assert len(hidden) == kinds.count("solution")


def test_a_source_with_a_part_of_another_kind_is_refused(tmp_path):
    source = tmp_path / "x.md"
    source.write_text("%% en\n# X\n%% fr\n# X\n")
    with pytest.raises(ValueError, match=r"x\.md.*%% fr"):
        build.parts(source)


def test_a_prediction_in_a_lesson_is_a_widget():
    names: dict[str, Any] = {}
    value = _run('from widgets.course import Course\nCourse("ja").predict("?", ["a"])', names)
    assert isinstance(value, Predict)
