from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import pytest

from voiced.bench import accuracy
from voiced.bench.accuracy import GroupResult, Outcome, Policy, Sound, policy_config
from voiced.bench.corpus import Clip
from voiced.bench.normalise import builtin_normaliser
from voiced.bench.published import FIGURES, SYSTEMS, published_table
from voiced.bench.scoring import Interval, Score, score
from voiced.bench.systems import Answer, Pcm
from voiced.engine.types import EngineConfig


def clip(
    name: str, text: str | None = "one", language: str | None = "en", *, tags: Sequence[str] = ()
) -> Clip:
    return Clip(name, Path(f"{name}.wav"), text, language, frozenset(tags), 1.0, name.split("/")[0])


def outcome(name: str, reference: str, language: str = "en", **texts: str) -> Outcome:
    answers = {system: Answer(text, 10.0) for system, text in texts.items()}
    scores = {system: score(reference.split(), text.split()) for system, text in texts.items()}
    return Outcome(clip(name, reference, language), answers, scores)


class Scripted:
    def __init__(self, name: str, texts: dict[int, str]) -> None:
        self.name, self._texts = name, texts

    def transcribe(self, pcm: Pcm, language: str | None) -> Answer:
        return Answer(self._texts[len(pcm)], 1.0)


def test_the_baseline_differs_from_what_is_shipped_in_its_padding_alone() -> None:
    config = EngineConfig(bundle_dir="x", beam=3, threads=2, options={"other": "1"})
    assert policy_config(config, Policy.SHIPPED) == config
    baseline = policy_config(config, Policy.PAD30)
    assert baseline.options == {"other": "1", "pad_30s": "1", "tail": "0"}
    assert (baseline.beam, baseline.threads, baseline.bundle_dir) == (3, 2, "x")


def test_clips_that_nothing_can_be_said_about_are_left_out() -> None:
    unwritten = clip("intents/a", None)
    noise = clip("noise/a", None, None, tags=["non-speech"])
    assert accuracy.usable([clip("en/a"), unwritten, noise]) == [clip("en/a"), noise]


def test_every_system_hears_every_clip_and_is_scored_after_normalising(tmp_path: Path) -> None:
    clips = []
    for name, samples, text, language in (
        ("a", 160, "Open the window.", "en"),
        ("b", 320, "打开车窗", "zh"),
    ):
        path = tmp_path / f"{name}.wav"
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16_000)
            out.writeframes(bytes(2 * samples))
        clips.append(Clip(name, path, text, language, frozenset(), samples / 16_000, "set"))
    systems = [
        Scripted("one", {160: "open the WINDOW", 320: "打开天窗。"}),
        Scripted("two", {160: "open window", 320: "打開車窗"}),
    ]
    seen: list[str] = []

    english, mandarin = accuracy.measure_speech(clips, systems, builtin_normaliser(), seen.append)

    assert seen == ["a", "b"]
    assert english.scores == {"one": Score(0, 3, 3), "two": Score(1, 3, 2)}
    assert mandarin.scores == {"one": Score(1, 4, 4), "two": Score(0, 4, 4)}


def test_words_and_characters_are_never_added_up() -> None:
    outcomes = [
        outcome("long/a", "a b", "en", ours="a b"),
        outcome("long/b", "x y", "zh", ours="x"),
        outcome("zh_cars/c", "x y", "zh", ours="x y"),
    ]
    results = accuracy.summarise(outcomes, "ours")
    assert [(each.group, each.unit, each.clips) for each in results] == [
        ("long en", "WER", 1),
        ("long zh", "CER", 1),
        ("zh_cars", "CER", 1),
        ("all en", "WER", 1),
        ("all zh", "CER", 2),
    ]
    assert [each.error.value for each in results] == [0, 50, 0, 0, 25]


def test_loops_empty_and_failed_clips_are_counted_and_named() -> None:
    looped = outcome("en/loop", "so", ours="so so so")
    empty = outcome("en/empty", "hello", ours="")
    failed = Outcome(
        clip("en/failed"), {"ours": Answer("", 1.0, "no_gear: too long")}, {"ours": Score(1, 1, 0)}
    )
    table = accuracy.system_table("ours", [looped, empty, failed])
    assert table.rows[0][6:9] == ("1", "2", "1")
    assert any("en/loop: so -> so so so" in note for note in table.notes)
    assert any("en/failed: no_gear: too long" in note for note in table.notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_held"),
    [("a b", "a b", True), ("a b", "a x", True), ("a x", "a b", False)],
)
def test_the_guard_is_held_by_a_system_that_is_not_worse(
    ours: str, theirs: str, is_held: bool
) -> None:
    outcomes = [outcome(f"en/{n}", "a b", ours=ours, theirs=theirs) for n in range(5)]
    by_set, by_language = accuracy.compare(outcomes, "ours", "theirs")
    assert (by_set.group, by_language.group) == ("en", "all en")
    assert by_language.is_held is is_held
    (row, _) = accuracy.difference_table(outcomes, "ours", ["theirs"]).rows
    assert row[3] == ("held" if is_held else "not held")


def test_lyrics_are_no_false_text() -> None:
    sounds = [
        Sound(clip("noise/dog", None, None, tags=["non-speech"]), 1, "oh"),
        Sound(clip("noise/rain", None, None, tags=["non-speech"]), 0, ""),
        Sound(clip("music/song", None, None, tags=["non-speech", "vocals"]), 2, "let's go"),
    ]
    table = accuracy.sound_table(sounds)
    assert table.rows == (
        ("music", "1", "1", "0", "0.0"),
        ("noise", "2", "1", "1", "50.0"),
        ("all", "3", "2", "1", "33.3"),
    )
    assert table.notes == (
        "false text: noise/dog: oh",
        "lyrics, not counted: music/song: let's go",
    )


def test_the_json_result_has_the_texts_of_every_clip() -> None:
    outcomes = [outcome("en/a", "a b", ours="a b", theirs="a")]
    result = accuracy.to_result(outcomes, [], ["ours", "theirs"])
    (row,) = result["clips"]  # type: ignore[misc]
    assert row["answers"]["theirs"].text == "a"
    assert set(result) == {"systems", "differences", "clips", "sounds"}
    assert accuracy.to_result([], [], ["ours"])["systems"] == {}


def test_published_figures_stand_beside_ours() -> None:
    def group(name: str, value: float) -> GroupResult:
        return GroupResult(name, "CER", 7, 70.0, Interval(value, 0, 1), 0, 0, 0, 1.0)

    assert published_table({"shipped": [group("zh_read", 5.0), group("all zh", 5.0)]}) is None
    table = published_table({"shipped": [group("kespeech-test", 3.64), group("all zh", 5.0)]})
    assert table is not None
    assert table.columns[:5] == ("set", "unit", "clips", "shipped", "FireRedASR-AED")
    assert table.rows == (("kespeech-test", "CER", "7", "3.64", "4.48", "3.60", "-", "-", "-"),)


def test_every_published_row_has_a_figure_for_each_system() -> None:
    assert {len(row) for row in FIGURES.values()} == {len(SYSTEMS)}
