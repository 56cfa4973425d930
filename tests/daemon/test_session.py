"""One stream: audio in, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.daemon.stream_bench import START, WORD, Bench, check_promises, run, until

from voiced.audio.frames import RATE_HZ, SegmentClosed, SegmentEvent, SegmentOpened
from voiced.audio.front import FrontSettings
from voiced.daemon.errors import (
    NotReady,
    ShuttingDown,
    StreamBroken,
    StreamInUse,
    TooManyStreams,
    UnknownLanguage,
)
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.testing import (
    LoudnessChains,
    ScriptedEngine,
    length_as_text,
    silence,
    tone,
)
from voiced.daemon.wire import (
    AudioGap,
    AudioParams,
    Ended,
    Failed,
    Final,
    Intent,
    Partial,
    Ready,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
    Start,
    VadParams,
)
from voiced.engine.errors import EngineBusy, EngineDead
from voiced.engine.types import Request, RequestKind, Transcript


class Uneven(ScriptedEngine):
    """Takes a different time for each segment, so that answers overtake each other."""

    def __init__(
        self, turns: list[int], *, answer: Callable[[Request], Transcript] | None = None
    ) -> None:
        super().__init__(answer=answer)
        self._turns = turns

    async def recognize(self, request: Request) -> Transcript:
        for _ in range(self._turns[request.segment.id % len(self._turns)]):
            await asyncio.sleep(0)
        return await super().recognize(request)


class Held(ScriptedEngine):
    """Answers the final of a segment when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, asyncio.Event] = {}

    async def recognize(self, request: Request) -> Transcript:
        if request.kind is RequestKind.FINAL:
            await self.gates.setdefault(request.segment.id, asyncio.Event()).wait()
        return await super().recognize(request)


def test_a_word_is_announced_ended_and_answered_with_its_place() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(), stream="desk", partials=False))
        await session.feed(WORD)
        await session.finish()
        assert bench.names() == ["Ready", "SpeechStarted", "SpeechEnded", "Final", "Ended"]
        check_promises(bench.published)
        ready, started, ended, final, end = bench.published
        assert ready == Ready(stream="desk", bundle="scripted@0", rate_hz=16_000)
        assert isinstance(started, SpeechStarted)
        assert isinstance(ended, SpeechEnded)
        assert isinstance(final, Final)
        assert abs(started.start_ms - 100) <= 40  # the tone begins at 600, padded by 500
        assert abs(ended.end_ms - 2_100) <= 40
        assert ended.reason == "silence"
        assert (final.start_ms, final.end_ms) == (ended.start_ms, ended.end_ms)
        assert end == Ended(stream="desk", audio_ms=3_000, segments=1)

    run(scenario)


def test_latency_counts_from_the_arrival_of_the_segments_last_audio() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        bench.engine.gate.clear()
        for offset in range(0, len(WORD), 640):
            await session.feed(WORD[offset : offset + 640])
            bench.clock.advance_ms(20)
        bench.clock.advance_ms(1_000)
        bench.engine.gate.set()
        await session.finish()
        (final,) = bench.of(Final)
        assert isinstance(final, Final)
        arrived_ms = -(-final.end_ms // 20) * 20 - 20
        assert final.latency_ms == 3_000 + 1_000 - arrived_ms

    run(scenario)


def test_a_stream_is_quiet_again_when_what_was_said_is_answered() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        bench.engine.gate.clear()
        seen = [session.is_quiet]
        for part in (WORD[:16_000], WORD[16_000:32_000], WORD[32_000:]):  # 0.5, 1 and 3 s
            await session.feed(part)
            seen.append(session.is_quiet)
        assert seen == [True, True, False, False]
        bench.engine.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.of(Final)
        assert session.is_quiet
        await session.finish()

    run(scenario)


def test_partials_grow_until_the_final_and_never_after() -> None:
    async def scenario() -> None:
        bench = Bench(front=FrontSettings(grown_ms=200))
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        check_promises(bench.published)
        assert len(bench.of(Partial)) >= 2
        assert bench.metrics.value("voiced_partials_total") == len(bench.of(Partial))

    run(scenario)


def test_a_final_corrects_what_partials_called_stable() -> None:
    def answer(request: Request) -> Transcript:
        words = "open the windows" if request.kind is RequestKind.PARTIAL else "Close the windows"
        return replace(length_as_text(request), text=words)

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer), front=FrontSettings(grown_ms=200))
        session = bench.open()
        for offset in range(0, len(WORD), 640):
            await session.feed(WORD[offset : offset + 640])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await session.finish()
        check_promises(bench.published)
        *_, partial = bench.of(Partial)
        (final,) = bench.of(Final)
        assert isinstance(partial, Partial)
        assert isinstance(final, Final)
        assert partial.stable_chars > 0
        assert final.text == "Close the windows"
        assert bench.metrics.value("voiced_finals_corrected_total") == 1

    run(scenario)


