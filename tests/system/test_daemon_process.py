"""The real daemon as a process, with the fake recogniser: start, serve, drain, fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.running_daemon import (
    DEADLINE_S,
    FAKE,
    Daemon,
    finals,
    launch,
    noise,
    receive_until,
    silence,
    stream,
    subscribed,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `voiced run` on free ports; what still runs at the end is killed."""
    daemons: list[Daemon] = []

    def start_daemon(*arguments: str, wait: bool = True, **environment: str) -> Daemon:
        name = f"daemon{len(daemons)}"
        daemons.append(launch(tmp_path, *FAKE, *arguments, name=name, **environment))
        if wait:
            daemons[-1].wait_ready()
        return daemons[-1]

    yield start_daemon
    for daemon in daemons:
        daemon.kill()


def test_a_stream_is_answered_on_the_socket_and_on_the_bus(start: Start) -> None:
    daemon = start()
    assert daemon.get("/healthz")[0] == 200
    with subscribed(daemon) as subscriber:

        async def talk() -> list[dict[str, Any]]:
            async with stream(daemon, stream="car") as connection:
                await connection.send(silence(0.5) + noise(1.0) + silence(1.5))
                await connection.send('{"type":"stop"}')
                return await receive_until(connection, "ended")

        messages = asyncio.run(talk())
        assert len(finals(messages)) == 1
        subscriber.until_ended("car")
        on_bus = [message["type"] for message in subscriber.of("car")]
    assert on_bus == ["ready", *(message["type"] for message in messages)]
    assert "voiced_finals_total 1.0" in daemon.get("/metrics")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_open_segments_and_delivers_their_finals(
    start: Start, number: signal.Signals
) -> None:
    daemon = start()

    async def talk() -> list[dict[str, Any]]:
        async with stream(daemon) as connection:
            await connection.send(silence(0.5) + noise(1.0))  # in the middle of speech
            before = await receive_until(connection, "speech_started")
            daemon.process.send_signal(number)
            return before + await receive_until(connection, "ended")

    messages = asyncio.run(talk())
    assert len(finals(messages)) == 1
    (ended,) = [message for message in messages if message["type"] == "speech_ended"]
    assert ended["reason"] == "end_of_stream"
    assert daemon.wait_exit() == 0


def test_a_daemon_without_streams_ends_with_0_and_leaves_no_worker(start: Start) -> None:
    daemon = start()
    (worker,) = daemon.worker_pids()
    daemon.process.terminate()
    assert daemon.wait_exit() == 0
    assert not Path(f"/proc/{worker}").exists()


def test_a_signal_during_the_start_ends_it(start: Start) -> None:
    daemon = start(wait=False)
    daemon.addresses()
    daemon.process.terminate()
    assert daemon.wait_exit() == 0


def test_a_second_signal_exits_at_once(start: Start) -> None:
    daemon = start("--set", "limits.drain_s=600")
    (worker,) = daemon.worker_pids()
    os.kill(worker, signal.SIGSTOP)  # the drain cannot finish

    async def talk() -> None:
        async with stream(daemon) as connection:
            await connection.send(silence(0.5) + noise(1.0))
            await receive_until(connection, "speech_started")
            daemon.process.terminate()
            await asyncio.to_thread(daemon.wait_for, "drain", lambda: "stopping" in daemon.log)
            daemon.process.terminate()
            assert await asyncio.to_thread(daemon.wait_exit) == 1

    try:
        asyncio.run(talk())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    assert "second signal" in daemon.log


def test_new_streams_are_refused_while_draining(start: Start) -> None:
    daemon = start("--set", "limits.drain_s=600")
    (worker,) = daemon.worker_pids()
    os.kill(worker, signal.SIGSTOP)

    async def talk() -> None:
        async with stream(daemon) as connection:
            await connection.send(silence(0.5) + noise(1.0))
            await receive_until(connection, "speech_started")
            daemon.process.terminate()
            await asyncio.to_thread(daemon.wait_for, "drain", lambda: "stopping" in daemon.log)
            status, body = await asyncio.to_thread(daemon.get, "/readyz")
            assert (status, json.loads(body)["code"]) == (503, "shutting_down")
            with pytest.raises(InvalidStatus):
                async with connect(daemon.url):
                    pass
            os.kill(worker, signal.SIGCONT)
            messages = await receive_until(connection, "ended")
            assert len(finals(messages)) == 1

    asyncio.run(talk())
    assert daemon.wait_exit() == 0


def test_a_final_still_arrives_when_the_worker_is_killed_in_mid_segment(start: Start) -> None:
    daemon = start()
    (worker,) = daemon.worker_pids()

    async def talk() -> list[dict[str, Any]]:
        async with stream(daemon) as connection:
            await connection.send(silence(0.5) + noise(1.0))
            messages = await receive_until(connection, "speech_started")
            os.kill(worker, signal.SIGKILL)
            await connection.send(noise(0.5) + silence(1.5))
            await connection.send('{"type":"stop"}')
            return messages + await receive_until(connection, "ended")

    assert len(finals(asyncio.run(talk()))) == 1
    daemon.wait_ready()
    (replacement,) = daemon.worker_pids()
    assert replacement != worker
    daemon.process.terminate()
    assert daemon.wait_exit() == 0


def test_a_port_in_use_is_named_with_the_next_step(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = start("--port", str(port), wait=False)
        assert daemon.wait_exit() == 3
    assert f"voiced: port {port} on 127.0.0.1 is in use" in daemon.log
    assert "server.port" in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_second_daemon_on_the_same_bus_is_refused_and_the_first_goes_on(
    start: Start, scheme: str, tmp_path: Path
) -> None:
    first = start() if scheme == "tcp" else start("--bus", f"ipc://{tmp_path}/bus")
    endpoint = first.addresses()["bus"]
    second = start("--bus", endpoint, wait=False)
    assert second.wait_exit() == 3
    assert f"voiced: bus endpoint {endpoint} is in use" in second.log
    assert "Traceback" not in second.log
    assert first.get("/readyz")[0] == 200


def test_a_wrong_setting_ends_the_start_with_2(start: Start) -> None:
    daemon = start("--set", "server.prot=1", wait=False, VOICED_ENGINE_BEAM="0")
    assert daemon.wait_exit() == 2
    assert "did you mean server.port?" in daemon.log
    assert "VOICED_ENGINE_BEAM: engine.beam = 0" in daemon.log


def test_the_service_manager_hears_ready_and_stopping(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_S)
        daemon = start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        said: list[str] = []
        while not said or "READY=1" not in said[-1]:
            said.append(manager.recv(4096).decode())
        assert "STATUS=starting engine" in said
        daemon.process.terminate()
        assert "STOPPING=1" in manager.recv(4096).decode()
    assert daemon.wait_exit() == 0
