"""The crossing between a thread that must not wait and one that may."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from voiced.audio.clock import Clock, SystemClock

T = TypeVar("T")


class DropOldest(Generic[T]):
    """A bounded hand-over between two threads; when full, the oldest item is lost.

    Any thread may call anything. `put` never waits for the reader.
    """

    def __init__(self, limit: int, *, clock: Clock | None = None) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._items: deque[tuple[int, T]] = deque()
        self._limit = limit
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._closed = False
        self._dropped = 0

    def put(self, item: T) -> None:
        """Add an item; ignored once closed."""
        now_ns = self._clock.monotonic_ns()
        with self._changed:
            if self._closed:
                return
            if len(self._items) == self._limit:
                self._items.popleft()
                self._dropped += 1
            self._items.append((now_ns, item))
            self._changed.notify()

    def get(self, *, timeout_s: float) -> T | None:
        """Take the oldest item; None when none came in time or none will come any more."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed, timeout_s):
                return None
            return self._items.popleft()[1] if self._items else None

    def close(self) -> None:
        """Accept nothing more and wake the reader; what is inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def dropped(self) -> int:
        """Items lost since the start. Never reset; readers take differences."""
        return self._dropped

    @property
    def depth(self) -> int:
        """Items that wait."""
        return len(self._items)

    @property
    def oldest_age_s(self) -> float:
        """How long the oldest item has waited; 0 when empty."""
        with self._changed:
            if not self._items:
                return 0.0
            return (self._clock.monotonic_ns() - self._items[0][0]) / 1e9
