"""`voiced run` as a process, and what a client and a subscriber see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
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
import zmq
from websockets.asyncio.client import ClientConnection, connect

from voiced.bench.workers import is_worker
from voiced.daemon.commands.child import descendants

RATE_HZ = 16_000
DEADLINE_S = 60.0
FAKE = ("--model", "fake", "--set", "vad.kind=webrtc")
"""Arguments of a daemon that needs no model."""


@dataclass
class Daemon:
    """A daemon under test."""

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
        """Engine workers: processes below the daemon that run its module."""
        return [pid for pid in descendants(self.process.pid) if is_worker(pid)]

    def wait_exit(self) -> int:
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"daemon did not end:\n{self.log}") from None

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def launch(folder: Path, *arguments: str, name: str = "daemon", **environment: str) -> Daemon:
    """Start `voiced run` on free ports, apart from this user's settings; does not wait."""
    address_file, log_file = folder / f"{name}.addresses", folder / f"{name}.log"
    kept = ("VOICED_MODEL_DIR",)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICED_") or k in kept}
    command = [
        *(sys.executable, "-m", "voiced.daemon.cli", "run"),
        *("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0"),
        *("--address-file", str(address_file), *arguments),
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**clean, "XDG_CONFIG_HOME": str(folder), **environment},
        )
    return Daemon(process, address_file, log_file)


class Subscriber:
    """All that a daemon publishes from its first message after this is made."""

    def __init__(self, daemon: Daemon) -> None:
        self.messages: list[dict[str, Any]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        self._socket.subscribe(b"")
        self._socket.connect(daemon.addresses()["bus"])
        self._receive()  # joined: at the latest a heartbeat

    def until(self, is_enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on to a message that fits; heartbeats are not kept."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            message = self._receive()
            if message["type"] != "heartbeat" and is_enough(message):
                return message
        raise AssertionError(f"not published within {DEADLINE_S} s; last {self.messages[-3:]}")

    def first(self, is_enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that fits, of those received already or yet to come."""
        return next(filter(is_enough, self.messages), None) or self.until(is_enough)

    def _receive(self) -> dict[str, Any]:
        topic, body = self._socket.recv_multipart()
        message: dict[str, Any] = json.loads(body)
        assert topic.decode() == f"{message['type']}/{message['stream']}"
        if message["type"] != "heartbeat":
            self.messages.append(message)
        return message

    def until_ended(self, *streams: str) -> None:
        """Read on until all of these streams have ended."""
        open_streams = set(streams) - {m["stream"] for m in self.messages if m["type"] == "ended"}
        while open_streams:
            ended = self.until(lambda message: message["type"] == "ended")
            open_streams.discard(ended["stream"])

    def of(self, stream: str, *types: str) -> list[dict[str, Any]]:
        """What was published about a stream, of some types or all."""
        return [
            message
            for message in self.messages
            if message["stream"] == stream and (not types or message["type"] in types)
        ]

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@contextlib.contextmanager
def subscribed(daemon: Daemon) -> Iterator[Subscriber]:
    subscriber = Subscriber(daemon)
    try:
        yield subscriber
    finally:
        subscriber.close()


@contextlib.asynccontextmanager
async def stream(daemon: Daemon, **fields: Any) -> AsyncIterator[ClientConnection]:
    """An open stream, behind its `ready`."""
    async with connect(daemon.url, compression=None, proxy=None) as connection:
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


async def say(daemon: Daemon, pcm: bytes, **fields: Any) -> list[dict[str, Any]]:
    """Send a whole recording, faster than it was spoken; return all that came back."""
    async with stream(daemon, **fields) as connection:
        answers = asyncio.create_task(receive_until(connection, "ended"))
        for start in range(0, len(pcm), 1 << 16):
            await connection.send(pcm[start : start + (1 << 16)])
        await connection.send('{"type":"stop"}')
        return await answers


def finals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == "final"]


def noise(duration_s: float) -> bytes:
    """Seeded loud noise, which webrtcvad takes for speech, as 16-bit PCM."""
    samples = np.random.default_rng(7).normal(0, 6_000, round(duration_s * RATE_HZ))
    return samples.clip(-32_000, 32_000).astype("<i2").tobytes()


def silence(duration_s: float) -> bytes:
    return bytes(2 * round(duration_s * RATE_HZ))
