"""How long a journal has lived, though the machine's clock may be wrong, or jump. Pure.

A car's clock forgets the time with its battery, wakes up in 2038, or is set right by a network
hours later. Age that is read off such a clock is wrong for everything at once. So age is counted:
time that the daemon runs counts always; what the machine's clock moved on besides (the car was
parked) counts too, but at once only up to a bound, and beyond it only when the clock has stayed
there while the daemon ran for long, and then up to that bound. Time never counts backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

FIRST_PLAUSIBLE_MS = 1_577_836_800_000
"""2020: an earlier time is that of a clock that was not set yet, and says nothing of age."""
_DAY_MS = 86_400_000
_MOST_MS = 1 << 52
"""More than any clock has shown: what a damaged file may hold."""


class Jump(Enum):
    """What a look at the machine's clock brought."""

    NONE = auto()
    FAR_AHEAD = auto()
    """It is further ahead than the clock is believed at once; said once for each jump and run."""
    BELIEVED = auto()
    """It has stayed where it jumped to: from here on its time is taken."""


@dataclass(frozen=True, slots=True)
class AgeState:
    """What is kept over runs."""

    lived_ms: int = 0
    offset_ms: int = 0
    """Of the machine's clock to `lived_ms`, while it is believed; 0: it was never plausible."""
    ahead_run_ms: int = 0
    """How long the daemon has run since the clock jumped far ahead."""
    behind_run_ms: int = 0
    """How long it has run since the clock was set back."""


class AgeClock:
    """Counts how long something has lived. Belongs to one thread."""

    def __init__(self, keep_ms: int, state: AgeState | None = None) -> None:
        """Begin at 0, or where an earlier run ended.

        Args:
            keep_ms: The age at which things are deleted; the bounds are shares of it.
            state: Of the earlier run; a damaged one counts as none.
        """
        is_sound = state is not None and (
            all(0 <= each < _MOST_MS for each in (state.lived_ms, state.ahead_run_ms))
            and abs(state.offset_ms) < _MOST_MS
            and 0 <= state.behind_run_ms < _MOST_MS
        )
        self.state = state if state is not None and is_sound else AgeState()
        self.leap_ms = keep_ms // 2
        """A jump counts for at most this much."""
        self.proof_ms = min(_DAY_MS, keep_ms // 30)
        """So long must a clock stay where it jumped to, while the daemon runs."""
        self._has_told = False

    @property
    def lived_ms(self) -> int:
        """How long it has lived, as far as that is known."""
        return self.state.lived_ms

    def ahead_ms(self, wall_ms: int) -> int:
        """How much more than `lived_ms` the machine's clock says; below 0 when it was set back."""
        return wall_ms + self.state.offset_ms - self.state.lived_ms

    def look(self, wall_ms: int, ran_ms: int) -> Jump:
        """Count on.

        Args:
            wall_ms: What the machine's clock shows, Unix time.
            ran_ms: How long the daemon has run since the last look, by a clock that nobody sets; 0
                at the first one of a run.
        """
        state = replace(self.state, lived_ms=self.state.lived_ms + ran_ms)
        self.state = state
        if wall_ms < FIRST_PLAUSIBLE_MS:
            return Jump.NONE
        if not state.offset_ms:
            self.state = replace(state, offset_ms=state.lived_ms - wall_ms)
            return Jump.NONE
        ahead_ms = self.ahead_ms(wall_ms)
        if 0 <= ahead_ms <= self.leap_ms:
            self._has_told = False
            self.state = AgeState(state.lived_ms + ahead_ms, state.offset_ms)
            return Jump.NONE
        if ahead_ms < 0:
            run_ms = state.behind_run_ms + ran_ms
            self.state = replace(state, behind_run_ms=run_ms)
            if run_ms >= self.proof_ms:
                self._believe(wall_ms, 0)
            return Jump.NONE
        run_ms = state.ahead_run_ms + ran_ms
        self.state = replace(state, ahead_run_ms=run_ms)
        if run_ms >= self.proof_ms:
            self._believe(wall_ms, self.leap_ms)
            return Jump.BELIEVED
        if self._has_told:
            return Jump.NONE
        self._has_told = True
        return Jump.FAR_AHEAD

    def _believe(self, wall_ms: int, counts_ms: int) -> None:
        lived_ms = self.state.lived_ms + counts_ms
        self.state = AgeState(lived_ms, lived_ms - wall_ms)
        self._has_told = False
