"""Pieces of graphs whose caches stay on the device, for every model family.

Held to what MindSpore Lite 2.0.0 runs rightly (docs/decisions/0007-resident-caches.md): opset 13,
so that layer norm and GELU are written out; no Where, Scatter, GatherElements, If, Loop or Shape;
cells are written and rows are picked by one-hot arithmetic; ids are int32; what crosses has at most
three axes; masks are -1e4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from voiced.engine.build.graph import GraphBuilder

OPSET = 13

OPERATORS = frozenset(
    {
        *("Abs", "Add", "Cast", "Concat", "Conv", "Div", "Erf", "Exp", "Gather", "Log"),
        *("MatMul", "Mul", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape"),
        *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "TopK", "Transpose", "Unsqueeze"),
    }
)
"""What the graphs may consist of; a test holds them to it."""

MASKED = 1e4
"""Taken off the attention score of a cell that a row may not see; finite in float16."""


GROUP = 96
"""Tokens of one group of the vocabulary: about the square root of its size / (rows + 1), where the
two sorts are equally long."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a resident step graph is given besides its caches, and what it makes of it at once."""

    tokens: str
    """int32[N, B]"""
    positions: str
    """int32[N, B]"""
    scores: str
    """float32[N, B]"""
    written: str
    """float[N, B, C]: 1 where a row's keys and values go."""
    kept: str
    """float[N, 1, C]: 0 where any row's go."""
    mask: str
    """float[N, 1, B, C], added to attention scores."""


def declare_inputs(g: GraphBuilder, rows: int) -> StepInputs:
    """Declare tokens, rows and cells, and answer `next_ancestors`; see the step graphs."""
    i32 = TensorProto.INT32
    tokens, positions, parents, cells = (
        g.input(name, i32, ["N", rows]) for name in ("tokens", "positions", "parents", "cells")
    )
    own = g.input("own", g.float, ["N", rows, rows])
    scores = g.input("scores", TensorProto.FLOAT, ["N", rows])
    cell_ids = g.input("cell_ids", TensorProto.FLOAT, [1, 1, "C"])
    ancestors = g.input("ancestors", g.float, ["N", rows, "C"])

    row_ids = g.constant(np.arange(rows, dtype=np.float32).reshape(1, 1, rows), np.float32)
    inherited = g.op("MatMul", g.body(_one_hot(g, parents, row_ids)), ancestors)
    written = g.body(_one_hot(g, cells, cell_ids))  # [N, B, C]
    seen = g.op("Add", inherited, g.op("MatMul", own, written))
    g.output(seen, "next_ancestors", g.float, ["N", rows, "C"])
    kept = g.op("Sub", g.constant(1.0), g.reduce("ReduceSum", written, 1))  # [N, 1, C]
    masked = g.op("Mul", g.op("Sub", "next_ancestors", g.constant(1.0)), g.constant(MASKED))
    mask = g.op("Unsqueeze", masked, g.ints(1))  # [N, 1, B, C]
    return StepInputs(tokens, positions, scores, written, kept, mask)


def write_cells(g: GraphBuilder, letter: str, layer: int, new: str, at: StepInputs, d: int) -> str:
    """Put keys or values [N, B, d] into their cells; returns the cache [N, d, C], an output."""
    past = g.input(f"self_{letter}_{layer}", g.float, ["N", d, "C"])
    cache = with_cells(g, past, new, at)
    g.output(cache, f"next_{letter}_{layer}", g.float, ["N", d, "C"])
    return f"next_{letter}_{layer}"


def with_cells(g: GraphBuilder, past: str, new: str, at: StepInputs) -> str:
    """A cache [N, d, C] with the keys or values [N, B, d] in their cells."""
    placed = g.op("MatMul", g.op("Transpose", new, perm=[0, 2, 1]), at.written)  # [N, d, C]
    return g.op("Add", g.op("Mul", past, at.kept), placed)


def _one_hot(g: GraphBuilder, ids: str, places: str) -> str:
    """int32[N, B] against float32[1, 1, M] → float32[N, B, M], 1 where they are equal."""
    return _equal(g, g.op("Unsqueeze", g.op("Cast", ids, to=TensorProto.FLOAT), g.ints(2)), places)


def _equal(g: GraphBuilder, a: str, b: str) -> str:
    """1 where whole numbers are equal, 0 elsewhere."""
    distance = g.op("Abs", g.op("Sub", a, b))
    return g.op("Relu", g.op("Sub", g.constant(1.0, np.float32), distance))


def attend(
    g: GraphBuilder, q: str, k: str, v: str, mask: str | None, *, rows: int, heads: int, width: int
) -> str:
    """Attention of q [N, B, d] over k and v [N, d, M], which are used as they lie: [N, B, d].

    The values' product is made transposed, v p^T, so that only small tensors are turned.
    """
    split = g.op("Reshape", q, g.ints(-1, rows, heads, width))
    k, v = (g.op("Reshape", each, g.ints(0, heads, width, -1)) for each in (k, v))
    weights = g.op("MatMul", g.op("Transpose", split, perm=[0, 2, 1, 3]), k)  # [N, H, B, M]
    if mask is not None:
        weights = g.op("Add", weights, mask)
    turned = g.op("Transpose", g.op("Softmax", weights, axis=-1), perm=[0, 1, 3, 2])
    context = g.op("Transpose", g.op("MatMul", v, turned), perm=[0, 3, 1, 2])  # [N, B, H, dk]
    return g.op("Reshape", context, g.ints(-1, rows, heads * width))


