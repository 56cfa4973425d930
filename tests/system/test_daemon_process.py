"""The real daemon as a process, with the fake recogniser: start, serve, drain, fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

RATE_HZ = 16_000
DEADLINE_S = 30.0


def noise(duration_s: float) -> bytes:
    """Seeded loud noise, which webrtcvad takes for speech, as 16-bit PCM."""
    samples = np.random.default_rng(7).normal(0, 6_000, round(duration_s * RATE_HZ))
    return samples.clip(-32_000, 32_000).astype("<i2").tobytes()


def silence(duration_s: float) -> bytes:
    return bytes(2 * round(duration_s * RATE_HZ))


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    address_file: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if result := condition():
                return result
            assert self.process.poll() is None, f"daemon ended before {what}:\n{self.log}"
            time.sleep(0.02)  # polling a process; the deadline is what counts
        raise AssertionError(f"no {what} within {DEADLINE_S} s:\n{self.log}")

    def addresses(self) -> dict[str, Any]:
        self.wait_for("addresses", self.address_file.exists)
        addresses: dict[str, Any] = json.loads(self.address_file.read_text(encoding="utf-8"))
        return addresses

    def get(self, path: str) -> tuple[int, str]:
        where = self.addresses()
        url = f"http://{where['host']}:{where['port']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_ready(self) -> None:
        self.wait_for("readiness", lambda: self.get("/readyz")[0] == 200)

    @property
    def url(self) -> str:
        where = self.addresses()
        return f"ws://{where['host']}:{where['port']}/v1/stream"

    def worker_pids(self) -> list[int]:
        """Engine workers: children of the daemon that run its module."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(FileNotFoundError):
                    if b"voiced.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append(int(child))
        return found

    def wait_exit(self) -> int:
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"daemon did not end:\n{self.log}") from None


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `voiced run` on free ports; what still runs at the end is killed."""
    daemons: list[Daemon] = []

    def start_daemon(*arguments: str, wait: bool = True, **environment: str) -> Daemon:
        number = len(daemons)
        address_file, log_file = tmp_path / f"addresses{number}", tmp_path / f"log{number}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICED_")}
        command = [
            *(sys.executable, "-m", "voiced.daemon.cli", "run", "--model", "fake"),
            *("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0"),
            *("--set", "vad.kind=webrtc", "--address-file", str(address_file), *arguments),
        ]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**clean, "XDG_CONFIG_HOME": str(tmp_path), **environment},
            )
        daemons.append(Daemon(process, address_file, log_file))
        if wait:
            daemons[-1].wait_ready()
        return daemons[-1]

    yield start_daemon
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


@contextlib.asynccontextmanager
async def stream(daemon: Daemon, **fields: Any) -> AsyncIterator[ClientConnection]:
    """An open stream, behind its `ready`."""
    async with connect(daemon.url, compression=None) as connection:
        await connection.send(json.dumps({"type": "start", "v": 1, "audio": {}, **fields}))
        assert (await receive(connection))["type"] == "ready"
        yield connection


async def receive(connection: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        message: dict[str, Any] = json.loads(await connection.recv())
    return message


async def receive_until(connection: ClientConnection, kind: str) -> list[dict[str, Any]]:
    messages = [await receive(connection)]
    while messages[-1]["type"] != kind:
        messages.append(await receive(connection))
    return messages


def finals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == "final"]


def test_a_stream_is_answered_on_the_socket_and_on_the_bus(start: Start) -> None:
    daemon = start()
    assert daemon.get("/healthz")[0] == 200
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.set(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        subscriber.subscribe(b"")
        subscriber.connect(daemon.addresses()["bus"])
        assert subscriber.recv_multipart()[0] == b"heartbeat/-"  # joined

        async def talk() -> list[dict[str, Any]]:
            async with stream(daemon, stream="car") as connection:
                await connection.send(silence(0.5) + noise(1.0) + silence(1.5))
                await connection.send('{"type":"stop"}')
                return await receive_until(connection, "ended")

        messages = asyncio.run(talk())
        assert len(finals(messages)) == 1
        on_bus: list[str] = []
        while not on_bus or on_bus[-1] != "ended":
            topic, body = subscriber.recv_multipart()
            if topic.endswith(b"/car"):
                on_bus.append(json.loads(body)["type"])
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
