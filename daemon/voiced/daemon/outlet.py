"""The one way out for what streams say: numbered, written down, and let out in that order.

A last word waits until the journal has it, `speech_ended` until the spool has its segment, and
whatever comes behind waits with it: a subscriber sees numbers without a gap, and nobody sees a
result that a crash could take back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.frames import Segment
from voiced.daemon.bus import Bus, Numbered
from voiced.daemon.journal import Record
from voiced.daemon.spool import Heard
from voiced.daemon.storage import Storage, Task
from voiced.daemon.wire import Failed, Final, ServerMessage

logger = logging.getLogger(__name__)

STALL_S = 2.0
"""A disk that takes longer is not waited for: results go out, and are written when it can."""


class Outlet(Protocol):
    """What a session needs: messages go in, and come out in this order."""

    def put(
        self,
        message: ServerMessage,
        then: Callable[[], object],
        *,
        segment: Segment | None = None,
        revision: int = 1,
    ) -> None:
        """Publish a message, now or a moment later, then call `then`.

        Args:
            message: What to say.
            then: Called once it is on the bus, e.g. to send it to the stream's client.
            segment: What `message` closes; kept until it has its last word.
            revision: That the last word will have.
        """
        ...

    def follow(self, then: Callable[[], object]) -> None:
        """Call `then` behind what was put before, e.g. for what only a client is told."""
        ...


class DirectOutlet:
    """Publishes at once: where nothing is written down."""

    def __init__(self, publish: Callable[[ServerMessage], None]) -> None:
        self._publish = publish

    def put(
        self,
        message: ServerMessage,
        then: Callable[[], object],
        *,
        segment: Segment | None = None,
        revision: int = 1,
    ) -> None:
        """See `Outlet.put`."""
        self._publish(message)
        then()

    def follow(self, then: Callable[[], object]) -> None:
        """See `Outlet.follow`."""
        then()


@dataclass(slots=True, eq=False)
class _Waiting:
    message: Numbered | None
    """None: only `then` has to be called."""
    then: Callable[[], object]
    task: Task | None
    """What has to be done first; None: nothing (more)."""


class OrderedOutlet:
    """Lets messages out in order, each when the disk has what belongs to it. On the loop."""

    def __init__(self, bus: Bus, *, stall_s: float = STALL_S, clock: Clock | None = None) -> None:
        """Nothing is written down before `storage` is set."""
        self.storage: Storage | None = None
        self.stalls = 0
        """Times that the disk was too slow to be waited for. Never reset."""
        self._bus, self._stall_s = bus, stall_s
        self._clock = clock or SystemClock()
        self._waiting: deque[_Waiting] = deque()
        self._is_stalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def put(
        self,
        message: ServerMessage,
        then: Callable[[], object],
        *,
        segment: Segment | None = None,
        revision: int = 1,
    ) -> None:
        """See `Outlet.put`; raises what encoding the message raises."""
        numbered = self._bus.number(message)
        if numbered is None:  # not open yet, or closed
            then()
            return
        task = self._store(numbered, segment, revision)
        if self._is_stalled:
            task = None
        if task is None and not self._waiting:
            self._let_out(numbered, then)
            return
        self._waiting.append(_Waiting(numbered, then, task))
        self._empty.clear()
        if self._timer is None:
            self._arm()

    def follow(self, then: Callable[[], object]) -> None:
        """See `Outlet.follow`."""
        if self._waiting:
            self._waiting.append(_Waiting(None, then, None))
        else:
            then()

    def publish(self, message: ServerMessage) -> None:
        """Publish a message that no client waits for."""
        self.put(message, lambda: None)

    def stored(self, tasks: Sequence[Task]) -> None:
        """The disk has these, or cannot take them."""
        self._is_stalled = False
        done = set(tasks)
        for waiting in self._waiting:
            if waiting.task in done:
                waiting.task = None
        self._let_out_ready()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is out; what is not in time goes out unwritten."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            self._stall()

    def _store(self, numbered: Numbered, segment: Segment | None, revision: int) -> Task | None:
        if self.storage is None:
            return None
        if isinstance(numbered.message, Final | Failed):
            task = Task(Record(numbered.message))
        elif segment is not None:
            wall_ms = numbered.message.wall_ms or self._clock.wall_ms()
            task = Task(Heard(segment, self._bus.epoch, revision, wall_ms))
        else:
            return None
        return task if self.storage.submit(task) else None

    def _let_out_ready(self) -> None:
        while self._waiting and self._waiting[0].task is None:
            first = self._waiting.popleft()
            self._let_out(first.message, first.then)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._arm()
        else:
            self._empty.set()

    def _let_out(self, numbered: Numbered | None, then: Callable[[], object]) -> None:
        if numbered is not None:
            self._bus.send(numbered)
        try:
            then()
        except Exception:  # the top of a stream session: other streams' messages wait behind it
            stream = "-" if numbered is None else numbered.message.stream
            logger.exception("client's part broke stream=%s", stream)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stall_s, self._stall)

    def _stall(self) -> None:
        """The oldest has waited too long; so would the others."""
        self._timer = None
        if not self._waiting:
            return
        self.stalls += 1
        self._is_stalled = True
        logger.warning("disk is too slow, results go out before they are written stalls=%d",
                       self.stalls)  # fmt: skip
        for waiting in self._waiting:
            waiting.task = None
        self._let_out_ready()
