"""How often each gear was used, and how full it was. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from voiced.engine.types import Gear, GearUse


class GearTally:
    """Counts what was encoded since the start. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._uses: dict[Gear, GearUse] = {}
        self.uses: tuple[GearUse, ...] = ()
        """One for each gear that was used, shortest first."""

    def note(self, gear: Gear, frames: Sequence[int]) -> None:
        """Note one run of a gear's encoder.

        Args:
            gear: What was run, whole.
            frames: Feature frames of sound of each utterance; what the gear cuts off is not heard.
        """
        heard = sum(min(each, gear.frames) for each in frames)
        new = GearUse(gear, runs=1, inputs=len(frames), heard_frames=heard)
        known = self._uses.get(gear)
        self._uses[gear] = new if known is None else known + new
        self.uses = tuple(self._uses[gear] for gear in sorted(self._uses))
