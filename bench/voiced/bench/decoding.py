"""What a decoder step costs when utterances share it: by their number, and by how they differ.

CPU time of the process, so that other work on the machine hardly counts; the arrangements take
turns, so that what it does to the caches hits all of them. Each is measured over the first steps
of its utterances, where all are still at work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from voiced.audio.frames import RATE_HZ, Segment
from voiced.bench.report import Progress, Table
from voiced.bench.systems import Pcm
from voiced.engine.batch import Batch
from voiced.engine.types import Request, RequestKind

STEPS = 6
"""Steps measured after each start. The shortest text must not end before."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Utterances that share a batch."""

    name: str
    seconds: tuple[float, ...]
    kind: RequestKind = RequestKind.FINAL


@dataclass(frozen=True, slots=True)
class StepCost:
    """What its steps cost."""

    arrangement: Arrangement
    step_ms: float
    """Median CPU time of one step."""
    spread_ms: tuple[float, float]
    """Quartiles."""
    steps: int

    @property
    def each_ms(self) -> float:
        """Of one utterance."""
        return self.step_ms / len(self.arrangement.seconds)


def plan(sizes: Sequence[int], seconds: float, short_s: float, long_s: float) -> list[Arrangement]:
    """Batches of equal utterances, of finals and of partials, and short ones beside a long one."""
    found = [
        Arrangement(f"{n} {kind}s of {seconds:g} s", (seconds,) * n, kind)
        for kind in (RequestKind.FINAL, RequestKind.PARTIAL)
        for n in sizes
    ]
    found.append(Arrangement(f"1 final of {long_s:g} s", (long_s,)))
    for n in (1, 3):
        found.append(Arrangement(f"{n} finals of {short_s:g} s", (short_s,) * n))
        together = (*(short_s,) * n, long_s)
        found.append(Arrangement(f"{n} of {short_s:g} s and 1 of {long_s:g} s", together))
    return found


def measure(
    batch: Batch, arrangements: Sequence[Arrangement], sound: Pcm, *, rounds: int, advance: Progress
) -> list[StepCost]:
    """Run every arrangement once a round.

    Args:
        batch: An empty batch with room for the largest arrangement.
        arrangements: What is measured.
        sound: Speech, repeated or cut to the lengths wanted.
        rounds: How often.
        advance: Told each arrangement that was run.
    """
    times: dict[str, list[float]] = {each.name: [] for each in arrangements}
    for _ in range(rounds):
        for each in arrangements:
            for ticket, seconds in enumerate(each.seconds):
                batch.join(ticket, _request(ticket, sound, seconds, each.kind))
            for _ in range(STEPS):
                if len(batch) < len(each.seconds):
                    break  # a text ended: what follows is another arrangement
                began = time.process_time()
                batch.step()
                times[each.name].append((time.process_time() - began) * 1000)
            batch.clear()
            advance(each.name)
    return [_cost(each, times[each.name]) for each in arrangements]


def _request(ticket: int, sound: Pcm, seconds: float, kind: RequestKind) -> Request:
    pcm = np.resize(sound, round(seconds * RATE_HZ)).astype(np.int16)
    return Request(Segment(ticket, "bench", 0, pcm, "en"), kind)


def _cost(arrangement: Arrangement, times: Sequence[float]) -> StepCost:
    low, high = (float(x) for x in np.percentile(times, (25, 75)))
    return StepCost(arrangement, median(times), (low, high), len(times))


def tables(costs: Sequence[StepCost]) -> list[Table]:
    """Everything that was found, for people."""
    first: dict[RequestKind, float] = {}
    rows = []
    for cost in costs:
        arrangement = cost.arrangement
        if len({*arrangement.seconds}) == 1:
            first.setdefault(arrangement.kind, cost.each_ms)
        rows.append(
            (
                arrangement.name,
                str(cost.steps),
                f"{cost.step_ms:.1f}",
                f"{cost.spread_ms[0]:.1f}-{cost.spread_ms[1]:.1f}",
                f"{cost.each_ms:.2f}",
                f"{cost.each_ms / first[arrangement.kind]:.2f}",
            )
        )
    notes = (
        "CPU time; ratio: an utterance's share against one alone in the first row of its kind",
        "different lengths: compare the row of both together with the sum of the two apart",
    )
    columns = ("who shares the step", "steps", "ms a step", "quartiles", "ms each", "ratio")
    return [Table("decoder steps", columns, tuple(rows), notes)]
