"""One stream from open to end, whatever carries its audio: WebSocket, microphone or file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from voiced.audio.clock import Clock, SystemClock
from voiced.audio.errors import AudioError
from voiced.audio.frames import (
    RATE_HZ,
    Segment,
    SegmentClosed,
    SegmentDropped,
    SegmentEvent,
    SegmentGrown,
    SegmentOpened,
    SegmentPaused,
    SegmentResumed,
    samples_to_ms,
)
from voiced.daemon.asking import Asker, Engine, Failure
from voiced.daemon.backlog import Backlog
from voiced.daemon.endpoint import EndpointPolicy
from voiced.daemon.errors import ShuttingDown, StreamBroken
from voiced.daemon.last_word import Answer, LastWordMaker
from voiced.daemon.metrics import Metrics
from voiced.daemon.outlet import Outlet
from voiced.daemon.pace import PartialPace
from voiced.daemon.receivers import Receivers, Send
from voiced.daemon.results import LastWords
from voiced.daemon.segment_text import SegmentText
from voiced.daemon.speculation import Speculation
from voiced.daemon.stream_audio import Front, Intake, StreamAudio
from voiced.daemon.tracing import SegmentTracer, StreamTrace
from voiced.daemon.wire import (
    AudioGap,
    Ended,
    Failed,
    Final,
    Intent,
    Ready,
    Resumed,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
)
from voiced.engine.types import Hotword, Request, RequestKind, Transcript

logger = logging.getLogger(__name__)

UNDETERMINED = "und"
"""`final.language` when no speech was found and none was pinned (ISO 639-2)."""

MOST_BYTES = 8 * 1024
"""Audio handled before other tasks get the loop: 256 ms of 16 kHz s16, 1.5 ms of work."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How one stream is carried."""

    wants_partials: bool = True
    language: str | None = None
    """Pinned by the client, or by the daemon's settings; None lets the engine choose."""
    max_backlog_s: float = 30.0
    """Speech closed but not answered above which `feed` waits: the source is slowed."""
    final_timeout_s: float = 60.0
    """A final later than this after its segment's end fails with `deadline`."""
    partial_timeout_s: float = 2.0
    """A partial that waited longer is not worth making."""
    wants_eager: bool = False
    """The client is offered `eager_final`."""
    publishes_eager: bool = False
    """The bus is."""
    hotwords: tuple[Hotword, ...] = ()
    """The client's own."""
    hotwords_score: float = 2.0
    """Bonus of those that the client gave none."""
    endpoint: EndpointPolicy = field(default_factory=EndpointPolicy)
    include_text: bool = False
    """Log what people said, at DEBUG."""


@dataclass(slots=True)
class _State:
    """A segment between its first and its last message."""

    text: SegmentText
    asked: int = 0
    """The last revision the engine was asked for; ahead of those made when one was dropped."""
    partial: asyncio.Task[None] | None = None
    """The one under way; cancelled when silence begins and when the segment closes."""
    speculation: Speculation | None = None

    @property
    def id(self) -> int:
        return self.text.segment


