"""Stands in for the sounddevice module: a sound system whose faults a test provokes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

INVALID_RATE = -9997
INVALID_CHANNELS = -9998
UNAVAILABLE = -9985
HOST_ERROR = -9999


class PortAudioError(Exception):
    """As sounddevice's: text, code."""


class FakeStream:
    """One opened stream; the test is the sound card."""

    def __init__(self, system: FakeSoundDevice, **settings: Any) -> None:
        self.settings = settings
        self.is_closed = threading.Event()
        self._system = system

    def deliver(self, pcm: bytes | None = None, *, overflow: bool = False) -> None:
        """Call back with one block, of ones if not told."""
        frames = self.settings["blocksize"]
        data = b"\x01\x00" * frames * self.settings["channels"] if pcm is None else pcm
        self.settings["callback"](data, frames, None, SimpleNamespace(input_overflow=overflow))

    def die(self) -> None:
        """End as when the sound server goes away."""
        self.settings["finished_callback"]()

    def start(self) -> None:
        self._system.on_start(self)

    def abort(self) -> None:
        self._system.may_abort.wait(60)

    def close(self) -> None:
        self.is_closed.set()


class FakeSoundDevice:
    """The module. Streams do what `on_start` makes them do when they start."""

    PortAudioError = PortAudioError

    def __init__(self, *names: str, channels: int = 2, rate_hz: int = 48_000) -> None:
        self.names = list(names)
        self.channels, self.rate_hz = channels, rate_hz
        self.default = SimpleNamespace(device=[0 if names else -1, -1])
        self.on_start: Callable[[FakeStream], None] = FakeStream.deliver
        self.refuse: Callable[[dict[str, Any]], PortAudioError | None] = lambda _: None
        self.streams: list[FakeStream] = []
        self.has_opened = threading.Event()
        self.may_list = threading.Event()
        self.may_open = threading.Event()
        self.may_abort = threading.Event()
        self.may_list.set()
        self.may_open.set()
        self.may_abort.set()
        self.initialised = 1
        self.refreshes = 0

    def query_hostapis(self) -> tuple[dict[str, Any], ...]:
        return ({"name": "ALSA"},)

    def query_devices(self) -> Iterator[dict[str, Any]]:
        self.may_list.wait(60)
        inputs = [(name, self.channels) for name in self.names]
        for name, channels in [*inputs, ("loudspeaker", 0)]:
            yield {
                "name": name,
                "hostapi": 0,
                "max_input_channels": channels,
                "default_samplerate": float(self.rate_hz),
            }

    def RawInputStream(self, **settings: Any) -> FakeStream:
        assert self.initialised
        self.may_open.wait(60)
        if error := self.refuse(settings):
            raise error
        self.streams.append(FakeStream(self, **settings))
        self.has_opened.set()
        return self.streams[-1]

    def _initialize(self) -> None:
        self.initialised += 1

    def _terminate(self) -> None:
        assert all(stream.is_closed.is_set() for stream in self.streams)
        self.initialised -= 1
        self.refreshes += 1

    def _exit_handler(self) -> None:
        """Registered at exit by the real module."""
