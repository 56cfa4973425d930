"""Cuts audio that no gear holds at its quietest points. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from voiced.audio.quiet import quietest_point

Pcm = npt.NDArray[np.int16]


def split_quietly(pcm: Pcm, longest: int) -> list[Pcm]:
    """Cut int16[n] into pieces of at most `longest` samples that meet without loss.

    Each cut lies at the quietest point of the last third before the limit.
    """
    pieces: list[Pcm] = []
    while len(pcm) > longest:
        earliest = longest * 2 // 3
        place = quietest_point(pcm[earliest:longest])
        cut = longest if place is None else earliest + place
        pieces.append(pcm[:cut])
        pcm = pcm[cut:]
    return [*pieces, pcm]
