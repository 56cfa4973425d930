"""How much speech of a stream waits for its answer, and when its source has to wait for that."""

from __future__ import annotations

import asyncio


class Backlog:
    """Counts speech that is closed and not answered; above a limit there is no room for more."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.seconds = 0.0
        """Speech closed and not answered."""
        self._waiting_since: dict[int, int] = {}
        """Segments whose answer is waited for, and since when."""
        self._room = asyncio.Event()
        self._room.set()
        self._is_released = False

    @property
    def is_full(self) -> bool:
        """Too much is unanswered: `room` waits."""
        return not self._room.is_set()

    def age_s(self, now_ns: int) -> float:
        """How long the oldest segment has been waiting for its answer."""
        oldest_ns = min(self._waiting_since.values(), default=None)
        return 0.0 if oldest_ns is None else (now_ns - oldest_ns) / 1e9

    async def room(self) -> None:
        """Wait until more may be taken."""
        await self._room.wait()

    def add(self, seconds: float) -> None:
        """A segment of this length is closed; `wait` and `answered` follow."""
        self._change(seconds)

    def wait(self, segment: int, now_ns: int) -> None:
        """The answer to a segment is waited for from now on."""
        self._waiting_since[segment] = now_ns

    def answered(self, segment: int, seconds: float) -> None:
        """It came, or will not come any more."""
        del self._waiting_since[segment]
        self._change(-seconds)

    def release(self) -> None:
        """No more audio is taken: nobody has to wait for room from now on."""
        self._is_released = True
        self._room.set()

    def _change(self, by_s: float) -> None:
        self.seconds += by_s
        if self.seconds > self._limit_s and not self._is_released:
            self._room.clear()
        else:
            self._room.set()
