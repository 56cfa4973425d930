"""Finals that are begun when silence begins: used, waited for, withdrawn, offered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.daemon.stream_bench import START, Bench, check_promises, run, until

from voiced.audio.frames import SegmentEvent
from voiced.audio.front import FrontSettings
from voiced.daemon.errors import StreamBroken
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, length_as_text, silence, tone
from voiced.daemon.wire import (
    AudioParams,
    EagerFinal,
    Failed,
    Final,
    Intent,
    Partial,
    Resumed,
    ServerMessage,
    SpeechEnded,
    Start,
    VadParams,
)
from voiced.engine.errors import EngineDead, Superseded
from voiced.engine.types import Request, RequestKind, Transcript

EAGER_FRONT = FrontSettings(grown_ms=0, eager_ms=200)
QUIETLY = Start(v=1, audio=AudioParams(), partials=False, eager=True)
EAGER, FINAL, PARTIAL = RequestKind.EAGER, RequestKind.FINAL, RequestKind.PARTIAL


def bench_of(engine: ScriptedEngine | None = None, **settings_: bool) -> Bench:
    session = SessionSettings(publishes_eager=True, **settings_)
    return Bench(engine=engine, front=EAGER_FRONT, session=session)


def kinds(bench: Bench) -> list[RequestKind]:
    return [request.kind for request in bench.engine.requests]


def outcome(bench: Bench, name: str) -> float:
    return bench.metrics.value("voiced_speculations_total", outcome=name)


async def feed(session: StreamSession, data: bytes) -> None:
    """Feed as in real time: whoever waits gets the loop between two blocks."""
    for offset in range(0, len(data), 640):
        await session.feed(data[offset : offset + 640])
        for _ in range(8):
            await asyncio.sleep(0)


def failing(kind: RequestKind, error: Exception) -> Callable[[Request], Transcript]:
    def answer(request: Request) -> Transcript:
        if request.kind is kind:
            raise error
        return length_as_text(request)

    return answer


def test_the_text_is_there_when_the_silence_ends_the_segment() -> None:
    async def scenario() -> None:
        bench = bench_of()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.3))
        assert bench.names() == ["Ready", "SpeechStarted", "EagerFinal"]
        before = len(bench.published)
        for _ in range(18):  # no turn of the loop lies between the end and the text
            await session.feed(silence(0.02))
        assert bench.names()[before:] == ["SpeechEnded", "Final"]
        await session.finish()
        check_promises(bench.published)
        assert kinds(bench) == [EAGER]
        assert outcome(bench, "ready") == 1
        (offered,), (final,) = bench.of(EagerFinal), bench.of(Final)
        assert isinstance(offered, EagerFinal)
        assert isinstance(final, Final)
        assert (offered.text, offered.revision) == (final.text, final.revision)
        assert (offered.start_ms, offered.end_ms) == (final.start_ms, final.end_ms)

    run(scenario)


def test_speech_that_goes_on_withdraws_the_request_and_takes_the_offer_back() -> None:
    async def scenario() -> None:
        bench = bench_of()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.4) + tone(0.5) + silence(0.7))
        await session.finish()
        check_promises(bench.published)
        assert bench.names() == [
            "Ready",
            "SpeechStarted",
            "EagerFinal",
            "Resumed",
            "EagerFinal",
            "SpeechEnded",
            "Final",
            "Ended",
        ]
        first, second = bench.of(EagerFinal)
        (final,) = bench.of(Final)
        assert isinstance(first, EagerFinal)
        assert isinstance(second, EagerFinal)
        assert isinstance(final, Final)
        assert first.text != final.text == second.text
        assert (outcome(bench, "withdrawn"), outcome(bench, "ready")) == (1, 1)

    run(scenario)


def test_a_request_under_way_is_taken_back_when_speech_goes_on_and_nobody_was_told() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.eager_gate.clear()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.4) + tone(0.1))
        assert bench.engine.promote(1) is False  # the engine holds it no more
        bench.engine.eager_gate.set()
        await feed(session, silence(0.7))
        await session.finish()
        check_promises(bench.published)
        assert bench.of(Resumed) == []
        assert kinds(bench) == [EAGER, EAGER]

    run(scenario)


def test_a_text_that_is_not_there_in_time_is_promoted_and_waited_for() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.eager_gate.clear()
        bench.engine.gate.clear()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.7))
        assert bench.names() == ["Ready", "SpeechStarted", "SpeechEnded"]
        assert bench.engine.promoted == [1]
        bench.engine.gate.set()
        await session.finish()
        check_promises(bench.published)
        assert kinds(bench) == [EAGER]
        assert bench.of(EagerFinal) == []
        assert outcome(bench, "promoted") == 1

    run(scenario)


def test_a_speculation_that_fails_before_the_end_costs_nothing_but_itself() -> None:
    async def scenario() -> None:
        bench = bench_of(ScriptedEngine(answer=failing(EAGER, Superseded("gave way"))))
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.7))
        await session.finish()
        check_promises(bench.published)
        assert kinds(bench) == [EAGER, FINAL]
        assert len(bench.of(Final)) == 1
        assert outcome(bench, "failed") == 1

    run(scenario)


def test_a_promoted_request_that_fails_fails_the_segment_with_its_code() -> None:
    async def scenario() -> None:
        bench = bench_of(ScriptedEngine(answer=failing(EAGER, EngineDead("twice"))))
        bench.engine.eager_gate.clear()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.7))
        await session.finish()
        check_promises(bench.published)
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert failed.code == "engine_dead"
        assert kinds(bench) == [EAGER]

    run(scenario)


@pytest.mark.parametrize("end", ["flush", "finish", "lost"])
def test_a_segment_that_is_closed_in_the_pause_uses_the_text_too(end: str) -> None:
    async def scenario() -> None:
        bench = bench_of()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.3))
        if end == "lost":
            session.lost(16_000)
        elif end == "flush":
            session.flush()
        await session.finish()
        check_promises(bench.published)
        assert kinds(bench) == [EAGER]
        assert len(bench.of(Final)) == 1

    run(scenario)


def test_a_cancelled_stream_takes_its_speculation_back() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.eager_gate.clear()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.3))
        await session.cancel()
        check_promises(bench.published)
        assert bench.engine.promoted == []
        (final,) = bench.of(Final)
        assert isinstance(final, Final)
        assert final.text == ""
        assert outcome(bench, "withdrawn") == 1

    run(scenario)


def test_out_of_time_a_promoted_request_fails_as_any_other() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.eager_gate.clear()
        bench.engine.gate.clear()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.7))
        await session.abandon()
        check_promises(bench.published)
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert failed.code == "shutting_down"

    run(scenario)


def test_a_segment_cut_before_the_silence_began_is_asked_for_anew() -> None:
    async def scenario() -> None:
        bench = bench_of()
        session = bench.open(replace_vad(QUIETLY, VadParams(max_segment_s=2, pad_ms=0)))
        murmur = (np.frombuffer(tone(0.9), "<i2") // 100).tobytes()  # silence to the detector
        # The quietest place is in the gap, where the cut falls; the pause begins behind it.
        await feed(session, tone(1.6) + silence(0.1) + tone(0.08) + murmur)
        await session.finish()
        check_promises(bench.published)
        ended = [m for m in bench.of(SpeechEnded) if isinstance(m, SpeechEnded)]
        assert [m.reason for m in ended] == ["max_length", "silence"]
        assert ended[0].end_ms < 1_780
        first, second = (m for m in bench.of(Final) if isinstance(m, Final))
        assert first.text == f"{ended[0].end_ms * 16} samples"
        assert kinds(bench)[:2] == [EAGER, FINAL]
        assert second.start_ms == ended[0].end_ms

    run(scenario)


def replace_vad(start: Start, vad: VadParams) -> Start:
    return Start(v=1, audio=start.audio, partials=start.partials, eager=start.eager, vad=vad)


def test_nobody_guesses_while_finals_wait() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.queued_finals = 1
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.7))
        await session.finish()
        assert kinds(bench) == [FINAL]
        assert outcome(bench, "finals_waiting") == 1

    run(scenario)


def test_audio_that_comes_faster_than_the_loop_turns_is_not_guessed_at() -> None:
    async def scenario() -> None:
        front = replace(EAGER_FRONT, end_ms=220)
        bench = Bench(front=front, session=SessionSettings())
        session = bench.open(QUIETLY)
        await session.feed(tone(1.0) + silence(0.5))
        await session.finish()
        check_promises(bench.published)
        assert kinds(bench) == [FINAL]

    run(scenario)


def test_a_partial_under_way_gives_way_and_the_early_text_is_one() -> None:
    class SlowPartials(ScriptedEngine):
        async def recognize(self, request: Request) -> Transcript:
            if request.kind is PARTIAL:
                await asyncio.Event().wait()
            return await super().recognize(request)

    async def scenario() -> None:
        engine = SlowPartials()
        bench = Bench(engine=engine, front=FrontSettings(eager_ms=200))
        session = bench.open()
        await feed(session, tone(1.0) + silence(0.7))
        await session.finish()
        check_promises(bench.published)
        assert bench.names() == [
            "Ready",
            "SpeechStarted",
            "Partial",
            "SpeechEnded",
            "Final",
            "Ended",
        ]
        (partial,), (final,) = bench.of(Partial), bench.of(Final)
        assert isinstance(partial, Partial)
        assert isinstance(final, Final)
        assert partial.text == final.text
        assert bench.metrics.value("voiced_partials_dropped_total", reason="paused") == 1

    run(scenario)


def test_only_those_who_asked_are_offered_what_may_be_taken_back() -> None:
    async def scenario(*, wants: bool, publishes: bool) -> None:
        session_settings = SessionSettings(publishes_eager=publishes)
        bench = Bench(front=EAGER_FRONT, session=session_settings)
        sent: list[ServerMessage] = []
        start = Start(v=1, audio=AudioParams(), partials=False, eager=wants)
        session = bench.streams.open(start, send=sent.append)
        await feed(session, tone(1.0) + silence(0.4) + tone(0.5) + silence(0.7))
        await session.finish()
        check_promises(sent)
        check_promises(bench.published)
        for messages, told in ((sent, wants), (bench.published, publishes)):
            offers = [m for m in messages if isinstance(m, EagerFinal | Resumed)]
            assert len(offers) == (3 if told else 0)

    for wants in (True, False):
        for publishes in (True, False):
            run(lambda wants=wants, publishes=publishes: scenario(wants=wants, publishes=publishes))


def test_an_intent_in_the_early_text_ends_the_segment_at_once() -> None:
    async def scenario() -> None:
        bench = bench_of()
        session = bench.open(QUIETLY)
        await feed(session, tone(1.0) + silence(0.4))
        (offered,) = bench.of(EagerFinal)
        assert isinstance(offered, EagerFinal)
        bench.streams.deliver(
            Intent(
                stream=session.name,
                segment=offered.segment,
                name="n",
                slots={},
                text=offered.text,
                confidence=1.0,
            )
        )
        assert bench.names()[-2:] == ["SpeechEnded", "Final"]
        await feed(session, silence(0.6) + tone(1.0))
        await session.finish()
        check_promises(bench.published)
        assert len(bench.of(Final)) == 2

    run(scenario)


def test_a_fault_while_the_text_ends_the_segment_ends_the_stream_at_the_next_block() -> None:
    async def scenario() -> None:
        bench = bench_of()
        intake, front = LoudnessChains(EAGER_FRONT)("s", QUIETLY)

        def end_after(_: int) -> list[SegmentEvent]:
            raise ZeroDivisionError

        front.end_after = end_after  # type: ignore[method-assign]
        session = StreamSession(
            "s", intake=intake, front=front, engine=bench.engine, publish=bench.published.append
        )
        with pytest.raises(StreamBroken):
            await feed(session, tone(1.0) + silence(0.5))
        await session.finish()
        check_promises(bench.published)
        (failed,) = bench.of(Failed)
        assert isinstance(failed, Failed)
        assert failed.code == "internal"

    run(scenario)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["tone", "pause", "silence", "short", "flush", "lost", "busy", "free", "slow", "quick"]
        ),
        max_size=25,
    ),
    st.sampled_from(["finish", "cancel", "abort", "abandon"]),
    st.integers(0, 2),
)
def test_every_segment_has_one_last_word_in_order_however_it_was_guessed(
    steps: list[str], end: str, failures: int
) -> None:
    def answer(request: Request) -> Transcript:
        if request.segment.id % 3 < failures:
            raise EngineDead("gone") if request.kind is FINAL else Superseded("gave way")
        return length_as_text(request)

    async def scenario() -> None:
        bench = bench_of(ScriptedEngine(answer=answer))
        session = bench.open(replace_vad(QUIETLY, VadParams(max_segment_s=2)))
        engine = bench.engine
        switches = {
            "busy": engine.gate.clear,
            "free": engine.gate.set,
            "slow": engine.eager_gate.clear,
            "quick": engine.eager_gate.set,
            "flush": session.flush,
            "lost": lambda: session.lost(16_000),
        }
        sounds = {
            "tone": tone(0.7),
            "pause": silence(0.3),
            "silence": silence(0.7),
            "short": tone(0.06),
        }
        for step in steps:
            if step in sounds:
                await feed(session, sounds[step])
            else:
                switches[step]()
        ending = asyncio.create_task(getattr(session, end)())
        await asyncio.sleep(0)
        engine.gate.set()
        engine.eager_gate.set()
        await ending
        check_promises(bench.published)

    run(scenario)


def test_nothing_is_left_behind_when_the_stream_has_ended() -> None:
    async def scenario() -> None:
        bench = bench_of()
        bench.engine.eager_gate.clear()
        session = bench.open(START)
        await feed(session, tone(1.0) + silence(0.3) + tone(0.5))
        bench.engine.eager_gate.set()
        await session.finish()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(scenario)
