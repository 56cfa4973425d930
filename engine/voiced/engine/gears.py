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

    def to_warm(self, longest_frames: int, *, compiles_shapes: bool) -> list[Gear]:
        """Return what is to run once before live streams do, largest first.

        Where the backend compiles each shape, that is each gear up to `longest_frames`. Where it
        does not, running the longest sizes its memory for all (first run of a shorter gear after
        that: 97 ms, later ones 92 ms at 4 s; 39 and 39 ms at 1.5 s), so the outermost two are
        enough.
        """
        gears = sorted((g for g in self._gears if g.frames <= longest_frames), reverse=True)
        if compiles_shapes:
            return gears
        single = [g for g in gears if g.batch == 1]
        return [single[0], single[-1]]

    def largest_batch(self, frames: int) -> int:
        """Most inputs of `frames` feature frames that one gear of exactly that length takes."""
        return max((g.batch for g in self._gears if g.frames == frames), default=0)
