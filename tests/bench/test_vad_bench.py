"""Endpointing in noise: how it is mixed and what is counted."""

from __future__ import annotations

import numpy as np
import pytest

from voiced.audio.front import FrontSettings
from voiced.audio.pcm import Float32
from voiced.audio.sources import synthetic
from voiced.bench.vad import CLEAN, Mixed, listen, measure, mix, speech_runs, table

RATE = 16_000


class LoudVad:
    """Calls what is above -30 dBFS speech."""

    window_samples = 512
    batch_windows = 1

    def feed(self, samples: Float32) -> float:
        return float(np.sqrt(np.mean(samples * samples)) > 0.03)

    def feed_many(self, windows: Float32) -> list[float]:
        return [self.feed(window) for window in windows]

    def reset(self) -> None:
        pass


def tone(seconds: float) -> Float32:
    time_s = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)


def clip() -> Float32:
    quiet = np.zeros(RATE, np.float32)
    return np.concatenate((quiet, tone(1.0), quiet, tone(0.5), quiet))


NOISE = synthetic.noise(3.0, seed=5, level_dbfs=-20)


def rms(samples: Float32) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def test_the_reference_is_what_is_loud_in_the_clean_clip() -> None:
    runs = speech_runs(clip())
    seconds = [(begin / RATE, end / RATE) for begin, end in runs]
    assert seconds == [pytest.approx((1.0, 2.0), abs=0.02), pytest.approx((3.0, 3.5), abs=0.02)]
    assert speech_runs(np.zeros(100, np.float32)) == []


@pytest.mark.parametrize("snr_db", [20.0, 10.0, 0.0])
def test_the_noise_is_as_loud_as_asked_for_and_the_same_each_time(snr_db: float) -> None:
    mixed = mix(clip(), NOISE, snr_db, seed=3)
    begin, end = mixed.speech[0]
    silent = mixed.samples[: 2 * RATE]
    found_db = 20 * np.log10(rms(tone(1.0)) / rms(silent))
    assert found_db == pytest.approx(snr_db, abs=0.5) or np.abs(mixed.samples).max() == 1.0
    np.testing.assert_array_equal(mixed.samples, mix(clip(), NOISE, snr_db, seed=3).samples)
    assert end - begin == pytest.approx(RATE, abs=320)


def test_a_detector_that_is_right_misses_cuts_and_invents_nothing() -> None:
    mixed = mix(clip(), None, CLEAN, seed=0)
    outcome = listen(mixed, LoudVad(), FrontSettings(grown_ms=0))
    assert (outcome.missed, outcome.cut, outcome.false, outcome.runs) == (0, 0, 0, 2)
    assert len(outcome.open_delays) == len(outcome.close_delays) == 2
    assert all(3_000 <= delay <= 4_200 for delay in outcome.open_delays)  # 0.2 s of speech
    assert all(0 <= delay <= 1_000 for delay in outcome.close_delays)


def test_noise_that_passes_for_speech_is_counted() -> None:
    horn = np.concatenate((clip(), np.zeros(RATE, np.float32), tone(0.5)))
    speech = tuple(speech_runs(clip()))
    outcome = listen(Mixed(horn, speech), LoudVad(), FrontSettings(grown_ms=0))
    assert (outcome.false, outcome.cut) == (1, 0)
    deaf = FrontSettings(grown_ms=0, min_speech_ms=1_000)
    missed = listen(mix(clip(), None, CLEAN, seed=0), LoudVad(), deaf)
    assert missed.missed == pytest.approx(RATE // 2, abs=400)
    assert missed.cut == 1


def test_every_detector_hears_the_same_mixtures() -> None:
    rows = measure(
        [clip()],
        [NOISE],
        [("one", LoudVad), ("two", LoudVad)],
        settings=FrontSettings(grown_ms=0),
        advance=lambda _: None,
        snrs_db=(CLEAN, 10.0),
    )
    assert [(row.detector, row.snr_db) for row in rows] == [
        ("one", CLEAN),
        ("two", CLEAN),
        ("one", 10.0),
        ("two", 10.0),
    ]
    assert (rows[0].missed, rows[0].cut) == (rows[1].missed, rows[1].cut)
    assert len(table(rows).rows) == 4
