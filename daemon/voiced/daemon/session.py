"""One stream from open to end, whatever carries its audio: WebSocket, microphone or file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

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
from voiced.daemon.errors import ShuttingDown, StreamBroken
from voiced.daemon.guesses import Guesses, OpenSegment
from voiced.daemon.last_word import Answer, LastWordMaker
from voiced.daemon.metrics import Metrics
from voiced.daemon.outlet import Outlet
from voiced.daemon.receivers import Receivers, Send
from voiced.daemon.results import LastWords
from voiced.daemon.segment_text import SegmentText
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.speculation import Speculation
from voiced.daemon.stream_audio import Front, Intake, StreamAudio
from voiced.daemon.tracing import SegmentTracer, StreamTrace
from voiced.daemon.wire import (
    AudioGap,
    Ended,
    Failed,
    Final,
    Intent,
    Partial,
    Ready,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
)
from voiced.engine.types import RequestKind, Transcript

logger = logging.getLogger(__name__)

UNDETERMINED = "und"
"""`final.language` when no speech was found and none was pinned (ISO 639-2)."""

MOST_BYTES = 8 * 1024
"""Audio handled before other tasks get the loop: 256 ms of 16 kHz s16, 1.5 ms of work."""


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
        self._open: OpenSegment | None = None
        self._last_words: LastWords[tuple[int, Answer | Failure]] = LastWords()
        self._asker = Asker(engine, self._clock, name, self._settings.hotwords)
        self._guesses = Guesses(
            asker=self._asker,
            engine=engine,
            audio=self._audio,
            settings=self._settings,
            metrics=self._metrics,
            clock=self._clock,
            put=self._put_partial,
            offer=self._receivers.offer,
            end_after=self._end_after,
        )
        self._answers: set[asyncio.Task[None]] = set()
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
        if self._open is not None and self._open.id == intent.segment:
            self._guesses.heard_intent(self._open)

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
                self._open = OpenSegment(text)
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
                    self._guesses.grown(self._open)
            case SegmentPaused():
                if self._open is not None:
                    self._guesses.paused(self._open, event)
            case SegmentResumed():
                if self._open is not None:
                    self._guesses.resumed(self._open)
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
        speculation = self._guesses.for_final(state, segment)
        if speculation is not None and speculation.transcript is not None:
            self._settle_segment(state.id, Answer(state.text, speculation.transcript, arrived_ns))
            return
        self._backlog.add(segment.duration_s)
        task = asyncio.create_task(self._answer(state, segment, arrived_ns, speculation))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _on_dropped(self) -> None:
        state = self._take_open()
        self._guesses.withdraw(state)
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

    def _take_open(self) -> OpenSegment:
        state, self._open = self._open, None
        if state is None:
            raise RuntimeError(f"stream {self.name}: a segment ended that was never opened")
        state.is_open = False
        self._guesses.drop_partial(state, "closed")
        return state

    def _put_partial(self, message: Partial) -> None:
        self._latest_text = message.text
        self._receivers.put(message)

    def _end_after(self, silence_ms: int) -> None:
        """Let the silence that runs end the segment sooner or later than by the settings."""
        with contextlib.suppress(StreamBroken):  # logged and answered; the next block is told
            self._advance(lambda: self._audio.end_after(silence_ms))

    # ---- results ---------------------------------------------------------------------------

    async def _answer(
        self, state: OpenSegment, segment: Segment, arrived_ns: int, speculation: Speculation | None
    ) -> None:
        """Give a closed segment its one `final` or `failed`."""
        deadline_ns = self._asker.deadline_ns(self._settings.final_timeout_s)
        outcome: Transcript | Failure | None = None
        self._backlog.wait(state.id, self._clock.monotonic_ns())
        try:
            if speculation is not None:
                outcome = await self._guesses.promoted(speculation, state.id, deadline_ns)
            if outcome is None:
                request = self._asker.request(
                    segment, RequestKind.FINAL, state.asked + 1, deadline_ns
                )
                outcome = await self._asker.ask(request, self._settings.final_timeout_s)
        finally:
            self._backlog.answered(state.id, segment.duration_s)
        if isinstance(outcome, Transcript):
            self._settle_segment(state.id, Answer(state.text, outcome, arrived_ns))
        else:
            self._settle_segment(state.id, outcome)

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
            self._guesses.withdraw(state)
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
        await self._guesses.stop()
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
