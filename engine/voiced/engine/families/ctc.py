"""Connectionist temporal classification: the greedy text, and where its tokens lie. Pure.

Log-probabilities are float32[frames, vocabulary] of one utterance, padding frames left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest token of each frame, repeats and blanks left out."""

    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    """Highest probability of each token among its frames."""


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of one token."""

    token: int
    first: int
    last: int
    """The last frame, itself included."""


def greedy(log_probs: Float, blank: int) -> Greedy:
    """Read the text off the frames one by one."""
    best = log_probs.argmax(axis=1)
    tokens: list[int] = []
    chances: list[float] = []
    for span in spans(best.tolist(), blank):
        tokens.append(span.token)
        peak = log_probs[span.first : span.last + 1, span.token].max()
        chances.append(float(np.exp(np.float64(peak))))
    return Greedy(tuple(tokens), tuple(chances))


def spans(path: Sequence[int], blank: int) -> list[Span]:
    """Group equal neighbours; blanks only separate."""
    found: list[Span] = []
    start = 0
    for place in range(1, len(path) + 1):
        if place == len(path) or path[place] != path[start]:
            if path[start] != blank:
                found.append(Span(path[start], start, place - 1))
            start = place
    return found


def align(log_probs: Float, tokens: Sequence[int], blank: int) -> list[Span] | None:
    """Find the likeliest frames of each token (Viterbi over token, blank, token ...).

    Returns:
        One span per token, in order; None where the frames are too few to hold them: one for each,
        and one between two that are equal.
    """
    frames, count = len(log_probs), len(tokens)
    repeats = sum(a == b for a, b in itertools.pairwise(tokens))
    if not count or frames < count + repeats or blank in tokens:
        return None
    states = np.full(2 * count + 1, blank)
    states[1::2] = tokens
    emitted = log_probs[:, states]
    skips = np.zeros(len(states), np.bool_)  # a blank may be left out between unequal tokens
    skips[3::2] = states[3::2] != states[1:-2:2]
    never = np.float32(-np.inf)
    score = np.full(len(states), never, np.float32)
    score[:2] = emitted[0, :2]
    moves = np.zeros((frames, len(states)), np.int8)
    one, two = np.full_like(score, never), np.full_like(score, never)
    for frame in range(1, frames):
        one[1:] = score[:-1]
        two[2:] = np.where(skips[2:], score[:-2], never)
        move = moves[frame]
        move[one > score] = 1
        better = np.maximum(score, one)
        move[two > better] = 2
        score = np.maximum(better, two) + emitted[frame]
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = state
        state -= int(moves[frame, state])  # else the sum were int8, of 63 tokens at most
    places = np.arange(frames)
    found = []
    for i, token in enumerate(tokens):
        held = places[path == 2 * i + 1]
        found.append(Span(int(token), int(held[0]), int(held[-1])))
    return found