def test_a_partial_under_way_is_taken_back_when_its_segment_closes() -> None:
    class SlowPartials(ScriptedEngine):
        taken_back = 0

        async def recognize(self, request: Request) -> Transcript:
            if request.kind is RequestKind.PARTIAL:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.taken_back += 1
                    raise
            return await super().recognize(request)

    async def scenario() -> None:
        engine = SlowPartials()
        bench = Bench(engine=engine)
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        assert bench.names() == ["Ready", "SpeechStarted", "SpeechEnded", "Final", "Ended"]
        assert engine.taken_back == 1

    run(scenario)


def test_an_empty_final_takes_back_what_partials_said() -> None:
    def answer(request: Request) -> Transcript:
        text = "thank you" if request.kind is RequestKind.PARTIAL else ""
        return replace(length_as_text(request), text=text)

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer), front=FrontSettings(grown_ms=200))
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        (final,) = bench.of(Final)
        assert isinstance(final, Final)
        assert final.text == ""

    run(scenario)


def test_no_partial_is_asked_for_while_finals_wait() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.engine.queued_finals = 1
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        assert [request.kind for request in bench.engine.requests] == [RequestKind.FINAL]
        dropped = bench.metrics.value("voiced_partials_dropped_total", reason="finals_waiting")
        assert dropped >= 1

    run(scenario)


def test_a_client_that_wants_no_partials_gets_none() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD)
        await session.finish()
        assert [request.kind for request in bench.engine.requests] == [RequestKind.FINAL]

    run(scenario)


def test_a_partial_that_fails_costs_only_itself() -> None:
    def answer(request: Request) -> Transcript:
        if request.kind is RequestKind.PARTIAL:
            raise EngineBusy(100)
        return length_as_text(request)

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer))
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        check_promises(bench.published)
        assert len(bench.of(Final)) == 1
        assert bench.of(Partial) == []

    run(scenario)


def test_an_engine_error_becomes_failed_with_its_code() -> None:
    def answer(_: Request) -> Transcript:
        raise EngineDead("worker died twice")

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer))
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        check_promises(bench.published)
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert (failed.code, failed.message) == ("engine_dead", "worker died twice")

    run(scenario)


def test_a_fault_in_the_engine_call_is_answered_with_the_code_alone() -> None:
    def answer(_: Request) -> Transcript:
        raise KeyError("secret")

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer))
        session = bench.open()
        await session.feed(WORD)
        await session.finish()
        check_promises(bench.published)
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert failed.code == "internal"
        assert "secret" not in failed.message

    run(scenario)


def test_a_busy_engine_is_asked_again_for_a_final() -> None:
    refusals = iter([EngineBusy(1), EngineBusy(1)])

    def answer(request: Request) -> Transcript:
        refusal = next(refusals, None)
        if refusal is not None:
            raise refusal
        return length_as_text(request)

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer))
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD)
        await session.finish()
        check_promises(bench.published)
        assert len(bench.of(Final)) == 1

    run(scenario)


