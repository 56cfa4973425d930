"""Clips through the daemon's own stream session, in simulated time.

The session, its audio chain and the recogniser are the real ones; the clock is not. A request
takes the CPU time that the recogniser needed for it, so what comes out is a machine with one free
core for the model, however busy this one is. One request runs at a time, in order of arrival; one
that is taken back frees the model at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from voiced.audio.clock import FakeClock
from voiced.audio.frames import RATE_HZ, StreamFormat, ms_to_samples
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.intake import Intake
from voiced.audio.vad import VadFactory, VadKind
from voiced.bench.systems import Pcm
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.wire import ServerMessage
from voiced.engine.errors import EngineError
from voiced.engine.recognizer import Recognizer
from voiced.engine.types import EngineInfo, EngineLoad, Request, RequestKind, Transcript

STEP_MS = 10
"""Sound per step of the clock: how exact the times are."""
LEAD_S = 0.5
TAIL_S = 2.0
"""Quiet before and after a clip, so that it begins and ends as speech in a stream does."""
_QUIET_LEVEL = 10.0
"""RMS of the quiet in int16 steps: about -70 dBFS."""
_TURNS = 6
"""Turns of the event loop in one step; an answer needs three to be published."""


@dataclass(slots=True, eq=False)
class _Pending:
    request: Request
    outcome: Transcript | EngineError
    begins_ns: int
    ready_ns: int
    future: asyncio.Future[Transcript]


@dataclass(slots=True)
class SimulatedEngine:
    """The recogniser behind the session's contract, on a clock that is stepped."""

    recognizer: Recognizer
    clock: FakeClock
    slowdown: float = 1.0
    """Factor on the CPU time of each request."""
    costs_ms: dict[RequestKind, list[float]] = field(default_factory=dict)
    """What the requests took, in simulated time."""
    _pending: list[_Pending] = field(default_factory=list)
    _free_ns: int = 0
    ready: bool = True
    reason: str = ""

    @property
    def info(self) -> EngineInfo:
        """The recogniser's."""
        return self.recognizer.info

    @property
    def queued_finals(self) -> int:
        """Finals under way."""
        return self.load().queued_finals

    def load(self) -> EngineLoad:
        """Say what is under way."""
        kinds = [pending.request.kind for pending in self._pending]
        return EngineLoad(
            queued_finals=kinds.count(RequestKind.FINAL),
            queued_eager=kinds.count(RequestKind.EAGER),
            queued_partials=kinds.count(RequestKind.PARTIAL),
        )

    async def recognize(self, request: Request) -> Transcript:
        """Run now; answer when the simulated time has come."""
        begun_ns = time.thread_time_ns()
        (outcome,) = self.recognizer.recognize([request])
        cost_ns = round((time.thread_time_ns() - begun_ns) * self.slowdown)
        self.costs_ms.setdefault(request.kind, []).append(cost_ns / 1e6)
        begins_ns = max(self.clock.monotonic_ns(), self._free_ns)
        self._free_ns = begins_ns + cost_ns
        future: asyncio.Future[Transcript] = asyncio.get_running_loop().create_future()
        pending = _Pending(request, outcome, begins_ns, self._free_ns, future)
        self._pending.append(pending)
        try:
            return await future
        finally:
            if pending in self._pending:  # taken back
                self._pending.remove(pending)
                self._free_ns = max(
                    (other.ready_ns for other in self._pending),
                    default=min(self._free_ns, self.clock.monotonic_ns()),
                )

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Whether an eager request of the segment is under way; it is as quick as a final."""
        del deadline_ns
        return any(
            pending.request.kind is RequestKind.EAGER and pending.request.segment.id == segment_id
            for pending in self._pending
        )

    def release(self) -> None:
        """Answer what is due."""
        now_ns = self.clock.monotonic_ns()
        for pending in [each for each in self._pending if each.ready_ns <= now_ns]:
            self._pending.remove(pending)
            if pending.future.done():
                continue
            if isinstance(pending.outcome, EngineError):
                pending.future.set_exception(pending.outcome)
            else:
                pending.future.set_result(pending.outcome)


@dataclass(frozen=True, slots=True)
class Played:
    """What a stream was told, and when."""

    messages: tuple[tuple[float, ServerMessage], ...]
    """Milliseconds of stream time, and the message."""
    speech: tuple[tuple[float, float], ...]
    """Runs of speech in the clip as the detector hears it, in ms: what delays count from."""


class Replay:
    """Plays clips to sessions of their own."""

    def __init__(
        self,
        recognizer: Recognizer,
        vads: VadFactory,
        *,
        front: FrontSettings,
        session: SessionSettings,
        kind: VadKind = VadKind.CASCADE,
        slowdown: float = 1.0,
    ) -> None:
        self._recognizer, self._vads, self._kind = recognizer, vads, kind
        self._front, self._session, self._slowdown = front, session, slowdown
        self._ids = itertools.count(1)
        self.costs_ms: dict[RequestKind, list[float]] = {}

    def play(self, pcm: Pcm, language: str | None, *, seed: int = 0) -> Played:
        """Play int16[n] at 16 kHz as one stream, quiet around it; `seed` is that of the quiet."""
        return asyncio.run(self._play(with_quiet(pcm, seed=seed), language))

    async def _play(self, pcm: Pcm, language: str | None) -> Played:
        clock = FakeClock()
        engine = SimulatedEngine(
            self._recognizer, clock, slowdown=self._slowdown, costs_ms=self.costs_ms
        )
        messages: list[tuple[float, ServerMessage]] = []
        front = StreamFront(
            "bench",
            settings=self._front,
            vad=self._vads.make(self._kind),
            next_id=lambda: next(self._ids),
            language=language,
        )
        session = StreamSession(
            "bench",
            intake=Intake(StreamFormat()),
            front=front,
            engine=engine,
            publish=lambda message: messages.append((clock.monotonic_ns() / 1e6, message)),
            settings=self._session,
            clock=clock,
        )
        data, step = pcm.tobytes(), 2 * ms_to_samples(STEP_MS)
        for at in range(0, len(data), step):
            clock.advance_ms(STEP_MS)
            engine.release()
            await _turn()
            await session.feed(data[at : at + step])
            await _turn()
        ending = asyncio.create_task(session.finish())
        while not ending.done():
            await _turn()
            clock.advance_ms(STEP_MS)
            engine.release()
        await ending
        return Played(tuple(messages), tuple(self._speech(pcm)))

    def _speech(self, pcm: Pcm) -> list[tuple[float, float]]:
        """Runs of windows that are speech by the segmenter's thresholds; silero never sleeps."""
        is_webrtc = self._kind is VadKind.WEBRTC
        vad = self._vads.make(VadKind.WEBRTC if is_webrtc else VadKind.SILERO)
        size = vad.window_samples
        samples = np.divide(pcm[: len(pcm) // size * size], 32768, dtype=np.float32)
        runs: list[list[float]] = []
        is_speech = False
        for number, probability in enumerate(vad.feed_many(samples.reshape(-1, size))):
            was, is_speech = is_speech, probability >= (0.35 if is_speech else 0.5)
            if is_speech:
                if not was:
                    runs.append([number * size * 1000 / RATE_HZ, 0.0])
                runs[-1][1] = (number + 1) * size * 1000 / RATE_HZ
        return [(begin, end) for begin, end in runs]


async def _turn() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def with_quiet(pcm: Pcm, *, seed: int) -> Pcm:
    """Put a quiet room around a clip."""
    rng = np.random.default_rng(seed)
    lead, tail = (
        (rng.standard_normal(round(seconds * RATE_HZ)) * _QUIET_LEVEL).astype(np.int16)
        for seconds in (LEAD_S, TAIL_S)
    )
    return np.concatenate((lead, pcm, tail))


def texts_of(messages: Sequence[tuple[float, ServerMessage]]) -> str:
    """Join the finals."""
    from voiced.daemon.wire import Final

    finals = (message.text.strip() for _, message in messages if isinstance(message, Final))
    return " ".join(text for text in finals if text)
