"""The search against brute force, and the cache against a model that remembers everything."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.engine.decode import DEAD, BeamSearch, DecoderShape, StepDecoder, in_loop

VOCABULARY = 11


def logits(history: tuple[int, ...], seed: int) -> np.ndarray:
    """A little language model: log-probabilities float64[VOCABULARY + 1], the last one ends."""
    rng = np.random.default_rng([seed, *history])
    raw = rng.standard_normal(VOCABULARY + 1) * 2
    raw[-1] += 0.4 * len(history) - 2
    return raw - np.log(np.exp(raw).sum())


def step(histories: list[tuple[int, ...]], scores: list[float], top: int, seed: int) -> Any:
    """What the step graph answers: the best `top` continuations over all rows, and the ends."""
    tables = [logits(h, seed) for h in histories]
    found = sorted(
        (
            (score + table[t], row, t)
            for row, (score, table) in enumerate(zip(scores, tables, strict=True))
            for t in range(VOCABULARY)
        ),
        key=lambda c: -c[0],
    )[:top]
    best, rows, tokens = (np.array(x) for x in zip(*found, strict=True))
    ends = np.array([s + table[-1] for s, table in zip(scores, tables, strict=True)])
    return best.astype(np.float32), rows.astype(np.int32), tokens.astype(np.int32), ends


def search(beam: int, limit: int, seed: int) -> BeamSearch:
    result = BeamSearch(beam=beam, max_tokens=limit)
    best, _, tokens, _ = step([()], [0.0], beam + 1, seed)
    result.begin(best, tokens, banned=frozenset({3}))
    while not result.done:
        result.advance(*step(result.rows, result.scores, beam, seed))
    return result


@pytest.mark.parametrize("seed", range(20))
def test_a_beam_as_wide_as_the_tree_finds_the_best_text(seed: int) -> None:
    found = search(beam=VOCABULARY**2, limit=3, seed=seed).results()[0]
    honest = []
    for length in (1, 2):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            if text[0] != 3:
                total = sum(logits(text[:i], seed)[t] for i, t in enumerate(text))
                honest.append((total + logits(text, seed)[-1]) / (length + 1))
    assert found.score >= max(honest) - 1e-5


@pytest.mark.parametrize("seed", range(10))
def test_beam_one_is_greedy(seed: int) -> None:
    found = search(beam=1, limit=40, seed=seed).results()[0]
    table = logits((), seed)[:VOCABULARY].copy()
    table[3] = -np.inf
    text = [int(table.argmax())]
    while len(text) < len(found.tokens):
        text.append(int(logits(tuple(text), seed)[:VOCABULARY].argmax()))
    assert found.tokens == tuple(text)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_each_token_has_its_own_log_probability(beam: int, seed: int) -> None:
    for found in search(beam, limit=12, seed=seed).results():
        own = [logits(found.tokens[:i], seed)[t] for i, t in enumerate(found.tokens)]
        assert found.log_probs == pytest.approx(own, abs=1e-4)


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 1000))
def test_the_search_ends_within_its_limit_with_ordered_results(
    beam: int, limit: int, seed: int
) -> None:
    results = search(beam, limit, seed).results()
    assert results
    assert all(len(h.tokens) <= limit for h in results)
    assert [h.score for h in results] == sorted((h.score for h in results), reverse=True)
    assert all(h.tokens[0] != 3 for h in results)


def test_a_row_that_says_one_phrase_again_and_again_is_not_continued() -> None:
    found = BeamSearch(beam=1, max_tokens=100)
    found.begin(np.array([0.0, -1.0], np.float32), np.array([5, 6]), banned=frozenset())
    for _ in range(100):
        if found.done:
            break
        one = np.array([0])
        found.advance(np.array([-0.1], np.float32), one, np.array([5]), np.array([-50.0]))
    assert len(found.rows[0]) == 6
    assert found.scores == [DEAD]
    assert not found.results()[0].ended


def test_loops_are_told_from_honest_repetition() -> None:
    assert in_loop([7] * 6)
    assert not in_loop([7] * 5)
    assert in_loop([9, 9, *[1, 2, 3] * 4])
    assert not in_loop([1, 2, 3] * 3)
    assert in_loop([*range(20)] * 3)
    assert not in_loop([*range(20)] * 2)
    assert not in_loop([])


class RememberingSession:
    """Stands in for the step graph: answers from what each row can see through the masks.

    Keys hold the token and values its position, so that the visible cells are the row's history.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.histories: list[list[tuple[int, ...]]] = []

    def bind(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> RememberingCall:
        return RememberingCall(self, inputs, outputs)


class RememberingCall:
    """One binding of a `RememberingSession`."""

    def __init__(
        self,
        session: RememberingSession,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        self.session, self.inputs, self.outputs = session, inputs, outputs

    def run(self) -> None:
        i, o = self.inputs, self.outputs
        tokens, positions = i["tokens"], np.broadcast_to(i["positions"], i["tokens"].shape)
        o["new_k_0"][:, 0, 0, :] = tokens
        o["new_v_0"][:, 0, :, 0] = positions
        self.session.histories = []
        for n in range(tokens.shape[0]):
            seen = []
            for b in range(tokens.shape[1]):
                cells = np.flatnonzero(i["cache_mask"][n, 0, b] == 0)
                fresh = np.flatnonzero(i["new_mask"][n, 0, b] == 0)
                pairs = [(i["self_v_0"][n, 0, c, 0], i["self_k_0"][n, 0, 0, c]) for c in cells]
                pairs += [(positions[n, f], tokens[n, f]) for f in fresh]
                places = [int(p) for p, _ in sorted(pairs)]
                assert places == list(range(len(places))), "a row lost or doubled a cell"
                seen.append(tuple(int(t) for _, t in sorted(pairs)))
            self.session.histories.append(seen)
            rows = [seen[r] for r in i["rows"]]
            top = int(i["top"][0])
            best, parents, ids, ends = step(rows, list(i["scores"][n]), top, self.session.seed + n)
            o["best_scores"][n], o["best_rows"][n], o["best_tokens"][n] = best, parents, ids
            o["end_scores"][n] = ends


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 50))
def test_rows_see_exactly_their_own_history_through_every_compaction(
    batch: int, beam: int, seed: int
) -> None:
    session = RememberingSession(seed)
    shape = DecoderShape(layers=1, heads=1, d_head=1, specials=2)
    decoder = StepDecoder(session, shape, cells=(16, 32, 64, 256), max_batch=batch, max_rows=5)
    cross = {
        "cross_k_0": np.zeros((batch, 1, 1, 2), np.float32),
        "cross_v_0": np.zeros((batch, 1, 2, 1), np.float32),
    }
    for _ in range(2):  # a second utterance must not see the first
        decoder.start(cross)
        prompt = [[1, 2, 3, 4]] * batch
        result = decoder.step(
            prompt, np.arange(4), causal=True, rows=[3], scores=np.zeros((batch, 1)), top=beam
        )
        rows = [[(1, 2, 3, 4)] * beam for _ in range(batch)]
        tokens, scores = result.best_tokens.copy(), result.best_scores.copy()
        for position in range(4, 34):
            expected = [
                [(*h, int(t)) for h, t in zip(rows[n], tokens[n], strict=True)]
                for n in range(batch)
            ]
            result = decoder.step(
                tokens,
                np.full(tokens.shape, position),
                causal=False,
                rows=range(beam),
                scores=scores,
                top=beam,
            )
            assert session.histories == expected
            rows = [[expected[n][p] for p in result.best_rows[n]] for n in range(batch)]
            decoder.follow(result.best_rows)
            tokens, scores = result.best_tokens.copy(), result.best_scores.copy()


def test_beams_that_share_their_past_need_few_cells() -> None:
    session = RememberingSession(1)
    shape = DecoderShape(layers=1, heads=1, d_head=1, specials=2)
    decoder = StepDecoder(session, shape, cells=(64, 512), max_batch=1, max_rows=5)
    decoder.start({"cross_k_0": np.zeros((1, 1, 1, 2), np.float32)})
    scores = np.array([[0.0, -1, -2, -3, -4]])
    for position in range(40):
        tokens = np.full((1, 5), position % 7)
        decoder.step(
            tokens,
            np.full((1, 5), position),
            causal=False,
            rows=range(5),
            scores=scores,
            top=5,
        )
        decoder.follow([[0] * 5])  # every row continues the first
    assert decoder.cells_used <= 64
