"""One conversation with a daemon, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voiced.audio.frames import RATE_HZ
from voiced.daemon import wire
from voiced.daemon.errors import DaemonError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

FRAME_MS = 40
FRAME_BYTES = RATE_HZ * FRAME_MS // 1000 * 2
ANSWER_TIMEOUT_S = 10.0
"""Longest wait for the connection, and for `ready` after `start`."""
DRAIN_TIMEOUT_S = 120.0
"""Longest silence of the server after `stop`."""
KEEPALIVE_S = 6.0
"""A daemon that cannot be reached for about this long is dialled anew."""
FINAL_CLOSES = frozenset({1000, 1001, 1003, 1007, 1009})
"""Close codes after which going on is no use: the daemon stops, or we are at fault."""
LASTING_S = 1.0
"""A connection that lasted longer than this begins the pauses between attempts anew."""


class ServerUnreachable(DaemonError):
    """No daemon answers at the address."""

    code = "unreachable"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"cannot connect to {self.url}: {self.reason}; start the daemon with `voiced run`"


class StreamEndedEarly(DaemonError):
    """The server refused the stream or left before `ended`."""

    code = "stream_ended_early"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the daemon is, and how to get in."""

    url: str
    token: str | None = field(default=None, repr=False)
    authority: Path | None = None
    """PEM file with what signed its certificate, besides the system's own list."""

    def options(self) -> dict[str, Any]:
        """What the connection is opened with."""
        options: dict[str, Any] = {"open_timeout": ANSWER_TIMEOUT_S, "max_size": None}
        if self.token is not None:
            options["additional_headers"] = {"Authorization": f"Bearer {self.token}"}
        if self.authority is not None:
            options["ssl"] = ssl.create_default_context(cafile=self.authority)
        return options


@dataclass(slots=True)
class Timeline:
    """When each frame should leave and when it did, on an absolute schedule.

    Frame `i` holds `FRAME_MS` of audio and leaves when a microphone would have it complete:
    `FRAME_MS * (i + 1)` after the start. Delays never add up: a late frame is followed by one
    that is due sooner.
    """

    start_ns: int
    sent_ns: list[int] = field(default_factory=list)

    def due_ns(self, index: int) -> int:
        """When frame `index` is to be sent."""
        return self.start_ns + (index + 1) * FRAME_MS * 1_000_000

    def sent(self, now_ns: int) -> None:
        """Note that the next frame is out."""
        self.sent_ns.append(now_ns)

    def late_ms(self) -> list[float]:
        """How late each frame was: the client's own share of every latency."""
        return [(sent - self.due_ns(i)) / 1e6 for i, sent in enumerate(self.sent_ns)]

    def lag_ms(self, position_ms: int, now_ns: int) -> float:
        """Time since the audio that ends at `position_ms` of the stream was sent."""
        if not self.sent_ns:
            return 0.0
        index = min(max(math.ceil(position_ms / FRAME_MS) - 1, 0), len(self.sent_ns) - 1)
        return (now_ns - self.sent_ns[index]) / 1e6


@dataclass(slots=True)
class Tally:
    """What came back."""

    finals: int = 0
    failed: int = 0
    lags_ms: list[float] = field(default_factory=list)
    """Of the finals: from sending the segment's last audio to receiving the text."""
    ended: wire.Ended | None = None


Show = Callable[[wire.ServerMessage, float, float | None], None]


class ConnectionLost(Exception):
    """The connection is gone, and the stream may go on by another one."""


@dataclass(slots=True)
class Progress:
    """How far one stream has come, over all of its connections."""

    frames: Sequence[bytes]
    tally: Tally
    timeline: Timeline
    name: str = ""
    token: str | None = None
    """What lets us go on; None: the daemon has not said yet, or cannot."""
    resume_s: float = 0.0
    next_frame: int = 0
    """The first that the daemon has not taken."""
    received: int = 0
    """Number of its last message that we have."""
    is_accepted: bool = False
    """The daemon has taken us (back) since the last connection was lost."""

    def hello(self, start: wire.Start) -> wire.Start | wire.Resume:
        """The first message on a connection."""
        if self.token is None:
            return start
        return wire.Resume(v=1, stream=self.name, token=self.token, received=self.received)

    def accepted(self, ready: wire.Ready) -> None:
        """Take over where the daemon wants us to go on."""
        self.name, self.token, self.is_accepted = ready.stream, ready.resume_token, True
        self.resume_s = (ready.resume_ms or 0) / 1000
        self.received = max(self.received, ready.number or 0)
        self.next_frame = (ready.next_sample or 0) * 2 // FRAME_BYTES
        del self.timeline.sent_ns[self.next_frame :]

    def is_new(self, message: wire.ServerMessage) -> bool:
        """Note a message; False when we had it before."""
        if message.number is None:
            return True
        is_new = message.number > self.received
        self.received = max(self.received, message.number)
        return is_new


async def talk(
    target: Target, start: wire.Start, frames: Sequence[bytes], show: Show
) -> tuple[Tally, Timeline]:
    """Hold one conversation from `start` to `ended`, over as many connections as it takes."""
    progress = Progress(frames, Tally(), Timeline(time.monotonic_ns()))
    delays = backoff_s()
    give_up_s = float("-inf")
    while True:
        connected_s = time.monotonic()
        try:
            connection = await dial(target)
            async with connection:
                await _converse(connection, start, progress, show)
            return progress.tally, progress.timeline
        except (ConnectionLost, ServerUnreachable) as error:
            now_s = time.monotonic()
            if progress.is_accepted:  # the daemon begins to wait for us now
                progress.is_accepted, give_up_s = False, now_s + progress.resume_s
                if now_s - connected_s > LASTING_S:
                    delays = backoff_s()
            delay_s = next(delays)
            if now_s + delay_s > give_up_s:
                if isinstance(error, ServerUnreachable):
                    raise
                raise StreamEndedEarly(str(error)) from error
            print(f"voiced: {error}; resuming in {delay_s:.1f} s", file=sys.stderr)
            await asyncio.sleep(delay_s)


