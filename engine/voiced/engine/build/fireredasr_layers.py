"""What all FireRedASR graphs share: weights by name, the Conformer encoder, pieces of the decoder.

Names of the weights are those of the state dict (`encoder.layer_stack.0.mhsa.w_qs.weight`).
Architectures: Gulati et al. 2020, "Conformer", with the relative positions of Dai et al. 2019,
"Transformer-XL", appendix B; Vaswani et al. 2017. Where the released code departs from them is said
at the place.

Written with few operators and without `Shape`, so that every runtime takes them: sizes are copied
(0) or left open (-1) in `Reshape`, masks are arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.build.fireredasr_checkpoint import FireRedDims
from voiced.engine.build.graph import GELU_LEAST, SWISH_LEAST, Float, GraphBuilder

Tensors = Mapping[str, npt.NDArray[Any]]

MASKED = -1e4
"""Added to the attention score of what may not be seen; finite in float16."""
LEAD = 3
"""Frames that the input has beyond 4 T': the subsampling looks 3 frames ahead. The released code
appends 6, of which the two strides of 2 use as many as complete the last frame."""


class Weights:
    """Looks weights up by their name without `.weight`, as float32."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __call__(self, name: str) -> Float:
        return np.asarray(self._tensors[name], dtype=np.float32)

    def matrix(self, name: str) -> Float:
        """Weight transposed to [in, out]; a convolution of width 1 is one too."""
        weight = self(f"{name}.weight")
        return np.ascontiguousarray(weight.reshape(weight.shape[:2]).T)

    def linear(self, name: str) -> tuple[Float, Float]:
        """Weight transposed to [in, out], and bias."""
        return self.matrix(name), self(f"{name}.bias")

    def norm(self, name: str) -> tuple[Float, Float]:
        """Gamma and beta."""
        return self(f"{name}.weight"), self(f"{name}.bias")


def encoder_places(tensors: Tensors, frames: int) -> Float:
    """Relative position encodings for up to `frames` encoder frames: float32[2 frames, d].

    Row 0 belongs to distance `frames`, the last to 1 - `frames`. The first of 2 T rows in the
    middle is never looked at, see `_shifted`.
    """
    table = np.asarray(tensors["encoder.positional_encoding.pe"], np.float32)[0]
    centre = len(table) // 2
    if frames > centre:
        raise ValueError(f"{frames} encoder frames are beyond the {centre} that have an encoding")
    return np.ascontiguousarray(table[centre - frames : centre + frames])


def encoded(
    g: GraphBuilder, features: str, mask: str, places: str, w: Weights, dims: FireRedDims
) -> str:
    """The encoder: float[N, 4 T + 3, mels], mask float[N, T], places float[2 T, d] → [N, T, d]."""
    x = _subsampled(g, features, w)
    frames = g.op("Unsqueeze", mask, g.ints(2))  # [N, T, 1]
    hidden = g.op("Sub", mask, g.constant(1.0))
    keys = g.op("Unsqueeze", g.op("Mul", hidden, g.constant(-MASKED)), g.ints(1, 2))
    for layer in range(dims.encoder_layers):
        at = f"encoder.layer_stack.{layer}"
        x = _half_step(g, x, w, f"{at}.ffn1")
        x = _attended(g, x, keys, places, w, f"{at}.mhsa", dims)
        x = _convolved(g, x, frames, w, f"{at}.conv", dims)
        x = _half_step(g, x, w, f"{at}.ffn2")
        x = g.layer_norm(x, *w.norm(f"{at}.layer_norm"))
    return x


def _subsampled(g: GraphBuilder, features: str, w: Weights) -> str:
    """Two convolutions of stride 2 over time and mel bands, then a projection: [N, T, d]."""
    front = "encoder.input_preprocessor"
    x = g.op("Unsqueeze", features, g.ints(1))
    for index in ("0", "2"):
        kernel, bias = (
            g.constant(w(f"{front}.conv.{index}.{part}")) for part in ("weight", "bias")
        )
        sizes = {"kernel_shape": [3, 3], "strides": [2, 2], "dilations": [1, 1], "pads": [0] * 4}
        x = g.op("Relu", g.op("Conv", x, kernel, bias, **sizes))
    weight, bias_out = w.linear(f"{front}.out")
    x = g.op("Transpose", x, perm=[0, 2, 1, 3])  # [N, T, channels, bands]
    return g.row_linear(g.op("Reshape", x, g.ints(0, 0, len(weight))), weight, bias_out, least=0.0)


