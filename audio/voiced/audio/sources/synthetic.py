"""Generated sound for tests, benchmarks and the demo of a machine without recordings.

Everything is float32[n] in [-1, 1] at 16 kHz and the same for the same arguments. Levels are the
RMS in dB relative to full scale (dBFS).
"""

from __future__ import annotations

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Float32

_VOWELS_HZ = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
)
"""Mean formants of /ɑ i u ɛ ɔ/, male (Peterson and Barney 1952, table II)."""
_FORMANT_GAINS = (1.0, 0.5, 0.25)
_FORMANT_WIDTHS_HZ = (90.0, 110.0, 170.0)


def _count(seconds: float) -> int:
    return round(seconds * RATE_HZ)


def _levelled(samples: np.ndarray, level_dbfs: float) -> Float32:
    rms = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    gain = 10 ** (level_dbfs / 20) / rms if rms else 0.0
    return np.clip(samples * gain, -1.0, 1.0).astype(np.float32)


def silence(seconds: float) -> Float32:
    """Digital silence."""
    return np.zeros(_count(seconds), np.float32)


def tone(seconds: float, *, hz: float, level_dbfs: float = -20.0) -> Float32:
    """A sine."""
    return _levelled(np.sin(2 * np.pi * hz * np.arange(_count(seconds)) / RATE_HZ), level_dbfs)


def chirp(seconds: float, *, first_hz: float, last_hz: float, level_dbfs: float = -20.0) -> Float32:
    """A sine whose frequency rises or falls linearly."""
    hz = np.linspace(first_hz, last_hz, _count(seconds))
    return _levelled(np.sin(2 * np.pi * np.cumsum(hz) / RATE_HZ), level_dbfs)


def noise(seconds: float, *, seed: int, level_dbfs: float = -50.0) -> Float32:
    """White Gaussian noise."""
    return _levelled(np.random.default_rng(seed).standard_normal(_count(seconds)), level_dbfs)


def buzz(seconds: float, *, seed: int, level_dbfs: float = -20.0) -> Float32:
    """Something like speech: a voice at about 120 Hz, five vowels a second, each with an edge.

    A sum of harmonics under a formant envelope that changes per syllable. webrtcvad takes all of it
    for speech, silero between a fifth and nine tenths, by seed.
    """
    rng = np.random.default_rng(seed)
    count = _count(seconds)
    time_s = np.arange(count) / RATE_HZ
    syllable = (time_s * 5).astype(np.intp)
    syllables = int(syllable[-1]) + 1 if count else 0
    pitch_hz = np.interp(time_s * 5, np.arange(syllables + 1), rng.uniform(100, 140, syllables + 1))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    formants_hz = np.array(_VOWELS_HZ, float)[rng.integers(len(_VOWELS_HZ), size=syllables)]
    voice = np.zeros(count)
    for harmonic in range(1, 33):
        hz = 120.0 * harmonic
        distance = (hz - formants_hz) / np.array(_FORMANT_WIDTHS_HZ)
        gain = (np.array(_FORMANT_GAINS) / (1 + distance**2)).sum(axis=1)
        voice += gain[syllable] * np.sin(harmonic * phase)
    edge = 0.15 + 0.85 * np.abs(np.sin(np.pi * 5 * time_s)) ** 0.5
    return _levelled(voice * edge, level_dbfs)
