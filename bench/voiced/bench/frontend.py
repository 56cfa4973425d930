"""`voiced bench frontend`: what one stream costs before the recogniser.

Bytes go in as a client sends them (20 ms blocks); decoding, resampling, detector and segmenter are
counted, the network is not. Times are CPU time of the calling thread, best of several rounds, so
other work on the machine disturbs them little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voiced.audio.frames import RATE_HZ, Encoding, SegmentClosed, StreamFormat
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.intake import Intake
from voiced.audio.pcm import Float32, float_to_int16
from voiced.audio.resample import StreamResampler
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadFactory, VadKind
from voiced.bench.report import Table

_BLOCK_MS = 20
_SHARE = 0.9
"""Part of a core that streams may use in the estimate; the rest is the event loop's slack."""
SPEECH_BUDGET_MS = 6.0
SILENCE_BUDGET_MS = 2.0
"""CPU per second of sound for everything but the recogniser; the network's share comes on top."""


@dataclass(frozen=True, slots=True)
class FrontendFigure:
    """One detector on one input format."""

    kind: VadKind
    rate_hz: int
    channels: int
    speech_ms_per_s: float
    """CPU milliseconds per second of speech."""
    silence_ms_per_s: float
    """CPU milliseconds per second of a quiet room (white noise at -60 dBFS)."""
    segments: int
    """Segments found in the speech."""

    def streams_per_core(self, speech_share: float) -> int:
        """Estimate the real-time streams of one core without network and recogniser."""
        mean = speech_share * self.speech_ms_per_s + (1 - speech_share) * self.silence_ms_per_s
        return int(_SHARE * 1000 / mean)


@dataclass(frozen=True, slots=True)
class FrontendFigures:
    """All figures of one run."""

    source: str
    """What the speech was."""
    speech_s: float
    silence_s: float
    figures: Sequence[FrontendFigure] = field(default_factory=tuple)

    def table(self) -> Table:
        """The same for people."""
        rows = tuple(
            (
                f"{figure.kind} {figure.rate_hz} Hz x{figure.channels}",
                f"{figure.speech_ms_per_s:.2f}",
                f"{figure.silence_ms_per_s:.2f}",
                str(figure.segments),
                str(figure.streams_per_core(1.0)),
                str(figure.streams_per_core(0.3)),
            )
            for figure in self.figures
        )
        return Table(
            "frontend: CPU of one stream without network and recogniser",
            (
                "detector, input",
                "ms per s speech",
                "ms per s silence",
                "segments",
                "streams/core, all speech",
                "streams/core, 30 % speech",
            ),
            rows,
            (
                f"speech: {self.source}, {self.speech_s:.0f} s; silence: {self.silence_s:.0f} s",
                f"budget with network: {SPEECH_BUDGET_MS:g} and {SILENCE_BUDGET_MS:g} ms; "
                f"streams are an estimate for {_SHARE:.0%} of a core",
            ),
        )


def run(
    silero_path: Path | None,
    *,
    speech: Float32 | None = None,
    source: str = "synthetic",
    kinds: Sequence[VadKind] = tuple(VadKind),
    formats: Sequence[StreamFormat] = (
        StreamFormat(),
        StreamFormat(rate_hz=8_000),
        StreamFormat(rate_hz=48_000, channels=2),
    ),
    silence_s: float = 30.0,
    rounds: int = 3,
) -> FrontendFigures:
    """Measure every detector on every format.

    Args:
        silero_path: The silero graph, see `VadFactory`.
        speech: float32[n] at 16 kHz; generated sound when None.
        source: What `speech` is, for the report.
        kinds: Detectors.
        formats: Input formats; s16 only.
        silence_s: Length of the quiet room.
        rounds: The best of so many counts.

    Raises:
        VadUnavailable: A detector of `kinds` cannot be made.
    """
    factory = VadFactory(silero_path)
    spoken = synthetic.buzz(30, seed=3) if speech is None else speech
    quiet = synthetic.noise(silence_s, seed=1, level_dbfs=-60)
    figures = []
    for fmt in formats:
        inputs = {"speech": _wire(spoken, fmt), "silence": _wire(quiet, fmt)}
        figures += [_measure(factory, kind, fmt, inputs, rounds) for kind in kinds]
    return FrontendFigures(source, len(spoken) / RATE_HZ, silence_s, tuple(figures))


def _wire(samples: Float32, fmt: StreamFormat) -> bytes:
    if fmt.encoding is not Encoding.S16:
        raise ValueError(f"frontend bench sends {Encoding.S16}, not {fmt.encoding}")
    if fmt.rate_hz != RATE_HZ:
        import soxr

        samples = soxr.resample(samples, RATE_HZ, fmt.rate_hz)
    pcm = float_to_int16(np.clip(samples, -1, 1))
    return np.repeat(pcm[:, np.newaxis], fmt.channels, axis=1).astype("<i2").tobytes()


def _measure(
    factory: VadFactory,
    kind: VadKind,
    fmt: StreamFormat,
    inputs: Mapping[str, bytes],
    rounds: int,
) -> FrontendFigure:
    best: dict[str, float] = {}
    segments: dict[str, int] = {}
    frame_bytes = 2 * fmt.channels
    StreamResampler(fmt.rate_hz).feed(np.zeros(1, np.float32))  # the import is not a stream's cost
    for name, data in inputs.items():
        costs_s = []
        for _ in range(rounds):
            cost_s, segments[name] = _play(factory, kind, fmt, data)
            costs_s.append(cost_s)
        audio_s = len(data) / frame_bytes / fmt.rate_hz
        best[name] = min(costs_s) * 1000 / audio_s
    return FrontendFigure(
        kind, fmt.rate_hz, fmt.channels, best["speech"], best["silence"], segments["speech"]
    )


def _play(factory: VadFactory, kind: VadKind, fmt: StreamFormat, data: bytes) -> tuple[float, int]:
    intake = Intake(fmt)
    front = StreamFront(
        "bench",
        settings=FrontSettings(),
        vad=factory.make(kind),
        next_id=itertools.count(1).__next__,
    )
    block = fmt.rate_hz * _BLOCK_MS // 1000 * 2 * fmt.channels
    segments = 0
    began_ns = time.thread_time_ns()
    for begin in range(0, len(data), block):
        if intake.hold(data[begin : begin + block]) < front.decision_sample:
            continue  # as a session does
        frame = intake.feed()
        if frame is not None:
            segments += sum(isinstance(event, SegmentClosed) for event in front.feed(frame))
    tail = intake.finish()
    events = (front.feed(tail) if tail is not None else []) + front.finish()
    segments += sum(isinstance(event, SegmentClosed) for event in events)
    return (time.thread_time_ns() - began_ns) / 1e9, segments
