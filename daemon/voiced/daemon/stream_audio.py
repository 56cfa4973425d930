"""The sound of one stream: bytes in, segment events out; when it came, what is lost, how loud.

Pure: time is an argument.
"""

from __future__ import annotations

from typing import Protocol

from voiced.audio.frames import AudioFrame, Segment, SegmentEvent
from voiced.daemon.arrivals import Arrivals
from voiced.daemon.level import LevelMeter


class Intake(Protocol):
    """What a stream needs of `voiced.audio.intake`."""

    end_sample: int
    lost_samples: int

    def hold(self, data: bytes) -> int: ...
    def feed(self) -> AudioFrame | None: ...
    def lost(self, input_frames: int) -> AudioFrame | None: ...
    def finish(self) -> AudioFrame | None: ...


class Front(Protocol):
    """What a stream needs of `voiced.audio.front`."""

    @property
    def decision_sample(self) -> int: ...
    def feed(self, frame: AudioFrame) -> list[SegmentEvent]: ...
    def skip(self, to_sample: int) -> list[SegmentEvent]: ...
    def end_after(self, silence_ms: int) -> list[SegmentEvent]: ...
    def flush(self) -> list[SegmentEvent]: ...
    def finish(self) -> list[SegmentEvent]: ...
    def cancel(self) -> list[SegmentEvent]: ...
    def open_segment(self) -> Segment | None: ...


class StreamAudio:
    """Takes one stream's audio through its chain. Positions are samples at 16 kHz.

    Every method that takes audio may raise AudioError: the bytes are not what the format promises.
    """

    def __init__(self, intake: Intake, front: Front) -> None:
        self._intake, self._front = intake, front
        self._arrivals = Arrivals()
        self._level = LevelMeter()
        self._gap_start: int | None = None
        """Where the loss began after which no sound has come yet."""

    @property
    def end_sample(self) -> int:
        """End of the audio so far, lost samples counted."""
        return self._intake.end_sample

    @property
    def lost_samples(self) -> int:
        """How many of them are missing."""
        return self._intake.lost_samples

    @property
    def level_dbfs(self) -> float:
        """How loud it is now."""
        return self._level.dbfs

    def arrived_ns(self, end_sample: int) -> int | None:
        """Return when the sample before `end_sample` arrived; None for one not yet here."""
        return self._arrivals.of(end_sample)

    def take(self, block: bytes, now_ns: int) -> list[SegmentEvent]:
        """Let a block wait for those with which an event can come; that is never late for it."""
        received_sample = self._intake.hold(block)
        self._arrivals.note(received_sample, now_ns)
        if received_sample < self._front.decision_sample:
            return []
        return self._place(self._intake.feed())

    def lost(self, input_frames: int) -> list[SegmentEvent]:
        """Pass over audio that the source lost, in frames of its own rate."""
        known = self._intake.lost_samples
        before = self._place(self._intake.lost(input_frames))
        lost = self._intake.lost_samples - known
        if lost and self._gap_start is None:
            self._gap_start = self._intake.end_sample - lost
        return before + self._front.skip(self._intake.end_sample)

    def take_gap(self) -> tuple[int, int] | None:
        """Return once where audio is missing at the end, first sample and end; None: nowhere.

        To be asked when sound is back or the stream ends: then it is known how much is missing.
        """
        if self._gap_start is None:
            return None
        gap, self._gap_start = (self._gap_start, self._intake.end_sample), None
        return gap

    def end_after(self, silence_ms: int) -> list[SegmentEvent]:
        """Let the silence that runs end the segment sooner or later than by the settings."""
        return self._front.end_after(silence_ms)

    def open_segment(self) -> Segment | None:
        """Return what was heard of the open segment; None: none is open."""
        return self._front.open_segment()

    def flush(self) -> list[SegmentEvent]:
        """Close the open segment now."""
        return self._place(self._intake.feed()) + self._front.flush()

    def finish(self) -> list[SegmentEvent]:
        """Close the chain, and the open segment."""
        return self._place(self._intake.finish()) + self._front.finish()

    def cancel(self) -> list[SegmentEvent]:
        """Close the chain, and throw the open segment away."""
        return self._place(self._intake.feed()) + self._front.cancel()

    def _place(self, frame: AudioFrame | None) -> list[SegmentEvent]:
        if frame is None:
            return []
        self._level.take(frame.samples)
        return self._front.feed(frame)
