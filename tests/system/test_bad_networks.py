"""`voiced stream` and a daemon in two network namespaces, over lines that are bad in real ways."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system import network
from tests.system.network import NEAR, Line
from tests.system.running_daemon import DEADLINE_S, FAKE, Daemon, noise, silence

pytestmark = pytest.mark.netns

SPEECH_S = 0.9


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words."""
    path = tmp_path_factory.mktemp("network") / "words.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((silence(0.6) + noise(SPEECH_S) + silence(0.7)) * 2)
    return path


@contextlib.contextmanager
def daemon_on(line: Line, folder: Path) -> Iterator[Daemon]:
    """A daemon at the near end."""
    address_file, log_file = folder / "addresses", folder / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                *line.inside(line.near),
                *(sys.executable, "-m", "voiced.daemon.cli", "run", *FAKE, "--host", NEAR),
                *("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0"),
                *("--set", "server.insecure=true", "--set", "server.keepalive_s=3"),
                *("--address-file", str(address_file)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
        )
    daemon = Daemon(process, address_file, log_file)
    try:
        daemon.addresses()
        daemon.wait_for("ready", lambda: "ready start_s=" in daemon.log)
        yield daemon
        process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Line, Daemon]]:
    network.require()
    folder = tmp_path_factory.mktemp("daemon")
    with network.direct_line() as line, daemon_on(line, folder) as daemon:
        yield line, daemon


class Client:
    """`voiced stream` at the far end."""

    def __init__(self, line: Line, daemon: Daemon, recording: Path) -> None:
        url = f"ws://{NEAR}:{daemon.addresses()['port']}/v1/stream"
        self._process = subprocess.Popen(
            [
                *line.inside(line.far),
                *(sys.executable, "-m", "voiced.daemon.cli", "stream", str(recording)),
                *("--url", url, "--json", "--no-partials"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.messages: list[dict[str, Any]] = []

    def read(self, kind: str) -> dict[str, Any]:
        """Read on to a message of this type."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.messages.append(json.loads(line))
            if self.messages[-1]["type"] == kind:
                return self.messages[-1]
        assert self._process.stderr is not None
        raise AssertionError(self._process.stderr.read().decode())

    def rest(self) -> tuple[dict[str, Any], str]:
        """Read to the end; return the summary and what it complained about."""
        watchdog = threading.Timer(DEADLINE_S, self._process.kill)
        watchdog.start()
        try:
            summary = self.read("summary")
            assert self._process.stderr is not None
            complaints = self._process.stderr.read().decode()
            assert self._process.wait() == 0
        finally:
            watchdog.cancel()
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        return summary, complaints

    def assert_whole(self) -> None:
        """Both words were heard, once each, where they were said."""
        numbers = [message["number"] for message in self.messages if "number" in message]
        assert numbers == list(range(1, len(numbers) + 1))
        found = [message for message in self.messages if message["type"] == "final"]
        assert len(found) == 2
        assert [message["segment"] for message in found] == sorted(
            {message["segment"] for message in found}
        )
        starts = [message["start_ms"] for message in found]
        assert abs(starts[1] - starts[0] - (1.3 + SPEECH_S) * 1000) < 100
        ended = next(message for message in self.messages if message["type"] == "ended")
        assert (ended["audio_ms"], ended["lost_ms"]) == (round((1.3 + SPEECH_S) * 2000), 0)


def test_loss_makes_it_late_and_nothing_else(direct: tuple[Line, Daemon], recording: Path) -> None:
    line, daemon = direct
    line.lose(0.1)
    try:
        client = Client(line, daemon, recording)
        client.rest()
        client.assert_whole()
    finally:
        line.lose(0)


def test_a_line_too_narrow_for_the_sound_makes_it_late_and_nothing_else(
    direct: tuple[Line, Daemon], recording: Path
) -> None:
    line, daemon = direct
    line.narrow("200kbit")  # the sound has 256
    try:
        client = Client(line, daemon, recording)
        client.rest()
        client.assert_whole()
    finally:
        line.narrow(None)


def test_a_connection_that_is_reset_is_carried_on(
    direct: tuple[Line, Daemon], recording: Path
) -> None:
    line, daemon = direct
    client = Client(line, daemon, recording)
    parked, resumed = (daemon.log.count(f"stream {word}") for word in ("parked", "resumed"))
    client.read("ready")
    line.reset_connections(daemon.addresses()["port"])
    try:
        daemon.wait_for("a parked stream", lambda: daemon.log.count("stream parked") > parked)
    finally:
        line.forget_resets()
    _, complaints = client.rest()
    assert "resuming in" in complaints
    assert daemon.log.count("stream resumed") > resumed
    client.assert_whole()


def test_a_cable_pulled_out_in_mid_word_for_longer_than_tcp_is_given_is_survived(
    direct: tuple[Line, Daemon], recording: Path
) -> None:
    line, daemon = direct
    client = Client(line, daemon, recording)
    parked = daemon.log.count("stream parked")
    client.read("speech_started")
    line.set_up(is_up=False)
    try:
        daemon.wait_for("a parked stream", lambda: daemon.log.count("stream parked") > parked)
    finally:
        line.set_up(is_up=True)
    client.rest()
    client.assert_whole()


def test_a_peer_that_vanishes_is_noticed_by_the_kernel(direct: tuple[Line, Daemon]) -> None:
    line, daemon = direct
    port = daemon.addresses()["port"]
    closed = daemon.log.count("stream closed")
    program = (
        "import asyncio, websockets\n"
        "async def main():\n"
        f"    async with websockets.connect('ws://{NEAR}:{port}/v1/stream') as client:\n"
        '        await client.send(\'{"type":"start","v":1,"audio":{}}\')\n'
        "        print(await client.recv(), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    silent = subprocess.Popen(
        [*line.inside(line.far), sys.executable, "-c", program], stdout=subprocess.PIPE
    )
    try:
        assert silent.stdout is not None
        assert b"ready" in silent.stdout.readline()
        line.set_up(is_up=False)  # no FIN, no RST, and neither side sends anything
        daemon.wait_for("the end", lambda: daemon.log.count("stream closed") > closed)
        assert "client refused" not in daemon.log.split("stream opened")[-1]  # not by time-out
    finally:
        line.set_up(is_up=True)
        silent.kill()
        silent.wait()
        if silent.stdout is not None:
            silent.stdout.close()


def test_delay_and_jitter_make_it_late_and_nothing_else(tmp_path: Path, recording: Path) -> None:
    network.require()
    with network.slow_line(0.08, 0.02) as line, daemon_on(line, tmp_path) as daemon:
        client = Client(line, daemon, recording)
        client.rest()
        client.assert_whole()
