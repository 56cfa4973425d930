"""What of a growing text is settled, and which revisions are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.stable import PartialTracker, RevisionError, TranscriptLog, tokens_of
from voiced.engine.types import Transcript

words = st.sampled_from(
    [
        "turn",
        "Turn",
        "on",
        "the",
        "lamp",
        "lamp.",
        "don't",
        "you",
        "打",
        "开灯",
        "OK",
        "-",
        "é",
        "e\u0301",
    ]
)
texts = st.lists(words, max_size=8).map(" ".join) | st.text(max_size=20)
languages = st.sampled_from(["en", "zh"])


def revision(number: int, text: str, stable: int = 0, *, is_final: bool = False) -> Transcript:
    return Transcript(
        segment=7,
        revision=number,
        text=text,
        is_final=is_final,
        language="en",
        confidence=1.0,
        stable_chars=stable,
    )


def test_words_that_two_hypotheses_begin_with_are_settled() -> None:
    tracker = PartialTracker()
    assert tracker.update("turn on", "en") == ("turn on", 0)
    assert tracker.update("turn on the lamb", "en") == ("turn on the lamb", 7)
    assert tracker.update("turn on the lamp", "en") == ("turn on the lamp", 11)


def test_case_and_punctuation_do_not_keep_words_from_agreeing() -> None:
    tracker = PartialTracker()
    tracker.update("Turn on.", "en")
    text, stable = tracker.update("turn on, please", "en")
    assert text[:stable] == "turn on"


def test_mandarin_settles_by_character() -> None:
    tracker = PartialTracker()
    tracker.update("打开空条", "zh")
    assert tracker.update("打开空调吧", "zh") == ("打开空调吧", 3)


def test_what_is_settled_stays_when_the_next_hypothesis_differs() -> None:
    tracker = PartialTracker()
    tracker.update("turn on the lamp", "en")
    tracker.update("turn on the lamp", "en")
    text, stable = tracker.update("burn on the lamp in the kitchen", "en")
    assert (text, stable) == ("turn on the lamp in the kitchen", 16)


def test_a_hypothesis_that_lost_words_takes_nothing_back() -> None:
    tracker = PartialTracker()
    tracker.update("turn on the lamp", "en")
    tracker.update("turn on the lamp", "en")
    assert tracker.update("", "en") == ("turn on the lamp", 16)


def test_another_language_agrees_with_nothing() -> None:
    tracker = PartialTracker()
    tracker.update("OK", "en")
    assert tracker.update("OK", "zh") == ("OK", 0)


def test_the_final_keeps_what_was_settled_and_adds_its_own_words() -> None:
    tracker = PartialTracker()
    tracker.update("turn on", "en")
    tracker.update("turn on", "en")
    assert tracker.finish("Turn on the lamp.") == "turn on the lamp."
    assert PartialTracker().finish("Turn on.") == "Turn on."


def test_tokens_know_apostrophes_ideographs_and_marks() -> None:
    assert [t.norm for t in tokens_of("Don't 打开 the A/C, क्या?")] == [
        "dont", "打", "开", "the", "a", "c", "क्या",
    ]  # fmt: skip


@given(st.lists(st.tuples(texts, languages), max_size=8), texts)
def test_the_settled_prefix_never_shrinks_or_changes(
    hypotheses: list[tuple[str, str]], final: str
) -> None:
    tracker, settled = PartialTracker(), ""
    for hypothesis, language in hypotheses:
        text, stable = tracker.update(hypothesis, language)
        assert 0 <= stable <= len(text)
        assert text.startswith(settled)
        assert stable >= len(settled)
        settled = text[:stable]
    assert tracker.finish(final).startswith(settled)


@given(st.lists(texts, min_size=1, max_size=6))
def test_hypotheses_that_only_grow_are_shown_as_they_are(parts: list[str]) -> None:
    tracker, grown = PartialTracker(), "start"
    for part in parts:
        grown = f"{grown} {part}"
        tokens = tokens_of(grown)
        text, stable = tracker.update(grown, "en")
        assert text == grown
        assert stable == 0 or stable in {token.end for token in tokens}


@given(texts)
def test_saying_the_same_twice_settles_all_words(text: str) -> None:
    tracker = PartialTracker()
    tracker.update(text, "en")
    tokens = tokens_of(text)
    assert tracker.update(text, "en") == (text, tokens[-1].end if tokens else 0)


def test_the_log_lets_an_orderly_segment_through() -> None:
    log = TranscriptLog()
    log.accept(revision(1, "turn"))
    log.accept(revision(2, "turn on", 4))
    last = revision(3, "turn off", is_final=True)
    assert log.accept(last) is last


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (revision(3, "turn on", 4), "revision 3 after 1"),
        (revision(1, "turn on", 4), "revision 1 after 1"),
        (revision(2, "burn on", 4), "prefix changed"),
        (revision(2, "turn on", 3), "prefix shrank"),
        (revision(2, "turn", 5), "5 stable of 4"),
    ],
)
def test_the_log_refuses_a_broken_promise(second: Transcript, complaint: str) -> None:
    log = TranscriptLog()
    log.accept(revision(1, "turn on", 4))
    with pytest.raises(RevisionError, match=complaint):
        log.accept(second)


def test_nothing_follows_the_final() -> None:
    log = TranscriptLog()
    log.accept(revision(1, "turn on", is_final=True))
    with pytest.raises(RevisionError, match="after final"):
        log.accept(revision(2, "turn on", is_final=True))
