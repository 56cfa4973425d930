"""When the daemon opens no more streams because it is behind. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from voiced.daemon.errors import Overloaded
from voiced.engine.types import EngineLoad

_FULL_SHARE = 0.5
"""Of the finals that may wait: the open streams need the rest."""
_LEAST_RETRY_MS, _MOST_RETRY_MS = 1_000, 10_000


@dataclass(frozen=True, slots=True)
class OverloadRules:
    """How far behind the engine may be."""

    max_age_s: float = 3.0
    """Age of the oldest final that was accepted and not answered."""
    max_queued_finals: int = 64
    """What the engine accepts."""

    def refusal(self, load: EngineLoad) -> Overloaded | None:
        """Return why no stream is opened now; None when one is.

        Trying again is of use when what waits now has been worked off: in about its age.
        """
        is_full = load.queued_finals > self.max_queued_finals * _FULL_SHARE
        if load.oldest_final_age_s <= self.max_age_s and not is_full:
            return None
        age_ms = round(load.oldest_final_age_s * 1000)
        retry_after_ms = min(max(age_ms, _LEAST_RETRY_MS), _MOST_RETRY_MS)
        return Overloaded(load.queued_finals, load.oldest_final_age_s, retry_after_ms)
