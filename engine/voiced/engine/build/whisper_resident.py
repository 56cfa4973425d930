"""Whisper weights → graphs whose caches stay on the device, for runtimes with few operators.

The mathematics is that of `whisper.py`; what differs is what crosses. Keys and values of both
attentions are inputs and outputs of equal shape, so that two sets can be used in turn; the step
writes its own cells and keeps the ancestor mask, so that per step a few numbers cross.

The rules they keep stand in `resident_layers.py`.

Axes: N utterances, T encoder frames, P frames of the silence tail, S = T + P, B rows of a beam,
C cache cells, K = B + 1 candidates, d = H * dk. N, T, P, S and C are symbolic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.resident_layers import (
    OPSET,
    StepInputs,
    attend,
    choose,
    declare_inputs,
    write_cells,
)
from voiced.engine.build.whisper_layers import (
    Tensors,
    Weights,
    WhisperDims,
    convolved,
    encoded,
    feed_forward,
    scaled,
)


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
    at = declare_inputs(g, rows)
    embedding = w("decoder/embeddings/weight")
    table = g.constant(w("decoder/position_encodings/encodings"))
    x = g.op("Add", g.embedding(at.tokens, embedding), g.op("Gather", table, at.positions, axis=0))
    for layer in range(dims.decoder_layers):
        x = _decoder_layer(g, x, w, dims, layer, rows, at)
    x = g.score(g.layer_norm(x, *w.norm("decoder/layer_norm")))
    choose(g, x, at.scores, rows, embedding[text_ids], embedding[special_ids])
    return g.model()


def _decoder_layer(
    g: GraphBuilder,
    x: str,
    w: Weights,
    dims: WhisperDims,
    layer: int,
    rows: int,
    at: StepInputs,
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
    k, v = (
        write_cells(g, letter, layer, new, at, d) for letter, new in zip("kv", fresh, strict=True)
    )
    sizes = {"rows": rows, "heads": dims.heads, "width": dims.d_head}
    context = attend(g, q, k, v, at.mask, **sizes)
    x = g.op("Add", x, g.linear(context, *w.linear(f"{name}/self_attention/linear_1")))

    cross_k, cross_v = (
        g.input(f"cross_{letter}_{layer}", g.float, ["N", d, "S"]) for letter in "kv"
    )
    q = g.linear(
        g.layer_norm(x, *w.norm(f"{name}/attention/layer_norm")),
        *scaled(*w.linear(f"{name}/attention/linear_0"), d, scale),
    )
    context = attend(g, q, cross_k, cross_v, None, **sizes)
    x = g.op("Add", x, g.linear(context, *w.linear(f"{name}/attention/linear_2")))
    return feed_forward(g, x, w, f"{name}/ffn")
