"""When the newest samples of a stream arrived, for latencies. Pure."""

from __future__ import annotations

from collections import deque

from voiced.audio.frames import RATE_HZ

_KEPT_SAMPLES = 8 * RATE_HZ
"""A segment ends at most this far behind the newest audio."""
_STEP_SAMPLES = RATE_HZ // 250
"""4 ms: what one mark covers at least. A client that sends single samples must not push out the
marks that count: so many of these span more than what is kept."""
_MOST_MARKS = 2_048


class Arrivals:
    """Knows when each of the newest samples arrived, to within 4 ms of audio."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque(maxlen=_MOST_MARKS)
        """(end sample, monotonic ns), rising."""

    def __len__(self) -> int:
        return len(self._marks)

    def note(self, end_sample: int, now_ns: int) -> None:
        """Note that all samples before `end_sample` are here; positions never fall."""
        marks = self._marks
        # The newest mark moves on as long as it covers less than a step.
        if len(marks) > 1 and end_sample - marks[-2][0] < _STEP_SAMPLES:
            marks.pop()
        marks.append((end_sample, now_ns))
        while marks[0][0] < end_sample - _KEPT_SAMPLES:
            marks.popleft()

    def of(self, end_sample: int) -> int | None:
        """Return when the sample before `end_sample` arrived; None for one not yet here."""
        found = None
        for end, ns in reversed(self._marks):  # most are asked for the newest
            if end < end_sample:
                break
            found = ns
        return found
