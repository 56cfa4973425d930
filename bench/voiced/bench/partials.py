"""`voiced bench partials`: what people see while they speak, and how soon the final is there.

Every clip is a stream of its own in simulated time (`replay.py`). Delays are of that time: the CPU
time of each request counts, waiting for this machine's other work does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voiced.bench.corpus import Clip
from voiced.bench.normalise import Normaliser
from voiced.bench.replay import Played, texts_of
from voiced.bench.report import Table
from voiced.bench.scoring import (
    Interval,
    Score,
    edit_distance,
    error_interval,
    paired_difference,
    score,
)
from voiced.daemon.wire import EagerFinal, Final, Partial, Resumed, SpeechEnded, SpeechStarted
from voiced.engine.stable import tokens_of

SHORT_S = 8.0
"""Utterances up to this long are those of whom an instant final is expected."""
INSTANT_MS = 20.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """One segment as its receiver saw it. Times in ms."""

    seconds: float
    words: int
    """Words (Mandarin: characters) of the final."""
    first_partial_ms: float | None
    """From the beginning of speech to the first partial."""
    stable_at_speech_end: int
    """Words that were stable when the last speech was heard."""
    stable_at_end: int
    """Words that were stable when the silence had ended the segment."""
    wrong: int
    """Words called stable that the final has otherwise."""
    partials: int
    broken_promises: int
    """Partials that do not begin with what an earlier one called stable."""
    final_ms: float
    """From the end of the silence (`speech_ended`) to the final."""
    speech_to_final_ms: float
    """From the end of speech to the final."""
    offered: int
    """Texts offered early; all but the last were taken back."""
    early_ms: float | None
    """How long before the final the offer that held was made."""
    was_right: bool
    """The offer that held had the words of the final."""


def spoken(played: Played) -> list[Spoken]:
    """Take a stream's messages apart, segment by segment; those without text are left out."""
    segments = [m.segment for _, m in played.messages if isinstance(m, SpeechStarted)]
    found = [_segment(played, number) for number in segments]
    return [each for each in found if each is not None]


def _segment(played: Played, segment: int) -> Spoken | None:
    own = [(at, m) for at, m in played.messages if getattr(m, "segment", None) == segment]
    finals = [(at, m) for at, m in own if isinstance(m, Final)]
    ends = [(at, m) for at, m in own if isinstance(m, SpeechEnded)]
    if not finals or not ends or not finals[0][1].text:
        return None
    (final_at, final), (end_at, ended) = finals[0], ends[0]
    runs = [(b, e) for b, e in played.speech if e > ended.start_ms and b < ended.end_ms]
    onset = max(runs[0][0], ended.start_ms) if runs else float(ended.start_ms)
    offset = min(runs[-1][1], ended.end_ms) if runs else float(ended.end_ms)
    partials = [(at, m) for at, m in own if isinstance(m, Partial)]
    offers = [(at, m) for at, m in own if isinstance(m, EagerFinal)]
    held = offers[-1] if offers and not _taken_back(own, offers[-1][0]) else None
    words = [token.norm for token in tokens_of(final.text)]
    promised = _stable(partials[-1][1]) if partials else []
    return Spoken(
        seconds=(ended.end_ms - ended.start_ms) / 1000,
        words=len(words),
        first_partial_ms=partials[0][0] - onset if partials else None,
        stable_at_speech_end=_stable_at(partials, offset),
        stable_at_end=_stable_at(partials, end_at),
        wrong=_wrong(promised, words),
        partials=len(partials),
        broken_promises=sum(
            not later.text.startswith(earlier.text[: earlier.stable_chars])
            or later.stable_chars < earlier.stable_chars
            for (_, earlier), (_, later) in itertools.pairwise(partials)
        ),
        final_ms=final_at - end_at,
        speech_to_final_ms=final_at - offset,
        offered=len(offers),
        early_ms=final_at - held[0] if held else None,
        was_right=held is not None and [t.norm for t in tokens_of(held[1].text)] == words,
    )


