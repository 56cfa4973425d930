"""Runs the local microphone as a stream like any other.

One thread iterates the source, because opening and waiting for a device block; its events cross
to the event loop, which drives the stream's session. When the session is slow the crossing is
full, the thread waits, and the source's own hand-over drops and counts the oldest sound. A source
that raises is iterated anew after a pause.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.errors import MicrophoneError
from voiced.audio.frames import StreamFormat
from voiced.audio.sources.microphone import (
    Block,
    Drift,
    Lost,
    LostBy,
    MicrophoneEvent,
    Opened,
    Silent,
    Unavailable,
)

logger = logging.getLogger(__name__)

_CROSSING_EVENTS = 8
_LOG_EVERY_S = 60.0
_SESSION_RETRY_S = 5.0
_SOURCE_RETRY_S = 2.0
_WRONG_RATE_PPM = 1_000


class Source(Protocol):
    """Where events come from; `voiced.audio.sources.microphone.Microphone`."""

    def events(self) -> Generator[MicrophoneEvent, None, None]:
        """Yield until `stop`; iterated by one thread."""
        ...

    def stop(self) -> None:
        """End `events` soon; any thread."""
        ...


class Session(Protocol):
    """What the runner needs of a stream's session."""

    async def feed(self, data: bytes) -> None:
        """Take PCM in the announced format; waits when the engine is behind."""
        ...

    def lost(self, input_frames: int) -> None:
        """Note that so many frames are missing here."""
        ...

    async def finish(self) -> None:
        """End the stream: close the open segment and wait for its answer."""
        ...


class MicrophoneState(StrEnum):
    """What the microphone is doing."""

    OPENING = "opening"
    RUNNING = "running"
    WAITING = "waiting"
    """The device cannot be used, or its source broke; it is tried again."""
    FAILED = "failed"
    """The session refused or broke; a new one is tried again."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class MicrophoneStatus:
    """A view for readiness, status and metrics."""

    state: MicrophoneState = MicrophoneState.OPENING
    code: str | None = None
    """Stable code of the reason; None while all is well."""
    reason: str | None = None
    device: str | None = None
    audio: StreamFormat | None = None
    opened: int = 0
    """How often the device was opened; more than 1 means that it was lost."""
    overflows: int = 0
    lost_frames: int = 0
    is_silent: bool = False
    """Only digital zeros come: muted, or a dummy device."""
    drift_ppm: float | None = None
    """Millionths by which the device's clock is faster than this machine's; None: not known yet."""

    def facts(self) -> dict[str, str | int | bool | None]:
        """The same as plain values, for `/readyz`."""
        return {
            "state": self.state.value,
            "code": self.code,
            "reason": self.reason,
            "device": self.device,
            "opened": self.opened,
            "lost_frames": self.lost_frames,
            "is_silent": self.is_silent,
            "drift_ppm": None if self.drift_ppm is None else round(self.drift_ppm),
        }


@dataclass(frozen=True, slots=True)
class SourceBroke:
    """The source raised what it never should; it is iterated anew."""

    error: Exception


class WaitWhenFull:
    """A bounded crossing from one thread into an event loop; the thread waits when it is full."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = threading.Semaphore(limit)
        self._items: asyncio.Queue[MicrophoneEvent | SourceBroke | None] = asyncio.Queue()
        self._closed = False
        self.is_full = False
        """Whether the thread waits for the loop to take something."""

    def put(self, item: MicrophoneEvent | SourceBroke | None) -> bool:
        """Thread side: hand an item over; false when the loop wants no more."""
        self.is_full = True
        self._room.acquire()
        self.is_full = False
        if self._closed:
            self._room.release()  # for the next put
            return False
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        return True

    async def get(self) -> MicrophoneEvent | SourceBroke | None:
        """Loop side: take the next item."""
        item = await self._items.get()
        self._room.release()
        return item

    def close(self) -> None:
        """Loop side: take nothing more and let the thread go on."""
        self._closed = True
        self._room.release()


