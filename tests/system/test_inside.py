"""A daemon as a process is looked into: `voiced status`, and SIGUSR1."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.system.running_daemon import DEADLINE_S, FAKE, launch, noise, receive_until, stream


def test_a_daemon_tells_how_it_is_and_dumps_its_stacks_and_serves_on(tmp_path: Path) -> None:
    daemon = launch(tmp_path, *FAKE, "--set", "server.idle_timeout_s=600")

    def ask(*arguments: str) -> str:
        url = f"http://127.0.0.1:{daemon.addresses()['port']}/v1/status"
        return subprocess.run(
            [sys.executable, "-m", "voiced.daemon.cli", "status", "--url", url, *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        ).stdout

    try:
        daemon.wait_ready()

        async def talk() -> None:
            async with stream(daemon, stream="desk") as connection:
                await connection.send(noise(1.0))
                await receive_until(connection, "speech_started")
                facts = json.loads(await asyncio.to_thread(ask, "--json"))
                assert [each["stream"] for each in facts["streams"]] == ["desk"]
                assert facts["pid"] == daemon.process.pid
                assert "text" not in facts["streams"][0]
                daemon.process.send_signal(signal.SIGUSR1)
                await asyncio.to_thread(daemon.wait_for, "the worker's stack", worker_stack)
                await connection.send('{"type":"stop"}')
                await receive_until(connection, "ended")

        def worker_stack() -> bool:
            """Written by the worker itself: no time, no level in front of it."""
            behind = daemon.log.partition("dump facts=")[2]
            return re.search(r"^(Current )?[Tt]hread 0x\w+", behind, re.M) is not None

        asyncio.run(talk())
        assert '"stream": "desk"' in daemon.log
        assert re.search(r"dump thread .*File .* in run_forever", daemon.log)
        assert re.search(r"dump task name=bus at=\S+\.py:\d+", daemon.log)
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()
