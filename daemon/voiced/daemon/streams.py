"""All open streams of the daemon: their names, their number, and how they end together."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace

import msgspec

from voiced.audio.clock import Clock
from voiced.daemon.asking import Engine
from voiced.daemon.chain import endpoint_policy
from voiced.daemon.errors import (
    NotReady,
    ShuttingDown,
    StreamInUse,
    StreamRefused,
    TooManyStreams,
    UnknownLanguage,
)
from voiced.daemon.hotwords import hotwords_of_stream
from voiced.daemon.metrics import Metrics
from voiced.daemon.outlet import Outlet
from voiced.daemon.overload import OverloadRules
from voiced.daemon.receivers import Send
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.stream_audio import Front, Intake
from voiced.daemon.tracing import SegmentTracer
from voiced.daemon.wire import Intent, Start

logger = logging.getLogger(__name__)

OpenChain = Callable[[str, Start], tuple[Intake, Front]]
"""Makes the audio chain of one stream, from its name and its `start`; may raise AudioError."""


class Streams:
    """Opens streams and knows the open ones. Belongs to the event loop."""

    def __init__(
        self,
        *,
        engine: Engine,
        publish: Send | Outlet,
        open_chain: OpenChain,
        settings: SessionSettings | None = None,
        max_streams: int = 32,
        overload: OverloadRules | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        tracer: SegmentTracer | None = None,
    ) -> None:
        """`settings` are the defaults; a stream's `start` may change language and partials."""
        self.engine = engine
        self.metrics = metrics or Metrics()
        self.max_streams = max_streams
        self._overload = overload or OverloadRules()
        self._publish, self._open_chain, self._clock = publish, open_chain, clock
        self._settings = settings or SessionSettings()
        self._sessions: dict[str, StreamSession] = {}
        self._numbers = itertools.count(1)
        self._tracer = tracer
        self._is_draining = False

    def configure(
        self,
        *,
        open_chain: OpenChain,
        settings: SessionSettings,
        max_streams: int,
        overload: OverloadRules,
    ) -> None:
        """Take other defaults for the streams that are opened from now on."""
        self._open_chain, self._settings = open_chain, settings
        self.max_streams, self._overload = max_streams, overload

    @property
    def sessions(self) -> list[StreamSession]:
        """The open streams, by name."""
        return [self._sessions[name] for name in sorted(self._sessions)]

    @property
    def is_draining(self) -> bool:
        """No stream goes on for long."""
        return self._is_draining

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def is_quiet(self) -> bool:
        """Nobody speaks on any stream, and none has an answer to come."""
        return all(session.is_quiet for session in self._sessions.values())

    def refusal(self) -> StreamRefused | None:
        """Return why no stream would be opened now; None when one would."""
        if self._is_draining:
            return ShuttingDown()
        if not self.engine.ready:
            return NotReady(self.engine.reason)
        if len(self._sessions) >= self.max_streams:
            return TooManyStreams(self.max_streams)
        return self._overload.refusal(self.engine.load())

    @property
    def backlog_s(self) -> float:
        """Speech closed and not answered, of the stream that has most."""
        return max((session.backlog_s for session in self._sessions.values()), default=0.0)

    @property
    def backlog_age_s(self) -> float:
        """How long the oldest closed segment has been waiting for its last word."""
        return max((session.backlog_age_s for session in self._sessions.values()), default=0.0)

    def open(self, start: Start, *, send: Send | None = None) -> StreamSession:
        """Open a stream; its `ready` has been published when this returns.

        Args:
            start: What the client (or a local source in its place) asks for.
            send: Gets the stream's messages besides the bus; must not block or raise.

        Raises:
            StreamRefused: Not now, or not like this.
            AudioError: The audio chain cannot be made, e.g. a detector is missing.
        """
        name = start.stream or self._free_name()
        start = msgspec.structs.replace(start, language=start.language or self._settings.language)
        refusal = self.refusal() or self._objection(name, start)
        if refusal is not None:
            self.metrics.streams_refused.labels(code=refusal.code).inc()
            raise refusal
        hotwords = hotwords_of_stream(start.hotwords, self._settings.hotwords_score)
        info = self.engine.info
        if hotwords and info is not None and not info.has_hotwords:
            logger.info("hotwords are not used, %s has none stream=%s", info.bundle, name)
        intake, front = self._open_chain(name, start)
        session = StreamSession(
            name,
            intake=intake,
            front=front,
            engine=self.engine,
            publish=self._publish,
            send=send,
            rate_hz=start.audio.rate_hz,
            settings=replace(
                self._settings,
                wants_partials=start.partials,
                wants_eager=start.eager,
                language=start.language,
                endpoint=endpoint_policy(self._settings.endpoint, start.vad),
                hotwords=hotwords,
            ),
            metrics=self.metrics,
            clock=self._clock,
            tracer=self._tracer,
            on_end=self._forget,
        )
        self._sessions[name] = session
        return session

    def deliver(self, intent: Intent) -> None:
        """Pass a plugin's intent to the stream's own client, if that is still there."""
        session = self._sessions.get(intent.stream)
        if session is not None:
            session.hear_intent(intent)

    async def drain(self, *, deadline_s: float) -> None:
        """Refuse new streams and end the open ones; what is late fails with `shutting_down`."""
        self.refuse()
        sessions = list(self._sessions.values())
        if not sessions:
            return
        tasks = [asyncio.create_task(session.finish()) for session in sessions]
        _, late = await asyncio.wait(tasks, timeout=deadline_s)
        if late:
            logger.error("streams cut at the deadline count=%d", len(late))
            await asyncio.gather(*(session.abandon() for session in sessions))
            await asyncio.wait(late)

    def refuse(self) -> None:
        """Open no more streams from now on."""
        self._is_draining = True

    def _forget(self, session: StreamSession) -> None:
        del self._sessions[session.name]

    def _objection(self, name: str, start: Start) -> StreamRefused | None:
        holder = self._sessions.get(name)
        if holder is not None:
            return StreamInUse(name, is_ending=holder.is_ending)
        known = self.engine.info.languages if self.engine.info is not None else ()
        if start.language is not None and known and start.language not in known:
            return UnknownLanguage(start.language, known)
        return None

    def _free_name(self) -> str:
        return next(
            name for number in self._numbers if (name := f"s{number}") not in self._sessions
        )
