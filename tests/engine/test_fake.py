"""The fake recogniser: its text follows from the sound, its faults from its options."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.frames import Segment
from voiced.engine.backends.fake import FakeRecognizer, matches
from voiced.engine.errors import BackendFailed, BackendUnavailable, BundleError, NoGearError
from voiced.engine.recognizer import load_recognizer
from voiced.engine.types import EngineConfig, Request, RequestKind, Transcript


def beeps(count: int, *, peak: int = 8_000) -> np.ndarray:
    """Return `count` tones of 0.2 s with pauses of 0.2 s between and around them."""
    tone = (peak * np.sin(2 * np.pi * 440 * np.arange(3_200) / 16_000)).astype(np.int16)
    pause = np.zeros(3_200, dtype=np.int16)
    return np.concatenate([pause, *[part for _ in range(count) for part in (tone, pause)]])


def ask(pcm: np.ndarray, *, language: str | None = None, kind: str = "final") -> Request:
    return Request(Segment(5, "mic", 1_600, pcm, language), RequestKind(kind), 3)


def config(**options: str) -> EngineConfig:
    return EngineConfig("fake", options=options)


def answer(recognizer: FakeRecognizer, request: Request) -> Transcript:
    (outcome,) = recognizer.recognize([request])
    assert isinstance(outcome, Transcript)
    return outcome


def test_the_text_counts_the_bursts_of_sound() -> None:
    recognizer = FakeRecognizer(config())
    transcript = answer(recognizer, ask(beeps(3)))
    assert (transcript.text, transcript.language) == ("one two three", "en")
    assert (transcript.segment, transcript.revision, transcript.is_final) == (5, 3, True)
    first = transcript.words[0]
    assert first.text == "one"
    assert abs(first.start_ms - 300) <= 2
    assert abs(first.end_ms - 500) <= 2
    assert answer(recognizer, ask(beeps(2), language="zh")).text == "一二"
    assert answer(recognizer, ask(beeps(0))).text == ""
    assert answer(recognizer, ask(np.zeros(0, dtype=np.int16))).text == ""


def test_a_growing_segment_gives_a_growing_text() -> None:
    recognizer, pcm = FakeRecognizer(config()), beeps(4)
    texts = [
        answer(recognizer, ask(pcm[:end], kind="partial")).text for end in range(0, 30_000, 999)
    ]
    assert all(new.startswith(old) for old, new in itertools.pairwise(texts))
    assert texts[-1] == "one two three four"


def test_requests_of_one_kind_and_gear_share_a_key() -> None:
    recognizer = FakeRecognizer(config())
    assert recognizer.batch_key(ask(beeps(2))) == recognizer.batch_key(ask(beeps(1)))
    assert recognizer.batch_key(ask(beeps(2))) != recognizer.batch_key(ask(beeps(9)))
    assert recognizer.batch_key(ask(beeps(1))) != recognizer.batch_key(
        ask(beeps(1), kind="partial")
    )


def test_a_segment_longer_than_every_gear_fails_alone() -> None:
    recognizer = FakeRecognizer(config(max_segment_s="1"))
    good, bad = recognizer.recognize([ask(beeps(1)), ask(beeps(9))])
    assert isinstance(good, Transcript)
    assert isinstance(bad, NoGearError)


def test_options_make_it_fail() -> None:
    with pytest.raises(BackendFailed, match="segment 5"):
        FakeRecognizer(config(fail_on="always")).recognize([ask(beeps(1))])
    with pytest.raises(RuntimeError, match="fake bug"):
        FakeRecognizer(config(raise_on="language:xx")).recognize([ask(beeps(1), language="xx")])
    with pytest.raises(BundleError, match="build it"):
        load_recognizer(config(start="bundle_error"))
    with pytest.raises(BackendUnavailable, match="no option"):
        FakeRecognizer(config(crash="always"))


def test_once_lets_a_trigger_act_one_time(tmp_path: Path) -> None:
    recognizer = FakeRecognizer(config(fail_on="always", once=str(tmp_path / "acted")))
    with pytest.raises(BackendFailed):
        recognizer.recognize([ask(beeps(1))])
    assert answer(recognizer, ask(beeps(1))).text == "one"


@pytest.mark.parametrize(
    ("trigger", "meets"),
    [
        ("always", True),
        ("language:en", True),
        ("language:zh", False),
        ("stream:mic", True),
        ("kind:partial", False),
        ("samples:9600", True),
        ("samples:9599", False),
        ("peak:7000", True),
        ("peak:9000", False),
    ],
)
def test_a_trigger_looks_at_the_request(trigger: str, meets: bool) -> None:
    assert matches(trigger, ask(beeps(1), language="en")) is meets


def test_an_unknown_trigger_is_named() -> None:
    with pytest.raises(BackendUnavailable, match="moon"):
        matches("moon:full", ask(beeps(1)))
