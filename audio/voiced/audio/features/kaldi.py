"""Kaldi's log-mel filter bank with global normalisation: the front end of FireRedASR.

Computed by kaldi-native-fbank, as the published models were trained: 16 kHz in the value range of
int16, 80 bins from 20 Hz to 8 kHz, povey window of 25 ms every 10 ms, DC offset removed,
preemphasis 0.97, power spectrum of 512 points, natural log, no dither. A window that would reach
over an edge is no frame (`snip_edges`): fewer than 400 samples give none.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import RATE_HZ

Float = npt.NDArray[np.float32]

HOP = 160
WINDOW = 400
MELS = 80


def frames_of(samples: int) -> int:
    """Feature frames of so many samples."""
    return max(0, 1 + (samples - WINDOW) // HOP)


@dataclass(frozen=True, slots=True, eq=False)
class Cmvn:
    """Global mean and variance normalisation, in float64 as the published code does."""

    mean: npt.NDArray[np.float64]
    inverse_std: npt.NDArray[np.float64]

    @classmethod
    def read(cls, path: Path, mels: int = MELS) -> Cmvn:
        """Read a bundle's file: float64[2, mels], means and inverse standard deviations.

        Raises:
            ValueError: The file has another size.
        """
        values = np.fromfile(path, np.float64)
        if values.size != 2 * mels:
            raise ValueError(
                f"{path.name}: found {values.size} numbers, expected {2 * mels}: float64[2, {mels}]"
            )
        return cls(*values.reshape(2, mels))

    def __call__(self, features: Float) -> Float:
        """Normalise float32[frames, bins]."""
        return ((features - self.mean) * self.inverse_std).astype(np.float32)


@functools.cache
def _options() -> Any:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = RATE_HZ
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = MELS
    options.mel_opts.debug_mel = False
    return options


def filter_bank(pcm: npt.NDArray[np.int16]) -> Float:
    """Return float32[frames_of(n), 80] of int16[n]; digital silence is -15.942 in every bin."""
    count = frames_of(len(pcm))
    out = np.empty((count, MELS), np.float32)
    if count:
        import kaldi_native_fbank

        bank = kaldi_native_fbank.OnlineFbank(_options())
        bank.accept_waveform(RATE_HZ, pcm.astype(np.float32))
        for i in range(count):
            out[i] = bank.get_frame(i)
    return out


def features(pcm: npt.NDArray[np.int16], cmvn: Cmvn) -> Float:
    """Return float32[frames, 80], normalised; what pads it behind the end must be 0.0."""
    return cmvn(filter_bank(pcm))
