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
from voiced.plugins.replay import ReplayClient, Span

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


@dataclass(frozen=True, slots=True)
class Nudged:
    """Somebody called `nudge`: a plugin reads its files again."""


BusEvent = Gap | Restarted | Lost | Regained | Nudged
BusItem = wire.ServerMessage | BusEvent


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one sequence number means."""

    is_new: bool
    """False: seen before, or of an epoch that is over; do not deliver."""
    events: tuple[Gap | Restarted, ...] = ()
    """What must be told before the message is delivered."""
    missed: Span | None = None
    """Where the journal may have what did not come."""


_OLD_EPOCHS_KEPT = 16
_KEPT = (b"final/", b"failed/")
"""Beginnings of the topics whose messages are all in the journal."""


class SequenceTracker:
    """Finds gaps, duplicates and restarts in (epoch, seq) pairs. No I/O, no clock.

    One connection delivers in order, so a number that is not above the last one is a repeat.
    The first message ever seen is where counting starts, unless a position says what was seen
    before: what was published before we joined is not a loss. In an epoch that begins while we
    watch, counting starts at 1.
    """

    def __init__(self, position: wire.Position | None = None) -> None:
        self._epoch = None if position is None else position.epoch
        self._last = 0 if position is None else position.seq
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
        before = None if self._epoch is None else wire.Position(self._epoch, self._last)
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
        until = wire.Position(epoch, missing_before - 1)
        missed = Span(before, until) if events and before is not None else None
        return Verdict(is_new=True, events=tuple(events), missed=missed)


class BusSubscriber:
    """Receives what the daemon publishes. Owned by one thread; only `interrupt` may be called
    from another thread or a signal handler.

    Args:
        endpoint: The daemon's PUB socket.
        topics: Beginnings of the topics to deliver, e.g. `final/` or `final/mic`; empty delivers
            everything. Gaps are told whatever their topic: nobody knows what was lost.
        replay: The daemon's ROUTER socket. Last words that did not come are fetched there, and
            delivered in their place, before anything newer; a gap in which nothing else of the
            topics can have been is not told then. None: nothing is fetched.
        start: What was received before: a position; or since when, in Unix milliseconds. 0 is the
            beginning of the journal; None joins now.
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
        replay: str | None = None,
        start: wire.Position | int | None = None,
        heartbeat_s: float = 1.0,
        queue_limit: int = 10_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rubbish = 0
        """Bus messages that could not be read, since the start."""
        self.duplicates = 0
        """Messages that came twice and were dropped, since the start."""
        self.replayed = 0
        """Last words that came out of the journal, since the start."""
        self.is_replayed = False
        """Whether the item returned last came out of the journal."""
        self._pages_left = 0
        """So many of the first items in `_ready` came out of the journal."""
        self._topics = tuple(topic.encode() for topic in topics)
        self._lost_after_s = heartbeat_s * LOST_AFTER_HEARTBEATS
        self._now = now
        self._heard_s = now()
        self._is_lost = False
        self._rubbish_told_s = -REPORT_RUBBISH_EVERY_S
        self._since_ms = start if isinstance(start, int) else None
        self._tracker = SequenceTracker(start if isinstance(start, wire.Position) else None)
        self._ready: deque[BusItem] = deque()
        self._held: deque[BusItem] = deque()
        """What comes behind the span that is being fetched."""
        self._epoch = start.epoch if isinstance(start, wire.Position) else None
        """That of the last item put into `_ready`."""
        self._replay: ReplayClient | None = None
        self._interrupted = self._is_nudged = False
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
        name, address = "bus", endpoint
        try:
            if curve is not None:
                curve.apply(self._socket)
            self._socket.connect(endpoint)
            if replay is not None:
                name, address = "replay", replay
                self._replay = ReplayClient(
                    self._context, replay, now=now, is_expected=start is not None, curve=curve
                )
        except ValueError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"{name} endpoint {address!r} cannot be used: {error}") from error
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._fetching = zmq.Poller()
        """Polled while a span is fetched: newer messages wait in ZeroMQ meanwhile."""
        self._fetching.register(self._wake_read, zmq.POLLIN)
        if self._replay is not None:
            self._fetching.register(self._replay.socket, zmq.POLLIN)

    def start_at(self, position: wire.Position) -> None:
        """Take up where another subscriber stopped; before the first `receive`."""
        self._tracker, self._since_ms = SequenceTracker(position), None
        self._epoch = position.epoch
        if self._replay is not None:
            self._replay.expect()

    def receive(self, *, timeout_s: float | None = None) -> BusItem | None:
        """Wait for the next item.

        Returns:
            None when `timeout_s` passed or `interrupt` was called.
        """
        deadline_s = None if timeout_s is None else self._now() + timeout_s
        while not self._interrupted:
            if self._is_nudged:
                self._is_nudged = False
                return Nudged()
            if self._ready:
                self.is_replayed = self._pages_left > 0
                self._pages_left -= self.is_replayed
                return self._ready.popleft()
            if self._replay is not None and self._replay.is_busy:
                if self._fetch(self._replay, deadline_s):
                    continue
                return None
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
                self._wake_read.recv(64)
        return None

    def __iter__(self) -> Iterator[BusItem]:
        """Yield items until `interrupt` is called."""
        while (item := self.receive()) is not None:
            yield item

    def interrupt(self) -> None:
        """End `receive` and iteration for good, whatever waits. Any thread, any signal handler."""
        self._interrupted = True  # a reader that is behind finds work each time and never polls
        self._wake()

    def nudge(self) -> None:
        """Have `receive` return `Nudged` next. Any thread, any signal handler."""
        self._is_nudged = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"\0")
        except OSError:
            return  # closed already, or one byte is waiting there: both mean that it will end

    def close(self) -> None:
        """Give sockets and the ZeroMQ thread back. A second call does nothing."""
        self._interrupted = True
        self._socket.close()
        if self._replay is not None:
            self._replay.close()
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
        verdict = None
        if message.epoch is not None and message.seq is not None:
            is_heartbeat = isinstance(message, wire.Heartbeat)
            judge = self._tracker.heartbeat if is_heartbeat else self._tracker.message
            verdict = judge(message.epoch, message.seq)
            if not verdict.is_new:
                self.duplicates += not is_heartbeat
                return True
        items: list[BusItem] = []
        if not isinstance(message, wire.Heartbeat) and self._wants(topic):
            items.append(message)
        if verdict is None or not self._begin_fetch(verdict, message, items):
            self._ready.extend((*(() if verdict is None else verdict.events), *items))
            self._epoch = message.epoch or self._epoch
        return True

    def _wants(self, topic: bytes) -> bool:
        return not self._topics or topic.startswith(self._topics)

    # ---- what was missed -----------------------------------------------------------------------

    def _begin_fetch(
        self, verdict: Verdict, message: wire.ServerMessage, items: list[BusItem]
    ) -> bool:
        """Fetch what the journal may have; `items` and what the verdict tells wait behind it."""
        span = verdict.missed
        if self._since_ms is not None:
            before = (message.seq or 0) - (not isinstance(message, wire.Heartbeat))
            span = Span(None, wire.Position(str(message.epoch), before), self._since_ms)
            self._since_ms = None
        if span is None or self._replay is None:
            return False
        self._held.extend((*verdict.events, *items))
        self._replay.begin(span)
        return True

    def _fetch(self, replay: ReplayClient, deadline_s: float | None) -> bool:
        """Wait for the next page; False when the deadline passed."""
        answer = replay.step()
        if answer is None:
            wait_s = replay.wait_s()
            if deadline_s is not None:
                left_s = deadline_s - self._now()
                if left_s <= 0:
                    return False
                wait_s = min(wait_s, left_s)
            if self._wake_read.fileno() in dict(self._fetching.poll(int(wait_s * 1000) + 1)):
                self._wake_read.recv(64)
            return True
        is_complete = False
        if isinstance(answer, wire.Page):
            is_complete = answer.complete
            for message in answer.messages:
                if message.epoch != self._epoch:
                    self._restart(message.epoch)
                if self._wants(wire.topic(message)):
                    self.replayed += 1
                    self._ready.append(message)
            self._pages_left = len(self._ready)
        if not replay.is_busy:
            self._release(is_complete=is_complete)
        return True

    def _restart(self, epoch: str | None) -> None:
        if self._epoch is not None and epoch is not None:
            self._ready.append(Restarted(epoch))
        self._epoch = epoch

    def _release(self, *, is_complete: bool) -> None:
        """Let out what had to wait; what the fetch has made whole is not told as a loss."""
        is_kept = bool(self._topics) and all(each.startswith(_KEPT) for each in self._topics)
        is_whole = is_complete and is_kept
        for item in self._held:
            if isinstance(item, Gap):
                if not is_whole:
                    self._ready.append(item)
            elif isinstance(item, Restarted):
                if item.epoch != self._epoch:
                    self._restart(item.epoch)
            else:
                self._ready.append(item)
                if isinstance(item, wire.Message):
                    self._epoch = item.epoch or self._epoch
        self._held.clear()
        self._heard_s = self._now()  # nobody listened meanwhile

    def _count_rubbish(self, error: ValueError) -> None:
        self.rubbish += 1
        if self._now() - self._rubbish_told_s >= REPORT_RUBBISH_EVERY_S:
            self._rubbish_told_s = self._now()
            logger.warning("unreadable bus message dropped total=%d: %s", self.rubbish, error)
