"""What the exercises say, in English and in Japanese: `hints.toml`, by exercise and by what its check found."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["LANGUAGES", "hints", "more", "said"]

LANGUAGES = ("en", "ja")


@cache
def hints() -> dict[str, Any]:
    """The whole table."""
    return tomllib.loads((Path(__file__).parent / "hints.toml").read_text(encoding="utf-8"))


def said(name: str, key: str, values: Mapping[str, str], lang: str) -> str:
    """The sentence of exercise `name` for what its check found."""
    texts = hints()[name].get(key) or hints()["common"][key]
    sentence: str = texts[lang]
    return sentence.format(**values)


def more(name: str, wrong: int, lang: str) -> tuple[str, ...]:
    """What is added after `wrong` earlier answers to the exercise."""
    return tuple(text[lang] for text in hints()["more"].get(name, ())[:wrong])
