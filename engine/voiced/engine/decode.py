"""Beam search, in two halves that know nothing of each other.

`BeamSearch` decides: candidates in, hypotheses out; no arrays of the model, no graph.
A `Decoder` runs the step graph over a batch of utterances and keeps the self-attention cache:
`StepDecoder` here in host arrays, `ResidentDecoder` (`resident.py`) on the device.

The cache holds one cell per (step, row) of an utterance and is never reordered: `ancestors` marks,
per live row, the cells of its own history, and becomes the additive mask of the next step. When
the cells run out, those that no live row descends from are dropped; live rows of a beam share
nearly all of their history, so that a beam of 5 needs few more cells than one row would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Call, Session

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

MASKED = -1e4
"""Additive mask: zero after softmax, still finite in float16."""
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
            if all(tokens[-1 - i] == tokens[-1 - i - period] for i in range(period * (times - 1))):
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


class BeamSearch:
    """The search of one utterance: keeps `beam` live rows until nothing better can come.

    A row ends where stopping scores among its step's best `beam` candidates. The search stops when
    `beam` hypotheses ended, when one of them scores better than any live row (on dev speech the
    same texts as waiting for all), or at `max_tokens`.
    """

    def __init__(self, *, beam: int, max_tokens: int) -> None:
        self._beam = beam
        self._max_tokens = max_tokens
        self.rows: list[tuple[int, ...]] = []
        """Tokens of each live row."""
        self.scores: list[float] = []
        """Summed log-probability of each live row; `DEAD` for one that may not go on."""
        self._ended: list[Hypothesis] = []
        self.done = False

    def begin(self, scores: Float, tokens: Int, *, banned: frozenset[int]) -> None:
        """Take the first tokens, best first; at least `beam` + len(`banned`) of them."""
        kept = [i for i, t in enumerate(tokens) if int(t) not in banned][: self._beam]
        self.rows = [(int(tokens[i]),) for i in kept]
        self.scores = [float(scores[i]) for i in kept]

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
                self._ended.append(self._close(row, float(end)))
        before = self.rows
        self.rows = [(*before[p], int(t)) for p, t in zip(parents, tokens, strict=True)]
        self.scores = [
            DEAD if float(s) <= DEAD or in_loop(row) else float(s)
            for s, row in zip(scores, self.rows, strict=True)
        ]
        self.done = self._finished()

    def _close(self, row: int, total: float) -> Hypothesis:
        tokens = self.rows[row]
        return Hypothesis(tokens, total / (len(tokens) + 1), ended=True)

    def _finished(self) -> bool:
        length, best_live = len(self.rows[0]), max(self.scores)
        if len(self._ended) >= self._beam or length >= self._max_tokens or best_live <= DEAD:
            return True
        if not self._ended:
            return False
        return max(h.score for h in self._ended) >= best_live / (length + 1)

    def results(self) -> list[Hypothesis]:
        """Hypotheses, best first: those that ended, else the best live row."""
        if self._ended:
            return sorted(self._ended, key=lambda h: h.score, reverse=True)
        best = max(range(len(self.rows)), key=self.scores.__getitem__)
        tokens = self.rows[best]
        return [Hypothesis(tokens, self.scores[best] / (len(tokens) + 1), ended=False)]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of the step graph's caches."""

    layers: int
    heads: int
    d_head: int
    specials: int

    @property
    def cell_floats(self) -> int:
        """Floats of one cell in one layer's keys (or values)."""
        return self.heads * self.d_head


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step answered, valid until the next."""

    best_scores: Float
    """float32[n, top], summed log-probabilities of the best continuations, best first."""
    best_rows: Int
    """int32[n, top], the answered row that each continues."""
    best_tokens: Int
    """int32[n, top], columns of the projection."""
    end_scores: Float
    """float32[n, rows], the score of stopping at each answered row."""
    specials: Float
    """float32[n, B, specials], logits of the special tokens; of a prompt only."""


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
        self._session = session
        self._shape = shape
        self._cells = tuple(cells)
        layers = range(shape.layers)
        cache = max_batch * self._cells[-1] * shape.cell_floats
        fresh = max_batch * max_rows * shape.cell_floats
        # pages of the cache that short utterances never reach are never touched
        self._cache = {f"{kv}_{i}": np.zeros(cache, np.float32) for kv in "kv" for i in layers}
        self._fresh = {f"{kv}_{i}": np.zeros(fresh, np.float32) for kv in "kv" for i in layers}
        self.nbytes = sum(a.nbytes for a in (*self._cache.values(), *self._fresh.values()))
        self._call: Call | None = None
        self._bound: tuple[int, ...] = ()
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._outputs: dict[str, npt.NDArray[Any]] = {}

    def start(self, cross: dict[str, Float]) -> None:
        """Begin with new utterances.

        Args:
            cross: `cross_k_<layer>` float32[n, H, dk, S] and `cross_v_<layer>`
                float32[n, H, S, dk], which must stay as they are until the utterances are done.
        """
        self._cross = cross
        self._n = next(iter(cross.values())).shape[0]
        self._size = self._cells[0]
        self._used = 0
        self._bound = ()
        self._ancestors = np.zeros((self._n, 1, self._size), np.bool_)

    @property
    def cells_used(self) -> int:
        """Cells written since `start` or the last compaction."""
        return self._used

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
        self._make_room(count)
        self._bind(count, len(rows), top)
        inputs = self._inputs
        inputs["tokens"][:] = ids
        inputs["positions"][:] = positions
        inputs["rows"][:] = rows
        inputs["scores"][:] = scores
        np.multiply(~self._ancestors, np.float32(MASKED), out=inputs["cache_mask"][:, 0])
        own = np.tri(count, dtype=np.bool_) if causal else np.eye(count, dtype=np.bool_)
        np.multiply(~own, np.float32(MASKED), out=inputs["new_mask"][:, 0])
        assert self._call is not None
        self._call.run()
        place = slice(self._used, self._used + count)
        for layer in range(self._shape.layers):
            inputs[f"self_k_{layer}"][..., place] = self._outputs[f"new_k_{layer}"]
            inputs[f"self_v_{layer}"][:, :, place] = self._outputs[f"new_v_{layer}"]
        # a row now descends from its own cell, and in a prompt from those before it
        self._ancestors[:, :, place] = own
        if causal:
            self._ancestors = self._ancestors[:, -1:]
        self._used += count
        out = self._outputs
        return StepResult(
            out["best_scores"],
            out["best_rows"],
            out["best_tokens"],
            out["end_scores"],
            out["specials"],
        )

    def follow(self, parents: npt.ArrayLike) -> None:
        """Choose the rows of the next step: int[n, B'], the row of the last step each continues."""
        index = np.asarray(parents, np.int64)[:, :, None]
        self._ancestors = np.take_along_axis(self._ancestors, index, axis=1)

    def _make_room(self, count: int) -> None:
        rows = self._ancestors.shape[1]
        if rows != count:  # one history, continued by several rows
            self._ancestors = self._ancestors.repeat(count, axis=1)
        if self._used + count <= self._size:
            return
        kept = [np.flatnonzero(self._ancestors[i].any(axis=0)) for i in range(self._n)]
        longest = max(len(k) for k in kept)
        # a few steps must fit, else compaction would run on every step
        wanted = longest + 4 * count
        size = next((c for c in self._cells if c >= wanted), self._cells[-1])
        self._move(kept, longest, size)

    def _move(self, kept: list[npt.NDArray[np.int64]], longest: int, size: int) -> None:
        """Keep only the cells `kept` of each utterance, in a cache of `size` cells."""
        for layer in range(self._shape.layers):
            old_k, old_v = (self._view(f"{kv}_{layer}", self._size) for kv in "kv")
            saved = [(old_k[i][..., k], old_v[i][:, k]) for i, k in enumerate(kept)]  # copies
            new_k, new_v = (self._view(f"{kv}_{layer}", size) for kv in "kv")
            for i, (k, v) in enumerate(saved):
                new_k[i][..., : k.shape[-1]] = k
                new_v[i][:, : v.shape[1]] = v
        ancestors = np.zeros((self._n, self._ancestors.shape[1], size), np.bool_)
        for i, k in enumerate(kept):
            ancestors[i, :, : len(k)] = self._ancestors[i][:, k]
        self._ancestors, self._size, self._used = ancestors, size, longest
        self._bound = ()

    def _view(self, name: str, size: int) -> Float:
        s = self._shape
        flat = self._cache[name][: self._n * size * s.cell_floats]
        last = (s.d_head, size) if name.startswith("k") else (size, s.d_head)
        return flat.reshape(self._n, s.heads, *last)

    def _bind(self, count: int, answered: int, top: int) -> None:
        wanted = (count, answered, top)
        if self._bound == wanted:
            return
        n, s = self._n, self._shape
        f32, i32 = np.float32, np.int32
        self._inputs = {
            "tokens": np.zeros((n, count), i32),
            "positions": np.zeros((n, count), i32),
            "rows": np.zeros(answered, i32),
            "scores": np.zeros((n, answered), f32),
            "top": np.array([top], np.int64),
            "cache_mask": np.zeros((n, 1, count, self._size), f32),
            "new_mask": np.zeros((n, 1, count, count), f32),
            **self._cross,
        }
        self._outputs = {
            "best_scores": np.zeros((n, top), f32),
            "best_rows": np.zeros((n, top), i32),
            "best_tokens": np.zeros((n, top), i32),
            "end_scores": np.zeros((n, answered), f32),
            "specials": np.zeros((n, count, s.specials), f32),
            "norm": np.zeros((n, answered), f32),
        }
        fresh = n * count * s.cell_floats
        for i in range(s.layers):
            self._inputs[f"self_k_{i}"] = self._view(f"k_{i}", self._size)
            self._inputs[f"self_v_{i}"] = self._view(f"v_{i}", self._size)
            new_k, new_v = self._fresh[f"k_{i}"][:fresh], self._fresh[f"v_{i}"][:fresh]
            self._outputs[f"new_k_{i}"] = new_k.reshape(n, s.heads, s.d_head, count)
            self._outputs[f"new_v_{i}"] = new_v.reshape(n, s.heads, count, s.d_head)
        self._call = self._session.bind(self._inputs, self._outputs)
        self._bound = wanted
