"""The example clients as a user starts them, against the real daemon with the fake recogniser."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RATE_HZ = 16_000
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the daemon under test listens."""

    url: str
    bus: str


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """`voiced run` on free ports, ready."""
    folder = tmp_path_factory.mktemp("daemon")
    address_file, log_file = folder / "addresses", folder / "log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICED_")}
    command = [
        *(sys.executable, "-m", "voiced.daemon.cli", "run", "--model", "fake"),
        *("--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0"),
        *("--set", "vad.kind=webrtc", "--address-file", str(address_file)),
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**clean, "XDG_CONFIG_HOME": str(folder)},
        )
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not (address_file.exists() and is_ready(address_file)):
            text = log_file.read_text(encoding="utf-8")
            assert process.poll() is None, f"daemon ended:\n{text}"
            assert time.monotonic() < deadline_s, f"daemon is not ready:\n{text}"
            time.sleep(0.02)  # polling a process; the deadline is what counts
        where = json.loads(address_file.read_text(encoding="utf-8"))
        yield Addresses(f"ws://{where['host']}:{where['port']}/v1/stream", where["bus"])
        process.terminate()
        assert process.wait(DEADLINE_S) == 0, log_file.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def is_ready(address_file: Path) -> bool:
    where = json.loads(address_file.read_text(encoding="utf-8"))
    url = f"http://{where['host']}:{where['port']}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:  # 503 until the engine is warm
        error.close()
        return False


@pytest.fixture(params=[(8_000, 1), (44_100, 2)], ids=["8kHz-mono", "44.1kHz-stereo"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One burst of seeded noise between silences: webrtcvad hears speech, the fake says "one"."""
    rate_hz, channels = request.param
    noise = np.random.default_rng(7).normal(0, 6_000, rate_hz).clip(-32_000, 32_000)
    mono = np.concatenate([np.zeros(rate_hz // 2), noise, np.zeros(rate_hz * 3 // 2)])
    path = tmp_path / "burst.wav"
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(2)
        wav.setframerate(rate_hz)
        wav.writeframes(np.repeat(mono.astype("<i2"), channels).tobytes())
    return path


def node_command() -> list[str]:
    """A Node.js that has a global WebSocket: by itself from 22 on, by a flag from 20.10 on."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node.js on PATH")
    for flags in ([], ["--experimental-websocket"]):
        command = [node, *flags]
        found = subprocess.run(
            [*command, "-p", "typeof WebSocket"], capture_output=True, text=True, timeout=DEADLINE_S
        )
        if found.stdout.strip() == "function":
            return command
    pytest.skip(f"{node} has no WebSocket; Node.js 20.10 or newer has")


def run_client(command: list[str], recording: Path, url: str) -> list[str]:
    """Run an example to its end; return its lines."""
    result = subprocess.run(
        [*command, str(recording), url], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert result.returncode == 0, result.stderr
    return [line.strip() for line in result.stdout.splitlines()]


def assert_heard_one(lines: list[str]) -> None:
    assert lines[0] == "ready"
    assert lines[-1] == "ended"
    assert [line for line in lines if line.startswith("final")] == ["final one"]


def test_the_python_client_prints_the_final(daemon: Addresses, recording: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "client.py")]
    assert_heard_one(run_client(command, recording, daemon.url))


def test_the_javascript_client_prints_the_final(daemon: Addresses, recording: Path) -> None:
    command = [*node_command(), str(EXAMPLES / "client.js")]
    assert_heard_one(run_client(command, recording, daemon.url))


def test_the_clients_say_what_is_wrong_and_fail(daemon: Addresses, tmp_path: Path) -> None:
    too_slow = tmp_path / "too-slow.wav"
    with wave.open(str(too_slow), "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(1_000)
        wav.writeframes(bytes(2_000))
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "client.py"), str(too_slow), daemon.url],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert result.returncode == 1
    assert result.stdout.startswith("error ")
    assert "rate_hz" in result.stdout


def test_the_subscriber_prints_the_final(daemon: Addresses, recording: Path) -> None:
    client = [sys.executable, str(EXAMPLES / "client.py")]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "subscriber.py"), daemon.bus],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            deadline_s = time.monotonic() + DEADLINE_S
            # Who subscribes late gets nothing of what was before: speak until it has joined.
            while time.monotonic() < deadline_s:
                run_client(client, recording, daemon.url)
                if selector.select(timeout=0.5):
                    break
            else:
                raise AssertionError(f"the subscriber heard nothing in {DEADLINE_S} s")
        assert process.stdout.readline().split()[1:] == ["en", "one"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("name", ["client.py", "client.js", "subscriber.py"])
def test_the_readme_shows_the_example_as_it_is(name: str) -> None:
    language = {"py": "python", "js": "javascript"}[name.rpartition(".")[2]]
    block = f"```{language}\n{(EXAMPLES / name).read_text(encoding='utf-8')}```\n"
    assert block in (ROOT / "README.md").read_text(encoding="utf-8")
