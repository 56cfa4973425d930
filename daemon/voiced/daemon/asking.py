"""Asks the engine for one stream; what goes wrong comes back as a value."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

from voiced.audio.clock import Clock
from voiced.audio.frames import Segment
from voiced.daemon.errors import StreamBroken
from voiced.engine.errors import DeadlineExceeded, EngineBusy, EngineError
from voiced.engine.types import (
    EngineInfo,
    EngineLoad,
    Hotword,
    Request,
    RequestKind,
    Transcript,
)

logger = logging.getLogger(__name__)

_ANSWER_GRACE_S = 60.0
"""The engine keeps deadlines itself, and replaces a worker that hangs; this is for its bugs."""


class Engine(Protocol):
    """What a stream needs of `voiced.engine.host`."""

    @property
    def ready(self) -> bool: ...
    @property
    def reason(self) -> str:
        """Why it is not ready."""
        ...

    @property
    def info(self) -> EngineInfo | None: ...
    @property
    def queued_finals(self) -> int:
        """As in `load`, which takes far longer to say."""
        ...

    def load(self) -> EngineLoad: ...
    async def recognize(self, request: Request) -> Transcript:
        """Answer one request; raises EngineError."""
        ...

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Let the open eager request of a segment be its final; False when none is open."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no text."""

    code: str
    message: str


class Asker:
    """One stream's way to the engine."""

    def __init__(
        self, engine: Engine, clock: Clock, stream: str, hotwords: tuple[Hotword, ...] = ()
    ) -> None:
        """Every request takes the stream's hotwords with it."""
        self._engine, self._clock, self._stream = engine, clock, stream
        self._hotwords = hotwords

    def request(
        self, segment: Segment, kind: RequestKind, revision: int, deadline_ns: int | None = None
    ) -> Request:
        """Make a request of this stream."""
        return Request(segment, kind, revision, deadline_ns, self._hotwords)

    def deadline_ns(self, timeout_s: float) -> int:
        """Return the monotonic time that is `timeout_s` from now."""
        return self._clock.monotonic_ns() + round(timeout_s * 1e9)

    async def ask(self, request: Request, timeout_s: float) -> Transcript | Failure:
        """Wait for the answer; a busy engine is asked again as long as there is time (finals)."""
        try:
            async with asyncio.timeout(timeout_s + _ANSWER_GRACE_S):
                while True:
                    try:
                        return await self._engine.recognize(request)
                    except EngineBusy as busy:
                        wait_ns = busy.retry_after_ms * 1_000_000
                        deadline_ns = request.deadline_ns or 0
                        is_hopeless = self._clock.monotonic_ns() + wait_ns >= deadline_ns
                        if request.kind is not RequestKind.FINAL or is_hopeless:
                            return Failure(busy.code, str(busy))
                        await asyncio.sleep(busy.retry_after_ms / 1000)
        except EngineError as error:
            return Failure(error.code, str(error) or error.code)
        except TimeoutError:
            logger.error(
                "engine gave no answer stream=%s segment=%d", self._stream, request.segment.id
            )
            return Failure(DeadlineExceeded.code, "the engine gave no answer in time")
        except Exception:  # the top of a stream session: our fault costs this request alone
            logger.exception(
                "request broke stream=%s segment=%d kind=%s",
                self._stream,
                request.segment.id,
                request.kind,
            )
            return Failure(StreamBroken.code, "internal error")
