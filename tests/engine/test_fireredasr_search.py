"""The search against a plain implementation of the published one, on random networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.engine.families.fireredasr_search import (
    OUT,
    FireRedBeamSearch,
    FireRedHypothesis,
    SearchRules,
)

Float = npt.NDArray[np.float32]
END = 4
START = 3
SMOOTHING = 1.25

Network = Callable[[tuple[int, ...]], Float]
"""Tokens so far → logits of the next."""


@dataclass(frozen=True)
class Random:
    """A network whose logits depend on the whole history."""

    seed: int
    vocabulary: int
    end_bias: float
    spread: float

    def __call__(self, tokens: tuple[int, ...]) -> Float:
        random = np.random.default_rng((self.seed, *tokens))
        logits = random.normal(0, self.spread, self.vocabulary).astype(np.float32)
        logits[END] += np.float32(self.end_bias)
        return logits


def log_probabilities(logits: Float) -> Float:
    scaled = logits / np.float32(SMOOTHING)
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))).astype(np.float32)


def published(
    network: Network, *, beam: int, limit: int, eos_penalty: float, length_penalty: float
) -> list[FireRedHypothesis]:
    """The published batch_beam_search for one utterance, with its tensors and its order of work."""
    texts = np.full((beam, 1), START)
    chances = np.zeros((beam, 1), np.float32)
    scores = np.array([0.0] + [-1e10] * (beam - 1), np.float32)
    finished = np.zeros(beam, bool)
    for _ in range(limit):
        step = log_probabilities(np.stack([network(tuple(t[1:])) for t in texts.tolist()]))
        if eos_penalty != 1:
            step[:, END] *= np.float32(eos_penalty)
        order = np.argsort(-step, axis=1, kind="stable")[:, :beam]
        best = np.take_along_axis(step, order, axis=1)
        best[finished] = [0.0] + [-1e10] * (beam - 1)
        order[finished] = END
        total = (scores[:, None] + best).astype(np.float32).reshape(-1)
        chosen = np.argsort(-total, kind="stable")[:beam]
        parents, scores = chosen // beam, total[chosen]
        last = order.reshape(-1)[chosen]
        texts = np.concatenate([texts[parents], last[:, None]], axis=1)
        made = np.exp(best.reshape(-1)[chosen])
        chances = np.concatenate([chances[parents], made[:, None]], axis=1)
        finished = last == END
        if finished.all():
            break
    lengths = (texts != END).sum(axis=1)
    if length_penalty > 0:
        scores = scores / ((5 + lengths.astype(np.float32)) / np.float32(6)) ** np.float32(
            length_penalty
        )
    return [
        FireRedHypothesis(
            tuple(texts[i, 1 : lengths[i]].tolist()),
            float(scores[i]),
            tuple(chances[i, 1 : lengths[i]].tolist()),
            bool(finished[i]),
        )
        for i in np.argsort(-scores, kind="stable")
    ]


class StepGraph:
    """What the step graph answers, without its caches."""

    def __init__(self, network: Network, top: int) -> None:
        self._network, self._top = network, top

    def answer(self, rows: list[tuple[int, ...]], scores: list[float]) -> tuple[Float, ...]:
        steps = log_probabilities(np.stack([self._network(row) for row in rows]))
        sums = (np.array(scores, np.float32)[:, None] + steps).astype(np.float32)
        ends = sums[:, END].copy()
        sums[:, END] = -np.inf
        best = np.argsort(-sums.reshape(-1), kind="stable")[: self._top]
        width = sums.shape[1]
        return (
            sums.reshape(-1)[best],
            (best // width).astype(np.int32),
            (best % width).astype(np.int32),
            ends,
        )


def searched(network: Network, search: FireRedBeamSearch) -> list[FireRedHypothesis]:
    """Run a search to its end."""
    graph, histories = StepGraph(network, search.top), [()]
    while not search.done:
        search.advance(*graph.answer(histories, search.scores))
        histories = [
            (*histories[parent], last)
            for parent, last in zip(search.parents, search.last, strict=True)
        ]
    return search.results()


def ours(
    network: Network, *, beam: int, limit: int, eos_penalty: float, length_penalty: float
) -> list[FireRedHypothesis]:
    rules = SearchRules(beam, limit, END, eos_penalty, length_penalty)
    return searched(network, FireRedBeamSearch(rules))


@settings(max_examples=300, deadline=None)
@given(
    network=st.builds(
        Random,
        seed=st.integers(0, 10_000),
        vocabulary=st.integers(12, 40),
        end_bias=st.floats(-2, 4),
        spread=st.sampled_from([0.5, 1.5, 4.0]),
    ),
    beam=st.sampled_from([1, 2, 3, 5]),
    limit=st.integers(1, 25),
    eos_penalty=st.sampled_from([1.0, 0.9, 0.6, 1.3]),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_the_texts_are_those_of_the_published_search(
    network: Random, beam: int, limit: int, eos_penalty: float, length_penalty: float
) -> None:
    expected = published(
        network, beam=beam, limit=limit, eos_penalty=eos_penalty, length_penalty=length_penalty
    )
    found = ours(
        network, beam=beam, limit=limit, eos_penalty=eos_penalty, length_penalty=length_penalty
    )
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    assert [h.ended for h in found] == [h.ended for h in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.score == pytest.approx(theirs.score, rel=1e-6, abs=1e-5)
        assert mine.chances == pytest.approx(theirs.chances, abs=1e-5)


def test_beams_of_the_examples_end_at_different_steps() -> None:
    """Else the property above would say little."""
    lengths = {
        tuple(
            len(h.tokens)
            for h in ours(
                Random(seed, 30, 1.5, 1.5), beam=3, limit=25, eos_penalty=1.0, length_penalty=0.6
            )
        )
        for seed in range(30)
    }
    assert sum(len(set(each)) > 1 for each in lengths) > 10
    assert any(0 in each for each in lengths)  # the empty text is among them


def test_a_row_that_has_ended_is_never_continued_and_gives_its_cells_away() -> None:
    search = FireRedBeamSearch(SearchRules(beam=2, max_tokens=9, end=END))
    search.advance(*arrays([-1.0, -1.5], [0, 0], [7, 8]), np.array([-0.5], np.float32))
    assert search.last == [END, 7]
    assert search.scores == [float(OUT), 0.0]  # behind the best that lives
    assert search.parents == [0, 0]
    # what the graph offers for the ended row counts for nothing
    search.advance(*arrays([-1.0, -1.5], [1, 1], [9, 5]), np.array([5.0, -9.0], np.float32))
    assert search.parents == [1, 1]
    assert [h.tokens for h in search.results()] == [(), (7, 9)]


def test_an_utterance_without_frames_is_done_before_it_begins() -> None:
    search = FireRedBeamSearch(SearchRules(beam=3, max_tokens=0, end=END))
    assert search.done
    assert [(h.tokens, h.confidence) for h in search.results()] == [((), 0.0)]


def test_confidence_is_the_mean_chance_of_the_tokens() -> None:
    hypothesis = FireRedHypothesis((7, 8), -1.0, (0.5, 0.25), True)
    assert hypothesis.confidence == 0.375


def arrays(scores: list[float], rows: list[int], tokens: list[int]) -> tuple[Float, ...]:
    return np.array(scores, np.float32), np.array(rows, np.int32), np.array(tokens, np.int32)
