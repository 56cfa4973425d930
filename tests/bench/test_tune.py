"""The search for the knee, the choice of settings, the file and the drawing."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Dialogue, Spoken
from voiced.bench.drawing import Curve, Point, bars, nice_step, spaced, svg
from voiced.bench.knee import MOST_CONFIRMATIONS, KneeSearch
from voiced.bench.tune import (
    SYNTHETIC_S,
    Advice,
    Probe,
    better,
    config_text,
    first_guess,
    fit_gears,
    knobs,
    median_probe,
    run_probe,
    segment_frames,
    synthetic_mix,
)
from voiced.daemon.commands.child import child_daemon, cpu_s
from voiced.daemon.config import KEYS, load


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 70))
def test_without_noise_the_search_ends_at_the_knee_and_asks_for_no_number_twice(
    most: int, guess: int, knee: int
) -> None:
    search = KneeSearch(guess=min(guess, most), most=most, most_runs=20)
    asked = []
    while (streams := search.wanted()) is not None:
        asked.append(streams)
        search.tell(streams, is_served=streams <= knee)
    assert search.knee == min(knee, most)
    assert len(asked) == len(set(asked)) <= 13
    assert all(1 <= streams <= most for streams in asked)


@given(st.lists(st.booleans(), min_size=40, max_size=40))
def test_with_any_noise_the_search_ends_and_the_answer_is_one_that_was_served(
    answers: list[bool],
) -> None:
    search = KneeSearch(guess=8, most=64, most_runs=6)
    given_answers = iter(answers)
    served = set()
    runs = 0
    while (streams := search.wanted()) is not None:
        runs += 1
        is_served = next(given_answers)
        served |= {streams} if is_served else set()
        search.tell(streams, is_served=is_served)
    assert runs <= 6
    assert search.knee == 0 or search.knee in served
    confirmations = 0
    while search.to_confirm() is not None:
        confirmations += 1
        search.confirm(is_served=next(given_answers))
    assert confirmations <= MOST_CONFIRMATIONS
    assert search.knee >= 0


def test_a_confirmation_that_fails_takes_the_knee_down_and_one_that_holds_ends_it() -> None:
    search = KneeSearch(guess=20, most=20)
    search.tell(20, is_served=True)
    assert (search.wanted(), search.to_confirm()) == (None, 20)
    search.confirm(is_served=False)
    assert (search.to_confirm(), search.is_confirmed) == (18, False)
    search.confirm(is_served=True)
    assert (search.to_confirm(), search.knee, search.is_confirmed) == (None, 18, True)


def test_a_search_wants_a_guess_that_can_be_tried() -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        KneeSearch(guess=5, most=4)


def test_only_settings_that_the_daemon_has_are_tried() -> None:
    tried = {knob.key: knob.values for knob in knobs(2, {"engine.threads": 1}, quick=True)}
    assert tried == {"engine.threads": (1, 2)}
    assert knobs(1, {"engine.threads": 1}, quick=True) == []
    real = knobs(6, KEYS, quick=False)
    assert {"engine.threads", "engine.max_batch"} <= {knob.key for knob in real}
    assert next(knob for knob in real if knob.key == "engine.threads").values == (1, 2, 4, 6)


def probe(speed: float, **settings: int) -> Probe:
    return Probe({f"engine.{k}": v for k, v in settings.items()}, speed, 0.1, 100.0, 10)


def test_a_setting_is_changed_only_where_that_is_worth_it() -> None:
    now = probe(10.0)
    assert better([probe(10.2, threads=2), probe(9.0, threads=4)], now) is now
    assert better([probe(12.0, threads=2), probe(11.0, threads=4)], now).speed == 12.0
    assert better([], now) is now
    assert median_probe([probe(3), probe(1), probe(2)]).speed == 2
    assert [first_guess(8.0, share=0.4, most=n) for n in (64, 4)] == [12, 4]
    assert first_guess(0.1, share=0.4, most=4) == 1


def spoken(seconds: float) -> Spoken:
    count = round(seconds * RATE_HZ)
    return Spoken("a", "en", "a", np.arange(count).astype(np.int16), 1_600, count - 1_600)


def test_a_made_up_mix_has_the_common_lengths_and_no_text() -> None:
    (made,) = synthetic_mix({"en": [spoken(2.0), spoken(1.0)]}).values()
    assert [(s.speech_end - s.speech_start) / RATE_HZ for s in made] == list(SYNTHETIC_S)
    assert {s.reference for s in made} == {None}
    assert len({s.clip for s in made}) == len(SYNTHETIC_S)


def test_gears_are_compared_with_the_best_for_the_mix() -> None:
    fit = fit_gears([100, 100, 390, 5_000], [200, 400, 1_600], step=10)
    assert fit is not None
    assert fit.waste == pytest.approx(1 - 590 / 800)
    assert fit.best[-1] == 390
    assert fit.best_waste == pytest.approx(0)
    assert fit_gears([5_000], [200]) is None
    assert segment_frames({"en": [spoken(2.0)]}, pad_ms=500) == [280]


def test_the_file_that_is_recommended_is_one_that_the_daemon_takes(tmp_path: Path) -> None:
    advice = [
        Advice("server.max_streams", 9, "knee"),
        Advice("engine.threads", 2, "faster"),
        Advice("engine.languages", ("en", "zh"), "as given"),
        Advice("engine.max_batch", 8, "faster"),
    ]
    file = tmp_path / "tuned.toml"
    file.write_text(config_text(["evidence: p99 640 ms", ""], advice), encoding="utf-8")
    loaded = load(file=file, environment={})
    assert loaded.settings.server.max_streams == 9
    assert (loaded.settings.engine.threads, loaded.settings.engine.max_batch) == (2, 8)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# evidence: p99 640 ms\n#\n\n[server]\n# knee\nmax_streams = 9\n")
    assert text.count("[engine]") == 1


POINTS = (
    Point(4, 100, 200, 300, True),
    Point(8, 150, 400, 900, True, "confirmation"),
    Point(12, 300, 2_000, 9_000, False, "p99 9000 ms"),
    Point(16, math.nan, math.nan, math.nan, False, "2 segments failed"),
)
CURVE = Curve("Delay & more", "two <cores>", POINTS, 1_000, 8)


def test_the_drawing_is_xml_with_every_run_the_target_and_the_knee() -> None:
    root = ET.fromstring(svg(CURVE))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"Delay & more", "two <cores>", "p50", "p95", "p99", "target 1000 ms"} <= set(texts)
    assert "8 streams" in texts
    circles = list(root.iter(f"{space}circle"))
    assert len(circles) == 9  # three figures of the three runs that have any
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 760
        assert 0 <= float(circle.attrib["cy"]) <= 430
    hollow = [c for c in circles if c.attrib["fill"] == "#ffffff"]
    assert len(hollow) == 3
    higher = {c.attrib["cx"]: float(c.attrib["cy"]) for c in circles}  # the last of each: p99
    assert list(higher.values()) == sorted(higher.values(), reverse=True)


def test_a_drawing_of_nothing_or_of_one_run_is_xml_too() -> None:
    ET.fromstring(svg(Curve("t", "s", (), 1_000, 0)))
    ET.fromstring(svg(Curve("t", "s", POINTS[:1], 1_000, 4)))
    ET.fromstring(svg(Curve("t", "s", [Point(1, -600, -500, -400, True)], 1_000, 1)))


def test_bars_show_every_run_the_knee_and_what_was_not_served() -> None:
    head, *rows = bars(CURVE)
    assert "target 1000 ms" in head
    assert [row.split()[0] for row in rows] == ["4", "8", "12", "16"]
    assert rows[1].endswith("← knee")
    assert "over" in rows[2]
    assert "2 segments failed" in rows[3]
    widths = [row.count("█") for row in rows]
    assert widths[0] < widths[1] < widths[2]
    assert all("│" in row or "┃" in row for row in rows)


def test_steps_of_an_axis_are_round_and_labels_do_not_touch() -> None:
    assert [nice_step(span) for span in (1, 6, 7, 30, 2_400, 0)] == [0.2, 1, 2, 5, 500, 1]
    moved = spaced([(100.0, "b", ""), (98.0, "a", ""), (200.0, "c", "")], least=15)
    assert [(name, place) for place, name, _ in moved] == [("a", 98), ("b", 113), ("c", 200)]


def test_a_daemon_is_saturated_with_the_same_sound_each_time() -> None:
    noise = np.random.default_rng(1).normal(0, 6_000, RATE_HZ).clip(-32_000, 32_000)
    pcm = np.concatenate([noise, np.zeros(1_600)]).astype(np.int16)
    said = [Spoken("noise", "en", "one", pcm, 0, RATE_HZ)]
    with child_daemon("--model", "fake", "--set", "vad.kind=webrtc") as daemon:

        def make() -> list[tuple[str, Dialogue]]:
            return [("en", Dialogue(said, seed=seed, seconds=12)) for seed in range(2)]

        first, again = (
            run_probe(daemon.url, make, {"engine.threads": 1}, lambda: cpu_s(daemon.family()))
            for _ in range(2)
        )
    assert first.segments == again.segments >= 2
    assert first.speed > 0
    assert first.cpu_per_s > 0
    assert first.settings == {"engine.threads": 1}
