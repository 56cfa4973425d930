"""Answers subscribers that missed something, out of the journal: a ROUTER socket."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from voiced.daemon.bus import bind
from voiced.daemon.curve import CurveServer
from voiced.daemon.errors import JournalError
from voiced.daemon.journal_reader import JournalReader
from voiced.daemon.metrics import Metrics
from voiced.daemon.wire import (
    VERSION,
    Position,
    Refused,
    Replay,
    WireError,
    decode_replay,
    encode,
)

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4_096
"""Longest request taken."""
_HWM = 100
_MAX_FRAME_BYTES = 1 << 16  # libzmq cuts a peer that sends more


class _RawPage(msgspec.Struct, tag_field="type", tag="page", frozen=True, kw_only=True):
    """`wire.Page`, whose messages are sent as they are stored."""

    v: int = VERSION
    id: int
    messages: tuple[msgspec.Raw, ...]
    more: bool
    complete: bool


class ReplayServer:
    """Serves one journal. Belongs to the loop; reads on a thread of its own."""

    def __init__(
        self, endpoint: str, path: Path, *, unwritten: Callable[[], int], metrics: Metrics
    ) -> None:
        """Nothing is bound before `open`.

        Args:
            endpoint: Where subscribers connect; `tcp://…:*` or `:0` takes a free port.
            path: The journal; need not exist yet.
            unwritten: How many last words are out and not in the journal (yet).
            metrics: Counts requests.
        """
        self.endpoint = endpoint
        """After `open`: the address actually bound."""
        self._path, self._unwritten, self._metrics = path, unwritten, metrics
        self._own: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._curve: CurveServer | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="replay")

    def open(
        self,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        curve: CurveServer | None = None,
    ) -> None:
        """Bind.

        Args:
            context: The bus's, where the keys of `curve` are asked for; None: one of its own.
            curve: Opens the socket to those alone who may hear the bus.

        Raises:
            EndpointInUse: Another process is bound there.
            AddressRefused: The endpoint cannot be bound for another reason.
        """
        self._own = zmq.Context() if context is None else None
        chosen = context if self._own is None else self._own
        assert chosen is not None
        shadow = zmq.asyncio.Context.shadow(chosen.underlying)
        self._socket = shadow.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, _HWM)
        self._socket.set(zmq.RCVHWM, _HWM)
        self._socket.set(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        try:
            self._curve = curve
            if curve is not None:
                curve.protect(self._socket, "subscribe")
            self.endpoint = bind(self._socket, self.endpoint, "bus.replay")
        except BaseException:
            self.close()
            raise
        logger.info("replay open endpoint=%s", self.endpoint)

    async def run(self) -> None:
        """Answer until cancelled, one request at a time: live work comes first."""
        loop, socket = asyncio.get_running_loop(), self._socket
        assert socket is not None, "open comes first"
        while True:
            frames = await socket.recv_multipart(copy=False)
            if self._curve is not None and not self._curve.admits(frames[-1], socket, "subscribe"):
                continue
            peer, *parts = (frame.bytes for frame in frames)
            if len(parts) != 1 or len(parts[0]) > MAX_REQUEST_BYTES:
                self._metrics.replays.labels(outcome="bad_message").inc()
                continue
            answer, outcome = await loop.run_in_executor(self._thread, self._answer, parts[0])
            self._metrics.replays.labels(outcome=outcome).inc()
            try:
                await socket.send_multipart([peer, answer], flags=zmq.NOBLOCK)
            except zmq.ZMQError:
                continue  # the peer does not read, or is gone: it asks again

    def close(self) -> None:
        """Unbind, before the bus closes its context. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._own is not None:
            self._own.term()
            self._own = None
        self._thread.shutdown(wait=True)

    def _answer(self, data: bytes) -> tuple[bytes, str]:
        """On the thread: read what is asked for."""
        try:
            request = decode_replay(data)
        except WireError as error:
            return encode(Refused(id=0, code=error.code, message=str(error))), error.code
        try:
            return msgspec.json.encode(self._read(request)), "page"
        except (JournalError, sqlite3.Error, OSError) as error:
            code = "journal_unavailable"
            message = str(error) if isinstance(error, JournalError) else f"journal: {error}"
            return encode(Refused(id=request.id, code=code, message=message)), code

    def _read(self, request: Replay) -> _RawPage:
        with JournalReader(self._path) as reader:
            batch = reader.read(
                after=_place(request.after),
                until=_place(request.until),
                since_ms=request.since_ms,
                limit=request.limit,
            )
        return _RawPage(
            id=request.id,
            messages=tuple(msgspec.Raw(entry.body) for entry in batch.entries),
            more=batch.more,
            complete=batch.is_complete and not self._unwritten(),
        )


def _place(position: Position | None) -> tuple[str, int] | None:
    return None if position is None else (position.epoch, position.seq)
