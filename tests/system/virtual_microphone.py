"""A microphone without hardware: a private PulseAudio whose null sink is recorded.

What is played into the sink arrives bit for bit at whoever records its monitor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests import needs

from voiced.audio.errors import PortAudioMissing
from voiced.audio.sources import portaudio

RATE_HZ = 16_000
DEVICE = "pulse"
"""Name under which PortAudio shows the server."""
DEADLINE_S = 60.0


class VirtualMicrophone:
    """One private server; `environment` makes a process use it."""

    def __init__(self, runtime_dir: Path) -> None:
        self.environment = {
            "XDG_RUNTIME_DIR": str(runtime_dir),
            "HOME": str(runtime_dir),
            "PULSE_SERVER": f"unix:{runtime_dir}/pulse/native",
        }
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._server = subprocess.Popen(
            [
                "pulseaudio",
                "-n",
                "--daemonize=no",
                "--exit-idle-time=-1",
                "--log-target=stderr",
                "--log-level=error",
                "-L",
                "module-native-protocol-unix",
                "-L",
                # norewinds: otherwise the sink scrambles what is recorded from it
                f"module-null-sink sink_name=vmic rate={RATE_HZ} channels=1 norewinds=1",
            ],
            env=os.environ | self.environment,
            stderr=subprocess.DEVNULL,  # complains about being root
        )
        deadline = time.monotonic() + DEADLINE_S
        while subprocess.run(
            ["pactl", "info"], env=os.environ | self.environment, capture_output=True, check=False
        ).returncode:
            assert self._server.poll() is None, "pulseaudio ended at once"
            assert time.monotonic() < deadline, "pulseaudio does not answer"

    def control(self, *words: str) -> str:
        """Run `pactl`."""
        done = subprocess.run(
            ["pactl", *words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
        return done.stdout.strip()

    def plug(self, name: str, *, rate_hz: int = RATE_HZ, channels: int = 1) -> str:
        """Add a device that can be played into; returns its module."""
        options = (f"rate={rate_hz}", f"channels={channels}", "norewinds=1")
        return self.control("load-module", "module-null-sink", f"sink_name={name}", *options)

    def unplug(self, name: str) -> None:
        """Take a device away."""
        for line in self.control("list", "short", "modules").splitlines():
            number, _, module = line.partition("\t")
            if f"sink_name={name} " in module:
                self.control("unload-module", number)

    def kill(self) -> None:
        """Take the device away."""
        self._signal(signal.SIGKILL)
        assert self._server is not None
        self._server.wait(DEADLINE_S)

    def hang(self) -> None:
        """Make the server answer nothing; nobody is told."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `hang`."""
        self._signal(signal.SIGCONT)

    def play(self, pcm: bytes, *, device: str = "vmic") -> subprocess.Popen[bytes]:
        """Play s16 mono PCM into the microphone, in real time; the caller waits for the player."""
        with tempfile.TemporaryFile() as file:
            file.write(pcm)
            file.seek(0)
            return subprocess.Popen(
                [
                    "paplay",
                    "--raw",
                    f"--rate={RATE_HZ}",
                    "--channels=1",
                    "--format=s16le",
                    f"--device={device}",
                ],
                env=os.environ | self.environment,
                stdin=file,
            )

    def close(self) -> None:
        """End the server."""
        if self._server is not None and self._server.poll() is None:
            self.resume()
            self._server.terminate()
            self._server.wait(DEADLINE_S)

    def _signal(self, number: signal.Signals) -> None:
        assert self._server is not None
        self._server.send_signal(number)


def missing() -> str | None:
    """Say what this machine lacks for a virtual microphone."""
    for program in ("pulseaudio", "pactl", "paplay"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not list(Path("/usr").glob("lib*/**/alsa-lib/libasound_module_pcm_pulse.so")):
        return "ALSA's pulse plugin (libasound2-plugins) is not installed"
    try:
        portaudio.load()
    except PortAudioMissing as error:
        return str(error)
    return None


def require() -> None:
    """Skip the test where there can be no virtual microphone; fail where there must be one."""
    if reason := missing():
        needs.missing("DEVICE", reason)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualMicrophone]:
    """Run a virtual microphone that this process and its children see."""
    require()
    with tempfile.TemporaryDirectory(prefix="vmic-") as folder:  # short: it holds a socket
        microphone = VirtualMicrophone(Path(folder))
        for name, value in microphone.environment.items():
            monkeypatch.setenv(name, value)
        microphone.start()
        try:
            yield microphone
        finally:
            microphone.close()
