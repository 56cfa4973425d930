"""The engine with real worker processes: what is accepted is answered once, whatever dies."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from voiced.audio.clock import FakeClock, SystemClock
from voiced.audio.frames import Segment
from voiced.engine import ipc
from voiced.engine.errors import (
    BackendFailed,
    BundleError,
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineError,
    NoGearError,
    Superseded,
)
from voiced.engine.host import Engine, EngineHost, restart_delay_s
from voiced.engine.in_process import InProcessEngine
from voiced.engine.process import WorkerProcess, runtime_dir
from voiced.engine.types import EngineConfig, Request, RequestKind, Transcript

TONE = (8_000 * np.sin(2 * np.pi * 440 * np.arange(3_200) / 16_000)).astype(np.int16)
LIMIT_S = 60.0
"""No test takes so long; it only ends one that would hang."""

kinds_of_engine = pytest.mark.parametrize("kind", [EngineHost, InProcessEngine])


def config(
    *, max_queued_finals: int = 64, hang_timeout_s: float = 30.0, **options: str
) -> EngineConfig:
    return EngineConfig(
        "fake",
        max_queued_finals=max_queued_finals,
        hang_timeout_s=hang_timeout_s,
        options=options,
    )


def ask(
    segment: int,
    *,
    kind: str = "final",
    language: str | None = None,
    revision: int = 1,
    seconds: float = 0.2,
    deadline_ns: int | None = None,
) -> Request:
    pcm = np.resize(TONE, round(seconds * 16_000))
    return Request(
        Segment(segment, "mic", 0, pcm, language), RequestKind(kind), revision, deadline_ns
    )


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a test's scenario; nothing of it may be left over."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await scenario
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"leaked tasks: {left}"

    asyncio.run(limited())


def children() -> set[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found}


def open_files() -> dict[str, str]:
    return {
        fd: os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, thread, file, socket or runtime folder outlives its test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    threads, processes, files = set(threading.enumerate()), children(), len(open_files())
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive(), f"leaked {thread}"
    assert children() <= processes
    assert len(open_files()) <= files, open_files()
    assert not list(tmp_path.glob("voiced-*"))


@asynccontextmanager
async def started(engine: Engine) -> AsyncIterator[Engine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact; the limit of `run` ends a wait in vain."""
    while not fact():  # noqa: ASYNC110 - facts of another process have no event here
        await asyncio.sleep(0.01)


async def outcome_of(task: asyncio.Task[Transcript]) -> Transcript | BaseException:
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return outcome


def kill(engine: Engine) -> int:
    pid = engine.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


# ---- the contract of both ----------------------------------------------------------------------


