"""`voiced bench peers`: end of segment → final text, against other recognisers in one process.

The systems take turns on every clip, in alternating order, so that a busy moment of the machine
hits both; what is reported is the ratio of each pair.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from voiced.bench.corpus import Clip
from voiced.bench.errors import RecogniserFailed
from voiced.bench.normalise import Normaliser
from voiced.bench.report import Table
from voiced.bench.scoring import Score, error_rate, score
from voiced.bench.systems import System, read_clip


@dataclass(frozen=True, slots=True)
class LengthClass:
    """Clips of about one length."""

    name: str
    least_s: float
    most_s: float
    target: float
    """How many times faster than faster-whisper we have to be."""


LENGTHS = (
    LengthClass("1.5 s", 1.0, 1.9, 10),
    LengthClass("3 s", 2.5, 3.5, 7),
    LengthClass("7 s", 6.0, 8.0, 3),
    LengthClass("12 s", 10.0, 13.0, 2),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both systems on one clip."""

    length: LengthClass
    clip: Clip
    ours_ms: float
    """Median of the repeats."""
    peer_ms: float
    ours_text: str
    peer_text: str

    @property
    def ratio(self) -> float:
        """How many times faster we are."""
        return self.peer_ms / self.ours_ms


@dataclass(frozen=True, slots=True)
class ClassResult:
    """The pairs of one length."""

    length: str
    clips: int
    median_s: float
    ours_ms: float
    """Median."""
    peer_ms: float
    ratio_q1: float
    ratio_median: float
    ratio_q3: float
    target: float


def pick(clips: Sequence[Clip], length: LengthClass, count: int) -> list[Clip]:
    """Choose clips of one length, the same ones on every machine.

    Sets take turns, so that no kind of speech makes up a class; inside a set the order is that of
    a hash of the id. Clips without a text come after all others: they can be timed, not scored.
    """
    sets: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=_shuffled):
        if clip.is_speech and clip.language and length.least_s <= clip.seconds <= length.most_s:
            sets.setdefault(clip.set, []).append(clip)
    turns = [
        (clip.text is None, turn, name, clip)
        for name, members in sets.items()
        for turn, clip in enumerate(members)
    ]
    turns.sort(key=lambda each: each[:3])
    return [clip for *_, clip in turns[:count]]


def _shuffled(clip: Clip) -> str:
    return hashlib.sha256(clip.id.encode()).hexdigest()


def measure(
    chosen: Sequence[tuple[LengthClass, Clip]],
    ours: System,
    peer: System,
    *,
    repeats: int,
    advance: Callable[[str], None],
) -> list[Pair]:
    """Time both systems on every clip, `repeats` times each, order alternating.

    Raises:
        MediaError: A recording cannot be decoded.
        RecogniserFailed: A system gave no text for a clip.
    """
    for _, clip in {length.name: (length, clip) for length, clip in chosen}.values():
        pcm = read_clip(clip)  # caches and lazily made buffers: once per length, not timed
        for system in (ours, peer):
            system.transcribe(pcm, clip.language)

    pairs: list[Pair] = []
    for number, (length, clip) in enumerate(chosen):
        pcm = read_clip(clip)
        times: dict[str, list[float]] = {ours.name: [], peer.name: []}
        texts: dict[str, str] = {}
        for repeat in range(repeats):
            order = (ours, peer) if (number + repeat) % 2 == 0 else (peer, ours)
            for system in order:
                answer = system.transcribe(pcm, clip.language)
                if answer.error is not None:
                    raise RecogniserFailed(system.name, clip.id, answer.error)
                times[system.name].append(answer.wall_ms)
                texts[system.name] = answer.text
        pairs.append(
            Pair(
                length,
                clip,
                statistics.median(times[ours.name]),
                statistics.median(times[peer.name]),
                texts[ours.name],
                texts[peer.name],
            )
        )
        advance(clip.id)
    return pairs


