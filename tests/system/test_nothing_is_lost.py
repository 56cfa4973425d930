"""What was said survives the daemon: killed, started twice, without room on its disk."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.system.running_daemon import (
    DEADLINE_S,
    FAKE,
    Daemon,
    finals,
    launch,
    noise,
    receive_until,
    say,
    silence,
    stream,
    subscribed,
)

from voiced.daemon import wire

WORD = noise(1.0) + silence(1.0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons that keep a journal in one folder, one after the other or side by side."""
    started: list[Daemon] = []

    def begin(*arguments: str, **environment: str) -> Daemon:
        daemon = launch(
            tmp_path,
            *FAKE,
            *("--set", "bus.replay=tcp://127.0.0.1:*"),
            *arguments,
            name=f"daemon{len(started)}",
            **{"STATE_DIRECTORY": str(tmp_path / "state"), **environment},
        )
        started.append(daemon)
        return daemon

    yield begin
    for daemon in started:
        daemon.kill()


def replay(daemon: Daemon) -> list[dict[str, Any]]:
    """Everything that the daemon's journal has."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as asker:
        asker.set(zmq.LINGER, 0)
        asker.set(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        asker.connect(daemon.addresses()["replay"])
        asker.send(wire.encode(wire.Replay(v=1, id=1, limit=1_000)))
        page: dict[str, Any] = json.loads(asker.recv())
    assert page["type"] == "page", page
    messages: list[dict[str, Any]] = page["messages"]
    return messages


def readyz(daemon: Daemon) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(daemon.get("/readyz")[1])
    return body


def test_a_closed_segment_outlives_the_daemon_that_heard_it(start: Callable[..., Daemon]) -> None:
    async def until_closed(daemon: Daemon) -> dict[str, Any]:
        async with stream(daemon, stream="desk", partials=False) as connection:
            for pid in daemon.worker_pids():
                os.kill(pid, signal.SIGSTOP)  # nothing is answered from here on
            await connection.send(WORD)
            closed = (await receive_until(connection, "speech_ended"))[-1]
            daemon.process.kill()
        return closed

    first = start()
    first.wait_ready()
    closed = asyncio.run(until_closed(first))
    first.wait_exit()
    second = start()
    with subscribed(second) as bus:
        recovered = bus.first(lambda message: message["type"] == "final")
    assert {key: recovered[key] for key in ("stream", "segment", "start_ms", "end_ms", "text")} == {
        **{key: closed[key] for key in ("stream", "segment", "start_ms", "end_ms")},
        "text": "one",
    }
    second.wait_for("the spool to be empty", lambda: readyz(second)["journal"]["spooled"] == 0)
    (entry,) = replay(second)
    assert entry == recovered
    assert recovered["recovered"] != recovered["epoch"]
    later = finals(asyncio.run(say(second, WORD, stream="desk")))
    assert later[0]["segment"] > closed["segment"]
    second.process.kill()
    third = start()
    third.wait_ready()
    assert [entry["segment"] for entry in replay(third)] == [
        closed["segment"], later[0]["segment"],
    ]  # fmt: skip


def test_a_plugin_that_was_away_has_every_final_once(
    start: Callable[..., Daemon], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    daemon = start()
    daemon.wait_ready()

    def run_until(count: int, daemon: Daemon) -> list[dict[str, Any]]:
        where = daemon.addresses()
        command = [sys.executable, "-m", "voiced.daemon.cli", "plugins", "run", "jsonl",
                   "--bus", where["bus"], "--ingest", where["ingest"], "--replay", where["replay"],
                   "--state-dir", str(tmp_path / "plugin"), "--from", "beginning",
                   "--set", f"path={out}"]  # fmt: skip
        if out.exists():
            del command[command.index("--from") : command.index("--from") + 2]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as plugin:
            daemon.wait_for("lines", lambda: out.exists() and len(lines()) >= count)
            plugin.kill()
        return lines()

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines()]

    said = finals(asyncio.run(say(daemon, WORD * 2)))
    assert [line["segment"] for line in run_until(2, daemon)] == [m["segment"] for m in said]
    said += finals(asyncio.run(say(daemon, WORD)))
    daemon.process.kill()
    daemon.wait_exit()
    daemon = start()
    daemon.wait_ready()
    said += finals(asyncio.run(say(daemon, WORD)))
    found = run_until(4, daemon)
    assert [line["segment"] for line in found] == [m["segment"] for m in said]
    assert "gap" not in {line["type"] for line in found}


def test_a_full_disk_is_told_and_caught_up_with(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.wait_ready()
    pid = daemon.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (30_000, hard))  # as a disk without room
    said = finals(asyncio.run(say(daemon, WORD * 2)))
    assert len(said) == 2
    found = daemon.wait_for(
        "the degraded state",
        lambda: (body := readyz(daemon))["journal"]["state"] == "degraded" and body,
    )
    assert found["ready"] is True
    assert found["journal"]["pending"] == 2
    assert 'voiced_journal_state{state="degraded"} 1.0' in daemon.get("/metrics")[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    daemon.wait_for("recovery", lambda: readyz(daemon)["journal"]["pending"] == 0)
    assert readyz(daemon)["journal"]["state"] == "ok"
    assert [entry["segment"] for entry in replay(daemon)] == [m["segment"] for m in said]
    assert "results are published without it" in daemon.log


def test_a_second_daemon_leaves_the_journal_to_the_first(start: Callable[..., Daemon]) -> None:
    first, second = start(), start()
    for daemon in (first, second):
        daemon.wait_ready()
    states = [readyz(daemon)["journal"]["state"] for daemon in (first, second)]
    assert sorted(states) == ["degraded", "ok"]
    holder, other = (first, second) if states[0] == "ok" else (second, first)
    assert f"in use by process {holder.process.pid}" in readyz(other)["journal"]["reason"]
    assert len(finals(asyncio.run(say(other, WORD)))) == 1
    assert len(finals(asyncio.run(say(holder, WORD)))) == 1
    assert len(replay(holder)) == 1


def test_a_stop_with_a_journal_answers_and_keeps_everything(start: Callable[..., Daemon]) -> None:
    async def stop_in_mid_word(daemon: Daemon) -> list[dict[str, Any]]:
        async with stream(daemon) as connection:
            await connection.send(WORD + noise(1.0))
            await receive_until(connection, "final")
            daemon.process.send_signal(signal.SIGTERM)
            return await receive_until(connection, "ended")

    first = start()
    first.wait_ready()
    last = finals(asyncio.run(stop_in_mid_word(first)))
    assert len(last) == 1
    assert first.wait_exit() == 0
    second = start()
    second.wait_ready()
    assert [entry["segment"] for entry in replay(second)] == [1, last[0]["segment"]]
    assert readyz(second)["journal"]["spooled"] == 0
