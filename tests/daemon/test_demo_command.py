"""The demo's own judgement: clips, texts and sums. `make demo` itself runs in `.ci/run`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from websockets.asyncio.server import ServerConnection, serve

from voiced.daemon import wire
from voiced.daemon.commands.child import (
    ChildDaemon,
    ChildFailed,
    child_daemon,
    child_failures,
    cpu_s,
    descendants,
    peak_bytes,
)
from voiced.daemon.commands.demo import Clip, DemoFailed, Heard, Summary, _show, check

HEARTBEAT = wire.Heartbeat(stream="-", seq=0)


def heard(text: str, *finals: str, language: str = "en") -> Heard:
    return Heard(Clip("clip", language, b"", text), list(finals))


@pytest.mark.parametrize(
    ("language", "said", "final"),
    [
        ("en", "Hello world.", "hello, World!"),
        ("en", "One two three four five six.", "1-2-3-4-5-6"),
        ("en", "One two three four five six.", "1-2-3-4-56"),
        ("zh", "一二三四五六七八九十。", "1234567890"),
        ("zh", "你好世界。", "你好世界"),
    ],
)
def test_another_spelling_of_what_was_said_is_right(language: str, said: str, final: str) -> None:
    assert heard(said, final, language=language).problem() is None


def test_a_clip_in_two_segments_is_right() -> None:
    assert heard("Hello wide world.", "Hello", "wide world.").problem() is None


def test_a_missing_final_and_a_wrong_one_are_all_named() -> None:
    wrong = [heard("Hello world."), heard("Good morning.", "Bring the soup back now")]
    with pytest.raises(DemoFailed) as caught:
        check(Summary(1.0, failed=1), wrong)
    assert str(caught.value) == (
        "demo failed: no final for en 'Hello world.'; found 'Bring the soup back now', "
        "expected about en 'Good morning.'; 1 segments failed"
    )


def test_the_summary_is_one_line_with_every_figure() -> None:
    summary = Summary(
        2.5, audio_s=20.0, finals=2, lags_ms=[800, 1000], cpu_s=5.0, peak_bytes=500_000_000
    )
    line = summary.line()
    assert "\n" not in line
    for figure in (
        "20.0 s of audio",
        "2 finals",
        "p50 900 ms",
        "p95 990 ms",
        "real-time factor 0.25",
        "500 MB",
    ):
        assert figure in line


def test_a_child_daemon_is_ready_measurable_and_ends_cleanly() -> None:
    with child_daemon("--model", "fake", "--set", "vad.kind=webrtc") as daemon:
        family = daemon.family()
        assert family[0] == daemon.pid
        assert len(family) > 1  # its engine worker
        assert peak_bytes(family) > 10_000_000
        assert cpu_s(family) > 0
    assert not Path(f"/proc/{daemon.pid}").exists()


def test_a_child_daemon_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(ChildFailed, match=r"(?s)exited with 2 at start\n.*engine\.beam"),
        child_daemon("--model", "fake", "--set", "engine.beam=0"),
    ):
        raise AssertionError("it started")


def test_the_kernel_knows_this_process_to_less_than_a_tick() -> None:
    before_s = time.process_time()
    found_s = cpu_s([os.getpid()])
    assert before_s <= found_s <= time.process_time()


def test_an_error_in_a_task_of_a_group_is_raised_in_the_groups_place() -> None:
    error = DemoFailed("daemon refused the stream")
    with pytest.raises(DemoFailed) as caught, child_failures():
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [error]), ValueError()])
    assert caught.value is error
    with pytest.raises(ChildFailed, match="did not answer in time"), child_failures():
        raise TimeoutError


def test_a_stream_that_the_daemon_refuses_is_one_error() -> None:
    async def scenario() -> None:
        with (
            zmq.asyncio.Context() as context,
            context.socket(zmq.PUB) as bus,
        ):
            port = bus.bind_to_random_port("tcp://127.0.0.1")

            async def refuse(connection: ServerConnection) -> None:
                await connection.recv()
                error = wire.Error(stream="demo-en", code="busy", message="all taken")
                await bus.send_multipart([wire.topic(error), wire.encode(error)])
                async for _ in connection:
                    pass

            async def beat() -> None:
                while True:
                    await bus.send_multipart([b"heartbeat/-", wire.encode(HEARTBEAT)])
                    await asyncio.sleep(0.01)

            beating = asyncio.create_task(beat())
            async with serve(refuse, "127.0.0.1", 0) as server:
                where = server.sockets[0].getsockname()[1]
                daemon = ChildDaemon(
                    os.getpid(), f"ws://127.0.0.1:{where}", f"tcp://127.0.0.1:{port}", 0.0
                )
                clip = Clip("clip", "en", bytes(3_200), "Hello.")
                try:
                    await _show(daemon, [clip])
                finally:
                    beating.cancel()
                    await asyncio.wait({beating})

    with pytest.raises(DemoFailed, match="busy: all taken"):
        asyncio.run(scenario())


def test_processes_below_one_are_found_while_its_threads_and_children_come_and_go() -> None:
    hidden = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", hidden]) as parent:
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                threads = [threading.Thread(target=int) for _ in range(8)]
                for thread in threads:
                    thread.start()
                subprocess.run(["true"], check=True)

        churning = threading.Thread(target=churn)
        churning.start()
        try:
            assert all(parent.pid in descendants(os.getpid()) for _ in range(2_000))
            deadline_s = time.monotonic() + 30
            while not descendants(parent.pid):
                assert time.monotonic() < deadline_s
            (sleeping,) = descendants(parent.pid)
            assert sleeping in descendants(os.getpid())
        finally:
            stop.set()
            churning.join()
            for pid in descendants(parent.pid):
                os.kill(pid, signal.SIGKILL)
            parent.kill()
    assert descendants(parent.pid) == []
