"""Hotwords of FireRedASR: how phrases are cut, and the search that they guide."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.test_fireredasr_recognizer import V1, V2, ask, load, request, sound
from tests.engine.test_fireredasr_search import (
    END,
    Network,
    Random,
    log_probabilities,
    ours,
    searched,
)
from tests.engine.test_hotwords import Phrases, follows, never, paid
from tests.engine.tiny_fireredasr import CHARACTERS, TOKENS

from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.families.fireredasr_hotwords import FireRedHotwordSearch, FireRedSpelling
from voiced.engine.families.fireredasr_search import FireRedHypothesis, SearchRules
from voiced.engine.families.fireredasr_text import Tokens
from voiced.engine.hotwords import ContextGraph
from voiced.engine.text import chinese_converter
from voiced.engine.types import Hotword, Request, RequestKind

FIRST, SECOND = CHARACTERS[:2]
LETTERS = st.characters(codec="utf-8")  # no others are a hotword's


def written(spelling: FireRedSpelling, phrase: str, tokens: Sequence[str] = TOKENS) -> list[str]:
    return ["|".join(tokens[i] for i in way) for way in spelling.ways(phrase)]


# ---- spelling ----------------------------------------------------------------------------------


def test_a_phrase_is_cut_into_characters_and_the_fewest_pieces() -> None:
    spelling = FireRedSpelling(Tokens(TOKENS))
    assert written(spelling, f"{FIRST}{SECOND}") == [f"{FIRST}|{SECOND}"]
    assert written(spelling, "the king") == ["▁TH|E|▁K|ING"]
    assert written(spelling, f"the{FIRST}, don't") == [f"▁TH|E|{FIRST}|▁D|ON|'|T"]
    assert spelling.tokens_of("king") == 2


def test_each_way_of_as_few_pieces_is_looked_for() -> None:
    tokens = ("<blank>", "▁AB", "CD", "▁A", "BCD", "▁", "A", "B", "C", "D")
    assert written(FireRedSpelling(Tokens(tokens)), "abcd", tokens) == ["▁A|BCD", "▁AB|CD"]


def test_what_the_model_cannot_write_has_no_way() -> None:
    spelling = FireRedSpelling(Tokens(TOKENS))
    assert spelling.ways("café") == spelling.ways("route 66") == spelling.ways("\u9fa5") == []
    assert spelling.ways("blank") != []  # letters; the mark of that name is no text
    assert spelling.tokens_of("é") == 0


def test_letters_are_written_as_the_tokens_are_and_mandarin_simplified() -> None:
    lower = Tokens([token if token.startswith("<") else token.lower() for token in TOKENS])
    assert written(FireRedSpelling(lower), "King") == ["▁K|ING"]
    assert written(FireRedSpelling(Tokens(("汉",))), "漢", ("汉",)) == ["汉"]


def test_pieces_join_and_characters_do_not() -> None:
    spelling = FireRedSpelling(Tokens(TOKENS))
    th, e, k, first = (TOKENS.index(token) for token in ("▁TH", "E", "▁K", FIRST))
    assert spelling.joins(th, e)
    assert not spelling.joins(e, k)
    assert not spelling.joins(th, first)
    assert not spelling.joins(first, e)


@given(st.lists(st.sampled_from("THEKINGtheking' ," + CHARACTERS[:5]) | LETTERS))
def test_a_way_is_the_phrase_again(letters: list[str]) -> None:
    phrase, spelling = "".join(letters), FireRedSpelling(Tokens(TOKENS))
    given = unicodedata.normalize("NFC", phrase).upper()
    both = (given, chinese_converter("t2s").convert(given))
    expected = {"".join(c for c in text if c.isalnum() or c == "'") for text in both}
    for way in spelling.ways(phrase):
        assert "".join(TOKENS[i] for i in way).replace("▁", "") in expected


# ---- search ------------------------------------------------------------------------------------


def guided(
    network: Network, graph: ContextGraph, *, beam: int, limit: int, length_penalty: float = 0.0
) -> list[FireRedHypothesis]:
    rules = SearchRules(beam, limit, END, length_penalty=length_penalty)
    return searched(network, FireRedHotwordSearch(rules, graph, candidates=32))


@settings(max_examples=100, deadline=None)
@given(
    network=st.builds(
        Random,
        seed=st.integers(0, 10_000),
        vocabulary=st.integers(12, 40),
        end_bias=st.floats(-2, 4),
        spread=st.sampled_from([0.5, 1.5, 4.0]),
    ),
    beam=st.sampled_from([1, 3, 5]),
    limit=st.integers(1, 25),
    length_penalty=st.sampled_from([0.0, 0.6]),
)
def test_a_phrase_that_nobody_says_changes_nothing(
    network: Random, beam: int, limit: int, length_penalty: float
) -> None:
    graph = ContextGraph([((99, 98), 5.0)], never)
    found = guided(network, graph, beam=beam, limit=limit, length_penalty=length_penalty)
    assert found == ours(
        network, beam=beam, limit=limit, eos_penalty=1.0, length_penalty=length_penalty
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_as_wide_as_the_tree_finds_the_text_of_best_rank(seed: int) -> None:
    network, limit = Random(seed, 12, 1.0, 1.5), 3
    phrases: Phrases = [((seed % 4, 5), 1.5), ((7,), 0.5)]
    graph = ContextGraph(phrases, follows)
    found = guided(network, graph, beam=12**limit, limit=limit)[0]

    def total(text: Sequence[int]) -> float:
        steps = [log_probabilities(network(tuple(text[:i])))[t] for i, t in enumerate(text)]
        return float(sum(steps))

    ranks: dict[tuple[int, ...], float] = {}
    for length in range(limit + 1):
        for text in itertools.product([t for t in range(12) if t != END], repeat=length):
            last = () if length == limit else (END,)
            ranks[text] = total((*text, *last)) + paid(graph, text)[-1]
    assert found.tokens == max(ranks, key=ranks.__getitem__)
    own = ranks[found.tokens] - paid(graph, found.tokens)[-1]
    assert found.score == pytest.approx(own, abs=1e-4)  # the model's, without bonus


def test_chances_are_the_model_s() -> None:
    network = Random(3, 30, 1.0, 1.5)
    phrase = tuple(int(t) for t in np.argsort(-network(()))[2:4] if t != END)
    graph = ContextGraph([(phrase, 9.0)], never)
    assert guided(network, graph, beam=3, limit=12)[0].tokens[: len(phrase)] == phrase
    for found in guided(network, graph, beam=3, limit=12):
        own = [
            np.exp(log_probabilities(network(found.tokens[:i]))[t])
            for i, t in enumerate(found.tokens)
        ]
        assert found.chances == pytest.approx(own, abs=1e-5)


# ---- whole -------------------------------------------------------------------------------------


def with_hotword(plain: Request, phrase: str, score: float = 8.0) -> Request:
    return Request(plain.segment, plain.kind, plain.revision, hotwords=(Hotword(phrase, score),))


@pytest.mark.parametrize("form", [None, Form(resident=True)], ids=["host", "resident"])
def test_a_phrase_is_written_and_the_neighbours_do_not_notice(
    tmp_path: Path, form: Form | None
) -> None:
    folder = build_bundle(tmp_path / "bundle", V2, form, gears_s=(1, 2, 4))
    recognizer = load(folder)
    try:
        assert recognizer.info.has_hotwords
        asked = [request(sound(seconds, seed)) for seed, seconds in enumerate((1.2, 1.1))]
        plain, other = (ask(recognizer, each)[0] for each in asked)
        # a character that the model thought of, and does not say
        thought = {c for text, _ in plain.n_best[1:] for c in text if c in CHARACTERS}
        phrase = sorted(thought - set(plain.text))[0]
        wanted = with_hotword(asked[0], phrase)
        (found,) = ask(recognizer, wanted)
        assert phrase in found.text
        assert found.n_best[0][0] == found.text
        assert found.n_best[0][1] < plain.n_best[0][1]  # the score is the model's
        together = ask(recognizer, wanted, asked[1])
        assert [t.text for t in together] == [found.text, other.text]
        assert ask(recognizer, with_hotword(asked[0], "é"))[0].text == plain.text
        partial = Request(asked[0].segment, RequestKind.PARTIAL, 1)
        guess = ask(recognizer, partial)[0].text
        assert ask(recognizer, with_hotword(partial, phrase))[0].text == guess  # read off CTC
    finally:
        recognizer.close()


def test_partials_that_are_decoded_use_hotwords(tmp_path: Path) -> None:
    recognizer = load(build_bundle(tmp_path / "bundle", V1, gears_s=(1, 2)))
    try:
        partial = request(sound(1.2), RequestKind.PARTIAL)
        plain = ask(recognizer, partial)[0].text
        phrase = next(c for c in CHARACTERS if c not in plain)
        assert phrase in ask(recognizer, with_hotword(partial, phrase, 10.0))[0].text
    finally:
        recognizer.close()
