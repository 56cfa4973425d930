"""Playing streams to a daemon that does not behave."""

from __future__ import annotations

import asyncio
import os

import pytest
from websockets.asyncio.server import ServerConnection, serve

from voiced.bench.daemon_cost import _play_all
from voiced.daemon.commands.child import ChildDaemon, ChildFailed


@pytest.mark.parametrize(
    ("reason", "says"), [("closed", "daemon closed the connection"), ("gone", "onnect")]
)
def test_a_daemon_that_goes_away_is_one_error(reason: str, says: str) -> None:
    async def scenario() -> None:
        async def hang_up(connection: ServerConnection) -> None:
            await connection.recv()
            await connection.close(1011)

        async with serve(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            daemon = ChildDaemon(os.getpid(), f"ws://127.0.0.1:{port}", "", 0.0)
            if reason == "gone":
                server.close()
                await server.wait_closed()
            await _play_all(daemon, [bytes(6_400)] * 2, 100)

    with pytest.raises((ChildFailed, ConnectionRefusedError), match=says):
        asyncio.run(scenario())