def _taken_back(own: Sequence[tuple[float, object]], since: float) -> bool:
    return any(isinstance(m, Resumed) and at >= since for at, m in own)


def _stable(partial: Partial) -> list[str]:
    return [token.norm for token in tokens_of(partial.text[: partial.stable_chars])]


def _stable_at(partials: Sequence[tuple[float, Partial]], at_ms: float) -> int:
    before = [partial for at, partial in partials if at <= at_ms]
    return len(_stable(before[-1])) if before else 0


def _wrong(promised: Sequence[str], words: Sequence[str]) -> int:
    """Differences between the promised words and the beginning of the final that fits them best."""
    nearest = range(max(0, len(promised) - 5), min(len(words), len(promised) + 5) + 1)
    return min((edit_distance(promised, words[:length]) for length in nearest), default=0)


# ---- summaries ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip under one policy."""

    clip: Clip
    spoken: Sequence[Spoken]
    score: Score
    text: str


def hear(clip: Clip, played: Played, normaliser: Normaliser) -> Heard:
    """Score a clip's finals and take its messages apart."""
    if clip.text is None or clip.language is None:
        raise ValueError(f"clip {clip.id} has no text or no language; expected usable clips")
    text = texts_of(played.messages)
    units = normaliser.units
    scored = score(units(clip.text, clip.language), units(text, clip.language))
    return Heard(clip, spoken(played), scored, text)


@dataclass(frozen=True, slots=True)
class Summary:
    """What one policy does, over the clips of one language."""

    policy: str
    language: str
    clips: int
    segments: int
    error: Interval
    first_partial_ms: tuple[float, float]
    """Median and 95th percentile."""
    stable_at_speech_end: float
    """Percent of the finals' words."""
    stable_at_end: float
    wrong: float
    """Percent of the words called stable."""
    broken_promises: int
    instant: float
    """Percent of the finals of utterances up to 8 s that came within 20 ms of the silence's end."""
    final_ms: tuple[float, float, float]
    """Median, 95th and 99th percentile of those utterances, beyond the silence."""
    speech_to_final_ms: tuple[float, float]
    """Median and 95th percentile, all utterances, from the end of speech."""
    early_ms: float
    """Median time by which an offer that held came before its final."""
    withdrawn: float
    """Offers taken back for each one that held."""
    right: float
    """Percent of the offers that held that had the final's words."""


def summarise(policy: str, language: str, heard: Sequence[Heard]) -> Summary:
    """Sum up the clips of a language."""
    clips = [each for each in heard if each.clip.language == language]
    all_ = [each for clip in clips for each in clip.spoken]
    short = [each for each in all_ if each.seconds <= SHORT_S]
    words = sum(each.words for each in all_)
    promised = sum(each.stable_at_end for each in all_)
    firsts = [each.first_partial_ms for each in all_ if each.first_partial_ms is not None]
    held = [each for each in all_ if each.early_ms is not None]
    return Summary(
        policy=policy,
        language=language,
        clips=len(clips),
        segments=len(all_),
        error=error_interval([each.score for each in clips]),
        first_partial_ms=(_at(firsts, 50), _at(firsts, 95)),
        stable_at_speech_end=_share(sum(each.stable_at_speech_end for each in all_), words),
        stable_at_end=_share(promised, words),
        wrong=_share(sum(each.wrong for each in all_), promised),
        broken_promises=sum(each.broken_promises for each in all_),
        instant=_share(sum(each.final_ms <= INSTANT_MS for each in short), len(short)),
        final_ms=tuple(_at([each.final_ms for each in short], p) for p in (50, 95, 99)),  # type: ignore[arg-type]
        speech_to_final_ms=tuple(  # type: ignore[arg-type]
            _at([each.speech_to_final_ms for each in all_], p) for p in (50, 95)
        ),
        early_ms=_at([each.early_ms for each in held if each.early_ms is not None], 50),
        withdrawn=(sum(each.offered for each in all_) - len(held)) / max(1, len(held)),
        right=_share(sum(each.was_right for each in held), len(held)),
    )


