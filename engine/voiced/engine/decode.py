"""Beam search, in two halves that know nothing of each other.

`BeamSearch` decides: candidates in, hypotheses out; no arrays of the model, no graph.
A `Decoder` runs the step graph over a batch of utterances and keeps the self-attention cache:
`StepDecoder` here in host arrays, `ResidentDecoder` (`resident.py`) on the device. A `SlotDecoder`
(`slots.py`) runs it over utterances that come and go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Session
from voiced.engine.cells import MASKED, CellCache, DecoderShape
from voiced.engine.stepping import StepGraph, StepResult

__all__ = [
    "DEAD",
    "MASKED",
    "BeamSearch",
    "Decoder",
    "DecoderShape",
    "Float",
    "Hypothesis",
    "Int",
    "StepDecoder",
    "StepResult",
    "in_loop",
]

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

DEAD = -1e4
"""Score of a row that must not be continued."""

REPEATS = ((1, 2, 6), (3, 8, 4), (9, 24, 3))
"""(shortest period, longest period, times): a hypothesis that ends in so many copies of one
phrase is in a loop. Tuned on dev speech: honest text never comes near it."""


def in_loop(tokens: Sequence[int]) -> bool:
    """Say whether `tokens` end in a phrase said again and again."""
    count = len(tokens)
    for shortest, longest, times in REPEATS:
        for period in range(shortest, min(longest, count // times) + 1):
            if tokens[-1] == tokens[-1 - period] and all(
                tokens[-1 - i] == tokens[-1 - i - period] for i in range(1, period * (times - 1))
            ):
                return True
    return False


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way to read the utterance."""

    tokens: tuple[int, ...]
    score: float
    """Mean log-probability per token, the end of text counted."""
    ended: bool
    """The model ended it by itself; False after a loop or the token limit."""
    bonus: float = 0.0
    """Of hotwords, per token; what it was ranked by beside `score`."""
    log_probs: tuple[float, ...] = ()
    """Of each token; empty: not known."""

    @property
    def rank(self) -> float:
        """The higher, the better."""
        return self.score + self.bonus


class BeamSearch:
    """The search of one utterance: keeps `beam` live rows until nothing better can come.

    A row ends where stopping scores among its step's best `beam` candidates. The search stops when
    `beam` hypotheses ended, when one of them scores better than any live row (on dev speech the
    same texts as waiting for all), or at `max_tokens`.
    """

    def __init__(self, *, beam: int, max_tokens: int) -> None:
        self.beam = beam
        """Rows kept."""
        self.top = beam
        """Candidates that `advance` wants."""
        self._max_tokens = max_tokens
        self.rows: list[tuple[int, ...]] = []
        """Tokens of each live row."""
        self.scores: list[float] = []
        """Summed log-probability of each live row; `DEAD` for one that may not go on."""
        self.parents: list[int] = []
        """The row of the last step that each row continues."""
        self._totals: list[tuple[float, ...]] = []
        """The score of each live row after each of its tokens."""
        self._ended: list[Hypothesis] = []
        self.done = False

    def begin(self, scores: Float, tokens: Int, *, banned: frozenset[int]) -> None:
        """Take the first tokens, best first; at least `beam` + len(`banned`) of them."""
        kept = [i for i, t in enumerate(tokens) if int(t) not in banned][: self.beam]
        self.rows = [(int(tokens[i]),) for i in kept]
        self.scores = [float(scores[i]) for i in kept]
        self._totals = [(score,) for score in self.scores]

    def advance(self, scores: Float, parents: Int, tokens: Int, ends: Float) -> None:
        """Take one step's answer.

        Args:
            scores: float32[beam], summed log-probability of the best continuations, best first.
            parents: int32[beam], the row that each continues.
            tokens: int32[beam], the token that each adds.
            ends: float32[rows], summed log-probability of ending each live row here.
        """
        worst = float(scores[-1])
        for row, end in enumerate(ends):
            if float(end) > worst and self.scores[row] > DEAD:
                self._ended.append(self._close(row, float(end), ended=True))
        before, self.parents = self.rows, [int(p) for p in parents]
        self.rows = [(*before[p], int(t)) for p, t in zip(self.parents, tokens, strict=True)]
        self.scores = [
            DEAD if float(s) <= DEAD or in_loop(row) else float(s)
            for s, row in zip(scores, self.rows, strict=True)
        ]
        self._totals = [
            (*self._totals[p], s) for p, s in zip(self.parents, self.scores, strict=True)
        ]
        self.done = self._finished()

    def _close(self, row: int, total: float, *, ended: bool) -> Hypothesis:
        tokens = self.rows[row]
        steps = tuple(after - before for before, after in pairwise((0.0, *self._totals[row])))
        return Hypothesis(tokens, total / (len(tokens) + 1), ended, log_probs=steps)

    def _finished(self) -> bool:
        length, best_live = len(self.rows[0]), max(self.scores)
        if len(self._ended) >= self.beam or length >= self._max_tokens or best_live <= DEAD:
            return True
        if not self._ended:
            return False
        return max(h.rank for h in self._ended) >= best_live / (length + 1)

    def results(self) -> list[Hypothesis]:
        """Hypotheses, best first: those that ended, else the best live row."""
        if self._ended:
            return sorted(self._ended, key=lambda h: h.rank, reverse=True)
        best = max(range(len(self.rows)), key=self.scores.__getitem__)
        return [self._close(best, self.scores[best], ended=False)]


