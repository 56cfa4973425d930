"""What a stream asks the engine before a segment has ended: partials, and the final in advance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from voiced.audio.clock import Clock
from voiced.audio.frames import Segment, SegmentPaused
from voiced.daemon.asking import Asker, Engine, Failure
from voiced.daemon.metrics import Metrics
from voiced.daemon.pace import PartialPace
from voiced.daemon.segment_text import SegmentText
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.speculation import Speculation
from voiced.daemon.stream_audio import StreamAudio
from voiced.daemon.wire import EagerFinal, Partial, Resumed
from voiced.engine.types import RequestKind, Transcript

T = TypeVar("T")


@dataclass(slots=True)
class OpenSegment:
    """A segment between its first and its last message."""

    text: SegmentText
    is_open: bool = True
    """More speech may come."""
    asked: int = 0
    """The last revision the engine was asked for; ahead of those made when one was dropped."""
    partial: asyncio.Task[None] | None = None
    """The one under way; cancelled when silence begins and when the segment closes."""
    speculation: Speculation | None = None

    @property
    def id(self) -> int:
        """Number of the segment."""
        return self.text.segment


class Guesses:
    """Partials while somebody speaks, and a final begun when silence begins.

    Nobody is promised any of them: finals come first, and what comes too late is thrown away.
    Belongs to the event loop.

    Args:
        asker: The stream's way to the engine.
        engine: Told when a speculation becomes the final.
        audio: What was heard.
        settings: What the client and the bus want.
        metrics: Counts what was made and dropped, and why.
        clock: Of the pace.
        put: Sends a partial.
        offer: Sends what may be taken back, to those who opted in.
        end_after: Lets the silence that runs end the segment after so many milliseconds.
    """

    def __init__(
        self,
        *,
        asker: Asker,
        engine: Engine,
        audio: StreamAudio,
        settings: SessionSettings,
        metrics: Metrics,
        clock: Clock,
        put: Callable[[Partial], None],
        offer: Callable[[EagerFinal | Resumed], None],
        end_after: Callable[[int], None],
    ) -> None:
        self._asker, self._engine, self._audio = asker, engine, audio
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._put, self._offer, self._end_after = put, offer, end_after
        self._pace = PartialPace()
        self._tasks: set[asyncio.Task[Any]] = set()

    def grown(self, state: OpenSegment) -> None:
        """Start a partial unless one is under way, or it is not the time for one."""
        if not self._settings.wants_partials or state.partial is not None:
            return
        refusal = self._pace.refusal(
            self._clock.monotonic_ns(), queued_finals=self._engine.queued_finals
        )
        if refusal is not None:
            self._metrics.partials_dropped.labels(reason=refusal).inc()
            return
        segment = self._audio.open_segment()
        if segment is not None:
            state.asked += 1
            state.partial = self._spawn(self._partial(state, segment))

    async def _partial(self, state: OpenSegment, segment: Segment) -> None:
        timeout_s = self._settings.partial_timeout_s
        request = self._asker.request(
            segment, RequestKind.PARTIAL, state.asked, self._asker.deadline_ns(timeout_s)
        )
        self._pace.asked(self._clock.monotonic_ns())
        outcome = await self._asker.ask(request, timeout_s)
        self._pace.answered(self._clock.monotonic_ns())
        state.partial = None
        if isinstance(outcome, Failure):
            self._metrics.partials_dropped.labels(reason=outcome.code).inc()
        else:
            self._emit(state, outcome, segment.end_sample, is_searched=False)

    def _emit(
        self, state: OpenSegment, transcript: Transcript, end_sample: int, *, is_searched: bool
    ) -> None:
        message = state.text.partial(transcript, end_sample, is_searched=is_searched)
        if message is not None:
            self._metrics.partials.inc()
            arrived_ns = self._audio.arrived_ns(end_sample)
            if arrived_ns is not None:
                latency_ns = self._clock.monotonic_ns() - arrived_ns
                self._metrics.partial_latency_s.observe(max(0, latency_ns) / 1e9)
            self._put(message)

    def drop_partial(self, state: OpenSegment, reason: str) -> None:
        """Take back the partial under way: a final comes first, and nobody wants this one."""
        if state.partial is not None:
            state.partial.cancel()
            state.partial = None
            self._metrics.partials_dropped.labels(reason=reason).inc()

    def paused(self, state: OpenSegment, event: SegmentPaused) -> None:
        """Begin the final now: most silences end the segment. While finals wait, nobody guesses."""
        if self._engine.queued_finals > 0:
            self._metrics.speculations.labels(outcome="finals_waiting").inc()
            return
        self.drop_partial(state, "paused")
        state.asked += 1
        state.speculation = Speculation(event, self._spawn(self._speculate(state, event.segment)))

    async def _speculate(self, state: OpenSegment, snapshot: Segment) -> Transcript | Failure:
        if state.speculation is not None:
            state.speculation.is_asked = True
        request = self._asker.request(snapshot, RequestKind.EAGER, state.asked)
        outcome = await self._asker.ask(request, self._settings.final_timeout_s)
        if isinstance(outcome, Transcript) and state.is_open:
            self._on_eager(state, outcome, snapshot)
        return outcome

    def _on_eager(self, state: OpenSegment, transcript: Transcript, snapshot: Segment) -> None:
        """The text is here before the silence has ended the segment."""
        if self._settings.wants_partials:
            heard_sample = min(snapshot.end_sample, self._audio.end_sample)
            self._emit(state, transcript, heard_sample, is_searched=True)
        if transcript.text and state.speculation is not None:
            state.speculation.is_offered = True
            self._offer(state.text.eager(transcript, snapshot.end_sample))
        self._end_after(self._settings.endpoint.after(transcript.text))

    def heard_intent(self, state: OpenSegment) -> None:
        """An intent was found in the text; in that of the silence that runs it may end it."""
        if state.speculation is not None and state.speculation.is_offered:
            self._end_after(self._settings.endpoint.after_intent())

    def resumed(self, state: OpenSegment) -> None:
        """Somebody speaks on: the final that was begun is none."""
        was_offered = state.speculation is not None and state.speculation.is_offered
        self.withdraw(state)
        if was_offered:
            self._offer(Resumed(stream=state.text.stream, segment=state.id))

    def withdraw(self, state: OpenSegment) -> None:
        """Throw away the final that was begun."""
        speculation, state.speculation = state.speculation, None
        if speculation is not None:
            self._metrics.speculations.labels(outcome="withdrawn").inc()
            speculation.withdraw()

    def for_final(self, state: OpenSegment, segment: Segment) -> Speculation | None:
        """Return the final that was begun, where it is one of all that was said."""
        speculation = state.speculation
        if speculation is not None and not (speculation.is_asked and speculation.is_of(segment)):
            self.withdraw(state)
            return None
        if speculation is not None and speculation.transcript is not None:
            self._metrics.speculations.labels(outcome="ready").inc()
        return speculation

    async def promoted(
        self, speculation: Speculation, segment: int, deadline_ns: int
    ) -> Transcript | Failure | None:
        """Wait for the speculation to become the final; None: the segment is asked for anew."""
        is_promoted = self._engine.promote(segment, deadline_ns)
        outcome = await speculation.task
        if isinstance(outcome, Transcript):
            self._metrics.speculations.labels(outcome="promoted").inc()
            return outcome
        self._metrics.speculations.labels(outcome="failed").inc()
        return outcome if is_promoted else None

    async def stop(self) -> None:
        """Cancel all that is under way, and see it gone."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
