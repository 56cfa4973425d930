"""`voiced tune` around its measurements, which are stood in for by a machine of known size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voiced.bench.dialogue import Spoken
from voiced.bench.hearing import Fate, Outcome
from voiced.bench.load import LoadPlan
from voiced.bench.load_report import Books, LoadResult, Pace, Tally, sum_up
from voiced.bench.sampling import Samples
from voiced.bench.tune import Probe
from voiced.daemon.commands import tune as command
from voiced.daemon.commands.live import Served, Speech
from voiced.daemon.config import load


def played(plan: LoadPlan, capacity: float) -> LoadResult:
    """A run on a machine whose delay explodes above its capacity."""
    delay_ms = 700.0 if plan.streams <= capacity else 9_000.0
    tally = Tally()
    for number in range(plan.streams):
        tally.add(
            Outcome(
                stream=number,
                clip="a",
                language="en",
                spoken_s=1.0,
                fate=Fate.RIGHT,
                final_ms=delay_ms,
                ended_ms=600.0,
                after_ended_ms=100.0,
                first_partial_ms=None,
                eager_ms=None,
                on_screen_ms=None,
                text="a",
                segments=1,
            )
        )
    return sum_up(
        streams=plan.streams,
        seconds=plan.seconds,
        partials=plan.partials,
        hang_over_ms=plan.hang_over_ms,
        tally=tally,
        books=Books(announced=plan.streams, finals=plan.streams),
        pace=Pace(),
        samples=Samples(),
        load_1min=0.0,
    )


class Machine:
    """Serves `capacity` streams; two threads are twice as fast, nothing else matters."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.runs: list[tuple[int, dict[str, Any]]] = []

    def speech(self, *_: Any, **__: Any) -> Speech:
        spoken = Spoken("a", "en", "a", np.ones(32_000, np.int16), 0, 32_000)
        return Speech({"en": [spoken]}, None, "one clip")

    def probe(self, served: Served, said: Speech, settings: Mapping[str, Any], *_: Any) -> Probe:
        speed = 2.0 * settings.get("engine.threads", 1)
        return Probe(dict(settings), speed, 0.1, 50.0, 10)

    def run_once(
        self, served: Served, said: Speech, plan: LoadPlan, *, extra: Mapping[str, Any], title: str
    ) -> LoadResult:
        self.runs.append((plan.streams, dict(extra)))
        return played(plan, self.capacity)


def machine(monkeypatch: pytest.MonkeyPatch, capacity: float) -> Machine:
    made = Machine(capacity)
    monkeypatch.setattr(command, "speech", made.speech)
    monkeypatch.setattr(command, "_probe", made.probe)
    monkeypatch.setattr(command, "run_once", made.run_once)
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda _: {0, 1})
    return made


def test_it_finds_the_knee_and_writes_a_configuration_with_its_evidence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = machine(monkeypatch, capacity=9)
    out, drawing, report = tmp_path / "t.toml", tmp_path / "t.svg", tmp_path / "t.json"
    status = command.tune(
        served=Served(model="fake", assignments=["vad.kind=webrtc"]),
        clips=tmp_path,
        out=out,
        drawing=drawing,
        json_path=report,
    )
    assert status == 0
    settings = load(file=out, environment={}).settings
    assert settings.server.max_streams == 9
    assert settings.engine.threads == 2
    assert (settings.engine.model, settings.vad.kind) == ("fake", "webrtc")
    text = out.read_text(encoding="utf-8")
    assert "9 streams: p50 100, p95 100, p99 100 ms (confirmation)" in text
    assert "10 streams: p50 8400, p95 8400, p99 8400 ms  NOT SERVED (p99 8400 ms)" in text
    assert drawing.read_text(encoding="utf-8").startswith("<svg")
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["result"]["found"]["knee"] == 9
    assert written["result"]["found"]["is_confirmed"] is True
    shown = capsys.readouterr().out
    assert "← knee" in shown
    assert f"voiced run --config {out}" in shown
    assert all(extra["engine.threads"] == 2 for _, extra in made.runs)
    assert all(extra["server.max_streams"] >= streams for streams, extra in made.runs)


def test_without_a_file_to_write_it_prints_the_configuration_and_settings_may_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, capacity=100)
    assert command.tune(served=Served(model="fake"), most=3, settings=False, quick=True) == 0
    shown = capsys.readouterr().out
    assert "[server]" in shown
    assert "max_streams = 3" in shown
    assert "threads" not in shown.partition("[server]")[2]


def test_a_machine_that_serves_nobody_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, capacity=0)
    with pytest.raises(command.TuneFailed, match="one stream is not served within 1000 ms"):
        command.tune(served=Served(model="fake"), quick=True)
