"""Last words: one for each segment, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.results import LastWords


def test_a_word_waits_for_those_on_earlier_segments() -> None:
    words: LastWords[str] = LastWords()
    for segment in (3, 5, 9):
        words.expect(segment)
    assert words.give(9, "c") == []
    assert words.give(5, "b") == []
    assert words.owed == (3,)
    assert words.give(3, "a") == ["a", "b", "c"]


def test_a_second_word_counts_for_nothing_whether_the_first_waits_or_is_out() -> None:
    words: LastWords[str] = LastWords()
    words.expect(1)
    words.expect(2)
    assert words.give(2, "kept") == []
    assert words.give(2, "late") == []
    assert words.give(1, "first") == ["first", "kept"]
    assert words.give(1, "late") == []
    assert words.give(7, "never announced") == []


@given(st.permutations(range(8)))
def test_every_word_comes_out_once_and_in_order(order: list[int]) -> None:
    words: LastWords[int] = LastWords()
    for segment in range(8):
        words.expect(segment)
    out = [word for segment in order for word in words.give(segment, segment)]
    assert out == list(range(8))
    assert words.owed == ()
