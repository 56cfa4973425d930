"""Whisper weights → the two graphs of the engine's contract.

Names of the weights follow CTranslate2's WhisperSpec (`encoder/layer_0/self_attention/linear_0`).
Architecture: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".

prefill  mel float32[1, 80, 2T] and, per layer, the silence tail's keys and values → cross-attention
         keys float32[1, H, T+P, dk] and values float32[1, H, dk, T+P], one pair per decoder layer.
step     tokens int32[N, B] at their positions, additive masks, the caches → the best K
         continuations over all beams, and the new cache rows (`whisper_step.py`).

The tail: encoder frames of silence behind the gear's own T frames, computed once at build time
and handed in as keys and values, so that the model sees speech followed by silence, as in
training, without computing the silence (docs/decisions/0003-silence-tail.md). P keys stand for
more frames than P: `span_mask` float32[1, 1, 1, T+P] adds to each key's scores the logarithm of
how many.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.whisper_layers import (
    Tensors,
    Weights,
    WhisperDims,
    convolved,
    encoded,
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

    mask = None
    if not record:
        mask = g.input("span_mask", TensorProto.FLOAT, [1, 1, 1, "S"])
    x = encoded(g, x, w, dims, extend, mask=mask)
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
            split_heads(g, k, dims, 1),
            f"cross_k_{layer}",
            TensorProto.FLOAT,
            [1, count, "S", width],
        )
        g.output(
            split_heads(g, v, dims, 1, keys=True),
            f"cross_v_{layer}",
            TensorProto.FLOAT,
            [1, count, width, "S"],
        )
    return g.model()
