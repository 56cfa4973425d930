"""Times of words and characters by the rules of FireRedASR2, from its CTC head's alignment. Pure.

A token starts 40 ms x (first frame + 1) - 60 ms into the audio and lasts until the next one; one
that is longer than twice the mean is cut. Where the frames cannot hold the tokens they share the
audio evenly. Word pieces become one word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiced.engine.families.ctc import Span, align

Float = npt.NDArray[np.float32]

FRAME_MS = 40
SHIFT_S = 0.06
LAST_S = 0.025
"""The window of the last feature frame reaches so far over its hop."""
LONG = 2.0
CUT = 1.5
"""A token longer than `LONG` means lasts `CUT` means, or as long as its frames."""
STEP_S = 0.001

WORD_START = "\u2581"
_PIECE = re.compile(r"[a-zA-Z']+")


@dataclass(frozen=True, slots=True)
class TimedToken:
    """A token, later a word, with its place in the audio."""

    text: str
    start_s: float
    end_s: float
    chance: float


def token_times(spans: Sequence[Span], frames: int) -> list[tuple[float, float]]:
    """Return start and end of each token in seconds, before the shift.

    Args:
        spans: From the alignment, at least one.
        frames: Encoder frames of the utterance.
    """
    starts = [FRAME_MS * (span.first + 1) / 1000 for span in spans]
    ends = [*starts[1:], (FRAME_MS * frames + 1000 * LAST_S) / 1000]
    mean = sum(end - start for start, end in zip(starts, ends, strict=True)) / len(spans)
    found = []
    for span, start, end in zip(spans, starts, ends, strict=True):
        if end - start > LONG * mean:
            held = (span.last - span.first + 1) * FRAME_MS / 1000
            end = start + max(CUT * mean, held)
        found.append((start, round(end, 3)))
    return found


def place(
    times: Sequence[tuple[float, float]] | None, count: int, seconds: float
) -> npt.NDArray[np.float64]:
    """Fit times into the audio: float64[count, 2] in seconds, each at least a little.

    Args:
        times: From `token_times`; None shares the audio evenly.
        count: Tokens.
        seconds: Length of the audio.
    """
    if times is None:
        each = seconds / count
        shifted = [(i * each, (i + 1) * each) for i in range(count)]
    else:
        shifted = [(start - SHIFT_S, end - SHIFT_S) for start, end in times]
    before = seconds
    placed = np.zeros((count, 2))
    for i, (start, end) in enumerate(shifted):
        placed[i, 0] = round(min(max(0.0, start), before), 3)
        before = min(max(0.0, end), seconds)
        placed[i, 1] = round(before, 3)
    for behind in range(count):  # tokens that fell on the very end get a place before it
        row = placed[count - 1 - behind]
        if abs(seconds - row[0]) < STEP_S:
            row[0] = seconds - (behind + 1) * STEP_S
        if behind and abs(seconds - row[1]) < STEP_S:
            row[1] = seconds - behind * STEP_S
    return placed


def join_pieces(tokens: Sequence[TimedToken]) -> list[TimedToken]:
    """Make words of pieces: one that begins a word takes the Latin pieces behind it."""
    words: list[TimedToken] = []
    group: list[TimedToken] = []

    def close() -> None:
        if group:
            chance = sum(each.chance for each in group) / len(group)
            text = "".join(each.text for each in group).replace(WORD_START, "")
            words.append(TimedToken(text, group[0].start_s, group[-1].end_s, chance))
            group.clear()

    for token in tokens:
        continues = group and _PIECE.fullmatch(token.text)
        if not continues:
            close()
        if continues or token.text.startswith(WORD_START):
            group.append(token)
        else:
            words.append(token)
    close()
    return words


def timed_words(
    log_probs: Float,
    tokens: Sequence[int],
    texts: Sequence[str],
    chances: Sequence[float],
    *,
    seconds: float,
    blank: int,
) -> list[TimedToken]:
    """Align a text and return its words.

    Args:
        log_probs: float32[frames, vocabulary].
        tokens: Ids, no blank among them.
        texts: What each token is written as, a word's first piece with `WORD_START`.
        chances: Probability of each.
        seconds: Length of the audio.
        blank: Its id.
    """
    if not tokens:
        return []
    spans = align(log_probs, tokens, blank)
    times = None if spans is None else token_times(spans, len(log_probs))
    placed = place(times, len(tokens), seconds)
    timed = [
        TimedToken(text, float(start), float(end), chance)
        for text, (start, end), chance in zip(texts, placed, chances, strict=True)
    ]
    return join_pieces(timed)
