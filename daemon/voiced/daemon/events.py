"""`/v1/events`: the bus for those who cannot reach it: browsers, and others by HTTP and TLS."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from voiced.daemon.connections import Connection
from voiced.daemon.errors import SlowClient
from voiced.daemon.options import ServerOptions
from voiced.daemon.outbox import Outbox
from voiced.daemon.wire import ServerMessage, topic

logger = logging.getLogger(__name__)

MAX_TOPICS = 64


class Events:
    """Hands every bus message to those who listen. Belongs to the loop; never waits for anybody."""

    def __init__(self) -> None:
        self._listeners: set[EventsClient] = set()

    def tap(self, message: ServerMessage) -> None:
        """Take a message as it goes to the bus, numbered."""
        for listener in self._listeners:
            listener.offer(message)

    def add(self, listener: EventsClient) -> None:
        """Let it hear what comes from now on."""
        self._listeners.add(listener)

    def remove(self, listener: EventsClient) -> None:
        """Let it hear nothing more."""
        self._listeners.discard(listener)


class EventsClient:
    """One WebSocket that gets bus messages and sends nothing that matters."""

    def __init__(self, connection: Connection, settings: ServerOptions, events: Events) -> None:
        self.connection = connection
        self._settings, self._events = settings, events
        path = connection.request.path if connection.request is not None else ""
        self._topics = wanted_topics(path)
        self.outbox = Outbox(
            max_bytes=settings.outbox_bytes,
            send_timeout_s=settings.send_timeout_s,
            send_now=connection.send_now,
        )

    def offer(self, message: ServerMessage) -> None:
        """Queue a message if it was asked for."""
        if not self._topics or topic(message).startswith(self._topics):
            self.outbox.put(message)

    async def serve(self) -> None:
        """Send until the client leaves, does not read, or the daemon stops."""
        sender = asyncio.create_task(self._send_all())
        self._events.add(self)
        try:
            while True:
                await self.connection.recv()  # anything but a close means nothing
        except ConnectionClosed:
            pass
        finally:
            self._events.remove(self)
            self.outbox.close()
            await asyncio.wait({sender})

    async def drain(self) -> None:
        """The daemon stops: what was published is sent, then 1001."""
        self.outbox.close()
        await self.close(CloseCode.GOING_AWAY, "")

    async def expel(self, code: str, message: str) -> None:
        """Its right to be here is over."""
        logger.info("listener refused code=%s: %s", code, message)
        await self.close(CloseCode.POLICY_VIOLATION, code)

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close; a client that does not answer is cut."""
        try:
            async with asyncio.timeout(self._settings.close_timeout_s):
                await self.connection.close(code, reason)
        except TimeoutError:
            self.connection.transport.abort()

    async def _send_all(self) -> None:
        try:
            await self.outbox.pump(self.connection.send)
        except ConnectionClosed:
            pass  # the reader sees it too
        except SlowClient as slow:
            logger.info("listener given up reason=%s", slow)
            await self.close(CloseCode.POLICY_VIOLATION, slow.code)


def wanted_topics(path: str) -> tuple[bytes, ...]:
    """Read `?topics=final/,partial/desk`; none: everything."""
    try:
        values = parse_qs(urlsplit(path).query, max_num_fields=8).get("topics", [])
    except ValueError:  # no address, or too many fields: as if none were named
        return ()
    names = [part.strip() for value in values for part in value.split(",")]
    return tuple(name.encode() for name in names[:MAX_TOPICS] if name)
