"""PortAudio's edge: which input devices there are, and one open stream of one of them.

PortAudio reports nothing when a sound server hangs, and its calls then hang as well; every call
that may is made in a thread of its own that the caller can stop waiting for (`Detached`).
"""

from __future__ import annotations

import atexit
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.errors import DeviceBusy, DeviceNotFound, MicrophoneError, PortAudioMissing
from voiced.audio.frames import RATE_HZ, Encoding, StreamFormat
from voiced.audio.handover import DropOldest

T = TypeVar("T")

# Codes of portaudio.h, 19.7.
_INVALID_CHANNELS = -9998
_INVALID_RATE = -9997
_DEVICE_UNAVAILABLE = -9985


_CARD = re.compile(r"\s*\(hw:\d+,\d+\)$")
"""How PortAudio ends the names of ALSA's devices."""


@dataclass(frozen=True, slots=True)
class InputDevice:
    """One device that can record."""

    index: int
    """PortAudio's number; another after devices came or went."""
    name: str
    host_api: str
    channels: int
    rate_hz: int
    """The device's own rate; most take others too."""
    is_default: bool


@dataclass(frozen=True, slots=True)
class CapturedBlock:
    """What one callback brought."""

    first_frame: int
    """Counted from the opening of the capture."""
    arrived_ns: int
    """Monotonic time of the callback."""
    pcm: bytes
    overflowed: bool
    """PortAudio lost an unknown amount before this block."""


def load() -> Any:
    """Import sounddevice, which loads and initialises the system's library.

    Raises:
        PortAudioMissing: There is no such library, or no such Python package.
    """
    try:
        import sounddevice
    except (OSError, ImportError) as error:
        raise PortAudioMissing(str(error)) from error
    return sounddevice


def list_devices(*, timeout_s: float = 10.0) -> tuple[InputDevice, ...]:
    """Return the devices that can record, as PortAudio saw them when it was initialised.

    Raises:
        PortAudioMissing: The system's library is not installed.
        MicrophoneError: The sound system does not answer.
    """
    answered = threading.Event()
    listing = Detached(lambda: _devices(load()), on_done=answered.set, name="microphone-list")
    if not answered.wait(timeout_s):
        forget_at_exit()
        raise MicrophoneError(
            f"the sound system does not answer within {timeout_s:g} s; check the sound server"
        )
    return listing.result()


def _devices(sd: Any) -> tuple[InputDevice, ...]:
    default = sd.default.device[0]
    apis = [api["name"] for api in sd.query_hostapis()]
    return tuple(
        InputDevice(
            index=index,
            name=device["name"],
            host_api=apis[device["hostapi"]],
            channels=device["max_input_channels"],
            rate_hz=round(device["default_samplerate"]),
            is_default=index == default,
        )
        for index, device in enumerate(sd.query_devices())
        if device["max_input_channels"] > 0
    )


def find_device(wanted: str | int | None, devices: Sequence[InputDevice]) -> InputDevice:
    """Look a setting up: a number, a name, a part of only one name, or None for the default.

    ALSA's card number is no part of the name: a device that is plugged in again may get another.

    Raises:
        DeviceNotFound: Nothing matches, or more than one device.
    """
    names = tuple(device.name for device in devices)
    if wanted is None:
        found = [device for device in devices if device.is_default]
    elif isinstance(wanted, int):
        found = [device for device in devices if device.index == wanted]
    else:
        folded = wanted.casefold()
        found = [device for device in devices if device.name.casefold() == folded]
        found = found or [device for device in devices if folded in device.name.casefold()]
        stem = _CARD.sub("", folded)
        if not found and stem != folded:
            found = [d for d in devices if _CARD.sub("", d.name.casefold()) == stem]
    if not found:
        raise DeviceNotFound(wanted, names)
    if len({device.name for device in found}) > 1:
        raise DeviceNotFound(wanted, names, matches=tuple(device.name for device in found))
    return found[0]


class Detached(Generic[T]):
    """A call that runs in a thread of its own, because it may never return."""

    def __init__(self, call: Callable[[], T], *, on_done: Callable[[], None], name: str) -> None:
        self._call = call
        self._on_done = on_done
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._abandon: Callable[[T], object] | None = None
        self._lock = threading.Lock()
        # A daemon thread: a call that never returns must not keep the process alive.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        value, failure = None, None
        try:
            value = self._call()
        except BaseException as error:  # handed to whoever asks for the result
            failure = error
        with self._lock:
            self._outcome = value, failure
            abandon = self._abandon
        if abandon is not None and value is not None:
            abandon(value)
        self._on_done()

    @property
    def done(self) -> bool:
        """Whether `result` can be asked for."""
        return self._outcome is not None

    def result(self) -> T:
        """Return or raise what the call did; only once `done`."""
        if self._outcome is None:
            raise RuntimeError("the call still runs")
        value, failure = self._outcome
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]  # None only where T allows it

    def abandon(self, dispose: Callable[[T], object]) -> None:
        """Give the call up; what it may still return goes to `dispose`."""
        with self._lock:
            if self._outcome is None:
                self._abandon = dispose
                return
        value, _ = self._outcome
        if value is not None:
            dispose(value)


