"""Hotwords: how they are written, what the context graph pays, and the search that it guides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.test_decode import VOCABULARY, logits, search, step

from voiced.audio.frames import Segment
from voiced.audio.sources.media import read_all
from voiced.engine import hotwords
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.bundle import Bundle
from voiced.engine.decode import DEAD, Hypothesis
from voiced.engine.families.whisper import Vocabulary, frames_needed
from voiced.engine.families.whisper_hotwords import WhisperSpelling, is_spaced, spellings
from voiced.engine.families.whisper_model import Utterance, WhisperModel
from voiced.engine.hotwords import ContextGraph, HotwordGraphs, HotwordSearch, parse_hotword
from voiced.engine.recognizer import load_recognizer
from voiced.engine.types import EngineConfig, Hotword, Request, RequestKind, Transcript

Phrases = list[tuple[tuple[int, ...], float]]


def test_a_phrase_may_have_a_bonus_of_its_own() -> None:
    assert parse_hotword("  Samantha   Jones ", 1.5) == Hotword("Samantha Jones", 1.5)
    assert parse_hotword("车库门 :2.25", 1.5) == Hotword("车库门", 2.25)
    assert parse_hotword("ratio 3:1", 1.5) == Hotword("ratio 3:1", 1.5)


@pytest.mark.parametrize("text", ["", " :2", "...", "x" * 65, "a :0", "a :10.5", "caf\udce9"])
def test_what_is_no_hotword_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must h"):
        parse_hotword(text, 1.5)


# ---- the graph ---------------------------------------------------------------------------------


def never(first: int, second: int) -> bool:
    return False


def follows(first: int, second: int) -> bool:
    """Odd tokens continue the word before them."""
    return second % 2 == 1


def paid(graph: ContextGraph, text: Sequence[int]) -> list[float]:
    """What has been paid after each token, and at last when the text has ended."""
    node, last, total, sums = graph.root, None, 0.0, []
    for token in text:
        node, gain = graph.step(node, last, token)
        total, last = total + gain, token
        sums.append(round(total, 4))
    return [*sums, round(total + graph.finish(node), 4)]


def test_a_bonus_is_taken_back_when_the_match_breaks_and_stays_when_it_is_complete() -> None:
    graph = ContextGraph([((1, 2, 3), 2.0)], never)
    assert paid(graph, [9, 1, 2, 9]) == [0, 2, 4, 0, 0]
    assert paid(graph, [1, 2, 3, 9, 1]) == [2, 4, 6, 6, 8, 6]
    assert paid(graph, [1, 2]) == [2, 4, 0]
    assert paid(graph, [1, 1, 2, 3]) == [2, 2, 4, 6, 6]


def test_phrases_in_each_other_are_paid_once() -> None:
    graph = ContextGraph([((1, 2), 1.0), ((1, 2, 3, 4), 1.0), ((2, 3), 1.0)], never)
    assert paid(graph, [1, 2, 3, 4])[-1] == 4
    assert paid(graph, [1, 2, 3, 9])[-1] == 2
    assert paid(graph, [9, 2, 3])[-1] == 2
    inside = ContextGraph([((1, 2, 3, 4, 5), 1.0), ((2, 3), 1.0)], never)
    assert paid(inside, [1, 2, 3, 4, 9])[-1] == 2


def test_a_phrase_is_complete_only_where_a_word_ends() -> None:
    graph = ContextGraph([((2, 3), 1.0)], follows)
    assert paid(graph, [2, 3, 4]) == [1, 2, 2, 2]
    assert paid(graph, [2, 3, 5]) == [1, 2, 0, 0]  # the word goes on
    within = ContextGraph([((3, 4), 1.0)], follows)
    assert paid(within, [2, 3, 4])[-1] == 0  # the word began before
    assert paid(within, [3, 4])[-1] == 2


@st.composite
def _phrases(draw: st.DrawFn) -> Phrases:
    tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    return draw(st.lists(st.tuples(tokens, st.sampled_from([1.0, 2.5])), min_size=1, max_size=5))


def _best(phrases: Phrases, text: Sequence[int]) -> float:
    """The most that complete phrases side by side are worth."""
    best = [0.0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        best[end] = best[end - 1]
        for tokens, bonus in phrases:
            start = end - len(tokens)
            if start < 0 or tuple(text[start:end]) != tokens:
                continue
            if start > 0 and follows(text[start - 1], text[start]):
                continue
            if end < len(text) and follows(text[end - 1], text[end]):
                continue
            best[end] = max(best[end], best[start] + bonus * len(tokens))
    return best[-1]


@given(_phrases(), st.lists(st.integers(0, 3), max_size=10))
def test_what_is_paid_at_the_end_is_what_complete_phrases_are_worth(
    phrases: Phrases, text: list[int]
) -> None:
    total = paid(ContextGraph(phrases, follows), text)[-1]
    most = _best(phrases, text)
    assert 0 <= total <= most + 1e-6
    assert (total > 0) == (most > 0)
    if len({bonus for _, bonus in phrases}) == len(phrases) == 1:
        assert total == pytest.approx(most)


# ---- the search --------------------------------------------------------------------------------


def guided(graph: ContextGraph, *, beam: int, limit: int, seed: int, top: int) -> HotwordSearch:
    result = HotwordSearch(beam=beam, max_tokens=limit, graph=graph, top=top)
    best, _, tokens, _ = step([()], [0.0], min(top + 1, VOCABULARY), seed)
    result.begin(best, tokens, banned=frozenset({3}))
    while not result.done:
        result.advance(*step(result.rows, result.scores, top, seed))
    return result


@pytest.mark.parametrize("seed", range(10))
def test_a_phrase_that_nobody_says_changes_nothing(seed: int) -> None:
    graph = ContextGraph([((99, 98), 5.0)], never)
    found = guided(graph, beam=3, limit=12, seed=seed, top=9).results()
    expected = search(3, 12, seed).results()
    assert [(h.tokens, h.bonus) for h in found] == [(h.tokens, 0.0) for h in expected]
    assert [h.score for h in found] == pytest.approx([h.score for h in expected])


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_as_wide_as_the_tree_finds_the_text_of_best_rank(seed: int) -> None:
    phrases: Phrases = [((seed % VOCABULARY, 5), 1.5), ((7,), 0.5)]
    graph = ContextGraph(phrases, follows)
    width = VOCABULARY**2
    found = guided(graph, beam=width, limit=3, seed=seed, top=width).results()[0]
    honest: list[Hypothesis] = []
    for length in (1, 2):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            if text[0] == 3:
                continue
            total = sum(logits(text[:i], seed)[t] for i, t in enumerate(text))
            score = (total + logits(text, seed)[-1]) / (length + 1)
            bonus = paid(graph, text)[-1] / (length + 1)
            honest.append(Hypothesis(text, score, ended=True, bonus=bonus))
    assert found.rank >= max(each.rank for each in honest) - 1e-5
    same = next((each for each in honest if each.tokens == found.tokens), None)
    if same is not None:  # one of three tokens was not listed
        assert found.score == pytest.approx(same.score, abs=1e-5)  # the model's, without bonus
        assert found.bonus == pytest.approx(same.bonus, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_bonus_is_in_no_token_s_log_probability(seed: int) -> None:
    graph = ContextGraph([((seed % VOCABULARY, 5), 1.5), ((7,), 0.5)], follows)
    for found in guided(graph, beam=3, limit=12, seed=seed, top=9).results():
        own = [logits(found.tokens[:i], seed)[t] for i, t in enumerate(found.tokens)]
        assert found.log_probs == pytest.approx(own, abs=1e-4)


@given(st.integers(1, 4), st.integers(0, 200))
def test_a_row_that_may_not_go_on_is_not_revived_by_a_bonus(beam: int, seed: int) -> None:
    graph = ContextGraph([((token,), 10.0) for token in range(VOCABULARY)], never)
    found = HotwordSearch(beam=beam, max_tokens=20, graph=graph, top=VOCABULARY)
    best, _, tokens, _ = step([()], [0.0], VOCABULARY, seed)
    found.begin(best, tokens, banned=frozenset())
    found.scores[0] = DEAD
    found.advance(*step(found.rows, found.scores, beam, seed))
    assert all(score == DEAD or parent != 0
               for score, parent in zip(found.scores, found.parents, strict=True))  # fmt: skip


# ---- Whisper -----------------------------------------------------------------------------------


def test_a_phrase_is_looked_for_in_the_ways_the_model_writes_it() -> None:
    assert set(spellings("turbo boost")) == {
        " turbo boost", "turbo boost", " Turbo boost", "Turbo boost", " Turbo Boost", "Turbo Boost",
    }  # fmt: skip
    assert list(spellings("汉语")) == ["汉语", "漢語"]
    assert list(spellings("漢語")) == ["漢語", "汉语"]
    assert " Café" in set(spellings("cafe\u0301"))


def test_graphs_of_lists_are_kept_up_to_a_number_of_phrases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hotwords, "_MAX_PHRASES", 5)
    spelling = WhisperSpelling(Vocabulary(range(3), [b"a", b"b", b" "]))
    graphs = HotwordGraphs(spelling.ways, spelling.joins)
    lists = [tuple(Hotword(phrase, bonus) for phrase in "ab") for bonus in (1.0, 2.0, 3.0)]
    first, second = graphs.of(lists[0]), graphs.of(lists[1])
    assert graphs.of(lists[0]) is first
    graphs.of(lists[2])  # the one that was asked for longest ago goes
    assert graphs.of(lists[0]) is first
    assert graphs.of(lists[1]) is not second
    assert graphs.of(tuple(Hotword("a", score) for score in range(1, 9))) is not None
    assert graphs.of((Hotword("c", 1.0),)) is None


def test_scripts_without_spaces_have_no_word_boundaries() -> None:
    assert all(map(is_spaced, "aZ9éя"))
    assert not any(map(is_spaced, "汉あ한ก ,'"))
    assert not is_spaced("")


@pytest.mark.model
def test_phrases_are_cut_into_tokens_as_the_model_cuts_its_texts(
    bundle: Path, speech_dir: Path
) -> None:
    backend = OrtBackend()
    model = WhisperModel(
        bundle, Bundle.open(bundle).manifest, backend, threads=1, max_batch=1, max_beam=1
    )
    spelling = WhisperSpelling(model.vocabulary)
    for name, language in (("en_misc/jfk", "en"), ("zh_multispeaker/SSB02000375", "zh")):
        pcm = np.rint(read_all(speech_dir / f"{name}.flac") * 32767).astype(np.int16)
        gear = model.gears.pick(1, frames_needed(len(pcm)))
        with model.lend(gear) as loan:
            loan.prefill([model.features(pcm, gear)])
            said = [Utterance(len(pcm), language)]
            (decoded,) = model.decode(loan, said, beam=1, configured=())
        tokens = decoded.hypotheses[0].tokens
        assert len(tokens) > 5
        assert spelling.encode(model.vocabulary.text(tokens)) == list(tokens)
    assert spelling.encode(" a [ b") is None  # a token that the graph leaves out
    assert HotwordGraphs(spelling.ways, spelling.joins).of((Hotword("a[b", 1.0),)) is None


@pytest.mark.model
def test_real_speech_with_hotwords(bundle: Path, speech_dir: Path) -> None:
    """A name that the model does not know; its neighbours in the batch do not notice."""
    recognizer = load_recognizer(EngineConfig(bundle_dir=str(bundle), max_batch=3))
    names = ("zh_aishell1/BAC009S0150W0113", "zh_aishell1/BAC009S0150W0118")
    clips = [
        np.rint(read_all(speech_dir / f"{name}.flac") * 32767).astype(np.int16) for name in names
    ]

    def ask(clip: int, *phrases: str, kind: RequestKind = RequestKind.FINAL) -> Request:
        hotwords = tuple(Hotword(phrase, 1.5) for phrase in phrases)
        return Request(Segment(1, "s", 0, clips[clip], "zh"), kind=kind, hotwords=hotwords)

    def texts(*requests: Request) -> list[tuple[str, float]]:
        answers = recognizer.recognize(requests)
        assert all(isinstance(each, Transcript) for each in answers)
        return [(a.text, round(a.confidence, 4)) for a in answers if isinstance(a, Transcript)]

    try:
        (plain,), (other,) = texts(ask(0)), texts(ask(1))
        assert "赫夫" not in plain[0]
        (guided,) = texts(ask(0, "赫夫"))
        assert "赫夫" in guided[0]
        assert guided[1] < plain[1]  # the bonus is no confidence
        assert texts(ask(0, "赫夫", "人民网"))[0][0] == guided[0]
        assert texts(ask(0, "赫夫"), ask(0), ask(1)) == [guided, plain, other]
        assert "赫夫" in texts(ask(0, "赫夫", kind=RequestKind.PARTIAL))[0][0]
    finally:
        recognizer.close()
