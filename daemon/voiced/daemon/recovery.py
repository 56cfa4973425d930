"""Answers what earlier runs of the daemon have heard and could not answer any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.frames import samples_to_ms
from voiced.daemon.asking import Engine
from voiced.daemon.errors import SpoolDamaged, SpoolExpired, SpoolGivenUp
from voiced.daemon.metrics import Metrics
from voiced.daemon.spool import Heard, Leftover, count_attempt, read
from voiced.daemon.wire import Alternative, Failed, Final, ServerMessage, WordInfo
from voiced.engine.errors import EngineBusy, EngineDead, EngineError
from voiced.engine.types import Request, RequestKind, Transcript

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 10
"""Runs of the daemon that may end over one segment; then it is no longer tried."""


class Recovery:
    """Answers leftover segments one after the other, beside live streams. Belongs to the loop.

    Each gets its one last word in this run, with the stream, the id and the times that it had, and
    marked as `recovered`. What is not answered when the daemon stops stays for the next start.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        publish: Callable[[ServerMessage], None],
        keep_s: float,
        metrics: Metrics,
        clock: Clock | None = None,
    ) -> None:
        """`keep_s`: how old a segment may be, counted by the journal's age and not by dates."""
        self._engine, self._publish, self._keep_s = engine, publish, keep_s
        self._metrics, self._clock = metrics, clock or SystemClock()
        self._waiting: asyncio.Queue[Leftover] = asyncio.Queue()
        self._known: set[tuple[str, int]] = set()

    def add(self, leftovers: Sequence[Leftover]) -> None:
        """Take segments over, oldest first; each is taken once."""
        for each in leftovers:
            key = each.origin, each.segment
            if key not in self._known:
                self._known.add(key)
                self._waiting.put_nowait(each)

    async def run(self) -> None:
        """Answer what `add` brings, until cancelled; the engine is ready."""
        while True:
            leftover = await self._waiting.get()
            try:
                message = await self._answer(leftover)
            except OSError as error:  # tried again at the next start
                logger.warning("spooled segment cannot be read path=%s: %s", leftover.path, error)
                continue
            if message is not None:
                self._metrics.recovered.labels(
                    outcome="final" if isinstance(message, Final) else message.code
                ).inc()
                self._publish(message)

    async def _answer(self, leftover: Leftover) -> Final | Failed | None:
        """The segment's last word; None: not in this run."""
        if leftover.attempts >= MAX_ATTEMPTS:
            return _failed(leftover, SpoolGivenUp(leftover.path, leftover.attempts))
        with contextlib.suppress(OSError):  # a full disk: better tried too often than never
            count_attempt(leftover.path)
        try:
            heard = await asyncio.to_thread(read, leftover.path)
        except SpoolDamaged as error:
            logger.error("spooled segment is lost: %s", error)
            return _failed(leftover, error)
        if _age_ms(leftover, heard) > 1000 * self._keep_s:
            return _failed(
                leftover, SpoolExpired(leftover.path, self._keep_s), heard.segment.stream
            )
        try:
            transcript = await self._recognize(heard)
        except EngineDead as error:
            if not self._engine.ready:  # it stops, or is being replaced: not this segment's fault
                logger.warning("spooled segment waits for the next start: %s", error)
                return None
            return _failed(leftover, error, heard.segment.stream)
        except EngineError as error:
            return _failed(leftover, error, heard.segment.stream)
        return self._final(heard, transcript)

    async def _recognize(self, heard: Heard) -> Transcript:
        while True:
            try:
                return await self._engine.recognize(
                    Request(heard.segment, RequestKind.FINAL, heard.revision)
                )
            except EngineBusy as busy:  # live streams come first
                await asyncio.sleep(busy.retry_after_ms / 1000)

    def _final(self, heard: Heard, transcript: Transcript) -> Final:
        segment = heard.segment
        logger.info("segment recovered stream=%s segment=%d", segment.stream, segment.id)
        return Final(
            stream=segment.stream,
            segment=segment.id,
            revision=heard.revision,
            text=transcript.text,
            language=transcript.language,
            confidence=transcript.confidence,
            start_ms=samples_to_ms(segment.start_sample),
            end_ms=samples_to_ms(segment.end_sample),
            latency_ms=max(0, self._clock.wall_ms() - heard.wall_ms),
            words=tuple(
                WordInfo(word.text, word.start_ms, word.end_ms, word.confidence)
                for word in transcript.words
            ),
            n_best=tuple(Alternative(text, score) for text, score in transcript.n_best),
            recovered=heard.origin,
        )


def _age_ms(leftover: Leftover, heard: Heard) -> int:
    """How old it was when it was found; 0 where that cannot be known: better late than never."""
    if leftover.lived_ms is None or heard.lived_ms is None:
        return 0
    return leftover.lived_ms - heard.lived_ms


def _failed(
    leftover: Leftover,
    error: EngineError | SpoolDamaged | SpoolExpired | SpoolGivenUp,
    stream: str | None = None,
) -> Failed:
    logger.error(
        "spooled segment failed segment=%d origin=%s code=%s",
        leftover.segment,
        leftover.origin,
        error.code,
    )
    return Failed(
        stream=stream or leftover.stream,
        segment=leftover.segment,
        code=error.code,
        message=str(error) or error.code,
        recovered=leftover.origin,
    )
