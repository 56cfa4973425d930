"""CTC: alignment against every possible path, and the published rules of times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.engine.families.ctc import Span, align, greedy, spans
from voiced.engine.families.fireredasr_words import (
    TimedToken,
    join_pieces,
    place,
    timed_words,
    token_times,
)

Float = npt.NDArray[np.float32]


def log_probs(frames: int, vocabulary: int, seed: int, spread: float = 2.0) -> Float:
    logits = np.random.default_rng(seed).normal(0, spread, (frames, vocabulary))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def collapsed(path: Sequence[int]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token]


def likeliest(scores: Float, tokens: list[int]) -> float:
    """Best sum over every path that says `tokens`."""
    paths = itertools.product({0, *tokens}, repeat=len(scores))
    return max(
        sum(float(scores[i, token]) for i, token in enumerate(path))
        for path in paths
        if collapsed(path) == tokens
    )


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 7),
    tokens=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_the_alignment_is_the_likeliest_of_all_paths(
    frames: int, tokens: list[int], seed: int
) -> None:
    scores = log_probs(frames, 4, seed)
    repeats = sum(a == b for a, b in itertools.pairwise(tokens))
    found = align(scores, tokens, blank=0)
    if frames < len(tokens) + repeats:
        assert found is None
        return
    assert found is not None
    assert [span.token for span in found] == tokens
    path = np.zeros(frames, np.int64)
    for span in found:
        path[span.first : span.last + 1] = span.token
    assert collapsed(path.tolist()) == tokens
    total = sum(float(scores[i, token]) for i, token in enumerate(path))
    assert total == pytest.approx(likeliest(scores, tokens), abs=1e-5)


def test_nothing_and_a_text_with_blanks_are_not_aligned() -> None:
    assert align(log_probs(5, 4, 0), [], blank=0) is None
    assert align(log_probs(5, 4, 0), [1, 0], blank=0) is None


@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_a_long_text_is_aligned(count: int) -> None:
    tokens = [1 + place % 3 for place in range(count)]
    path = np.repeat(tokens, 3)
    path[2::3] = 0  # two frames of each token, then a blank
    scores = np.full((len(path), 4), -9.0, np.float32)
    scores[np.arange(len(path)), path] = -0.1
    expected = [Span(token, 3 * place, 3 * place + 1) for place, token in enumerate(tokens)]
    assert align(scores, tokens, blank=0) == expected


def test_greedy_leaves_out_repeats_and_blanks() -> None:
    scores = np.full((7, 3), -5.0, np.float32)
    for frame, token in enumerate([0, 1, 1, 0, 1, 2, 2]):
        scores[frame, token] = -0.1 * (frame + 1)
    found = greedy(scores, blank=0)
    assert found.tokens == (1, 1, 2)
    assert found.chances == pytest.approx(np.exp([-0.2, -0.5, -0.6]))
    assert greedy(scores[:0], blank=0).tokens == ()


def test_spans_group_equal_neighbours() -> None:
    assert spans([0, 5, 5, 0, 5, 6], blank=0) == [Span(5, 1, 2), Span(5, 4, 4), Span(6, 5, 5)]
    assert spans([], blank=0) == []


def published_times(path: list[int]) -> tuple[list[float], list[float]]:
    """Starts and ends from a path of labels, written as the published rule walks it."""
    starts: list[float] = []
    ends: list[float] = []
    held: list[float] = []
    t = 0
    while t < len(path):
        token = path[t]
        t += 1
        if token == 0:
            continue
        first = t
        starts.append(40 * t / 1000)
        if len(starts) == len(ends) + 2:
            ends.append(starts[-1])
        while t < len(path) and path[t] == token:
            t += 1
        held.append((t - first + 1) * 40 / 1000)
    ends.append((40 * len(path) + 25) / 1000)
    mean = sum(e - s for s, e in zip(starts, ends, strict=True)) / len(ends)
    cut = [
        s + max(1.5 * mean, h) if e - s > 2 * mean else e
        for s, e, h in zip(starts, ends, held, strict=True)
    ]
    return starts, [round(e, 3) for e in cut]


def published_placing(starts: list[float], ends: list[float], seconds: float) -> list[list[float]]:
    found, before = [], seconds
    for start, end in zip(starts, ends, strict=True):
        start = min(max(0, start - 0.06), before)
        end = min(max(0, end - 0.06), seconds)
        before = end
        found.append([round(start, 3), round(end, 3)])
    for i in range(len(found)):
        start, end = found[-(i + 1)]
        if abs(seconds - start) < 0.001:
            found[-(i + 1)][0] = seconds - (i + 1) * 0.001
        if i != 0 and abs(seconds - end) < 0.001:
            found[-(i + 1)][1] = seconds - i * 0.001
    return found


@settings(max_examples=200, deadline=None)
@given(
    path=st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=1, max_size=60).filter(any),
    shorter_ms=st.integers(-40, 160),
)
def test_times_are_those_of_the_published_rules(path: list[int], shorter_ms: int) -> None:
    seconds = max(0.025, (40 * len(path) - shorter_ms) / 1000)
    found = token_times(spans(path, blank=0), len(path))
    starts, ends = published_times(path)
    assert [time[0] for time in found] == pytest.approx(starts)
    assert [time[1] for time in found] == pytest.approx(ends)
    expected = published_placing(starts, ends, seconds)
    np.testing.assert_allclose(place(found, len(found), seconds), expected, atol=1e-9)


def test_a_token_starts_60_ms_before_the_end_of_its_first_frame() -> None:
    times = token_times([Span(7, 4, 5), Span(8, 10, 10)], frames=20)
    assert times[0][0] == 0.2
    np.testing.assert_allclose(place(times, 2, 0.8)[:, 0], [0.14, 0.38])


def test_a_token_before_a_pause_does_not_last_through_it() -> None:
    # lasting 0.2, 2.0 and 0.225 s, 0.808 on average: the second is cut to 1.5 of that
    times = token_times([Span(1, 0, 0), Span(2, 5, 5), Span(3, 55, 55)], frames=61)
    assert times == [(0.04, 0.24), (0.24, 1.452), (2.24, 2.465)]


def test_tokens_that_the_frames_cannot_hold_share_the_audio_evenly() -> None:
    words = timed_words(
        log_probs(2, 9, 0), [5, 6, 7, 8], "甲乙丙丁", [1.0] * 4, seconds=1.0, blank=0
    )
    assert [(w.start_s, w.end_s) for w in words] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]


def timed(text: str, start: float, end: float, chance: float = 1.0) -> TimedToken:
    return TimedToken(text, start, end, chance)


def test_pieces_become_words() -> None:
    tokens = [
        timed("你", 0, 1),
        timed("\u2581HE", 1, 2, 0.5),
        timed("LLO", 2, 3, 1.0),
        timed("'S", 3, 4, 0.0),
        timed("\u2581A", 4, 5),
        timed("好", 5, 6),
        timed("B", 6, 7),
    ]
    assert join_pieces(tokens) == [
        timed("你", 0, 1),
        timed("HELLO'S", 1, 4, 0.5),
        timed("A", 4, 5),
        timed("好", 5, 6),
        timed("B", 6, 7),
    ]


def test_no_tokens_are_no_words() -> None:
    assert timed_words(log_probs(3, 4, 0), [], [], [], seconds=0.1, blank=0) == []
