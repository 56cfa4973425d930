"""`voiced stream`: play a file to a daemon at the speed of speech and print what comes back."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voiced.audio.frames import RATE_HZ
from voiced.daemon import wire
from voiced.daemon.commands.pipes import ends_with_its_reader
from voiced.daemon.errors import DaemonError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

FRAME_MS = 40
FRAME_BYTES = RATE_HZ * FRAME_MS // 1000 * 2
ANSWER_TIMEOUT_S = 10.0
"""Longest wait for the connection, and for `ready` after `start`."""
DRAIN_TIMEOUT_S = 120.0
"""Longest silence of the server after `stop`."""


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


def stream(
    file: Path,
    *,
    url: str,
    language: str | None = None,
    partials: bool = True,
    as_json: bool = False,
    token: str | None = None,
    authority: Path | None = None,
) -> int:
    """Stream a file in real time; return 0, or 1 when a segment failed.

    Raises:
        MediaError: The file cannot be decoded.
        ServerUnreachable: Nobody listens at `url`, or it is no voiced server.
        StreamEndedEarly: The server refused the stream or closed it.
    """
    pcm = _read_pcm(file)
    start = wire.Start(v=1, audio=wire.AudioParams(), language=language, partials=partials)
    frames = [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)]

    with ends_with_its_reader():

        def show(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> None:
            line = (
                to_json(message, received_ms, lag_ms)
                if as_json
                else to_text(message, received_ms, lag_ms)
            )
            print(line, flush=True)

        tally, timeline = asyncio.run(_talk(Target(url, token, authority), start, frames, show))
        summary = _summary(tally, timeline)
        print(json.dumps({"type": "summary", **summary}) if as_json else _summary_line(summary))
    return 1 if tally.failed else 0


def to_text(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> str:
    """Write one event for people: when it came, how long after its audio, what it says."""
    at = f"{received_ms / 1000:8.2f} s"
    after = "" if lag_ms is None else f"  +{lag_ms:.0f} ms"
    match message:
        case wire.Ready():
            return f"{at}  ready  stream {message.stream}, {message.bundle}"
        case wire.SpeechStarted():
            return f"{at}  speech started  #{message.segment} at {message.start_ms / 1000:.2f} s"
        case wire.Partial():
            stable = message.text[: message.stable_chars]
            rest = message.text[message.stable_chars :]
            return f"{at}  partial  #{message.segment}.{message.revision}{after}  {stable}|{rest}"
        case wire.SpeechEnded():
            end = f"at {message.end_ms / 1000:.2f} s ({message.reason})"
            return f"{at}  speech ended  #{message.segment} {end}"
        case wire.Final():
            span = f"{message.start_ms / 1000:.2f}-{message.end_ms / 1000:.2f} s"
            return (
                f"{at}  final  #{message.segment}{after} (server {message.latency_ms} ms)  {span}  "
                f"{message.language} {message.confidence:.2f}  {message.text}"
            )
        case wire.Failed():
            return f"{at}  failed  #{message.segment}  {message.code}: {message.message}"
        case wire.AudioGap():
            span = f"{message.start_ms / 1000:.2f}-{message.end_ms / 1000:.2f} s"
            return f"{at}  audio lost  {span}"
        case wire.Ended():
            lost = f", {message.lost_ms} ms lost" if message.lost_ms else ""
            return (
                f"{at}  ended  {message.audio_ms / 1000:.2f} s, {message.segments} segments{lost}"
            )
        case _:
            return f"{at}  {wire.encode(message).decode()}"


def to_json(message: wire.ServerMessage, received_ms: float, lag_ms: float | None) -> str:
    """Write the message as it came, with `received_ms` and, where it has one, `lag_ms`."""
    body = json.loads(wire.encode(message)) | {"received_ms": round(received_ms, 1)}
    if lag_ms is not None:
        body["lag_ms"] = round(lag_ms, 1)
    return json.dumps(body, ensure_ascii=False)


Show = Callable[[wire.ServerMessage, float, float | None], None]


async def _talk(
    target: Target, start: wire.Start, frames: Sequence[bytes], show: Show
) -> tuple[Tally, Timeline]:
    """Hold one conversation from `start` to `ended`."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidMessage,
        InvalidStatus,
        InvalidURI,
    )

    url = target.url
    try:
        connection = await connect(url, **target.options())
    except InvalidURI as error:
        raise ServerUnreachable(url, "not a ws:// or wss:// address") from error
    except InvalidStatus as error:
        status = error.response.status_code
        body = (error.response.body or b"").decode(errors="replace").strip()
        raise StreamEndedEarly(
            f"{url} refused the connection: HTTP {status} {body}".rstrip()
        ) from error
    except (InvalidMessage, InvalidHandshake) as error:
        raise ServerUnreachable(url, "what listens there does not speak WebSocket") from error
    except TimeoutError as error:
        raise ServerUnreachable(url, f"no answer within {ANSWER_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise ServerUnreachable(url, _reason(error)) from error

    async with connection:
        try:
            return await _converse(connection, start, frames, show)
        except ConnectionClosed as error:
            close = error.rcvd
            why = f"{close.code} {close.reason}".strip() if close else "no closing message"
            raise StreamEndedEarly(f"server closed the connection before `ended`: {why}") from error


async def _converse(
    connection: ClientConnection, start: wire.Start, frames: Sequence[bytes], show: Show
) -> tuple[Tally, Timeline]:
    await connection.send(wire.encode(start).decode())
    try:
        ready = await asyncio.wait_for(_receive(connection), ANSWER_TIMEOUT_S)
    except TimeoutError:
        raise StreamEndedEarly(
            f"server did not answer `start` within {ANSWER_TIMEOUT_S:.0f} s"
        ) from None
    show(ready, 0.0, None)

    tally, timeline = Tally(), Timeline(time.monotonic_ns())
    sender = asyncio.create_task(_send(connection, frames, timeline))
    try:
        while tally.ended is None:
            # A server is silent for as long as nobody speaks; not after the file's end.
            playing_s = (timeline.due_ns(len(frames)) - time.monotonic_ns()) / 1e9
            try:
                message = await asyncio.wait_for(
                    _receive(connection), max(playing_s, 0) + DRAIN_TIMEOUT_S
                )
            except TimeoutError:
                raise StreamEndedEarly(
                    f"server sent nothing for {DRAIN_TIMEOUT_S:.0f} s after `stop`"
                ) from None
            _take(message, tally, timeline, show)
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
    return tally, timeline


async def _send(connection: ClientConnection, frames: Sequence[bytes], timeline: Timeline) -> None:
    for index, frame in enumerate(frames):
        delay_s = (timeline.due_ns(index) - time.monotonic_ns()) / 1e9
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        await connection.send(frame)
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


def _summary(tally: Tally, timeline: Timeline) -> dict[str, float | int | None]:
    late_ms = timeline.late_ms()
    return {
        "audio_s": round(tally.ended.audio_ms / 1000, 2) if tally.ended else None,
        "finals": tally.finals,
        "failed": tally.failed,
        "lag_p50_ms": _percentile(tally.lags_ms, 50),
        "lag_p95_ms": _percentile(tally.lags_ms, 95),
        "late_p50_ms": _percentile(late_ms, 50),
        "late_max_ms": round(max(late_ms), 1) if late_ms else None,
    }


def _summary_line(summary: dict[str, float | int | None]) -> str:
    return (
        f"{summary['audio_s']} s of audio, {summary['finals']} finals, {summary['failed']} failed; "
        f"audio sent -> final p50 {summary['lag_p50_ms']} ms, p95 {summary['lag_p95_ms']} ms; "
        f"frames sent late p50 {summary['late_p50_ms']} ms, max {summary['late_max_ms']} ms"
    )


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 1)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)


def _reason(error: OSError) -> str:
    """Several addresses of one name fail together with a list; the first says enough."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _read_pcm(file: Path) -> bytes:
    """Decode to 16-bit PCM before the clock starts, so that decoding delays nothing."""
    from voiced.audio.pcm import float_to_int16
    from voiced.audio.sources.media import decode_file

    return b"".join(float_to_int16(block).astype("<i2").tobytes() for block in decode_file(file))
