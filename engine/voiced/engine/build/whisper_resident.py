"""Whisper weights → graphs whose caches stay on the device, for runtimes with few operators.

The mathematics is that of `whisper.py`; what differs is what crosses. Keys and values of both
attentions are inputs and outputs of equal shape, so that two sets can be used in turn; the step
writes its own cells and keeps the ancestor mask, so that per step a few numbers cross.

Held to what MindSpore Lite 2.0.0 runs rightly (docs/decisions/0007-resident-caches.md): opset 13,
so that layer norm and GELU are written out; no Where, Scatter, GatherElements, If, Loop or Shape;
cells are written and rows are picked by one-hot arithmetic; ids are int32; what crosses has at most
three axes; masks are -1e4.

Axes: N utterances, T encoder frames, P frames of the silence tail, S = T + P, B rows of a beam,
C cache cells, K = B + 1 candidates, d = H * dk. N, T, P, S and C are symbolic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.whisper_layers import (
    Tensors,
    Weights,
    WhisperDims,
    convolved,
    encoded,
    feed_forward,
    scaled,
)

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


def resident_prefill_graph(
    tensors: Tensors, dims: WhisperDims, precision: Precision
) -> onnx.ModelProto:
    """Build the encoder with the decoder's cross-attention projections folded in.

    Inputs (float is float16 with `Precision.FP16`, but for `mel`):
        mel float32[N, mels, 2T]; places float[T, d]: position encodings
        encoder_k_l, encoder_v_l, tail_k_l, tail_v_l float[N, P, d]: the silence tail
    Outputs:
        cross_k_l, cross_v_l float[N, d, S]
    """
    w = Weights(tensors)
    d = dims.d_model
    g = GraphBuilder("prefill", precision, OPSET)
    mel = g.body(g.input("mel", TensorProto.FLOAT, ["N", dims.mels, "2T"]))
    places = g.input("places", g.float, ["T", d])

    def extend(value: str, name: str) -> str:
        return g.op("Concat", value, g.input(name, g.float, ["N", "P", d]), axis=1)

    x = g.op("Add", convolved(g, mel, w), places)
    x = encoded(g, x, w, dims, extend, batch=0)
    for layer in range(dims.decoder_layers):
        kv = g.linear(x, *w.linear(f"decoder/layer_{layer}/attention/linear_1"))
        for letter, value in zip("kv", g.split(kv, 2), strict=True):
            whole = extend(value, f"tail_{letter}_{layer}")
            turned = g.op("Transpose", whole, perm=[0, 2, 1])
            g.output(turned, f"cross_{letter}_{layer}", g.float, ["N", d, "S"])
    return g.model()


def resident_step_graph(
    tensors: Tensors,
    dims: WhisperDims,
    precision: Precision,
    *,
    rows: int,
    text_ids: npt.NDArray[np.int32],
    special_ids: npt.NDArray[np.int32],
) -> onnx.ModelProto:
    """Build one decoder step of `rows` tokens with its caches and its post-processing.

    The output projection has a column per entry of `text_ids` only, see `whisper.step_graph`.

    Inputs:
        tokens, positions int32[N, B]
        parents int32[N, B]: the row of the last step that each row continues; -1: none
        cells int32[N, B]: the cell that each row's keys and values go to; -1: none
        own float[N, B, B]: 1 where a row (first B) sees the new token of a row
        scores float32[N, B]: summed log-probability of each row
        cell_ids float32[1, 1, C]: 0 to C - 1
        ancestors float[N, B, C]: 1 where a row of the last step descends from a cell
        self_k_l, self_v_l float[N, d, C]; cross_k_l, cross_v_l float[N, d, S]
    Outputs:
        best_scores float32[N, K], best_rows, best_tokens int32[N, K]: the best continuations over
        all rows, best first; tokens are indices into `text_ids`
        end_scores float32[N, B]: the score of stopping at each row
        specials float32[N, B, len(special_ids)]: logits of the special tokens
        next_ancestors, next_k_l, next_v_l: as the inputs of almost the same names
    """
    w = Weights(tensors)
    g = GraphBuilder("step", precision, OPSET)
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    tokens = g.input("tokens", i32, ["N", rows])
    positions = g.input("positions", i32, ["N", rows])
    parents = g.input("parents", i32, ["N", rows])
    cells = g.input("cells", i32, ["N", rows])
    own = g.input("own", g.float, ["N", rows, rows])
    scores = g.input("scores", f32, ["N", rows])
    cell_ids = g.input("cell_ids", f32, [1, 1, "C"])
    ancestors = g.input("ancestors", g.float, ["N", rows, "C"])

    row_ids = g.constant(np.arange(rows, dtype=np.float32).reshape(1, 1, rows), np.float32)
    inherited = g.op("MatMul", g.body(_one_hot(g, parents, row_ids)), ancestors)
    written = g.body(_one_hot(g, cells, cell_ids))  # [N, B, C]
    seen = g.op("Add", inherited, g.op("MatMul", own, written))
    g.output(seen, "next_ancestors", g.float, ["N", rows, "C"])
    kept = g.op("Sub", g.constant(1.0), g.reduce("ReduceSum", written, 1))  # [N, 1, C]
    masked = g.op("Mul", g.op("Sub", "next_ancestors", g.constant(1.0)), g.constant(MASKED))
    mask = g.op("Unsqueeze", masked, g.ints(1))  # [N, 1, B, C]

    embedding = w("decoder/embeddings/weight")
    table = g.constant(w("decoder/position_encodings/encodings"))
    x = g.op("Add", g.embedding(tokens, embedding), g.op("Gather", table, positions, axis=0))
    for layer in range(dims.decoder_layers):
        x = _decoder_layer(g, x, w, dims, layer, rows, mask=mask, written=written, kept=kept)
    x = g.score(g.layer_norm(x, *w.norm("decoder/layer_norm")))
    _choose(g, x, scores, rows, embedding[text_ids], embedding[special_ids])
    return g.model()


def _one_hot(g: GraphBuilder, ids: str, places: str) -> str:
    """int32[N, B] against float32[1, 1, M] → float32[N, B, M], 1 where they are equal."""
    return _equal(g, g.op("Unsqueeze", g.op("Cast", ids, to=TensorProto.FLOAT), g.ints(2)), places)


def _equal(g: GraphBuilder, a: str, b: str) -> str:
    """1 where whole numbers are equal, 0 elsewhere."""
    distance = g.op("Abs", g.op("Sub", a, b))
    return g.op("Relu", g.op("Sub", g.constant(1.0, np.float32), distance))


def _decoder_layer(
    g: GraphBuilder,
    x: str,
    w: Weights,
    dims: WhisperDims,
    layer: int,
    rows: int,
    *,
    mask: str,
    written: str,
    kept: str,
) -> str:
    """One layer over [N, B, d]: writes its cells, then attends to the cache and the encoder."""
    d = dims.d_model
    scale = dims.d_head**-0.5
    name = f"decoder/layer_{layer}"
    qkv = g.linear(
        g.layer_norm(x, *w.norm(f"{name}/self_attention/layer_norm")),
        *scaled(*w.linear(f"{name}/self_attention/linear_0"), d, scale),
    )
    q, *fresh = g.split(qkv, 3)
    for letter, new in zip("kv", fresh, strict=True):
        past = g.input(f"self_{letter}_{layer}", g.float, ["N", d, "C"])
        placed = g.op("MatMul", g.op("Transpose", new, perm=[0, 2, 1]), written)  # [N, d, C]
        cache = g.op("Add", g.op("Mul", past, kept), placed)
        g.output(cache, f"next_{letter}_{layer}", g.float, ["N", d, "C"])
    context = _attend(g, q, f"next_k_{layer}", f"next_v_{layer}", dims, rows, mask)
    x = g.op("Add", x, g.linear(context, *w.linear(f"{name}/self_attention/linear_1")))

    cross_k, cross_v = (
        g.input(f"cross_{letter}_{layer}", g.float, ["N", d, "S"]) for letter in "kv"
    )
    q = g.linear(
        g.layer_norm(x, *w.norm(f"{name}/attention/layer_norm")),
        *scaled(*w.linear(f"{name}/attention/linear_0"), d, scale),
    )
    context = _attend(g, q, cross_k, cross_v, dims, rows, None)
    x = g.op("Add", x, g.linear(context, *w.linear(f"{name}/attention/linear_2")))
    return feed_forward(g, x, w, f"{name}/ffn")


def _attend(
    g: GraphBuilder, q: str, k: str, v: str, dims: WhisperDims, rows: int, mask: str | None
) -> str:
    """Attention of q [N, B, d] over k and v [N, d, M], which are used as they lie: [N, B, d].

    The values' product is made transposed, v p^T, so that only small tensors are turned.
    """
    heads, width = dims.heads, dims.d_head
    split = g.op("Reshape", q, g.ints(-1, rows, heads, width))
    k, v = (g.op("Reshape", each, g.ints(0, heads, width, -1)) for each in (k, v))
    weights = g.op("MatMul", g.op("Transpose", split, perm=[0, 2, 1, 3]), k)  # [N, H, B, M]
    if mask is not None:
        weights = g.op("Add", weights, mask)
    turned = g.op("Transpose", g.op("Softmax", weights, axis=-1), perm=[0, 1, 3, 2])
    context = g.op("Transpose", g.op("MatMul", v, turned), perm=[0, 3, 1, 2])  # [N, B, H, dk]
    return g.op("Reshape", context, g.ints(-1, rows, dims.d_model))


def _choose(
    g: GraphBuilder,
    x: str,
    scores: str,
    rows: int,
    text: npt.NDArray[np.float32],
    special: npt.NDArray[np.float32],
) -> None:
    """Vocabulary projections, log-softmax, and the best K continuations; all in float32.

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