@kinds_of_engine
def test_start_reports_progress_and_a_final_is_answered(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        engine, heard = kind(config()), list[str]()
        assert (engine.ready, engine.reason, engine.info) == (False, "not started", None)
        info = await engine.start(heard.append)
        assert heard == ["warming fake gear 1 of 1"]
        assert (engine.ready, engine.reason, engine.info) == (True, "", info)
        assert info.worker_pid == engine.worker_pid
        transcript = await engine.recognize(ask(4, revision=7))
        assert (transcript.segment, transcript.revision, transcript.text) == (4, 7, "one")
        assert transcript.is_final
        assert engine.load().queued_finals == 0
        await until(lambda: engine.rss_bytes > 0)
        assert engine.peak_rss_bytes >= engine.rss_bytes // 2
        await engine.stop()
        assert (engine.ready, engine.reason) == (False, "stopped")
        await engine.stop()

    run(scenario())


@kinds_of_engine
def test_a_start_that_fails_says_why_in_the_workers_words(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        engine = kind(config(start="bundle_error"))
        with pytest.raises(BundleError, match=r"fake/manifest.json: found nothing.*build it"):
            await engine.start()
        assert not engine.ready
        assert "bundle refused" in engine.reason
        with pytest.raises(EngineDead, match="bundle refused"):
            await engine.recognize(ask(1))
        await engine.stop()

    run(scenario())


@kinds_of_engine
def test_a_start_with_a_bug_is_an_engine_error(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        engine = kind(config(start="raise"))
        with pytest.raises(EngineError, match="RuntimeError: fake start"):
            await engine.start()
        await engine.stop()

    run(scenario())


@kinds_of_engine
def test_one_failing_request_costs_its_batch_nothing(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {
            "fail_on": "language:xx",
            "raise_on": "language:yy",
            "delay_ms": "20",
        }
        async with started(kind(config(**options))) as engine:
            languages = ["en", "en", "xx", "yy", "en"]
            outcomes = await asyncio.gather(
                *(engine.recognize(ask(n, language=lang)) for n, lang in enumerate(languages)),
                return_exceptions=True,
            )
        assert [type(outcome) for outcome in outcomes] == [
            Transcript,
            Transcript,
            BackendFailed,
            BackendFailed,
            Transcript,
        ]
        assert [o.segment for o in outcomes if isinstance(o, Transcript)] == [0, 1, 4]

    run(scenario())


@kinds_of_engine
def test_a_request_that_no_gear_holds_fails_with_its_facts(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(max_segment_s="1"))) as engine:
            with pytest.raises(NoGearError) as failure:
                await engine.recognize(ask(1, seconds=2.0))
            assert failure.value.frames == 200

    run(scenario())


@kinds_of_engine
def test_finals_beyond_the_limit_are_refused_at_once(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(max_queued_finals=2, delay_ms="200"))) as engine:
            accepted = [asyncio.create_task(engine.recognize(ask(n))) for n in range(2)]
            await asyncio.sleep(0)
            assert engine.load().queued_finals == engine.queued_finals == 2
            with pytest.raises(EngineBusy) as refused:
                await engine.recognize(ask(3))
            assert refused.value.retry_after_ms > 0
            assert [(await task).segment for task in accepted] == [0, 1]
            assert (await engine.recognize(ask(3))).segment == 3

    run(scenario())


@kinds_of_engine
def test_a_final_supersedes_the_partials_that_wait(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="300"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            partials = [
                asyncio.create_task(engine.recognize(ask(2, kind="partial", revision=n)))
                for n in (1, 2)
            ]
            await asyncio.sleep(0)
            final = await engine.recognize(ask(2, revision=3))
            for partial in partials:
                assert isinstance(await outcome_of(partial), Superseded)
            assert final.is_final
            await ahead

    run(scenario())


@kinds_of_engine
def test_a_cancelled_request_leaves_the_queue(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="200"))) as engine:
            first = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            second = asyncio.create_task(engine.recognize(ask(2, language="zh")))
            await asyncio.sleep(0)
            second.cancel()
            assert isinstance(await outcome_of(second), asyncio.CancelledError)
            assert engine.load().queued_finals == 1
            assert (await first).segment == 1

    run(scenario())


@kinds_of_engine
def test_an_eager_request_is_answered_like_a_final_and_is_none(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config())) as engine:
            transcript = await engine.recognize(ask(1, kind="eager"))
            assert (transcript.text, transcript.is_final) == ("one", False)
            assert not engine.promote(1), "it is answered: nothing is open"

    run(scenario())


@kinds_of_engine
def test_a_promoted_request_counts_as_a_final_and_keeps_its_place(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(max_queued_finals=2, delay_ms="200"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            eager = asyncio.create_task(engine.recognize(ask(2, kind="eager")))
            await asyncio.sleep(0)
            load = engine.load()
            assert (load.queued_finals, load.queued_eager, load.queued_partials) == (1, 1, 0)
            assert engine.promote(2)
            assert not engine.promote(2)
            load = engine.load()
            assert (load.queued_finals, load.queued_eager) == (2, 0)
            with pytest.raises(EngineBusy):
                await engine.recognize(ask(3))
            assert ((await ahead).segment, (await eager).segment) == (1, 2)

    run(scenario())


@kinds_of_engine
def test_the_deadline_of_a_promoted_request_is_the_finals(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="600"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1, seconds=2.0)))
            await asyncio.sleep(0)
            deadline_ns = SystemClock().monotonic_ns() + 100_000_000
            eager = asyncio.create_task(
                engine.recognize(ask(2, kind="eager", deadline_ns=deadline_ns))
            )
            await asyncio.sleep(0)
            assert engine.promote(2, None)
            assert [(await task).segment for task in (ahead, eager)] == [1, 2]

    run(scenario())


