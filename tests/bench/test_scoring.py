from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.bench.scoring import (
    Score,
    edit_distance,
    error_interval,
    error_rate,
    is_long,
    paired_difference,
    score,
)

units = st.lists(st.sampled_from(["a", "b", "c", "go"]), max_size=12)
scores = st.builds(
    Score, errors=st.integers(0, 9), reference=st.integers(1, 9), hypothesis=st.integers(0, 9)
)


def by_definition(a: list[str], b: list[str]) -> int:
    """The textbook recursion over prefixes, one cell at a time."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y)
            )
    return table[len(a), len(b)]


@given(units, units)
def test_the_distance_is_the_one_of_the_definition(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == by_definition(a, b)


@given(units, units)
def test_the_distance_is_zero_only_between_equal_texts(a: list[str], b: list[str]) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)


@given(units, units)
def test_the_distance_is_the_same_in_both_directions(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)


@given(units, units, units)
def test_a_detour_is_never_shorter(a: list[str], b: list[str], c: list[str]) -> None:
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("kitten", "sitting", 3),
        ("打开车窗", "打开天窗", 1),
        ("打开车窗", "请打开车窗吧", 2),
        ("abc", "", 3),
        ("", "abc", 3),
    ],
)
def test_known_distances(reference: str, hypothesis: str, errors: int) -> None:
    assert edit_distance(list(reference), list(hypothesis)) == errors


def test_long_texts_are_compared_in_full() -> None:
    reference = [str(number) for number in range(3000)]
    hypothesis = [*reference[:1000], "?", *reference[1001:2990]]
    assert edit_distance(reference, hypothesis) == 11


def test_more_than_twice_the_reference_is_a_loop() -> None:
    assert not score(["a", "b"], ["a"] * 4).is_loop
    assert score(["a", "b"], ["a"] * 5).is_loop


def test_only_a_missing_text_is_empty() -> None:
    assert score(["a"], []).is_empty
    assert not score([], []).is_empty
    assert not score(["a"], ["b"]).is_empty


def test_the_rate_weighs_clips_by_their_length() -> None:
    assert error_rate([Score(1, 1, 1), Score(0, 9, 9)]) == 10.0


def test_the_rate_of_nothing_is_no_number() -> None:
    assert math.isnan(error_rate([]))
    assert math.isnan(error_interval([]).low)


@given(st.lists(scores, min_size=2, max_size=20))
def test_the_interval_lies_between_the_best_and_the_worst_clip(clips: list[Score]) -> None:
    interval = error_interval(clips)
    rates = [100 * clip.errors / clip.reference for clip in clips]
    assert min(rates) - 1e-9 <= interval.low <= interval.high <= max(rates) + 1e-9


def test_the_interval_of_a_known_sample_is_near_the_normal_one() -> None:
    # 400 clips of one word, one in five wrong: standard error 2.0 points.
    clips = [Score(int(number % 5 == 0), 1, 1) for number in range(400)]
    interval = error_interval(clips)
    assert interval.value == 20.0
    assert interval.low == pytest.approx(20 - 1.96 * 2, abs=0.5)
    assert interval.high == pytest.approx(20 + 1.96 * 2, abs=0.5)


@given(st.lists(scores, min_size=1, max_size=20))
def test_a_system_does_not_differ_from_itself(clips: list[Score]) -> None:
    interval = paired_difference(clips, clips)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_what_makes_clips_hard_cancels_out_in_a_pair() -> None:
    hard_and_easy = [Score(90, 100, 100) if n % 2 else Score(0, 100, 100) for n in range(40)]
    one_worse = [Score(each.errors + 1, 100, 100) for each in hard_and_easy]
    interval = paired_difference(one_worse, hard_and_easy)
    assert interval.low == pytest.approx(1.0)
    assert interval.high == pytest.approx(1.0)
    alone = error_interval(hard_and_easy)
    assert alone.high - alone.low > 10


def test_the_same_seed_gives_the_same_interval() -> None:
    clips = [Score(number % 3, 5, 5) for number in range(30)]
    assert error_interval(clips, seed=7) == error_interval(clips, seed=7)
    assert error_interval(clips, seed=7) != error_interval(clips, seed=8)


def test_pairs_of_different_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="same references"):
        paired_difference([Score(0, 2, 2)], [Score(0, 3, 3)])


def test_a_loop_is_as_long_as_it_reads() -> None:
    assert is_long("one two", "one two one two one")
    assert not is_long("one two three", "1, 2, 3")
    assert is_long("你好", "你好你好你好")
    assert not is_long("你好，世界", "你好世界你好")
    joined = Score(2, 1, 3, is_long_as_written=False)
    assert not joined.is_loop
    assert Score(2, 1, 3).is_loop
