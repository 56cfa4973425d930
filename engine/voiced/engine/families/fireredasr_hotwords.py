"""Hotwords in FireRedASR's tokens, and the search that they guide. Pure."""

from __future__ import annotations

import itertools
import re
import unicodedata

import numpy as np

from voiced.engine.families.fireredasr_search import (
    FireRedBeamSearch,
    FireRedHypothesis,
    Offer,
    SearchRules,
)
from voiced.engine.families.fireredasr_text import MARKS, Tokens, is_han
from voiced.engine.families.fireredasr_words import WORD_START
from voiced.engine.hotwords import ContextGraph, Node
from voiced.engine.text import chinese_converter

_WORDS = re.compile(r"[\w']+")
_MOST_WAYS = 4
"""Of cutting one word, and of writing one phrase."""


class FireRedSpelling:
    """Cuts phrases into tokens: a character of Mandarin is one, a word of Latin letters several.

    The rules by which the training texts were cut are not in a bundle. So a word is looked for in
    the ways that need the fewest pieces, as a byte pair encoding mostly does.
    """

    def __init__(self, tokens: Tokens) -> None:
        written = tokens.written(range(len(tokens)))
        self._ids = {token: i for i, token in enumerate(written) if token not in MARKS}
        self._longest = max(map(len, self._ids), default=0)
        self._is_upper = all(token == token.upper() for token in self._ids)
        self._pieces = {i: token for token, i in self._ids.items() if not is_han(token)}

    def ways(self, phrase: str) -> list[list[int]]:
        """Tokens of each way in which the model may write a phrase; none if it cannot.

        Mandarin is looked for in simplified characters, and as it is given.
        """
        text = unicodedata.normalize("NFC", phrase)
        text = text.upper() if self._is_upper else text.lower()
        texts = [text] if text.isascii() else [chinese_converter("t2s").convert(text), text]
        return [way for each in dict.fromkeys(texts) for way in self._ways_of(each)]

    def _ways_of(self, text: str) -> list[list[int]]:
        parts: list[list[list[int]]] = []
        for word in _WORDS.findall(text):
            for is_character, run in itertools.groupby(word, is_han):
                if is_character:
                    parts += [[[self._ids[c]]] if c in self._ids else [] for c in run]
                else:
                    parts.append(self._cuts("".join(run)))
        if not all(parts):  # by itself empty, the model cannot write it
            return []
        whole = itertools.islice(itertools.product(*parts), _MOST_WAYS)
        return [[token for part in way for token in part] for way in whole]

    def tokens_of(self, word: str) -> int:
        """How many tokens a word takes; 0 if it cannot be written."""
        return min(map(len, self.ways(word)), default=0)

    def _cuts(self, word: str) -> list[list[int]]:
        """The ways to cut a word that need the fewest pieces."""
        text = WORD_START + word
        best: list[list[list[int]]] = [[[]]]  # of each beginning of the text
        for end in range(1, len(text) + 1):
            found = [
                [*way, self._ids[text[begin:end]]]
                for begin in range(max(0, end - self._longest), end)
                if text[begin:end] in self._ids
                for way in best[begin]
            ]
            fewest = min(map(len, found), default=0)
            best.append([way for way in found if len(way) == fewest][:_MOST_WAYS])
        return best[-1]

    def joins(self, first: int, second: int) -> bool:
        """Whether the second token continues the word that the first ends with."""
        piece = self._pieces.get(second, WORD_START)
        return first in self._pieces and not piece.startswith(WORD_START)


class FireRedHotwordSearch(FireRedBeamSearch):
    """A search that chooses by the model's scores and the bonus of a context graph together.

    What it returns holds the model's scores alone.

    Args:
        rules: As without hotwords.
        graph: Scores the tokens.
        candidates: Continuations of a step to choose among; at least as many as rows are kept.
    """

    def __init__(self, rules: SearchRules, graph: ContextGraph, *, candidates: int) -> None:
        super().__init__(rules)
        self.top = max(self.top, candidates)
        self._graph = graph
        self._places = [(graph.root, 0.0)]
        """Of each row, how far it is in the graph and what was paid for it."""

    def _worth(self, i: int) -> np.float32:
        return np.float32(self._rows[i].score + self._places[i][1])

    def _choose(self, offers: list[Offer]) -> list[Offer]:
        places = [self._place(offer) for offer in offers]
        worth = [offer.total + paid for offer, (_, paid) in zip(offers, places, strict=True)]
        order = sorted(range(len(offers)), key=lambda i: -worth[i])[: self._beam]
        self._places = [places[i] for i in order]
        return [offers[i] for i in order]

    def _place(self, offer: Offer) -> tuple[Node, float]:
        """Where a row stands with an offer taken."""
        row, (node, paid) = self._rows[offer.parent], self._places[offer.parent]
        if row.ended:
            return node, paid
        if offer.token == self._end:
            return node, paid + self._graph.finish(node)
        last = row.tokens[-1] if row.tokens else None
        node, gain = self._graph.step(node, last, offer.token)
        return node, paid + gain

    def results(self) -> list[FireRedHypothesis]:
        """Hypotheses, best first by score and bonus."""
        self._places = [
            (node, paid if row.ended else paid + self._graph.finish(node))
            for row, (node, paid) in zip(self._rows, self._places, strict=True)
        ]
        return super().results()
