"""Values that flow through the audio stage: formats, frames, segments, events.

Everything behind the resampler counts in samples of `RATE_HZ` mono; a position is the number of
such samples since the stream was opened. Milliseconds are computed from it at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

RATE_HZ = 16_000
"""Sample rate of everything behind the resampler."""


def samples_to_ms(samples: int) -> int:
    """Convert a position or length in 16 kHz samples to whole milliseconds (floor)."""
    return samples * 1000 // RATE_HZ


def ms_to_samples(ms: float) -> int:
    """Convert milliseconds to 16 kHz samples, rounded."""
    return round(ms * RATE_HZ / 1000)


class Encoding(StrEnum):
    """Sample encodings of the wire, all little-endian and interleaved."""

    S16 = "pcm_s16le"
    S32 = "pcm_s32le"
    F32 = "pcm_f32le"
    MULAW = "mulaw"
    ALAW = "alaw"


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """What the bytes of one stream mean."""

    encoding: Encoding = Encoding.S16
    rate_hz: int = RATE_HZ
    """Samples per second and channel, 4000 to 192000."""
    channels: int = 1
    """Interleaved channels, 1 to 32; mixed down by their mean."""

    def __post_init__(self) -> None:
        if not 4_000 <= self.rate_hz <= 192_000:
            raise ValueError(f"rate_hz must be 4000 to 192000, not {self.rate_hz}")
        if not 1 <= self.channels <= 32:
            raise ValueError(f"channels must be 1 to 32, not {self.channels}")


@dataclass(frozen=True, slots=True, eq=False)  # eq: `==` on arrays is not a bool
class AudioFrame:
    """A block of mono PCM at 16 kHz, placed on its stream's sample clock."""

    start_sample: int
    """First sample, counted from stream open. Lost samples are counted too, so a reader sees
    a loss as a jump."""
    samples: npt.NDArray[np.float32]
    """float32[n] in [-1, 1]. The frame takes the array over and makes it read-only."""

    def __post_init__(self) -> None:
        if self.samples.dtype != np.float32 or self.samples.ndim != 1:
            found = f"{self.samples.dtype}{list(self.samples.shape)}"
            raise TypeError(f"frame samples must be float32[n], not {found}")
        self.samples.flags.writeable = False

    @property
    def end_sample(self) -> int:
        """One past the last sample."""
        return self.start_sample + len(self.samples)


class CloseReason(StrEnum):
    """Why a segment ended; the values go on the wire."""

    SILENCE = "silence"
    MAX_LENGTH = "max_length"
    GAP = "gap"
    FLUSH = "flush"
    END_OF_STREAM = "end_of_stream"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One stretch of speech, padding included. Owns its samples."""

    id: int
    """Unique among all segments of one daemon run."""
    stream: str
    start_sample: int
    pcm: npt.NDArray[np.int16]
    """int16[n] at 16 kHz, read-only."""
    language: str | None = None
    """ISO 639-1 code when pinned for the stream; None lets the engine choose."""

    def __post_init__(self) -> None:
        if self.pcm.dtype != np.int16 or self.pcm.ndim != 1:
            found = f"{self.pcm.dtype}{list(self.pcm.shape)}"
            raise TypeError(f"segment pcm must be int16[n], not {found}")
        self.pcm.flags.writeable = False

    @property
    def end_sample(self) -> int:
        """One past the last sample."""
        return self.start_sample + len(self.pcm)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / RATE_HZ


@dataclass(frozen=True, slots=True)
class SegmentOpened:
    """Speech began. `start_sample` already includes the padding in front."""

    segment: int
    start_sample: int


@dataclass(frozen=True, slots=True)
class SegmentGrown:
    """The open segment is another hop longer; a good moment for a partial result."""

    segment: int
    end_sample: int


@dataclass(frozen=True, slots=True, eq=False)
class SegmentPaused:
    """Silence began, and may end the segment; a good moment to start its final result."""

    segment: Segment
    """As it will be if the silence ends it: the padding that is still to come is made up from the
    silence heard."""
    speech_end: int
    """Where the silence began. A segment that closes without `SegmentResumed`, at this sample or
    later, holds no speech that this one does not."""


@dataclass(frozen=True, slots=True)
class SegmentResumed:
    """Speech goes on after `SegmentPaused`."""

    segment: int


@dataclass(frozen=True, slots=True, eq=False)
class SegmentClosed:
    """Speech ended and will not change any more."""

    segment: Segment
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class SegmentDropped:
    """An opened segment turned out to be no speech (the short-segment gate)."""

    segment: int


SegmentEvent = (
    SegmentOpened | SegmentGrown | SegmentPaused | SegmentResumed | SegmentClosed | SegmentDropped
)
