"""What the course's notebooks are made with: predictions that are held beside what the machine did, and exercises that the machine checks.

    course = Course("en")
    disk = course.predict("Will the guest find its disk?", {"up": "Yes", "disk-lost": "No"})
    disk.reveal(run.outcome)
    course.check("01-source", "00:02.0", m)

Nothing of it needs an answer: a notebook that runs by itself says "no prediction" and "not answered yet".
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from hvcore.errors import HvlabError, quoted

from .exercises import NOT_ANSWERED, RIGHT, examine
from .hints import LANGUAGES, more, said
from .needs import find_linux, rest, wake
from .view import module, style

if TYPE_CHECKING:
    from hvcore import Machine

__all__ = ["Card", "Course", "Predict", "check"]

Options = Mapping[Any, str] | Sequence[str]

_WORDS = {
    "prediction": ("Your prediction", "あなたの予想"),
    "none": ("no prediction", "予想なし"),
    "noted": ("Noted. Now run the next cell.", "記録しました。次のセルを実行してください。"),
    "machine": ("The machine", "実際の結果"),
    "agrees": ("as predicted", "予想どおり"),
    "differs": ("not as predicted: what did you overlook?", "予想とは違いました。何を見落としていたのでしょう？"),
    "right": ("right", "正解"),
    "not yet": ("not yet", "もう一歩"),
    "unanswered": ("not answered yet", "未回答"),
    "replace": ("Put your answer in place of the three dots and run this cell again.",
                "「...」を答えに書き換えて、このセルを再実行してください。"),
    "exercise": ("Exercise", "演習"),
    "solved": ("exercises solved", "問正解"),
    "predicted": ("predictions right", "件的中"),
    "linux": ("This lesson boots Debian's kernel: run `hvlab linux fetch` in a terminal (or `!hvlab linux fetch` in a cell; it needs "
              "no root), then this cell again.",
              "この章では Debian のカーネルを起動します。端末で `hvlab linux fetch` を実行してから（root 権限は不要です。"
              "セルで `!hvlab linux fetch` としても構いません）、このセルを再実行してください。"),
    "resting": ("Not run: there is no Linux yet, see the first cell.",
                "実行していません。Linux がまだありません（最初のセルを見てください）。"),
}
_CODE = re.compile("`([^`]+)`")
_GREEN, _ORANGE, _GREY = "#009E73", "#D55E00", "#777777"


@dataclass(frozen=True, slots=True)
class Card:
    """A short message: a sign that does not need its colour, a heading, and lines below it; what is between `backquotes` is code."""

    sign: str
    colour: str
    heading: str
    lines: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join([f"{self.sign} {self.heading}", *(f"  {line}" for line in self.lines)])

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{_marked(line)}</div>" for line in self.lines)
        return (f'<div role="status" style="border-left:5px solid {self.colour};padding:4px 12px;margin:4px 0;'
                f'color:var(--jp-ui-font-color1,#222)"><strong>{html.escape(self.sign)} {_marked(self.heading)}</strong>{lines}</div>')


class Predict(anywidget.AnyWidget):
    """A question whose answer the machine gives later: `reveal` puts the two beside each other.

    `options` are the texts to choose from, by the value that stands for each (the text itself, where no values are given).  `answer` is
    that value, or a function that finds it in what `reveal` is given; without it, what `reveal` is given is the value.
    """

    _esm = module("predict")
    _css = style("predict")
    question = traitlets.Unicode("").tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    chosen = traitlets.Int(None, allow_none=True).tag(sync=True)
    words = traitlets.Dict(value_trait=traitlets.Unicode()).tag(sync=True)

    def __init__(self, question: str, options: Options, answer: Any = None, lang: str = "en"):
        choices = dict(options) if isinstance(options, Mapping) else {text: text for text in options}
        if not choices:
            raise HvlabError("a prediction needs options to choose from: give a list of texts, or texts by value")
        self._values, self._answer, self._lang = tuple(choices), answer, _known(lang)
        self.right: bool | None = None
        words = {name: _word(name, lang) for name in ("none", "noted", "prediction")}
        super().__init__(question=question, texts=list(choices.values()), words=words)

    @property
    def prediction(self) -> Any:
        """The value that was chosen; None before."""
        return None if self.chosen is None else self._values[self.chosen]

    def choose(self, value: Hashable) -> None:
        """Predicts from Python.  Raises HvlabError for what is no option."""
        if value not in self._values:
            raise HvlabError(f"{quoted(value)} is no option: choose one of {', '.join(map(str, self._values))}")
        self.chosen = self._values.index(value)

    def reveal(self, evidence: Any = None) -> Card:
        """What the machine says beside what was predicted; without a prediction, the machine's answer alone."""
        value = self._answer(evidence) if callable(self._answer) else evidence if self._answer is None else self._answer
        fact = f"{_word('machine', self._lang)}: {self._text(value)}"
        if self.chosen is None:
            return Card("…", _GREY, _word("none", self._lang), (fact,))
        self.right = self.prediction == value
        mine = f"{_word('prediction', self._lang)}: {self.texts[self.chosen]}"
        if self.right:
            return Card("✓", _GREEN, _word("agrees", self._lang), (mine, fact))
        return Card("✗", _ORANGE, _word("differs", self._lang), (mine, fact))

    def _text(self, value: Any) -> str:
        return self.texts[self._values.index(value)] if value in self._values else str(value)

    @property
    def _still(self) -> str:
        items = "".join(f"<li>{'● ' if i == self.chosen else '○ '}{html.escape(text)}</li>" for i, text in enumerate(self.texts))
        return (f'<div style="color:var(--jp-ui-font-color1,#222)"><strong>{html.escape(self.question)}</strong>'
                f'<ul style="list-style:none;padding-left:8px">{items}</ul></div>')

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        plain = "\n".join([self.question, *(f"  ( ) {text}" for text in self.texts)])
        return data | {"text/html": self._still, "text/plain": plain}, metadata