@kinds_of_engine
def test_a_refusal_that_crosses_the_promotion_is_none(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="400"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1, seconds=2.0)))
            await asyncio.sleep(0)
            eager = asyncio.create_task(engine.recognize(ask(2, kind="eager")))
            await asyncio.sleep(0)
            assert engine.promote(2)
            (item,) = [i for i in engine._open if i.job.request.segment.id == 2]
            assert item.handed_as is RequestKind.EAGER
            # what the engine's side says when the two pass each other on the way
            refusal = Superseded("eager 1 of segment 2 gave way to eager of segment 18")
            if isinstance(engine, EngineHost):
                engine._hear(ipc.failure_of(item.job.id, refusal))
            else:
                engine._answer(item.job.id, refusal)
            assert not eager.done()
            assert item.handed_as is RequestKind.FINAL
            assert [(await task).segment for task in (ahead, eager)] == [1, 2]

    run(scenario())


@kinds_of_engine
def test_an_eager_request_that_is_withdrawn_leaves_the_queue(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="200"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            eager = asyncio.create_task(engine.recognize(ask(2, kind="eager")))
            await asyncio.sleep(0)
            eager.cancel()
            assert isinstance(await outcome_of(eager), asyncio.CancelledError)
            assert not engine.promote(2)
            assert engine.load().queued_eager == 0
            assert (await ahead).segment == 1

    run(scenario())


@kinds_of_engine
def test_a_request_that_waits_past_its_deadline_fails(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config(delay_ms="400"))) as engine:
            ahead = asyncio.create_task(engine.recognize(ask(1, seconds=2.0)))
            await asyncio.sleep(0)
            deadline_ns = SystemClock().monotonic_ns() + 100_000_000
            with pytest.raises(DeadlineExceeded, match="segment 2"):
                await engine.recognize(ask(2, kind="partial", deadline_ns=deadline_ns))
            assert (await ahead).segment == 1

    run(scenario())


@kinds_of_engine
def test_stop_drains_open_finals_and_refuses_new_ones(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        engine = kind(config(delay_ms="100"))
        await engine.start()
        finals = [asyncio.create_task(engine.recognize(ask(n))) for n in range(6)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop(drain_s=30))
        await asyncio.sleep(0)
        with pytest.raises(EngineDead):
            await engine.recognize(ask(9))
        assert sorted([(await task).segment for task in finals]) == list(range(6))
        await stopping

    run(scenario())


@kinds_of_engine
def test_stop_without_time_fails_what_is_open(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        engine = kind(config(delay_ms="300"))
        await engine.start()
        finals = [asyncio.create_task(engine.recognize(ask(n, seconds=1 + n))) for n in range(3)]
        partial = asyncio.create_task(engine.recognize(ask(9, kind="partial")))
        await asyncio.sleep(0)
        await engine.stop()
        assert [type(await outcome_of(task)) for task in finals] == [EngineDead] * 3
        assert isinstance(await outcome_of(partial), Superseded)

    run(scenario())


@kinds_of_engine
def test_what_was_done_is_counted(kind: type[EngineHost]) -> None:
    async def scenario() -> None:
        async with started(kind(config())) as engine:
            for n in range(3):
                await engine.recognize(ask(n))
            await until(lambda: engine.load().totals.steps == 3)
            done = engine.load().totals
            assert done.step_requests == 3
            assert [use.inputs for use in done.gears] == [3]
            assert done.to_device_bytes == 3 * ask(0).segment.pcm.nbytes
            assert done.from_device_bytes > 0

    run(scenario())


# ---- only a process can die --------------------------------------------------------------------


def test_a_promoted_request_survives_its_worker_and_an_eager_one_does_not() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config(delay_ms="400"))) as engine:
            promoted, eager = (
                asyncio.create_task(engine.recognize(ask(n, kind="eager"))) for n in (1, 2)
            )
            await asyncio.sleep(0)
            assert engine.promote(1)
            kill(engine)
            assert isinstance(await outcome_of(eager), Superseded)
            assert (await promoted).is_final, "asked again, as the final that it is"
            assert engine.load().totals.restarts == 1

    run(scenario())


