"""Gear choice: pure arithmetic over a bundle's compiled shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from voiced.engine.errors import NoGearError
from voiced.engine.types import Gear


class GearSet:
    """The compiled input shapes of a bundle, smallest padded area first."""

    def __init__(self, gears: Iterable[Gear]) -> None:
        self._gears = tuple(sorted(set(gears), key=lambda g: (g.batch * g.frames, g.batch)))

    def __iter__(self) -> Iterator[Gear]:
        return iter(self._gears)

    def __len__(self) -> int:
        return len(self._gears)

    @property
    def max_frames(self) -> int:
        """Feature frames of the longest gear."""
        return max((g.frames for g in self._gears), default=0)

    def pick(self, batch: int, frames: int) -> Gear:
        """Return the cheapest gear that holds `batch` inputs of `frames` feature frames.

        Args:
            batch: Segments to run together, at least 1.
            frames: The longest input, in feature frames of 10 ms.

        Raises:
            NoGearError: Nothing is large enough; the caller splits the segment.
        """
        for gear in self._gears:
            if gear.batch >= batch and gear.frames >= frames:
                return gear
        raise NoGearError(batch, frames, self._gears)

    def largest_batch(self, frames: int) -> int:
        """Most inputs of `frames` feature frames that one gear of exactly that length takes."""
        return max((g.batch for g in self._gears if g.frames == frames), default=0)
