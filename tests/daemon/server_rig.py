"""A server on a free port with a scripted engine, and what clients of it say."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from voiced.daemon.access import Access
from voiced.daemon.admin import Switch
from voiced.daemon.events import Events
from voiced.daemon.limits import Clients
from voiced.daemon.metrics import Metrics
from voiced.daemon.microphone import MicrophoneStatus
from voiced.daemon.options import ServerOptions
from voiced.daemon.server import Server
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.streams import OpenChain, Streams
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, silence, tone
from voiced.daemon.wire import (
    AudioParams,
    Flush,
    Ready,
    ServerMessage,
    Start,
    Stop,
    decode_server,
    encode,
)

START = Start(v=1, audio=AudioParams(), partials=False)
WORD = silence(0.6) + tone(1.0) + silence(1.4)


class Rig:
    """A server on a free port, with a scripted engine and a bus that only remembers."""

    def __init__(
        self,
        *,
        engine: ScriptedEngine | None = None,
        max_streams: int = 8,
        open_chain: OpenChain | None = None,
        session: SessionSettings | None = None,
        microphone: Callable[[], MicrophoneStatus] | None = None,
        access: Access | None = None,
        clients: Clients | None = None,
        tls: ssl.SSLContext | None = None,
        switch_model: Switch | None = None,
        **options: Any,
    ) -> None:
        self.engine = engine or ScriptedEngine()
        self.metrics = Metrics()
        self.bus: list[ServerMessage] = []
        self._changed = asyncio.Event()
        self.streams = Streams(
            engine=self.engine,
            publish=self._publish,
            open_chain=open_chain or LoudnessChains(),
            settings=session,
            max_streams=max_streams,
            metrics=self.metrics,
        )
        self.events = Events()
        self.server = Server(
            ServerOptions(port=0, **options),
            self.streams,
            access=access,
            clients=clients,
            tls=tls,
            events=self.events,
            microphone=microphone,
            switch_model=switch_model,
        )

    def _publish(self, message: ServerMessage) -> None:
        self.bus.append(message)
        self.events.tap(message)
        self._changed.set()

    async def on_bus(self, condition: Callable[[ServerMessage], bool]) -> ServerMessage:
        """Wait until a message that fits was published."""
        while True:
            self._changed.clear()
            for message in self.bus:
                if condition(message):
                    return message
            await self._changed.wait()

    def client(self, path: str = "/v1/stream", **options: Any) -> connect:
        """Connect a WebSocket client."""
        scheme = "wss" if "ssl" in options else "ws"
        return connect(
            f"{scheme}://127.0.0.1:{self.server.port}{path}",
            **{"compression": None, "proxy": None, "max_size": None, **options},
        )

    async def get(
        self, target: str, *, method: str = "GET", headers: str = ""
    ) -> tuple[int, dict[str, str], str]:
        """Do a plain HTTP request: status, headers, body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), fields, body


def serve(scenario: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    """Run a scenario against a server; everything is stopped afterwards."""

    async def run() -> None:
        rig = Rig(**options)
        await rig.server.start()
        try:
            async with asyncio.timeout(60):
                await scenario(rig)
        finally:
            rig.engine.gate.set()
            await rig.server.drain(deadline_s=5)
            await rig.server.close()

    asyncio.run(run())


async def send(client: ClientConnection, *messages: Start | Flush | Stop | bytes | str) -> None:
    for message in messages:
        data = message if isinstance(message, bytes | str) else encode(message).decode()
        await client.send(data)


async def rest(client: ClientConnection) -> list[ServerMessage]:
    """Read until the server closes."""
    messages = []
    try:
        while True:
            messages.append(decode_server(await client.recv()))
    except ConnectionClosed:
        return messages


async def first(client: ClientConnection) -> ServerMessage:
    return decode_server(await client.recv())


async def started(client: ClientConnection, start: Start = START) -> Ready:
    """Open a stream and wait until it is accepted."""
    await send(client, start)
    ready = await first(client)
    assert isinstance(ready, Ready)
    return ready


def kinds(messages: list[ServerMessage]) -> list[str]:
    return [type(message).__name__ for message in messages]
