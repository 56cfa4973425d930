"""What a running daemon tells about itself: levels, `/v1/status`, the picture."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.daemon.server_rig import WORD, Rig, first, send, serve, started
from tests.daemon.test_access import Keys

from voiced.daemon.commands.status import StatusRefused, fetch, meter, render
from voiced.daemon.commands.talk import ServerUnreachable
from voiced.daemon.inside import Inside
from voiced.daemon.level import SILENCE_DBFS, LevelMeter
from voiced.daemon.testing import silence
from voiced.daemon.wire import Final, SpeechStarted


def test_a_level_is_that_of_the_sound_and_falls_behind_it() -> None:
    level = LevelMeter()
    assert level.dbfs == SILENCE_DBFS
    sine = np.sin(np.arange(32_000) / 5).astype(np.float32) * np.float32(0.5)
    level.take(sine)
    assert math.isclose(level.dbfs, -9.03, abs_tol=0.1)
    level.take(np.zeros(2_400, np.float32))  # one half-life
    assert math.isclose(level.dbfs, -12.04, abs_tol=0.1)


@given(st.lists(st.integers(0, 5_000), max_size=20), st.floats(0, 1))
def test_a_level_is_bounded_and_does_not_depend_on_the_blocks(
    sizes: list[int], amplitude: float
) -> None:
    whole, parts = LevelMeter(), LevelMeter()
    whole.take(np.full(sum(sizes), amplitude, np.float32))
    for size in sizes:
        parts.take(np.full(size, amplitude, np.float32))
    assert SILENCE_DBFS <= parts.dbfs <= 0.1
    assert math.isclose(whole.dbfs, parts.dbfs, abs_tol=0.01)


@pytest.mark.parametrize(
    ("level_dbfs", "full"), [(0.0, 20), (6.0, 20), (-30.0, 10), (-60.0, 0), (-96.0, 0)]
)
def test_a_meter_has_one_width(level_dbfs: float, full: int) -> None:
    assert meter(level_dbfs).count("█") == full
    assert len(meter(level_dbfs)) == 27


def picture(facts: dict[str, Any]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(facts))
    return console.export_text()


@pytest.mark.parametrize("shows_text", [True, False])
def test_status_shows_streams_and_what_was_said_only_where_it_may(shows_text: bool) -> None:
    async def scenario(rig: Rig) -> None:
        inside = Inside(rig.streams, bus_seq=lambda: 7, shows_text=shows_text)
        inside.server = rig.server
        rig.server._routes._inside = inside
        async with rig.client() as client:
            await started(client)
            await send(client, WORD)
            while not isinstance(await first(client), Final):
                pass
            await send(client, WORD[: len(WORD) // 2])
            assert isinstance(await first(client), SpeechStarted)
            status, headers, body = await rig.get("/v1/status")
            assert (status, headers["content-type"]) == (200, "application/json")
            facts = json.loads(body)
            assert facts["bus_seq"] == 7
            assert facts["engine"]["bundle"] == "scripted@0"
            assert facts["clients"]["connections"] == 2
            (stream,) = facts["streams"]
            assert (stream["finals"], stream["is_speech"]) == (1, True)
            assert stream["level_dbfs"] > -20
            assert ("samples" in stream.get("text", "")) is shows_text
            shown = picture(facts)
            assert stream["stream"] in shown
            assert "█" in shown
            assert ("samples" in shown) is shows_text
            await send(client, silence(2))

    serve(scenario)


def test_status_needs_an_admin_where_tokens_are_asked_for(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    admin, car = keys.add("ops", "admin"), keys.add("car", "stream")

    async def scenario(rig: Rig) -> None:
        for token, status in ((None, 401), (car, 403), (admin, 200)):
            header = "" if token is None else f"Authorization: Bearer {token}\r\n"
            assert (await rig.get("/v1/status", headers=header))[0] == status

    serve(scenario, access=keys.access)


def test_what_was_said_is_no_markup() -> None:
    facts: dict[str, Any] = {
        "version": "1",
        "pid": 1,
        "uptime_s": 3_661,
        "rss_bytes": 1 << 20,
        "engine": {
            "is_ready": False,
            "reason": "loading",
            "bundle": "",
            "queued_finals": 0,
            "queued_partials": 0,
            "oldest_final_age_s": 0.0,
            "totals": {"restarts": 0},
        },
        "streams": [
            {
                "stream": "desk",
                "audio_ms": 1_000,
                "level_dbfs": -20.0,
                "is_speech": False,
                "finals": 0,
                "failed": 0,
                "backlog_s": 0.0,
                "text": "[red]open[/red]",
            }
        ],
        "max_streams": 4,
    }
    shown = picture(facts)
    assert "[red]open[/red]" in shown
    assert "up 1:01:01" in shown
    assert "not ready: loading" in shown


def test_nobody_there_is_named_with_the_next_step() -> None:
    with pytest.raises(ServerUnreachable, match="start the daemon with `voiced run`"):
        fetch("http://127.0.0.1:9/v1/status", None, None)
    assert StatusRefused.code == "refused"
