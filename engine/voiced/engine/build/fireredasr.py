"""FireRedASR-AED weights → the two graphs of the engine's contract, caches in host arrays.

prefill  features float32[N, 4 T + 3, mels] and mask float32[N, T] → cross-attention keys
         float32[N, H, dk, T] and values float32[N, H, T, dk] of every decoder layer, and with
         version 2 CTC log-probabilities float32[N, T, V].
step     as Whisper's (`whisper.step_graph`), with one more input, `cross_mask`.

The answer for a padded gear is that for the utterance alone: where there is no sound features are
exactly 0 (the subsampling looks ahead into them) and the mask is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from voiced.engine.build.fireredasr_checkpoint import FireRedDims
from voiced.engine.build.fireredasr_layers import (
    MASKED,
    Tensors,
    Weights,
    cross_projection,
    cross_query,
    embedded,
    encoded,
    encoder_places,
    feed_forward,
    self_projection,
)
from voiced.engine.build.graph import GraphBuilder, Precision, WeightFile

OPSET = 13

F32, I32 = TensorProto.FLOAT, TensorProto.INT32


def write_prefill(
    path: Path,
    tensors: Tensors,
    dims: FireRedDims,
    precision: Precision,
    weights: WeightFile,
    *,
    max_frames: int,
) -> None:
    """Write the encoder with the decoder's cross-attention projections folded in.

    Args:
        path: The graph's file, in the folder of `weights`.
        tensors: Weights by their names in the state dict; each is looked up once.
        dims: Sizes.
        precision: FP32 or one of the int8 kinds.
        weights: Where large constants go.
        max_frames: Encoder frames of the longest gear.
    """
    w = Weights(tensors)
    heads, width = dims.heads, dims.d_head
    g = GraphBuilder("prefill", precision, OPSET, weights)
    features = g.input("features", F32, ["N", "L", dims.mels])
    mask = g.input("mask", F32, ["N", "T"])

    table = g.constant(encoder_places(tensors, max_frames))
    frames = g.op("Slice", g.op("Shape", mask), g.ints(1), g.ints(2), g.ints(0))
    centre = g.ints(max_frames)
    places = g.op(
        "Slice", table, g.op("Sub", centre, frames), g.op("Add", centre, frames), g.ints(0)
    )
    x = encoded(g, features, mask, places, w, dims)
    for layer in range(dims.decoder_layers):
        k, v = g.split(g.row_linear(x, *cross_projection(w, layer, dims)), 2)
        k, v = (g.op("Reshape", each, g.ints(0, 0, heads, width)) for each in (k, v))
        turned = g.op("Transpose", k, perm=[0, 2, 3, 1])
        g.output(turned, f"cross_k_{layer}", F32, ["N", heads, width, "T"])
        turned = g.op("Transpose", v, perm=[0, 2, 1, 3])
        g.output(turned, f"cross_v_{layer}", F32, ["N", heads, "T", width])
    if dims.has_ctc:
        ctc = g.op("LogSoftmax", g.row_linear(x, *w.linear("ctc.ctc_lo")), axis=-1)
        g.output(ctc, "ctc", F32, ["N", "T", dims.vocabulary])
    g.save(path)


def write_step(
    path: Path,
    tensors: Tensors,
    dims: FireRedDims,
    precision: Precision,
    weights: WeightFile,
    *,
    smoothing: float,
) -> None:
    """Write one decoder step with its post-processing.

    Inputs (N utterances, B rows each, C cache cells, T encoder frames, R rows that are answered):
        tokens, positions int32[N, B]; rows int32[R]; scores float32[N, R]; top int64[1] (K)
        cache_mask float32[N, 1, B, C], new_mask float32[N, 1, B, B] and cross_mask
        float32[N, 1, 1, T]: added to attention scores
        self_k_l float32[N, H, dk, C], self_v_l float32[N, H, C, dk], cross_k_l, cross_v_l
    Outputs:
        best_scores float32[N, K], best_rows int32[N, K] (index into R), best_tokens int32[N, K],
        best first, the end token left out; end_scores float32[N, R]: the score of ending there;
        specials float32[N, B, 1]: the end token's logit; norm float32[N, R]: the logarithm of what
        the softmax divides by, after smoothing
        new_k_l float32[N, H, dk, B], new_v_l float32[N, H, B, dk]: rows to write into the caches
    """
    w = Weights(tensors)
    d, heads, width = dims.d_model, dims.heads, dims.d_head
    g = GraphBuilder("step", precision, OPSET, weights)
    tokens = g.input("tokens", I32, ["N", "B"])
    positions = g.input("positions", I32, ["N", "B"])
    rows = g.input("rows", I32, ["R"])
    scores = g.input("scores", F32, ["N", "R"])
    top = g.input("top", TensorProto.INT64, [1])
    cache_mask = g.input("cache_mask", F32, ["N", 1, "B", "C"])
    new_mask = g.input("new_mask", F32, ["N", 1, "B", "B"])
    cross_mask = g.input("cross_mask", F32, ["N", 1, 1, "T"])

    def split_heads(value: str, perm: list[int]) -> str:
        return g.op("Transpose", g.op("Reshape", value, g.ints(0, 0, heads, width)), perm=perm)

    def merge_heads(value: str) -> str:
        return g.op("Reshape", g.op("Transpose", value, perm=[0, 2, 1, 3]), g.ints(0, 0, d))

    split_at = g.op("Concat", _last_axis(g, cache_mask), _last_axis(g, new_mask), axis=0)
    x = embedded(g, tokens, positions, w, dims)
    for layer in range(dims.decoder_layers):
        name = f"decoder.layer_stack.{layer}"
        past_k = g.input(f"self_k_{layer}", F32, ["N", heads, width, "C"])
        past_v = g.input(f"self_v_{layer}", F32, ["N", heads, "C", width])
        cross_k = g.input(f"cross_k_{layer}", F32, ["N", heads, width, "T"])
        cross_v = g.input(f"cross_v_{layer}", F32, ["N", heads, "T", width])

        normed = g.layer_norm(x, *w.norm(f"{name}.self_attn_norm"))
        q, k, v = g.split(g.row_linear(normed, *self_projection(w, layer, dims)), 3)
        q = split_heads(q, [0, 2, 1, 3])
        g.output(split_heads(k, [0, 2, 3, 1]), f"new_k_{layer}", F32, ["N", heads, width, "B"])
        g.output(split_heads(v, [0, 2, 1, 3]), f"new_v_{layer}", F32, ["N", heads, "B", width])
        seen = g.op(
            "Concat",
            g.op("Add", g.op("MatMul", q, past_k), cache_mask),
            g.op("Add", g.op("MatMul", q, f"new_k_{layer}"), new_mask),
            axis=-1,
        )
        from_past, from_new = g.ops("Split", 2, g.op("Softmax", seen, axis=-1), split_at, axis=-1)
        context = g.op(
            "Add",
            g.op("MatMul", from_past, past_v),
            g.op("MatMul", from_new, f"new_v_{layer}"),
        )
        x = g.op("Add", x, g.row_linear(merge_heads(context), *w.linear(f"{name}.self_attn.fc")))

        normed = g.layer_norm(x, *w.norm(f"{name}.cross_attn_norm"))
        q = split_heads(g.row_linear(normed, *cross_query(w, layer, dims)), [0, 2, 1, 3])
        seen = g.op("Add", g.op("MatMul", q, cross_k), cross_mask)
        context = g.op("MatMul", g.op("Softmax", seen, axis=-1), cross_v)
        x = g.op("Add", x, g.row_linear(merge_heads(context), *w.linear(f"{name}.cross_attn.fc")))
        x = feed_forward(g, x, w, layer)

    x = g.layer_norm(x, *w.norm("decoder.layer_norm_out"))
    smoothed = g.op("Mul", x, g.constant(1.0 / smoothing))
    _choose(g, smoothed, rows, scores, top, w, dims)
    g.save(path)


def _last_axis(g: GraphBuilder, value: str) -> str:
    """The size of the last of four axes."""
    return g.op("Slice", g.op("Shape", value), g.ints(3), g.ints(4), g.ints(0))


def _choose(
    g: GraphBuilder, x: str, rows: str, scores: str, top: str, w: Weights, dims: FireRedDims
) -> None:
    """Vocabulary projection, log-softmax, and the best K continuations over all rows."""
    projection = w.matrix("decoder.tgt_word_prj")  # [d, V]
    end_column = projection[:, dims.end : dims.end + 1]
    g.output(g.op("MatMul", x, g.constant(end_column)), "specials", F32, ["N", "B", 1])
    chosen = g.op("Gather", x, rows, axis=1)  # [N, R, d]
    # the end token has a projection of its own, in float32
    others = np.zeros(dims.vocabulary, np.float32)
    others[dims.end] = MASKED
    text = g.op("Add", g.row_linear(chosen, projection), g.constant(others))
    end = g.op("Gather", "specials", rows, axis=1)  # [N, R, 1]
    # log-sum-exp over all tokens, shifted by the largest
    peak = g.op("Max", g.reduce("ReduceMax", text, -1), end)
    mass = g.reduce("ReduceSum", g.op("Exp", g.op("Sub", text, peak)), -1)
    total = g.op("Add", mass, g.op("Exp", g.op("Sub", end, peak)))
    norm = g.op("Add", peak, g.op("Log", total))  # [N, R, 1]
    g.output(g.op("Squeeze", norm, g.ints(2)), "norm", F32, ["N", "R"])
    base = g.op("Sub", scores, "norm")  # [N, R]
    ends = g.op("Add", g.op("Squeeze", end, g.ints(2)), base)
    g.output(ends, "end_scores", F32, ["N", "R"])
    per_row, ids = g.ops("TopK", 2, text, top, axis=-1, sorted=1)  # [N, R, K]
    totals = g.op("Add", per_row, g.op("Unsqueeze", base, g.ints(2)))
    best, order = g.ops("TopK", 2, g.op("Flatten", totals, axis=1), top, axis=-1, sorted=1)
    g.output(best, "best_scores", F32, ["N", "K"])
    g.output(g.op("Cast", g.op("Div", order, top), to=I32), "best_rows", I32, ["N", "K"])
    picked = g.op("GatherElements", g.op("Flatten", ids, axis=1), order, axis=1)
    g.output(g.op("Cast", picked, to=I32), "best_tokens", I32, ["N", "K"])
