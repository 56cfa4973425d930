"""A client's bytes → frames on the 16 kHz sample clock."""

from __future__ import annotations

from voiced.audio.frames import RATE_HZ, AudioFrame, StreamFormat
from voiced.audio.pcm import Float32, PcmReader
from voiced.audio.resample import StreamResampler


class Intake:
    """Decodes, mixes down and resamples one stream, and counts its samples. One thread.

    Input frames (samples of all channels) are the truth: after a loss or at the end, the output
    position is round(input frames · 16000 / rate), so nothing drifts however long a stream lives.
    """

    def __init__(self, fmt: StreamFormat) -> None:
        self._rate_hz = fmt.rate_hz
        self._reader = PcmReader(fmt)
        self._resampler = StreamResampler(fmt.rate_hz)
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

    def feed(self, data: bytes | bytearray | memoryview) -> AudioFrame | None:
        """Take a block of any size; None when it completes no output sample."""
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
        self._reader.discard_pending()
        return self._frame(self._resampler.finish())

    def _expected_end(self) -> int:
        return round(self._input_frames * RATE_HZ / self._rate_hz)

    def _frame(self, samples: Float32) -> AudioFrame | None:
        if len(samples) == 0:
            return None
        frame = AudioFrame(self.end_sample, samples)
        self.end_sample = frame.end_sample
        return frame