def test_an_engine_that_stays_busy_past_the_deadline_fails_the_segment() -> None:
    def answer(_: Request) -> Transcript:
        raise EngineBusy(retry_after_ms=120_000)

    async def scenario() -> None:
        bench = Bench(engine=ScriptedEngine(answer=answer))
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD)
        await session.finish()
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert failed.code == "busy"

    run(scenario)


def test_a_final_waits_for_the_last_word_on_the_segment_before_and_counts_the_wait() -> None:
    async def scenario() -> None:
        bench = Bench(engine=(engine := Held()))
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD + WORD)
        await until(lambda: len(engine.gates) == 2)
        engine.gates[2].set()
        await until(lambda: len(engine.requests) == 1)
        await session.feed(tone(1.0))  # what is not a last word is not held back
        assert bench.names() == ["Ready", *["SpeechStarted", "SpeechEnded"] * 2, "SpeechStarted"]
        bench.clock.advance_ms(700)
        engine.gates[1].set()
        await until(lambda: len(bench.of(Final)) == 2)
        first, second = bench.of(Final)
        assert isinstance(first, Final)
        assert isinstance(second, Final)
        assert (first.segment, second.segment) == (1, 2)
        assert second.latency_ms >= 700
        await session.cancel()
        check_promises(bench.published)

    run(scenario)


def test_a_sound_that_was_no_speech_waits_for_its_turn_too() -> None:
    async def scenario() -> None:
        bench = Bench(engine=(engine := Held()))
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD + tone(1.0))
        await until(lambda: 1 in engine.gates)
        cancelling = asyncio.create_task(session.cancel())
        await asyncio.sleep(0)
        assert bench.of(Final) == []
        engine.gates[1].set()
        await cancelling
        check_promises(bench.published)
        assert [m.text == "" for m in bench.of(Final) if isinstance(m, Final)] == [False, True]

    run(scenario)


def test_out_of_time_an_answer_that_waits_for_its_turn_is_not_lost() -> None:
    async def scenario() -> None:
        bench = Bench(engine=(engine := Held()))
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(WORD + WORD)
        await until(lambda: len(engine.gates) == 2)
        engine.gates[2].set()
        await until(lambda: len(engine.requests) == 1)
        await asyncio.sleep(0)
        await session.abandon()
        check_promises(bench.published)
        assert [type(m).__name__ for m in bench.of(Final, Failed)] == ["Failed", "Final"]

    run(scenario)


