"""A microphone that comes back: one endless run of events over any number of captures.

A device may be absent, busy, unplugged, or its sound server may die or hang. Each ends one
capture; the microphone waits, opens the next and puts the time in between on the sample clock as
lost frames, so that positions keep meaning the time since the start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.drift import DriftMeter
from voiced.audio.errors import DeviceLost, MicrophoneError
from voiced.audio.frames import StreamFormat
from voiced.audio.sources.portaudio import (
    Capture,
    CapturedBlock,
    Detached,
    InputDevice,
    forget_at_exit,
    list_devices,
)

__all__ = [
    "Block",
    "Drift",
    "InputDevice",
    "LossLedger",
    "Lost",
    "LostBy",
    "Microphone",
    "MicrophoneEvent",
    "Opened",
    "Recovery",
    "Silent",
    "Unavailable",
    "list_devices",
]

_STEP_S = 0.25
"""How often lost time is reported while the device is away, so that an open segment ends soon."""


class LostBy(StrEnum):
    """Why frames are missing."""

    OVERFLOW = "overflow"
    """PortAudio threw them away: this machine was too slow for the sound device."""
    SLOW_READER = "slow_reader"
    """The hand-over threw them away: whoever reads the events was too slow."""
    AWAY = "away"
    """The device did not record."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A capture began; blocks that follow have this format, which may differ from before."""

    device: str
    audio: StreamFormat


@dataclass(frozen=True, slots=True)
class Block:
    """Recorded sound."""

    pcm: bytes
    """Interleaved as `Opened.audio` says."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Frames missing here, at the rate of the latest `Opened`."""

    frames: int
    cause: LostBy


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The device cannot be used; it is tried again after `retry_s`."""

    error: MicrophoneError
    retry_s: float


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing but digital zeros for so long: a muted or a dummy device."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How fast the device's clock runs, measured since it was opened; every few seconds."""

    ppm: float
    """Millionths by which it is faster than this machine's."""