def test_a_killed_worker_is_replaced_and_its_final_arrives_once() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config(delay_ms="400"))) as engine:
            finals = [asyncio.create_task(engine.recognize(ask(n))) for n in range(3)]
            partial = asyncio.create_task(engine.recognize(ask(7, kind="partial")))
            await asyncio.sleep(0)
            killed = kill(engine)
            await until(lambda: not engine.ready)
            assert f"worker {killed} was killed by signal 9" in engine.reason
            assert isinstance(await outcome_of(partial), Superseded)
            with pytest.raises(Superseded):
                await engine.recognize(ask(8, kind="partial"))
            late = asyncio.create_task(engine.recognize(ask(3)))
            assert [(await task).segment for task in (*finals, late)] == [0, 1, 2, 3]
            assert engine.ready
            assert engine.worker_pid != killed
            load = engine.load()
            assert (load.totals.restarts, load.queued_finals) == (1, 0)

    run(scenario())


def test_what_was_done_is_counted_over_workers() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config())) as engine:
            await engine.recognize(ask(1))
            await until(lambda: engine.load().totals.steps == 1)
            kill(engine)
            await until(lambda: engine.load().totals.restarts == 1)
            assert engine.load().totals.steps == 1
            await engine.recognize(ask(2))
            await until(lambda: engine.load().totals.steps == 2)
            assert [use.inputs for use in engine.load().totals.gears] == [2]

    run(scenario())


def test_a_final_that_kills_workers_fails_and_its_neighbours_do_not() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config(exit_on="language:xx", delay_ms="50"))) as engine:
            languages = ["en", "en", "xx", "en", "en", "en"]
            outcomes = await asyncio.gather(
                *(engine.recognize(ask(n, language=lang)) for n, lang in enumerate(languages)),
                return_exceptions=True,
            )
            assert isinstance(outcomes[2], EngineDead)
            assert "twice with this request" in str(outcomes[2])
            assert [o.segment for o in outcomes if isinstance(o, Transcript)] == [0, 1, 3, 4, 5]
            await until(lambda: engine.ready)
            assert engine.load().totals.restarts == 2
            assert (await engine.recognize(ask(10))).text == "one"

    run(scenario())


def test_a_hung_worker_is_replaced_and_its_final_arrives(tmp_path: Path) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {"hang_on": "language:xx", "once": str(tmp_path / "hung")}
        async with started(EngineHost(config(hang_timeout_s=0.5, **options))) as engine:
            hung = engine.worker_pid
            assert (await engine.recognize(ask(1, language="xx"))).segment == 1
            assert engine.worker_pid != hung
            assert engine.load().totals.restarts == 1

    run(scenario())


def test_a_frozen_worker_is_noticed_by_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voiced.engine.host._TICK_S", 0.3)
    monkeypatch.setattr("voiced.engine.host._QUIET_TICKS", 4)

    async def scenario() -> None:
        async with started(EngineHost(config())) as engine:
            frozen = engine.worker_pid
            assert frozen is not None
            os.kill(frozen, signal.SIGSTOP)
            assert (await engine.recognize(ask(1))).segment == 1
            assert engine.worker_pid != frozen

    run(scenario())


def test_a_worker_that_cannot_come_back_is_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        marker = tmp_path / "started"
        marker.touch()
        engine = EngineHost(config(start="exit", once=str(marker)))
        async with started(engine):
            marker.unlink()
            kill(engine)
            await until(lambda: "cannot start" in engine.reason)
            assert (await engine.recognize(ask(1))).text == "one"
            assert engine.load().totals.restarts == 2

    run(scenario())


def test_a_fault_of_the_supervisor_fails_what_is_open_instead_of_hanging_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_deaths: int) -> float:
        raise ZeroDivisionError

    async def scenario() -> None:
        monkeypatch.setattr("voiced.engine.host.restart_delay_s", broken)
        async with started(EngineHost(config(delay_ms="400"))) as engine:
            final = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            kill(engine)
            assert isinstance(await outcome_of(final), EngineDead)
            assert (engine.ready, "ZeroDivisionError" in engine.reason) == (False, True)
            with pytest.raises(EngineDead, match="supervision broke"):
                await engine.recognize(ask(2))
        assert "engine is lost" in caplog.text

    run(scenario())


