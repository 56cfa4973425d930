"""ZeroMQ side of the daemon: everything that happens is published; plugins send intents back.

Two sockets. XPUB, a PUB that tells what is subscribed to: two parts, `<type>/<stream>` and the JSON
with `epoch`, `seq`, `wall_ms`; plain NOBLOCK sends from the loop (it drops at its high-water mark,
it never blocks). PULL: one part, an `intent`, which is published again under our own numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from voiced.audio.clock import Clock, SystemClock
from voiced.daemon.curve import CurveServer
from voiced.daemon.errors import AddressRefused, EndpointInUse
from voiced.daemon.listening import is_answered
from voiced.daemon.metrics import Metrics
from voiced.daemon.wire import (
    VERSION,
    Heartbeat,
    Intent,
    ServerMessage,
    StreamName,
    WireError,
    decode_server,
    encode,
    topic,
)

logger = logging.getLogger(__name__)

MAX_INGEST_BYTES = 64 * 1024
"""Longest message taken from a plugin."""
_MAX_SLOT_LEVELS = 32
"""Lists and objects inside of each other: far below where decoding or encoding them fails."""
_MAX_FRAME_BYTES = 1 << 20  # libzmq cuts a peer that sends more; RCVHWM x this bounds memory
_RCVHWM = 100
_MAX_SUBSCRIPTION_BYTES = 1_024
"""Longest frame of a subscriber: the topic is at most 80, a handshake with CURVE about 600."""
_MAX_TOPIC_BYTES = 1 << 20
"""Of all that is subscribed to. libzmq keeps some 50 bytes for each and knows no limit: 100 000
topics of 200 bytes took a gigabyte, which it never gave back."""
_TOLD_AT_ONCE = 1_000
_SUBSCRIPTION_HWM = 2
"""Subscriptions of one peer that libzmq reads ahead: it takes in all that has come, whenever
anything is sent."""
_REBINDS = 500
_HANDSHAKE_MS = 10_000
"""After which a peer that says nothing is cut, CURVE or not."""
_WARN_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Numbered:
    """A message with its place on the bus, ready to be sent."""

    message: ServerMessage
    topic: bytes
    body: bytes


class Bus:
    """Publishes numbered messages and takes plugins' intents. Belongs to one event loop."""

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:8766",
        ingest_endpoint: str | None = "tcp://127.0.0.1:8767",
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        curve: CurveServer | None = None,
        heartbeat_s: float = 1.0,
        send_hwm: int = 10_000,
        linger_ms: int = 500,
    ) -> None:
        """Nothing is bound before `open`.

        Args:
            endpoint: Where subscribers connect; `tcp://…:*` or `:0` takes a free port.
            ingest_endpoint: Where plugins send intents; None: nowhere.
            curve: Encrypts both sockets and says who may connect; None: everybody who can.
            send_hwm: Messages kept for a subscriber that lags; more are lost for it alone.
            linger_ms: How long `close` waits for messages to leave.
        """
        self.epoch = secrets.token_hex(8)
        """Start id of this publisher; a new one restarts `seq`."""
        self.seq = 0
        """The last number sent."""
        self._numbered = 0
        """The last number given."""
        self.relay: Callable[[Intent], None] = self._relay
        """Puts an accepted intent on the bus."""
        self.beats = 0
        """Heartbeats sent; rises while the bus works."""
        self.endpoint, self.ingest_endpoint = endpoint, ingest_endpoint
        """After `open`: the addresses actually bound."""
        self.on_intent: Callable[[Intent], None] | None = None
        """Called with each accepted intent, e.g. to pass it to the stream's own client."""
        self.on_message: Callable[[ServerMessage], None] | None = None
        """Called with each message as it is published, numbered; must not block or raise."""
        self._metrics = metrics or Metrics()
        self._clock = clock or SystemClock()
        self._curve = curve
        self._heartbeat_s = heartbeat_s
        self._send_hwm, self._linger_ms = send_hwm, linger_ms
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pub: zmq.Socket[bytes] | None = None
        self._topic_bytes = 0
        self._pull: zmq.asyncio.Socket | None = None
        self._rejected = _Rejections()

    def open(self) -> None:
        """Bind both sockets.

        Raises:
            EndpointInUse: Another process is bound there.
            AddressRefused: The endpoint cannot be bound for another reason.
        """
        self._context = zmq.Context()
        try:
            if self._curve is not None:
                self._curve.open(self._context)
            self._open_pub(self._context)
            if self.ingest_endpoint is not None:
                shadow = zmq.asyncio.Context.shadow(self._context.underlying)
                self._pull = shadow.socket(zmq.PULL)
                self._pull.set(zmq.RCVHWM, _RCVHWM)
                self._pull.set(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
                if self._curve is not None:
                    self._curve.protect(self._pull, "ingest")
                self.ingest_endpoint = bind(self._pull, self.ingest_endpoint, "bus.ingest")
        except BaseException:
            self.close()
            raise
        logger.info(
            "bus open endpoint=%s ingest=%s epoch=%s",
            self.endpoint,
            self.ingest_endpoint,
            self.epoch,
        )

    def _open_pub(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._pub = context.socket(zmq.XPUB)
        self._pub.set(zmq.SNDHWM, self._send_hwm)
        self._pub.set(zmq.RCVHWM, _SUBSCRIPTION_HWM)
        self._pub.set(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
        if self._curve is not None:
            self._pub.set(zmq.XPUB_VERBOSER, 1)  # each subscriber's, not the first one's alone
            self._curve.protect(self._pub, "subscribe")
        self.endpoint = bind(self._pub, self.endpoint, "bus.endpoint")
        self._topic_bytes = 0

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """For sockets that are guarded as these are; they are closed before the bus is."""
        if self._context is None:
            raise RuntimeError("the bus has no context before it is opened")
        return self._context

    def publish(self, message: ServerMessage) -> None:
        """Number a message and send it; returns at once, before `open` and after `close` too."""
        numbered = self.number(message)
        if numbered is not None:
            self.send(numbered)

    def number(self, message: ServerMessage) -> Numbered | None:
        """Give a message the next number; it is sent later, in the order of the numbers.

        Returns:
            None before `open` and after `close`.
        """
        if self._pub is None:
            return None
        message = msgspec.structs.replace(
            message, epoch=self.epoch, seq=self._numbered + 1, wall_ms=self._clock.wall_ms()
        )
        numbered = Numbered(message, topic(message), encode(message))
        self._numbered += 1
        return numbered

    def send(self, numbered: Numbered) -> None:
        """Send a message that `number` has made; nothing happens after `close`."""
        if self._pub is None:
            return
        self.seq = numbered.message.seq or 0
        self._send(self._pub, numbered.topic, numbered.body)
        if self.on_message is not None:
            self.on_message(numbered.message)
        self._metrics.bus_messages.inc()

    def _send(self, pub: zmq.Socket[bytes], name: bytes, body: bytes) -> None:
        """Send, unless that would take in more subscriptions than memory can be had for."""
        if self._topic_bytes > _MAX_TOPIC_BYTES:
            return
        pub.send_multipart([name, body], flags=zmq.NOBLOCK)
        with contextlib.suppress(zmq.Again):
            for _ in range(_TOLD_AT_ONCE):
                frame = pub.recv(zmq.NOBLOCK, copy=False)
                told = frame.bytes  # 1 and a topic that is new; 0 and one that is gone
                if self._curve is not None and told[:1] == b"\1":
                    self._curve.heard(frame, pub)
                if told[:1] in (b"\0", b"\1"):
                    self._topic_bytes += len(told) if told[0] else -len(told)

    async def _begin_anew(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Let go of all subscribers: they come back by themselves, and see what they missed.

        Raises:
            EndpointInUse: Another process took the address meanwhile.
        """
        logger.warning(
            "somebody subscribed to too many topics, all subscribers are cut bytes=%d expected=%d",
            self._topic_bytes,
            _MAX_TOPIC_BYTES,
        )
        self._metrics.bus_cuts.inc()
        for left in reversed(range(_REBINDS)):
            if self._pub is not None:
                self._pub.close(linger=0)
            try:
                self._open_pub(context)
            except EndpointInUse:  # libzmq lets go of the port on a thread of its own
                if not left:
                    raise
                await asyncio.sleep(0.01)
            else:
                return

    async def run(self) -> None:
        """Send heartbeats and take intents until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            if self._curve is not None:
                tasks.create_task(self._curve.run())
            if self._pull is not None:
                tasks.create_task(self._ingest(self._pull))

    def close(self) -> None:
        """Unbind; what was published is given `linger_ms` to leave. Idempotent."""
        if self._context is None:
            return
        if self._pull is not None:
            self._pull.close(linger=0)
        if self._pub is not None:
            self._pub.close(linger=self._linger_ms)
        if self._curve is not None:
            self._curve.close()
        self._context.term()
        self._context = self._pub = self._pull = None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if self._curve is not None:
                self._curve.expel()
            if self._context is not None and self._topic_bytes > _MAX_TOPIC_BYTES:
                await self._begin_anew(self._context)
            beat = Heartbeat(
                stream="-", epoch=self.epoch, seq=self.seq, wall_ms=self._clock.wall_ms()
            )
            if self._pub is not None:
                self._send(self._pub, topic(beat), encode(beat))
            self.beats += 1

    async def _ingest(self, pull: zmq.asyncio.Socket) -> None:
        while True:
            parts = await read_parts(pull, self._curve)
            if not parts:
                continue
            try:
                intent = read_intent(parts)
            except WireError as error:
                self._metrics.bus_rejected.inc()
                self._rejected.warn(error)
                continue
            self.relay(intent)

    def _relay(self, intent: Intent) -> None:
        self.publish(intent)
        if self.on_intent is not None:
            self.on_intent(intent)


async def read_parts(pull: zmq.asyncio.Socket, curve: CurveServer | None = None) -> list[bytes]:
    """Take one message, of whose parts all but the first two are thrown away as they are read.

    A message of a million parts costs no memory of ours, and other tasks run beside it. One whose
    sender's key is not allowed any more has no parts.
    """
    first = await pull.recv(copy=False)
    parts = [first.bytes] if curve is None or curve.admits(first, pull, "ingest") else []
    while pull.get(zmq.RCVMORE):
        part = await pull.recv()
        if len(parts) == 1:
            parts.append(part)
        await asyncio.sleep(0)
    return parts


def read_intent(parts: list[bytes]) -> Intent:
    """Check what a plugin sent.

    Raises:
        WireError: Not exactly one part with a valid `intent` of at most MAX_INGEST_BYTES, nested
            so little that it can be written again.
    """
    if len(parts) != 1:
        raise WireError("found more than one part, expected 1: the JSON of an intent")
    if len(parts[0]) > MAX_INGEST_BYTES:
        raise WireError(f"found {len(parts[0])} bytes, expected at most {MAX_INGEST_BYTES}")
    message = decode_server(parts[0])
    if not isinstance(message, Intent):
        raise WireError(f"found a {type(message).__name__.lower()}, expected an intent")
    if message.v != VERSION:
        raise WireError(f"found protocol version {message.v}, expected {VERSION}")
    try:
        msgspec.convert(message.stream, StreamName)
    except msgspec.ValidationError as error:
        raise WireError(f"intent.stream: {error}") from error
    if not _is_flat(message.slots, _MAX_SLOT_LEVELS):
        raise WireError(f"intent.slots: nested deeper than {_MAX_SLOT_LEVELS} levels")
    return message


def _is_flat(value: object, levels: int) -> bool:
    """Tell whether at most `levels` lists and objects are inside of each other."""
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inside)


class _Rejections:
    """Warns about refused messages: at once, then at most once a minute with a count."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._count = 0

    def warn(self, error: WireError) -> None:
        self._count += 1
        if time.monotonic() < self._next_s:
            return
        logger.warning("refused messages on the ingest socket count=%d last=%s", self._count, error)
        self._next_s, self._count = time.monotonic() + _WARN_INTERVAL_S, 0


def bind(zmq_socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str, setting: str) -> str:
    """Bind and return the address bound, in which a free port has been filled in.

    Raises:
        EndpointInUse: Another process is bound there.
        AddressRefused: It cannot be bound for another reason.
    """
    # libzmq would take over a socket on which somebody listens.
    if endpoint.startswith("ipc://") and is_answered(Path(endpoint.removeprefix("ipc://"))):
        raise EndpointInUse(endpoint, setting)
    zmq_socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    try:
        zmq_socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise EndpointInUse(endpoint, setting) from error
        raise AddressRefused(setting, endpoint, zmq.strerror(error.errno or 0)) from error
    return zmq_socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
