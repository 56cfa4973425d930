"""Feeds the service manager's watchdog, but only while every part makes progress.

A loop that still turns is not enough: the manager must replace a daemon whose bus task or engine
supervision stands still as well. Each part has a counter that rises while it works; `ProgressWatch`
compares, `Watchdog` feeds, and when it stops feeding it says in the log and in `systemctl status`
which part is to blame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from voiced.audio.clock import Clock, SystemClock
from voiced.daemon.sdnotify import Notifier

logger = logging.getLogger(__name__)

Counter = Callable[[], int | None]
"""Rises while a part works; None while nothing is expected of it (it has not begun, or rests)."""

_STATUS_S = 1.0
"""How often the status line is looked at; it is sent when it changed."""


class ProgressWatch:
    """Tells which parts have stood still for too long. Pure; time is an argument."""

    def __init__(self, parts: Mapping[str, Counter], *, limit_s: float) -> None:
        self._parts = dict(parts)
        self._limit_s = limit_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._broken: set[str] = set()
        """Parts whose counter has raised, and has been told of."""

    def stuck(self, now_s: float) -> dict[str, float]:
        """Return the parts that stood still for longer than the limit, and for how long.

        A counter that raises counts as one that stands still.
        """
        found = {}
        for name, read in self._parts.items():
            last = self._seen.get(name)
            try:
                count = read()
            except Exception:  # a broken part must not stop the watching of the others
                if name not in self._broken:
                    self._broken.add(name)
                    logger.exception("cannot read the progress, it counts as none part=%s", name)
                count = last[0] if last else -1
            if count is None:
                self._seen.pop(name, None)
                continue
            if last is None or last[0] != count:
                self._seen[name] = last = (count, now_s)
            if now_s - last[1] > self._limit_s:
                found[name] = now_s - last[1]
        return found


class Watchdog:
    """Feeds the manager and tells it the status; belongs to the event loop that it watches.

    A part may stand still for half of the manager's limit. Then the feeding stops, and unless the
    part goes on within the limit, the manager ends the daemon and starts a new one.

    Args:
        notifier: The manager; its `watchdog_s` says how often it wants to be fed.
        parts: Counter of each part that must move.
        status: The line for `systemctl status`; None: leave what is there.
        clock: Measures how long a part stands still.
    """

    def __init__(
        self,
        notifier: Notifier,
        parts: Mapping[str, Counter] | None = None,
        *,
        status: Callable[[], str | None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._notifier = notifier
        self._status = status
        self._clock = clock or SystemClock()
        self._watch = ProgressWatch(parts or {}, limit_s=(notifier.watchdog_s or 0.0) / 2)
        self._blamed: frozenset[str] = frozenset()
        self._told: str | None = None

    async def run(self) -> None:
        """Feed until cancelled; returns at once where there is no manager."""
        if not self._notifier.is_active:
            return
        limit_s = self._notifier.watchdog_s
        interval_s = _STATUS_S if limit_s is None else min(_STATUS_S, limit_s / 4)
        while True:
            self.check()
            await asyncio.sleep(interval_s)

    def check(self) -> None:
        """Look at every part once; feed and tell what is to be told."""
        stuck: dict[str, float] = {}
        if self._notifier.watchdog_s is not None:
            stuck = self._watch.stuck(self._clock.monotonic_ns() / 1e9)
            if not stuck:
                self._notifier.watchdog()
            self._blame(stuck)
        text = self._status()
        if stuck:
            text = "; ".join(
                f"{name} stands still for {idle:.0f} s" for name, idle in stuck.items()
            )
        if text is not None and text != self._told:
            self._notifier.status(text)
            self._told = text

    def _blame(self, stuck: Mapping[str, float]) -> None:
        """Log what changed about who stands still."""
        for name in stuck.keys() - self._blamed:
            logger.error(
                "no progress, the watchdog is not fed part=%s idle_s=%.1f limit_s=%g",
                name,
                stuck[name],
                self._notifier.watchdog_s,
            )
        for name in self._blamed - stuck.keys():
            logger.warning("progress again part=%s", name)
        self._blamed = frozenset(stuck)