def backoff_s(first_s: float = 0.1, most_s: float = 5.0) -> Iterator[float]:
    """Pauses between attempts: doubled each time, and up to a half shorter, so that the clients of
    a daemon that was away do not all come back in one moment."""
    delay_s = first_s
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(delay_s * 2, most_s)


async def dial(target: Target) -> ClientConnection:
    """Open a connection that finds out within seconds that the daemon cannot be reached."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import (
        InvalidHandshake,
        InvalidMessage,
        InvalidStatus,
        InvalidURI,
    )

    from voiced.daemon.connections import find_dead_peers

    url = target.url
    try:
        connection = await connect(url, **target.options())
    except InvalidURI as error:
        raise ServerUnreachable(url, "not a ws:// or wss:// address") from error
    except InvalidStatus as error:
        status = error.response.status_code
        body = (error.response.body or b"").decode(errors="replace").strip()
        text = f"{url} refused the connection: HTTP {status} {body}".rstrip()
        raise StreamEndedEarly(text) from error
    except (InvalidMessage, InvalidHandshake) as error:
        raise ServerUnreachable(url, "what listens there does not speak WebSocket") from error
    except TimeoutError as error:
        raise ServerUnreachable(url, f"no answer within {ANSWER_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise ServerUnreachable(url, _reason(error)) from error
    tcp = connection.transport.get_extra_info("socket")
    if tcp is not None:
        find_dead_peers(tcp, KEEPALIVE_S)
    return connection


async def _converse(
    connection: ClientConnection, start: wire.Start, progress: Progress, show: Show
) -> None:
    """Talk over one connection.

    Raises:
        ConnectionLost: It broke off; the stream may go on by another one.
    """
    from websockets.exceptions import ConnectionClosed

    tally, timeline = progress.tally, progress.timeline
    is_first = progress.token is None
    try:
        await connection.send(wire.encode(progress.hello(start)).decode())
        try:
            ready = await asyncio.wait_for(_receive(connection), ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise StreamEndedEarly(
                f"server did not answer `start` within {ANSWER_TIMEOUT_S:.0f} s"
            ) from None
        if isinstance(ready, wire.Ready):
            progress.accepted(ready)
        if is_first:
            timeline.start_ns = time.monotonic_ns()
            show(ready, 0.0, None)
        sender = asyncio.create_task(_send(connection, progress))
        try:
            while tally.ended is None:
                # A server is silent for as long as nobody speaks; not after the file's end.
                playing_s = (timeline.due_ns(len(progress.frames)) - time.monotonic_ns()) / 1e9
                try:
                    message = await asyncio.wait_for(
                        _receive(connection), max(playing_s, 0) + DRAIN_TIMEOUT_S
                    )
                except TimeoutError:
                    raise StreamEndedEarly(
                        f"server sent nothing for {DRAIN_TIMEOUT_S:.0f} s after `stop`"
                    ) from None
                if progress.is_new(message):
                    _take(message, tally, timeline, show)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
    except ConnectionClosed as error:
        close = error.rcvd
        why = f"{close.code} {close.reason}".strip() if close else "no closing message"
        text = f"server closed the connection before `ended`: {why}"
        if close is not None and close.code in FINAL_CLOSES:
            raise StreamEndedEarly(text) from error
        raise ConnectionLost(text) from error


async def _send(connection: ClientConnection, progress: Progress) -> None:
    timeline, frames = progress.timeline, progress.frames
    for index in range(progress.next_frame, len(frames)):
        delay_s = (timeline.due_ns(index) - time.monotonic_ns()) / 1e9
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        await connection.send(frames[index])
        timeline.sent(time.monotonic_ns())
    await connection.send(wire.encode(wire.Stop()).decode())


async def _receive(connection: ClientConnection) -> wire.ServerMessage:
    """Take the next message.

    Raises:
        StreamEndedEarly: It is an error, or no message of this protocol.
    """
    try:
        message = wire.decode_server(await connection.recv())
    except wire.WireError as error:
        raise StreamEndedEarly(f"server sent what is no message of protocol 1: {error}") from error
    if isinstance(message, wire.Error):
        retry = f"; try again in {message.retry_after_ms} ms" if message.retry_after_ms else ""
        raise StreamEndedEarly(f"server refused: {message.code}: {message.message}{retry}")
    return message


def _take(message: wire.ServerMessage, tally: Tally, timeline: Timeline, show: Show) -> None:
    now_ns = time.monotonic_ns()
    lag_ms: float | None = None
    match message:
        case wire.Partial():
            lag_ms = timeline.lag_ms(message.end_ms, now_ns)
        case wire.Final():
            lag_ms = timeline.lag_ms(message.end_ms, now_ns)
            tally.finals += 1
            tally.lags_ms.append(lag_ms)
        case wire.Failed():
            tally.failed += 1
        case wire.Ended():
            tally.ended = message
    show(message, (now_ns - timeline.start_ns) / 1e6, lag_ms)


def _reason(error: OSError) -> str:
    """Several addresses of one name fail together with a list; the first says enough."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
