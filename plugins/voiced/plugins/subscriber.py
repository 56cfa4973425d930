"""The bus as a plugin or client sees it: messages in order, none twice, every loss told.

`SequenceTracker` is the pure part: it judges epoch and sequence number. `BusSubscriber` is the
ZeroMQ shell around it. The sequence number counts all messages whatever their topic, so the shell
always subscribes to everything and applies `topics` itself; a topic filter in ZeroMQ would make
every filtered message look like a loss.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from voiced.daemon import wire
from voiced.plugins.curve import CurveKeys

logger = logging.getLogger(__name__)

DEFAULT_BUS = "tcp://127.0.0.1:8766"
LOST_AFTER_HEARTBEATS = 3
REPORT_RUBBISH_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages `first` to `last` of an epoch were published and never arrived here."""

    epoch: str
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many messages are missing."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Restarted:
    """The daemon was started anew; segments of the old epoch get no further message."""

    epoch: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Nothing, not even a heartbeat, arrived for this long. Told once per silence."""

    silence_ms: int


@dataclass(frozen=True, slots=True)
class Regained:
    """The bus is heard again after a `Lost`."""

    silence_ms: int


BusEvent = Gap | Restarted | Lost | Regained
BusItem = wire.ServerMessage | BusEvent


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one sequence number means."""

    is_new: bool
    """False: seen before, or of an epoch that is over; do not deliver."""
    events: tuple[Gap | Restarted, ...] = ()
    """What must be told before the message is delivered."""


_OLD_EPOCHS_KEPT = 16


class SequenceTracker:
    """Finds gaps, duplicates and restarts in (epoch, seq) pairs. No I/O, no clock.

    One connection delivers in order, so a number that is not above the last one is a repeat.
    The first message ever seen is where counting starts: what was published before we joined is
    not a loss. In an epoch that begins while we watch, counting starts at 1.
    """

    def __init__(self) -> None:
        self._epoch: str | None = None
        self._last = 0
        self._old: deque[str] = deque(maxlen=_OLD_EPOCHS_KEPT)

    def message(self, epoch: str, seq: int) -> Verdict:
        """Judge a message that uses number `seq`."""
        return self._judge(epoch, seq, missing_before=seq)

    def heartbeat(self, epoch: str, seq: int) -> Verdict:
        """Judge a heartbeat: `seq` is the last number used, by messages already sent."""
        return self._judge(epoch, seq, missing_before=seq + 1)

    def _judge(self, epoch: str, seq: int, *, missing_before: int) -> Verdict:
        if epoch in self._old:
            return Verdict(is_new=False)
        events: list[Gap | Restarted] = []
        if self._epoch is None:
            self._epoch, self._last = epoch, missing_before - 1
        elif epoch != self._epoch:
            self._old.append(self._epoch)
            self._epoch, self._last = epoch, 0
            events.append(Restarted(epoch))
        elif seq <= self._last:
            return Verdict(is_new=False)
        if missing_before > self._last + 1:
            events.append(Gap(epoch, self._last + 1, missing_before - 1))
        self._last = max(self._last, seq)
        return Verdict(is_new=True, events=tuple(events))


