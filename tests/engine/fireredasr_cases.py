"""The models, utterances and searches whose official answers are stored, and how they are stored.

`tools/fireredasr-goldens` asks the published code for the answers and writes `GOLDENS`; the tests
compare with it, without torch.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.engine.tiny_fireredasr import Tiny

GOLDENS = Path(__file__).parent / "fireredasr_goldens.json"

MODELS = (
    Tiny(2, 1, end_bias=4.0),
    Tiny(4, 1, end_bias=9.0),
    Tiny(3, 1, end_bias=12.0),
    Tiny(2, 2, end_bias=5.0),
    Tiny(5, 2, end_bias=0.0),
    Tiny(7, 2, end_bias=8.0),
    Tiny(6, 2, end_bias=8.0, pad_bias=8.0),
)

FRAMES = (
    *(5, 18, 27, 36, 45, 54, 60, 61, 62, 63),
    *(71, 80, 97, 98, 99, 100, 121, 131, 150, 190),
)
"""Feature frames of each model's utterances; all of 4 k to 4 k + 3."""

LONG = (400, 1000, 2000)
"""Feature frames, and seeds, of utterances of which the tokens of one search alone are stored."""

ENCODED = (0, 7, 8, 9, 12, 17)
"""Utterances whose encoder output is stored."""

SMOOTHING, LENGTH_PENALTY = 1.25, 0.6


@dataclass(frozen=True)
class Search:
    """One way to search."""

    beam: int
    eos_penalty: float

    @property
    def name(self) -> str:
        """Key of its answers."""
        return f"beam {self.beam}, eos penalty {self.eos_penalty:g}"


SEARCHES = (
    *(Search(1, 1.0), Search(3, 1.0), Search(5, 1.0)),
    *(Search(1, 0.6), Search(3, 0.8), Search(5, 0.6)),
)


def utterance_seed(tiny: Tiny, index: int) -> int:
    """Seed of an utterance's features."""
    return 1000 * tiny.seed + index


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON."""
    raw = zlib.compress(np.ascontiguousarray(array, "<f4").tobytes(), 9)
    return {"shape": list(array.shape), "float32": base64.b64encode(raw).decode()}


def unpacked(stored: dict[str, Any]) -> np.ndarray:
    """The array again."""
    raw = zlib.decompress(base64.b64decode(stored["float32"]))
    return np.frombuffer(raw, "<f4").reshape(stored["shape"])


def stored_goldens() -> dict[str, Any]:
    """Model name → its answers; see `tools/fireredasr-goldens`."""
    goldens: dict[str, Any] = json.loads(GOLDENS.read_text(encoding="utf-8"))
    return goldens
