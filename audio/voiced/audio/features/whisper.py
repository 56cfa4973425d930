"""Whisper's log-mel spectrogram, computed for the audio only and padded with its floor.

Front end of Radford et al. 2022 (openai/whisper `audio.py`): 16 kHz, periodic Hann window of 25 ms,
hop 10 ms, centred frames with the start mirrored, power spectrum, Slaney mel filters up to 8 kHz,
log10 clipped 8 below the maximum. One difference is meant: the maximum is always mapped to
`PEAK` instead of following the loudness, so that the floor is a constant and a silence computed
beforehand fits behind any utterance.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import RATE_HZ

Float = npt.NDArray[np.float32]

HOP = 160
WINDOW = 400
PEAK = 1.5
"""Where the loudest bin lands; (log10(power) + 4) / 4 of a normal recording is near it."""
FLOOR = PEAK - 8 / 4
"""Value of silence: 8 decades below the loudest bin, in units of 4 decades."""


def _hz_to_mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Slaney's Auditory Toolbox scale: linear below 1 kHz, logarithmic above."""
    step = 200 / 3
    log_step = np.log(6.4) / 27
    return np.where(
        hz < 1000, hz / step, 1000 / step + np.log(np.maximum(hz, 1e-9) / 1000) / log_step
    )


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    step = 200 / 3
    log_step = np.log(6.4) / 27
    return np.where(mel < 1000 / step, mel * step, 1000 * np.exp(log_step * (mel - 1000 / step)))


@functools.cache
def mel_filters(mels: int) -> Float:
    """Triangular filters of equal area, float32[201, mels]."""
    bins = np.linspace(0, RATE_HZ / 2, WINDOW // 2 + 1)
    top = _hz_to_mel(np.array([RATE_HZ / 2.0]))[0]
    edges = _mel_to_hz(np.linspace(0.0, top, mels + 2))
    rising = (bins[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - bins[:, None]) / np.diff(edges)[None, 1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])[None]).astype(np.float32)


@functools.cache
def _hann() -> Float:
    return np.hanning(WINDOW + 1)[:-1].astype(np.float32)


def frames_touched(samples: int) -> int:
    """Feature frames whose window reaches into `samples` samples of audio."""
    return (samples + WINDOW // 2 + HOP - 1) // HOP


def log_mel(pcm: npt.NDArray[Any], frames: int, *, mels: int = 80) -> Float:
    """Compute features of `pcm` padded with silence to `frames` frames of 10 ms.

    Args:
        pcm: int16[n] or float32[n] in [-1, 1], 16 kHz mono; n may be 0.
        frames: Length of the result; audio beyond it is cut.
        mels: Number of filters.

    Returns:
        float32[1, mels, frames] between `FLOOR` and `PEAK`.
    """
    audio = pcm[: frames * HOP].astype(np.float32)
    if pcm.dtype == np.int16:
        audio /= 32768
    out = np.full((1, mels, frames), FLOOR, dtype=np.float32)
    if not audio.any():
        return out
    used = min(frames, frames_touched(len(audio)))
    half = WINDOW // 2
    padded = np.zeros((used - 1) * HOP + WINDOW, dtype=np.float32)
    body = audio[: len(padded) - half]
    padded[half : half + len(body)] = body
    mirrored = audio[1 : half + 1][::-1]
    padded[half - len(mirrored) : half] = mirrored
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(windows * _hann(), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    log = np.log10(np.maximum(power @ mel_filters(mels), 1e-10))
    peak = log.max()
    out[0, :, :used] = (np.maximum(log, peak - 8) - peak).T / 4 + PEAK
    return out
