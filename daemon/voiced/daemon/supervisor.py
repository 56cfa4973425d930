"""Starts the daemon's parts in order, keeps them until told to stop, stops them in reverse."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from voiced.daemon.sdnotify import Notifier
from voiced.daemon.watchdog import Watchdog

logger = logging.getLogger(__name__)

GRACE_S = 2.5
"""What a part gets beyond the deadline, so that its own, better informed handling comes first: a
client that does not read may take one second for its last messages and one for the close."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing with a beginning and an end."""

    name: str
    start: Callable[[], Awaitable[object]]
    stop: Callable[[float], Awaitable[object]]
    """Called with the seconds that are left for everything; called even when `start` failed or
    was cancelled half-way, never when it was not called."""


class Supervisor:
    """Runs parts. One at a time they start; one deadline covers all of their ends.

    A part that fails to start ends the daemon: the parts before it are stopped and its error is
    raised. A part that fails to stop is logged and the next one is stopped.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        drain_s: float,
        notifier: Notifier,
        watchdog: Watchdog | None = None,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the parts in the order of their start.

        Args:
            parts: What to run.
            drain_s: Time for all stops together.
            notifier: Told about every change.
            watchdog: Runs beside the parts, from the first start to the last stop; default: one
                that feeds the notifier while the loop turns.
            on_stopping: Called first when the end begins: refuse new work from here on.
        """
        self._parts = tuple(parts)
        self._drain_s = drain_s
        self._notifier = notifier
        self._watchdog = watchdog or Watchdog(notifier)
        self._on_stopping = on_stopping
        self.is_running = False
        """Between READY and the begin of the end."""

    async def run(self, stop: asyncio.Event) -> bool:
        """Start everything, wait for `stop`, stop everything.

        Returns:
            Whether every part stopped by itself within the deadline.

        Raises:
            Exception: What the start of a part raised, after the others were stopped.
        """
        begun: list[Part] = []
        starting = asyncio.create_task(self._start(begun), name="supervisor-start")
        stopped = asyncio.create_task(stop.wait(), name="supervisor-stop")
        watchdog = asyncio.create_task(self._watchdog.run(), name="supervisor-watchdog")
        try:
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopped
        finally:
            self.is_running = False
            self._notifier.stopping("draining")
            self._on_stopping()
            await _cancel(starting, stopped)
            is_clean = await self._stop(begun)
            await _cancel(watchdog)  # last: a long drain is no hang
        return is_clean

    async def _start(self, begun: list[Part]) -> None:
        began_s = time.monotonic()
        for part in self._parts:
            self._notifier.status(f"starting {part.name}")
            begun.append(part)
            await part.start()
            logger.debug("started part=%s", part.name)
        self.is_running = True
        self._notifier.ready("ready")
        logger.info("ready start_s=%.2f", time.monotonic() - began_s)

    async def _stop(self, begun: Sequence[Part]) -> bool:
        deadline_s = time.monotonic() + self._drain_s
        is_clean = True
        for part in reversed(begun):
            left_s = max(0.0, deadline_s - time.monotonic())
            limit_s = left_s + GRACE_S
            stopping = asyncio.ensure_future(part.stop(left_s))
            await asyncio.wait((stopping,), timeout=limit_s)
            if not stopping.done():
                is_clean = False
                logger.error("gave up stopping part=%s after_s=%.1f", part.name, limit_s)
                await _cancel(stopping)
            elif error := stopping.exception():
                is_clean = False
                logger.error("stop failed part=%s", part.name, exc_info=error)
        return is_clean


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: the caller has raised it, or the stop made it irrelevant
