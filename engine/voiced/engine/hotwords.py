"""Hotwords: phrases that the search is told to expect (contextual biasing by shallow fusion).

`parse_hotword` reads one as people write it. A `ContextGraph` scores token by token how much of a
phrase a hypothesis has said: an automaton in the manner of Aho and Corasick (1975); `HotwordGraphs`
makes and keeps those of the lists in use. A `HotwordSearch` is the beam search that chooses by
model and bonus together. Pure: what a phrase's tokens are, a model family knows.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from voiced.engine.decode import DEAD, BeamSearch, Float, Hypothesis, Int
from voiced.engine.types import Hotword

logger = logging.getLogger(__name__)

MAX_CHARS = 64
"""Longest phrase."""
MAX_SCORE = 10.0
CANDIDATES = 32
"""Continuations of a step among which those of hotwords are looked for. With 16 a phrase of 26 is
missed that 32 finds; 64 and 128 find no more."""
_MAX_PHRASES = 8_000
"""Of all lists whose graphs are kept."""

_WEIGHT = re.compile(r"(?:^|\s+):(\d+(?:\.\d+)?)$")


def parse_hotword(text: str, score: float) -> Hotword:
    """Read `phrase`, or `phrase :2.5` with a bonus of its own.

    Args:
        text: As written in the settings, a file or a `start`.
        score: Bonus of a phrase that has none of its own.

    Raises:
        ValueError: It says which rule is broken.
    """
    text = text.strip()
    weight = _WEIGHT.search(text)
    if weight is not None:
        text, score = text[: weight.start()], float(weight[1])
    phrase = " ".join(text.split())
    if not any(char.isalnum() for char in phrase):
        raise ValueError("must hold a letter or a digit")
    if any("\ud800" <= char <= "\udfff" for char in phrase):  # bytes of a command line
        raise ValueError("must hold nothing but valid UTF-8")
    if len(phrase) > MAX_CHARS:
        raise ValueError(f"must have at most {MAX_CHARS} characters")
    if not 0 < score <= MAX_SCORE:
        raise ValueError(f"must have a bonus above 0 and up to {MAX_SCORE:g}")
    return Hotword(phrase, score)


class Node:
    """How far a hypothesis is in which phrase."""

    __slots__ = ("base", "before", "children", "depth", "fail", "is_end", "kept", "token", "total")

    def __init__(self, token: int | None, depth: int) -> None:
        self.token, self.depth = token, depth
        self.children: dict[int, Node] = {}
        self.fail: Node = self
        self.is_end = False
        self.total = 0.0
        """Bonus that is paid for the tokens from the root to here."""
        self.before: tuple[float, ...] = ()
        """By length below `depth`: what of `total` is certain for so many of the first tokens."""
        self.base = 0.0
        """What is certain here if the last word goes on."""
        self.kept = 0.0
        """What is certain here if it does not."""


class ContextGraph:
    """What a hypothesis gains or loses by a token.

    Each token that continues a phrase is paid at once; when the match breaks, what was paid is
    taken back, but for phrases that are complete. No token is paid twice, and a phrase is complete
    only where a word ends.

    Args:
        phrases: Tokens and what each of them is worth.
        joins: Whether the second token continues the word that the first ends with.
    """

    def __init__(
        self,
        phrases: Iterable[tuple[Sequence[int], float]],
        joins: Callable[[int, int], bool],
    ) -> None:
        self.root = Node(None, 0)
        self._joins = joins
        for tokens, bonus in phrases:
            node = self.root
            for token in tokens:
                node = node.children.setdefault(token, Node(token, node.depth + 1))
                node.total = max(node.total, node.depth * bonus)
            node.is_end = True
            node.kept = max(node.kept, node.depth * bonus)
        self._link()

    def _link(self) -> None:
        waiting = deque([self.root])
        while waiting:
            parent = waiting.popleft()
            for token, node in parent.children.items():
                joined = parent.token is not None and self._joins(parent.token, token)
                node.base = parent.base if joined else parent.kept
                node.before = (*parent.before, node.base)
                if parent is not self.root:
                    node.fail = self._longest_suffix(parent, token, joined=joined)
                else:
                    node.fail = self.root
                node.kept = max(node.base, node.kept)
                suffix = node.fail
                while suffix is not self.root:
                    if suffix.is_end:
                        whole = node.before[node.depth - suffix.depth] + suffix.kept
                        node.kept = max(node.kept, whole)
                    suffix = suffix.fail
                node.total = max(node.total, node.kept)
                waiting.append(node)

    def _longest_suffix(self, parent: Node, token: int, *, joined: bool) -> Node:
        """The longest phrase beginning that ends the path to `parent` and then `token`."""
        suffix = parent.fail
        while token not in suffix.children or (joined and suffix is self.root):
            if suffix is self.root:
                return self.root
            suffix = suffix.fail
        return suffix.children[token]

    def step(self, node: Node, last: int | None, token: int) -> tuple[Node, float]:
        """Say where a hypothesis is after one more token, and what that changes.

        Args:
            node: Where it is; `root` at the beginning.
            last: Its last token; None at the beginning.
            token: The next one.
        """
        joined = last is not None and self._joins(last, token)
        certain = node.base if joined else node.kept
        suffix = node
        while True:
            child = suffix.children.get(token)
            # a phrase begins with a word; and what is complete is not given up for an overlap
            if child is not None and not (joined and suffix is self.root):
                before = self._before(node, node.depth - suffix.depth, certain)
                if before == certain or suffix is node:
                    return child, before + child.total - node.total
            if suffix is self.root:
                return self.root, certain - node.total
            suffix = suffix.fail

    @staticmethod
    def _before(node: Node, length: int, certain: float) -> float:
        """What is certain of the first so many tokens on the path to a node."""
        return node.before[length] if length < node.depth else certain

    def finish(self, node: Node) -> float:
        """What changes when the text ends here."""
        return node.kept - node.total


class HotwordGraphs:
    """Makes the context graph of a list of hotwords, and keeps it for the next utterance.

    Args:
        ways: The tokens of each way in which the model may write a phrase; none if it cannot.
        joins: Whether the second token continues the word that the first ends with.
    """

    def __init__(
        self, ways: Callable[[str], Sequence[Sequence[int]]], joins: Callable[[int, int], bool]
    ) -> None:
        self._ways, self._joins = ways, joins
        self._graphs: dict[tuple[Hotword, ...], ContextGraph | None] = {}
        """By list, that of the latest utterance last."""

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
            ways = self._ways(hotword.phrase)
            if not ways:
                refused += 1
                continue
            # the way with the fewest tokens is the usual one, and no other may be worth more
            whole = hotword.score * min(map(len, ways))
            phrases += [(way, whole / len(way)) for way in ways]
        if refused:
            logger.warning("hotwords that the model cannot write count=%d", refused)
        return ContextGraph(phrases, self._joins) if phrases else None


class HotwordSearch(BeamSearch):
    """A beam search that chooses by the model's scores and the bonus of a context graph together.

    Args:
        beam: Rows kept.
        max_tokens: Longest text.
        graph: Scores the tokens.
        top: Candidates of a step to choose among, at least `beam`: a word that the model finds
            unlikely must be one of them.
    """

    def __init__(self, *, beam: int, max_tokens: int, graph: ContextGraph, top: int) -> None:
        super().__init__(beam=beam, max_tokens=max_tokens)
        self.top = top
        self._graph = graph
        self._nodes: list[Node] = []
        self._bonus: list[tuple[float, ...]] = []
        """What of each row's score is bonus, after each of its tokens."""

    def begin(self, scores: Float, tokens: Int, *, banned: frozenset[int]) -> None:
        """Take the first tokens; at least `top` + len(`banned`) of them."""
        ways = [self._graph.step(self._graph.root, None, int(t)) for t in tokens]
        biased = np.array([s + gain for s, (_, gain) in zip(scores, ways, strict=True)], np.float32)
        order = [i for i in np.argsort(-biased, kind="stable") if int(tokens[i]) not in banned]
        order = order[: self.beam]
        super().begin(biased[order], tokens[order], banned=banned)
        self._nodes = [ways[i][0] for i in order]
        self._bonus = [(ways[i][1],) for i in order]

    def advance(self, scores: Float, parents: Int, tokens: Int, ends: Float) -> None:
        """Take one step's answer: `top` candidates; see `BeamSearch.advance`."""
        ways: list[tuple[Node, float]] = []
        biased = np.array(scores, np.float32)
        for i, (row, token) in enumerate(zip(parents, tokens, strict=True)):
            if scores[i] <= DEAD:
                ways.append((self._graph.root, 0.0))
                continue
            node, gain = self._graph.step(self._nodes[row], self.rows[row][-1], int(token))
            biased[i] += gain
            ways.append((node, self._bonus[row][-1] + gain))
        order = np.argsort(-biased, kind="stable")[: self.beam]
        last: npt.NDArray[np.float64] = np.array([self._graph.finish(n) for n in self._nodes])
        super().advance(biased[order], parents[order], tokens[order], (ends + last).astype("f4"))
        self._nodes = [ways[i][0] for i in order]
        self._bonus = [(*self._bonus[parents[i]], ways[i][1]) for i in order]

    def _close(self, row: int, total: float, *, ended: bool) -> Hypothesis:
        found = super()._close(row, total, ended=ended)
        bonus = self._bonus[row][-1] + (self._graph.finish(self._nodes[row]) if ended else 0.0)
        mean = bonus / (len(found.tokens) + 1)
        gains = (after - before for before, after in pairwise((0.0, *self._bonus[row])))
        own = tuple(both - gain for both, gain in zip(found.log_probs, gains, strict=True))
        return replace(found, score=found.score - mean, bonus=mean, log_probs=own)
