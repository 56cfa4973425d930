"""What an engine that is too slow takes away, and in which order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.stream_bench import check_promises, run

from voiced.audio.clock import FakeClock
from voiced.audio.front import FrontSettings
from voiced.daemon.errors import Overloaded
from voiced.daemon.metrics import Metrics
from voiced.daemon.overload import OverloadRules
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.streams import Streams
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, silence, tone
from voiced.daemon.wire import AudioParams, Failed, Final, Partial, ServerMessage, Start
from voiced.engine.errors import DeadlineExceeded
from voiced.engine.types import EngineLoad, Request, RequestKind, Transcript

STEP_MS = 20
SENTENCE = tone(1.6) + silence(0.8)


class SlowEngine(ScriptedEngine):
    """Runs one request at a time, finals first, each for `cost_ms` of a fake clock."""

    def __init__(self, clock: FakeClock, cost_ms: float) -> None:
        super().__init__()
        self._clock, self.cost_ms = clock, cost_ms
        self._waiting: list[tuple[bool, int, int]] = []
        """(guess, accepted, number), sorted: the first one runs."""
        self._left_ms = cost_ms
        self._numbers = 0

    def load(self) -> EngineLoad:
        finals = [accepted for is_guess, accepted, _ in self._waiting if not is_guess]
        oldest_ns = min(finals, default=self._clock.monotonic_ns())
        return EngineLoad(
            queued_finals=self.queued_finals,
            queued_partials=len(self._waiting) - self.queued_finals,
            oldest_final_age_s=(self._clock.monotonic_ns() - oldest_ns) / 1e9,
        )

    async def recognize(self, request: Request) -> Transcript:
        self._numbers += 1
        is_guess = request.kind is not RequestKind.FINAL
        job = (is_guess, self._clock.monotonic_ns(), self._numbers)
        self._waiting.append(job)
        self._waiting.sort()
        self._count()
        try:
            while job in self._waiting:
                deadline_ns = request.deadline_ns
                if deadline_ns is not None and self._clock.monotonic_ns() > deadline_ns:
                    raise DeadlineExceeded("too late")
                await asyncio.sleep(0)
        finally:
            if job in self._waiting:
                self._waiting.remove(job)
                self._count()
        return await super().recognize(request)

    def _count(self) -> None:
        self.queued_finals = sum(not is_guess for is_guess, _, _ in self._waiting)

    def work(self, ms: float) -> None:
        """Work for so long."""
        while self._waiting and ms >= self._left_ms:
            ms -= self._left_ms
            self._waiting.pop(0)
            self._count()
            self._left_ms = self.cost_ms
        if self._waiting:
            self._left_ms -= ms


class Crowd:
    """Streams that speak in step with a fake clock."""

    def __init__(self, cost_ms: float, settings: SessionSettings | None = None) -> None:
        self.clock, self.metrics = FakeClock(), Metrics()
        self.engine = SlowEngine(self.clock, cost_ms)
        self.heard: dict[str, list[ServerMessage]] = {}
        self.streams = Streams(
            engine=self.engine,
            publish=lambda message: self.heard.setdefault(message.stream, []).append(message),
            open_chain=LoudnessChains(FrontSettings(grown_ms=200)),
            settings=settings,
            overload=OverloadRules(max_age_s=3.0, max_queued_finals=64),
            metrics=self.metrics,
            clock=self.clock,
        )

    async def turn(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def speak(self, sessions: list[StreamSession], sentences: int) -> None:
        """Feed every stream the same sentences in step, as far as each takes them."""
        data = SENTENCE * sentences
        block = 32 * STEP_MS
        feeds: dict[str, asyncio.Task[None]] = {}
        for offset in range(0, len(data), block):
            self.clock.advance_ms(STEP_MS)
            self.engine.work(STEP_MS)
            for session in sessions:
                if session.name not in feeds or feeds[session.name].done():
                    part = data[offset : offset + block]
                    feeds[session.name] = asyncio.create_task(session.feed(part))
            await self.turn()

    async def end(self, sessions: list[StreamSession]) -> None:
        ending = asyncio.gather(*(session.finish() for session in sessions))
        while not ending.done():
            self.clock.advance_ms(STEP_MS)
            self.engine.work(STEP_MS)
            await self.turn()
        await ending

    def count(self, kind: type[ServerMessage]) -> int:
        return sum(isinstance(m, kind) for own in self.heard.values() for m in own)


def open_streams(crowd: Crowd, count: int) -> list[StreamSession]:
    return [crowd.streams.open(Start(v=1, audio=AudioParams())) for _ in range(count)]


def test_the_more_streams_speak_the_fewer_partials_each_of_them_gets() -> None:
    async def scenario(streams: int) -> float:
        crowd = Crowd(cost_ms=60)
        sessions = open_streams(crowd, streams)
        await crowd.speak(sessions, sentences=2)
        await crowd.end(sessions)
        for own in crowd.heard.values():
            check_promises(own)
        assert crowd.count(Failed) == 0
        return crowd.count(Partial) / streams

    def partials(streams: int) -> float:
        found: list[float] = []

        async def keep() -> None:
            found.append(await scenario(streams))

        run(keep)
        return found[0]

    one, four, twelve = partials(1), partials(4), partials(12)
    assert one > four > twelve


def test_an_engine_that_is_behind_makes_finals_only_then_refuses_streams_and_recovers() -> None:
    async def scenario() -> None:
        crowd = Crowd(cost_ms=900)
        sessions = open_streams(crowd, 4)  # 3.6 s of work for each 2.4 s
        await crowd.speak(sessions, sentences=5)
        before = crowd.count(Partial)
        assert crowd.engine.load().oldest_final_age_s > 3.0
        with pytest.raises(Overloaded) as refused:
            crowd.streams.open(Start(v=1, audio=AudioParams()))
        assert refused.value.retry_after_ms >= 3_000
        assert crowd.streams.backlog_age_s > 3.0
        await crowd.speak(sessions, sentences=1)
        assert crowd.count(Partial) == before  # finals wait all the time
        await crowd.end(sessions)
        for own in crowd.heard.values():
            check_promises(own)
        assert crowd.count(Final) == 4 * 6
        assert crowd.count(Failed) == 0
        assert crowd.streams.backlog_s == crowd.streams.backlog_age_s == 0.0
        await crowd.end(open_streams(crowd, 1))

    run(scenario)


def test_finals_past_their_deadline_fail_and_the_delay_never_grows_beyond_it() -> None:
    async def scenario() -> None:
        crowd = Crowd(cost_ms=2_000, settings=SessionSettings(final_timeout_s=5.0))
        sessions = open_streams(crowd, 4)
        await crowd.speak(sessions, sentences=8)
        assert crowd.engine.load().oldest_final_age_s <= 5.1
        await crowd.end(sessions)
        for own in crowd.heard.values():
            check_promises(own)
        codes = {m.code for own in crowd.heard.values() for m in own if isinstance(m, Failed)}
        assert codes == {"deadline"}
        assert crowd.count(Final) > 0
        finals = [m for own in crowd.heard.values() for m in own if isinstance(m, Final)]
        assert max(final.latency_ms for final in finals) <= 5_000 + 600 + 2 * STEP_MS

    run(scenario)


def test_a_stream_that_is_too_far_behind_is_not_read_on() -> None:
    async def scenario() -> None:
        crowd = Crowd(cost_ms=5_000, settings=SessionSettings(max_backlog_s=4.0))
        sessions = open_streams(crowd, 1)
        await crowd.speak(sessions, sentences=6)
        assert sessions[0].is_full
        # What is unanswered is the bound, and the one segment that went over it.
        assert crowd.streams.backlog_s <= 4.0 + 3.0
        await crowd.end(sessions)
        check_promises(next(iter(crowd.heard.values())))

    run(scenario)


@given(queued=st.integers(0, 200), age_s=st.floats(0, 100), most=st.integers(1, 100))
def test_streams_are_refused_only_for_a_reason_and_told_when_to_come_back(
    queued: int, age_s: float, most: int
) -> None:
    rules = OverloadRules(max_age_s=3.0, max_queued_finals=most)
    refusal = rules.refusal(EngineLoad(queued_finals=queued, oldest_final_age_s=age_s))
    assert (refusal is None) == (age_s <= 3.0 and queued <= most / 2)
    if refusal is not None:
        assert 1_000 <= refusal.retry_after_ms <= 10_000
