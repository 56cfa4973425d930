"""Whisper bundles of random weights, with caches on the device or not: whole paths in a second.

What it writes means nothing, but it writes something else for every sound.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np

from voiced.engine.build.graph import Precision
from voiced.engine.build.pack import BundleWriter
from voiced.engine.build.whisper_bundle import (
    build_resident_whisper,
    build_whisper,
    byte_alphabet,
)

WIDTH, INNER, HEADS, LAYERS, MELS = 16, 24, 2, 2, 80
SPECIALS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|transcribe|>"),
    *("<|nospeech|>", "<|notimestamps|>"),
)


def build_tiny_whisper(target: Path, seed: int = 3, precision: Precision = Precision.FP32) -> Path:
    """Build the bundle into the folder `target`; returns it."""
    with BundleWriter(target) as writer:
        tokenizer = writer.scratch_dir() / "tokenizer.json"
        vocabulary = tokens()
        tokenizer.write_text(json.dumps(vocabulary), encoding="utf-8")
        size = len(vocabulary["model"]["vocab"]) + len(SPECIALS)
        manifest = build_resident_whisper(
            weights(size, seed), tokenizer, writer, lambda _: None, precision=precision
        )
        return writer.commit(msgspec.structs.replace(manifest, name=target.name))


def build_tiny_host_whisper(target: Path, seed: int = 3) -> Path:
    """Build the bundle as it is shipped: int8, caches in host arrays; returns its folder."""
    with BundleWriter(target) as writer:
        tokenizer = writer.scratch_dir() / "tokenizer.json"
        vocabulary = tokens()
        tokenizer.write_text(json.dumps(vocabulary), encoding="utf-8")
        size = len(vocabulary["model"]["vocab"]) + len(SPECIALS)
        manifest = build_whisper(weights(size, seed), tokenizer, writer, lambda _: None)
        return writer.commit(msgspec.structs.replace(manifest, name=target.name))


def tokens() -> dict[str, dict[str, dict[str, int]] | list[dict[str, object]]]:
    """A tokenizer of single bytes."""
    alphabet = byte_alphabet()
    # notes begin with these; without the second a lone space would be suppressed with them
    pieces = [*sorted(alphabet.values()), "Ġ-", "Ġ'", f"Ġ{alphabet[0xE2]}"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    added: list[dict[str, object]] = [
        {"content": name, "id": len(pieces) + index} for index, name in enumerate(SPECIALS)
    ]
    return {"model": {"vocab": vocabulary}, "added_tokens": added}


def weights(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """WhisperSpec tensors, lively enough to prefer some tokens."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {"encoder/num_heads": np.array(HEADS, np.int16)}

    def linear(name: str, out: int, into: int) -> None:
        scale = 1.5 / into**0.5
        made[f"{name}/weight"] = rng.standard_normal((out, into)).astype(np.float32) * scale
        made[f"{name}/bias"] = rng.standard_normal(out).astype(np.float32) * 0.1

    def norm(name: str) -> None:
        made[f"{name}/gamma"] = 1 + rng.standard_normal(WIDTH).astype(np.float32) * 0.1
        made[f"{name}/beta"] = rng.standard_normal(WIDTH).astype(np.float32) * 0.1

    for index, channels in (("1", MELS), ("2", WIDTH)):
        shape = (WIDTH, channels, 3)
        made[f"encoder/conv{index}/weight"] = rng.standard_normal(shape).astype(np.float32) * 0.2
        made[f"encoder/conv{index}/bias"] = np.zeros(WIDTH, np.float32)
    for side, positions in (("encoder", 1500), ("decoder", 448)):
        table = rng.standard_normal((positions, WIDTH)).astype(np.float32) * 0.3
        made[f"{side}/position_encodings/encodings"] = table
        norm(f"{side}/layer_norm")
        for layer in range(LAYERS):
            at = f"{side}/layer_{layer}"
            norm(f"{at}/self_attention/layer_norm")
            linear(f"{at}/self_attention/linear_0", 3 * WIDTH, WIDTH)
            linear(f"{at}/self_attention/linear_1", WIDTH, WIDTH)
            norm(f"{at}/ffn/layer_norm")
            linear(f"{at}/ffn/linear_0", INNER, WIDTH)
            linear(f"{at}/ffn/linear_1", WIDTH, INNER)
            if side == "decoder":
                norm(f"{at}/attention/layer_norm")
                linear(f"{at}/attention/linear_0", WIDTH, WIDTH)
                linear(f"{at}/attention/linear_1", 2 * WIDTH, WIDTH)
                linear(f"{at}/attention/linear_2", WIDTH, WIDTH)
    table = rng.standard_normal((vocabulary, WIDTH)).astype(np.float32)
    made["decoder/embeddings/weight"] = table
    return made
