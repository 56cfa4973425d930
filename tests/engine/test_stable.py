"""What of a growing text is settled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.stable import PartialTracker, tokens_of

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


def test_the_less_sure_the_recogniser_the_more_hypotheses_must_agree() -> None:
    def settled(confidence: float) -> list[str]:
        tracker = PartialTracker()
        found = (tracker.update("turn on the lamp", "en", confidence) for _ in range(6))
        return [text[:stable] for text, stable in found]

    assert settled(0.9) == ["", *["turn on the lamp"] * 5]
    assert settled(0.7) == ["", "", *["turn on the"] * 4]
    assert settled(0.3) == ["", "", "", "", "turn on", "turn on"]


def test_a_hypothesis_that_differs_begins_the_count_anew() -> None:
    tracker = PartialTracker()
    for text in ("turn on", "turn on", "turn off", "turn off the", "turn off the lamp"):
        shown, stable = tracker.update(text, "en", 0.7)
    assert shown[:stable] == "turn off"


def test_another_language_agrees_with_nothing() -> None:
    tracker = PartialTracker()
    tracker.update("OK", "en")
    assert tracker.update("OK", "zh") == ("OK", 0)


def test_tokens_know_apostrophes_ideographs_and_marks() -> None:
    assert [t.norm for t in tokens_of("Don't 打开 the A/C, क्या?")] == [
        "dont", "打", "开", "the", "a", "c", "क्या",
    ]  # fmt: skip


@given(st.lists(st.tuples(texts, languages, st.floats(0, 1)), max_size=8))
def test_the_settled_prefix_never_shrinks_or_changes(
    hypotheses: list[tuple[str, str, float]],
) -> None:
    tracker, settled = PartialTracker(), ""
    for hypothesis, language, confidence in hypotheses:
        text, stable = tracker.update(hypothesis, language, confidence)
        assert 0 <= stable <= len(text)
        assert text.startswith(settled)
        assert stable >= len(settled)
        settled = text[:stable]


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