class MicrophoneRunner:
    """Feeds one microphone into one session at a time; never ends the daemon.

    Everything but the source's thread runs in the event loop of `run`.

    Args:
        source: Gives the events; used up by one `run`.
        open_session: Starts a session for a format. May raise: it is asked again later.
        clock: Spaces log lines and attempts.
        source_retry_s: Pause before a source that raised is iterated anew.
    """

    def __init__(
        self,
        source: Source,
        open_session: Callable[[StreamFormat], Session],
        *,
        clock: Clock | None = None,
        source_retry_s: float = _SOURCE_RETRY_S,
    ) -> None:
        self._source = source
        self._source_retry_s = source_retry_s
        self._stopping = threading.Event()
        self._open_session = open_session
        self._clock = clock or SystemClock()
        self._status = MicrophoneStatus()
        self._session: Session | None = None
        self._retry_at_ns = 0
        self._complaints = Complaints()
        self._crossing: WaitWhenFull | None = None
        self._beats = 0

    @property
    def status(self) -> MicrophoneStatus:
        """How it goes."""
        return self._status

    @property
    def beats(self) -> int | None:
        """Rises with every event of the source; None while its thread waits for the loop."""
        is_waiting = self._crossing is None or self._crossing.is_full
        return None if is_waiting else self._beats

    def stop(self) -> None:
        """Stop recording; `run` finishes the session and returns."""
        self._stopping.set()
        self._source.stop()

    async def run(self) -> None:
        """Record until `stop`.

        When cancelled, the device is freed and the session is left to its owner: a cancelled
        stream has nobody left to wait for its last answer.
        """
        crossing = WaitWhenFull(_CROSSING_EVENTS, asyncio.get_running_loop())
        self._crossing = crossing
        thread = threading.Thread(target=self._pump, args=(crossing,), name="microphone")
        thread.start()
        try:
            is_over = False
            while not is_over:
                event = await crossing.get()
                self._beats += 1
                is_over = event is None
                try:
                    await self._handle(event)
                except Exception as error:  # the top of this stream's session
                    await self._break_session(error)
        finally:
            self.stop()
            crossing.close()
            # Short: the source leaves calls that hang behind.
            await asyncio.shield(asyncio.to_thread(thread.join))
            self._status = replace(self._status, state=MicrophoneState.STOPPED)
            logger.info(
                "microphone stopped device=%s opened=%d lost_frames=%d overflows=%d",
                self._status.device,
                self._status.opened,
                self._status.lost_frames,
                self._status.overflows,
            )

    def _pump(self, crossing: WaitWhenFull) -> None:
        """Thread side: hand over what the source says, until `stop`."""
        try:
            while True:
                try:
                    with closing(self._source.events()) as events:
                        for event in events:
                            if not crossing.put(event):
                                return
                    return  # it was stopped
                except Exception as error:  # the top of a worker loop: a deaf daemon helps nobody
                    if not crossing.put(SourceBroke(error)):
                        return
                    if self._stopping.wait(self._source_retry_s):
                        return
        finally:
            crossing.put(None)

    async def _handle(self, event: MicrophoneEvent | SourceBroke | None) -> None:
        match event:
            case None:
                await self._end_session()
            case Opened():
                await self._on_opened(event)
            case Block():
                await self._feed(event.pcm)
            case Lost():
                self._on_lost(event)
            case Unavailable():
                self._on_unavailable(event)
            case SourceBroke():
                self._on_broken(event.error)
            case Drift():
                self._on_drift(event.ppm)
            case Silent():
                self._status = replace(self._status, is_silent=True)
                logger.warning(
                    "microphone gives only zeros for %g s, is it muted? device=%s",
                    event.duration_s,
                    self._status.device,
                )

    async def _on_opened(self, event: Opened) -> None:
        if self._session is not None and event.audio != self._status.audio:
            await self._end_session()
        self._status = replace(
            self._status,
            state=MicrophoneState.RUNNING,
            code=None,
            reason=None,
            device=event.device,
            audio=event.audio,
            opened=self._status.opened + 1,
            is_silent=False,
            drift_ppm=None,
        )
        self._retry_at_ns = 0
        logger.info(
            "microphone opened device=%s rate_hz=%d channels=%d",
            event.device,
            event.audio.rate_hz,
            event.audio.channels,
        )

    def _on_unavailable(self, event: Unavailable) -> None:
        self._status = replace(
            self._status,
            state=MicrophoneState.WAITING,
            code=event.error.code,
            reason=str(event.error),
        )
        self._complain(event.error)

    def _on_drift(self, ppm: float) -> None:
        if self._status.drift_ppm is None:
            logger.info(
                "microphone clock measured drift_ppm=%.0f device=%s", ppm, self._status.device
            )
        self._status = replace(self._status, drift_ppm=ppm)
        if abs(ppm) > _WRONG_RATE_PPM:
            # Crystals are off by tens of ppm: this is another sample rate, or sound that is lost.
            self._complain(
                MicrophoneError(
                    f"device records {1e-4 * ppm:+.2f} % faster than its rate says, expected "
                    f"within {1e-4 * _WRONG_RATE_PPM:g} %; set `microphone.rate_hz` to its own"
                )
            )

    def _on_broken(self, error: Exception) -> None:
        """Show and log a fault of ours in the source's thread."""
        self._status = replace(
            self._status, state=MicrophoneState.WAITING, code="internal", reason="internal error"
        )
        kind = f"source {type(error).__name__}"
        if count := self._complaints.due(kind, self._clock.monotonic_ns()):
            logger.error(
                "microphone source broke times=%d device=%s",
                count,
                self._status.device,
                exc_info=error,
            )

    def _on_lost(self, event: Lost) -> None:
        self._status = replace(
            self._status,
            lost_frames=self._status.lost_frames + event.frames,
            overflows=self._status.overflows + (event.cause is LostBy.OVERFLOW),
        )
        if event.cause is not LostBy.AWAY:
            self._complain(
                MicrophoneError(f"sound lost to {event.cause.value}: this machine is too slow")
            )
        if self._session is not None:
            self._session.lost(event.frames)

    async def _feed(self, pcm: bytes) -> None:
        if self._status.is_silent and pcm.count(0) != len(pcm):
            self._status = replace(self._status, is_silent=False)
        if self._session is None:
            if self._clock.monotonic_ns() < self._retry_at_ns or self._status.audio is None:
                return
            self._session = self._open_session(self._status.audio)
            self._status = replace(
                self._status, state=MicrophoneState.RUNNING, code=None, reason=None
            )
        await self._session.feed(pcm)

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.finish()

    async def _break_session(self, error: Exception) -> None:
        """Log what ended the session and end it, so that its name is free; a new one follows."""
        self._retry_at_ns = self._clock.monotonic_ns() + round(_SESSION_RETRY_S * 1e9)
        self._status = replace(
            self._status,
            state=MicrophoneState.FAILED,
            code=getattr(error, "code", "internal"),
            reason=str(error),
        )
        if count := self._complaints.due(type(error).__name__, self._clock.monotonic_ns()):
            logger.error(
                "microphone session ended times=%d device=%s",
                count,
                self._status.device,
                exc_info=error,
            )
        await self._end_session()

    def _complain(self, error: MicrophoneError) -> None:
        if count := self._complaints.due(error.code, self._clock.monotonic_ns()):
            logger.warning(
                "microphone: %s code=%s times=%d device=%s",
                error,
                error.code,
                count,
                self._status.device,
            )


class Complaints:
    """Lets a complaint be logged at once, then at most once a minute. Pure."""

    def __init__(self) -> None:
        self._logged_ns: dict[str, int] = {}
        self._kept_back: dict[str, int] = {}

    def due(self, kind: str, now_ns: int) -> int:
        """Return how many complaints a line logged now stands for; 0 when it must wait."""
        count = self._kept_back.get(kind, 0) + 1
        last_ns = self._logged_ns.get(kind)
        if last_ns is not None and now_ns - last_ns < _LOG_EVERY_S * 1e9:
            self._kept_back[kind] = count
            return 0
        self._logged_ns[kind], self._kept_back[kind] = now_ns, 0
        return count
