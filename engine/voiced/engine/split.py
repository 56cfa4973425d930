"""Cuts audio that no gear holds at its quietest points. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WINDOW = 800
"""Samples over which loudness is averaged: 50 ms, shorter than the pause between two words."""

Pcm = npt.NDArray[np.int16]


def split_quietly(pcm: Pcm, longest: int) -> list[Pcm]:
    """Cut int16[n] into pieces of at most `longest` samples that meet without loss.

    Each cut lies at the quietest point of the last third before the limit.
    """
    pieces: list[Pcm] = []
    while len(pcm) > longest:
        earliest = longest * 2 // 3
        energy = np.square(pcm[earliest:longest].astype(np.float64))
        total = np.concatenate(([0.0], np.cumsum(energy)))
        loudness = total[WINDOW:] - total[:-WINDOW]
        cut = earliest + int(loudness.argmin()) + WINDOW // 2
        pieces.append(pcm[:cut])
        pcm = pcm[cut:]
    return [*pieces, pcm]
