"""What of a segment's partials is called stable, by what the recogniser says of its words."""

from __future__ import annotations

from dataclasses import replace

from voiced.daemon.segment_text import SegmentText
from voiced.engine.types import Transcript

HEARD = Transcript(
    segment=1, revision=1, text="turn on", is_final=False, language="en", confidence=0.5
)


def stable_chars(transcript: Transcript, *, is_searched: bool = False) -> int:
    text = SegmentText("desk", 1, 0)
    partial = text.partial(transcript, 16_000, is_searched=is_searched)
    assert partial is not None
    assert partial.text == "turn on"
    return partial.stable_chars


def test_each_word_s_own_probability_settles_it() -> None:
    assert stable_chars(replace(HEARD, chances=(0.99, 0.5))) == 4
    assert stable_chars(replace(HEARD, chances=(0.5, 0.5))) == 0


def test_a_text_that_was_searched_as_a_final_needs_less() -> None:
    unsure = replace(HEARD, chances=(0.8, 0.8))
    assert stable_chars(unsure) == 0
    assert stable_chars(unsure, is_searched=True) == 7


def test_without_probabilities_of_words_hypotheses_must_agree() -> None:
    sure = replace(HEARD, confidence=0.9)
    assert stable_chars(sure) == 0
    text = SegmentText("desk", 1, 0)
    found = [text.partial(each, 16_000) for each in (sure, replace(sure, text="turn on the"))]
    assert [each.stable_chars for each in found if each is not None] == [0, 7]
    text = SegmentText("desk", 1, 0)
    found = [
        text.partial(each, 16_000, is_searched=True)
        for each in (HEARD, replace(HEARD, text="turn on the"))
    ]
    assert [each.stable_chars for each in found if each is not None] == [0, 7]
