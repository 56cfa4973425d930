"""How loud a stream is, for people who look at it. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

SILENCE_DBFS = -96.0
"""What is shown for digital silence: the floor of 16 bits."""
_HALF_LIFE_SAMPLES = 16_000 * 0.15


class LevelMeter:
    """Root mean square of a stream's sound, an older half counting half after 150 ms of audio."""

    def __init__(self) -> None:
        self._mean_square = 0.0

    def take(self, samples: npt.NDArray[np.float32]) -> None:
        """Hear a block: one dot product."""
        count = len(samples)
        if count:
            kept = 0.5 ** (count / _HALF_LIFE_SAMPLES)
            square: Any = np.dot(samples, samples)
            self._mean_square = kept * self._mean_square + (1 - kept) * float(square) / count

    @property
    def dbfs(self) -> float:
        """Level now; a full-scale square wave has 0."""
        if self._mean_square <= 0:
            return SILENCE_DBFS
        return max(SILENCE_DBFS, 10 * math.log10(self._mean_square))
