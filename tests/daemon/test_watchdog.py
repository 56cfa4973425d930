"""What feeds the service manager's watchdog, and what stops the feeding."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from voiced.audio.clock import FakeClock
from voiced.daemon.sdnotify import Notifier
from voiced.daemon.watchdog import ProgressWatch, Watchdog
from voiced.engine.host import EngineHost
from voiced.engine.types import EngineConfig


class Manager(Notifier):
    """A service manager that remembers what it was told."""

    def __init__(self, watchdog_s: float | None = 10.0) -> None:
        super().__init__("/nowhere", watchdog_s=watchdog_s)
        self.fed = 0
        self.statuses: list[str] = []

    def watchdog(self) -> None:
        self.fed += 1

    def status(self, text: str) -> None:
        self.statuses.append(text)


class Parts:
    """Counters that the test moves."""

    def __init__(self, *names: str) -> None:
        self.counts: dict[str, int | None] = dict.fromkeys(names, 0)

    def counters(self) -> dict[str, Callable[[], int | None]]:
        return {name: self._reader(name) for name in self.counts}

    def _reader(self, name: str) -> Callable[[], int | None]:
        return lambda: self.counts[name]

    def move(self, *names: str) -> None:
        for name in names:
            self.counts[name] = (self.counts[name] or 0) + 1


def test_a_part_is_stuck_once_its_counter_stood_still_for_longer_than_the_limit() -> None:
    parts = Parts("audio", "bus")
    watch = ProgressWatch(parts.counters(), limit_s=5)
    assert watch.stuck(100.0) == {}
    parts.move("audio")
    assert watch.stuck(105.0) == {}
    assert watch.stuck(106.0) == {"bus": 6.0}
    parts.move("bus")
    assert watch.stuck(110.0) == {}


def test_a_part_of_which_nothing_is_expected_is_not_watched_until_it_is() -> None:
    parts = Parts("engine")
    watch = ProgressWatch(parts.counters(), limit_s=5)
    assert watch.stuck(0.0) == {}
    parts.counts["engine"] = None
    assert watch.stuck(100.0) == {}
    parts.counts["engine"] = 0
    assert watch.stuck(200.0) == {}
    assert watch.stuck(206.0) == {"engine": 6.0}


def test_a_counter_that_raises_is_one_that_stands_still(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> int:
        raise LookupError("gone")

    watch = ProgressWatch({"bus": broken}, limit_s=5)
    assert watch.stuck(0.0) == {}
    assert watch.stuck(6.0) == {"bus": 6.0}
    (line,) = caplog.records
    assert "part=bus" in line.getMessage()
    assert line.exc_info is not None


@pytest.mark.parametrize("hung", ["audio", "engine", "bus"])
def test_one_hung_part_stops_the_feeding_and_is_named(
    hung: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts, manager, clock = Parts("audio", "engine", "bus"), Manager(watchdog_s=10.0), FakeClock()
    watchdog = Watchdog(manager, parts.counters(), status=lambda: "fine", clock=clock)
    others = [name for name in parts.counts if name != hung]
    for _ in range(6):
        parts.move(*others)
        watchdog.check()
        clock.advance_ms(1_000)
    assert manager.fed == 6
    for _ in range(20):
        parts.move(*others)
        watchdog.check()
        clock.advance_ms(1_000)
    assert manager.fed == 6
    assert manager.statuses[:2] == ["fine", f"{hung} stands still for 6 s"]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert f"part={hung}" in errors[0].getMessage()
    parts.move(hung)
    watchdog.check()
    assert manager.fed == 7
    assert manager.statuses[-1] == "fine"
    assert "progress again" in caplog.text


def test_the_status_is_sent_when_it_changes_and_without_a_watchdog_too() -> None:
    manager, lines = Manager(watchdog_s=None), ["a", "a", "b"]
    watchdog = Watchdog(manager, {"bus": lambda: 0}, status=lambda: lines.pop(0) if lines else None)
    for _ in range(4):
        watchdog.check()
    assert manager.statuses == ["a", "b"]
    assert manager.fed == 0


def test_without_a_manager_nothing_runs() -> None:
    asyncio.run(Watchdog(Notifier(None)).run())


def test_an_engine_beats_with_its_workers_words_and_not_before_or_after() -> None:
    async def moves(read: Callable[[], Any]) -> int:
        first = read()
        async with asyncio.timeout(60):
            while read() == first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return int(read() or 0)

    async def run() -> None:
        engine = EngineHost(EngineConfig(bundle_dir="fake"))
        assert engine.beats is None
        await engine.start()
        count = await moves(lambda: engine.beats)
        assert engine.worker_pid is not None
        os.kill(engine.worker_pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while engine.load().totals.restarts == 0 or not engine.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert engine.beats is not None
        assert engine.beats > count
        await engine.stop()
        assert engine.beats is None

    asyncio.run(run())
