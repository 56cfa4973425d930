"""`voiced tune`: which settings suit this machine, and how many streams it serves. Mostly pure.

First the settings: a daemon for each candidate gets the same recordings as fast as it takes them,
and the one that answers most seconds of speech per second wins (`Knob`, `Probe`). Then the streams:
live runs, by bisection (`voiced.bench.knee`). What comes out is a configuration file with its
evidence as comments.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Dialogue, Spoken
from voiced.daemon import wire

WORTH = 1.03
"""A setting is changed where it makes things this much faster; less is noise."""
SYNTHETIC_S = (1.0, 1.3, 1.6, 2.0, 2.0, 2.5, 2.5, 3.0, 3.0, 3.5, 4.0, 4.0, 5.0, 6.0, 8.0, 11.0)
"""Seconds of speech of a made-up mix: commands, questions and some long sentences."""
_ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting that is tried with several values."""

    key: str
    """`section.key`."""
    values: tuple[Any, ...]
    why: str


def knobs(cores: int, known: Mapping[str, Any], *, quick: bool) -> list[Knob]:
    """Return what there is to turn, the most telling first.

    Args:
        cores: Cores of this machine.
        known: The settings that this daemon has, by their dotted name.
        quick: Only the values at the ends.
    """
    powers = [n for n in (1, 2, 4, 8, 16, 32) if n <= cores]
    if cores not in powers:
        powers.append(cores)
    made = [
        Knob("engine.workers", tuple(powers), "processes that recognise side by side"),
        Knob("engine.threads", tuple(powers), "threads of one graph call"),
        Knob("engine.max_batch", (1, 4, 8) if quick else (1, 2, 4, 8, 16), "segments run together"),
        Knob(
            "engine.batch_wait_ms",
            (0, 30) if quick else (0, 10, 30, 60),
            "how long a segment waits for company",
        ),
    ]
    return [knob for knob in made if knob.key in known and len(knob.values) > 1]


@dataclass(frozen=True, slots=True)
class Probe:
    """One set of settings, saturated."""

    settings: Mapping[str, Any]
    """Beyond those that all probes had."""
    speed: float
    """Seconds of speech answered per second."""
    cpu_per_s: float
    """CPU seconds of the daemon's processes per second of speech."""
    p50_ms: float
    """Of `latency_ms`, the daemon's own figure, with everything waiting: for comparison only."""
    segments: int


def better(probes: Sequence[Probe], current: Probe) -> Probe:
    """Return the fastest probe where it is worth a change, else the current one."""
    best = max(probes, key=lambda probe: probe.speed, default=current)
    return best if best.speed > WORTH * current.speed else current


