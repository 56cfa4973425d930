"""What of a growing text is settled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.stable import PartialTracker, chances_of, tokens_of

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


def test_a_sure_word_is_settled_at_once_and_one_in_doubt_holds_those_behind_it() -> None:
    def settled(chances: list[float]) -> list[str]:
        tracker = PartialTracker()
        found = (tracker.update("turn on the lamp", "en", 0.9, chances) for _ in range(5))
        return [text[:stable] for text, stable in found]

    assert settled([1, 1, 1, 0.95]) == ["turn on the", *["turn on the lamp"] * 4]
    assert settled([1, 1, 1, 0.75]) == [*["turn on the"] * 4, "turn on the lamp"]
    assert settled([0.4, 0.9, 0.9, 0.9]) == ["", "", "", "turn on the lamp", "turn on the lamp"]
    assert settled([0.0, 0.0, 0.9, 0.9]) == [""] * 5


def test_a_word_in_doubt_is_carried_by_sure_ones_behind_it() -> None:
    tracker = PartialTracker()
    assert tracker.update("turn", "en", 0.9, [0.85]) == ("turn", 0)
    tracker = PartialTracker()
    assert tracker.update("turn on the lamp", "en", 0.9, [0.85, 1.0, 1.0, 1.0])[1] == 11


def test_the_last_word_may_be_half_said() -> None:
    tracker = PartialTracker()
    assert tracker.update("turn on the lam", "en", 1.0, [1.0] * 4)[1] == 11
    assert tracker.update("turn on the lamp", "en", 1.0, [1.0] * 4)[1] == 11
    assert tracker.update("turn on the lamp", "en", 1.0, [1.0] * 4)[1] == 16
    searched = PartialTracker().update("turn on", "en", 1.0, [1.0] * 2, is_searched=True)
    assert searched == ("turn on", 7)


def test_a_text_that_was_searched_as_a_final_counts_for_four() -> None:
    chances = [0.8, 0.8]
    tracker = PartialTracker()
    assert [tracker.update("turn on", "en", 0.7, chances)[1] for _ in range(4)] == [0, 0, 0, 7]
    assert PartialTracker().update("turn on", "en", 0.7, chances, is_searched=True)[1] == 7
    assert PartialTracker().update("turn on", "en", 0.7, [0.6, 0.6], is_searched=True)[1] == 0


def test_chances_are_those_of_the_words_behind_the_settled_ones() -> None:
    tracker = PartialTracker()
    for _ in range(2):
        tracker.update("turn on", "en", 0.9, [1.0, 1.0])
    text, stable = tracker.update("so turn on the lamp", "en", 0.9, [0.0, 0.0, 0.0, 1.0, 0.5])
    assert text[:stable] == "turn on the"


def test_chances_of_another_number_of_words_are_not_believed() -> None:
    tracker = PartialTracker()
    assert tracker.update("turn on", "en", 0.9, [1.0]) == ("turn on", 0)
    assert tracker.update("turn on", "en", 0.9, [0.0, 0.0, 0.0]) == ("turn on", 7)


def test_a_word_is_as_likely_as_the_least_likely_of_its_tokens() -> None:
    pieces = [(b" Don", 0.9), (b"'", 0.8), (b"t", 1.0), (b" go", 0.7), (b".", 0.1)]
    assert chances_of("Don't go.", pieces) == (0.8, 0.7)
    assert chances_of("don't go", pieces) == (0.8, 0.7)
    assert chances_of("don't", pieces) == ()
    assert chances_of("", []) == ()


def test_a_character_cut_into_tokens_is_as_likely_as_the_least_of_them() -> None:
    first, second = "開".encode(), "燈".encode()
    pieces = [(first[:2], 0.5), (first[2:], 0.9), (second, 0.8)]
    assert chances_of("开灯", pieces) == (0.5, 0.8)  # written in another script since
    pieces = [(first[:1], 0.9), (first[1:] + second[:1], 0.6), (second[1:], 0.8)]
    assert chances_of("开灯", pieces) == (0.6, 0.6)
    pieces = [(first, 0.9), (second[:2], 0.2)]  # the end is missing
    assert chances_of("开", pieces) == (0.9,)


@given(st.lists(st.tuples(texts, st.floats(0, 1)), max_size=6))
def test_tokens_that_are_words_keep_their_chances(said: list[tuple[str, float]]) -> None:
    pieces = [(f" {text}".encode(), chance) for text, chance in said]
    expected = [chance for text, chance in said for _ in tokens_of(text)]
    assert chances_of(" ".join(text for text, _ in said), pieces) == tuple(expected)


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


@given(
    st.lists(
        st.tuples(
            texts,
            languages,
            st.floats(0, 1),
            st.lists(st.floats(0, 1)),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_the_settled_prefix_never_shrinks_or_changes(
    hypotheses: list[tuple[str, str, float, list[float], bool, bool]],
) -> None:
    tracker, settled = PartialTracker(), ""
    for hypothesis, language, confidence, chances, fits, is_searched in hypotheses:
        if fits:  # as many as there are words
            chances = (chances + [0.5] * len(hypothesis))[: len(tokens_of(hypothesis))]
        text, stable = tracker.update(
            hypothesis, language, confidence, chances, is_searched=is_searched
        )
        assert 0 <= stable <= len(text)
        assert text.startswith(settled)
        assert stable >= len(settled)
        settled = text[:stable]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans())
def test_surer_words_are_settled_by_fewer_hypotheses(
    chances: list[float], is_searched: bool
) -> None:
    def settled(chances: list[float]) -> int:
        return PartialTracker().update(
            "turn on the lamp", "en", 0.5, chances, is_searched=is_searched
        )[1]

    assert settled([(1 + chance) / 2 for chance in chances]) >= settled(chances)


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