def check(name: str, answer: Any, machine: "Machine | None" = None, lang: str = "en", attempt: int = 1) -> Card:
    """Whether `answer` to the exercise `name` is right on `machine`, with a hint that fits it where it is not.

    With each further `attempt` a hint is added.  Raises HvlabError for an exercise that does not exist.
    """
    finding = examine(name, answer, machine)
    heading = f"{_word('exercise', _known(lang))} {name}: "
    if finding.key == NOT_ANSWERED:
        return Card("…", _GREY, heading + _word("unanswered", lang), (_word("replace", lang),))
    words = said(name, finding.key, finding.values, lang)
    if finding.key == RIGHT:
        return Card("✓", _GREEN, heading + _word("right", lang), (words,))
    return Card("✗", _ORANGE, heading + _word("not yet", lang), (words, *more(name, attempt - 1, lang)))


class Course:
    """The predictions and exercises of one notebook, in one language; it counts attempts, so that hints grow.  Nothing of it is stored."""

    def __init__(self, lang: str = "en"):
        self.lang = _known(lang)
        self._wrong: Counter[str] = Counter()
        self._solved: dict[str, bool] = {}
        self._predictions: list[Predict] = []

    def predict(self, question: str, options: Options, answer: Any | Callable[[Any], Any] = None) -> Predict:
        """A prediction of this notebook."""
        self._predictions.append(Predict(question, options, answer, self.lang))
        return self._predictions[-1]

    def check(self, name: str, answer: Any, machine: "Machine | None" = None) -> Card:
        """As the function `check`, with as many hints as wrong answers were given so far."""
        card = check(name, answer, machine, self.lang, self._wrong[name] + 1)
        self._solved[name] = card.sign == "✓"
        self._wrong[name] += card.sign == "✗"
        return card

    def linux(self, release: str) -> str:
        """The guest to boot: `linux-` and the newest kernel of the cache that begins with `release`, or the newest of all.

        Where none can be booted, a card says what to do, and the notebook's other cells rest; without a notebook HvlabError is raised.
        """
        try:
            found = find_linux(release)
        except HvlabError as e:
            if not rest(_word("resting", self.lang)):
                raise
            from IPython.display import display
            display(Card("✗", _ORANGE, _word("linux", self.lang), (str(e),)))  # type: ignore[no-untyped-call]
            return ""
        wake()
        return found

    @property
    def progress(self) -> Card:
        """How many exercises of those that were run are solved, and how many predictions came true."""
        solved, right = sum(self._solved.values()), sum(p.right is True for p in self._predictions)
        done = bool(self._solved) and solved == len(self._solved)
        counts = ((solved, len(self._solved), "solved"), (right, len(self._predictions), "predicted"))
        lines = [f"{n} / {of} {_word(what, self.lang)}" for n, of, what in counts]
        return Card("✓" if done else "…", _GREEN if done else _GREY, lines[0], (lines[1],))


def _marked(words: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(words))


def _known(lang: str) -> str:
    if lang not in LANGUAGES:
        raise HvlabError(f"the course has no language {quoted(lang)}: choose one of {', '.join(LANGUAGES)}")
    return lang


def _word(name: str, lang: str) -> str:
    return _WORDS[name][LANGUAGES.index(lang)]
