"""A client's bytes → frames on the 16 kHz sample clock."""

from __future__ import annotations

import numpy as np

from voiced.audio.frames import RATE_HZ, AudioFrame, StreamFormat
from voiced.audio.pcm import Float32, PcmReader, frame_bytes
from voiced.audio.resample import StreamResampler

_MOST_HELD = 64
"""Blocks of a few bytes are joined at this number: each is an object of its own until then."""


class Intake:
    """Decodes, mixes down and resamples one stream, and counts its samples. One thread.

    Input frames (samples of all channels) are the truth: after a loss or at the end, the output
    position is round(input frames · 16000 / rate), so nothing drifts however long a stream lives.

    A block costs nearly the same whatever its size: a caller that does not need the samples yet
    lets blocks wait with `hold`, and they are decoded together by the next `feed` or `finish`.
    """

    def __init__(self, fmt: StreamFormat) -> None:
        self._rate_hz = fmt.rate_hz
        self._reader = PcmReader(fmt)
        self._resampler = StreamResampler(fmt.rate_hz)
        self._frame_bytes = frame_bytes(fmt)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._input_frames = 0
        self.end_sample = 0
        """One past the last 16 kHz sample handed out; lost samples count."""
        self.lost_samples = 0
        """16 kHz samples skipped by `lost`, in all."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete input sample, held for the next call."""
        return self._reader.pending_bytes

    @property
    def delay_samples(self) -> float:
        """16 kHz samples inside the resampler."""
        return self._resampler.delay_samples

    def hold(self, data: bytes) -> int:
        """Keep a block for the next `feed`; return one past the last 16 kHz sample received."""
        self._held.append(data)
        if len(self._held) == _MOST_HELD:
            self._held = [b"".join(self._held)]
        self._held_bytes += len(data)
        waiting_bytes = self._held_bytes + self._reader.pending_bytes
        frames = self._input_frames + waiting_bytes // self._frame_bytes
        return frames * RATE_HZ // self._rate_hz

    def feed(self, data: bytes | bytearray | memoryview = b"") -> AudioFrame | None:
        """Take what is held and a block of any size; None when no output sample is complete."""
        if self._held:
            data = b"".join((*self._held, data))
            self._held.clear()
            self._held_bytes = 0
        samples = self._reader.feed(data)
        self._input_frames += len(samples)
        return self._frame(self._resampler.feed(samples))

    def lost(self, input_frames: int) -> AudioFrame | None:
        """Advance the clock over `input_frames` that will never come.

        Returns:
            The audio before the loss that was still inside the resampler, if any: sound must not
            be smeared across a gap.
        """
        tail = self.finish()
        self._input_frames += input_frames
        position = max(self._expected_end(), self.end_sample)
        self.lost_samples += position - self.end_sample
        self.end_sample = position
        return tail

    def finish(self) -> AudioFrame | None:
        """Flush the resampler and forget an incomplete sample: the end of this run of audio."""
        held = self.feed() if self._held else None
        self._reader.discard_pending()
        tail = self._frame(self._resampler.finish())
        if held is None or tail is None:
            return held or tail
        return AudioFrame(held.start_sample, np.concatenate((held.samples, tail.samples)))

    def _expected_end(self) -> int:
        return round(self._input_frames * RATE_HZ / self._rate_hz)

    def _frame(self, samples: Float32) -> AudioFrame | None:
        if len(samples) == 0:
            return None
        frame = AudioFrame(self.end_sample, samples)
        self.end_sample = frame.end_sample
        return frame
