"""The microphone against a real PortAudio and a real sound server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.system.running_daemon import FAKE, launch, noise, silence, subscribed
from tests.system.virtual_microphone import (
    DEADLINE_S,
    DEVICE,
    RATE_HZ,
    VirtualMicrophone,
    require,
    running,
)

from voiced.audio.errors import DeviceNotFound
from voiced.audio.sources.microphone import (
    Block,
    Lost,
    LostBy,
    Microphone,
    MicrophoneEvent,
    Opened,
    Recovery,
    Silent,
    Unavailable,
)

pytestmark = pytest.mark.device

PATIENT = Recovery(watchdog_s=10.0, first_block_s=30.0, call_s=30.0)
"""For tests where nothing fails: a busy machine is no hang."""


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualMicrophone]:
    with running(monkeypatch) as microphone:
        yield microphone


class Run:
    """Iterates a microphone's events and keeps them."""

    def __init__(self, microphone: Microphone) -> None:
        self.microphone = microphone
        self.seen: list[MicrophoneEvent] = []
        self._events = microphone.events()
        self._deadline = time.monotonic() + DEADLINE_S

    def until(self, is_enough: Callable[[MicrophoneEvent], bool]) -> MicrophoneEvent:
        for event in self._events:
            self.seen.append(event)
            if is_enough(event):
                return event
            assert time.monotonic() < self._deadline, f"came only to {self.seen[-3:]}"
        raise AssertionError("the microphone ended")

    def close(self) -> None:
        self.microphone.stop()
        assert [event for event in self._events if isinstance(event, Opened)] == []


@pytest.fixture
def run() -> Iterator[Callable[[Microphone], Run]]:
    runs: list[Run] = []

    def start(microphone: Microphone) -> Run:
        runs.append(Run(microphone))
        return runs[-1]

    yield start
    for started in runs:
        started.close()


def loudness(level: int) -> bytes:
    """Half a minute of one value."""
    return np.full(30 * RATE_HZ, level, np.int16).tobytes()


@contextlib.contextmanager
def playing(virtual: VirtualMicrophone, pcm: bytes, *, device: str = "vmic") -> Iterator[None]:
    """Sound while the block runs."""
    player = virtual.play(pcm, device=device)
    try:
        yield
    finally:
        player.kill()
        player.wait(DEADLINE_S)


def is_loud(event: MicrophoneEvent) -> bool:
    return isinstance(event, Block) and bool(np.frombuffer(event.pcm, np.int16).any())


def is_block(event: MicrophoneEvent) -> bool:
    return isinstance(event, Block)


