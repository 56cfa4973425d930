"""TCP connections of the server from the first packet on: how many, whose, with TLS or not.

The WebSocket library knows a connection only once its request is complete, and with TLS asyncio
tells nobody before that handshake is. A crowd that says nothing, or that begins TLS and never ends
it, must keep neither streams nor health checks out. So each connection begins as a `_Gate`, which
is counted, and can be cut, from `accept` on: until it has sent its request, and where that opens a
stream, until it has sent `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.protocol import Event, State

from voiced.daemon.audio_reader import AudioReader
from voiced.daemon.limits import Client
from voiced.daemon.tokens import ANYONE, Grant

logger = logging.getLogger(__name__)

MAX_EARLY_BYTES = 64 * 1024
"""Of a request that comes right behind the TLS handshake, before the WebSocket side is there."""


class Connections:
    """Every TCP connection, oldest first, those too that have not sent a request yet."""

    def __init__(
        self,
        *,
        limit: int,
        per_address: int,
        max_unsent_bytes: int,
        handshake_timeout_s: float,
        keepalive_s: float,
        tls: ssl.SSLContext | None = None,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Count nothing yet.

        Args:
            limit: When there is one more, the oldest that has not sent its request, or its `start`,
                goes; where all have, the new one.
            per_address: The same for one address of another machine.
            max_unsent_bytes: A client that sends pings and never reads is cut when so many bytes
                of pongs wait for it: the library answers each at once, whether or not the last one
                could leave.
            handshake_timeout_s: For TLS to be complete.
            keepalive_s: The kernel finds out within about this time that a peer is gone.
            tls: Spoken by every connection; None: by none.
            on_refused: Called with `total`, `address` or `tls` for each connection that is cut.
        """
        self._limit, self._per_address = limit, per_address
        self.max_unsent_bytes = max_unsent_bytes
        self._handshake_timeout_s, self._keepalive_s = handshake_timeout_s, keepalive_s
        self._tls, self._on_refused = tls, on_refused
        self._open: dict[_Gate, None] = {}
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def create(self, *arguments: Any, **options: Any) -> ServerConnection:
        """Make the asyncio protocol of a connection: `create_connection` of the library."""
        gate = _Gate(self, Connection(self.max_unsent_bytes, *arguments, **options))
        return cast(ServerConnection, gate)  # an asyncio protocol is all that it is used as

    def abort(self) -> None:
        """Cut them all."""
        for gate in list(self._open):
            gate.abort()

    # ---- for the gates ---------------------------------------------------------------------

    def add(self, gate: _Gate, transport: asyncio.Transport) -> None:
        """Count a new connection; cut one where there are too many."""
        tcp = transport.get_extra_info("socket")
        if tcp is not None:
            find_dead_peers(tcp, self._keepalive_s)
        self._open[gate] = None
        if gate.address:
            self._addresses[gate.address] += 1
            if self._addresses[gate.address] > self._per_address:
                self._cut_oldest(lambda each: each.address == gate.address, "address")
        if len(self._open) > self._limit:
            self._cut_oldest(lambda each: True, "total")

    def remove(self, gate: _Gate) -> None:
        """Forget a connection that is gone; a second call does nothing."""
        if gate not in self._open:
            return
        del self._open[gate]
        if gate.address:
            self._addresses[gate.address] -= 1
            if not self._addresses[gate.address]:
                del self._addresses[gate.address]

    async def secure(self, transport: asyncio.Transport, gate: _Gate) -> asyncio.Transport | None:
        """Speak TLS; None when the peer does not, or not in time."""
        if self._tls is None:
            return transport
        try:
            return await asyncio.get_running_loop().start_tls(
                transport,
                gate,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, ssl.SSLError) as error:  # a timeout is an OSError, too
            logger.debug("no tls reason=%s", type(error).__name__)
            self._on_refused("tls")
            return None

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self._tls is not None

    def _cut_oldest(self, is_candidate: Callable[[_Gate], bool], reason: str) -> None:
        """Cut the oldest that is silent; the newest is, so there is one."""
        victim = next(each for each in self._open if each.is_silent and is_candidate(each))
        self.remove(victim)
        victim.abort()
        self._on_refused(reason)


