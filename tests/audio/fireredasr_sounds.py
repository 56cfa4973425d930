"""Sounds whose official FireRedASR features are stored; see `tools/fireredasr-features`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDENS = Path(__file__).parent / "fireredasr_features.json"
CMVN_SEED = 5
SOUNDS = ("one window", "one sample less than two", "two", "voice", "clipped", "whisper", "silence")


def sound(name: str) -> npt.NDArray[np.int16]:
    """The sound as int16[n] at 16 kHz; the same on every machine."""
    samples = {"one window": 400, "one sample less than two": 559, "two": 560}.get(name, 6789)
    random = np.random.RandomState(sum(map(ord, name))).random_sample(samples) * 2 - 1
    time = np.arange(samples) / 16_000
    voice = sum(np.sin(2 * np.pi * 140 * k * (time + 0.1 * time**2)) / k for k in range(1, 25))
    loudness = {"clipped": 60_000, "whisper": 3, "silence": 0}.get(name, 5000)
    mixed = loudness * (np.asarray(voice) + 0.2 * random)
    return np.clip(np.rint(mixed), -32768, 32767).astype(np.int16)
