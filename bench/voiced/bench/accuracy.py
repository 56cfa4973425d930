"""`voiced bench accuracy`: errors of the shipped policy against the same model at 30-s padding.

Every clip goes to every system in turn, with its language pinned, as one segment. Noise and music
go through the daemon's default endpointing first, with no language pinned: what counts there is
whether any text comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from voiced.bench.corpus import VOCALS, Clip
from voiced.bench.normalise import Normaliser
from voiced.bench.report import Table
from voiced.bench.scoring import (
    LOOP_FACTOR,
    RESAMPLES,
    Interval,
    Score,
    error_interval,
    is_long,
    paired_difference,
    score,
)
from voiced.bench.systems import Answer, System, Voiced, read_clip
from voiced.engine.types import EngineConfig

MAX_DIFFERENCE = 0.5
MAX_UPPER_BOUND = 2.0
"""The accuracy guard, in points: how much worse than its comparison the shipped policy may be,
and how much its 95 % interval may leave open (250 clips cannot resolve less)."""

_SHOWN_CHARS = 60


class Policy(StrEnum):
    """How long the encoder's input is."""

    SHIPPED = "shipped"
    """The tightest gear with the silence tail: what the daemon runs."""
    PAD30 = "pad30"
    """Every segment padded to 30 s, as Whisper was trained: the baseline."""


