"""The audio chain of a stream, as its `start` asks for it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from voiced.audio.errors import VadUnavailable
from voiced.audio.frames import Encoding, SegmentClosed, SegmentEvent, SegmentOpened, StreamFormat
from voiced.audio.front import FrontSettings
from voiced.audio.vad import VadFactory, VadKind
from voiced.daemon.chain import AudioChains, front_settings, stream_format
from voiced.daemon.testing import silence
from voiced.daemon.wire import AudioParams, Start, VadParams


def vowel(seconds: float) -> bytes:
    """Return what webrtcvad takes for a voice: harmonics of 120 Hz, four beats a second."""
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    voice = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 25))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_s)
    return (6_000 * voice * loudness / 2).astype("<i2").tobytes()


def chains(kind: VadKind) -> AudioChains:
    ids = itertools.count(5)
    return AudioChains(
        defaults=FrontSettings(),
        vads=VadFactory(None),
        vad_kind=kind,
        next_id=lambda: next(ids),
        longest_s=lambda: 12.0,
    )


def test_the_format_is_that_of_start() -> None:
    audio = AudioParams(encoding="mulaw", rate_hz=8_000, channels=2)
    assert stream_format(audio) == StreamFormat(Encoding.MULAW, 8_000, 2)


def test_a_stream_changes_what_it_names_and_nothing_else() -> None:
    defaults = FrontSettings(end_ms=700, pad_ms=300, min_speech_ms=90, max_segment_s=10)
    assert front_settings(defaults, VadParams(), longest_s=20) == defaults
    asked = VadParams(end_ms=400, pad_ms=0, max_segment_s=5)
    expected = FrontSettings(end_ms=400, pad_ms=0, min_speech_ms=90, max_segment_s=5)
    assert front_settings(defaults, asked, longest_s=20) == expected


@pytest.mark.parametrize(("asked_s", "used_s"), [(None, 12.0), (28, 12.0), (5, 5)])
def test_no_segment_is_longer_than_the_engine_takes(asked_s: float | None, used_s: float) -> None:
    vad = VadParams(max_segment_s=asked_s)
    assert front_settings(FrontSettings(), vad, longest_s=12.0).max_segment_s == used_s


def test_a_stream_chooses_its_detector_and_a_missing_one_is_named() -> None:
    make = chains(VadKind.WEBRTC)
    make("s", Start(v=1, audio=AudioParams()))
    with pytest.raises(VadUnavailable, match="silero vad model not found"):
        make("s", Start(v=1, audio=AudioParams(), vad=VadParams(kind="cascade")))


def test_the_chain_carries_the_streams_name_and_language_into_its_segments() -> None:
    start = Start(v=1, audio=AudioParams(), language="zh", vad=VadParams(max_segment_s=2))
    intake, front = chains(VadKind.WEBRTC)("desk", start)
    events: list[SegmentEvent] = []
    for block in (silence(0.5), vowel(3.0), silence(1.5)):
        frame = intake.feed(block)
        assert frame is not None
        events += front.feed(frame)
    events += front.finish()
    opened = [event for event in events if isinstance(event, SegmentOpened)]
    closed = [event.segment for event in events if isinstance(event, SegmentClosed)]
    assert [segment.id for segment in closed] == [event.segment for event in opened]
    assert closed[0].id == 5
    assert {(segment.stream, segment.language) for segment in closed} == {("desk", "zh")}
    assert all(segment.duration_s <= 2 for segment in closed)
