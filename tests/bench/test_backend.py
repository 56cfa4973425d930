"""The figures of `voiced bench backend`, without a model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voiced.bench.backend import (
    Flatness,
    GearMemory,
    Pair,
    Run,
    Timed,
    TimedBackend,
    cpu_clock,
    tables,
)
from voiced.bench.report import plain_table


class CountingSession:
    traffic = None

    def bind(self, inputs: Any, outputs: Any) -> Any:
        return self

    def allocate(self, shape: Any, dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def run(self) -> None:
        """Takes no time."""


class CountingBackend:
    name, target, compiles_shapes = "counting", None, False

    def load(self, path: Path, *, threads: int) -> Any:
        return CountingSession()


def pair(clip: str, text: str, reference: str) -> Pair:
    return Pair(clip, "set", "en", 1.0, 2.0, text, reference)


def timed(
    total_ms: float, keep_ms: float = 0.0, inside_ms: float | None = None, *, cpu_ms: float
) -> Timed:
    inside = total_ms if inside_ms is None else inside_ms
    return Timed({("step", 200): [Run(total_ms, inside, keep_ms, cpu_ms)]})


def test_calls_are_filed_under_their_role_and_the_gear_being_measured() -> None:
    backend = TimedBackend(CountingBackend(), {"a.ms": "prefill", "b.ms": "step"})
    prefill, step = (backend.load(Path(name), threads=1).bind({}, {}) for name in ("a.ms", "b.ms"))
    step.run()  # no gear is being measured
    backend.gear_frames = 200
    prefill.run()
    backend.gear_frames = 400
    step.run()
    step.run()
    assert {spot: len(runs) for spot, runs in backend.timed.runs.items()} == {
        ("prefill", 200): 1,
        ("step", 400): 2,
    }


def test_crossing_is_what_neither_the_library_nor_keeping_took() -> None:
    assert Run(10.0, inside_ms=8.0, keep_ms=1.5, cpu_ms=9.0).crossing_ms == pytest.approx(0.5)


def test_the_clock_of_a_process_counts_its_cpu_time() -> None:
    before = time.process_time_ns()
    found = time.clock_gettime_ns(cpu_clock(os.getpid()))
    assert before <= found <= time.process_time_ns()


def test_every_difference_of_texts_is_listed() -> None:
    pairs = [pair("a", "one", "one"), pair("b", "too", "two")]
    memory = [GearMemory(2.0, 500_000_000, 900_000_000, 1234.0)]
    flatness = Flatness(50, (1_000_000_000, 1_100_000_000))
    shown = "\n".join(
        plain_table(table)
        for table in tables(
            pairs, timed(30.0, 1.0, 28.5, cpu_ms=12.0), timed(10.0, cpu_ms=8.0), memory, flatness
        )
    )
    assert "b: 'too', onnxruntime 'two'" in shown
    assert "a: " not in shown
    assert "50.0%" in shown
    row = next(line for line in shown.splitlines() if line.startswith("step 2 s"))
    assert row.split()[3:] == [
        *("1", "30.0", "10.0", "3.00"),
        *("12.0", "8.0", "1.50"),
        *("1.00", "0.50"),
    ]
    assert "+10.0%" in shown
    assert "GROWING" in shown


def test_memory_that_stays_within_5_percent_is_flat() -> None:
    flat = Flatness(100, (1_000, 1_200, 1_049))
    assert flat.growth == pytest.approx(0.049)
    shown = plain_table(tables([pair("a", "", "")], Timed(), Timed(), [], flat)[-1])
    assert "flat" in shown