def policy_config(config: EngineConfig, policy: Policy) -> EngineConfig:
    """Return the engine configuration of a policy; model, beam and threads stay."""
    if policy is Policy.SHIPPED:
        return config
    return replace(config, options={**config.options, "pad_30s": "1", "tail": "0"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One speech clip: what was said, and what each system made of it."""

    clip: Clip
    answers: Mapping[str, Answer]
    """By system."""
    scores: Mapping[str, Score]


@dataclass(frozen=True, slots=True)
class Sound:
    """One clip without speech at the daemon's default settings."""

    clip: Clip
    segments: int
    """Segments that the detector let through."""
    text: str

    @property
    def is_false_text(self) -> bool:
        """Text where nobody speaks; lyrics of a sung clip are none."""
        return bool(self.text) and VOCALS not in self.clip.tags


def usable(clips: Iterable[Clip]) -> list[Clip]:
    """Keep what can be scored: speech with a text, and sounds without speech."""
    return [
        clip
        for clip in clips
        if not clip.is_speech or (clip.text is not None and clip.language is not None)
    ]


def measure_speech(
    clips: Sequence[Clip],
    systems: Sequence[System],
    normaliser: Normaliser,
    advance: Callable[[str], None],
) -> list[Outcome]:
    """Run every system on every speech clip and score the texts.

    Raises:
        MediaError: A recording cannot be decoded.
    """
    outcomes: list[Outcome] = []
    for clip in clips:
        if clip.text is None or clip.language is None:
            raise ValueError(f"clip {clip.id} has no text or no language; expected usable clips")
        pcm = read_clip(clip)
        reference = normaliser.units(clip.text, clip.language)
        answers = {system.name: system.transcribe(pcm, clip.language) for system in systems}
        scores = {
            name: replace(
                score(reference, normaliser.units(answer.text, clip.language)),
                is_long_as_written=is_long(clip.text, answer.text),
            )
            for name, answer in answers.items()
        }
        outcomes.append(Outcome(clip, answers, scores))
        advance(clip.id)
    return outcomes


def measure_sounds(
    clips: Sequence[Clip], system: Voiced, advance: Callable[[str], None]
) -> list[Sound]:
    """Send clips without speech through endpointing and recogniser.

    Raises:
        MediaError: A recording cannot be decoded.
        VadUnavailable: The detector's model is missing.
    """
    sounds: list[Sound] = []
    for clip in clips:
        segments = system.cut(read_clip(clip), None)
        sounds.append(Sound(clip, len(segments), system.recognise(segments).text))
        advance(clip.id)
    return sounds


# ---- summaries ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupResult:
    """One system on one set, or on all clips of one language."""

    group: str
    unit: str
    """`WER` or `CER`."""
    clips: int
    seconds: float
    error: Interval
    """Percent."""
    loops: int
    empty: int
    failed: int
    mean_ms: float
    """Mean wall time of a clip; other work on the machine is in it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference of two systems on one group."""

    group: str
    subject: str
    against: str
    points: Interval
    """rate(subject) - rate(against); below 0 the subject is better."""
    is_held: bool
    """Within `MAX_DIFFERENCE`, upper bound within `MAX_UPPER_BOUND`."""


def grouped(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the clips by set (by set and language where a set mixes them), then by language.

    Words and characters are never added up, so there is no total over languages.
    """
    languages: dict[str, set[str]] = {}
    for outcome in outcomes:
        languages.setdefault(outcome.clip.set, set()).add(outcome.clip.language or "")
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        clip = outcome.clip
        mixed = len(languages[clip.set]) > 1
        groups.setdefault(f"{clip.set} {clip.language}" if mixed else clip.set, []).append(outcome)
    for outcome in sorted(outcomes, key=lambda each: each.clip.language or ""):
        groups.setdefault(f"all {outcome.clip.language}", []).append(outcome)
    return groups


def summarise(outcomes: Sequence[Outcome], system: str) -> list[GroupResult]:
    """Return one system's figures for every group."""
    return [_summarise(name, group, system) for name, group in grouped(outcomes).items()]


def _summarise(name: str, group: Sequence[Outcome], system: str) -> GroupResult:
    scores = [outcome.scores[system] for outcome in group]
    answers = [outcome.answers[system] for outcome in group]
    return GroupResult(
        group=name,
        unit="CER" if group[0].clip.language == "zh" else "WER",
        clips=len(group),
        seconds=sum(outcome.clip.seconds for outcome in group),
        error=error_interval(scores),
        loops=sum(each.is_loop for each in scores),
        empty=sum(each.is_empty for each in scores),
        failed=sum(answer.error is not None for answer in answers),
        mean_ms=sum(answer.wall_ms for answer in answers) / len(answers),
    )


def compare(outcomes: Sequence[Outcome], subject: str, against: str) -> list[Difference]:
    """Return the paired difference of two systems for every group."""
    differences: list[Difference] = []
    for name, group in grouped(outcomes).items():
        points = paired_difference(
            [outcome.scores[subject] for outcome in group],
            [outcome.scores[against] for outcome in group],
        )
        held = points.value <= MAX_DIFFERENCE and points.high <= MAX_UPPER_BOUND
        differences.append(Difference(name, subject, against, points, held))
    return differences


# ---- tables ------------------------------------------------------------------------------------


def system_table(system: str, outcomes: Sequence[Outcome]) -> Table:
    """One row per group; loops, empty and failed clips are named below."""
    rows = tuple(
        (
            result.group,
            result.unit,
            str(result.clips),
            f"{result.seconds:.0f}",
            f"{result.error.value:.2f}",
            f"[{result.error.low:.2f}, {result.error.high:.2f}]",
            str(result.loops),
            str(result.empty),
            str(result.failed),
            f"{result.mean_ms:.0f}",
        )
        for result in summarise(outcomes, system)
    )
    columns = ("set", "unit", "clips", "s", "%", "95 %", "loops", "empty", "failed", "ms/clip")
    return Table(f"{system}: errors per set", columns, rows, tuple(_remarkable(system, outcomes)))


def _remarkable(system: str, outcomes: Sequence[Outcome]) -> Iterable[str]:
    for outcome in outcomes:
        answer, clip = outcome.answers[system], outcome.clip
        if outcome.scores[system].is_loop:
            yield (
                f"loop (more than {LOOP_FACTOR}x the reference): {clip.id}: "
                f"{_short(clip.text or '')} -> {_short(answer.text)}"
            )
        if answer.error is not None:
            yield f"failed: {clip.id}: {answer.error}"


def difference_table(outcomes: Sequence[Outcome], subject: str, others: Sequence[str]) -> Table:
    """Paired differences of the subject to every other system."""
    rows = tuple(
        (
            f"{each.group} - {each.against}",
            f"{each.points.value:+.2f}",
            f"[{each.points.low:+.2f}, {each.points.high:+.2f}]",
            "held" if each.is_held else "not held",
        )
        for other in others
        for each in compare(outcomes, subject, other)
    )
    return Table(
        f"{subject} minus the same clips elsewhere, points",
        ("set - compared with", "difference", "95 %", "guard"),
        rows,
        (
            f"paired bootstrap over clips, {RESAMPLES} resamples; guard: difference <= "
            f"+{MAX_DIFFERENCE}, upper bound <= +{MAX_UPPER_BOUND}; it is meant for the rows "
            "`all ..`: single sets are too small",
        ),
    )


def sound_table(sounds: Sequence[Sound]) -> Table:
    """False texts per set of clips without speech."""
    sets: dict[str, list[Sound]] = {}
    for sound in sounds:
        sets.setdefault(sound.clip.set, []).append(sound)
    rows = [
        _sound_row(name, group) for name, group in (*sorted(sets.items()), ("all", list(sounds)))
    ]
    notes = [
        f"{'false text' if sound.is_false_text else 'lyrics, not counted'}: "
        f"{sound.clip.id}: {_short(sound.text)}"
        for sound in sounds
        if sound.text
    ]
    return Table(
        "noise and music at the daemon's default settings",
        ("set", "clips", "reached recogniser", "false text", "%"),
        tuple(rows),
        tuple(notes),
    )


def _sound_row(name: str, sounds: Sequence[Sound]) -> tuple[str, ...]:
    false = sum(sound.is_false_text for sound in sounds)
    reached = sum(sound.segments > 0 for sound in sounds)
    return name, str(len(sounds)), str(reached), str(false), f"{100 * false / len(sounds):.1f}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def to_result(
    outcomes: Sequence[Outcome], sounds: Sequence[Sound], names: Sequence[str]
) -> dict[str, object]:
    """Return everything for the JSON file, the texts of every clip included."""
    return {
        "systems": {name: summarise(outcomes, name) for name in names} if outcomes else {},
        "differences": [
            each
            for other in names[1:]
            for each in (compare(outcomes, names[0], other) if outcomes else [])
        ],
        "clips": [
            {
                "id": outcome.clip.id,
                "set": outcome.clip.set,
                "language": outcome.clip.language,
                "seconds": outcome.clip.seconds,
                "reference": outcome.clip.text,
                "answers": outcome.answers,
                "scores": outcome.scores,
            }
            for outcome in outcomes
        ],
        "sounds": [
            {
                "id": sound.clip.id,
                "set": sound.clip.set,
                "segments": sound.segments,
                "text": sound.text,
                "is_false_text": sound.is_false_text,
            }
            for sound in sounds
        ],
    }
