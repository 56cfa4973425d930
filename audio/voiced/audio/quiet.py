"""Where to cut when something must be cut. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_HOP = 160
"""Samples over which energy is summed: 10 ms."""
_SMOOTH_HOPS = 10
"""Hops over which loudness is judged: 100 ms, about the pause between two words."""


def quietest_point(pcm: npt.NDArray[np.int16]) -> int | None:
    """Return the middle of the quietest 100 ms of int16[n]; None when it is shorter than that.

    Of equally quiet places the latest, which makes the piece before the cut the longest.
    """
    hops = len(pcm) // _HOP
    if hops < _SMOOTH_HOPS:
        return None
    energy = np.square(pcm[: hops * _HOP].astype(np.float32)).reshape(-1, _HOP)
    smooth = np.convolve(energy.sum(axis=1, dtype=np.float64), np.ones(_SMOOTH_HOPS), "valid")
    latest = len(smooth) - 1 - int(np.argmin(smooth[::-1]))
    return (latest + _SMOOTH_HOPS // 2) * _HOP