@pytest.mark.parametrize("broken", ["publish", "send"])
def test_a_receiver_that_breaks_on_a_final_gets_failed_and_the_other_its_final(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        taken: dict[str, list[ServerMessage]] = {"publish": [], "send": []}

        def receiver(name: str) -> Callable[[ServerMessage], None]:
            def take(message: ServerMessage) -> None:
                if name == broken and isinstance(message, Final) and message.segment == 1:
                    raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
                taken[name].append(message)

            return take

        intake, front = LoudnessChains()("s", START)
        session = StreamSession(
            "s",
            intake=intake,
            front=front,
            engine=ScriptedEngine(),
            publish=receiver("publish"),
            send=receiver("send"),
        )
        await session.feed(WORD + WORD)
        await session.finish()
        for name, messages in taken.items():
            check_promises(messages)
            words = [type(m).__name__ for m in messages if isinstance(m, Final | Failed)]
            assert words == ["Failed" if name == broken else "Final", "Final"]
        assert "last word broke stream=s segment=1" in caplog.text

    run(scenario)


def test_flush_closes_the_open_segment_and_the_stream_goes_on() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open()
        await session.feed(silence(0.6) + tone(1.0))
        session.flush()
        await session.feed(tone(1.0))
        await session.finish()
        check_promises(bench.published)
        reasons = [
            ended.reason for ended in bench.of(SpeechEnded) if isinstance(ended, SpeechEnded)
        ]
        assert reasons == ["flush", "end_of_stream"]

    run(scenario)


def test_cancel_gives_the_open_segment_an_empty_final() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        await session.feed(silence(0.6) + tone(1.0))
        await session.cancel()
        check_promises(bench.published)
        (final,) = bench.of(Final)
        assert isinstance(final, Final)
        assert (final.text, final.language) == ("", "und")
        assert bench.engine.requests == []

    run(scenario)


def test_a_source_that_is_gone_still_gets_its_last_word_on_the_bus_alone() -> None:
    async def scenario() -> None:
        bench = Bench()
        sent: list[ServerMessage] = []
        session = bench.streams.open(START, send=sent.append)
        await session.feed(silence(0.6) + tone(1.0))
        before = len(sent)
        await session.abort()
        check_promises(bench.published)
        assert len(bench.of(Final)) == 1
        assert len(sent) == before

    run(scenario)


def test_a_sentence_is_answered_while_its_device_is_away() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open()
        await session.feed(tone(1.0))
        session.lost(4_000)
        await until(lambda: bool(bench.of(Final)))
        session.lost(4_000)
        await session.finish()
        check_promises(bench.published)
        assert [m.reason for m in bench.of(SpeechEnded) if isinstance(m, SpeechEnded)] == ["gap"]

    run(scenario)


def test_lost_audio_moves_the_clock_and_is_reported() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open(Start(v=1, audio=AudioParams(rate_hz=48_000, channels=2)))
        await session.feed(tone(1.0, rate_hz=48_000, channels=2))
        session.lost(48_000)
        await session.feed(tone(1.0, rate_hz=48_000, channels=2))
        await session.finish()
        check_promises(bench.published)
        ended = bench.published[-1]
        assert isinstance(ended, Ended)
        assert (ended.audio_ms, ended.lost_ms) == (3_000, 1_000)
        gap = bench.of(SpeechEnded)[0]
        assert isinstance(gap, SpeechEnded)
        assert gap.reason == "gap"

    run(scenario)


def test_losses_without_sound_between_them_are_one_gap_told_when_sound_is_back() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open()
        await session.feed(tone(1.0))
        for _ in range(3):
            session.lost(RATE_HZ // 4)
        assert bench.of(AudioGap) == []
        await session.feed(tone(0.5))
        session.lost(RATE_HZ)
        await session.finish()
        gaps = [(m.start_ms, m.end_ms) for m in bench.of(AudioGap) if isinstance(m, AudioGap)]
        assert gaps == [(1_000, 1_750), (2_250, 3_250)]
        assert bench.metrics.value("voiced_audio_gaps_total") == 2
        assert bench.metrics.value("voiced_audio_gap_seconds_total") == 1.75
        assert isinstance(bench.published[-1], Ended)

    run(scenario)


def test_a_source_faster_than_the_engine_is_slowed_not_dropped() -> None:
    async def scenario() -> None:
        bench = Bench(session=SessionSettings(max_backlog_s=3.0))
        bench.engine.gate.clear()
        session = bench.open(Start(v=1, audio=AudioParams(), partials=False))
        feeding = asyncio.create_task(session.feed(WORD * 10))
        await until(lambda: len(bench.engine.requests) == 2)
        for _ in range(200):
            await asyncio.sleep(0)
        assert not feeding.done()
        assert len(bench.engine.requests) == 2  # 2 x 2 s are more than 3 s
        bench.engine.gate.set()
        await feeding
        await session.finish()
        check_promises(bench.published)
        assert len(bench.of(Final)) == 10

    run(scenario)


def test_the_end_frees_a_source_that_waits() -> None:
    async def scenario() -> None:
        bench = Bench(session=SessionSettings(max_backlog_s=0.0))
        bench.engine.gate.clear()
        session = bench.open()
        feeding = asyncio.create_task(session.feed(WORD * 5))
        await until(lambda: bench.of(SpeechEnded) != [])
        finishing = asyncio.create_task(session.finish())
        await feeding
        bench.engine.gate.set()
        await finishing
        check_promises(bench.published)

    run(scenario)


def test_out_of_time_what_is_open_fails_and_the_stream_still_ends() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.engine.gate.clear()
        session = bench.open()
        await session.feed(WORD + tone(1.0))
        await session.abandon()
        check_promises(bench.published)
        codes = [failed.code for failed in bench.of(Failed) if isinstance(failed, Failed)]
        assert codes == ["shutting_down", "shutting_down"]

    run(scenario)


def test_a_fault_in_the_audio_chain_ends_its_stream_and_answers_what_was_open() -> None:
    class Broken:
        decision_sample = 0

        def feed(self, _: object) -> list[SegmentEvent]:
            if not self.is_open:
                self.is_open = True
                return [SegmentOpened(7, 0)]
            raise ZeroDivisionError

        is_open = False

    async def scenario() -> None:
        bench = Bench()
        intake, _ = LoudnessChains()("s", START)
        session = StreamSession(
            "s",
            intake=intake,
            front=Broken(),  # type: ignore[arg-type]
            engine=bench.engine,
            publish=bench.published.append,
        )
        await session.feed(silence(0.1))
        with pytest.raises(StreamBroken):
            await session.feed(silence(0.1))
        await session.finish()
        check_promises(bench.published)
        assert bench.names() == ["Ready", "SpeechStarted", "Failed", "Ended"]

    run(scenario)


def test_a_fault_while_a_segment_is_closed_still_answers_it() -> None:
    class Broken:
        decision_sample = 0

        def feed(self, _: object) -> list[object]:
            return [SegmentOpened(7, 0), SegmentClosed(None, None)]  # type: ignore[arg-type]

    async def scenario() -> None:
        bench = Bench()
        intake, _ = LoudnessChains()("s", START)
        session = StreamSession(
            "s",
            intake=intake,
            front=Broken(),  # type: ignore[arg-type]
            engine=bench.engine,
            publish=bench.published.append,
        )
        with pytest.raises(StreamBroken):
            await session.feed(silence(0.1))
        await session.finish()
        assert bench.names() == ["Ready", "SpeechStarted", "Failed", "Ended"]

    run(scenario)


def test_minutes_of_silence_say_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open()
        await session.feed(silence(180))
        await session.finish()
        assert bench.names() == ["Ready", "Ended"]

    run(scenario)


def test_a_stream_ends_once_however_often_it_is_told() -> None:
    async def scenario() -> None:
        bench = Bench()
        session = bench.open()
        await session.feed(WORD)
        await asyncio.gather(session.finish(), session.abort(), session.cancel())
        await session.feed(WORD)
        session.flush()
        check_promises(bench.published)
        assert len(bench.streams) == 0

    run(scenario)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["tone", "silence", "short", "flush", "lost", "yield", "busy", "free"]),
        max_size=25,
    ),
    st.sampled_from(["finish", "cancel", "abort", "abandon"]),
    st.integers(0, 2),
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
)
@example(["tone", "flush", "tone", "flush"], "finish", 0, [0, 40])  # the second overtakes
def test_every_segment_has_one_last_word_in_order_whatever_happens(
    steps: list[str], end: str, failures: int, turns: list[int]
) -> None:
    def answer(request: Request) -> Transcript:
        if request.segment.id % 3 < failures:
            raise EngineDead("gone")
        return length_as_text(request)

    async def scenario() -> None:
        bench = Bench(engine=Uneven(turns, answer=answer))
        session = bench.open(Start(v=1, audio=AudioParams(), vad=VadParams(max_segment_s=2)))
        for step in steps:
            match step:
                case "tone":
                    await session.feed(tone(0.7))
                case "silence":
                    await session.feed(silence(0.7))
                case "short":
                    await session.feed(tone(0.06))
                case "flush":
                    session.flush()
                case "lost":
                    session.lost(16_000)
                case "busy":
                    bench.engine.gate.clear()
                case "free":
                    bench.engine.gate.set()
                case _:
                    await asyncio.sleep(0)
        ending = asyncio.create_task(getattr(session, end)())
        await asyncio.sleep(0)
        bench.engine.gate.set()
        await ending
        check_promises(bench.published)

    run(scenario)


