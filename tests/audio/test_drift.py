"""The device's clock against ours."""

from __future__ import annotations

import random

import pytest

from voiced.audio.drift import DriftMeter

BLOCK = 480


def run(meter: DriftMeter, *, ppm: float, duration_s: float, late_ms: float = 0.0) -> None:
    """Blocks of 30 ms at nominal 16 kHz, each late by up to `late_ms`."""
    chance = random.Random(7)
    true_rate = 16_000 * (1 + ppm / 1e6)
    for number in range(1, round(duration_s * true_rate / BLOCK)):
        late_ns = round(chance.random() * late_ms * 1e6)
        meter.note(
            number * BLOCK, 77_000_000_000 + round(number * BLOCK / true_rate * 1e9) + late_ns
        )


@pytest.mark.parametrize("ppm", [-200.0, -20.0, 0.0, 50.0, 1_000.0])
def test_the_drift_is_found_through_blocks_that_arrive_late(ppm: float) -> None:
    meter = DriftMeter(16_000)
    run(meter, ppm=ppm, duration_s=300, late_ms=20)
    assert meter.ppm == pytest.approx(ppm, abs=3)


def test_without_lateness_it_is_exact() -> None:
    meter = DriftMeter(16_000)
    run(meter, ppm=100, duration_s=60)
    assert meter.ppm == pytest.approx(100, abs=0.5)


def test_no_figure_is_given_too_early() -> None:
    meter = DriftMeter(16_000)
    run(meter, ppm=100, duration_s=29)
    assert meter.ppm is None


def test_a_clock_that_changes_is_followed_within_ten_minutes() -> None:
    meter, frames, now_ns = DriftMeter(16_000), 0, 0
    for ppm, minutes in ((50, 20), (-50, 11)):
        for _ in range(round(minutes * 60 * 10)):
            frames += 1_600
            now_ns += round(1e8 / (1 + ppm / 1e6))
            meter.note(frames, now_ns)
    assert meter.ppm == pytest.approx(-50, abs=1)
