"""One engine to the outside, whose model can be changed while streams go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from voiced.audio.frames import RATE_HZ, Segment
from voiced.daemon.hotwords import merged
from voiced.engine.host import EngineHost
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineLoad,
    EngineTotals,
    Hotword,
    Request,
    RequestKind,
    Transcript,
)

logger = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 60.0
"""For the first answer of a new model."""
RETIRE_S = 60.0
"""Longest that an old model is kept for segments that it has begun."""
_SEEN_LIMIT = 10_000


class EngineSwitch:
    """Passes requests to one host, and to another after `switch`. Belongs to the loop.

    A segment that the old model has begun to hear is answered by it; later ones go to the new one.
    The old worker ends when it owes nothing more.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        make_host: Callable[[EngineConfig], EngineHost] = EngineHost,
    ) -> None:
        self.hotwords: tuple[Hotword, ...] = ()
        """Those of every stream, from the next request on; a stream may have more."""
        self._make_host = make_host
        self._current = make_host(config)
        self._old: EngineHost | None = None
        """Serves until it owes nothing more."""
        self._past = EngineTotals()
        """Of models that are gone."""
        self._seen: dict[int, None] = {}
        """Segments that were asked about and have no final yet, oldest first."""
        self._of_old: set[int] = set()
        self._promoted: set[int] = set()
        self._is_free = asyncio.Event()
        self._retiring: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """See `Engine.ready`."""
        return self._current.ready

    @property
    def reason(self) -> str:
        """See `Engine.reason`."""
        return self._current.reason

    @property
    def info(self) -> EngineInfo | None:
        """See `Engine.info`."""
        return self._current.info

    @property
    def beats(self) -> int | None:
        """See `EngineHost.beats`."""
        return self._current.beats

    async def start(self) -> EngineInfo:
        """Start the first model; see `Engine.start`."""
        return await self._current.start()

    async def recognize(self, request: Request) -> Transcript:
        """Answer one request; see `Engine.recognize`."""
        segment = request.segment.id
        self._seen[segment] = None
        if len(self._seen) > _SEEN_LIMIT:  # dropped ones get no final
            self._release(next(iter(self._seen)))
        if self.hotwords:
            request = replace(request, hotwords=merged(self.hotwords, request.hotwords))
        try:
            return await self._host_of(segment).recognize(request)
        finally:
            if request.kind is RequestKind.FINAL or segment in self._promoted:
                self._release(segment)

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Let an eager request be the final; see `Engine.promote`."""
        is_promoted = self._host_of(segment_id).promote(segment_id, deadline_ns)
        if is_promoted:
            self._promoted.add(segment_id)
        return is_promoted

    @property
    def queued_finals(self) -> int:
        """Finals that are accepted and unanswered, by both models."""
        old = 0 if self._old is None else self._old.queued_finals
        return self._current.queued_finals + old

    def load(self) -> EngineLoad:
        """Say how much is accepted and unanswered, by both models."""
        load = self._current.load() + EngineLoad(totals=self._past)
        return load if self._old is None else load + self._old.load()

    async def switch(
        self, config: EngineConfig, accept: Callable[[EngineInfo], None] = lambda info: None
    ) -> EngineInfo:
        """Build another worker beside the one that serves, try it, and let it take over.

        Both are in memory for a while. When this raises, nothing has changed.

        Args:
            config: Of the new worker.
            accept: Looks at what was loaded; what it raises keeps the old one.

        Raises:
            EngineError: The new model cannot be loaded or does not answer.
            TimeoutError: It does not answer in time.
        """
        if self._retiring is not None:
            await asyncio.shield(self._retiring)
        new = self._make_host(config)
        try:
            info = await new.start()
            accept(info)
            async with asyncio.timeout(TRIAL_TIMEOUT_S):
                await new.recognize(Request(_trial()))
        except BaseException:
            await new.stop()
            raise
        self._old, self._current = self._current, new
        self._of_old = set(self._seen)
        self._is_free.clear()
        if not self._of_old:
            self._is_free.set()
        self._retiring = asyncio.create_task(self._retire(self._old), name="engine-retire")
        return info

    async def stop(self) -> None:
        """End both workers."""
        if self._retiring is not None:
            self._is_free.set()
            await self._retiring
        await self._current.stop()

    async def _retire(self, old: EngineHost) -> None:
        try:
            async with asyncio.timeout(RETIRE_S):
                await self._is_free.wait()
        except TimeoutError:
            logger.warning("segments go over to the new model count=%d", len(self._of_old))
        self._of_old.clear()
        try:
            await old.stop(drain_s=RETIRE_S)
        finally:
            self._old, self._past = None, self._past + old.load().totals
        logger.info("old engine worker has ended")

    def _host_of(self, segment: int) -> EngineHost:
        old = self._old
        return old if old is not None and segment in self._of_old else self._current

    def _release(self, segment: int) -> None:
        self._seen.pop(segment, None)
        self._promoted.discard(segment)
        self._of_old.discard(segment)
        if not self._of_old:
            self._is_free.set()


def _trial() -> Segment:
    """A second of a tone: any answer will do, as long as there is one."""
    time_s = np.arange(RATE_HZ) / RATE_HZ
    pcm = (8_000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)
    return Segment(id=0, stream="-", start_sample=0, pcm=pcm)
