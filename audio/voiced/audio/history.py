"""The recent audio of one stream: as much as the open segment needs, no more."""

from __future__ import annotations

from collections import deque

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Float32, Int16, float_to_int16
from voiced.audio.quiet import quietest_point

_SMALLEST_SAMPLES = 2 * RATE_HZ
_MOST_FRESH_SAMPLES = RATE_HZ


class PcmHistory:
    """Samples from `start_sample` on; the caller says what may be forgotten.

    What comes is kept as it is and made int16 when somebody reads, or after a second: of a stream
    in silence that is never, and it holds 64 KiB. The int16 buffer grows by half while a segment is
    open and is let go after it.
    """

    def __init__(self) -> None:
        self._fresh: deque[Float32] = deque()
        """The newest blocks, behind what is in the buffer."""
        self._fresh_samples = 0
        self._buffer = np.empty(0, np.int16)
        self._used = 0
        self._keep_from = 0
        self.end_sample = 0
        """One past the last sample held."""

    @property
    def start_sample(self) -> int:
        """First sample held."""
        return self.end_sample - self._fresh_samples - self._used

    @property
    def held_bytes(self) -> int:
        """Memory of the audio."""
        return self._buffer.nbytes + sum(block.nbytes for block in self._fresh)

    def append(self, samples: Float32, *, keep_from: int) -> None:
        """Add float32[n] in [-1, 1], kept as it is; samples before `keep_from` may be forgotten."""
        self._fresh.append(samples)
        self._fresh_samples += len(samples)
        self.end_sample += len(samples)
        self._keep_from = keep_from
        while self._fresh and self._first_block_end() <= keep_from:
            self._fresh_samples -= len(self._fresh.popleft())
            if self._used:
                self._buffer, self._used = np.empty(0, np.int16), 0
        if self._fresh_samples > _MOST_FRESH_SAMPLES:
            self._convert()

    def restart(self, at_sample: int) -> None:
        """Forget everything and go on at `at_sample`."""
        self._fresh.clear()
        self._fresh_samples = self._used = 0
        self.end_sample = at_sample

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

    def _first_block_end(self) -> int:
        return self.end_sample - self._fresh_samples + len(self._fresh[0])

    def _view(self, first: int, last: int) -> Int16:
        self._convert()
        start = self.start_sample
        return self._buffer[max(0, first - start) : min(self._used, last - start)]

    def _convert(self) -> None:
        """Make int16 of what is fresh."""
        if not self._fresh:
            return
        count = self._fresh_samples
        if self._used + count > len(self._buffer):
            self._make_room(count)
        end = self._used + count
        self._buffer[self._used : end] = float_to_int16(np.concatenate(tuple(self._fresh)))
        self._used = end
        self._fresh.clear()
        self._fresh_samples = 0

    def _make_room(self, count: int) -> None:
        kept = self._buffer[max(0, self._keep_from - self.start_sample) : self._used]
        needed = len(kept) + count
        # A third stays free, or every block would move the samples.
        buffer = np.empty(max(_SMALLEST_SAMPLES, needed * 3 // 2), np.int16)
        buffer[: len(kept)] = kept
        self._buffer, self._used = buffer, len(kept)