def summarise(pairs: Sequence[Pair]) -> list[ClassResult]:
    """Return median and quartiles per length, for lengths that have clips."""
    results: list[ClassResult] = []
    for length in LENGTHS:
        group = [pair for pair in pairs if pair.length == length]
        if not group:
            continue
        q1, median, q3 = _quartiles([pair.ratio for pair in group])
        results.append(
            ClassResult(
                length=length.name,
                clips=len(group),
                median_s=statistics.median(pair.clip.seconds for pair in group),
                ours_ms=statistics.median(pair.ours_ms for pair in group),
                peer_ms=statistics.median(pair.peer_ms for pair in group),
                ratio_q1=q1,
                ratio_median=median,
                ratio_q3=q3,
                target=length.target,
            )
        )
    return results


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def ratio_table(pairs: Sequence[Pair], peer: str) -> Table:
    """Median and quartiles of the pairs' ratios."""
    rows = tuple(
        (
            result.length,
            str(result.clips),
            f"{result.median_s:.1f}",
            f"{result.ours_ms:.0f}",
            f"{result.peer_ms:.0f}",
            f"x{result.ratio_median:.1f}",
            f"x{result.ratio_q1:.1f} - x{result.ratio_q3:.1f}",
            f"x{result.target:g}",
        )
        for result in summarise(pairs)
    )
    columns = (
        "length",
        "clips",
        "median s",
        "voiced ms",
        f"{peer} ms",
        "ratio",
        "quartiles",
        "goal",
    )
    return Table(
        "end of segment -> final text",
        columns,
        rows,
        ("times are medians over clips; the ratio is the median of the pairs' ratios",),
    )


def pair_table(pairs: Sequence[Pair], peer: str) -> Table:
    """Every pair."""
    rows = tuple(
        (
            pair.clip.id,
            pair.length.name,
            f"{pair.clip.seconds:.1f}",
            f"{pair.ours_ms:.0f}",
            f"{pair.peer_ms:.0f}",
            f"x{pair.ratio:.1f}",
        )
        for pair in pairs
    )
    return Table("pair by pair", ("clip", "length", "s", "voiced ms", f"{peer} ms", "ratio"), rows)


def text_scores(pairs: Sequence[Pair], normaliser: Normaliser) -> dict[str, dict[str, list[Score]]]:
    """Score both texts of every clip that has a reference: language → system → scores."""
    found: dict[str, dict[str, list[Score]]] = {}
    for pair in pairs:
        if pair.clip.text is None or pair.clip.language is None:
            continue
        language = pair.clip.language
        reference = normaliser.units(pair.clip.text, language)
        systems = found.setdefault(language, {"voiced": [], "peer": []})
        systems["voiced"].append(score(reference, normaliser.units(pair.ours_text, language)))
        systems["peer"].append(score(reference, normaliser.units(pair.peer_text, language)))
    return found


def text_table(pairs: Sequence[Pair], normaliser: Normaliser, peer: str) -> Table:
    """Errors of both on the timed clips: a speed-up must not be bought with words."""
    rows = tuple(
        (
            f"{language} {'CER' if language == 'zh' else 'WER'}",
            str(len(systems["voiced"])),
            f"{error_rate(systems['voiced']):.1f}",
            f"{error_rate(systems['peer']):.1f}",
        )
        for language, systems in sorted(text_scores(pairs, normaliser).items())
    )
    return Table(
        "errors on the same clips, %",
        ("language", "clips", "voiced", peer),
        rows,
        ("few clips: a sign that both did the same work; `voiced bench accuracy` compares them",),
    )


def to_result(pairs: Sequence[Pair], normaliser: Normaliser) -> dict[str, object]:
    """Return everything for the JSON file."""
    return {
        "lengths": summarise(pairs),
        "errors": {
            language: {name: error_rate(scores) for name, scores in systems.items()}
            for language, systems in text_scores(pairs, normaliser).items()
        },
        "pairs": [
            {
                "id": pair.clip.id,
                "length": pair.length.name,
                "seconds": pair.clip.seconds,
                "voiced_ms": pair.ours_ms,
                "peer_ms": pair.peer_ms,
                "ratio": pair.ratio,
                "reference": pair.clip.text,
                "voiced_text": pair.ours_text,
                "peer_text": pair.peer_text,
            }
            for pair in pairs
        ],
    }
