"""Whisper weights → one decoder step with its post-processing, for caches in host arrays.

Utterances lie beside each other in N slots of B rows; attention is computed for all N x B. All
else, which is all that has weights, is computed for the M rows that live only: a greedy search has
one where a beam has five, and both can share a step. Rows are quantised one by one, so that no
text depends on who shared the step.

Cross-attention multiplies K q and V w with the caches on the left: the runtime copies what stands
on the right into a layout of its own at every call, and a few query rows are less than hundreds of
keys. With 5 rows, CPU time of a step is 3 % less at 265 keys, 9 % at 668, 12 % for 8 utterances;
with 1 row it is 4 % more. So keys lie [S, dk] and values [dk, S].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from voiced.engine.build.graph import GELU_LEAST, Float, GraphBuilder, Precision
from voiced.engine.build.whisper_layers import Tensors, Weights, WhisperDims, scaled

OPSET = 20  # the first with Gelu
_GROUP, _GROUPS = 100, 512
"""Most columns of the vocabulary among which the largest is looked for first, and fewest of such
groups: more than anybody wants candidates. Of 15, 25, 45, 75 and 223 columns, 75 was fastest."""


def step_graph(
    tensors: Tensors,
    dims: WhisperDims,
    precision: Precision,
    *,
    text_ids: npt.NDArray[np.int32],
    special_ids: npt.NDArray[np.int32],
) -> onnx.ModelProto:
    """Build one decoder step.

    The output projection has a column per entry of `text_ids` only: suppressed tokens and
    timestamps cannot be chosen because they do not exist. `special_ids` (end of text first) get a
    projection of their own in float32.

    Inputs (N slots of B rows, M of them live, C cache cells, S cross positions, A live rows that
    are answered, R answers a slot):
        tokens, positions int32[N, B]; scores float32[N, R]; top int64[1] (K)
        live int32[M]: which of the N x B rows; place int32[N x B]: where each is among them
        asked int32[A]: which of the live rows; ask_place int32[N, R]: where each answer is among
        them. Rows that do not live point anywhere.
        cache_mask float32[N, 1, B, C], new_mask float32[N, 1, B, B],
        cross_mask float32[N, 1, 1, S]: added to attention scores
        self_k_l float32[N, H, dk, C], self_v_l float32[N, H, C, dk],
        cross_k_l float32[N, H, S, dk], cross_v_l float32[N, H, dk, S]
    Outputs:
        best_scores float32[N, K], best_rows int32[N, K] (index into R), best_tokens int32[N, K]
        (index into text_ids), best first; end_scores float32[N, R]: the score of stopping there;
        specials float32[M, len(special_ids)]: logits
        new_k_l float32[N, H, dk, B], new_v_l float32[N, H, B, dk]: rows to write into the caches
    """
    w = Weights(tensors)
    d, heads, width = dims.d_model, dims.heads, dims.d_head
    scale = width**-0.5
    g = GraphBuilder("step", precision, OPSET)
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    tokens = g.input("tokens", i32, ["N", "B"])
    positions = g.input("positions", i32, ["N", "B"])
    live = g.input("live", i32, ["M"])
    place = g.input("place", i32, ["NB"])
    cache_mask = g.input("cache_mask", f32, ["N", 1, "B", "C"])
    new_mask = g.input("new_mask", f32, ["N", 1, "B", "B"])
    cross_mask = g.input("cross_mask", f32, ["N", 1, 1, "S"])
    by_head = g.op(
        "Concat", g.op("Shape", tokens, start=0, end=1), g.ints(-1, heads, width), axis=0
    )

    def spread(x: str, *, keys: bool = False) -> str:
        """[NB, d] → [N, H, B, dk], or [N, H, dk, B] for keys."""
        split = g.op("Reshape", x, by_head)
        return g.op("Transpose", split, perm=[0, 2, 3, 1] if keys else [0, 2, 1, 3])

    def packed(context: str, perm: Sequence[int] = (0, 2, 1, 3)) -> str:
        """[N, H, B, dk], or what `perm` says, → [M, d]."""
        rows = g.op("Reshape", g.op("Transpose", context, perm=perm), g.ints(-1, d))
        return g.op("Gather", rows, live, axis=0)

    def of_live(x: str) -> str:
        return g.op("Gather", g.op("Reshape", x, g.ints(-1)), live, axis=0)

    embedding = w("decoder/embeddings/weight")
    places = g.constant(w("decoder/position_encodings/encodings"))
    x = g.op(
        "Add",
        g.embedding(of_live(tokens), embedding),
        g.op("Gather", places, of_live(positions), axis=0),
    )
    split_at = g.op(
        "Concat",
        g.op("Shape", cache_mask, start=3, end=4),
        g.op("Shape", new_mask, start=3, end=4),
        axis=0,
    )

    mask = g.op("Concat", cache_mask, new_mask, axis=-1)
    # as scores of cross-attention lie, [N, 1, S, B]: repeated for each row, or every addition would
    # go through memory in steps of B values
    columns = g.op("Concat", g.ints(1, 1, 1), g.op("Shape", tokens, start=1, end=2), axis=0)
    span_mask = g.op("Expand", g.op("Transpose", cross_mask, perm=[0, 1, 3, 2]), columns)

    for layer in range(dims.decoder_layers):
        name = f"decoder/layer_{layer}"
        past_k = g.input(f"self_k_{layer}", f32, ["N", heads, width, "C"])
        past_v = g.input(f"self_v_{layer}", f32, ["N", heads, "C", width])
        cross_k = g.input(f"cross_k_{layer}", f32, ["N", heads, "S", width])
        cross_v = g.input(f"cross_v_{layer}", f32, ["N", heads, width, "S"])

        qkv = g.row_linear(
            g.layer_norm(x, *w.norm(f"{name}/self_attention/layer_norm")),
            *scaled(*w.linear(f"{name}/self_attention/linear_0"), d, scale),
        )
        q, k, v = g.split(g.op("Gather", qkv, place, axis=0), 3)
        q, k, v = spread(q), spread(k, keys=True), spread(v)
        g.output(k, f"new_k_{layer}", f32, ["N", heads, width, "B"])
        g.output(v, f"new_v_{layer}", f32, ["N", heads, "B", width])
        k, v = f"new_k_{layer}", f"new_v_{layer}"
        scores = g.op("Concat", g.op("MatMul", q, past_k), g.op("MatMul", q, k), axis=-1)
        weights = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        from_past, from_new = g.ops("Split", 2, weights, split_at, axis=-1)
        context = g.op("Add", g.op("MatMul", from_past, past_v), g.op("MatMul", from_new, v))
        attended = g.row_linear(packed(context), *w.linear(f"{name}/self_attention/linear_1"))
        x = g.op("Add", x, attended)

        q = g.row_linear(
            g.layer_norm(x, *w.norm(f"{name}/attention/layer_norm")),
            *scaled(*w.linear(f"{name}/attention/linear_0"), d, scale),
        )
        q = spread(g.op("Gather", q, place, axis=0), keys=True)
        scores = g.op("Add", g.op("MatMul", cross_k, q), span_mask)
        attention = g.op("Softmax", scores, axis=2)
        context = packed(g.op("MatMul", cross_v, attention), perm=[0, 3, 1, 2])
        x = g.op("Add", x, g.row_linear(context, *w.linear(f"{name}/attention/linear_2")))
        hidden = g.row_linear(
            g.layer_norm(x, *w.norm(f"{name}/ffn/layer_norm")), *w.linear(f"{name}/ffn/linear_0")
        )
        linear = w.linear(f"{name}/ffn/linear_1")
        x = g.op("Add", x, g.row_linear(g.gelu(hidden), *linear, least=GELU_LEAST))

    x = g.layer_norm(x, *w.norm("decoder/layer_norm"))
    _choose(g, x, embedding, text_ids, special_ids)
    return g.model()


def _choose(
    g: GraphBuilder,
    x: str,
    embedding: Float,
    text_ids: npt.NDArray[np.int32],
    special_ids: npt.NDArray[np.int32],
) -> None:
    """Vocabulary projection, log-softmax, and the best K continuations over all rows."""
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    scores = g.input("scores", f32, ["N", "R"])
    top = g.input("top", TensorProto.INT64, [1])
    asked = g.input("asked", i32, ["A"])
    ask_place = g.input("ask_place", i32, ["N", "R"])
    special = g.op("MatMul", x, g.constant(np.ascontiguousarray(embedding[special_ids].T)))
    g.output(special, "specials", f32, ["M", len(special_ids)])
    text = g.row_linear(
        g.op("Gather", x, asked, axis=0), np.ascontiguousarray(embedding[text_ids].T)
    )  # [A, V]
    end = g.op("Gather", g.op("Gather", "specials", asked, axis=0), g.ints(0), axis=1)  # [A, 1]
    per_row, ids = best_columns(g, text, top, len(text_ids))  # [A, K]
    peak, first = (g.op("Gather", x, g.ints(0), axis=1) for x in (per_row, ids))  # [A, 1]
    # Among text tokens the likeliest has exp(peak) of the mass. A softmax keeps a row in the
    # processor's cache, where exponentials and their sum go through memory three times.
    share = g.op("GatherElements", g.op("Softmax", text, axis=-1), first, axis=1)
    total = g.op("Add", g.op("Reciprocal", share), g.op("Exp", g.op("Sub", end, peak)))
    norm = g.op("Add", peak, g.op("Log", total))  # log-sum-exp over text tokens and end of text

    def spread(x: str) -> str:
        return g.op("Gather", x, ask_place, axis=0)  # [N, R, ...]

    so_far = g.op("Unsqueeze", scores, g.ints(2))
    g.output(g.op("Squeeze", spread(norm), g.ints(2)), "norm", f32, ["N", "R"])
    ends = g.op("Add", spread(g.op("Sub", end, norm)), so_far)
    g.output(g.op("Squeeze", ends, g.ints(2)), "end_scores", f32, ["N", "R"])
    continued = g.op("Add", spread(g.op("Sub", per_row, norm)), so_far)
    best, order = g.ops("TopK", 2, g.op("Flatten", continued, axis=1), top, axis=-1, sorted=1)
    g.output(best, "best_scores", f32, ["N", "K"])
    g.output(g.op("Cast", g.op("Div", order, top), to=i32), "best_rows", i32, ["N", "K"])
    picked = g.op("GatherElements", g.op("Flatten", spread(ids), axis=1), order, axis=1)
    g.output(g.op("Cast", picked, to=i32), "best_tokens", i32, ["N", "K"])


def best_columns(g: GraphBuilder, text: str, top: str, columns: int) -> list[str]:
    """The best `top` of each row of `text` float32[A, columns]: values and columns, best first.

    Columns are grouped. The groups with the largest maxima hold all of the best: one that is not
    among them has as many larger values before it. Finding maxima is cheaper than ordering all.
    """
    sizes = (n for n in range(2, _GROUP + 1) if columns % n == 0 and columns // n >= _GROUPS)
    size = max(sizes, default=1)
    groups = g.op("Reshape", text, g.ints(0, columns // size, size))
    _, which = g.ops("TopK", 2, g.reduce("ReduceMax", groups, -1, keepdims=0), top, sorted=0)
    begins = g.op("Mul", g.op("Unsqueeze", which, g.ints(2)), g.ints(size))
    inside = g.op("Add", begins, g.constant(np.arange(size), np.int64))
    candidates = g.op("Reshape", inside, g.ints(0, -1))  # [A, K * size]
    values, at = g.ops("TopK", 2, g.op("GatherElements", text, candidates, axis=1), top, sorted=1)
    return [values, g.op("GatherElements", candidates, at, axis=1)]
