"""Hotwords in Whisper's tokens: the ways in which the model writes a phrase."""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence

from voiced.engine.families.whisper import Vocabulary, chinese_converter
from voiced.engine.hotwords import ContextGraph
from voiced.engine.types import Hotword

logger = logging.getLogger(__name__)

_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+")
"""Where the tokenizer cuts before it merges; GPT-2's pattern."""

_MAX_PHRASES = 8_000
"""Of all lists whose graphs are kept."""


class HotwordGraphs:
    """Makes the context graph of a list of hotwords, and keeps it for the next utterance."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._edges = functools.cache(self._edges_of)
        self._graphs: dict[tuple[Hotword, ...], ContextGraph | None] = {}
        """By list, that of the latest utterance last."""

    @functools.cached_property
    def _ranks(self) -> dict[bytes, tuple[int, int]]:
        """Of each piece, its id, which is the order of merges, and its column."""
        both = zip(self._vocabulary.ids, self._vocabulary.pieces, strict=True)
        return {piece: (rank, column) for column, (rank, piece) in enumerate(both)}

    def of(self, hotwords: tuple[Hotword, ...]) -> ContextGraph | None:
        """Return the graph of a list; None when the model can write none of it."""
        graphs = self._graphs
        graphs[hotwords] = graphs.pop(hotwords) if hotwords in graphs else self._make(hotwords)
        while len(graphs) > 1 and sum(map(len, graphs)) > _MAX_PHRASES:
            del graphs[next(iter(graphs))]
        return graphs[hotwords]

    def _make(self, hotwords: tuple[Hotword, ...]) -> ContextGraph | None:
        phrases: list[tuple[Sequence[int], float]] = []
        refused = 0
        for hotword in hotwords:
            ways = [way for text in spellings(hotword.phrase) if (way := self.encode(text))]
            if not ways:
                refused += 1
                continue
            # the way with the fewest tokens is the usual one, and no other may be worth more
            whole = hotword.score * min(map(len, ways))
            phrases += [(way, whole / len(way)) for way in ways]
        if refused:
            logger.warning("hotwords that the model cannot write count=%d", refused)
        return ContextGraph(phrases, self._joins) if phrases else None

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

    def _joins(self, first: int, second: int) -> bool:
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
