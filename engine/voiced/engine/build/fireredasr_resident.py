"""FireRedASR-AED weights → graphs whose caches stay on the device, for runtimes with few operators.

The mathematics is that of `fireredasr.py`; the rules that the graphs keep stand in
`resident_layers.py`. Axes: N utterances, T encoder frames (S in the step graph), B rows of a beam,
C cache cells, K = B + 1 candidates, d = H * dk. N, T, S and C are symbolic.
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
    feed_forward,
    self_projection,
)
from voiced.engine.build.graph import GraphBuilder, Precision, WeightFile
from voiced.engine.build.resident_layers import (
    OPERATORS as SHARED_OPERATORS,
)
from voiced.engine.build.resident_layers import OPSET, attend, choose, declare_inputs, with_cells

OPERATORS = SHARED_OPERATORS | {"LogSoftmax", "Sigmoid"}
"""What the graphs may consist of; a test holds them to it."""

F32 = TensorProto.FLOAT


class _PerLayer:
    """Tensors of every layer, [N, d, M] each: an input or output by itself, or stacked into one.

    A converter for Ascend takes fewer than 128 axes over all inputs of a graph; the caches of 16
    layers have 192. Stacked, the layers lie behind each other in one tensor, [N, layers * d, M],
    which bears the name of layer 0.
    """

    def __init__(self, g: GraphBuilder, dims: FireRedDims, *, stacked: bool) -> None:
        self._g = g
        self._d = dims.d_model
        self._layers = dims.decoder_layers
        self._stacked = stacked
        self._parts: dict[str, list[str]] = {}

    def given(self, name: str, layer: int, axis: str) -> str:
        """Take a layer's tensor from the graph's inputs."""
        g, d = self._g, self._d
        if not self._stacked:
            return g.input(f"{name}_{layer}", g.float, ["N", d, axis])
        if name not in self._parts:
            whole = g.input(f"{name}_0", g.float, ["N", self._layers * d, axis])
            self._parts[name] = g.ops("Split", self._layers, whole, axis=1)
        return self._parts[name][layer]

    def give(self, name: str, layer: int, value: str, axis: str) -> str:
        """Make a layer's tensor an output, in the order of the layers; returns it."""
        g, d = self._g, self._d
        if not self._stacked:
            g.output(value, f"{name}_{layer}", g.float, ["N", d, axis])
            return f"{name}_{layer}"
        parts = self._parts.setdefault(name, [])
        parts.append(value)
        if len(parts) == self._layers:
            whole = g.op("Concat", *parts, axis=1)
            g.output(whole, f"{name}_0", g.float, ["N", self._layers * d, axis])
        return value


def write_resident_prefill(
    path: Path,
    tensors: Tensors,
    dims: FireRedDims,
    precision: Precision,
    weights: WeightFile,
    *,
    stacked: bool,
) -> None:
    """Write the encoder with the decoder's cross-attention projections folded in.

    Inputs (float is float16 with `Precision.FP16`):
        features float32[N, L, mels], L = 4 T + 3; mask float32[N, T]: 1 where there is sound
        places float[2 T, d]: the middle of the bundle's relative position encodings
    Outputs:
        cross_k_l, cross_v_l float[N, d, T], or stacked
        cross_mask float[N, 1, T]: added to attention scores
        ctc float32[N, T, V]: log-probabilities, of version 2
    """
    w = Weights(tensors)
    d = dims.d_model
    g = GraphBuilder("prefill", precision, OPSET, weights)
    features = g.body(g.input("features", F32, ["N", "L", dims.mels]))
    mask = g.body(g.input("mask", F32, ["N", "T"]))
    places = g.input("places", g.float, ["2T", d])
    x = encoded(g, features, mask, places, w, dims)
    cross = _PerLayer(g, dims, stacked=stacked)
    for layer in range(dims.decoder_layers):
        kv = g.linear(x, *cross_projection(w, layer, dims))
        for letter, value in zip("kv", g.split(kv, 2), strict=True):
            turned = g.op("Transpose", value, perm=[0, 2, 1])
            cross.give(f"cross_{letter}", layer, turned, "T")
    hidden = g.op("Mul", g.op("Sub", mask, g.constant(1.0)), g.constant(-MASKED))
    g.output(g.op("Unsqueeze", hidden, g.ints(1)), "cross_mask", g.float, ["N", 1, "T"])
    if dims.has_ctc:
        logits = g.score(g.linear(x, *w.linear("ctc.ctc_lo")))
        ctc = g.op("LogSoftmax", logits, axis=-1)
        g.output(ctc, "ctc", F32, ["N", "T", dims.vocabulary])
    g.save(path)


def write_resident_step(
    path: Path,
    tensors: Tensors,
    dims: FireRedDims,
    precision: Precision,
    weights: WeightFile,
    *,
    rows: int,
    smoothing: float,
    stacked: bool,
) -> None:
    """Write one decoder step of `rows` tokens with its caches, each layer's by itself or stacked.

    Inputs and outputs are those of Whisper's (`whisper_resident.resident_step_graph`), and
    `cross_mask` float[N, 1, S], as prefill gives it. Tokens are ids; the end token is never among
    the best, `end_scores` has it. `specials` float32[N, B, 1] is its logit.
    """
    w = Weights(tensors)
    g = GraphBuilder("step", precision, OPSET, weights)
    at = declare_inputs(g, rows)
    cross_mask = g.op("Unsqueeze", g.input("cross_mask", g.float, ["N", 1, "S"]), g.ints(1))
    sizes = {"rows": rows, "heads": dims.heads, "width": dims.d_head}

    caches = _PerLayer(g, dims, stacked=stacked)
    x = embedded(g, at.tokens, at.positions, w, dims)
    for layer in range(dims.decoder_layers):
        name = f"decoder.layer_stack.{layer}"
        normed = g.layer_norm(x, *w.norm(f"{name}.self_attn_norm"))
        q, *fresh = g.split(g.linear(normed, *self_projection(w, layer, dims)), 3)
        k, v = (
            caches.give(
                f"next_{letter}",
                layer,
                with_cells(g, caches.given(f"self_{letter}", layer, "C"), new, at),
                "C",
            )
            for letter, new in zip("kv", fresh, strict=True)
        )
        context = attend(g, q, k, v, at.mask, **sizes)
        x = g.op("Add", x, g.linear(context, *w.linear(f"{name}.self_attn.fc")))

        k, v = (caches.given(f"cross_{letter}", layer, "S") for letter in "kv")
        normed = g.layer_norm(x, *w.norm(f"{name}.cross_attn_norm"))
        q = g.linear(normed, *cross_query(w, layer, dims))
        context = attend(g, q, k, v, cross_mask, **sizes)
        x = g.op("Add", x, g.linear(context, *w.linear(f"{name}.cross_attn.fc")))
        x = feed_forward(g, x, w, layer)

    x = g.score(g.layer_norm(x, *w.norm("decoder.layer_norm_out")))
    x = g.op("Mul", x, g.constant(1.0 / smoothing, np.float32))
    text = w("decoder.tgt_word_prj.weight")
    choose(g, x, at.scores, rows, text, text[dims.end : dims.end + 1], banned=[dims.end])
    g.save(path)