def _swish(g: GraphBuilder, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _half_step(g: GraphBuilder, x: str, w: Weights, name: str) -> str:
    """x / 2 + (x + f(x)) / 2: the released block adds its input inside and halves both."""
    hidden = g.row_linear(g.layer_norm(x, *w.norm(f"{name}.net.0")), *w.linear(f"{name}.net.1"))
    out, bias = w.linear(f"{name}.net.4")
    return g.op("Add", x, g.row_linear(_swish(g, hidden), 0.5 * out, 0.5 * bias, least=SWISH_LEAST))


def _attended(
    g: GraphBuilder, x: str, keys: str, places: str, w: Weights, name: str, dims: FireRedDims
) -> str:
    """Self-attention with relative positions; q, k and v have norms of their own."""
    heads, width = dims.heads, dims.d_head
    scale = np.float32(width**-0.5)

    def projected(letter: str, perm: list[int]) -> str:
        normed = g.layer_norm(x, *w.norm(f"{name}.layer_norm_{letter}"))
        weight = w.matrix(f"{name}.w_{letter}s")
        if letter == "q":
            weight = weight * scale
        split = g.op("Reshape", g.row_linear(normed, weight), g.ints(0, 0, heads, width))
        return g.op("Transpose", split, perm=perm)

    def biased(letter: str) -> str:
        bias = w(f"{name}.pos_bias_{letter}").reshape(1, heads, 1, width) * scale
        return g.op("Add", q, g.constant(bias))

    q = projected("q", [0, 2, 1, 3])  # [N, H, T, dk]
    k = projected("k", [0, 2, 3, 1])  # [N, H, dk, T]
    v = projected("v", [0, 2, 1, 3])
    positions = g.op(
        "Reshape", g.row_linear(places, w.matrix(f"{name}.linear_pos")), g.ints(0, heads, width)
    )
    positions = g.op("Unsqueeze", g.op("Transpose", positions, perm=[1, 2, 0]), g.ints(0))
    scores = g.op(
        "Add",
        g.op("MatMul", biased("u"), k),
        _shifted(g, g.op("MatMul", biased("v"), positions)),
    )
    weights = g.op("Softmax", g.op("Add", scores, keys), axis=-1)
    context = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    merged = g.op("Reshape", context, g.ints(0, 0, dims.d_model))
    return g.op("Add", x, g.row_linear(merged, w.matrix(f"{name}.fc")))


def _shifted(g: GraphBuilder, x: str) -> str:
    """Scores by distance [N, H, T, 2 T] → by key [N, H, T, T]: out[i, j] = x[i, T - i + j].

    Transformer-XL's relative shift. Read as 2 T rows of T numbers, the first row holds nothing that
    is wanted; the rest, read as T rows of 2 T - 1 numbers, begins each row with what is wanted.
    `Reshape` copies T (0) from an axis at the same place, for which axes of size 1 make room.
    """
    x = g.op("Reshape", x, g.ints(0, 0, 0, 2, -1))  # [N, H, T, 2, T]
    x = g.op("Reshape", x, g.ints(0, 0, -1, 1, 0))  # [N, H, 2 T, 1, T]
    x = g.op("Slice", x, g.ints(1), g.ints(2**31 - 1), g.ints(2))  # [N, H, 2 T - 1, 1, T]
    x = g.op("Reshape", x, g.ints(0, 0, 1, 1, 0, -1))  # [N, H, 1, 1, T, 2 T - 1]
    x = g.op("Squeeze", x, g.ints(2, 3))
    # one column more, so that half of the columns are T
    any_column = g.op("Slice", x, g.ints(0), g.ints(1), g.ints(3))
    x = g.op("Reshape", g.op("Concat", x, any_column, axis=3), g.ints(0, 0, 0, 2, -1))
    return g.op("Squeeze", g.op("Slice", x, g.ints(0), g.ints(1), g.ints(3)), g.ints(3))


def _convolved(
    g: GraphBuilder, x: str, frames: str, w: Weights, name: str, dims: FireRedDims
) -> str:
    """Convolution over time. What the release calls `batch_norm` is a layer norm."""
    wide = 2 * dims.d_model
    y = g.op("Mul", g.layer_norm(x, *w.norm(f"{name}.pre_layer_norm")), frames)
    value, gate = g.split(g.row_linear(y, w.matrix(f"{name}.pointwise_conv1")), 2)
    y = g.op("Transpose", g.op("Mul", value, g.op("Sigmoid", gate)), perm=[0, 2, 1])
    y = g.op(
        "Conv",
        y,
        g.constant(w(f"{name}.depthwise_conv.weight")),
        group=wide,
        # spelled out: a converter takes the defaults for missing
        kernel_shape=[dims.kernel],
        strides=[1],
        dilations=[1],
        pads=[dims.kernel // 2] * 2,
    )
    y = g.layer_norm(g.op("Transpose", y, perm=[0, 2, 1]), *w.norm(f"{name}.batch_norm"))
    y = g.row_linear(_swish(g, y), w.matrix(f"{name}.pointwise_conv2"), least=SWISH_LEAST)
    return g.op("Add", x, g.op("Mul", y, frames))


def cross_projection(w: Weights, layer: int, dims: FireRedDims) -> tuple[Float, Float]:
    """Keys and values of a decoder layer's cross-attention in one projection; keys have no bias."""
    name = f"decoder.layer_stack.{layer}.cross_attn"
    weight = np.concatenate([w.matrix(f"{name}.w_ks"), w.matrix(f"{name}.w_vs")], axis=1)
    bias = np.concatenate([np.zeros(dims.d_model, np.float32), w(f"{name}.w_vs.bias")])
    return weight, bias


def self_projection(w: Weights, layer: int, dims: FireRedDims) -> tuple[Float, Float]:
    """Queries, scaled by 1/sqrt(dk), keys and values of a decoder layer in one projection."""
    name = f"decoder.layer_stack.{layer}.self_attn"
    scale = np.float32(dims.d_head**-0.5)
    parts = [w.matrix(f"{name}.w_qs") * scale, w.matrix(f"{name}.w_ks"), w.matrix(f"{name}.w_vs")]
    none = np.zeros(dims.d_model, np.float32)
    bias = [w(f"{name}.w_qs.bias") * scale, none, w(f"{name}.w_vs.bias")]
    return np.concatenate(parts, axis=1), np.concatenate(bias)


def cross_query(w: Weights, layer: int, dims: FireRedDims) -> tuple[Float, Float]:
    """Queries of a decoder layer's cross-attention, scaled by 1/sqrt(dk)."""
    weight, bias = w.linear(f"decoder.layer_stack.{layer}.cross_attn.w_qs")
    scale = np.float32(dims.d_head**-0.5)
    return weight * scale, bias * scale


def feed_forward(g: GraphBuilder, x: str, w: Weights, layer: int) -> str:
    """Pre-norm feed-forward block of a decoder layer with its residual."""
    name = f"decoder.layer_stack.{layer}"
    hidden = g.row_linear(
        g.layer_norm(x, *w.norm(f"{name}.mlp_norm")), *w.linear(f"{name}.mlp.w_1")
    )
    y = g.row_linear(g.gelu(hidden), *w.linear(f"{name}.mlp.w_2"), least=GELU_LEAST)
    return g.op("Add", x, y)


def embedded(g: GraphBuilder, tokens: str, positions: str, w: Weights, dims: FireRedDims) -> str:
    """Tokens at their positions: the embedding is scaled by sqrt(d), its positions are not."""
    table = w("decoder.tgt_word_emb.weight") * np.float32(dims.d_model**0.5)
    places = g.constant(w("decoder.positional_encoding.pe")[0])
    return g.op("Add", g.embedding(tokens, table), g.op("Gather", places, positions, axis=0))