class Connection(ServerConnection):
    """A connection of the library that does not let pongs pile up, and knows whose it is."""

    def __init__(self, max_unsent_bytes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._max_unsent_bytes = max_unsent_bytes
        self.grant: Grant = ANYONE
        """What its token allows; set before the upgrade."""
        self.client: Client | None = None
        """Who is counted; None: a process of this machine without a token, which is not."""
        self.waits_for_start = False
        """It is there for a stream, and has asked for none yet: it may be cut for another."""
        self.audio = AudioReader(self.protocol)

    def process_event(self, event: Event) -> None:
        """Take what the library has read: what comes behind it must not pass it."""
        self.audio.take = None
        super().process_event(event)

    def send_now(self, text: bytes) -> bool:
        """Send a text message if none waits to leave; False: it is not sent."""
        if self.protocol.state is not State.OPEN or self.transport.get_write_buffer_size():
            return False
        self.protocol.send_text(text)
        self.send_data()
        return True

    def data_received(self, data: bytes) -> None:
        """Take bytes from the network."""
        super().data_received(data)
        if self.transport.get_write_buffer_size() > self._max_unsent_bytes:
            self.transport.abort()


class _Gate(asyncio.Protocol):
    """One connection until the WebSocket side has it; then it only keeps count."""

    def __init__(self, connections: Connections, connection: Connection) -> None:
        self._connections, self._connection = connections, connection
        self._transport: asyncio.Transport | None = None
        self._early = bytearray()
        self._is_handed_over = False
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None
        self.protocol = connection.protocol  # the library asks for it when it chooses a subprotocol
        self.address = ""
        """Of a peer on another machine."""

    @property
    def is_silent(self) -> bool:
        """It has not sent a request yet, or only that and no `start` behind it."""
        return self._connection.request is None or self._connection.waits_for_start

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = tcp = cast(asyncio.Transport, transport)
        self.address = remote_address(tcp.get_extra_info("peername"))
        self._connections.add(self, tcp)
        if not self._connections.has_tls or is_unix(tcp):
            self._hand_over(tcp)
        elif not tcp.is_closing():
            tcp.pause_reading()
            self._task = asyncio.create_task(self._handshake(tcp))

    def data_received(self, data: bytes) -> None:
        if self._is_handed_over:
            self._connection.data_received(data)
            return
        self._early += data
        if len(self._early) > MAX_EARLY_BYTES:
            self.abort()

    def eof_received(self) -> bool | None:
        if self._is_handed_over:
            self._connection.eof_received()
        return None

    def pause_writing(self) -> None:
        if self._is_handed_over:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        if self._is_handed_over:
            self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._connections.remove(self)
        if self._is_handed_over:
            self._connection.connection_lost(exc)

    # ---- handing over ----------------------------------------------------------------------

    async def _handshake(self, tcp: asyncio.Transport) -> None:
        secured = await self._connections.secure(tcp, self)
        if secured is None or self._is_lost:
            self._connections.remove(self)
            tcp.abort()
            return
        self._hand_over(secured)
        early, self._early = bytes(self._early), bytearray()
        if early:
            self._connection.data_received(early)

    def _hand_over(self, transport: asyncio.Transport) -> None:
        self._is_handed_over = True
        self._connection.connection_made(transport)


def remote_address(peer: object) -> str:
    """Name a peer of another machine; empty for loopback and Unix sockets.

    An IPv6 host has a whole /64 to itself, so that is what counts as one address.
    """
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return "" if address.is_loopback else str(address)


def is_unix(transport: asyncio.Transport) -> bool:
    """Tell whether the peer is a process of this machine behind a file's permissions: no TLS."""
    found = transport.get_extra_info("socket")
    return found is not None and found.family == socket.AF_UNIX


def find_dead_peers(tcp: socket.socket, keepalive_s: float) -> None:
    """Let the kernel probe a quiet peer, and give up one that acknowledges nothing.

    The library's own pings cannot: a pong waits behind audio that is not read yet, so a client
    that is slowed down would be cut for it. The kernel answers for a peer that only reads slowly.
    """
    probes = 3
    idle_s = max(1, round(keepalive_s / 2))
    interval_s = max(1, round(keepalive_s / 2 / probes))
    with contextlib.suppress(OSError):  # a Unix socket: its peer cannot vanish
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(keepalive_s * 1000))