def _at(values: Sequence[float], percentile: float) -> float:
    return float(np.percentile(values, percentile)) if values else float("nan")


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else float("nan")


def tables(policies: Sequence[tuple[str, Sequence[Heard]]]) -> list[Table]:
    """One table of delays, one of partials, one of errors against the first policy."""
    summaries = [
        summarise(policy, language, heard)
        for policy, heard in policies
        for language in sorted({each.clip.language or "" for each in heard})
    ]
    return [_final_table(summaries), _partial_table(summaries), _error_table(policies, summaries)]


def _final_table(summaries: Sequence[Summary]) -> Table:
    rows = tuple(
        (
            f"{each.policy} {each.language}",
            str(each.segments),
            f"{each.instant:.1f}",
            " / ".join(f"{ms:.0f}" for ms in each.final_ms),
            " / ".join(f"{ms:.0f}" for ms in each.speech_to_final_ms),
            f"{each.early_ms:.0f}",
            f"{each.withdrawn:.2f}",
            f"{each.right:.1f}",
        )
        for each in summaries
    )
    return Table(
        "finals, in simulated time",
        (
            "policy, language",
            "segments",
            f"% within {INSTANT_MS:.0f} ms",
            "ms beyond the silence p50 / 95 / 99",
            "ms from end of speech p50 / 95",
            "offered ms before",
            "taken back per kept",
            "% offers right",
        ),
        rows,
        (f"columns 3 and 4: utterances up to {SHORT_S:g} s",),
    )


def _partial_table(summaries: Sequence[Summary]) -> Table:
    rows = tuple(
        (
            f"{each.policy} {each.language}",
            " / ".join(f"{ms:.0f}" for ms in each.first_partial_ms),
            f"{each.stable_at_speech_end:.1f}",
            f"{each.stable_at_end:.1f}",
            f"{each.wrong:.1f}",
            str(each.broken_promises),
        )
        for each in summaries
    )
    return Table(
        "partials, in simulated time",
        (
            "policy, language",
            "first ms p50 / 95",
            "% stable at end of speech",
            "% stable at speech_ended",
            "% of stable words wrong",
            "promises broken",
        ),
        rows,
        ("words of the final (Mandarin: characters); first: from the beginning of speech",),
    )


def cost_table(costs: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """What the requests took, by policy and kind."""
    rows = tuple(
        (
            f"{policy}, {kind}",
            str(len(each)),
            f"{_at(each, 50):.0f}",
            f"{_at(each, 95):.0f}",
            f"{sum(each) / 1000:.1f}",
        )
        for policy, kinds in costs.items()
        for kind, each in sorted(kinds.items())
    )
    return Table(
        "requests, CPU time of the recogniser",
        ("policy, kind", "requests", "ms p50", "ms p95", "s in all"),
        rows,
        ("of requests that were taken back the whole time is counted",),
    )


def _error_table(
    policies: Sequence[tuple[str, Sequence[Heard]]], summaries: Sequence[Summary]
) -> Table:
    first = policies[0][1]
    rows = []
    for each in summaries:
        heard = dict(policies)[each.policy]
        ours, theirs = (
            [h.score for h in some if h.clip.language == each.language] for some in (heard, first)
        )
        points = paired_difference(ours, theirs)
        rows.append(
            (
                f"{each.policy} {each.language}",
                str(each.clips),
                f"{each.error.value:.2f}",
                f"[{each.error.low:.2f}, {each.error.high:.2f}]",
                f"{points.value:+.2f}",
                f"[{points.low:+.2f}, {points.high:+.2f}]",
            )
        )
    return Table(
        f"errors of the finals, difference to {policies[0][0]}",
        ("policy, language", "clips", "%", "95 %", "points", "95 %"),
        tuple(rows),
    )
