"""HTTP and WebSocket on a TCP port, a Unix socket or what systemd passes; with `websockets`."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from voiced.daemon.access import SUBPROTOCOL, Access
from voiced.daemon.admin import Switch, serve_admin
from voiced.daemon.connections import Connection, Connections
from voiced.daemon.disk_writer import StorageStatus
from voiced.daemon.errors import AddressRefused, PortInUse
from voiced.daemon.events import Events, EventsClient
from voiced.daemon.inside import Inside
from voiced.daemon.limits import Clients
from voiced.daemon.listening import bind_unix, describe
from voiced.daemon.microphone import MicrophoneStatus
from voiced.daemon.options import ServerOptions
from voiced.daemon.parking import Parking
from voiced.daemon.routes import ADMIN_PATH, EVENTS_PATH, Routes
from voiced.daemon.stream_client import StreamClient
from voiced.daemon.streams import Streams

logger = logging.getLogger(__name__)
_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.setLevel(logging.WARNING)  # it logs every health check at INFO


class Server:
    """Serves streams, events and plain HTTP until closed.

    Stop it with `drain`, then `close`: the library's own close would answer nothing and wait
    for clients that never read.
    """

    def __init__(
        self,
        settings: ServerOptions,
        streams: Streams,
        *,
        access: Access | None = None,
        clients: Clients | None = None,
        tls: ssl.SSLContext | None = None,
        events: Events | None = None,
        microphone: Callable[[], MicrophoneStatus] | None = None,
        inside: Inside | None = None,
        journal: Callable[[], StorageStatus | None] = lambda: None,
        switch_model: Switch | None = None,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        """Nothing runs.

        Args:
            settings: Where to listen and what to take.
            streams: What clients open.
            access: Whose tokens are asked for; None: nobody's.
            clients: What each may take.
            tls: Spoken by every connection; None: by none.
            events: Where `/v1/events` hears of bus messages.
            microphone: Shown by `/readyz`, where there is one.
            inside: Shown by `/v1/status`.
            journal: Shown by `/readyz`, where there is one.
            switch_model: What an admin may ask for.
            passed: Listening sockets to serve instead of binding any; taken over.
        """
        self._settings, self._streams = settings, streams
        self._passed = tuple(passed)
        self._access = access or Access()
        self._limits = Clients() if clients is None else clients
        self._events = events or Events()
        self._switch_model = switch_model
        self._metrics = streams.metrics
        self._clients: set[StreamClient | EventsClient] = set()
        self._placed: set[StreamClient | EventsClient] = set()
        """Of these: listeners, and those whose `start` has come."""
        self._connections = Connections(
            limit=settings.max_connections,
            per_address=settings.max_connections_per_address,
            max_unsent_bytes=settings.outbox_bytes,
            handshake_timeout_s=settings.open_timeout_s,
            keepalive_s=settings.keepalive_s,
            tls=tls,
            on_refused=lambda reason: self._metrics.connections_cut.labels(reason=reason).inc(),
        )
        self._parking = Parking(settings.resume_s)
        self._routes = Routes(
            streams,
            access=self._access,
            clients=self._limits,
            allowed_origins=settings.allowed_origins,
            is_full=lambda: len(self._placed) >= streams.max_streams,
            may_resume=lambda: len(self._parking) > 0,
            microphone=microphone,
            inside=inside,
            journal=journal,
        )
        self._listeners: list[WebSocketServer] = []
        self._own_path: Path | None = None
        """A socket in the file system that we made and remove."""

    @property
    def connections(self) -> int:
        """TCP connections now, streams or not."""
        return len(self._connections)

    @property
    def parked(self) -> int:
        """Streams that may outlive their connections."""
        return len(self._parking)

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

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for clients to read them."""
        return sum(client.outbox.waiting_bytes for client in self._clients)

    @property
    def stalled_s(self) -> float:
        """How long the slowest client has taken nothing of what waits for it."""
        return max((client.outbox.stalled_s for client in self._clients), default=0.0)

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
            process_request=self._routes.answer,
            select_subprotocol=_subprotocol,
            create_connection=cast(type[ServerConnection], self._connections.create),
            compression=None,
            max_size=settings.max_message_bytes,
            max_queue=settings.max_queue,
            open_timeout=settings.open_timeout_s,
            close_timeout=settings.close_timeout_s,
            ping_interval=settings.ping_interval_s,
            # A pong waits behind unread audio: a client that we slow down must not be cut
            # for it. TCP keepalive, idle and send time-outs find the dead ones.
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
        await self._parking.close()
        clients = list(self._clients)
        await asyncio.gather(
            self._streams.drain(deadline_s=deadline_s),
            *(client.drain() for client in clients),
        )

    async def expel(self) -> None:
        """End the connections whose token is over or was taken back."""
        await asyncio.gather(
            *(
                client.expel(objection.code, str(objection))
                for client in list(self._clients)
                if (objection := self._access.objection(client.connection.grant)) is not None
            )
        )

    async def close(self) -> None:
        """Stop listening and cut what is still connected."""
        if not self._listeners:
            return
        listeners, self._listeners = self._listeners, []
        for server in listeners:
            server.close(close_connections=False)
        self._connections.abort()
        for server in listeners:
            await server.wait_closed()
        if self._own_path is not None:
            self._own_path.unlink(missing_ok=True)
        logger.info("server closed")

    # ---- WebSocket -------------------------------------------------------------------------

    async def _serve_client(self, library_connection: ServerConnection) -> None:
        connection = cast(Connection, library_connection)
        path = "" if connection.request is None else connection.request.path.partition("?")[0]
        if path == ADMIN_PATH:
            await serve_admin(
                connection, self._switch_model, timeout_s=self._settings.start_timeout_s
            )
            return
        client: StreamClient | EventsClient
        if path == EVENTS_PATH:
            client = EventsClient(connection, self._settings, self._events)
            self._place(client)
        else:
            everybody = self._limits.everybody(time.monotonic())
            client = StreamClient(
                connection,
                self._settings,
                self._streams,
                everybody,
                self._parking,
                on_start=self._place,
            )
            connection.waits_for_start = True
        self._clients.add(client)
        self._metrics.connections_open.inc()
        try:
            await client.serve()
        finally:
            self._clients.discard(client)
            if client in self._placed:
                self._placed.remove(client)
                if connection.client is not None:
                    connection.client.streams -= 1
            self._metrics.connections_open.dec()

    def _place(self, client: StreamClient | EventsClient) -> None:
        """Count a client among those that there may be `max_streams` of.

        One that says nothing has no place: a crowd of them would keep everybody else out.
        """
        client.connection.waits_for_start = False
        self._placed.add(client)
        if client.connection.client is not None:
            client.connection.client.streams += 1


def _subprotocol(
    connection: ServerConnection, offered: Sequence[Subprotocol]
) -> Subprotocol | None:
    """Choose ours; what a token came in is never sent back."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
