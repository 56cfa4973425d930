"""Streams on a scripted engine and a clock that stands still, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from voiced.audio.clock import FakeClock
from voiced.audio.front import FrontSettings
from voiced.daemon.metrics import Metrics
from voiced.daemon.session import StreamSession
from voiced.daemon.session_settings import SessionSettings
from voiced.daemon.streams import Streams
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, silence, tone
from voiced.daemon.wire import (
    AudioParams,
    EagerFinal,
    Ended,
    Failed,
    Final,
    Partial,
    Ready,
    Resumed,
    ServerMessage,
    SpeechEnded,
    SpeechStarted,
    Start,
)

START = Start(v=1, audio=AudioParams())
WORD = silence(0.6) + tone(1.0) + silence(1.4)


class Bench:
    """Streams on a scripted engine, and what they published."""

    def __init__(
        self,
        *,
        engine: ScriptedEngine | None = None,
        session: SessionSettings | None = None,
        front: FrontSettings | None = None,
        max_streams: int = 8,
    ) -> None:
        self.engine = engine or ScriptedEngine()
        self.published: list[ServerMessage] = []
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.streams = Streams(
            engine=self.engine,
            publish=self.published.append,
            open_chain=LoudnessChains(front),
            settings=session,
            max_streams=max_streams,
            metrics=self.metrics,
            clock=self.clock,
        )

    def open(self, start: Start = START) -> StreamSession:
        return self.streams.open(start)

    def of(self, *types: type[ServerMessage]) -> list[ServerMessage]:
        return [message for message in self.published if isinstance(message, types)]

    def names(self) -> list[str]:
        return [type(message).__name__ for message in self.published]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


def check_promises(messages: list[ServerMessage]) -> None:
    """Every segment announced has exactly one last word, in order, and nothing follows it."""
    started: set[int] = set()
    words = [message.segment for message in messages if isinstance(message, Final | Failed)]
    assert words == sorted(words)
    over: set[int] = set()
    offered: set[int] = set()
    revisions: dict[int, int] = {}
    for message in messages:
        match message:
            case SpeechStarted():
                assert message.segment not in started
                started.add(message.segment)
            case Partial() | Final():
                assert message.segment in started - over
                assert message.revision == revisions.get(message.segment, 0) + 1
                revisions[message.segment] = message.revision
                if isinstance(message, Final):
                    over.add(message.segment)
            case Failed():
                assert message.segment in started - over
                over.add(message.segment)
            case SpeechEnded():
                assert message.segment in started - over
            case EagerFinal():
                assert message.segment in started - over
                assert message.segment not in offered
                assert message.revision == revisions.get(message.segment, 0) + 1
                offered.add(message.segment)
            case Resumed():
                assert message.segment in offered - over
                offered.remove(message.segment)
    assert started == over
    assert isinstance(messages[0], Ready)
    assert isinstance(messages[-1], Ended)
    assert messages[-1].segments == len(started)