def test_what_is_played_arrives_bit_for_bit(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    played = np.random.default_rng(7).integers(-20_000, 20_000, 3 * RATE_HZ).astype(np.int16)
    played[played == 0] = 1
    recording = run(Microphone(DEVICE, recovery=PATIENT))
    recording.until(is_block)
    recording.seen.clear()  # the first look may still see the devices of an earlier test
    player = virtual.play(played.tobytes())
    heard = 0

    def all_heard(event: MicrophoneEvent) -> bool:
        nonlocal heard
        if isinstance(event, Block):
            heard += np.count_nonzero(np.frombuffer(event.pcm, np.int16))
        return heard >= len(played)

    recording.until(all_heard)
    assert player.wait(DEADLINE_S) == 0
    recorded = np.frombuffer(
        b"".join(event.pcm for event in recording.seen if isinstance(event, Block)), np.int16
    )
    start = int(np.flatnonzero(recorded)[0])
    assert np.array_equal(recorded[start : start + len(played)], played)
    assert not [event for event in recording.seen if isinstance(event, Lost | Unavailable)]


def test_a_server_that_dies_and_returns_leaves_a_gap_of_its_absence(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    recording = run(Microphone(DEVICE, recovery=Recovery(first_block_s=30.0, watchdog_s=10.0)))
    recording.until(is_block)
    started = time.monotonic()
    recording.seen.clear()
    virtual.kill()
    recording.until(
        lambda event: isinstance(event, Unavailable) and isinstance(event.error, DeviceNotFound)
    )
    virtual.start()
    recording.until(lambda event: isinstance(event, Opened))
    recording.until(is_block)
    elapsed_s = time.monotonic() - started
    lost = sum(event.frames for event in recording.seen if isinstance(event, Lost))
    assert {event.cause for event in recording.seen if isinstance(event, Lost)} == {LostBy.AWAY}
    kept = sum(len(event.pcm) // 2 for event in recording.seen if isinstance(event, Block))
    assert (lost + kept) / RATE_HZ == pytest.approx(elapsed_s, abs=1.0)


def test_a_server_that_hangs_is_noticed_and_survived(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    recording = run(Microphone(DEVICE, recovery=Recovery(first_block_s=30.0, call_s=0.5)))
    recording.until(is_block)
    virtual.hang()
    lost = recording.until(lambda event: isinstance(event, Unavailable))
    assert isinstance(lost, Unavailable)
    assert "may hang" in str(lost.error)
    stuck = recording.until(lambda event: isinstance(event, Unavailable))
    assert isinstance(stuck, Unavailable)
    assert "opening input device 'pulse' hangs" in str(stuck.error)
    virtual.resume()
    recording.until(lambda event: isinstance(event, Opened))
    recording.until(is_block)


def test_a_device_that_is_unplugged_and_returns_with_another_rate_leaves_a_gap(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    recording = run(Microphone(DEVICE, recovery=Recovery(first_block_s=30.0, watchdog_s=10.0)))
    recording.until(is_block)
    recording.seen.clear()
    virtual.unplug("vmic")
    recording.until(lambda event: isinstance(event, Unavailable))
    virtual.plug("another", rate_hz=48_000, channels=2)
    recording.until(lambda event: isinstance(event, Opened))
    recording.until(is_block)
    assert sum(event.frames for event in recording.seen if isinstance(event, Lost)) > 0
    with playing(virtual, loudness(1_000), device="another"):
        recording.until(is_loud)


def test_another_default_device_is_followed(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    virtual.plug("second")
    virtual.control("set-default-source", "vmic.monitor")
    recording = run(Microphone(DEVICE, recovery=PATIENT))
    with playing(virtual, loudness(1_000), device="second"):
        recording.until(is_block)
        virtual.control("set-default-source", "second.monitor")
        recording.until(is_loud)
    assert not [event for event in recording.seen if isinstance(event, Unavailable)]


def test_a_device_that_gives_only_zeros_is_reported(
    virtual: VirtualMicrophone, run: Callable[[Microphone], Run]
) -> None:
    recovery = Recovery(first_block_s=30.0, watchdog_s=10.0, silent_s=0.3)
    recording = run(Microphone(DEVICE, recovery=recovery))
    recording.until(lambda event: isinstance(event, Silent))
    assert not [event for event in recording.seen if isinstance(event, Unavailable)]


def test_a_daemon_shows_how_long_its_microphone_was_away(
    virtual: VirtualMicrophone, tmp_path: Path
) -> None:
    daemon = launch(tmp_path, *FAKE, "--microphone", "--device", DEVICE)

    def is_waiting() -> bool:
        status = json.loads(daemon.get("/readyz")[1])["microphone"]
        return status["state"] == "waiting" and status["code"] is not None

    try:
        daemon.wait_ready()
        with subscribed(daemon) as bus:
            daemon.wait_for("the microphone", lambda: "microphone opened" in daemon.log)
            daemon.wait_for("sound", lambda: "stream opened stream=microphone" in daemon.log)
            virtual.kill()
            daemon.wait_for("the loss", lambda: "microphone: " in daemon.log)
            daemon.wait_for("the status", is_waiting)
            virtual.start()
            gap = bus.until(lambda message: message["type"] == "audio_gap")
            assert gap["stream"] == "microphone"
            assert gap["end_ms"] > gap["start_ms"]
            with playing(virtual, noise(2.0) + silence(1.5)):
                final = bus.until(lambda message: message["type"] == "final")
            assert final["start_ms"] >= gap["end_ms"]
            metrics = daemon.get("/metrics")[1].splitlines()
            assert [line for line in metrics if line.startswith("voiced_audio_gaps_total 1")]
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()


def test_the_devices_command_lists_the_virtual_microphone(virtual: VirtualMicrophone) -> None:
    code = "import sys; from voiced.daemon.commands.devices import devices; sys.exit(devices(True))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    assert DEVICE in {device["name"] for device in json.loads(done.stdout)}


def test_without_a_sound_server_the_devices_command_says_so() -> None:
    require()
    done = subprocess.run(
        [sys.executable, "-m", "voiced.daemon.cli", "devices"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={"PATH": "/usr/bin:/bin", "PULSE_SERVER": "unix:/nonexistent", "HOME": "/nonexistent"},
    )
    assert done.returncode == 3
    assert done.stderr.startswith("voiced: no input device: ")