def choose(
    g: GraphBuilder,
    x: str,
    scores: str,
    rows: int,
    text: npt.NDArray[np.float32],
    special: npt.NDArray[np.float32],
    *,
    banned: Sequence[int] = (),
) -> None:
    """Vocabulary projections, log-softmax, and the best K continuations; all in float32.

    `text` float32[tokens, d] are the tokens to choose from, but for those `banned`; the first row
    of `special` ends a text.

    TopK over the whole vocabulary takes MindSpore Lite 60 ms, three times the rest of the step: it
    sorts. So the vocabulary is cut into groups; the best K tokens lie in the K groups with the
    highest maxima, and only those are sorted.
    """
    f32, i32 = np.float32, TensorProto.INT32
    count = rows + 1
    width = max(1, min(GROUP, len(text) // count))
    groups = -(-len(text) // width)
    padding = groups * width - len(text)

    specials = g.op("MatMul", x, g.constant(np.ascontiguousarray(special.T), f32))
    g.output(specials, "specials", TensorProto.FLOAT, ["N", rows, len(special)])
    columns = np.pad(text.T, ((0, 0), (0, padding)))
    never = np.pad(np.zeros(len(text), f32), (0, padding), constant_values=-MASKED)
    never[list(banned)] = -MASKED
    logits = g.op(
        "Add",
        g.op("MatMul", x, g.constant(np.ascontiguousarray(columns), f32)),
        g.constant(never, f32),
    )  # [N, B, groups * width]
    end = g.op("Slice", "specials", g.ints(0), g.ints(1), g.ints(2))  # [N, B, 1]
    # log-sum-exp over text tokens and end of text, shifted by the largest text logit
    peak = g.reduce("ReduceMax", logits, -1)
    mass = g.reduce("ReduceSum", g.op("Exp", g.op("Sub", logits, peak)), -1)
    total = g.op("Add", mass, g.op("Exp", g.op("Sub", end, peak)))
    norm = g.op("Add", peak, g.op("Log", total))
    base = g.op("Sub", g.op("Unsqueeze", scores, g.ints(2)), norm)  # [N, B, 1]
    ends = g.op("Squeeze", g.op("Add", end, base), g.ints(2))
    g.output(ends, "end_scores", TensorProto.FLOAT, ["N", rows])

    # A Cast of TopK's indices is lost in the converter, which takes them for floats already; a
    # table of numbers turns them into floats instead, exact below 2^24.
    def numbers(size: int) -> npt.NDArray[np.float32]:
        return np.arange(size, dtype=f32)

    grouped = g.op("Reshape", logits, g.ints(-1, rows, groups, width))
    maxima = g.reduce("ReduceMax", grouped, -1, keepdims=0)
    _, leading = g.ops("TopK", 2, maxima, g.ints(count), axis=-1, sorted=1)  # [N, B, K]
    group = g.op("Gather", g.constant(numbers(groups), f32), leading, axis=0)
    group = g.op("Unsqueeze", group, g.ints(3))  # [N, B, K, 1]
    picks = _equal(g, group, _row(g, numbers(groups)))
    values = g.op("MatMul", picks, grouped)  # [N, B, K, width]
    tokens = g.op("Add", g.op("Mul", group, g.constant(float(width), f32)), _row(g, numbers(width)))

    size = rows * count * width
    flat = g.op("Reshape", values, g.ints(-1, rows, count * width))
    candidates = g.op("Reshape", g.op("Add", flat, base), g.ints(-1, size))
    best, order = g.ops("TopK", 2, candidates, g.ints(count), axis=-1, sorted=1)  # [N, K]
    g.output(best, "best_scores", TensorProto.FLOAT, ["N", count])
    found = g.op("Gather", g.constant(np.repeat(numbers(rows), count * width), f32), order, axis=0)
    g.output(g.op("Cast", found, to=i32), "best_rows", i32, ["N", count])
    place = g.op("Gather", g.constant(numbers(size), f32), order, axis=0)
    place = g.op("Unsqueeze", place, g.ints(2))
    chosen = _equal(g, place, g.constant(numbers(size).reshape(1, 1, -1), f32))  # [N, K, size]
    wanted = g.op("Mul", chosen, g.op("Reshape", tokens, g.ints(-1, 1, size)))
    token = g.reduce("ReduceSum", wanted, 2, keepdims=0)
    # half a unit, in case the sum lost a little: Cast cuts off
    whole = g.op("Add", token, g.constant(0.5, f32))
    g.output(g.op("Cast", whole, to=i32), "best_tokens", i32, ["N", count])


def _row(g: GraphBuilder, values: npt.NDArray[np.float32]) -> str:
    return g.constant(values.reshape(1, 1, 1, -1), np.float32)
