"""The order of starts and stops, and what a part can do wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from voiced.daemon.options import ServerOptions
from voiced.daemon.sdnotify import Notifier
from voiced.daemon.supervisor import GRACE_S, Part, Supervisor

SILENT = Notifier(None)


class Recorder:
    """Parts that write down what is done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stop = asyncio.Event()

    def part(
        self,
        name: str,
        *,
        start: Callable[[], Awaitable[object]] | None = None,
        stop: Callable[[float], Awaitable[object]] | None = None,
    ) -> Part:
        async def do_start() -> None:
            self.log.append(f"start {name}")
            if start is not None:
                await start()

        async def do_stop(left_s: float) -> None:
            self.log.append(f"stop {name}")
            if stop is not None:
                await stop(left_s)

        return Part(name, do_start, do_stop)

    async def set_stop(self) -> None:
        self.stop.set()


async def fail() -> None:
    raise OSError("no such thing")


async def fail_to_stop(_: float) -> None:
    raise LookupError("already gone")


async def hang() -> None:
    await asyncio.Event().wait()


def test_parts_start_in_order_and_stop_in_reverse() -> None:
    async def run() -> list[str]:
        recorder = Recorder()
        parts = (recorder.part("a"), recorder.part("b", start=recorder.set_stop))
        supervisor = Supervisor(
            parts,
            drain_s=5,
            notifier=SILENT,
            on_stopping=lambda: recorder.log.append("refuse"),
        )
        assert await supervisor.run(recorder.stop)
        return recorder.log

    assert asyncio.run(run()) == ["start a", "start b", "refuse", "stop b", "stop a"]


def test_a_part_that_cannot_start_stops_those_before_it_and_raises() -> None:
    async def run() -> None:
        recorder = Recorder()
        parts = (recorder.part("a"), recorder.part("b", start=fail), recorder.part("c"))
        with pytest.raises(OSError, match="no such thing"):
            await Supervisor(parts, drain_s=5, notifier=SILENT).run(recorder.stop)
        assert recorder.log == ["start a", "start b", "stop b", "stop a"]

    asyncio.run(run())


def test_a_stop_during_the_start_ends_the_start() -> None:
    async def run() -> None:
        recorder = Recorder()

        async def be_stopped_and_hang() -> None:
            recorder.stop.set()
            await hang()

        parts = (recorder.part("a", start=be_stopped_and_hang), recorder.part("b"))
        assert await Supervisor(parts, drain_s=5, notifier=SILENT).run(recorder.stop)
        assert recorder.log == ["start a", "stop a"]

    asyncio.run(run())


def test_a_part_that_fails_to_stop_does_not_keep_the_others_from_it() -> None:
    async def run() -> None:
        recorder = Recorder()
        parts = (
            recorder.part("a"),
            recorder.part("b", start=recorder.set_stop, stop=fail_to_stop),
        )
        assert not await Supervisor(parts, drain_s=5, notifier=SILENT).run(recorder.stop)
        assert recorder.log[-2:] == ["stop b", "stop a"]

    asyncio.run(run())


def test_a_part_that_hangs_at_its_stop_is_left_behind_at_the_deadline() -> None:
    async def run() -> None:
        recorder = Recorder()
        left: list[float] = []

        async def note(left_s: float) -> None:
            left.append(left_s)

        async def hang_at_stop(left_s: float) -> None:
            left.append(left_s)
            await hang()

        parts = (
            recorder.part("a", stop=note),
            recorder.part("b", start=recorder.set_stop, stop=hang_at_stop),
        )
        assert not await Supervisor(parts, drain_s=0.01, notifier=SILENT).run(recorder.stop)
        assert 0 < left[0] <= 0.01
        assert left[1] == 0

    asyncio.run(run())


def test_the_manager_hears_of_every_stage_and_the_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)

        async def run() -> None:
            recorder = Recorder()
            notifier = Notifier(str(tmp_path / "notify"), watchdog_s=30)
            parts = (recorder.part("a"), recorder.part("b"))
            supervisor = Supervisor(parts, drain_s=5, notifier=notifier)
            running = asyncio.create_task(supervisor.run(recorder.stop))
            states = [await asyncio.to_thread(manager.recv, 1000) for _ in range(4)]
            assert sorted(states) == [
                b"READY=1\nSTATUS=ready",
                b"STATUS=starting a",
                b"STATUS=starting b",
                b"WATCHDOG=1",
            ]
            recorder.stop.set()
            assert await running
            assert manager.recv(1000) == b"STOPPING=1\nSTATUS=draining"

        asyncio.run(run())


def test_a_part_gets_longer_than_clients_that_answer_nothing_take_at_the_deadline() -> None:
    assert 2 * ServerOptions().close_timeout_s < GRACE_S  # last messages, then the close