def test_a_name_in_use_is_refused_until_its_stream_has_ended() -> None:
    async def scenario() -> None:
        bench = Bench()
        desk = Start(v=1, audio=AudioParams(), stream="desk")
        first = bench.open(desk)
        with pytest.raises(StreamInUse) as caught:
            bench.open(desk)
        assert caught.value.retry_after_ms is None
        await first.feed(WORD)
        bench.engine.gate.clear()
        ending = asyncio.create_task(first.finish())
        await asyncio.sleep(0)
        with pytest.raises(StreamInUse) as caught:
            bench.open(desk)
        assert caught.value.retry_after_ms is not None
        bench.engine.gate.set()
        await ending
        await bench.open(desk).finish()

    run(scenario)


def test_streams_without_a_name_get_different_ones() -> None:
    async def scenario() -> None:
        bench = Bench()
        taken = bench.open(Start(v=1, audio=AudioParams(), stream="s1"))
        sessions = [taken, bench.open(), bench.open()]
        assert len({session.name for session in sessions}) == 3
        await bench.streams.drain(deadline_s=10)

    run(scenario)


@pytest.mark.parametrize(("asked", "used"), [(None, "zh"), ("en", "en")])
def test_the_daemons_language_is_used_where_a_stream_pins_none(
    asked: str | None, used: str
) -> None:
    async def scenario() -> None:
        bench = Bench(session=SessionSettings(language="zh"))
        session = bench.open(Start(v=1, audio=AudioParams(), language=asked))
        await session.feed(WORD)
        await session.finish()
        assert {request.segment.language for request in bench.engine.requests} == {used}

    run(scenario)


