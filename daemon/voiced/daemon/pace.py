"""How often one stream asks for partial results. Pure: time is an argument."""

from __future__ import annotations

_SHARE = 0.75
"""Part of the time in which a stream may have a partial under way: the rest is for others. An
answer that takes 300 ms, its waiting included, allows the next 400 ms after it was asked for."""


class PartialPace:
    """Stretches the hop between partials by how long the last one took.

    The time includes waiting for the engine, so the more streams speak, the rarer each asks; while
    finals wait nobody does.
    """

    def __init__(self) -> None:
        self._asked_ns = 0
        self._next_ns = 0

    def refusal(self, now_ns: int, *, queued_finals: int) -> str | None:
        """Return why none is asked for now; None: it may be."""
        if queued_finals > 0:
            return "finals_waiting"
        if now_ns < self._next_ns:
            return "stretched"
        return None

    def asked(self, now_ns: int) -> None:
        """Note a request."""
        self._asked_ns = now_ns

    def answered(self, now_ns: int) -> None:
        """Note its answer, of whatever kind."""
        self._next_ns = self._asked_ns + round((now_ns - self._asked_ns) / _SHARE)
