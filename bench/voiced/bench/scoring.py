"""Word and character errors, their uncertainty, and what counts as a loop. Pure.

English is scored in words, Mandarin in characters. Both sides go through the same normaliser
first (`voiced.bench.normalise`), so that spelling and number formats are not counted as errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LOOP_FACTOR = 2
"""A hypothesis longer than this many references is a loop."""


@dataclass(frozen=True, slots=True)
class Score:
    """One clip: errors and lengths, in words (English) or characters (Mandarin)."""

    errors: int
    reference: int
    hypothesis: int
    is_long_as_written: bool = field(default=True, compare=False)
    """The raw hypothesis is a loop's length too. A normaliser may join "one two three" to one
    unit and leave "1, 2, 3" at three."""

    @property
    def is_loop(self) -> bool:
        """More than twice as long as what was said: the decoder repeated itself."""
        return self.is_long_as_written and self.hypothesis > LOOP_FACTOR * self.reference

    @property
    def is_empty(self) -> bool:
        """Nothing was written although something was said."""
        return self.hypothesis == 0 < self.reference


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure in percent (a difference: in points) with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Return the Levenshtein distance: fewest substitutions, insertions and deletions.

    One row of the usual table per reference unit; the insertions inside a row, which depend on
    their left neighbour, are a running minimum of `cost - column`.
    """
    codes: dict[str, int] = {}
    ref, hyp = (
        np.fromiter((codes.setdefault(unit, len(codes)) for unit in units), np.int64, len(units))
        for units in (reference, hypothesis)
    )
    columns = np.arange(len(hyp) + 1)
    row = columns.copy()
    for unit in ref:
        best = row + 1  # deletion
        best[1:] = np.minimum(best[1:], row[:-1] + (hyp != unit))  # match or substitution
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def score(reference: Sequence[str], hypothesis: Sequence[str]) -> Score:
    """Compare two normalised texts, given as words or characters."""
    return Score(edit_distance(reference, hypothesis), len(reference), len(hypothesis))


def is_long(reference: str, hypothesis: str) -> bool:
    """Compare texts as written: words, or letters and digits where there are no spaces."""
    said, written = reference.split(), hypothesis.split()
    if len(said) <= 1 and len(written) <= 1:
        said, written = (
            [c for c in reference if c.isalnum()],
            [c for c in hypothesis if c.isalnum()],
        )
    return len(written) > LOOP_FACTOR * len(said)


def error_rate(scores: Sequence[Score]) -> float:
    """Return the error rate of a set in percent: all errors over all reference units.

    NaN for a set without reference units. Can exceed 100 when much is inserted.
    """
    reference = sum(s.reference for s in scores)
    return 100 * sum(s.errors for s in scores) / reference if reference else float("nan")


def error_interval(scores: Sequence[Score], *, seed: int = 0) -> Interval:
    """Return the error rate with its bootstrap interval over clips."""
    errors, reference = _columns(scores)
    rates = _resampled_rates((errors,), reference, seed=seed)[0]
    return Interval(error_rate(scores), *_bounds(rates))


def paired_difference(a: Sequence[Score], b: Sequence[Score], *, seed: int = 0) -> Interval:
    """Return rate(a) - rate(b) in points, resampling clips jointly (paired bootstrap).

    `a[i]` and `b[i]` are two systems on the same clip, so what makes a clip hard cancels out.
    Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation", section 3.

    Raises:
        ValueError: The two do not cover the same references.
    """
    errors_a, reference = _columns(a)
    errors_b, reference_b = _columns(b)
    if not np.array_equal(reference, reference_b):
        raise ValueError(
            f"paired scores must have the same references, not {len(a)} and {len(b)} clips "
            "of other lengths"
        )
    rates_a, rates_b = _resampled_rates((errors_a, errors_b), reference, seed=seed)
    return Interval(error_rate(a) - error_rate(b), *_bounds(rates_a - rates_b))


def _columns(scores: Sequence[Score]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    errors = np.array([s.errors for s in scores], dtype=np.int64)
    return errors, np.array([s.reference for s in scores], dtype=np.int64)


def _resampled_rates(
    errors: Sequence[npt.NDArray[np.int64]], reference: npt.NDArray[np.int64], *, seed: int
) -> list[npt.NDArray[np.float64]]:
    """Rates of `RESAMPLES` draws with replacement, the same draws for every system."""
    count = len(reference)
    if count == 0 or not reference.any():
        return [np.full(RESAMPLES, np.nan) for _ in errors]
    # How often each clip is drawn is all that matters: int64[RESAMPLES, count].
    times = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=RESAMPLES
    )
    units = (times @ reference).astype(np.float64)
    units[units == 0] = np.nan  # a draw of nothing but empty references says nothing
    return [100 * (times @ each) / units for each in errors]


def _bounds(rates: npt.NDArray[np.float64]) -> tuple[float, float]:
    if np.isnan(rates).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(rates, (2.5, 97.5))
    return float(low), float(high)
