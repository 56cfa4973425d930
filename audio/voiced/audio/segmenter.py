"""Per-window speech probabilities → segment boundaries. Pure: no audio, clock or ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from voiced.audio.frames import RATE_HZ, CloseReason


@dataclass(frozen=True, slots=True)
class SegmentRules:
    """What makes a segment. Lengths in 16 kHz samples."""

    min_speech: int
    """Speech needed before a segment opens."""
    end_silence: int
    """Silence that closes it."""
    pad_front: int
    pad_behind: int
    """At most `end_silence`, so that padding never waits for audio."""
    max_length: int
    """Longest segment, padding included."""
    cut_search: int
    """How far before `max_length` the quietest point is looked for; less than `max_length`."""
    grow_hop: int = 0
    """Growth between two `Grew`; 0 for none."""
    first_grow: int = 0
    """Speech before the first `Grew`; 0: one hop."""
    pause: int = 0
    """Silence after which `Paused` is told; 0 for none."""
    on: float = 0.5
    """Probability from which a window begins speech (silero's default)."""
    off: float = 0.35
    """Probability under which a window ends speech."""
    dip: int = RATE_HZ // 4
    """A speech run that has not opened a segment yet is forgotten after this much silence; a
    shorter one counts in the gate's mean (at 0.1 s one sneeze of 47 noise clips came through)."""
    gate_span: int = RATE_HZ
    gate_mean: float = 0.65
    """A segment with less than `gate_span` between its first and last speech window must have this
    mean probability there. Three sneezes of 47 noise clips had .52 to .63, speech .69 and more."""


@dataclass(frozen=True, slots=True)
class Began:
    """A segment opens; padding included."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Grew:
    """The open segment is another hop longer and holds speech that the last hop did not."""

    end_sample: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Silence began in the open segment, and it would pass for speech if it ended now."""

    speech_end: int
    end_sample: int
    """Up to where the silence was judged."""
    padded_end: int
    """Where the segment ends if the silence does not."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause was none: speech goes on."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The open segment is complete; padding included."""

    start_sample: int
    end_sample: int
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Refused:
    """The open segment was no speech."""


Boundary = Began | Grew | Paused | Resumed | Ended | Refused


class _Phase(Enum):
    IDLE = auto()
    CANDIDATE = auto()
    OPEN = auto()


class Segmenter:
    """Holds one stream's open segment to `SegmentRules`.

    Promises: segments never overlap; padding shares a pause instead of doubling it; at a
    maximum-length cut the next segment starts on the very sample where the last one ended, and it
    needs neither minimum speech nor the gate: one window of speech after the cut is enough.
    """

    def __init__(
        self,
        rules: SegmentRules,
        *,
        window_samples: int,
        quietest: Callable[[int, int], int],
    ) -> None:
        """Start at sample 0.

        Args:
            rules: What makes a segment.
            window_samples: Length of the window that each probability stands for.
            quietest: Returns the quietest position in [first, last], both received already.
        """
        self._rules = rules
        self._window = window_samples
        self._quietest = quietest
        self.position = 0
        """One past the last judged sample."""
        self._floor = 0
        self._resume_before = -1
        self._phase = _Phase.IDLE
        self._segment_start = 0
        self._next_grow = 0
        self._end_silence = rules.end_silence
        self._is_paused = False
        self._begin_run(0, continued=False)
        self._is_silent = False

    @property
    def is_open(self) -> bool:
        """Is a segment open?"""
        return self._phase is _Phase.OPEN

    @property
    def segment_start(self) -> int:
        """First sample of the open segment."""
        return self._segment_start

    @property
    def segment_limit(self) -> int:
        """Last sample at which the open segment can end."""
        return self._segment_start + self._rules.max_length

    @property
    def silence_samples(self) -> int:
        """Length of the silence at the end of the open segment; 0 when none is open."""
        return self.position - self._speech_end if self.is_open else 0

    @property
    def keep_from(self) -> int:
        """Audio before this sample can be forgotten."""
        if self._phase is _Phase.OPEN:
            return self._segment_start
        speech = self._speech_start if self._phase is _Phase.CANDIDATE else self.position
        return max(self._floor, speech - self._rules.pad_front)

    @property
    def windows_until_decision(self) -> int:
        """Windows, at least 1, before whose last one no boundary can come.

        So many may be judged together without any event being late.
        """
        rules = self._rules
        if self._phase is _Phase.IDLE:
            samples = 0 if self.position < self._resume_before else rules.min_speech
        elif self._phase is _Phase.CANDIDATE:
            samples = rules.min_speech - self._speech_samples
        else:
            end = min(self._speech_end + self._end_silence, self.segment_limit)
            if rules.grow_hop:
                end = min(end, self._next_grow)
            if rules.pause:
                end = self.position if self._is_paused else min(end, self._speech_end + rules.pause)
            samples = end - self.position
        return max(1, -(-samples // self._window))

    def feed(self, probability: float) -> list[Boundary]:
        """Take the speech probability of the next window."""
        rules = self._rules
        start, self.position = self.position, self.position + self._window
        if self._phase is _Phase.IDLE:
            if probability < rules.on:
                return []
            self._begin_run(start, continued=False)
            self._phase = _Phase.CANDIDATE
        self._extend_run(probability)
        if self._phase is _Phase.CANDIDATE:
            return self._judge_candidate()
        resumed = self._resume()
        if self.position - self._speech_end >= self._end_silence:
            return [self._close_silent()]
        if self.position >= self.segment_limit:
            return [*resumed, *self._cut()]
        return [*resumed, *self._pause(), *self._grow()]

    def end_after(self, silence: int) -> list[Boundary]:
        """Let the silence that runs now end the segment after `silence` samples.

        Without effect when none is open or its last window was speech; the next silence has the
        rules' length again.
        """
        if not self.is_open or not self._is_silent:
            return []
        self._end_silence = silence
        if self.position - self._speech_end < silence:
            return []
        return [self._close_silent()]

    def flush(self, received_sample: int, reason: CloseReason) -> list[Boundary]:
        """Close the open segment now.

        Args:
            received_sample: One past the last received sample; less than one window of it may not
                have been judged yet.
            reason: What the close is reported as.
        """
        was, self._phase = self._phase, _Phase.IDLE
        if was is not _Phase.OPEN:
            return []
        end = min(received_sample, self.segment_limit)
        if self._is_silent:
            end = min(self._speech_end + self._rules.pad_behind, end)
        return [self._close(end, reason)]

    def jump(self, to_sample: int) -> None:
        """Go on at `to_sample`, with nothing open and no padding from before it."""
        self._phase = _Phase.IDLE
        self.position = self._floor = to_sample
        self._resume_before = -1

    def _begin_run(self, start_sample: int, *, continued: bool) -> None:
        self._continued = continued
        self._speech_start = self._speech_end = start_sample
        self._speech_samples = 0
        self._sum = self._span_sum = 0.0
        self._windows = self._span_windows = 0

    def _extend_run(self, probability: float) -> None:
        self._sum += probability
        self._windows += 1
        # After silence only `on` is speech again: a long fade must not hold a segment open.
        threshold = self._rules.on if self._is_silent else self._rules.off
        self._is_silent = probability < threshold
        if not self._is_silent:
            self._end_silence = self._rules.end_silence
            self._speech_end = self.position
            self._speech_samples += self._window
            self._span_sum, self._span_windows = self._sum, self._windows

    def _judge_candidate(self) -> list[Boundary]:
        rules = self._rules
        # A word right after a cut in a pause would have been kept without the cut.
        resumes = self._speech_start < self._resume_before
        if resumes or self._speech_samples >= rules.min_speech:
            self._phase = _Phase.OPEN
            return [self._open(max(self._floor, self._speech_start - rules.pad_front))]
        if self.position - self._speech_end >= rules.dip:
            self._phase = _Phase.IDLE
        return []

    def _open(self, start_sample: int) -> Began:
        self._segment_start = start_sample
        self._next_grow = self._speech_start + (self._rules.first_grow or self._rules.grow_hop)
        self._grown_end = self._speech_start
        self._is_paused = False
        return Began(start_sample)

    def _resume(self) -> list[Boundary]:
        if not self._is_paused or self._is_silent:
            return []
        self._is_paused = False
        return [Resumed()]

    def _pause(self) -> list[Boundary]:
        pause = self._rules.pause
        if not pause or self._is_paused or self.position - self._speech_end < pause:
            return []
        if not self._is_speech():
            return []
        self._is_paused = True
        padded_end = min(self._speech_end + self._rules.pad_behind, self.segment_limit)
        return [Paused(self._speech_end, self.position, padded_end)]

    def _close_silent(self) -> Ended | Refused:
        end = min(self._speech_end + self._rules.pad_behind, self.position, self.segment_limit)
        return self._close(end, CloseReason.SILENCE)

    def _close(self, end_sample: int, reason: CloseReason) -> Ended | Refused:
        self._phase = _Phase.IDLE
        if not self._is_speech():
            return Refused()
        self._floor = end_sample
        return Ended(self._segment_start, end_sample, reason)

    def _is_speech(self) -> bool:
        span = self._speech_end - self._speech_start
        if self._continued:
            return span > 0
        mean = self._span_sum / self._span_windows
        return span >= self._rules.gate_span or mean >= self._rules.gate_mean

    def _cut(self) -> list[Boundary]:
        limit = self.segment_limit
        cut = self._quietest(limit - self._rules.cut_search, limit)
        ended = Ended(self._segment_start, cut, CloseReason.MAX_LENGTH)
        self._floor = cut
        if self._is_silent and self._speech_end <= cut:
            self._phase = _Phase.IDLE
            self._resume_before = self._speech_end + self._rules.end_silence
            return [ended]
        speech_end, is_silent = self._speech_end, self._is_silent
        self._begin_run(cut, continued=True)
        self._speech_end, self._is_silent = speech_end, is_silent
        return [ended, self._open(cut)]

    def _grow(self) -> list[Boundary]:
        hop = self._rules.grow_hop
        if not hop or self.position < self._next_grow:
            return []
        if self._rules.pause and self._is_silent:
            return []  # `Paused` is about to tell of it; else the next speech does
        self._next_grow += ((self.position - self._next_grow) // hop + 1) * hop
        if self._speech_end <= self._grown_end:
            return []
        self._grown_end = self._speech_end
        return [Grew(self.position)]
