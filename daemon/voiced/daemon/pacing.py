"""An event loop that wakes less often the more streams there are.

A process that wakes up for one message finds the processor's caches filled by others: such a
message costs several times what it costs among its like (two shared cores, AMD EPYC, 160 messages
a second: 220 µs of CPU each for socket and WebSocket alone, 130 µs when woken each 20 ms). With
many streams some message is always about to come, so the loop waits for it before it goes on, as
network cards moderate their interrupts.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable

STREAM_GAP_S = 0.00125
"""Added to the least time between two wake-ups by each open stream."""
MAX_GAP_S = 0.02
"""Longest of these: an answer or a block of audio waits at most so long."""
QUIET_STREAM_GAP_S, QUIET_MAX_GAP_S = 0.004, 0.05
"""The same while nobody speaks or waits for an answer: speech is noticed so much later, and audio
in front of it is kept for half a second."""
FREE_STREAMS = 4
"""With fewer streams every event is handled at once."""


def gap_s(streams: int, *, is_quiet: bool) -> float:
    """Return the least time between two wake-ups with so many streams, in seconds.

    Args:
        streams: Open ones.
        is_quiet: Nobody speaks on any of them, and none has an answer to come.
    """
    if streams < FREE_STREAMS:
        return 0.0
    if is_quiet:
        return min(streams * QUIET_STREAM_GAP_S, QUIET_MAX_GAP_S)
    return min(streams * STREAM_GAP_S, MAX_GAP_S)


class CoalescingSelector(selectors.DefaultSelector):
    """Lets events gather for a while after the last wake-up; timers are never late for it.

    Args:
        gap_s: Least time between two wake-ups, asked before each wait; 0 for none.
        monotonic: Seconds, for tests.
        sleep: Waits for seconds, for tests.
    """

    def __init__(
        self,
        gap_s: Callable[[], float],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._gap_s, self._monotonic, self._sleep = gap_s, monotonic, sleep
        self._woken_s = float("-inf")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as `selectors.BaseSelector.select` does; events may be `gap_s` late."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)  # a timer is due, or the loop looks in between
        wait_s = self._woken_s + self._gap_s() - self._monotonic()
        if wait_s > 0:
            if timeout is not None:
                wait_s = min(wait_s, timeout)
                timeout -= wait_s
            self._sleep(wait_s)
        events = super().select(timeout)
        if events:
            self._woken_s = self._monotonic()
        return events


def new_loop(gap_s: Callable[[], float]) -> asyncio.AbstractEventLoop:
    """Make a loop that lets `gap_s` seconds pass between two wake-ups."""
    return asyncio.SelectorEventLoop(CoalescingSelector(gap_s))
