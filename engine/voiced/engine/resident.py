"""The step loop with its caches on the device: per step a handful of numbers crosses.

Keys and values live in two sets of device tensors that are used in turn: a step reads one and
writes the other, so that no tensor is input and output at once. Shapes are fixed: B rows, C cells.

A cell belongs to one row of one step. Which cell that is, the host decides: it mirrors, in
booleans, which cells each live row descends from, and gives a new row any cell that no live row
needs. So the cells last as long as the live histories fit, whatever the number of steps, and
nothing is ever moved. Beams share nearly all of their past. Should they once need more cells than
there are, the rows with the lowest scores are given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Call, DeviceTensor, Session, Tensors
from voiced.engine.decode import DEAD, DecoderShape, Float, Int, StepResult
from voiced.engine.errors import BackendFailed

Bools = npt.NDArray[np.bool_]

UNASKED = 2 * DEAD
"""Score of rows that hold nothing: below that of rows which may not be continued."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the new rows of one utterance go."""

    cells: Int
    """int32[B], the cell of each row; -1 for a row that is given up."""
    histories: Bools
    """bool[B, C], the cells that each row descends from; none for a row that is given up."""

    @property
    def kept(self) -> Bools:
        """bool[B], the rows that go on."""
        return self.cells >= 0


def place(histories: Bools, scores: npt.NDArray[np.floating[Any]]) -> Placement:
    """Give each row a cell that no row needs; when they are too few, to the best rows only.

    Args:
        histories: bool[B, C].
        scores: float[B], best first to keep.

    Raises:
        BackendFailed: Not even one row has room.
    """
    count, cells = histories.shape
    order = np.argsort(-scores, kind="stable")
    taken = np.logical_or.accumulate(histories[order], axis=0).sum(axis=1)
    fits = np.flatnonzero(taken + np.arange(1, count + 1) <= cells)
    if not len(fits):
        raise BackendFailed(f"a text is longer than the decoder's cache of {cells} cells")
    kept = np.sort(order[: fits[-1] + 1])
    placed = np.full(count, -1, np.int32)
    remaining = np.zeros_like(histories)
    remaining[kept] = histories[kept]
    placed[kept] = np.flatnonzero(~remaining.any(axis=0))[: len(kept)]
    return Placement(placed, remaining)


class _Bound:
    """The step graph at one shape: host arrays, and one call for each direction of the caches."""

    def __init__(
        self,
        session: Session,
        sizes: DecoderShape,
        rows: int,
        cross: Tensors,
        caches: Sequence[Mapping[str, DeviceTensor]],
        cell_ids: DeviceTensor,
    ) -> None:
        batch, _, cells = caches[0]["k_0"].shape
        self.cross = cross
        self.cells = cells
        self.cell_ids = cell_ids
        i32, f32 = np.int32, np.float32
        self.inputs: dict[str, npt.NDArray[Any]] = {
            "tokens": np.zeros((batch, rows), i32),
            "positions": np.zeros((batch, rows), i32),
            "parents": np.zeros((batch, rows), i32),
            "cells": np.zeros((batch, rows), i32),
            "own": np.zeros((batch, rows, rows), caches[0]["k_0"].dtype),
            "scores": np.zeros((batch, rows), f32),
        }
        self.outputs: dict[str, npt.NDArray[Any]] = {
            "best_scores": np.zeros((batch, rows + 1), f32),
            "best_rows": np.zeros((batch, rows + 1), i32),
            "best_tokens": np.zeros((batch, rows + 1), i32),
            "end_scores": np.zeros((batch, rows), f32),
        }
        self.specials = session.allocate((batch, rows, sizes.specials), f32)
        self.calls: list[Call] = []
        for past, new in (caches, caches[::-1]):
            inputs: dict[str, Any] = {**self.inputs, **cross, "cell_ids": cell_ids}
            outputs: dict[str, Any] = {**self.outputs, "specials": self.specials}
            for name, tensor in past.items():
                inputs[name if name == "ancestors" else f"self_{name}"] = tensor
                outputs[f"next_{name}"] = new[name]
            self.calls.append(session.bind(inputs, outputs))


