"""Finding the knee: the largest number of streams that is still served. Pure.

The caller measures what `wanted` says and tells the outcome; a measurement is expensive and noisy,
so each number is asked for once, and the answer is confirmed by a longer run of its own.
"""

from __future__ import annotations

import math

GROWTH = 1.6
"""Step upwards as long as nothing has failed."""
MOST_CONFIRMATIONS = 3
"""Runs that may confirm the answer; one that fails takes the answer down."""


class KneeSearch:
    """Bisection between the largest number that was served and the smallest that was not."""

    def __init__(self, *, guess: int, most: int, most_runs: int = 8) -> None:
        """Begin a search.

        Args:
            guess: Where the knee is expected; measured first.
            most: Never more than this many.
            most_runs: Measurements, confirmations not counted.
        """
        if not 1 <= guess <= most:
            raise ValueError(f"guess must lie between 1 and {most}, not {guess}")
        self._guess, self._most, self._runs = guess, most, most_runs
        self._served, self._refused = 0, most + 1
        self._confirmations = 0
        self._is_confirmed = False

    @property
    def knee(self) -> int:
        """Largest number that was served so far; 0: none."""
        return self._served

    @property
    def is_confirmed(self) -> bool:
        """The last confirmation was served too."""
        return self._is_confirmed

    def wanted(self) -> int | None:
        """The next number to measure; None when the search is over."""
        if self._runs <= 0 or self._refused - self._served <= 1:
            return None
        if self._refused > self._most:  # nothing has failed yet
            above = math.ceil(self._served * GROWTH) if self._served else self._guess
            return min(max(above, self._served + 1), self._most)
        return (self._served + self._refused) // 2

    def tell(self, streams: int, *, is_served: bool) -> None:
        """Enter a measurement."""
        self._runs -= 1
        if is_served:
            self._served = max(self._served, streams)
        else:
            self._refused = min(self._refused, streams)
            self._served = min(self._served, self._refused - 1)

    def to_confirm(self) -> int | None:
        """The number to measure once more, for longer; None when that is done or useless."""
        if self._is_confirmed or not self._served or self._confirmations == MOST_CONFIRMATIONS:
            return None
        return self._served

    def confirm(self, *, is_served: bool) -> None:
        """Enter a confirmation: one that fails takes the knee down, by a tenth at least by one."""
        self._confirmations += 1
        self._is_confirmed = is_served
        if not is_served:
            self._served -= max(1, round(self._served / 10))