def test_finals_that_wait_for_a_worker_keep_their_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        marker, clock = tmp_path / "started", FakeClock()
        marker.touch()
        engine = EngineHost(config(start="hang", once=str(marker)), clock)
        async with started(engine):
            marker.unlink()
            kill(engine)
            await until(lambda: not engine.ready)
            final = asyncio.create_task(engine.recognize(ask(1, deadline_ns=1_000_000_000)))
            await asyncio.sleep(0)
            assert engine.load().queued_finals == 1
            clock.advance_ms(1_001)
            assert isinstance(await outcome_of(final), DeadlineExceeded)

    run(scenario())


def test_a_worker_that_dies_while_starting_is_named() -> None:
    async def scenario() -> None:
        with pytest.raises(EngineDead, match=r"engine worker \d+ ended with 70"):
            await EngineHost(config(start="exit")).start()

    run(scenario())


def test_a_cancelled_start_leaves_nothing() -> None:
    async def scenario() -> None:
        engine = EngineHost(config(start="hang"))
        start = asyncio.create_task(engine.start())
        await until(lambda: engine.worker_pid is not None)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert engine.worker_pid is None

    run(scenario())


def test_stop_does_not_wait_for_a_hung_call() -> None:
    async def scenario() -> None:
        engine = EngineHost(config(hang_on="always"))
        await engine.start()
        final = asyncio.create_task(engine.recognize(ask(1)))
        await asyncio.sleep(0)
        await engine.stop(drain_s=0.1)
        assert isinstance(await outcome_of(final), EngineDead)

    run(scenario())


def test_a_segment_too_long_for_any_message_is_refused() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config())) as engine:
            pcm = np.zeros(ipc.MAX_SEGMENT_SAMPLES + 1, dtype=np.int16)
            with pytest.raises(NoGearError):
                await engine.recognize(Request(Segment(1, "mic", 0, pcm)))
            assert engine.load().queued_finals == 0

    run(scenario())


@pytest.mark.parametrize("resource", ["sockets", "files"])
def test_a_worker_that_cannot_be_started_leaves_nothing(
    resource: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario() -> None:
        with zmq.Context() as context, monkeypatch.context() as patch:
            if resource == "sockets":
                context.set(zmq.MAX_SOCKETS, 1)
            else:
                patch.setattr("voiced.engine.process.os.pipe", no_pipe)
            with (
                context.socket(zmq.PAIR),
                pytest.raises(OSError, match="many open files"),
            ):
                await WorkerProcess.start(context, config())
        # Leaving the context would wait for ever for a socket that is left open.

    run(scenario())
    assert not list(tmp_path.glob("voiced-*"))


def test_the_socket_is_in_a_folder_of_this_user_alone(tmp_path: Path) -> None:
    with runtime_dir() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


@pytest.mark.parametrize("name", ["d" * 100, "声" * 34], ids=["ascii", "three_bytes_each"])
def test_a_runtime_folder_too_deep_for_a_socket_is_not_used(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path_factory.mktemp("x") / name
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with runtime_dir() as folder:
        assert folder.parent != deep


def test_sigterm_lets_a_worker_answer_first_and_sigint_is_not_for_it() -> None:
    async def scenario() -> None:
        async with started(EngineHost(config(delay_ms="300"))) as engine:
            final = asyncio.create_task(engine.recognize(ask(1)))
            await asyncio.sleep(0)
            pid = engine.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGINT)
            await until(lambda: engine.rss_bytes > 0)
            os.kill(pid, signal.SIGTERM)
            assert (await final).segment == 1
            await until(lambda: engine.ready and engine.worker_pid != pid)

    run(scenario())


PARENT = """
import asyncio, os, signal
from voiced.engine.host import EngineHost
from voiced.engine.types import EngineConfig

async def main():
    engine = EngineHost(EngineConfig("fake"))
    await engine.start()
    print(engine.worker_pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        # Both the worker and the parent hold the pipe: its end is the end of both.
        output, _ = parent.communicate(timeout=LIMIT_S)
    assert parent.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{int(output)}/exe").exists()
    assert not list(tmp_path.iterdir())  # though nobody was there to tidy up


def test_the_worker_refuses_to_be_started_by_hand() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "voiced.engine.worker"],
        input=b"hello\n",
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == 2
    assert b"started by the voiced daemon" in result.stderr


def test_back_off_starts_at_once_and_has_a_ceiling() -> None:
    delays = [restart_delay_s(deaths) for deaths in range(1, 10)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert restart_delay_s(10_000) == 30.0
