"""The recent audio of one stream: as much as the open segment needs, no more."""

from __future__ import annotations

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Int16
from voiced.audio.quiet import quietest_point

_SMALLEST_SAMPLES = 2 * RATE_HZ


class PcmHistory:
    """int16 samples from `start_sample` on; the caller says what may be forgotten.

    A stream in silence holds 64 KiB. The buffer grows by half while a segment is open
    and shrinks again after it.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(_SMALLEST_SAMPLES, np.int16)
        self._used = 0
        self.start_sample = 0
        """First sample held."""
        self.end_sample = 0
        """One past the last sample held."""

    @property
    def capacity_bytes(self) -> int:
        """Memory of the buffer."""
        return self._buffer.nbytes

    def append(self, samples: Int16, *, keep_from: int) -> None:
        """Add int16[n]; samples before `keep_from` may be forgotten."""
        if self._used + len(samples) > len(self._buffer):
            self._make_room(len(samples), keep_from)
        self._buffer[self._used : self._used + len(samples)] = samples
        self._used += len(samples)
        self.end_sample += len(samples)

    def restart(self, at_sample: int) -> None:
        """Forget everything and go on at `at_sample`."""
        self._used = 0
        self.start_sample = self.end_sample = at_sample

    def read(self, first: int, last: int) -> Int16:
        """Return a copy of [first, last) as int16[n]; what is not held is left out."""
        return self._view(first, last).copy()

    def quietest(self, first: int, last: int) -> int:
        """Return the middle of the quietest 100 ms between `first` and `last`.

        Of equally quiet places the latest, which makes the longest segment. `last` when the span is
        shorter than 100 ms.
        """
        place = quietest_point(self._view(first, last))
        return last if place is None else first + place

    def _view(self, first: int, last: int) -> Int16:
        begin = max(0, first - self.start_sample)
        return self._buffer[begin : min(self._used, last - self.start_sample)]

    def _make_room(self, count: int, keep_from: int) -> None:
        kept = self._view(keep_from, self.end_sample)
        needed = len(kept) + count
        # A third stays free, or every append would move the samples.
        buffer = np.empty(max(_SMALLEST_SAMPLES, needed * 3 // 2), np.int16)
        buffer[: len(kept)] = kept
        self._buffer, self._used = buffer, len(kept)
        self.start_sample = self.end_sample - len(kept)