def synthetic_mix(spoken: dict[str, list[Spoken]]) -> dict[str, list[Spoken]]:
    """Make utterances of common lengths from whatever speech there is.

    The speech of each language is joined and cut; there is no text to compare with.
    """
    mixed: dict[str, list[Spoken]] = {}
    for language, each in spoken.items():
        speech = np.concatenate([s.pcm[s.speech_start : s.speech_end] for s in each])
        edge = np.zeros(RATE_HZ // 5, np.int16)
        place = 0
        for number, seconds in enumerate(SYNTHETIC_S):
            count = round(seconds * RATE_HZ)
            cut = np.take(speech, np.arange(place, place + count), mode="wrap")
            place += count
            pcm = np.concatenate([edge, cut, edge])
            name = f"synthetic-{number}-{seconds:g}s"
            made = Spoken(name, language, None, pcm, len(edge), len(edge) + count)
            mixed.setdefault(language, []).append(made)
    return mixed


async def saturate(url: str, streams: Sequence[tuple[str, Dialogue]]) -> tuple[float, list[float]]:
    """Send all streams as fast as the daemon takes them; return the time and the latencies.

    Raises:
        TimeoutError: It did not answer.
    """
    from websockets.asyncio.client import connect

    latencies: list[float] = []

    async def one(language: str, dialogue: Dialogue) -> None:
        async with connect(url, compression=None, max_size=None) as connection:
            start = wire.Start(v=1, audio=wire.AudioParams(), language=language, partials=False)
            await connection.send(wire.encode(start).decode())

            async def send() -> None:
                while (block := dialogue.block(RATE_HZ // 2)) is not None:
                    await connection.send(block)
                await connection.send(wire.encode(wire.Stop()).decode())

            sender = asyncio.create_task(send())
            try:
                async for data in connection:
                    message = wire.decode_server(data)
                    if isinstance(message, wire.Final) and message.text:
                        latencies.append(float(message.latency_ms))
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    begin_s = time.monotonic()
    async with asyncio.timeout(_ANSWER_S), asyncio.TaskGroup() as tasks:
        for language, dialogue in streams:
            tasks.create_task(one(language, dialogue))
    return time.monotonic() - begin_s, latencies


def median_probe(runs: Sequence[Probe]) -> Probe:
    """Return the run whose speed is the median of its repeats."""
    speeds = sorted(run.speed for run in runs)
    middle = speeds[(len(speeds) - 1) // 2]
    return next(run for run in runs if run.speed == middle)


def first_guess(speed: float, *, share: float, most: int) -> int:
    """Return where the knee is to be expected: at six tenths of what the machine can do at all."""
    return min(max(round(0.6 * speed / share), 1), most)


def run_probe(
    url: str,
    make: Callable[[], Sequence[tuple[str, Dialogue]]],
    settings: Mapping[str, Any],
    cpu_s: Callable[[], float],
) -> Probe:
    """Saturate a daemon once.

    Args:
        url: Its streams.
        make: Makes the dialogues anew: the same sound each time.
        settings: What this daemon was given.
        cpu_s: CPU time of its processes so far.
    """
    streams = make()
    before_s = cpu_s()
    seconds, latencies = asyncio.run(saturate(url, streams))
    said = [placed for _, dialogue in streams for placed in dialogue.placed]
    said_s = sum(each.speech_end - each.speech_start for each in said) / RATE_HZ
    return Probe(
        settings=dict(settings),
        speed=said_s / seconds,
        cpu_per_s=(cpu_s() - before_s) / said_s,
        p50_ms=statistics.median(latencies) if latencies else float("nan"),
        segments=len(latencies),
    )


# ---- gears -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GearFit:
    """How a bundle's gears fit the lengths of a mix."""

    gears: int
    waste: float
    """Part of the encoded frames that is padding, 0 to 1."""
    best: tuple[int, ...]
    """As many lengths, in feature frames of 10 ms, that would pad least."""
    best_waste: float


def fit_gears(
    frames: Sequence[int], gears: Sequence[int], *, most: int = 8, step: int = 25
) -> GearFit | None:
    """Compare the gears of a bundle with the best ones for some lengths.

    Args:
        frames: Feature frames of each segment.
        gears: Lengths that the bundle has.
        most: So many gears are chosen anew at most.
        step: The new ones are multiples of this.

    Returns:
        None where no segment fits any gear.
    """
    from voiced.engine.plan import choose_gears

    used = [(n, min(g for g in gears if g >= n)) for n in frames if 0 < n <= max(gears, default=0)]
    if not used:
        return None
    waste = 1 - sum(n for n, _ in used) / sum(g for _, g in used)
    histogram: dict[int, float] = {}
    for n, _ in used:
        histogram[n] = histogram.get(n, 0) + 1
    choice = choose_gears(histogram, min(most, len(gears)), step=step)
    return GearFit(len(gears), waste, choice.frames, choice.waste)


def segment_frames(spoken: Mapping[str, Sequence[Spoken]], pad_ms: float) -> list[int]:
    """Return the feature frames of the segments that a mix gives: speech and padding around it."""
    return [
        round(((each.speech_end - each.speech_start) / RATE_HZ + 2 * pad_ms / 1000) * 100)
        for group in spoken.values()
        for each in group
    ]


# ---- the file ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Advice:
    """A setting to write, and why."""

    key: str
    value: Any
    why: str


def config_text(heading: Sequence[str], advice: Sequence[Advice]) -> str:
    """Write a configuration file: evidence as comments, one table for each section.

    Args:
        heading: Lines above everything.
        advice: In any order; the sections come in the order of their first setting.
    """
    from voiced.daemon.config import show

    lines = [f"# {line}".rstrip() for line in heading]
    sections: dict[str, list[Advice]] = {}
    for each in advice:
        section, _, _ = each.key.rpartition(".")
        sections.setdefault(section, []).append(each)
    for section, members in sections.items():
        lines += ["", f"[{section}]"]
        for each in members:
            lines += [f"# {each.why}", f"{each.key.rpartition('.')[2]} = {show(each.value)}"]
    return "\n".join(lines) + "\n"
