"""`voiced bench hotwords`: what a bonus for listed phrases finds, invents and costs in errors.

Every clip is recognised with the whole list, as one segment with its language pinned: most of the
list is said elsewhere, as in real life.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voiced.audio.frames import Segment
from voiced.bench.corpus import Clip
from voiced.bench.normalise import Normaliser
from voiced.bench.report import Table
from voiced.bench.scoring import Score, error_rate, score
from voiced.bench.systems import read_clip
from voiced.engine.errors import EngineError
from voiced.engine.recognizer import Recognizer
from voiced.engine.types import Hotword, Request, RequestKind

_LEAST_LETTERS = 5
"""Shorter words are rarely names, and are found inside of others."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip at one bonus."""

    score: Score
    said: int
    """Listed phrases in the reference."""
    found: int
    """Of these, how many are in the text."""
    inserted: int
    """Listed phrases in the text and not in the reference."""


def half_of(clip: Clip) -> str:
    """`a` or `b`, by a hash of the clip's name: one to choose on, one to check the choice with."""
    return "ab"[hashlib.sha256(clip.id.encode()).digest()[0] % 2]


def rare_words(clips: Sequence[Clip], tokens_of: Callable[[str], int]) -> list[str]:
    """Words that are spelled with Latin letters and that the model has no token of its own for.

    Args:
        clips: Their references are looked through.
        tokens_of: How many tokens a word takes inside of a text.
    """
    pattern = re.compile(rf"[a-z]{{{_LEAST_LETTERS},}}")
    words = {word for clip in clips for word in pattern.findall((clip.text or "").lower())}
    return sorted(w for w in words if min(tokens_of(w), tokens_of(w.capitalize())) > 1)


def occurrences(units: Sequence[str], phrase: Sequence[str]) -> int:
    """How often a phrase stands in a text, both normalised."""
    size = len(phrase)
    return sum(units[i : i + size] == phrase for i in range(len(units) - size + 1))


def compare(
    reference: Sequence[str], text: Sequence[str], phrases: Sequence[Sequence[str]]
) -> Heard:
    """Count the listed phrases in a reference and in a text, all normalised."""
    pairs = [(occurrences(reference, p), occurrences(text, p)) for p in phrases if p]
    return Heard(
        score(reference, text),
        said=sum(said for said, _ in pairs),
        found=sum(min(pair) for pair in pairs),
        inserted=sum(max(0, written - said) for said, written in pairs),
    )


def measure(
    clips: Sequence[Clip],
    recognizer: Recognizer,
    phrases: Sequence[str],
    bonuses: Sequence[float],
    normaliser: Normaliser,
    advance: Callable[[str], None],
    *,
    kind: RequestKind = RequestKind.FINAL,
) -> dict[float, list[Heard]]:
    """Recognise every clip at every bonus; 0 is without hotwords.

    Raises:
        MediaError: A recording cannot be decoded.
        EngineError: The model failed.
    """
    heard: dict[float, list[Heard]] = {bonus: [] for bonus in bonuses}
    for clip in clips:
        assert clip.text is not None
        assert clip.language is not None
        segment = Segment(1, "bench", 0, read_clip(clip), clip.language)
        units = [normaliser.units(phrase, clip.language) for phrase in phrases]
        reference = normaliser.units(clip.text, clip.language)
        for bonus in bonuses:
            hotwords = tuple(Hotword(phrase, bonus) for phrase in phrases) if bonus else ()
            (answer,) = recognizer.recognize([Request(segment, kind, hotwords=hotwords)])
            if isinstance(answer, EngineError):
                raise answer
            text = normaliser.units(answer.text, clip.language)
            heard[bonus].append(compare(reference, text, units))
        advance(clip.id)
    return heard


def table(heard: dict[float, list[Heard]], title: str) -> Table:
    """One row for each bonus."""
    rows = []
    for bonus, clips in heard.items():
        said = sum(each.said for each in clips)
        found = sum(each.found for each in clips)
        rows.append(
            (
                f"{bonus:g}" if bonus else "none",
                f"{found}/{said}",
                f"{100 * found / said:.0f} %" if said else "-",
                str(sum(each.inserted for each in clips)),
                f"{error_rate([each.score for each in clips if each.said]):.2f}",
                f"{error_rate([each.score for each in clips if not each.said]):.2f}",
            )
        )
    columns = ("bonus", "found", "recall", "inserted", "errors, clips with", "clips without")
    return Table(title, columns, tuple(rows))
