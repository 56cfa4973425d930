"""Time as an argument: the system's clock and one that tests step by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time for delays and deadlines, wall time for people."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self, *, wall_ms: int = 1_700_000_000_000) -> None:
        self._ns = 0
        self._wall_ms = wall_ms

    def advance_ms(self, ms: float) -> None:
        """Move both clocks forward."""
        self._ns += round(ms * 1_000_000)
        self._wall_ms += round(ms)

    def monotonic_ns(self) -> int:
        """Nanoseconds since the fake clock was made."""
        return self._ns

    def wall_ms(self) -> int:
        """Fake wall time."""
        return self._wall_ms