def test_streams_are_refused_with_the_reason() -> None:
    async def scenario() -> None:
        bench = Bench(max_streams=1)
        bench.engine.ready, bench.engine.reason = False, "warming gear 1x400"
        with pytest.raises(NotReady, match="warming gear 1x400"):
            bench.open()
        bench.engine.ready = True
        with pytest.raises(UnknownLanguage, match=r"'fr'.*en, zh"):
            bench.open(Start(v=1, audio=AudioParams(), language="fr"))
        session = bench.open()
        with pytest.raises(TooManyStreams):
            bench.open()
        await bench.streams.drain(deadline_s=10)
        assert session.is_ending
        with pytest.raises(ShuttingDown):
            bench.open()
        assert bench.metrics.value("voiced_streams_refused_total", code="busy") == 1

    run(scenario)


def test_a_drain_past_its_deadline_fails_what_is_left() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.engine.gate.clear()
        await bench.open().feed(WORD)
        await bench.streams.drain(deadline_s=0.01)
        check_promises(bench.published)
        assert len(bench.of(Failed)) == 1
        assert bench.metrics.value("voiced_streams_open") == 0

    run(scenario)


def test_an_intent_reaches_the_client_of_its_stream() -> None:
    async def scenario() -> None:
        bench = Bench()
        sent: list[ServerMessage] = []
        name = bench.streams.open(START, send=sent.append).name
        intent = Intent(stream=name, segment=1, name="n", slots={}, text="t", confidence=1.0)
        bench.streams.deliver(intent)
        assert sent[-1] == intent
        await bench.streams.drain(deadline_s=10)
        bench.streams.deliver(intent)
        assert isinstance(sent[-1], Ended)

    run(scenario)
