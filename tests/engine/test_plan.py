"""The cost model against the published table and parameter counts; gears against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.plan import (
    CHIPS,
    FITTING_SHARE,
    MAX_GEARS,
    MODELS,
    Load,
    PlanError,
    batch_for_streams,
    batches_up_to,
    choose_gears,
    estimate,
    largest_batch,
    memory,
)

FIRERED = MODELS["firered-aed-l"]

# chip, batch, update → prefill ms, step ms, total ms, RTF (10 s, 50 tokens, beam 3, 64 cells)
TABLE = [
    ("910B4", 1, "append", 1.9, 0.99, 51, 0.0051),
    ("910B4", 1, "blend", 1.9, 1.01, None, None),
    ("910B4", 64, "append", 86, 3.8, 278, 0.00044),
    ("910B4", 64, "blend", 86, 5.1, 341, None),
    ("910B4", 256, "append", 346, 12.5, 972, 0.00038),
    ("910B4", 256, "blend", 346, 17.6, 1224, None),
    ("910B", 1, "append", 1.4, 0.49, 26, 0.0026),
    ("910B", 256, "append", 346, 6.3, 659, 0.00026),
    ("910B", 256, "blend", 346, 8.8, 785, None),
    ("310P", 1, "append", 7.5, 3.9, 201, 0.020),
    ("310P", 256, "append", 1382, 49, 3839, 0.0015),
    ("310P", 256, "blend", 1382, 69, 4826, None),
    ("cpu", 1, "append", 2694, 63, 5855, 0.59),
]


def load(update: str = "append", beam: int = 3, seconds: float = 10) -> Load:
    return Load(utterance_s=seconds, beam=beam, tokens=50, cells=64, update=update)


@pytest.mark.parametrize(("chip", "batch", "update", "prefill", "step", "total", "rtf"), TABLE)
def test_the_published_table_comes_out(
    chip: str,
    batch: int,
    update: str,
    prefill: float,
    step: float,
    total: float | None,
    rtf: float | None,
) -> None:
    found = estimate(FIRERED, CHIPS[chip], load(update), batch)
    assert found.prefill_s * 1000 == pytest.approx(prefill, rel=0.035)
    assert found.step_s * 1000 == pytest.approx(step, rel=0.015)
    if total is not None:
        assert found.total_s * 1000 == pytest.approx(total, rel=0.015)
    if rtf is not None:
        assert found.rtf == pytest.approx(rtf, rel=0.03)


def test_parameters_and_operations_are_those_of_the_checkpoint() -> None:
    # 710,543,968 in the encoder and 52,449,280 of the decoder; the rest of its 429,806,080
    assert FIRERED.prefill_params == pytest.approx(710_543_968 + 52_449_280, rel=0.002)
    assert FIRERED.step_params == pytest.approx(429_806_080 - 52_449_280, rel=0.002)
    for seconds, expected in ((5, 39.9), (10, 40.4), (30, 42.5), (60, 45.5)):
        flops = FIRERED.prefill_flops(1, FIRERED.frames(seconds))
        assert flops / seconds / 1e9 == pytest.approx(expected, rel=0.004)
    assert FIRERED.step_flops(1, 0) == pytest.approx(0.754e9, rel=0.001)
    assert 2 * FIRERED.position_floats == 81_920  # fp16


def test_256_long_utterances_do_not_fit_and_256_of_ten_seconds_do() -> None:
    chip = CHIPS["910B4"]
    short = memory(FIRERED, chip, load(), 256, 250)
    assert (short.cross / 1e9, short.self_cache / 1e9) == pytest.approx((5.2, 8.0), rel=0.02)
    assert short.total < FITTING_SHARE * 32e9
    assert memory(FIRERED, chip, load(), 256, 1500).cross == pytest.approx(31e9, rel=0.02)
    assert not estimate(FIRERED, chip, load(seconds=60), 256).fits


@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(CHIPS)),
    st.integers(1, 8),
    st.integers(1, 1500),
)
def test_the_largest_batch_fits_and_one_more_does_not(
    model: str, chip: str, beam: int, frames: int
) -> None:
    m, c, asked = MODELS[model], CHIPS[chip], load(beam=beam)
    batch = largest_batch(m, c, asked, frames)
    limit = FITTING_SHARE * c.memory_bytes
    assert batch == 0 or memory(m, c, asked, batch, frames).total <= limit
    assert memory(m, c, asked, batch + 1, frames).total > limit


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(sorted(CHIPS)), st.integers(1, 64))
def test_more_rows_take_longer_together_and_less_time_each(
    model: str, chip: str, batch: int
) -> None:
    one, two = (estimate(MODELS[model], CHIPS[chip], load(), n) for n in (batch, batch + 1))
    assert two.total_s >= one.total_s
    assert two.rtf <= one.rtf * (1 + 1e-9)
    assert 0 < one.expected_share <= 1
    assert two.memory.total > one.memory.total


def test_streams_get_the_smallest_batch_that_keeps_up() -> None:
    found, _ = batch_for_streams(FIRERED, CHIPS["910B4"], load(), 1000)
    assert found is not None
    assert found.expected_rtf * 1000 <= 1
    before = estimate(FIRERED, CHIPS["910B4"], load(), found.batch - 1)
    assert before.expected_rtf * 1000 > 1
    none, capacity = batch_for_streams(FIRERED, CHIPS["cpu"], load(), 4)
    assert none is None
    assert 1 < capacity < 4


HISTOGRAMS = st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=1, max_size=9)


@given(HISTOGRAMS, st.integers(1, 5), st.sampled_from([1, 4]))
def test_no_other_gears_waste_less(histogram: dict[int, int], count: int, step: int) -> None:
    chosen = choose_gears(histogram, count, step=step)
    lengths = sorted({-(-frames // step) * step for frames in histogram})

    def computed(gears: tuple[int, ...]) -> int:
        return sum(n * min(g for g in gears if g >= f) for f, n in histogram.items())

    best = min(
        computed((*gears, lengths[-1]))
        for k in range(min(count, len(lengths)))
        for gears in combinations(lengths[:-1], k)
    )
    assert computed(chosen.frames) == best
    content = sum(frames * often for frames, often in histogram.items())
    assert chosen.waste == pytest.approx(1 - content / best, abs=1e-12)
    assert len(chosen.frames) <= count
    assert list(chosen.frames) == sorted(set(chosen.frames))
    assert all(gear % step == 0 for gear in chosen.frames)


@given(HISTOGRAMS)
def test_enough_gears_waste_nothing_and_more_never_waste_more(histogram: dict[int, int]) -> None:
    wastes = [choose_gears(histogram, k).waste for k in range(1, len(histogram) + 1)]
    assert wastes == sorted(wastes, reverse=True)
    assert wastes[-1] == pytest.approx(0, abs=1e-12)


def test_a_thousand_lengths_are_no_trouble() -> None:
    histogram = {n: 1 + n % 7 for n in range(1, 1001)}
    assert len(choose_gears(histogram, MAX_GEARS).frames) == MAX_GEARS


@given(st.integers(0, 5000), st.integers(1, 100))
def test_batches_stay_within_the_limit_and_reach_the_largest(largest: int, lengths: int) -> None:
    sizes = batches_up_to(largest, lengths)
    assert len(sizes) * lengths <= MAX_GEARS
    assert list(sizes) == sorted(set(sizes))
    if largest:
        assert sizes[0] == 1 or sizes == (largest,)
        assert lengths > 50 or sizes[-1] == largest


def test_bad_questions_are_refused() -> None:
    with pytest.raises(PlanError, match="histogram is empty"):
        choose_gears({}, 4)
    with pytest.raises(PlanError, match="found 101 gears"):
        choose_gears({5: 1}, 101)
    with pytest.raises(PlanError, match="length 0 x 1"):
        choose_gears({0: 1}, 2)
    with pytest.raises(PlanError, match="append or blend"):
        load("overwrite")
    with pytest.raises(PlanError, match="above 0"):
        load(beam=0)
