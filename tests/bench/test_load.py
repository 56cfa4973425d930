"""Figures of a run, what counts as served and as flat, and one short run with a real daemon."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Spoken
from voiced.bench.figures import Drift, delay_drift, memory_drift, percentile, spread
from voiced.bench.hearing import Fate, Judge, Outcome
from voiced.bench.ledger import Violations
from voiced.bench.load import LoadPlan, LoadRun, Target, _refusal, http_url
from voiced.bench.load_report import (
    MOST_BAD,
    MOST_KEPT,
    Books,
    LoadResult,
    Pace,
    Tally,
    soak_faults,
    sum_up,
    tables,
    verdict_table,
)
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.report import plain, plain_table
from voiced.bench.sampling import Samples, Track, parse_metrics, process_kind
from voiced.daemon.commands.child import child_daemon


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([3.0, 1.0], 50) == 1.0
    assert percentile([3.0, 1.0], 99) == 3.0
    assert math.isnan(percentile([], 50))
    assert spread([None, 2.0, 1.0]).count == 2
    assert math.isnan(spread([]).most)


def test_a_delay_that_grows_is_not_flat_and_one_that_shrinks_is() -> None:
    growing = [(float(s), 100.0 + s) for s in range(300)]
    drift = delay_drift(growing, 300, percent=99, what="final")
    assert (drift.window_s, drift.first, drift.last) == (100, 198, 398)
    assert not drift.is_flat
    assert delay_drift([(s, 400 - d) for s, d in growing], 300, percent=99, what="").is_flat
    assert not delay_drift([], 300, percent=99, what="").is_flat


def test_windows_of_a_long_run_are_ten_minutes() -> None:
    points = [(float(s), 100.0 if s < 6600 else 105.0) for s in range(7200)]
    drift = delay_drift(points, 7200, percent=99, what="final")
    assert (drift.window_s, drift.first, drift.last, drift.is_flat) == (600, 100, 105, True)


def test_memory_is_compared_behind_its_filling() -> None:
    filling = [(float(s), min(s * 10.0, 300.0)) for s in range(600)]
    drift = memory_drift(filling, 600, what="daemon")
    assert (drift.first, drift.last, drift.is_flat) == (300, 300, True)
    leaking = [(float(s), 300.0 + s) for s in range(600)]
    assert not memory_drift(leaking, 600, what="daemon").is_flat


def outcome(**fields: Any) -> Outcome:
    values: dict[str, Any] = {
        "stream": 0,
        "clip": "lamp",
        "language": "en",
        "spoken_s": 1.0,
        "fate": Fate.RIGHT,
        "final_ms": 800.0,
        "ended_ms": 640.0,
        "after_ended_ms": 160.0,
        "first_partial_ms": None,
        "eager_ms": None,
        "on_screen_ms": 100.0,
        "text": "turn on the lamp",
        "segments": 1,
    }
    return Outcome(**values | fields)


def result(tally: Tally, **books: Any) -> LoadResult:
    samples = Samples(cpu_s=6.0)
    samples.rss["daemon"] = Track()
    for second in range(60):
        samples.rss["daemon"].add(second, 100e6)
    return sum_up(
        streams=2,
        seconds=60.0,
        partials=True,
        hang_over_ms=600.0,
        tally=tally,
        books=Books(**books),
        pace=Pace(),
        samples=samples,
        load_1min=0.5,
    )


def good(count: int = 100) -> Tally:
    tally = Tally()
    for number in range(count):
        tally.add(outcome(spoken_s=float(number % 60)))
    return tally


def test_a_run_is_summed_up() -> None:
    summed = result(good(), announced=100, finals=100)
    assert (summed.utterances, summed.beyond_ms.p99, summed.cpu_cores) == (100, 200, 0.1)
    assert summed.first_partial_ms.count == 0
    assert summed.serves(250) is None
    assert soak_faults(summed) == []
    shown = "\n".join(plain_table(each) for each in tables([summed]))
    assert "delay of finals" in shown
    assert plain(summed)


@pytest.mark.parametrize(
    ("books", "says"),
    [
        ({"refused": Counter(busy=1)}, "1 streams refused"),
        ({"ended_early": Counter(slow_client=2)}, "2 streams refused"),
        ({"failed": Counter(deadline=3)}, "3 segments failed"),
        ({"violations": Violations(1, ["x"])}, "1 promises broken"),
    ],
)
def test_streams_that_are_refused_failed_or_lied_to_are_not_served(
    books: dict[str, Any], says: str
) -> None:
    bad = result(good(), **books)
    assert bad.serves(1000) == says
    assert soak_faults(bad)


def test_streams_that_lose_words_or_wait_too_long_are_not_served() -> None:
    tally = good(97)
    for _ in range(3):
        tally.add(outcome(fate=Fate.MISHEARD, text=""))
    assert result(tally).serves(1000) == "3 of 100 utterances misheard"
    late = good(98)
    for _ in range(2):
        late.add(outcome(final_ms=5_600.0))
    assert result(late).serves(1000) == "p99 5000 ms"
    assert result(Tally()).serves(1000) == "no final"


def test_a_soak_that_grows_or_leaves_a_segment_open_is_at_fault() -> None:
    summed = result(good(), announced=101, finals=100)
    grown = replace(summed, drifts=[Drift("daemon RSS, MB", 10, 100, 106, 0.05)])
    assert soak_faults(grown) == [
        "1 segments without a last word",
        "daemon RSS, MB not flat: 100 to 106 (+6.0 %)",
    ]
    assert "daemon RSS" in plain_table(verdict_table(soak_faults(grown)))


def test_the_client_keeps_few_utterances_whole_however_long_it_runs() -> None:
    tally, pace = Tally(), Pace()
    for number in range(3 * MOST_KEPT):
        tally.add(outcome(fate=Fate.MISHEARD, spoken_s=float(number)))
    assert (len(tally.kept), len(tally.bad)) == (MOST_KEPT, MOST_BAD)
    assert tally.column("final_ms") == [None] * 3 * MOST_KEPT  # misheard ones are not timed
    pace.woke(1.0)
    pace.sent(7.0)
    assert (len(pace.late_ms), pace.behind_ms) == (1, 7.0)


def test_processes_are_named_by_what_they_run() -> None:
    assert process_kind(b"python\0-P\0-m\0voiced.engine.worker\0ipc://x\0") == "worker"
    assert process_kind(b"python\0-m\0voiced.daemon.cli\0run\0") == "daemon"
    assert process_kind(b"/usr/bin/python3\0-u\0/venv/bin/wyoming-faster-whisper\0--uri\0") == (
        "wyoming-faster-whisper"
    )


def test_metrics_are_read_without_their_buckets() -> None:
    text = (
        "# HELP a b\n# TYPE a gauge\nvoiced_engine_queued_finals 3.0\n"
        'voiced_partials_dropped_total{reason="closed"} 4.0\nx_bucket{le="1"} 9.0\n'
    )
    assert parse_metrics(text) == {
        "voiced_engine_queued_finals": 3.0,
        'voiced_partials_dropped_total{reason="closed"}': 4.0,
    }


def test_addresses_and_refusals_are_read() -> None:
    assert http_url("ws://h:1/v1/stream", "/metrics") == "http://h:1/metrics"
    assert _refusal(503, b'{"code": "busy"}') == "busy"
    assert _refusal(404, b"nothing") == "http_404"


def bursts(count: int) -> Spoken:
    """Loud noise, which webrtcvad takes for speech and the fake recogniser for a word each."""
    noise = np.random.default_rng(1).normal(0, 6_000, RATE_HZ * 4 // 10)
    one = np.concatenate([noise.clip(-32_000, 32_000), np.zeros(RATE_HZ // 5)]).astype(np.int16)
    pcm = np.tile(one, count)
    text = " ".join(("one", "two", "three")[:count])
    return Spoken(f"{count} bursts", "en", text, pcm, 0, len(pcm) - RATE_HZ // 5)


def test_live_streams_through_a_real_daemon_are_heard_timed_and_accounted_for() -> None:
    spoken = {"en": [bursts(2), bursts(3)]}
    judge = Judge(builtin_normaliser(), {"2 bursts": "one two", "3 bursts": "one two three"})
    with child_daemon(
        *("--model", "fake", "--set", "vad.kind=webrtc", "--set", "vad.end_ms=300")
    ) as daemon:
        target = Target(daemon.url, daemon.bus, daemon.family)
        plan = LoadPlan(streams=2, seconds=6.0, hang_over_ms=300.0)
        run = asyncio.run(LoadRun(target, plan, spoken, judge).run())
    assert run.utterances >= 2
    assert run.fates == {"right": run.utterances}
    assert run.final_ms.count == run.utterances
    assert run.first_partial_ms.count == run.utterances
    assert run.books.violations == Violations()
    assert run.books.finals == run.books.announced >= run.utterances
    assert run.books.compared is not None
    assert run.books.compared >= 3 * run.books.finals
    assert (run.refused, run.misheard, run.books.bus_lost) == (0, 0, 0)
    assert set(run.cpu_by_process) == {"daemon", "worker"}
    assert run.peak_rss_mb > 10
    assert run.late_ms.count > 100


def test_a_stream_too_many_is_refused_and_counted_and_the_others_go_on() -> None:
    with child_daemon(
        *("--model", "fake", "--set", "vad.kind=webrtc", "--set", "server.max_streams=1")
    ) as daemon:
        target = Target(daemon.url, daemon.bus, daemon.family)
        plan = LoadPlan(streams=2, seconds=1.0)
        run = asyncio.run(LoadRun(target, plan, {"en": [bursts(2)]}, None).run())
    assert run.books.refused == Counter(busy=1)
    assert run.books.violations == Violations()
    assert run.serves(1e9) == "1 streams refused"
