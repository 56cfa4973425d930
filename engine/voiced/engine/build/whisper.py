"""Whisper weights → the two graphs of the engine's contract.

Names of the weights follow CTranslate2's WhisperSpec (`encoder/layer_0/self_attention/linear_0`).
Architecture: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".

prefill  mel float32[1, 80, 2T] and, per layer, the silence tail's keys and values → cross-attention
         keys float32[1, H, dk, T+P] and values float32[1, H, T+P, dk], one pair per decoder layer.
step     tokens int32[N, B] at their positions, two additive masks, the caches → the best K
         continuations over all beams, and the new cache rows.

The tail: P encoder frames of silence behind the gear's own T frames, computed once at build time
and handed in as keys and values, so that the model sees speech followed by silence, as in
training, without computing the silence (docs/decisions/0003-silence-tail.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from voiced.engine.build.graph import Float, GraphBuilder, Precision
from voiced.engine.build.whisper_layers import (
    Tensors,
    Weights,
    WhisperDims,
    convolved,
    encoded,
    feed_forward,
    merge_heads,
    scaled,
    split_heads,
)

OPSET = 20  # the first with Gelu


def prefill_graph(
    tensors: Tensors, dims: WhisperDims, precision: Precision, *, record: bool = False
) -> onnx.ModelProto:
    """Build the encoder with the decoder's cross-attention projections folded in.

    With `record` the graph takes no tail; it also returns each encoder layer's keys and values
    and the cross keys and values, time-major float32[T, d]: that is how the tail is made.
    """
    w = Weights(tensors)
    d = dims.d_model
    g = GraphBuilder("record" if record else "prefill", precision, OPSET)
    mel = g.input("mel", TensorProto.FLOAT, [1, dims.mels, "2T"])

    def tail(name: str) -> str:
        return g.op("Unsqueeze", g.input(name, TensorProto.FLOAT, ["P", d]), g.ints(0))

    def out(value: str, name: str) -> None:
        g.output(g.op("Squeeze", value, g.ints(0)), name, TensorProto.FLOAT, ["T", d])

    x = convolved(g, mel, w)
    frames = g.op("Shape", x, start=1, end=2)
    positions = g.constant(w("encoder/position_encodings/encodings"))
    x = g.op("Add", x, g.op("Slice", positions, g.ints(0), frames, g.ints(0)))

    def extend(value: str, name: str) -> str:
        if not record:
            return g.op("Concat", value, tail(name), axis=1)
        out(value, name)
        return value

    x = encoded(g, x, w, dims, extend)
    for layer in range(dims.decoder_layers):
        kv = g.linear(x, *w.linear(f"decoder/layer_{layer}/attention/linear_1"))
        k, v = g.split(kv, 2)
        if record:
            out(k, f"cross_k_{layer}")
            out(v, f"cross_v_{layer}")
            continue
        k = g.op("Concat", k, tail(f"tail_k_{layer}"), axis=1)
        v = g.op("Concat", v, tail(f"tail_v_{layer}"), axis=1)
        count, width = dims.heads, dims.d_head
        g.output(
            split_heads(g, k, dims, 1, keys=True),
            f"cross_k_{layer}",
            TensorProto.FLOAT,
            [1, count, width, "S"],
        )
        g.output(
            split_heads(g, v, dims, 1),
            f"cross_v_{layer}",
            TensorProto.FLOAT,
            [1, count, "S", width],
        )
    return g.model()


def step_graph(
    tensors: Tensors,
    dims: WhisperDims,
    precision: Precision,
    *,
    text_ids: npt.NDArray[np.int32],
    special_ids: npt.NDArray[np.int32],
) -> onnx.ModelProto:
    """Build one decoder step with its post-processing.

    The output projection has a column per entry of `text_ids` only: suppressed tokens and
    timestamps cannot be chosen because they do not exist. `special_ids` (end of text first) get a
    projection of their own in float32.

    Inputs (N utterances, B rows each, C cache cells, S cross positions, R rows that are answered):
        tokens, positions int32[N, B]; rows int32[R]; scores float32[N, R]; top int64[1] (K)
        cache_mask float32[N, 1, B, C], new_mask float32[N, 1, B, B]: added to attention scores
        self_k_l float32[N, H, dk, C], self_v_l float32[N, H, C, dk], cross_k_l, cross_v_l
    Outputs:
        best_scores float32[N, K], best_rows int32[N, K] (index into R), best_tokens int32[N, K]
        (index into text_ids), best first; end_scores float32[N, R]: the score of stopping there;
        specials float32[N, B, len(special_ids)]: log-probabilities against the text tokens too
        new_k_l float32[N, H, dk, B], new_v_l float32[N, H, B, dk]: rows to write into the caches
    """
    w = Weights(tensors)
    d, heads, width = dims.d_model, dims.heads, dims.d_head
    scale = width**-0.5
    g = GraphBuilder("step", precision, OPSET)
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    tokens = g.input("tokens", i32, ["N", "B"])
    positions = g.input("positions", i32, ["N", "B"])
    rows = g.input("rows", i32, ["R"])
    scores = g.input("scores", f32, ["N", "R"])
    top = g.input("top", TensorProto.INT64, [1])
    cache_mask = g.input("cache_mask", f32, ["N", 1, "B", "C"])
    new_mask = g.input("new_mask", f32, ["N", 1, "B", "B"])

    embedding = w("decoder/embeddings/weight")
    places = g.constant(w("decoder/position_encodings/encodings"))
    x = g.op("Add", g.embedding(tokens, embedding), g.op("Gather", places, positions, axis=0))
    split_at = g.op(
        "Concat",
        g.op("Shape", cache_mask, start=3, end=4),
        g.op("Shape", new_mask, start=3, end=4),
        axis=0,
    )

    for layer in range(dims.decoder_layers):
        name = f"decoder/layer_{layer}"
        past_k = g.input(f"self_k_{layer}", f32, ["N", heads, width, "C"])
        past_v = g.input(f"self_v_{layer}", f32, ["N", heads, "C", width])
        cross_k = g.input(f"cross_k_{layer}", f32, ["N", heads, width, "S"])
        cross_v = g.input(f"cross_v_{layer}", f32, ["N", heads, "S", width])

        qkv = g.linear(
            g.layer_norm(x, *w.norm(f"{name}/self_attention/layer_norm")),
            *scaled(*w.linear(f"{name}/self_attention/linear_0"), d, scale),
        )
        q, k, v = g.split(qkv, 3)
        q, k, v = (
            split_heads(g, q, dims, 0),
            split_heads(g, k, dims, 0, keys=True),
            split_heads(g, v, dims, 0),
        )
        g.output(k, f"new_k_{layer}", f32, ["N", heads, width, "B"])
        g.output(v, f"new_v_{layer}", f32, ["N", heads, "B", width])
        k, v = f"new_k_{layer}", f"new_v_{layer}"
        weights = g.op(
            "Softmax",
            g.op(
                "Concat",
                g.op("Add", g.op("MatMul", q, past_k), cache_mask),
                g.op("Add", g.op("MatMul", q, k), new_mask),
                axis=-1,
            ),
            axis=-1,
        )
        from_past, from_new = g.ops("Split", 2, weights, split_at, axis=-1)
        context = g.op("Add", g.op("MatMul", from_past, past_v), g.op("MatMul", from_new, v))
        attended = g.linear(
            merge_heads(g, context, dims, 0), *w.linear(f"{name}/self_attention/linear_1")
        )
        x = g.op("Add", x, attended)

        q = g.linear(
            g.layer_norm(x, *w.norm(f"{name}/attention/layer_norm")),
            *scaled(*w.linear(f"{name}/attention/linear_0"), d, scale),
        )
        attention = g.op("Softmax", g.op("MatMul", split_heads(g, q, dims, 0), cross_k), axis=-1)
        context = merge_heads(g, g.op("MatMul", attention, cross_v), dims, 0)
        x = g.op("Add", x, g.linear(context, *w.linear(f"{name}/attention/linear_2")))
        x = feed_forward(g, x, w, f"{name}/ffn")

    x = g.layer_norm(x, *w.norm("decoder/layer_norm"))
    _choose(g, x, rows, scores, top, embedding, text_ids, special_ids)
    return g.model()


def _choose(
    g: GraphBuilder,
    x: str,
    rows: str,
    scores: str,
    top: str,
    embedding: Float,
    text_ids: npt.NDArray[np.int32],
    special_ids: npt.NDArray[np.int32],
) -> None:
    """Vocabulary projection, log-softmax, and the best K continuations over all rows."""
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    special = g.op("MatMul", x, g.constant(np.ascontiguousarray(embedding[special_ids].T)))
    g.output(special, "specials", f32, ["N", "B", len(special_ids)])
    chosen = g.op("Gather", x, rows, axis=1)  # [N, R, d]
    text = g.linear(chosen, np.ascontiguousarray(embedding[text_ids].T))
    end = g.op("Gather", g.op("Gather", "specials", rows, axis=1), g.ints(0), axis=2)  # [N, R, 1]
    # log-sum-exp over text tokens and end of text, shifted by the largest text logit
    peak = g.op("ReduceMax", text, g.ints(-1), keepdims=1)
    mass = g.op("ReduceSum", g.op("Exp", g.op("Sub", text, peak)), g.ints(-1), keepdims=1)
    total = g.op("Add", mass, g.op("Exp", g.op("Sub", end, peak)))
    norm = g.op("Add", peak, g.op("Log", total))  # [N, R, 1]
    so_far = g.op("Unsqueeze", scores, g.ints(2))
    g.output(g.op("Squeeze", norm, g.ints(2)), "norm", f32, ["N", "R"])
    base = g.op("Sub", so_far, g.op("Unsqueeze", "norm", g.ints(2)))
    g.output(g.op("Squeeze", g.op("Add", end, base), g.ints(2)), "end_scores", f32, ["N", "R"])
    per_row, ids = g.ops("TopK", 2, text, top, axis=-1, sorted=1)  # [N, R, K]
    candidates = g.op("Flatten", g.op("Add", per_row, base), axis=1)  # [N, R*K]
    best, order = g.ops("TopK", 2, candidates, top, axis=-1, sorted=1)
    g.output(best, "best_scores", f32, ["N", "K"])
    g.output(g.op("Cast", g.op("Div", order, top), to=i32), "best_rows", i32, ["N", "K"])
    picked = g.op("GatherElements", g.op("Flatten", ids, axis=1), order, axis=1)
    g.output(g.op("Cast", picked, to=i32), "best_tokens", i32, ["N", "K"])
