"""Hotwords in Whisper's tokens: the ways in which the model writes a phrase."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

from voiced.engine.families.whisper import Vocabulary
from voiced.engine.text import chinese_converter

_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+")
"""Where the tokenizer cuts before it merges; GPT-2's pattern."""


class WhisperSpelling:
    """Cuts phrases into the columns of the step graph's projection."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._edges = functools.cache(self._edges_of)

    @functools.cached_property
    def _ranks(self) -> dict[bytes, tuple[int, int]]:
        """Of each piece, its id, which is the order of merges, and its column."""
        both = zip(self._vocabulary.ids, self._vocabulary.pieces, strict=True)
        return {piece: (rank, column) for column, (rank, piece) in enumerate(both)}

    def ways(self, phrase: str) -> list[list[int]]:
        """Columns of each way in which the model may write a phrase."""
        return [way for text in spellings(phrase) if (way := self.encode(text))]

    def tokens_of(self, word: str) -> int:
        """How many tokens a word takes inside of a text; 0 if it cannot be written."""
        return len(self.encode(" " + word) or ())

    def encode(self, text: str) -> list[int] | None:
        """Columns of a text as the tokenizer cuts it; None when a token is missing."""
        columns: list[int] = []
        for word in _WORDS.findall(text):
            pieces = self._merged(word.encode())
            if any(piece not in self._ranks for piece in pieces):
                return None
            columns += [self._ranks[piece][1] for piece in pieces]
        return columns

    def _merged(self, word: bytes) -> list[bytes]:
        """Byte pair encoding: the pair of lowest rank is merged until none is a token."""
        pieces = [word[i : i + 1] for i in range(len(word))]
        while True:
            ranks = self._ranks
            pairs = [
                (ranks[pair][0], i)
                for i in range(len(pieces) - 1)
                if (pair := pieces[i] + pieces[i + 1]) in ranks
            ]
            if not pairs:
                return pieces
            _, i = min(pairs)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]

    def joins(self, first: int, second: int) -> bool:
        """Whether the second token continues the word that the first ends with."""
        return self._edges(first)[1] and self._edges(second)[0]

    def _edges_of(self, column: int) -> tuple[bool, bool]:
        """Whether a token begins, and ends, inside of a word."""
        text = self._vocabulary.pieces[column].decode("utf-8", errors="ignore")
        return is_spaced(text[:1]), is_spaced(text[-1:])


def spellings(phrase: str) -> Iterator[str]:
    """The ways in which the model may write a phrase, each once.

    Letters as given, lower, and capital at the start of the phrase or of each word; behind a
    space, and without where Mandarin goes before. Mandarin in both scripts: the model writes a
    mixture, which is made simplified only afterwards.
    """
    phrase = unicodedata.normalize("NFC", phrase)
    ways = [phrase, phrase.lower(), phrase[:1].upper() + phrase[1:], phrase.title()]
    if not phrase.isascii():
        ways += [chinese_converter(name).convert(phrase) for name in ("s2t", "t2s")]
    for way in dict.fromkeys(ways):
        if is_spaced(way[:1]):
            yield " " + way
        yield way


def is_spaced(char: str) -> bool:
    """Whether a character is of a word in a script that puts spaces between words."""
    if not char.isalnum() or unicodedata.east_asian_width(char) in "WF":
        return False
    return not ("\u0e00" <= char <= "\u0eff" or "\u1000" <= char <= "\u109f")  # Thai to Burmese
