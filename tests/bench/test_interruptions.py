"""What an interruption costs: how it is judged, and a short run of the real thing."""

from __future__ import annotations

import dataclasses
import os
import wave
from pathlib import Path

import numpy as np
import pytest
from tests.system.running_daemon import noise, silence

from voiced.bench.corpus import Clip
from voiced.bench.interruptions import Interruptions, Round, run
from voiced.bench.ledger import Violations
from voiced.bench.workers import kill_worker, worker_of
from voiced.daemon.commands.bench_interruptions import _speech

GOOD = Round(
    ready_s=1.0, ready_cpu_s=0.9, back_s=0.8, back_cpu_s=0.7, usual_ms=3.0, crash_ms=900.0,
    stop_s=0.5, status=0, segments=4, finals=4, failed=0, ended=2, violations=Violations(),
    load_1min=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"status": 1},
        {"finals": 3},
        {"failed": 1, "finals": 3},
        {"segments": 0, "finals": 0},
        {"ended": 1},
        {"violations": Violations(1, ["segment 3 got no last word"])},
    ],
)
def test_a_round_in_which_something_is_not_answered_is_no_good_one(
    change: dict[str, object],
) -> None:
    assert Interruptions(2, (GOOD, GOOD)).is_good
    assert not Interruptions(2, (GOOD, dataclasses.replace(GOOD, **change))).is_good  # type: ignore[arg-type]


def test_the_table_has_least_median_and_most() -> None:
    slow = dataclasses.replace(GOOD, ready_s=3.0, finals=3, failed=1)
    table = Interruptions(2, (GOOD, slow, GOOD)).table()
    assert table.rows[0] == ("process start to READY, s", "1.00", "1.00", "3.00")
    assert table.notes[-1] == (
        "segments 12, finals 11, failed 1, streams told of their end 6 of 6, broken promises 0"
    )


def test_a_daemon_that_is_interrupted_answers_everything() -> None:
    speech = [silence(0.3) + (noise(1.0) + silence(1.2)) * 3] * 2
    result = run(speech, rounds=1, arguments=("--model", "fake", "--set", "vad.kind=webrtc"))
    (found,) = result.rounds
    assert result.is_good, found
    assert found.segments >= 4
    assert 0 < found.ready_cpu_s <= 2 * found.ready_s  # two processes
    assert found.back_s > 0 < found.stop_s


def test_what_is_no_worker_is_not_killed() -> None:
    assert worker_of(os.getpid()) is None
    assert not kill_worker(os.getpid())


def test_each_stream_says_clips_with_pauses_and_begins_at_another_one(tmp_path: Path) -> None:
    clips = []
    for number in range(4):
        path, seconds = tmp_path / f"{number}.wav", 0.5 + number
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, 16_000, 0, "NONE", ""))
            out.writeframes(np.full(round(16_000 * seconds), 1_000 * number, "<i2").tobytes())
        clips.append(Clip(str(number), path, "one", "en", frozenset(), seconds, "made"))
    first, second = (np.frombuffer(_speech(clips, number, 2), "<i2") for number in range(2))
    assert len(first) == len(second) == 3 * 16_000 * (0.5 + 1.5 + 2.5 + 3.5 + 4 * 1.2)
    assert [round(int(each[4_000]), -3) for each in (first, second)] == [0, 2_000]
    assert not second[round(2.5 * 16_000) : round(3.7 * 16_000)].any()
