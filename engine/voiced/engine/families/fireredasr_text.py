"""FireRedASR's tokens and how they become a text. Pure.

Tokens are Mandarin characters and pieces of Latin words, which begin with U+2581. Version 1 writes
Latin in upper case, version 2 in lower case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from voiced.engine.families.fireredasr_words import WORD_START, TimedToken

MARKS = frozenset({"<blank>", "<unk>", "<pad>", "<sos>", "<eos>", "<sil>"})
"""Tokens that stand for no text. The published code of version 2 leaves out blank and sil only."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f"
_BORDER = re.compile(rf"(?<=[{_HAN}])(?=[^\W_{_HAN}])|(?<=[^\W_{_HAN}])(?=[{_HAN}])")
_IS_HAN = re.compile(rf"[{_HAN}]")


class Casing(StrEnum):
    """How Latin letters are written."""

    MODEL = "model"
    """As the published code of the model's version: 1 as the tokens are, upper; 2 lower."""
    UPPER = "upper"
    LOWER = "lower"


class Tokens:
    """Ids → written tokens."""

    def __init__(self, written: Sequence[str]) -> None:
        self._written = tuple(written)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a bundle's token file: one token per line, in the order of the ids."""
        lines = path.read_text(encoding="utf-8").split("\n")
        return cls(lines[:-1] if lines[-1] == "" else lines)

    def __len__(self) -> int:
        return len(self._written)

    def written(self, ids: Sequence[int]) -> list[str]:
        """Return each token as it stands in the list."""
        return [self._written[i] for i in ids]


def raw_text(pieces: Sequence[str]) -> str:
    """Join tokens as the published code does: U+2581 is a space, marks are nothing."""
    return "".join(p for p in pieces if p not in MARKS).replace(WORD_START, " ").strip()


@dataclass(frozen=True, slots=True)
class Writing:
    """The family's own first steps on a text."""

    casing: Casing = Casing.MODEL
    version: int = 2
    spaces: bool = True
    """A space between Mandarin and what is none."""

    def cased(self, text: str) -> str:
        """Write Latin letters in the casing."""
        if self.casing is Casing.UPPER:
            return text.upper()
        is_as_given = self.casing is Casing.MODEL and self.version == 1
        return text if is_as_given else text.lower()

    def text(self, pieces: Sequence[str]) -> str:
        """Return the text of tokens."""
        text = self.cased(unicodedata.normalize("NFC", raw_text(pieces)))
        if self.spaces:
            text = _BORDER.sub(" ", text)
        return " ".join(text.split())

    def words(self, words: Sequence[TimedToken]) -> list[TimedToken]:
        """Write words of an alignment alike, marks left out."""
        return [
            TimedToken(self.cased(w.text), w.start_s, w.end_s, w.chance)
            for w in words
            if w.text and w.text not in MARKS
        ]


def is_han(text: str) -> bool:
    """Whether a text has a character of Mandarin."""
    return _IS_HAN.search(text) is not None


def language_of(text: str) -> str | None:
    """Tell the language by the script, which is all that the model says about it."""
    if is_han(text):
        return "zh"
    return "en" if any(char.isalpha() for char in text) else None
