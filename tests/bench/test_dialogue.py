"""Dialogues: how much is said, when, and that they are the same each time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.frames import RATE_HZ
from voiced.bench.corpus import Clip
from voiced.bench.dialogue import (
    LEAST_PAUSE_S,
    Dialogue,
    Placed,
    Spoken,
    choose,
    dialogues,
    languages_of,
    mark_speech,
)
from voiced.bench.errors import CorpusError
from voiced.daemon.testing import LoudnessVad


def spoken(name: str, seconds: float, *, language: str = "en", value: int = 9_000) -> Spoken:
    count = round(seconds * RATE_HZ)
    edge = count // 10
    return Spoken(name, language, name, np.full(count, value, np.int16), edge, count - edge)


def play(dialogue: Dialogue, block: int = 800) -> tuple[np.ndarray, list[Placed]]:
    parts, placed = [], []
    while (part := dialogue.block(block)) is not None:
        parts.append(np.frombuffer(part, "<i2"))
        while dialogue.placed:
            placed.append(dialogue.placed.popleft())
    return np.concatenate(parts), placed


SAID = [spoken("a", 2.0, value=9_000), spoken("b", 5.0, value=8_000), spoken("c", 3.0)]


def test_a_dialogue_is_as_long_as_asked_for_and_two_fifths_of_it_are_speech() -> None:
    pcm, placed = play(Dialogue(SAID, seed=1, seconds=600))
    assert len(pcm) == 600 * RATE_HZ
    speech = sum(each.speech_end - each.speech_start for each in placed)
    assert 0.37 < speech / len(pcm) < 0.43


def test_utterances_lie_where_the_dialogue_says_with_a_quiet_room_between_them() -> None:
    pcm, placed = play(Dialogue(SAID, seed=2, seconds=60), block=777)
    is_said = np.zeros(len(pcm), bool)
    for each in placed:
        end = each.start + len(each.spoken.pcm)
        assert (pcm[each.start : end] == each.spoken.pcm).all()
        is_said[each.start : end] = True
    room = pcm[~is_said]
    assert 0 < np.abs(room).max() < 100
    for before, after in itertools.pairwise(placed):
        assert after.start - before.start - len(before.spoken.pcm) >= LEAST_PAUSE_S * RATE_HZ
    assert placed[-1].start + len(placed[-1].spoken.pcm) <= len(pcm) - RATE_HZ


def test_a_seed_gives_the_same_sound_whatever_the_block_length_and_another_gives_another() -> None:
    first, _ = play(Dialogue(SAID, seed=3, seconds=20), block=800)
    again, _ = play(Dialogue(SAID, seed=3, seconds=20), block=320)
    other, _ = play(Dialogue(SAID, seed=4, seconds=20), block=800)
    assert (first == again).all()
    assert (first != other).any()


def test_everything_is_said_once_before_anything_is_said_again() -> None:
    _, placed = play(Dialogue(SAID, seed=5, seconds=120))
    assert {each.spoken.clip for each in placed[:3]} == {"a", "b", "c"}
    assert [each.number for each in placed] == list(range(len(placed)))


def test_even_streams_speak_english_and_odd_ones_mandarin_where_there_is_some() -> None:
    assert languages_of(3, ["zh", "en"]) == ["en", "zh", "en"]
    assert languages_of(2, ["de"]) == ["de", "de"]
    both = {"en": SAID, "zh": [spoken("d", 2.0, language="zh")]}
    made = dialogues(both, 2, seconds=30)
    assert [language for language, _ in made] == ["en", "zh"]
    assert {each.spoken.language for each in play(made[1][1])[1]} == {"zh"}


def test_no_dialogue_without_anything_to_say() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Dialogue([], seed=0, seconds=1)


def clip(name: str, seconds: float, language: str | None = "en", tags: Sequence[str] = ()) -> Clip:
    return Clip(name, Path(name), name, language, frozenset(tags), seconds, "set")


def test_clips_are_chosen_by_language_and_length() -> None:
    clips = [clip("short", 0.4), clip("fit", 3.0), clip("ni", 3.0, "zh"), clip("long", 20.0)]
    clips.append(clip("hum", 3.0, None, ["non-speech"]))
    found = choose(clips, per_language=5)
    assert {language: [c.id for c in each] for language, each in found.items()} == {
        "en": ["fit"],
        "zh": ["ni"],
    }
    with pytest.raises(CorpusError, match=r"no speech clip of 1\.5 to 8 s"):
        choose([clip("short", 0.4)], per_language=5)


def test_speech_is_marked_by_the_detector_and_is_everything_where_it_hears_nothing() -> None:
    pcm = np.concatenate([np.zeros(3_200), np.full(6_400, 9_000), np.zeros(3_205)]).astype(np.int16)
    assert mark_speech(pcm, LoudnessVad()) == (3_200, 9_600)
    assert mark_speech(np.zeros(900, np.int16), LoudnessVad()) == (0, 900)
    assert mark_speech(np.zeros(10, np.int16), LoudnessVad()) == (0, 10)