class _Library:
    """Counts what is open: re-initialising PortAudio would end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    def refresh(self, sd: Any) -> None:
        """Make PortAudio look for devices again, unless a stream is open or hangs."""
        with self._lock:
            if self._open == 0:
                sd._terminate()
                sd._initialize()

    def opened(self) -> None:
        with self._lock:
            self._open += 1

    def closed(self) -> None:
        with self._lock:
            self._open -= 1


_library = _Library()


class Capture:
    """One open input stream, from opening to its first failure.

    The PortAudio thread only copies blocks into a bounded hand-over; one reader takes them out.
    """

    def __init__(
        self,
        stream: Any,
        device: InputDevice,
        audio: StreamFormat,
        blocks: DropOldest[CapturedBlock],
    ) -> None:
        self._stream = stream
        self._closing = False
        self._lock = threading.Lock()
        self.device = device
        self.audio = audio
        """Format of the blocks' PCM."""
        self.blocks = blocks
        """Closed as soon as PortAudio says that the stream is over."""

    @classmethod
    def open(
        cls,
        wanted: str | int | None,
        *,
        rate_hz: int | None,
        channels: int | None,
        block_ms: int,
        buffer_ms: int,
        refresh: bool,
        clock: Clock | None = None,
    ) -> Capture:
        """Open a device and start it. May hang with the sound server.

        Args:
            wanted: Number, name, part of a name; None for the default device.
            rate_hz: None takes 16 kHz where the device does, else the device's own rate.
            channels: None takes 1 where the device does, else all it has.
            block_ms: Length of a block.
            buffer_ms: How far a slow reader may fall behind before the oldest block is lost.
            refresh: Let PortAudio look for devices anew, if nothing of it is in use.
            clock: Gives the arrival times.

        Raises:
            PortAudioMissing: The system's library is not installed.
            DeviceNotFound: No such input device.
            DeviceBusy: Another program holds it.
            MicrophoneError: Anything else, such as a rate that the device refuses.
        """
        sd = load()
        if refresh:
            try:
                _library.refresh(sd)
            except sd.PortAudioError as error:
                raise MicrophoneError(f"PortAudio does not start: {error}") from error
        device = find_device(wanted, _devices(sd))
        formats = [
            StreamFormat(Encoding.S16, rate, count)
            for count in ([channels] if channels else dict.fromkeys((1, min(device.channels, 32))))
            for rate in ([rate_hz] if rate_hz else dict.fromkeys((RATE_HZ, device.rate_hz)))
        ]
        for audio in formats:
            try:
                return cls._start(sd, device, audio, block_ms, buffer_ms, clock or SystemClock())
            except sd.PortAudioError as error:
                if _code(error) not in (_INVALID_RATE, _INVALID_CHANNELS):
                    raise _explained(device, error) from error
        tried = ", ".join(f"{audio.rate_hz} Hz x {audio.channels}" for audio in formats)
        raise MicrophoneError(
            f"input device {device.name!r} refuses {tried} (rate x channels); its own are "
            f"{device.rate_hz} Hz x {device.channels}"
        )

    @classmethod
    def _start(
        cls,
        sd: Any,
        device: InputDevice,
        audio: StreamFormat,
        block_ms: int,
        buffer_ms: int,
        clock: Clock,
    ) -> Capture:
        blocks: DropOldest[CapturedBlock] = DropOldest(max(2, buffer_ms // block_ms), clock=clock)
        next_frame = 0

        def take(data: Any, frames: int, _time: Any, status: Any) -> None:
            nonlocal next_frame
            blocks.put(
                CapturedBlock(
                    next_frame, clock.monotonic_ns(), bytes(data), bool(status.input_overflow)
                )
            )
            next_frame += frames

        stream = sd.RawInputStream(
            device=device.index,
            samplerate=audio.rate_hz,
            channels=audio.channels,
            dtype="int16",
            blocksize=audio.rate_hz * block_ms // 1000,
            latency="low",  # a larger one delivers bursts of blocks
            callback=take,
            finished_callback=blocks.close,
        )
        _library.opened()
        capture = cls(stream, device, audio, blocks)
        try:
            stream.start()
        except sd.PortAudioError:
            capture.close()
            raise
        return capture

    def close(self) -> None:
        """Stop and free the stream; may hang with the sound server. Twice is harmless."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self.blocks.close()
        self._stream.abort()
        self._stream.close()
        _library.closed()


def forget_at_exit() -> None:
    """Keep the interpreter's exit from waiting for a call that hangs.

    sounddevice terminates PortAudio at exit, and that waits for every open stream.
    """
    handler = getattr(sys.modules.get("sounddevice"), "_exit_handler", None)
    if handler is not None:
        atexit.unregister(handler)


def _code(error: Exception) -> int | None:
    return error.args[1] if len(error.args) > 1 else None


def _explained(device: InputDevice, error: Exception) -> MicrophoneError:
    code = _code(error)
    if code == _DEVICE_UNAVAILABLE or "busy" in str(error).casefold():  # ALSA: EBUSY
        return DeviceBusy(device.name, str(error))
    return MicrophoneError(f"input device {device.name!r} cannot be opened: {error}")
