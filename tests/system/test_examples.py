"""The example clients as a user starts them, against the real daemon with the fake recogniser."""

from __future__ import annotations

import selectors
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.system.running_daemon import DEADLINE_S, FAKE, Daemon, launch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that is ready, and at the end exits cleanly."""
    running = launch(tmp_path_factory.mktemp("daemon"), *FAKE)
    try:
        running.wait_ready()
        yield running
        running.process.terminate()
        assert running.wait_exit() == 0, running.log
    finally:
        running.kill()


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


def test_the_python_client_prints_the_final(daemon: Daemon, recording: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "client.py")]
    assert_heard_one(run_client(command, recording, daemon.url))


def test_the_javascript_client_prints_the_final(daemon: Daemon, recording: Path) -> None:
    command = [*node_command(), str(EXAMPLES / "client.js")]
    assert_heard_one(run_client(command, recording, daemon.url))


def test_the_clients_say_what_is_wrong_and_fail(daemon: Daemon, tmp_path: Path) -> None:
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


def test_the_subscriber_prints_the_final(daemon: Daemon, recording: Path) -> None:
    client = [sys.executable, str(EXAMPLES / "client.py")]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "subscriber.py"), daemon.addresses()["bus"]],
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
