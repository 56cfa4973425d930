"""A decoder whose utterances come and go: one joins between two steps, and leaves when it is done.

The one that joins has run its prompt in a `StepDecoder` of its own. What it finds here does not
depend on who shares the steps: rows are quantised one by one, and masks hide the neighbours'
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voiced.engine.backends.base import Session
from voiced.engine.cells import CellCache, DecoderShape, SpanCache
from voiced.engine.decode import DEAD, BeamSearch, StepDecoder
from voiced.engine.stepping import StepGraph


@dataclass(frozen=True, slots=True)
class Rows:
    """The live rows of one utterance before a step."""

    search: BeamSearch
    position: int
    """Of the tokens that go in now."""


class SlotDecoder:
    """Runs a packed step graph over utterances in slots, numbered from 0 without gaps.

    Args:
        session: The step graph.
        shape: Its cache sizes.
        cells: Cache lengths to choose from, ascending.
        ids: int[columns], the token of each column of the projection.
        max_batch: Most utterances at once.
        max_rows: Widest beam.
        positions: Cross-attention positions of all slots together, padding included.
    """

    def __init__(
        self,
        session: Session,
        shape: DecoderShape,
        *,
        cells: Sequence[int],
        ids: Sequence[int],
        max_batch: int,
        max_rows: int,
        positions: int,
    ) -> None:
        self._graph = StepGraph(session, shape, max_batch=max_batch, max_rows=max_rows)
        self._shape = shape
        self._cells = CellCache(shape, cells, max_batch=max_batch)
        self._spans = SpanCache(shape, max_batch=max_batch, positions=positions)
        self._ids = np.asarray(ids, np.int32)
        self.nbytes = self._graph.nbytes + self._cells.nbytes + self._spans.nbytes

    @property
    def n(self) -> int:
        """Utterances inside."""
        return self._spans.n

    @property
    def span(self) -> int:
        """Cross-attention positions of each slot, padding included."""
        return self._spans.span

    @property
    def padding(self) -> int:
        """Cross-attention positions, of all slots together, that hold nothing."""
        return self._spans.padding

    def holds(self, span: int) -> bool:
        """Whether one more utterance of `span` cross-attention positions can join."""
        return self._spans.holds(span)

    def join(self, one: StepDecoder, rows: int) -> None:
        """Take over the only utterance of another decoder, whose prompt has run, as the last slot.

        Args:
            one: The other decoder.
            rows: How many rows continue the prompt.
        """
        mask = one.cross.mask()
        assert mask is not None  # a packed graph takes it
        self._spans.append(one.cross.views(), mask[0, 0, 0].copy())
        self._cells.adopt(one.cells, rows)

    def leave(self, slot: int) -> None:
        """Take an utterance out; the one in the last slot is in this slot from now on."""
        self._spans.remove(slot)
        self._cells.remove(slot)

    def clear(self) -> None:
        """Take all out."""
        while self.n:
            self.leave(self.n - 1)

    def step(self, rows: Sequence[Rows]) -> None:
        """Run one step of every search, in the order of their slots; none of them is done."""
        n, most = len(rows), max(len(each.search.rows) for each in rows)
        top = max(each.search.top for each in rows)
        tokens = np.zeros((n, most), np.int32)
        positions = np.zeros((n, most), np.int32)
        scores = np.full((n, most), DEAD, np.float32)
        for slot, each in enumerate(rows):
            count = len(each.search.rows)
            tokens[slot, :count] = self._ids[[row[-1] for row in each.search.rows]]
            positions[slot] = each.position
            scores[slot, :count] = each.search.scores
        live = scores > DEAD
        counts = [len(each.search.rows) for each in rows]
        self._cells.make_room(counts)
        result = self._graph.run(
            tokens,
            positions,
            live=live,
            asked=np.arange(most, dtype=np.int32),
            scores=scores,
            top=top,
            own=self._shape.seen(tokens, causal=False),
            rows=counts,
            cells=self._cells,
            cross=self._spans,
        )
        parents = np.full((n, max(each.search.beam for each in rows)), -1, np.int64)
        for slot, each in enumerate(rows):
            search = each.search
            search.advance(
                result.best_scores[slot, : search.top],
                result.best_rows[slot, : search.top],
                result.best_tokens[slot, : search.top],
                result.end_scores[slot, : len(search.rows)],
            )
            parents[slot, : search.beam] = search.parents
        self._cells.follow(parents)