class Decoder(Protocol):
    """Runs the step graph for `n` utterances in lockstep."""

    def step(
        self,
        tokens: npt.ArrayLike,
        positions: npt.ArrayLike,
        *,
        causal: bool,
        rows: Sequence[int],
        scores: npt.ArrayLike,
        top: int,
    ) -> StepResult:
        """Run the graph over new tokens and keep their keys and values.

        Args:
            tokens: int[n, B].
            positions: int[n, B].
            causal: The B tokens follow each other (a prompt); otherwise they are alternatives.
            rows: Which of the B are answered; of a prompt the last one.
            scores: float[n, len(rows)], summed log-probabilities so far.
            top: Continuations to return.
        """
        ...

    def follow(self, parents: npt.ArrayLike) -> None:
        """Choose the rows of the next step: int[n, B'], the row of the last step each continues."""
        ...


class HeldCross:
    """Cross-attention keys, values and mask of utterances that are decoded where they lie.

    Args:
        arrays: See `StepDecoder.start`.
    """

    def __init__(self, arrays: Mapping[str, Float]) -> None:
        self._mask = arrays.get("cross_mask")
        self._views = {name: a for name, a in arrays.items() if name != "cross_mask"}

    @property
    def place(self) -> tuple[int, ...]:
        """Where the arrays lie: address and shape of the first."""
        first = self._views["cross_k_0"]
        return int(first.__array_interface__["data"][0]), *first.shape

    def views(self) -> Mapping[str, Float]:
        """The graph's inputs `cross_k_<layer>` and `cross_v_<layer>`."""
        return self._views

    def mask(self) -> Float | None:
        """The graph's input `cross_mask`, float32[n, 1, 1, span]; None where it takes none."""
        return self._mask


class StepDecoder:
    """Runs the step graph for `n` utterances in lockstep, with memory that is allocated once.

    Args:
        session: The step graph.
        shape: Its cache sizes.
        cells: Cache lengths to choose from, ascending: the decoder's own gears.
        max_batch: Most utterances at once.
        max_rows: Most rows of one utterance in one step.
    """

    def __init__(
        self,
        session: Session,
        shape: DecoderShape,
        *,
        cells: Sequence[int],
        max_batch: int,
        max_rows: int,
    ) -> None:
        self._shape = shape
        self._graph = StepGraph(session, shape, max_batch=max_batch, max_rows=max_rows)
        self.cells = CellCache(shape, cells, max_batch=max_batch)
        self.cross = HeldCross({})
        self.nbytes = self._graph.nbytes + self.cells.nbytes

    def start(self, cross: Mapping[str, Float]) -> None:
        """Begin with new utterances.

        Args:
            cross: `cross_k_<layer>` and `cross_v_<layer>` as the graph takes them, and `cross_mask`
                float32[n, 1, 1, S] where it takes one. They must stay as they are until the
                utterances are done.
        """
        self.cross = HeldCross(cross)
        self.cells.clear(next(iter(cross.values())).shape[0])

    @property
    def cells_used(self) -> int:
        """Cells written since `start` or the last compaction."""
        return max(self.cells.used)

    def step(
        self,
        tokens: npt.ArrayLike,
        positions: npt.ArrayLike,
        *,
        causal: bool,
        rows: Sequence[int],
        scores: npt.ArrayLike,
        top: int,
    ) -> StepResult:
        """Run the graph once and write the new cells; see `Decoder.step`."""
        ids = np.asarray(tokens, np.int32)
        count = ids.shape[1]
        self.cells.make_room([count] * len(ids))
        result = self._graph.run(
            ids,
            positions,
            live=None,
            asked=np.asarray(rows, np.int32),
            scores=scores,
            top=top,
            own=self._shape.seen(ids, causal=causal),
            rows=[count] * len(ids),
            cells=self.cells,
            cross=self.cross,
        )
        if causal:  # what comes next continues the last token of the prompt
            self.cells.ancestors = self.cells.ancestors[:, -1:]
        return result

    def follow(self, parents: npt.ArrayLike) -> None:
        """Choose the rows of the next step: int[n, B'], the row of the last step each continues."""
        self.cells.follow(parents)
