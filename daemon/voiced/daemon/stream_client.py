"""One WebSocket client of `/v1/stream`, from the upgrade to the close."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from voiced.audio.errors import AudioError
from voiced.audio.pcm import frame_bytes
from voiced.daemon.chain import stream_format
from voiced.daemon.connections import Connection
from voiced.daemon.errors import (
    DaemonError,
    SlowClient,
    StreamBroken,
    StreamRefused,
    TooManyOfClient,
)
from voiced.daemon.limits import Meter, Toll
from voiced.daemon.options import ServerOptions
from voiced.daemon.outbox import Outbox
from voiced.daemon.parking import Parking, Place
from voiced.daemon.resume import ResumePoint
from voiced.daemon.session import MOST_BYTES, StreamSession
from voiced.daemon.stream_protocol import Action, Audio, Code, StreamProtocol, Violation
from voiced.daemon.streams import Streams
from voiced.daemon.wire import Cancel, Error, Flush, Resume, ServerMessage, Start, Stop

logger = logging.getLogger(__name__)

NO_STREAM = "-"
"""`error.stream` on a connection that has no stream yet."""

CLOSE_CODES = {
    "busy": CloseCode.TRY_AGAIN_LATER,
    "not_ready": CloseCode.TRY_AGAIN_LATER,
    "stream_in_use": CloseCode.TRY_AGAIN_LATER,
    "client_limit": CloseCode.TRY_AGAIN_LATER,
    "quota": CloseCode.TRY_AGAIN_LATER,
    "shutting_down": CloseCode.GOING_AWAY,
    "internal": CloseCode.INTERNAL_ERROR,
}
"""Close code by error code; every other error closes with 1008."""

_ARMS_PER_LIMIT = 8
"""How often the idle time-out is set anew: a timer for each message would cost a tenth of it."""


class StreamClient:
    """One WebSocket client and its stream."""

    def __init__(
        self,
        connection: Connection,
        settings: ServerOptions,
        streams: Streams,
        everybody: Meter,
        parking: Parking,
        *,
        on_start: Callable[[StreamClient], None],
    ) -> None:
        """`on_start` is called when the client asks for a stream, before it has one."""
        self.connection, self._settings, self._streams = connection, settings, streams
        self._parking, self._on_start = parking, on_start
        self._place: Place | None = None
        """Where the stream is kept while it may outlive this connection."""
        self._may_return = False
        """The connection was lost, not the stream."""
        self._must_end = False
        """The stream is not to go on, whatever becomes of the connection."""
        own = [] if connection.client is None else [connection.client.meter]
        self._meters = [meter for meter in (*own, everybody) if not meter.is_unlimited]
        self._audio_bytes_per_s = float("inf")
        self._protocol = StreamProtocol()
        self.outbox = Outbox(
            max_bytes=settings.outbox_bytes,
            send_timeout_s=settings.send_timeout_s,
            send_now=connection.send_now,
        )
        self._session: StreamSession | None = None
        self._limit_s = settings.start_timeout_s
        """Longest time without a message."""
        self._armed_s = float("-inf")
        """When the time-out for that was last set."""
        self._fault: AudioError | DaemonError | None = None
        """Found by `_take`; ends the conversation."""
        self._clock = asyncio.get_running_loop().time
        self._sender = asyncio.create_task(self._send_all())

    async def serve(self) -> None:
        """Talk until the stream has ended; then the connection is closed."""
        try:
            await self._converse()
            await self._say_goodbye(CloseCode.NORMAL_CLOSURE)
            self._may_return = self.connection.protocol.close_rcvd is None
        except ConnectionClosed as closed:
            is_too_big = closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG
            if is_too_big:
                self._streams.metrics.client_errors.labels(code=Code.TOO_LARGE).inc()
            is_goodbye = closed.rcvd is not None and closed.rcvd.code == CloseCode.NORMAL_CLOSURE
            self._may_return = not is_goodbye and not is_too_big
        except (_ProtocolViolation, AudioError, DaemonError) as error:
            await self._refuse(error)
        finally:
            self.outbox.close()
            dropped = self._streams.metrics.partials_dropped.labels(reason="replaced")
            dropped.inc(self.outbox.replaced)
            await self._leave()
            await asyncio.wait({self._sender})

    async def _leave(self) -> None:
        """Let go of the stream: it waits for its client, goes on elsewhere, or ends."""
        if self._session is None:
            return
        if self._place is not None:
            if self._place.carrier is not self:
                return
            if self._may_return and not self._must_end and not self._streams.is_draining:
                self._parking.park(self._place)
                return
            self._place.carrier = None
            self._parking.remove(self._place)
        await self._session.abort()

    async def drain(self) -> None:
        """The daemon stops: finish the stream, if any, and close with 1001."""
        if self._session is not None:
            await self._session.finish()
        await self._say_goodbye(CloseCode.GOING_AWAY, flush_s=self._settings.close_timeout_s)

    async def expel(self, code: str, message: str) -> None:
        """Its right to be here is over: say so and close; what it said is answered on the bus."""
        await self._refuse(_ProtocolViolation(code, message))

    # ---- as the carrier of a resumable stream -----------------------------------------------

    def put(self, message: ServerMessage) -> None:
        """Send a message to the client."""
        self.outbox.put(message)

    def supersede(self) -> None:
        """The client has come back by another connection: cut this one, which is dead."""
        self.outbox.close()
        self.connection.transport.abort()

    # ---- in --------------------------------------------------------------------------------

    async def _converse(self) -> None:
        """Run the stream to `ended`; a client that sends nothing for long is at fault."""
        idle = asyncio.timeout(self._limit_s)
        try:
            async with idle:
                self._armed_s = self._clock()
                while True:
                    data = await self._receive()
                    if self._meters and (wait_s := self._pay(data)):
                        idle.reschedule(None)  # slowed by us, which is no fault of the client
                        self._armed_s = float("-inf")
                        await asyncio.sleep(wait_s)
                    action = self._protocol.receive(data)
                    if isinstance(action, Audio) and not self._stream.is_full:
                        await self._feed(action.data)
                    else:
                        idle.reschedule(None)  # waiting for us is no fault of the client
                        if await self._act(action):
                            return
                        if self._session is not None:
                            self._limit_s = self._settings.idle_timeout_s
                        self._armed_s = float("-inf")
                    if self._must_arm(now_s := self._clock()):
                        idle.reschedule(now_s + self._limit_s)
                        self._armed_s = now_s
        except TimeoutError:
            if not idle.expired():
                raise
            is_started = self._session is not None
            found, expected = ("nothing", "audio") if is_started else ("no `start`", "`start`")
            message = f"found {found} for {self._limit_s:g} s, expected {expected}"
            raise _ProtocolViolation(Code.IDLE, message) from None

    async def _receive(self) -> bytes | str:
        """Return the next message that `_take` did not.

        Raises:
            AudioError, DaemonError: What went wrong there.
        """
        if self._session is not None:
            self.connection.audio.take = self._take
        try:
            data = await self.connection.recv()
        finally:
            self.connection.audio.take = None
        if self._fault is not None:
            raise self._fault
        return data

    def _take(self, data: bytes) -> bool:
        """Take audio as it comes in: waking a task for each block costs more than most blocks do.

        False: the block needs more than that, or something went wrong with it.
        """
        if not 0 < len(data) <= MOST_BYTES or not self._stream.has_room:
            return False
        place = self._place
        if place is not None and (place.carrier is not self or place.feeding.locked()):
            return False
        if self._must_arm(self._clock()) or not self._is_covered(data):
            return False
        if place is not None:
            data = place.point.take(data)
        try:
            if data:
                self._stream.take(data)
        except (AudioError, DaemonError) as error:
            self._fault = error
            return False
        return True

    def _must_arm(self, now_s: float) -> bool:
        """Whether it is time to set the idle time-out anew."""
        return now_s - self._armed_s > self._limit_s / _ARMS_PER_LIMIT

    def _is_covered(self, data: bytes) -> bool:
        """Count a block of audio if nobody has to wait for it."""
        if not self._meters:
            return True
        audio_s, now_s = len(data) / self._audio_bytes_per_s, time.monotonic()
        if not all(
            meter.covers(size=len(data), audio_s=audio_s, now_s=now_s) for meter in self._meters
        ):
            return False
        self._pay(data)
        return True

    def _pay(self, data: bytes | str) -> float:
        """Count a message; return how long to read nothing more.

        Raises:
            _ProtocolViolation: It has sent all the audio that it may.
        """
        size, toll, now_s = len(data), Toll(), time.monotonic()
        audio_s = size / self._audio_bytes_per_s if isinstance(data, bytes) else 0.0
        for meter in self._meters:
            meter.charge(toll, size=size, audio_s=audio_s, now_s=now_s)
        if toll.is_over_quota:
            self._streams.metrics.limited.labels(limit="audio").inc()
            raise _ProtocolViolation(Code.QUOTA, "more audio than `audio_s_per_hour` allows")
        if toll.wait_s:
            self._streams.metrics.limited.labels(limit=toll.limit).inc()
        return toll.wait_s

    async def _act(self, action: Action | None) -> bool:
        """Do what the client asked for; return whether the stream is over."""
        if self._place is not None and self._place.carrier is not self:
            return True  # it goes on elsewhere: what was still on its way here is sent again there
        match action:
            case Start() as start:
                self._start(start)
            case Resume() as request:
                await self._resume(request)
            case Audio(data):
                await self._feed(data)
            case Flush():
                self._stream.flush()
            case Stop():
                await self._stream.finish()
                return True
            case Cancel():
                await self._stream.cancel()
                return True
            case Violation(code, message):
                raise _ProtocolViolation(code, message)
        return False

    def _start(self, start: Start) -> None:
        self._on_start(self)
        client = self.connection.client
        if client is not None and client.streams > client.max_streams:
            raise TooManyOfClient(client.max_streams)
        frame, rate_hz = frame_bytes(stream_format(start.audio)), start.audio.rate_hz
        self._audio_bytes_per_s = float(frame * rate_hz)
        if not start.resume:
            self._session = self._streams.open(start, send=self.outbox.put)
            return
        point = ResumePoint(
            owner=self.connection.grant.name,
            frame_bytes=frame,
            rate_hz=rate_hz,
            resume_ms=round(self._parking.resume_s * 1000),
        )
        place = Place(point, client)
        place.carrier = self
        self._session = place.session = self._streams.open(start, send=place.send)
        self._place = place
        self._parking.add(place)

    async def _resume(self, request: Resume) -> None:
        self._on_start(self)
        owner = self.connection.grant.name
        place = await self._parking.resume(request, self, owner)
        self._place, self._session = place, place.session
        self._audio_bytes_per_s = float(place.point.bytes_per_s)
        self._streams.metrics.streams_resumed.inc()

    async def _feed(self, data: bytes) -> None:
        """Take audio, unless another connection carries the stream by now."""
        place = self._place
        if place is None:
            await self._stream.feed(data)
            return
        async with place.feeding:
            if place.carrier is self and (whole := place.point.take(data)):
                await self._stream.feed(whole)

    @property
    def _stream(self) -> StreamSession:
        if self._session is None:
            raise RuntimeError("the protocol let a message pass before `start`")
        return self._session

    # ---- out -------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        try:
            await self.outbox.pump(self.connection.send)
        except ConnectionClosed:
            pass  # the reader sees it too
        except SlowClient as slow:
            self._count(slow.code)
            logger.info("client given up stream=%s reason=%s", self._name, slow)
            self._may_return = True
            if self._session is not None and self._place is None:
                self._session.detach()
                self._session.report(slow.code, str(slow))
            await self._close(CloseCode.POLICY_VIOLATION, slow.code)

    async def _refuse(self, error: _ProtocolViolation | AudioError | DaemonError) -> None:
        """Tell the client what is wrong and close; its closed segments go on for the bus."""
        self._count(error.code)
        is_ours = isinstance(error, StreamBroken)
        message = "internal error; the daemon's log has more" if is_ours else str(error)
        logger.info("client refused stream=%s code=%s: %s", self._name, error.code, message)
        if error.code == Code.IDLE and self._place is not None:
            self._may_return = True  # most likely it cannot reach us
            await self._close(CloseCode.POLICY_VIOLATION, error.code)
            return
        self._must_end = True
        if self._session is not None:
            self._session.report(error.code, message)
        else:
            retry_after_ms = error.retry_after_ms if isinstance(error, StreamRefused) else None
            self.outbox.put(
                Error(
                    stream=NO_STREAM,
                    code=error.code,
                    message=message,
                    retry_after_ms=retry_after_ms,
                )
            )
        if self._session is not None:
            self._session.detach()
        await self._say_goodbye(CLOSE_CODES.get(error.code, CloseCode.POLICY_VIOLATION), error.code)

    async def _say_goodbye(
        self, code: CloseCode, reason: str = "", *, flush_s: float | None = None
    ) -> None:
        """Send what waits, for at most `flush_s` (None: the outbox's own time-out); then close."""
        self.outbox.close()
        await asyncio.wait({self._sender}, timeout=flush_s)
        await self._close(code, reason)

    async def _close(self, code: CloseCode, reason: str) -> None:
        """Close; a client that does not read or answer is cut."""
        try:
            async with asyncio.timeout(self._settings.close_timeout_s):
                await self.connection.close(code, reason)
        except TimeoutError:
            self.connection.transport.abort()

    def _count(self, code: str) -> None:
        self._streams.metrics.client_errors.labels(code=code).inc()

    @property
    def _name(self) -> str:
        return NO_STREAM if self._session is None else self._session.name


class _ProtocolViolation(Exception):
    """The client broke the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