class ResidentDecoder:
    """Runs the resident step graph for `n` utterances in lockstep.

    Args:
        open_session: Returns the step graph at axes {"N": batch, "S": span, "C": cells}.
        shape: Its sizes.
        rows: Rows B of the graph.
        cells: Cache length for each span of the cross-attention.
        dtype: Type of keys and values.
    """

    def __init__(
        self,
        open_session: Callable[[Mapping[str, int]], Session],
        shape: DecoderShape,
        *,
        rows: int,
        cells: Mapping[int, int],
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._open_session = open_session
        self._sizes = shape
        self._rows = rows
        self._cells = dict(cells)
        self._dtype = np.dtype(dtype)
        self._bounds: dict[tuple[int, int], _Bound] = {}
        self._caches: dict[tuple[int, int], list[dict[str, DeviceTensor]]] = {}
        self.rows_given_up = 0
        """Rows that were dropped because no cell was left, since the start."""

    def start(self, cross: Tensors, n: int) -> None:
        """Begin with `n` new utterances.

        Args:
            cross: `cross_k_<layer>` and `cross_v_<layer>` float[N, d, S] with N >= n, which must
                stay as they are until the utterances are done.
            n: Utterances; the rest of the N rows is idle.
        """
        batch, _, span = cross["cross_k_0"].shape
        bound = self._bounds.get((batch, span))
        if bound is None or bound.cross is not cross:
            bound = self._bounds[batch, span] = self._bind(cross, batch, span)
        # Written anew each time: a runtime that was replaced in between has forgotten it.
        ids = np.arange(bound.cells, dtype=np.float32)
        bound.cell_ids.write(ids.reshape(1, 1, -1))
        self._bound = bound
        self._n = n
        self._turn = 0
        # No row descends from anything yet: parents of -1 leave out what the last text left.
        self._parents = np.full((n, 1), -1, np.int32)
        self._histories = np.zeros((n, 1, bound.cells), np.bool_)

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
        """Run the graph once, or over a prompt as often as its rows need; see `Decoder.step`."""
        ids = np.asarray(tokens, np.int32)
        places = np.broadcast_to(np.asarray(positions, np.int32), ids.shape)
        asked = np.asarray(scores, np.float32)
        if top > self._rows + 1:
            raise ValueError(f"top must be at most {self._rows + 1}, not {top}")
        if not causal:
            return self._step(ids, places, causal=False, rows=rows, scores=asked, top=top)
        if list(rows) != [ids.shape[1] - 1]:
            raise ValueError(f"a prompt of {ids.shape[1]} is asked at its last row, not {rows}")
        specials = []
        for start in range(0, ids.shape[1], self._rows):
            part = slice(start, start + self._rows)
            count = ids[:, part].shape[1]
            result = self._step(
                ids[:, part],
                places[:, part],
                causal=True,
                rows=[count - 1],
                scores=asked,
                top=top,
            )
            specials.append(self._bound.specials.read()[: self._n, :count])
            # a prompt is one history, which every later row continues
            self._histories = self._histories[:, -1:]
            self._parents = np.full((self._n, 1), count - 1, np.int32)
        return replace(result, specials=np.concatenate(specials, axis=1))

    def follow(self, parents: npt.ArrayLike) -> None:
        """Choose the rows of the next step: int[n, B'], the row of the last step each continues."""
        self._parents = np.array(parents, np.int32)
        index = self._parents.astype(np.int64)[:, :, None]
        self._histories = np.take_along_axis(self._histories, index, axis=1)

    def _step(
        self,
        tokens: Int,
        positions: Int,
        *,
        causal: bool,
        rows: Sequence[int],
        scores: Float,
        top: int,
    ) -> StepResult:
        n, count = tokens.shape
        bound = self._bound
        inputs = bound.inputs
        if self._parents.shape[1] != count:  # one history, continued by several rows
            self._parents = self._parents.repeat(count, axis=1)
            self._histories = self._histories.repeat(count, axis=1)
        sees = self._sizes.seen(tokens, causal=causal)
        inputs["tokens"][:n, :count] = tokens
        inputs["positions"][:n, :count] = positions
        inputs["parents"].fill(-1)
        inputs["cells"].fill(-1)
        inputs["own"].fill(0)
        inputs["own"][:n, :count, :count] = sees
        inputs["scores"].fill(UNASKED)
        inputs["scores"][:n, list(rows)] = scores
        for i in range(n):
            placement = place(self._histories[i], inputs["scores"][i, :count])
            kept, cells = placement.kept, placement.cells
            self.rows_given_up += count - int(kept.sum())
            inputs["parents"][i, :count] = np.where(kept, self._parents[i], -1)
            inputs["cells"][i, :count] = cells
            inputs["scores"][i, :count][~kept] = UNASKED
            placement.histories[:, cells[kept]] |= sees[i][:, kept]
            self._histories[i] = placement.histories
        bound.calls[self._turn].run()
        self._turn = 1 - self._turn
        out = bound.outputs
        answered = np.zeros(self._rows, np.int32)
        answered[list(rows)] = np.arange(len(rows))
        return StepResult(
            best_scores=out["best_scores"][:n, :top],
            best_rows=answered[out["best_rows"][:n, :top]],
            best_tokens=out["best_tokens"][:n, :top],
            end_scores=out["end_scores"][:n, list(rows)],
            specials=np.zeros((n, 0, self._sizes.specials), np.float32),
        )

    def _bind(self, cross: Tensors, batch: int, span: int) -> _Bound:
        cells = self._cells[span]
        session = self._open_session({"N": batch, "S": span, "C": cells})
        caches = self._caches.get((batch, cells))
        if caches is None:
            caches = [self._allocate(session, batch, cells) for _ in range(2)]
            self._caches[batch, cells] = caches
        cell_ids = session.allocate((1, 1, cells), np.float32)
        return _Bound(session, self._sizes, self._rows, cross, caches, cell_ids)

    def _allocate(self, session: Session, batch: int, cells: int) -> dict[str, DeviceTensor]:
        shape = (batch, self._sizes.cell_floats, cells)
        names = [f"{letter}_{i}" for i in range(self._sizes.layers) for letter in "kv"]
        tensors = {name: session.allocate(shape, self._dtype) for name in names}
        tensors["ancestors"] = session.allocate((batch, self._rows, cells), self._dtype)
        return tensors
