"""HTTP and WebSocket on a TCP port, a Unix socket or what systemd passes; with `websockets`."""

from __future__ import annotations

import asyncio
import errno
import http
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from voiced.audio.errors import AudioError
from voiced.daemon.errors import (
    AddressRefused,
    DaemonError,
    PortInUse,
    SlowClient,
    StreamBroken,
    StreamRefused,
    TooManyStreams,
)
from voiced.daemon.listening import bind_unix, describe
from voiced.daemon.metrics import CONTENT_TYPE
from voiced.daemon.microphone import MicrophoneStatus
from voiced.daemon.outbox import Outbox
from voiced.daemon.session import StreamSession
from voiced.daemon.stream_protocol import Action, Audio, Code, StreamProtocol, Violation
from voiced.daemon.streams import Streams
from voiced.daemon.wire import Cancel, Error, Flush, Start, Stop

logger = logging.getLogger(__name__)
_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.setLevel(logging.WARNING)  # it logs every health check at INFO

NO_STREAM = "-"
"""`error.stream` on a connection that has no stream yet."""

CLOSE_CODES = {
    "busy": CloseCode.TRY_AGAIN_LATER,
    "not_ready": CloseCode.TRY_AGAIN_LATER,
    "stream_in_use": CloseCode.TRY_AGAIN_LATER,
    "shutting_down": CloseCode.GOING_AWAY,
    "internal": CloseCode.INTERNAL_ERROR,
}
"""Close code by error code; every other error closes with 1008."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server listens and what it takes from one client."""

    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes a free port."""
    unix_socket: Path | None = None
    """Listened on as well."""
    unix_socket_mode: int = 0o660
    max_message_bytes: int = 1 << 20
    """A longer WebSocket message closes the connection with 1009, before it is read."""
    max_queue: int = 8
    """Messages read ahead per connection; memory is at most this x max_message_bytes."""
    max_connections: int = 128
    """TCP connections, streams or not. When there is one more, the oldest that has not sent its
    request goes; where all have, the new one."""
    open_timeout_s: float = 10.0
    """For the HTTP request to be complete."""
    start_timeout_s: float = 10.0
    """From the upgrade to `start`."""
    idle_timeout_s: float = 60.0
    """Longest silence on the wire after `start`; audio of silence counts as sound here."""
    send_timeout_s: float = 20.0
    """Longest that one message may wait for the client to read."""
    outbox_bytes: int = 1 << 20
    """Bytes waiting for one client above which it is given up."""
    close_timeout_s: float = 1.0
    """For a client to answer a close; then the connection is cut."""
    ping_interval_s: float = 20.0
    allowed_origins: tuple[str, ...] = ()
    """Browser origins, e.g. `https://car.example`, that may connect besides loopback; `*`: all."""


class Server:
    """Serves streams, `/healthz`, `/readyz` and `/metrics` until closed.

    Stop it with `drain`, then `close`: the library's own close would answer nothing and wait
    for clients that never read.
    """

    def __init__(
        self,
        settings: ServerOptions,
        streams: Streams,
        *,
        microphone: Callable[[], MicrophoneStatus] | None = None,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        """Nothing runs.

        Args:
            settings: Where to listen and what to take.
            streams: What clients open.
            microphone: Where there is one, it is shown by `/readyz`.
            passed: Listening sockets to serve instead of binding any; taken over.
        """
        self._settings, self._streams = settings, streams
        self._passed = tuple(passed)
        self._microphone = microphone
        self._metrics = streams.metrics
        self._clients: set[_Client] = set()
        self._connections: dict[ServerConnection, None] = {}
        """Every TCP connection, oldest first, those too that have not sent a request yet."""
        self._listeners: list[WebSocketServer] = []
        self._own_path: Path | None = None
        """A socket in the file system that we made and remove."""

    @property
    def port(self) -> int:
        """The TCP port, once started; 0 where there are Unix sockets alone."""
        if not self._listeners:
            raise RuntimeError("server has no port before it is started")
        names = (each.getsockname() for server in self._listeners for each in server.sockets)
        return next((int(name[1]) for name in names if isinstance(name, tuple)), 0)

    async def start(self, *, accept: bool = True) -> None:
        """Listen.

        Args:
            accept: False leaves connections to sockets that were passed in the kernel's queue
                until `accept` is called.

        Raises:
            PortInUse, SocketInUse: Another process listens there.
            AddressRefused: The address cannot be bound for another reason.
        """
        settings = self._settings
        if self._passed:
            for each in self._passed:
                self._listeners.append(await self._serve(sock=each, start_serving=accept))
        else:
            self._listeners.append(await self._serve_port())
            if settings.unix_socket is not None:
                bound = bind_unix(settings.unix_socket, settings.unix_socket_mode)
                self._own_path = settings.unix_socket
                self._listeners.append(await self._serve(sock=bound))
        names = [describe(each) for server in self._listeners for each in server.sockets]
        origin = "passed" if self._passed else "bound"
        logger.info("server open on=%s sockets=%s", ",".join(names), origin)

    async def accept(self) -> None:
        """Take connections, if `start` did not."""
        for server in self._listeners:
            await server.start_serving()

    async def _serve_port(self) -> WebSocketServer:
        settings = self._settings
        try:
            return await self._serve(host=settings.host, port=settings.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(settings.host, settings.port) from error
            address = f"{settings.host} port {settings.port}"
            # asyncio wraps the system's words in its own, and from Python 3.13 on has neither errno
            # nor words for an address of elsewhere; a name's resolver has words and a negative one.
            number = errno.EADDRNOTAVAIL if error.errno is None else error.errno
            reason = os.strerror(number) if number > 0 else error.strerror or str(error)
            raise AddressRefused("server.host", address, reason) from error

    async def _serve(self, **where: Any) -> WebSocketServer:
        settings = self._settings
        return await serve(
            self._serve_client,
            process_request=self._on_request,
            create_connection=_tracked(
                self._connections, settings.max_connections, settings.outbox_bytes
            ),
            compression=None,
            max_size=settings.max_message_bytes,
            max_queue=settings.max_queue,
            open_timeout=settings.open_timeout_s,
            close_timeout=settings.close_timeout_s,
            ping_interval=settings.ping_interval_s,
            # A pong waits behind unread audio: a client that we slow down must not be cut
            # for it. Idle and send time-outs find the dead ones.
            ping_timeout=None,
            server_header=None,
            logger=_library_logger,
            **where,
        )

    async def drain(self, *, deadline_s: float) -> None:
        """End every client's stream and tell it: last finals, `ended`, close 1001.

        New streams are refused from the first moment. What is not answered after `deadline_s`
        fails with `shutting_down`. Health and metrics are served on.
        """
        self._streams.refuse()
        clients = list(self._clients)
        await asyncio.gather(
            self._streams.drain(deadline_s=deadline_s),
            *(client.drain() for client in clients),
        )

    async def close(self) -> None:
        """Stop listening and cut what is still connected."""
        if not self._listeners:
            return
        listeners, self._listeners = self._listeners, []
        for server in listeners:
            server.close(close_connections=False)
        for connection in list(self._connections):
            connection.transport.abort()
        for server in listeners:
            await server.wait_closed()
        if self._own_path is not None:
            self._own_path.unlink(missing_ok=True)
        logger.info("server closed")

    # ---- HTTP ------------------------------------------------------------------------------

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP; None lets a WebSocket upgrade go on."""
        method = getattr(request, "method", "GET")  # older library versions know GET alone
        if method != "GET":
            response = _json(
                connection,
                http.HTTPStatus.METHOD_NOT_ALLOWED,
                {"code": "method", "message": f"found {method}, expected GET"},
            )
            response.headers["Allow"] = "GET"
            return response
        path = request.path.partition("?")[0]
        if path == "/v1/stream":
            return self._on_upgrade(connection, request)
        if path == "/healthz":
            return _json(connection, http.HTTPStatus.OK, {"status": "ok"})
        if path == "/readyz":
            return self._readyz(connection)
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._metrics.render().decode())
            return _with_type(response, CONTENT_TYPE)
        return _json(
            connection,
            http.HTTPStatus.NOT_FOUND,
            {
                "code": "not_found",
                "message": f"found {path!r}, expected /v1/stream, /healthz, /readyz or /metrics",
            },
        )

    def _on_upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            response = _json(
                connection,
                http.HTTPStatus.UPGRADE_REQUIRED,
                {"code": "upgrade_required", "message": "/v1/stream is a WebSocket"},
            )
            response.headers["Upgrade"] = "websocket"
            return response
        origins = request.headers.get_all("Origin")
        if not all(is_allowed_origin(origin, self._settings.allowed_origins) for origin in origins):
            return _json(
                connection,
                http.HTTPStatus.FORBIDDEN,
                {
                    "code": "origin",
                    "message": f"origin {origins[0]!r} may not connect; "
                    "add it to `server.allowed_origins`",
                },
            )
        refusal = self._streams.refusal()
        if refusal is None and len(self._clients) >= self._streams.max_streams:
            refusal = TooManyStreams(self._streams.max_streams)
        if refusal is None:
            return None
        self._metrics.streams_refused.labels(code=refusal.code).inc()
        body: dict[str, Any] = {"code": refusal.code, "message": str(refusal)}
        if refusal.retry_after_ms is not None:
            body["retry_after_ms"] = refusal.retry_after_ms
        response = _json(connection, http.HTTPStatus.SERVICE_UNAVAILABLE, body)
        if refusal.retry_after_ms is not None:
            response.headers["Retry-After"] = str(-(-refusal.retry_after_ms // 1000))
        return response

    def _readyz(self, connection: ServerConnection) -> Response:
        """Ready means: the engine is; a full daemon is ready and answers `busy`.

        How the microphone is doing is told, and changes nothing: other streams are served.
        """
        refusal = self._streams.refusal()
        info = self._streams.engine.info
        body: dict[str, Any]
        if refusal is None or isinstance(refusal, TooManyStreams):
            status = http.HTTPStatus.OK
            body = {"ready": True, "bundle": info.bundle if info else ""}
        else:
            status = http.HTTPStatus.SERVICE_UNAVAILABLE
            body = {"ready": False, "code": refusal.code, "reason": str(refusal)}
        if self._microphone is not None:
            body["microphone"] = self._microphone().facts()
        return _json(connection, status, body)

    # ---- WebSocket -------------------------------------------------------------------------

    async def _serve_client(self, connection: ServerConnection) -> None:
        client = _Client(connection, self._settings, self._streams)
        self._clients.add(client)
        self._metrics.connections_open.inc()
        try:
            await client.serve()
        finally:
            self._clients.discard(client)
            self._metrics.connections_open.dec()


def _tracked(
    registry: dict[ServerConnection, None], max_connections: int, max_unsent_bytes: int
) -> type[ServerConnection]:
    """Make connections that stand in `registry` from the first packet to the last.

    The library knows only those whose handshake is complete, and its close waits for the rest.
    A crowd of connections that say nothing must keep neither streams nor health checks out.

    A client that sends pings and never reads is cut when `max_unsent_bytes` of pongs wait for it:
    the library answers each at once, whether or not the last one could leave.
    """

    class Tracked(ServerConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            registry[self] = None
            if len(registry) > max_connections:
                silent = (each for each in registry if each.request is None)  # ends with self
                victim = next(silent)
                del registry[victim]
                victim.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > max_unsent_bytes:
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            registry.pop(self, None)
            super().connection_lost(exc)

    return Tracked


_ARMS_PER_LIMIT = 8
"""How often the idle time-out is set anew: a timer for each message would cost a tenth of it."""


class _Client:
    """One WebSocket client and its stream."""

    def __init__(
        self, connection: ServerConnection, settings: ServerOptions, streams: Streams
    ) -> None:
        self._connection, self._settings, self._streams = connection, settings, streams
        self._protocol = StreamProtocol()
        self._outbox = Outbox(
            max_bytes=settings.outbox_bytes, send_timeout_s=settings.send_timeout_s
        )
        self._session: StreamSession | None = None
        self._sender = asyncio.create_task(self._send_all())

    async def serve(self) -> None:
        """Talk until the stream has ended; then the connection is closed."""
        try:
            await self._converse()
            await self._say_goodbye(CloseCode.NORMAL_CLOSURE)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self._streams.metrics.client_errors.labels(code=Code.TOO_LARGE).inc()
        except (_ProtocolViolation, AudioError, DaemonError) as error:
            await self._refuse(error)
        finally:
            self._outbox.close()
            if self._session is not None:
                await self._session.abort()
            await asyncio.wait({self._sender})

    async def drain(self) -> None:
        """The daemon stops: finish the stream, if any, and close with 1001."""
        if self._session is not None:
            await self._session.finish()
        await self._say_goodbye(CloseCode.GOING_AWAY, flush_s=self._settings.close_timeout_s)

    # ---- in --------------------------------------------------------------------------------

    async def _converse(self) -> None:
        """Run the stream to `ended`; a client that sends nothing for long is at fault."""
        limit_s = self._settings.start_timeout_s
        idle = asyncio.timeout(limit_s)
        try:
            async with idle:
                clock = asyncio.get_running_loop().time
                armed_s = clock()
                while True:
                    action = self._protocol.receive(await self._connection.recv())
                    if isinstance(action, Audio) and not self._stream.is_full:
                        await self._stream.feed(action.data)
                    else:
                        idle.reschedule(None)  # waiting for us is no fault of the client
                        if await self._act(action):
                            return
                        if self._session is not None:
                            limit_s = self._settings.idle_timeout_s
                        armed_s = float("-inf")
                    now_s = clock()
                    if now_s - armed_s > limit_s / _ARMS_PER_LIMIT:
                        idle.reschedule(now_s + limit_s)
                        armed_s = now_s
        except TimeoutError:
            if not idle.expired():
                raise
            is_started = self._session is not None
            found, expected = ("nothing", "audio") if is_started else ("no `start`", "`start`")
            message = f"found {found} for {limit_s:g} s, expected {expected}"
            raise _ProtocolViolation(Code.IDLE, message) from None

    async def _act(self, action: Action | None) -> bool:
        """Do what the client asked for; return whether the stream is over."""
        match action:
            case Start() as start:
                self._session = self._streams.open(start, send=self._outbox.put)
            case Audio(data):
                await self._stream.feed(data)
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

    @property
    def _stream(self) -> StreamSession:
        if self._session is None:
            raise RuntimeError("the protocol let a message pass before `start`")
        return self._session

    # ---- out -------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        try:
            await self._outbox.pump(self._connection.send)
        except ConnectionClosed:
            pass  # the reader sees it too
        except SlowClient as slow:
            self._count(slow.code)
            logger.info("client given up stream=%s reason=%s", self._name, slow)
            if self._session is not None:
                self._session.detach()
                self._session.report(slow.code, str(slow))
            await self._close(CloseCode.POLICY_VIOLATION, slow.code)

    async def _refuse(self, error: _ProtocolViolation | AudioError | DaemonError) -> None:
        """Tell the client what is wrong and close; its closed segments go on for the bus."""
        self._count(error.code)
        is_ours = isinstance(error, StreamBroken)
        message = "internal error; the daemon's log has more" if is_ours else str(error)
        logger.info("client refused stream=%s code=%s: %s", self._name, error.code, message)
        if self._session is not None:
            self._session.report(error.code, message)
        else:
            retry_after_ms = error.retry_after_ms if isinstance(error, StreamRefused) else None
            self._outbox.put(
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
        self._outbox.close()
        await asyncio.wait({self._sender}, timeout=flush_s)
        await self._close(code, reason)

    async def _close(self, code: CloseCode, reason: str) -> None:
        """Close; a client that does not read or answer is cut."""
        try:
            async with asyncio.timeout(self._settings.close_timeout_s):
                await self._connection.close(code, reason)
        except TimeoutError:
            self._connection.transport.abort()

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


def is_allowed_origin(origin: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a page of this origin may connect: loopback pages and those in `allowed`.

    Any web page can open a WebSocket to loopback; the browser sends the page's origin, and the
    check is the server's (RFC 6455 section 10.2).
    """
    if "*" in allowed or origin in allowed:
        return True
    try:
        host = urlsplit(origin).hostname
        return host == "localhost" or (host is not None and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


def _json(connection: ServerConnection, status: http.HTTPStatus, body: dict[str, Any]) -> Response:
    text = msgspec.json.encode(body).decode() + "\n"
    return _with_type(connection.respond(status, text), "application/json")


def _with_type(response: Response, content_type: str) -> Response:
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response
