"""One run of the step graph: the arrays that it reads and writes, bound once for each shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Call, Session
from voiced.engine.cells import MASKED, CellCache, DecoderShape

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

_BOUND = 32
"""Shapes whose bindings are kept."""


class Cross(Protocol):
    """Keys and values of the encoder's output, where they lie."""

    @property
    def place(self) -> tuple[int, ...]:
        """Tells where the arrays lie: equal only where memory and shapes of all are."""
        ...

    def views(self) -> Mapping[str, Float]:
        """The graph's inputs `cross_k_<layer>` and `cross_v_<layer>`."""
        ...

    def mask(self) -> Float | None:
        """The graph's input `cross_mask`, float32[n, 1, 1, span]; None where it takes none."""
        ...


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


@dataclass(frozen=True, slots=True)
class _Bound:
    call: Call
    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]


class StepGraph:
    """Runs the step graph over any number of slots and rows up to the limits.

    Args:
        session: The graph.
        shape: Its cache sizes, and whether it is packed.
        max_batch: Most slots.
        max_rows: Most rows of a slot.
    """

    def __init__(
        self, session: Session, shape: DecoderShape, *, max_batch: int, max_rows: int
    ) -> None:
        self._session = session
        self._shape = shape
        floats = max_batch * max_rows * shape.cell_floats
        self._fresh = {
            f"{kv}_{i}": np.zeros(floats, np.float32) for kv in "kv" for i in range(shape.layers)
        }
        self.nbytes = sum(a.nbytes for a in self._fresh.values())
        self._bound: OrderedDict[tuple[int, ...], _Bound] = OrderedDict()

    def run(
        self,
        tokens: Int,
        positions: npt.ArrayLike,
        *,
        live: Bool | None,
        asked: Int,
        scores: npt.ArrayLike,
        top: int,
        own: Bool,
        rows: Sequence[int],
        cells: CellCache,
        cross: Cross,
    ) -> StepResult:
        """Run once and keep the new cells.

        Args:
            tokens: int32[n, B].
            positions: int[n, B].
            live: bool[n, B], the rows that are to be computed; None for all.
            asked: int32[R], the rows of each slot that are answered.
            scores: float[n, R], summed log-probabilities so far.
            top: Continuations to return.
            own: bool[n, B, B], which of the new cells each row sees and descends from.
            rows: How many of the B rows each slot has, its first.
            cells: The cache, with room for B cells.
            cross: What the encoder left.
        """
        n, width = tokens.shape
        packed = self._shape.packed
        living = np.flatnonzero(live) if packed and live is not None else None
        count = n * width if living is None else len(living)
        answers = count if len(asked) == width else n * len(asked)
        key = (n, width, len(asked), top, cells.size, count, *cross.place)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(key, answers, cells, cross)
        inputs, outputs = bound.inputs, bound.outputs
        inputs["tokens"][:] = tokens
        inputs["positions"][:] = positions
        inputs["scores"][:] = scores
        if packed:
            _point(inputs, n, width, living, asked)
        else:
            inputs["rows"][:] = asked
        mask = cross.mask()
        if mask is not None:
            inputs["cross_mask"][:] = mask
        np.multiply(~cells.ancestors, np.float32(MASKED), out=inputs["cache_mask"][:, 0])
        np.multiply(~own, np.float32(MASKED), out=inputs["new_mask"][:, 0])
        bound.call.run()
        cells.write(outputs, own, rows)
        specials = outputs["specials"]
        if packed and living is None:
            specials = specials.reshape(n, width, -1)
        return StepResult(
            outputs["best_scores"],
            outputs["best_rows"],
            outputs["best_tokens"],
            outputs["end_scores"],
            specials,
        )

    def _bind(self, key: tuple[int, ...], answers: int, cells: CellCache, cross: Cross) -> _Bound:
        n, rows, asked, top, size, count = key[:6]
        s = self._shape
        f32, i32 = np.float32, np.int32
        inputs: dict[str, npt.NDArray[Any]] = {
            "tokens": np.zeros((n, rows), i32),
            "positions": np.zeros((n, rows), i32),
            "scores": np.zeros((n, asked), f32),
            "top": np.array([top], np.int64),
            "cache_mask": np.zeros((n, 1, rows, size), f32),
            "new_mask": np.zeros((n, 1, rows, rows), f32),
            **cross.views(),
            **cells.views(),
        }
        mask = cross.mask()
        if mask is not None:
            inputs["cross_mask"] = np.zeros(mask.shape, f32)
        if s.packed:
            inputs["live"] = np.zeros(count, i32)
            inputs["place"] = np.zeros(n * rows, i32)
            inputs["asked"] = np.zeros(answers, i32)
            inputs["ask_place"] = np.zeros((n, asked), i32)
        else:
            inputs["rows"] = np.zeros(asked, i32)
        outputs: dict[str, npt.NDArray[Any]] = {
            "best_scores": np.zeros((n, top), f32),
            "best_rows": np.zeros((n, top), i32),
            "best_tokens": np.zeros((n, top), i32),
            "end_scores": np.zeros((n, asked), f32),
            "specials": np.zeros((count, s.specials) if s.packed else (n, rows, s.specials), f32),
            "norm": np.zeros((n, asked), f32),
        }
        for layer in range(s.layers):
            for letter in "kv":
                fresh = self._fresh[f"{letter}_{layer}"]
                outputs[f"new_{letter}_{layer}"] = s.view(fresh, n, rows, turned=letter == "k")
        bound = _Bound(self._session.bind(inputs, outputs), inputs, outputs)
        self._bound[key] = bound
        if len(self._bound) > _BOUND:
            self._bound.popitem(last=False)
        return bound


def _point(
    inputs: dict[str, npt.NDArray[Any]],
    n: int,
    rows: int,
    living: npt.NDArray[Any] | None,
    asked: Int,
) -> None:
    """Tell a packed graph where the live and the answered rows are."""
    if living is None:
        places = np.arange(n * rows, dtype=np.int32)
        inputs["live"][:] = inputs["place"][:] = places
    else:
        places = np.zeros(n * rows, np.int32)
        places[living] = np.arange(len(living), dtype=np.int32)
        inputs["live"][:], inputs["place"][:] = living, places
    if len(asked) == rows:
        inputs["asked"][:] = np.arange(len(inputs["asked"]))
        inputs["ask_place"][:] = places.reshape(n, rows)
    else:
        inputs["asked"][:] = places.reshape(n, rows)[:, asked].reshape(-1)
        inputs["ask_place"][:] = np.arange(n * len(asked)).reshape(n, -1)
