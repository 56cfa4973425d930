"""Percentiles, windows of a run, and whether something stayed flat. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WINDOW_S = 600.0
"""What is compared at both ends of a run: 10 minutes, or a third of a shorter run."""
DELAY_LIMIT = 0.10
"""Part by which the delay at the end may lie above that at the beginning and be called flat."""
MEMORY_LIMIT = 0.05
"""The same for memory."""
_SETTLED = 0.1
"""Part of a run in which memory still fills: buffers and arenas are made when first needed."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Some values: how many, and where they lie."""

    count: int
    p50: float
    p95: float
    p99: float
    most: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed.

    Nearest rank: a value that occurred, and the largest one where there are few. NaN for none.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    rank = max(math.ceil(percent / 100 * len(ordered)), 1)
    return ordered[rank - 1]


def spread(values: Iterable[float | None]) -> Spread:
    """Sum up values; absent ones are left out."""
    known = sorted(value for value in values if value is not None)
    return Spread(
        len(known),
        percentile(known, 50),
        percentile(known, 95),
        percentile(known, 99),
        known[-1] if known else math.nan,
    )


@dataclass(frozen=True, slots=True)
class Drift:
    """The same thing at both ends of a run."""

    what: str
    window_s: float
    first: float
    last: float
    limit: float

    @property
    def change(self) -> float:
        """Part by which the end differs from the beginning; NaN where one is unknown."""
        return (self.last - self.first) / abs(self.first) if self.first else math.nan

    @property
    def is_flat(self) -> bool:
        """It did not grow beyond the limit. Less is flat too; unknown is not."""
        return self.change <= self.limit


def delay_drift(
    points: Sequence[tuple[float, float]], seconds: float, *, percent: float, what: str
) -> Drift:
    """Compare a percentile of the delay in the first and last window.

    Args:
        points: When (seconds of the run) and how long (ms).
        seconds: Length of the run.
        percent: Which percentile.
        what: Its name in reports.
    """
    window_s = min(WINDOW_S, seconds / 3)
    first = [value for at_s, value in points if at_s < window_s]
    last = [value for at_s, value in points if at_s >= seconds - window_s]
    ends = percentile(first, percent), percentile(last, percent)
    return Drift(what, window_s, *ends, DELAY_LIMIT)


def memory_drift(points: Sequence[tuple[float, float]], seconds: float, *, what: str) -> Drift:
    """Compare the median memory of a process behind its filling with that at the end."""
    begin_s = seconds * _SETTLED
    window_s = min(WINDOW_S, (seconds - begin_s) / 3)
    first = [value for at_s, value in points if begin_s <= at_s < begin_s + window_s]
    last = [value for at_s, value in points if seconds - window_s <= at_s < seconds]
    return Drift(what, window_s, percentile(first, 50), percentile(last, 50), MEMORY_LIMIT)
