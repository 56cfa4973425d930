"""Stand-ins for tests of streams: an engine that does as told, a detector that hears loudness."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.intake import Intake
from voiced.daemon.chain import front_settings, stream_format
from voiced.daemon.wire import Start
from voiced.engine.types import EngineInfo, EngineLoad, Request, RequestKind, Transcript

Float32 = npt.NDArray[np.float32]


class ScriptedEngine:
    """Answers at once with the segment's length as text, unless told otherwise."""

    def __init__(self, *, answer: Callable[[Request], Transcript] | None = None) -> None:
        self.ready, self.reason = True, ""
        self.info: EngineInfo | None = EngineInfo(
            bundle="scripted@0",
            backend="none",
            languages=("en", "zh"),
            max_segment_s=16.0,
            load_ms=0.0,
            warm_ms=0.0,
            worker_pid=0,
        )
        self.requests: list[Request] = []
        """All that was asked, in order."""
        self.gate = asyncio.Event()
        """While clear, finals wait, promoted ones too."""
        self.gate.set()
        self.eager_gate = asyncio.Event()
        """While clear, eager requests wait; a promoted one waits for `gate` instead."""
        self.eager_gate.set()
        self.promoted: list[int] = []
        """Segments whose eager request was promoted, in order."""
        self._eager: dict[int, asyncio.Event] = {}
        """For each open eager request, by segment: set when it is promoted."""
        self.queued_finals = 0
        self.oldest_final_age_s = 0.0
        """What `load` says."""
        self._answer = answer or length_as_text

    def load(self) -> EngineLoad:
        """Return the load that the test set."""
        return EngineLoad(
            queued_finals=self.queued_finals, oldest_final_age_s=self.oldest_final_age_s
        )

    async def recognize(self, request: Request) -> Transcript:
        """Answer; raises what the test's `answer` raises."""
        self.requests.append(request)
        await asyncio.sleep(0)
        if request.kind is RequestKind.EAGER:
            await self._until_eager(request.segment.id)
        if request.kind is RequestKind.FINAL or request.segment.id in self.promoted:
            await self.gate.wait()
        return self._answer(request)

    async def _until_eager(self, segment_id: int) -> None:
        promotion = self._eager[segment_id] = asyncio.Event()
        ways = [asyncio.ensure_future(e.wait()) for e in (self.eager_gate, promotion)]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            if self._eager.get(segment_id) is promotion:
                del self._eager[segment_id]

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Note it; False when no eager request of the segment is open."""
        del deadline_ns
        promotion = self._eager.get(segment_id)
        if promotion is None:
            return False
        self.promoted.append(segment_id)
        promotion.set()
        return True


def length_as_text(request: Request) -> Transcript:
    """Answer with the number of samples."""
    return Transcript(
        segment=request.segment.id,
        revision=request.revision,
        text=f"{len(request.segment.pcm)} samples",
        is_final=request.kind is RequestKind.FINAL,
        language=request.segment.language or "en",
        confidence=1.0,
    )


class LoudnessVad:
    """Calls everything above -40 dBFS speech, in windows of 20 ms."""

    window_samples = 320
    batch_windows = 1

    def feed(self, samples: Float32) -> float:
        """Take one window."""
        return float(np.sqrt(np.mean(samples * samples)) > 0.01)

    def feed_many(self, windows: Float32) -> list[float]:
        """Take some windows."""
        return [self.feed(window) for window in windows]

    def reset(self) -> None:
        """There is no state."""


class LoudnessChains:
    """Audio chains as the daemon's, with LoudnessVad as detector."""

    def __init__(self, defaults: FrontSettings | None = None) -> None:
        self._defaults = defaults or FrontSettings()
        self._ids = itertools.count(1)

    def __call__(self, name: str, start: Start) -> tuple[Intake, StreamFront]:
        """Make the chain of one stream."""
        front = StreamFront(
            name,
            settings=front_settings(self._defaults, start.vad, longest_s=16.0),
            vad=LoudnessVad(),
            next_id=lambda: next(self._ids),
            language=start.language,
        )
        return Intake(stream_format(start.audio)), front


def tone(seconds: float, *, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """Return a 440 Hz tone at -6 dBFS as interleaved s16."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    mono = (0.5 * np.sin(2 * np.pi * 440 * time_s) * 32767).astype("<i2")
    return np.repeat(mono, channels).tobytes()


def silence(seconds: float, *, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """Return digital silence as interleaved s16."""
    return bytes(2 * channels * round(seconds * rate_hz))
