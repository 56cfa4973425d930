from __future__ import annotations

import pytest

from voiced.audio.frames import Encoding, StreamFormat
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadKind
from voiced.bench import frontend


def test_every_detector_and_format_is_measured_and_finds_the_speech() -> None:
    found = frontend.run(
        None,
        speech=synthetic.buzz(2, seed=3),
        kinds=[VadKind.WEBRTC],
        formats=[StreamFormat(), StreamFormat(rate_hz=48_000, channels=2)],
        silence_s=1,
        rounds=1,
    )
    assert [(f.rate_hz, f.channels, f.segments) for f in found.figures] == [
        (16_000, 1, 1),
        (48_000, 2, 1),
    ]
    assert all(f.speech_ms_per_s > 0 and f.silence_ms_per_s > 0 for f in found.figures)
    assert len(found.table().rows) == 2


def test_the_estimate_of_streams_weighs_speech_and_silence() -> None:
    figure = frontend.FrontendFigure(VadKind.CASCADE, 16_000, 1, 4.0, 1.0, 1)
    assert figure.streams_per_core(1.0) == 225
    assert figure.streams_per_core(0.0) == 900
    assert figure.streams_per_core(0.5) == 360


def test_a_format_that_it_cannot_send_is_refused() -> None:
    with pytest.raises(ValueError, match="mulaw"):
        frontend.run(None, kinds=[VadKind.WEBRTC], formats=[StreamFormat(Encoding.MULAW)])