class StreamSession:
    """Turns one stream's audio into messages. Belongs to the event loop.

    Every segment that was announced with `speech_started` gets exactly one `final` or `failed`,
    and nothing follows it, in the order of the segments; `ended` comes once, last. Messages go
    through the outlet to the bus, and to `send` while a client is attached; neither may block or
    raise.
    """

    def __init__(
        self,
        name: str,
        *,
        intake: Intake,
        front: Front,
        engine: Engine,
        publish: Send | Outlet,
        send: Send | None = None,
        rate_hz: int = RATE_HZ,
        settings: SessionSettings | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        tracer: SegmentTracer | None = None,
        on_end: Callable[[StreamSession], None] | None = None,
    ) -> None:
        """The stream is open from now on; `ready` has been sent.

        Args:
            publish: Puts messages on the bus: at once, or when they are written down.
            rate_hz: Sample rate of the source, for `ready`.
            tracer: Told about each segment once it is over.
            on_end: Called once, after `ended` was sent.
        """
        self.name = name
        self._engine = engine
        self._audio = StreamAudio(intake, front)
        self._settings = settings or SessionSettings()
        self._metrics = metrics or Metrics()
        self._receivers = Receivers(
            name,
            publish,
            send,
            wants_eager=self._settings.wants_eager,
            publishes_eager=self._settings.publishes_eager,
        )
        self._word_maker = LastWordMaker(
            name, self._metrics, include_text=self._settings.include_text
        )
        self._clock = clock or SystemClock()
        self._on_end = on_end
        self._open: _State | None = None
        self._last_words: LastWords[tuple[int, Answer | Failure]] = LastWords()
        self._asker = Asker(engine, self._clock, name)
        self._pace = PartialPace()
        self._answers: set[asyncio.Task[Any]] = set()
        self._guesses: set[asyncio.Task[Any]] = set()
        """Partials and speculations: what nobody waits for."""
        self._ending: asyncio.Task[None] | None = None
        self._is_broken = False
        self._backlog = Backlog(self._settings.max_backlog_s)
        self._trace = StreamTrace(name, tracer)
        self._latest_text = ""
        self._segments = 0
        self._metrics.streams.inc()
        self._metrics.streams_open.inc()
        info = engine.info
        self._receivers.put(Ready(stream=name, bundle=info.bundle if info else "", rate_hz=rate_hz))
        logger.info("stream opened stream=%s rate_hz=%d", name, rate_hz)

    @property
    def is_ending(self) -> bool:
        """No more audio is taken."""
        return self._ending is not None

    @property
    def is_quiet(self) -> bool:
        """No segment is open or unanswered."""
        return self._open is None and not self._answers and self._ending is None

    @property
    def is_full(self) -> bool:
        """Too much speech is unanswered: `feed` will wait."""
        return self._backlog.is_full

    def facts(self, *, with_text: bool) -> dict[str, Any]:
        """How it is doing, for people; with what was said last where that may be shown."""
        found: dict[str, Any] = {
            "stream": self.name,
            "audio_ms": samples_to_ms(self._audio.end_sample),
            "lost_ms": samples_to_ms(self._audio.lost_samples),
            "level_dbfs": round(self._audio.level_dbfs, 1),
            "is_speech": self._open is not None,
            "is_ending": self.is_ending,
            "has_client": self._receivers.has_client,
            "segments": self._segments,
            "finals": self._word_maker.finals,
            "failed": self._word_maker.failures,
            "backlog_s": round(self.backlog_s, 2),
            "backlog_age_s": round(self.backlog_age_s, 2),
        }
        if with_text:
            found["text"] = self._latest_text
        return found

    @property
    def backlog_s(self) -> float:
        """Speech closed and not answered."""
        return self._backlog.seconds

    @property
    def backlog_age_s(self) -> float:
        """How long the oldest closed segment has been waiting for its answer."""
        return self._backlog.age_s(self._clock.monotonic_ns())

    # ---- in: the transport -----------------------------------------------------------------

    async def feed(self, data: bytes) -> None:
        """Take a block of audio; waits while too much speech is unanswered.

        Ignored once the stream is ending.

        Raises:
            AudioError: The bytes are not what the format promises; the caller ends the stream.
            StreamBroken: A fault of ours; the caller ends the stream.
        """
        self._metrics.audio_bytes.inc(len(data))
        for offset in range(0, len(data), MOST_BYTES):
            if offset:
                await asyncio.sleep(0)
            await self._backlog.room()
            if self.is_ending:
                return
            if self._is_broken:  # found while no block was taken
                raise StreamBroken(self.name)
            self._advance(partial(self._take, data[offset : offset + MOST_BYTES]))

    @property
    def has_room(self) -> bool:
        """Whether `feed` would take a block now, without waiting."""
        return not (self.is_full or self.is_ending or self._is_broken)

    def take(self, block: bytes) -> None:
        """As `feed`, while there is room, for one who cannot wait; at most MOST_BYTES."""
        self._metrics.audio_bytes.inc(len(block))
        self._advance(partial(self._take, block))

    def lost(self, input_frames: int) -> None:
        """Note that the source lost audio, in frames (samples per channel) of its own rate.

        A long loss closes the open segment now: sound may never return. Losses with no sound in
        between are one `audio_gap`. Raises StreamBroken like `feed`.
        """
        if not self.is_ending:
            self._advance(lambda: self._audio.lost(input_frames))

    def flush(self) -> None:
        """Close the open segment now. Raises StreamBroken like `feed`."""
        if not self.is_ending:
            self._advance(self._audio.flush)

    async def finish(self) -> None:
        """Close the open segment, wait for every result, say `ended`. Idempotent."""
        self._begin_end(self._audio.finish)
        await self._ended()

    async def cancel(self) -> None:
        """Like `finish`, but the open segment is thrown away (an empty `final`)."""
        self._begin_end(self._audio.cancel)
        await self._ended()

    async def abort(self) -> None:
        """The source is gone: like `finish`, for the bus alone."""
        self.detach()
        await self.finish()

    async def abandon(self) -> None:
        """Out of time: what is not answered fails with `shutting_down`, then `ended`."""
        self._begin_end(self._audio.finish)
        for segment in self._last_words.owed:
            self._settle_segment(segment, Failure(ShuttingDown.code, "no time was left"))
        for task in self._answers:
            task.cancel()
        await self._ended()

    def detach(self) -> None:
        """The client is gone; go on for the bus alone."""
        self._receivers.detach()

    def deliver(self, message: ServerMessage) -> None:
        """Pass a message that is on the bus already to this stream's own client."""
        self._receivers.deliver(message)

    def hear_intent(self, intent: Intent) -> None:
        """Learn what a plugin found; one in the text of the silence that runs may end it."""
        self.deliver(intent)
        state = self._open
        if state is None or state.id != intent.segment or state.speculation is None:
            return
        if state.speculation.is_offered and not self.is_ending:
            self._end_after(self._settings.endpoint.after_intent())

    def report(self, code: str, message: str) -> None:
        """Say that something is wrong with the stream; the caller ends it."""
        self._receivers.report(code, message)

    # ---- audio to events -------------------------------------------------------------------

    def _take(self, block: bytes) -> list[SegmentEvent]:
        self._end_gap()
        return self._audio.take(block, self._clock.monotonic_ns())

    def _end_gap(self) -> None:
        """Say where audio is missing, now that it is known how much."""
        gap = self._audio.take_gap()
        if gap is None:
            return
        start, end = gap
        start_ms, end_ms = samples_to_ms(start), samples_to_ms(end)
        self._receivers.put(AudioGap(stream=self.name, start_ms=start_ms, end_ms=end_ms))
        self._metrics.audio_gaps.inc()
        self._metrics.audio_gap_s.inc((end - start) / RATE_HZ)

    def _advance(self, step: Callable[[], list[SegmentEvent]]) -> None:
        """Run a step of the audio chain and act on its events."""
        try:
            for event in step():
                self._on_event(event)
        except AudioError:
            raise
        except Exception:  # the top of a stream session: our fault ends this stream alone
            logger.exception("stream broke stream=%s", self.name)
            self._is_broken = True
            self._fail_open(Failure(StreamBroken.code, "internal error"))
            raise StreamBroken(self.name) from None

    def _on_event(self, event: SegmentEvent) -> None:
        match event:
            case SegmentOpened():
                text = SegmentText(self.name, event.segment, event.start_sample)
                self._open = _State(text)
                self._last_words.expect(event.segment)
                self._trace.opened(event.segment, self._clock.monotonic_ns())
                self._segments += 1
                self._receivers.put(
                    SpeechStarted(
                        stream=self.name,
                        segment=event.segment,
                        start_ms=samples_to_ms(event.start_sample),
                    )
                )
            case SegmentGrown():
                if self._open is not None:
                    self._ask_partial(self._open)
            case SegmentPaused():
                if self._open is not None:
                    self._on_paused(self._open, event)
            case SegmentResumed():
                if self._open is not None:
                    self._on_resumed(self._open)
            case SegmentClosed():
                self._on_closed(event)
            case SegmentDropped():
                self._on_dropped()

    def _on_closed(self, event: SegmentClosed) -> None:
        segment, state = event.segment, self._take_open()
        state.text.start_sample, state.text.end_sample = segment.start_sample, segment.end_sample
        self._metrics.segments.labels(reason=event.reason.value).inc()
        self._metrics.segment_s.observe(segment.duration_s)
        self._receivers.put(
            SpeechEnded(
                stream=self.name,
                segment=segment.id,
                start_ms=samples_to_ms(segment.start_sample),
                end_ms=samples_to_ms(segment.end_sample),
                reason=event.reason.value,
            ),
            segment=segment,
            revision=state.text.revision + 1,
        )
        arrived_ns = self._audio.arrived_ns(segment.end_sample) or self._clock.monotonic_ns()
        self._trace.closed(segment.id, arrived_ns, round(segment.duration_s * 1000))
        speculation = state.speculation
        if speculation is not None and not (speculation.is_asked and speculation.is_of(segment)):
            self._withdraw(state)
            speculation = None
        if speculation is not None and speculation.transcript is not None:
            self._metrics.speculations.labels(outcome="ready").inc()
            self._settle_segment(state.id, Answer(state.text, speculation.transcript, arrived_ns))
            return
        self._backlog.add(segment.duration_s)
        self._spawn(self._answers, self._answer(state, segment, arrived_ns, speculation))

    def _on_dropped(self) -> None:
        state = self._take_open()
        self._withdraw(state)
        self._metrics.segments_dropped.inc()
        nothing = Transcript(
            segment=state.id,
            revision=state.asked + 1,
            text="",
            is_final=True,
            language=self._settings.language or UNDETERMINED,
            confidence=0.0,
        )
        self._settle_segment(state.id, Answer(state.text, nothing, None))

    def _take_open(self) -> _State:
        state, self._open = self._open, None
        if state is None:
            raise RuntimeError(f"stream {self.name}: a segment ended that was never opened")
        self._drop_partial(state, "closed")
        return state

    def _drop_partial(self, state: _State, reason: str) -> None:
        """Take back the partial under way: a final comes first, and nobody wants this one."""
        if state.partial is not None:
            state.partial.cancel()
            state.partial = None
            self._metrics.partials_dropped.labels(reason=reason).inc()

    # ---- results ---------------------------------------------------------------------------

    def _ask_partial(self, state: _State) -> None:
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
            state.partial = self._spawn(self._guesses, self._partial(state, segment))

    async def _partial(self, state: _State, segment: Segment) -> None:
        timeout_s = self._settings.partial_timeout_s
        deadline_ns = self._asker.deadline_ns(timeout_s)
        self._pace.asked(self._clock.monotonic_ns())
        outcome = await self._asker.ask(
            self._request(segment, RequestKind.PARTIAL, state.asked, deadline_ns), timeout_s
        )
        self._pace.answered(self._clock.monotonic_ns())
        state.partial = None
        if isinstance(outcome, Failure):
            self._metrics.partials_dropped.labels(reason=outcome.code).inc()
        else:
            self._emit_partial(state, outcome, segment.end_sample, is_searched=False)

    def _request(
        self, segment: Segment, kind: RequestKind, revision: int, deadline_ns: int | None = None
    ) -> Request:
        return Request(segment, kind, revision, deadline_ns, self._settings.hotwords)

    def _emit_partial(
        self, state: _State, transcript: Transcript, end_sample: int, *, is_searched: bool
    ) -> None:
        message = state.text.partial(transcript, end_sample, is_searched=is_searched)
        if message is not None:
            self._metrics.partials.inc()
            arrived_ns = self._audio.arrived_ns(end_sample)
            if arrived_ns is not None:
                latency_ns = self._clock.monotonic_ns() - arrived_ns
                self._metrics.partial_latency_s.observe(max(0, latency_ns) / 1e9)
            self._latest_text = message.text
            self._receivers.put(message)

    async def _answer(
        self, state: _State, segment: Segment, arrived_ns: int, speculation: Speculation | None
    ) -> None:
        """Give a closed segment its one `final` or `failed`."""
        deadline_ns = self._asker.deadline_ns(self._settings.final_timeout_s)
        outcome: Transcript | Failure | None = None
        self._backlog.wait(state.id, self._clock.monotonic_ns())
        try:
            if speculation is not None:
                outcome = await self._speculated(speculation, state.id, deadline_ns)
            if outcome is None:
                request = self._request(segment, RequestKind.FINAL, state.asked + 1, deadline_ns)
                outcome = await self._asker.ask(request, self._settings.final_timeout_s)
        finally:
            self._backlog.answered(state.id, segment.duration_s)
        if isinstance(outcome, Transcript):
            self._settle_segment(state.id, Answer(state.text, outcome, arrived_ns))
        else:
            self._settle_segment(state.id, outcome)

    # ---- speculation -----------------------------------------------------------------------

    def _on_paused(self, state: _State, event: SegmentPaused) -> None:
        """Begin the final now: most silences end the segment. While finals wait, nobody guesses."""
        if self._engine.queued_finals > 0:
            self._metrics.speculations.labels(outcome="finals_waiting").inc()
            return
        self._drop_partial(state, "paused")
        state.asked += 1
        task = self._spawn(self._guesses, self._speculate(state, event.segment))
        state.speculation = Speculation(event, task)

    async def _speculate(self, state: _State, snapshot: Segment) -> Transcript | Failure:
        if state.speculation is not None:
            state.speculation.is_asked = True
        request = self._request(snapshot, RequestKind.EAGER, state.asked)
        outcome = await self._asker.ask(request, self._settings.final_timeout_s)
        if isinstance(outcome, Transcript) and state is self._open and not self.is_ending:
            self._on_eager(state, outcome, snapshot)
        return outcome

    def _on_eager(self, state: _State, transcript: Transcript, snapshot: Segment) -> None:
        """The text is here before the silence has ended the segment."""
        if self._settings.wants_partials:
            heard_sample = min(snapshot.end_sample, self._audio.end_sample)
            self._emit_partial(state, transcript, heard_sample, is_searched=True)
        if transcript.text and state.speculation is not None:
            state.speculation.is_offered = True
            self._receivers.offer(state.text.eager(transcript, snapshot.end_sample))
        self._end_after(self._settings.endpoint.after(transcript.text))

    def _end_after(self, silence_ms: int) -> None:
        """Let the silence that runs end the segment sooner or later than by the settings."""
        with contextlib.suppress(StreamBroken):  # logged and answered; the next block is told
            self._advance(lambda: self._audio.end_after(silence_ms))

    async def _speculated(
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

    def _on_resumed(self, state: _State) -> None:
        was_offered = state.speculation is not None and state.speculation.is_offered
        self._withdraw(state)
        if was_offered:
            self._receivers.offer(Resumed(stream=self.name, segment=state.id))

    def _withdraw(self, state: _State) -> None:
        speculation, state.speculation = state.speculation, None
        if speculation is not None:
            self._metrics.speculations.labels(outcome="withdrawn").inc()
            speculation.withdraw()

    # ---- last words ------------------------------------------------------------------------

    def _settle_segment(self, segment: int, outcome: Answer | Failure) -> None:
        """Decide a segment's last word, unless it has one; it is published when its turn comes."""
        timings = outcome.transcript.timings if isinstance(outcome, Answer) else None
        self._trace.answered(segment, self._clock.monotonic_ns(), timings)
        for number, word in self._last_words.give(segment, (segment, outcome)):
            if isinstance(word, Answer):
                final = self._word_maker.final(word, self._clock.monotonic_ns())
                self._latest_text = final.text or self._latest_text
                self._publish_last(final, "final")
            else:
                self._publish_last(self._word_maker.failed(number, word), word.code)

    def _publish_last(self, message: Final | Failed, outcome: str) -> None:
        self._receivers.put_last_word(message)
        self._trace.published(message.segment, self._clock.monotonic_ns(), outcome)

    def _fail_open(self, failure: Failure) -> None:
        if self._open is not None:
            state = self._take_open()
            self._withdraw(state)
            self._settle_segment(state.id, failure)

    # ---- the end ---------------------------------------------------------------------------

    def _begin_end(self, last_step: Callable[[], list[SegmentEvent]]) -> None:
        """Close the audio chain with `last_step`; the first call wins."""
        if self._ending is not None:
            return
        self._ending = asyncio.create_task(self._settle())
        self._backlog.release()
        if self._is_broken:
            return
        try:
            self._advance(last_step)
        except AudioError as error:
            logger.info("stream ends badly stream=%s error=%s", self.name, error)
            self._fail_open(Failure(error.code, str(error)))
        except StreamBroken:
            pass  # logged and answered where it was caught

    async def _ended(self) -> None:
        """Wait for the end; a caller that is cancelled does not cancel the end."""
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _settle(self) -> None:
        while self._answers:
            await asyncio.wait(self._answers)
        for task in self._guesses:
            task.cancel()
        if self._guesses:
            await asyncio.wait(self._guesses)
        for segment in self._last_words.owed:  # a fault of ours kept it from being asked
            self._settle_segment(segment, Failure(StreamBroken.code, "internal error"))
        self._end_gap()
        lost_ms = samples_to_ms(self._audio.lost_samples)
        audio_ms = samples_to_ms(self._audio.end_sample)
        ended = Ended(stream=self.name, audio_ms=audio_ms, segments=self._segments, lost_ms=lost_ms)
        await self._receivers.put_end(ended)
        self._metrics.streams_open.dec()
        logger.info(
            "stream closed stream=%s audio_ms=%d segments=%d finals=%d failed=%d lost_ms=%d",
            self.name,
            audio_ms,
            self._segments,
            self._word_maker.finals,
            self._word_maker.failures,
            lost_ms,
        )
        if self._on_end is not None:
            self._on_end(self)

    # ---- helpers ---------------------------------------------------------------------------

    def _spawn(
        self, group: set[asyncio.Task[Any]], work: Coroutine[Any, Any, T]
    ) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        return task
