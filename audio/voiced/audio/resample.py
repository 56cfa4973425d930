"""Any input rate → 16 kHz, as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Float32

if TYPE_CHECKING:
    from soxr import ResampleStream

_NOTHING = np.zeros(0, np.float32)


class StreamResampler:
    """Resamples one mono stream to 16 kHz with soxr; at 16 kHz it hands the samples through.

    The output is the same for any chopping of the input (soxr keeps its own blocks), and is
    aligned: output sample k lies at input time k / 16000 s. One thread.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._stream: ResampleStream | None = None

    @property
    def delay_samples(self) -> float:
        """Output samples (16 kHz) that were fed and are not out yet."""
        return float(self._stream.delay()) if self._stream is not None else 0.0

    def feed(self, samples: Float32) -> Float32:
        """Take float32[n] at the input rate, return the float32[m] that are ready."""
        if self._rate_hz == RATE_HZ or len(samples) == 0:
            return samples
        if self._stream is None:
            import soxr  # late: streams at 16 kHz do without it

            self._stream = soxr.ResampleStream(self._rate_hz, RATE_HZ, 1, dtype="float32")
        ready: Float32 = self._stream.resample_chunk(samples)
        return ready

    def finish(self) -> Float32:
        """Return what is still inside. The next `feed` starts afresh, without a memory."""
        if self._stream is None:
            return _NOTHING
        stream, self._stream = self._stream, None
        rest: Float32 = stream.resample_chunk(_NOTHING, last=True)
        return rest