MicrophoneEvent = Opened | Block | Lost | Unavailable | Silent | Drift


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long the microphone waits for what."""

    first_block_s: float = 3.0
    """From opening to the first block; Bluetooth takes its time."""
    watchdog_s: float = 0.5
    """Without a block for this long, or for ten blocks, the sound server hangs."""
    call_s: float = 2.0
    """An open or close that takes longer hangs; it is left behind in its thread."""
    first_retry_s: float = 0.25
    max_retry_s: float = 5.0
    """The wait doubles from the first to this."""
    silent_s: float = 10.0
    """Zeros for this long are reported."""


class LossLedger:
    """Finds the frames missing between blocks, within a capture and between captures. Pure.

    Within a capture frames are counted; where nobody can count them (PortAudio's overflow, a
    device that is away) the monotonic clock measures them.
    """

    def __init__(self) -> None:
        self._rate_hz = 0
        self._next_frame = 0
        self._accounted_ns: int | None = None
        """Everything up to this time was either received or reported as lost."""
        self._is_fresh = False

    def opened(self, rate_hz: int) -> None:
        """A new capture starts to count at 0."""
        self._rate_hz, self._next_frame, self._is_fresh = rate_hz, 0, True

    def received(self, block: CapturedBlock, frames: int) -> tuple[int, LostBy]:
        """Return how many frames are missing right before a block of `frames`, and why."""
        skipped = block.first_frame - self._next_frame
        self._next_frame = block.first_frame + frames
        since, self._accounted_ns = self._accounted_ns, block.arrived_ns
        elapsed = 0 if since is None else self._frames(block.arrived_ns - since)
        is_fresh, self._is_fresh = self._is_fresh, False
        if is_fresh and since is not None:
            return max(0, elapsed - frames), LostBy.AWAY
        if block.overflowed:
            # How much is unknown: what the clock says, and one block at least.
            return max(frames, skipped, elapsed - frames), LostBy.OVERFLOW
        return skipped, LostBy.SLOW_READER

    def away(self, now_ns: int) -> int:
        """Return the frames that went by without a capture since the last call."""
        if self._accounted_ns is None:
            return 0
        frames = self._frames(now_ns - self._accounted_ns)
        self._accounted_ns += frames * 1_000_000_000 // self._rate_hz
        return frames

    def _frames(self, duration_ns: int) -> int:
        return max(0, duration_ns) * self._rate_hz // 1_000_000_000


class Microphone:
    """The local sound device as a source of events.

    One thread iterates `events`; any thread may call `stop`.

    Args:
        device: Number, name or a part of a name; None for the default device.
        rate_hz: None takes 16 kHz where the device does, else the device's own rate.
        channels: None takes 1 where the device does, else all it has.
        block_ms: Length of a block. Shorter ones cost more: 25, 16, 12 ms of a core per second at
            20, 30, 40 ms with the daemon's crossing (PulseAudio, shared virtual machine); 10 and
            7 of the first two are PortAudio's own.
        buffer_ms: How far the reader may fall behind before the oldest block is lost.
        recovery: Deadlines and waits.
        clock: Measures lost time.
    """

    def __init__(
        self,
        device: str | int | None = None,
        *,
        rate_hz: int | None = None,
        channels: int | None = None,
        block_ms: int = 30,
        buffer_ms: int = 2_000,
        recovery: Recovery | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._device = device
        self._rate_hz, self._channels = rate_hz, channels
        self._block_ms, self._buffer_ms = block_ms, buffer_ms
        self._recovery = recovery or Recovery()
        self._clock = clock or SystemClock()
        self._ledger = LossLedger()
        self._capture: Capture | None = None
        self._opening: Detached[Capture] | None = None
        self._is_first = True
        self._stopping = threading.Event()
        self._wake = threading.Event()

    def stop(self) -> None:
        """End `events` soon; blocks not yet read are lost."""
        self._stopping.set()
        self._wake.set()
        if capture := self._capture:
            capture.blocks.close()

    def events(self) -> Generator[MicrophoneEvent, None, None]:
        """Yield what happens until `stop`. Never raises for the device's sake.

        Iterated once; again only after a fault of ours ended it: lost time is counted on.
        """
        retry_s = self._recovery.first_retry_s
        try:
            while not self._stopping.is_set():
                try:
                    capture = yield from self._open()
                except MicrophoneError as error:
                    yield Unavailable(error, retry_s)
                    yield from self._wait(retry_s)
                    retry_s = min(2 * retry_s, self._recovery.max_retry_s)
                    continue
                if capture is None:
                    return
                self._capture = capture
                if self._stopping.is_set():  # `stop` may have looked for it just before
                    return
                self._ledger.opened(capture.audio.rate_hz)
                yield Opened(capture.device.name, capture.audio)
                lost, has_recorded = yield from self._read(capture)
                if lost is None:
                    return
                if has_recorded:
                    retry_s = self._recovery.first_retry_s
                yield Unavailable(lost, retry_s)
                self._capture = None
                yield from self._wait(self._recovery.call_s, self._detach(capture))
                yield from self._wait(retry_s)
                retry_s = min(2 * retry_s, self._recovery.max_retry_s)
        finally:
            self._dispose()

    def _open(self) -> Generator[Lost, None, Capture | None]:
        """Wait for the next capture; None when asked to stop."""
        if self._opening is None:
            # Device numbers and the list itself change while a device is away.
            refresh, self._is_first = not self._is_first, False
            self._opening = Detached(
                lambda: Capture.open(
                    self._device,
                    rate_hz=self._rate_hz,
                    channels=self._channels,
                    block_ms=self._block_ms,
                    buffer_ms=self._buffer_ms,
                    refresh=refresh,
                    clock=self._clock,
                ),
                on_done=self._wake.set,
                name="microphone-open",
            )
        opening = self._opening
        yield from self._wait(self._recovery.call_s, opening)
        if self._stopping.is_set():
            return None
        if not opening.done:
            # Kept: two calls that hang are no better than one, and it may still succeed.
            name = self._device if self._device is not None else "default"
            raise MicrophoneError(
                f"opening input device {name!r} hangs; check that the sound server answers"
            )
        self._opening = None
        return opening.result()

    def _read(
        self, capture: Capture
    ) -> Generator[MicrophoneEvent, None, tuple[DeviceLost | None, bool]]:
        """Yield a capture's blocks; return why it ended (None: `stop`), and if it had any."""
        watchdog_s = max(self._recovery.watchdog_s, 10 * self._block_ms / 1000)
        timeout_s = max(self._recovery.first_block_s, watchdog_s)
        frame_bytes = 2 * capture.audio.channels
        zeros = ZeroRun(capture.audio.rate_hz, self._recovery.silent_s)
        drift = DriftMeter(capture.audio.rate_hz)
        has_recorded = False
        while True:
            block = capture.blocks.get(timeout_s=timeout_s)
            if self._stopping.is_set():
                return None, has_recorded
            if block is None:
                reason = (
                    "the sound system ended the recording"
                    if capture.blocks.closed
                    else f"nothing came for {timeout_s:g} s, the sound server may hang"
                )
                return DeviceLost(capture.device.name, reason), has_recorded
            timeout_s, has_recorded = watchdog_s, True
            frames = len(block.pcm) // frame_bytes
            lost, cause = self._ledger.received(block, frames)
            if lost:
                yield Lost(lost, cause)
            yield Block(block.pcm)
            if zeros.is_reached(block.pcm, frames):
                yield Silent(self._recovery.silent_s)
            if block.overflowed:  # nobody knows how many frames are missing: begin anew
                drift = DriftMeter(capture.audio.rate_hz)
            is_news = drift.note(block.first_frame + frames, block.arrived_ns)
            if is_news and (ppm := drift.ppm) is not None:
                yield Drift(ppm)

    def _wait(
        self, timeout_s: float, call: Detached[Capture] | Detached[None] | None = None
    ) -> Iterator[Lost]:
        """Wait for a call, a time or `stop`, and report the time that is lost meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not self._stopping.is_set() and not (call and call.done):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            self._wake.wait(min(left_s, _STEP_S))
            self._wake.clear()
            if frames := self._ledger.away(self._clock.monotonic_ns()):
                yield Lost(frames, LostBy.AWAY)

    def _detach(self, capture: Capture) -> Detached[None]:
        return Detached(capture.close, on_done=self._wake.set, name="microphone-close")

    def _dispose(self) -> None:
        """Free the device, or leave a thread that hangs behind."""
        pending = False
        if self._opening is not None:
            pending = not self._opening.done
            self._opening.abandon(self._detach)
            self._opening = None
        if self._capture is not None:
            closed = threading.Event()
            Detached(self._capture.close, on_done=closed.set, name="microphone-close")
            self._capture = None
            pending |= not closed.wait(self._recovery.call_s)
        if pending:
            forget_at_exit()


class ZeroRun:
    """Notices a long run of digital zeros, once per run. Pure."""

    def __init__(self, rate_hz: int, limit_s: float) -> None:
        self._limit = round(rate_hz * limit_s)
        self._run = 0

    def is_reached(self, pcm: bytes, frames: int) -> bool:
        """Take a block; true when the run reaches the limit with it."""
        if pcm.count(0) != len(pcm):
            self._run = 0
            return False
        before, self._run = self._run, self._run + frames
        return before < self._limit <= self._run
