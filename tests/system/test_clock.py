"""The machine's clock jumps while somebody speaks."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

from tests.system.running_daemon import (
    FAKE,
    finals,
    launch,
    noise,
    receive,
    receive_until,
    say,
    silence,
    stream,
)

from voiced.daemon.journal_file import FILE_NAME
from voiced.daemon.journal_reader import JournalReader

HOUR_S, DAY_S = 3_600, 86_400
YEARS_S = 50 * 365 * DAY_S
"""Back to where a machine without a clock of its own begins."""
JUMPING = """
import os, time
real = time.time_ns
def jumped_ns():
    with open(os.environ["JUMP_FILE"]) as file:
        return real() + int(file.read() or 0) * 10**9
time.time_ns = jumped_ns
time.time = lambda: jumped_ns() / 1e9
"""
"""Python imports it at its start; the monotonic clock stays, as the kernel's does."""


def test_a_clock_years_ahead_at_a_start_costs_nothing_that_is_kept(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    jump = tmp_path / "jump"
    wrong = "further on than the journal"
    for number, jump_s in enumerate((0, 12 * 365 * DAY_S, 0)):
        jump.write_text(str(jump_s))
        daemon = launch(
            tmp_path,
            *(*FAKE, "--set", "journal.enabled=true", "--set", f"journal.folder={tmp_path}"),
            *("--set", "bus.replay=tcp://127.0.0.1:*"),
            name=f"daemon-{number}",
            PYTHONPATH=str(tmp_path),
            JUMP_FILE=str(jump),
        )
        try:
            daemon.wait_ready()
            assert len(finals(asyncio.run(say(daemon, noise(1.0) + silence(1.0))))) == 1
            daemon.process.terminate()
            assert daemon.wait_exit() == 0
            assert daemon.log.count(wrong) == (1 if jump_s else 0)
        finally:
            daemon.kill()
    with JournalReader(tmp_path / FILE_NAME) as reader:
        times = [each.wall_ms for each in reader.read().entries]
    assert len(times) == 3
    assert times[1] - times[0] > YEARS_S * 200  # ms: it was dated twelve years ahead


def test_a_clock_that_jumps_days_and_years_changes_no_result_and_no_order(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    jump = tmp_path / "jump"
    jump.write_text("0")
    jumps_s = (DAY_S, -DAY_S, -YEARS_S, 0, HOUR_S)
    daemon = launch(
        tmp_path,
        *(*FAKE, "--set", "journal.enabled=true", "--set", f"journal.folder={tmp_path}"),
        *("--set", "bus.replay=tcp://127.0.0.1:*"),
        PYTHONPATH=str(tmp_path),
        JUMP_FILE=str(jump),
    )

    async def talk() -> list[dict[str, object]]:
        async with stream(daemon) as connection:
            said = []
            for jump_s in jumps_s:
                await connection.send(noise(1.0))
                said.append(await receive(connection))
                jump.write_text(str(jump_s))
                await connection.send(noise(0.5) + silence(1.0))
                said += await receive_until(connection, "final")
            await connection.send(json.dumps({"type": "stop"}))
            return said + await receive_until(connection, "ended")

    try:
        daemon.wait_ready()
        said = asyncio.run(talk())
        assert said[-1]["lost_ms"] == 0
        words = finals(said)
        assert len(words) == len(jumps_s)
        spans = [(each["start_ms"], each["end_ms"]) for each in words]
        assert all(0 < end - start < 3_000 for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert max(each["latency_ms"] for each in words) < HOUR_S * 1_000
        with JournalReader(tmp_path / FILE_NAME) as reader:
            kept = reader.read().entries
        assert [each.message.segment for each in kept] == [each["segment"] for each in words]
        times = [each.wall_ms for each in kept]
        assert times[0] - times[1] > DAY_S * 1_000, "the clock did jump"
        assert times[1] - times[2] > DAY_S * 1_000 < times[3] - times[2]
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
        assert "Traceback" not in daemon.log
    finally:
        daemon.kill()
