"""What all Whisper graphs share: sizes, weights by name, and the pieces of a layer.

Names of the weights follow CTranslate2's WhisperSpec (`encoder/layer_0/self_attention/linear_0`).
Architecture: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiced.engine.build.graph import Float, GraphBuilder

Tensors = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class WhisperDims:
    """Sizes, read from the shapes of the weights."""

    mels: int
    d_model: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    encoder_positions: int
    decoder_positions: int
    vocabulary: int

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads


def read_dims(tensors: Tensors) -> WhisperDims:
    """Derive the sizes from the weights themselves."""

    def layers(side: str) -> int:
        found = (re.match(rf"{side}/layer_(\d+)/", name) for name in tensors)
        return len({match[1] for match in found if match})

    d_model, mels, _ = tensors["encoder/conv1/weight"].shape
    return WhisperDims(
        mels=mels,
        d_model=d_model,
        heads=int(tensors["encoder/num_heads"]),
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        encoder_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        decoder_positions=tensors["decoder/position_encodings/encodings"].shape[0],
        vocabulary=tensors["decoder/embeddings/weight"].shape[0],
    )


class Weights:
    """Looks weights up by layer prefix, as float32."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __call__(self, name: str) -> Float:
        return np.asarray(self._tensors[name], dtype=np.float32)

    def linear(self, name: str) -> tuple[Float, Float]:
        """Weight transposed to [in, out], and bias."""
        return np.ascontiguousarray(self(f"{name}/weight").T), self(f"{name}/bias")

    def norm(self, name: str) -> tuple[Float, Float]:
        """Gamma and beta."""
        return self(f"{name}/gamma"), self(f"{name}/beta")


def split_heads(
    g: GraphBuilder, x: str, dims: WhisperDims, batch: int, *, keys: bool = False
) -> str:
    """[batch, t, d] → [batch, H, t, dk], or [batch, H, dk, t] for keys; batch 0 copies."""
    split = g.op("Reshape", x, g.ints(batch, -1, dims.heads, dims.d_head))
    return g.op("Transpose", split, perm=[0, 2, 3, 1] if keys else [0, 2, 1, 3])


def merge_heads(g: GraphBuilder, x: str, dims: WhisperDims, batch: int) -> str:
    """[batch, H, t, dk] → [batch, t, d]."""
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.ints(batch, -1, dims.d_model))


def feed_forward(g: GraphBuilder, x: str, w: Weights, name: str) -> str:
    """Pre-norm feed-forward block with its residual."""
    hidden = g.linear(g.layer_norm(x, *w.norm(f"{name}/layer_norm")), *w.linear(f"{name}/linear_0"))
    return g.op("Add", x, g.linear(g.gelu(hidden), *w.linear(f"{name}/linear_1")))


def scaled(weight: Float, bias: Float, columns: int, scale: float) -> tuple[Float, Float]:
    """Fold the attention's 1/sqrt(dk) into the query columns."""
    weight, bias = weight.copy(), bias.copy()
    weight[:, :columns] *= scale
    bias[:columns] *= scale
    return weight, bias


def convolved(g: GraphBuilder, mel: str, w: Weights) -> str:
    """The encoder's two convolutions: mel [N, mels, 2T] → [N, T, d]."""
    x = mel
    for index, stride in (("1", 1), ("2", 2)):
        x = g.op(
            "Conv",
            x,
            g.constant(w(f"encoder/conv{index}/weight")),
            g.constant(w(f"encoder/conv{index}/bias")),
            pads=[1, 1],
            strides=[stride],
        )
        x = g.gelu(x)
    return g.op("Transpose", x, perm=[0, 2, 1])


def encoded(
    g: GraphBuilder,
    x: str,
    w: Weights,
    dims: WhisperDims,
    extend: Callable[[str, str], str],
    *,
    batch: int = 1,
    mask: str | None = None,
) -> str:
    """All encoder layers and the last norm over [batch, T, d]; batch 0 takes any.

    `mask` is added to the attention scores [batch, H, T, T+P].
    `extend` gets keys, then values, [batch, T, d] of each layer with their name, e.g.
    `encoder_k_0`, and returns what is attended to, [batch, T+P, d].
    """
    for layer in range(dims.encoder_layers):
        name = f"encoder/layer_{layer}"
        qkv = g.linear(
            g.layer_norm(x, *w.norm(f"{name}/self_attention/layer_norm")),
            *scaled(*w.linear(f"{name}/self_attention/linear_0"), dims.d_model, dims.d_head**-0.5),
        )
        q, k, v = g.split(qkv, 3)
        k = extend(k, f"encoder_k_{layer}")
        v = extend(v, f"encoder_v_{layer}")
        scores = g.op(
            "MatMul", split_heads(g, q, dims, batch), split_heads(g, k, dims, batch, keys=True)
        )
        if mask is not None:
            scores = g.op("Add", scores, mask)
        context = g.op("MatMul", g.op("Softmax", scores, axis=-1), split_heads(g, v, dims, batch))
        attended = g.linear(
            merge_heads(g, context, dims, batch), *w.linear(f"{name}/self_attention/linear_1")
        )
        x = feed_forward(g, g.op("Add", x, attended), w, f"{name}/ffn")
    return g.layer_norm(x, *w.norm("encoder/layer_norm"))
