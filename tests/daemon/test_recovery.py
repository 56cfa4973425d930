"""What an earlier run heard is answered once, with its own ids."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon.kept import heard

from voiced.audio.clock import FakeClock
from voiced.daemon.metrics import Metrics
from voiced.daemon.recovery import MAX_ATTEMPTS, Recovery
from voiced.daemon.spool import Spool, count_attempt
from voiced.daemon.testing import ScriptedEngine, length_as_text
from voiced.daemon.wire import Failed, Final, ServerMessage
from voiced.engine.errors import BackendFailed, EngineBusy, EngineDead
from voiced.engine.types import Request, Transcript


class Made:
    """A spool with two segments of an earlier run, and what is said about them."""

    def __init__(self, folder: Path, engine: ScriptedEngine | None = None) -> None:
        self.spool = Spool(folder, max_bytes=1 << 20)
        self.spool.put(heard(7, origin="old", samples=3_200))
        self.engine = engine or ScriptedEngine()
        self.metrics = Metrics()
        self.said: list[ServerMessage] = []
        self.something = asyncio.Event()
        self.recovery = Recovery(
            engine=self.engine,
            publish=self._publish,
            keep_s=3_600,
            metrics=self.metrics,
            clock=FakeClock(wall_ms=1_700_000_005_000),
        )

    def _publish(self, message: ServerMessage) -> None:
        self.said.append(message)
        self.something.set()

    async def run(self, is_enough: Callable[[], bool]) -> None:
        task = asyncio.create_task(self.recovery.run())
        async with asyncio.timeout(20):
            while not is_enough():
                await self.something.wait()
                self.something.clear()
        task.cancel()
        await asyncio.wait({task})


def test_a_segment_gets_its_final_with_stream_id_and_times(tmp_path: Path) -> None:
    async def run() -> None:
        made = Made(tmp_path)
        made.recovery.add(made.spool.leftovers())
        made.recovery.add(made.spool.leftovers())  # the journal was opened anew
        await made.run(lambda: bool(made.said))
        assert made.said == [
            Final(
                stream="desk", segment=7, revision=3, text="3200 samples", language="en",
                confidence=1.0, start_ms=20, end_ms=220, latency_ms=5_000, recovered="old",
            )
        ]  # fmt: skip
        assert made.metrics.value("voiced_recovered_total", outcome="final") == 1

    asyncio.run(run())


def test_an_engine_failure_is_the_segments_last_word(tmp_path: Path) -> None:
    def fail(request: Request) -> Transcript:
        raise BackendFailed("no")

    async def run() -> None:
        made = Made(tmp_path, ScriptedEngine(answer=fail))
        made.recovery.add(made.spool.leftovers())
        await made.run(lambda: bool(made.said))
        (failed,) = made.said
        assert isinstance(failed, Failed)
        assert (failed.stream, failed.segment, failed.code, failed.recovered) == (
            "desk", 7, "backend_failed", "old",
        )  # fmt: skip

    asyncio.run(run())


def test_a_busy_engine_is_asked_again(tmp_path: Path) -> None:
    busy = iter([True, True])

    def answer(request: Request) -> Transcript:
        if next(busy, False):
            raise EngineBusy(1)
        return length_as_text(request)

    async def run() -> None:
        made = Made(tmp_path, ScriptedEngine(answer=answer))
        made.recovery.add(made.spool.leftovers())
        await made.run(lambda: bool(made.said))
        assert isinstance(made.said[0], Final)
        assert len(made.engine.requests) == 3

    asyncio.run(run())


def test_an_engine_that_ends_leaves_the_segment_for_the_next_start(tmp_path: Path) -> None:
    async def run() -> None:
        made = Made(tmp_path)

        def die(request: Request) -> Transcript:
            made.engine.ready = False
            made.something.set()
            raise EngineDead("stopped")

        made.engine._answer = die
        made.recovery.add(made.spool.leftovers())
        await made.run(lambda: not made.engine.ready)
        assert made.said == []
        (left,) = made.spool.leftovers()
        assert left.attempts == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "spool_damaged"),
        (lambda path: [count_attempt(path) for _ in range(MAX_ATTEMPTS)], "spool_given_up"),
    ],
)
def test_what_cannot_be_answered_any_more_fails_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], object], code: str
) -> None:
    async def run() -> None:
        made = Made(tmp_path)
        spoil(made.spool.leftovers()[0].path)
        made.recovery.add(made.spool.leftovers())
        await made.run(lambda: bool(made.said))
        (failed,) = made.said
        assert isinstance(failed, Failed)
        assert (failed.stream, failed.segment, failed.code, failed.recovered) == (
            "desk", 7, code, "old",
        )  # fmt: skip

    asyncio.run(run())


@pytest.mark.parametrize(
    ("heard_ms", "found_ms", "expected"),
    [
        (1_000, 3_601_001, "spool_expired"),
        (1_000, 3_601_000, "3200 samples"),
        (1_000, None, "3200 samples"),  # the journal was lost
        (None, 9_000_000, "3200 samples"),  # it was not open then
        (5_000_000, 1_000, "3200 samples"),  # another one began
    ],
)
def test_age_is_what_the_journal_has_lived_whatever_files_are_dated(
    tmp_path: Path, heard_ms: int | None, found_ms: int | None, expected: str
) -> None:
    async def run() -> None:
        made = Made(tmp_path)
        made.spool.put(replace(heard(7, origin="old", samples=3_200), lived_ms=heard_ms))
        (left,) = made.spool.leftovers()
        os.utime(left.path, (1, 1))  # a clock that was not set: 56 years ago
        made.recovery.add([replace(left, lived_ms=found_ms)])
        await made.run(lambda: bool(made.said))
        (said,) = made.said
        assert isinstance(said, Failed | Final)
        assert (said.code if isinstance(said, Failed) else said.text) == expected

    asyncio.run(run())