class BusSubscriber:
    """Receives what the daemon publishes. Owned by one thread; only `interrupt` may be called
    from another thread or a signal handler.

    Args:
        endpoint: The daemon's PUB socket.
        topics: Beginnings of the topics to deliver, e.g. `final/` or `final/mic`; empty delivers
            everything. Gaps are told whatever their topic: nobody knows what was lost.
        heartbeat_s: The daemon's heartbeat interval; three silent ones are a `Lost`.
        curve: For a bus that is closed to others.
        queue_limit: Messages kept for a slow reader; above it ZeroMQ drops and a `Gap` tells.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        endpoint: str = DEFAULT_BUS,
        topics: Sequence[str] = (),
        *,
        curve: CurveKeys | None = None,
        heartbeat_s: float = 1.0,
        queue_limit: int = 10_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rubbish = 0
        """Bus messages that could not be read, since the start."""
        self.duplicates = 0
        """Messages that came twice and were dropped, since the start."""
        self._topics = tuple(topic.encode() for topic in topics)
        self._lost_after_s = heartbeat_s * LOST_AFTER_HEARTBEATS
        self._now = now
        self._heard_s = now()
        self._is_lost = False
        self._rubbish_told_s = -REPORT_RUBBISH_EVERY_S
        self._tracker = SequenceTracker()
        self._ready: deque[BusItem] = deque()
        self._interrupted = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, queue_limit)
        self._socket.set(zmq.RECONNECT_IVL, 100)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 2_000)
        # A peer that vanished without closing TCP is found and dialled again by libzmq itself.
        self._socket.set(zmq.HEARTBEAT_IVL, 2_000)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 6_000)
        self._socket.set(zmq.SUBSCRIBE, b"")
        try:
            if curve is not None:
                curve.apply(self._socket)
            self._socket.connect(endpoint)
        except ValueError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"bus endpoint {endpoint!r} cannot be used: {error}") from error
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def receive(self, *, timeout_s: float | None = None) -> BusItem | None:
        """Wait for the next item.

        Returns:
            None when `timeout_s` passed or `interrupt` was called.
        """
        deadline_s = None if timeout_s is None else self._now() + timeout_s
        while not self._interrupted:
            if self._ready:
                return self._ready.popleft()
            if self._take_one():
                continue
            now_s = self._now()
            if deadline_s is not None and now_s >= deadline_s:
                return None
            lost_s = self._heard_s + self._lost_after_s
            if not self._is_lost and now_s >= lost_s:
                self._is_lost = True
                return Lost(round((now_s - self._heard_s) * 1000))
            wake_at_s = [] if self._is_lost else [lost_s]
            if deadline_s is not None:
                wake_at_s.append(deadline_s)
            # One millisecond more: poll counts whole ones and would spin on the rest.
            wait_ms = int((min(wake_at_s) - now_s) * 1000) + 1 if wake_at_s else None
            if self._wake_read.fileno() in dict(self._poller.poll(wait_ms)):
                self._interrupted = True
        return None

    def __iter__(self) -> Iterator[BusItem]:
        """Yield items until `interrupt` is called."""
        while (item := self.receive()) is not None:
            yield item

    def interrupt(self) -> None:
        """End `receive` and iteration for good, whatever waits. Any thread, any signal handler."""
        self._interrupted = True  # a reader that is behind finds work each time and never polls
        try:
            self._wake_write.send(b"\0")
        except OSError:
            return  # closed already, or one byte is waiting there: both mean that it will end

    def close(self) -> None:
        """Give sockets and the ZeroMQ thread back. A second call does nothing."""
        self._interrupted = True
        self._socket.close()
        self._context.term()
        self._wake_read.close()
        self._wake_write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_one(self) -> bool:
        """Move one waiting bus message to `_ready`; False when none is waiting."""
        try:
            parts = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        if self._is_lost:
            self._ready.append(Regained(round((self._now() - self._heard_s) * 1000)))
            self._is_lost = False
        self._heard_s = self._now()
        try:
            topic, body = parts
            message = wire.decode_server(body)
        except ValueError as error:  # WireError too
            self._count_rubbish(error)
            return True
        if message.epoch is not None and message.seq is not None:
            is_heartbeat = isinstance(message, wire.Heartbeat)
            judge = self._tracker.heartbeat if is_heartbeat else self._tracker.message
            verdict = judge(message.epoch, message.seq)
            self._ready.extend(verdict.events)
            if not verdict.is_new:
                self.duplicates += not is_heartbeat
                return True
        if isinstance(message, wire.Heartbeat):
            return True
        if not self._topics or topic.startswith(self._topics):
            self._ready.append(message)
        return True

    def _count_rubbish(self, error: ValueError) -> None:
        self.rubbish += 1
        if self._now() - self._rubbish_told_s >= REPORT_RUBBISH_EVERY_S:
            self._rubbish_told_s = self._now()
            logger.warning("unreadable bus message dropped total=%d: %s", self.rubbish, error)
