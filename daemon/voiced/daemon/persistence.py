"""What outlives a run of the daemon, put together: journal, spool, replay socket, recovery."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from voiced.daemon.asking import Engine
from voiced.daemon.bus import Bus
from voiced.daemon.curve import CurveServer
from voiced.daemon.disk_writer import StorageOptions, StorageStatus
from voiced.daemon.journal_file import default_folder
from voiced.daemon.journal_settings import JournalSettings
from voiced.daemon.metrics import Metrics
from voiced.daemon.outlet import OrderedOutlet
from voiced.daemon.recovery import Recovery
from voiced.daemon.replay import ReplayServer
from voiced.daemon.spool import Leftover
from voiced.daemon.storage import Storage

_LEAST_STOP_S = 1.0
"""Time to write what waits, however late the stop is."""


class SegmentIds:
    """Ids of segments: they rise, also over restarts where there is a journal."""

    def __init__(self) -> None:
        self._next = 1

    def __call__(self) -> int:
        """Return one that was not returned before."""
        given, self._next = self._next, self._next + 1
        return given

    def raise_to(self, first: int) -> None:
        """Go on at `first`, unless that is passed already."""
        self._next = max(self._next, first)


class Persistence:
    """Nothing but ids and the order of messages where no journal is kept."""

    def __init__(
        self,
        settings: JournalSettings,
        replay_endpoint: str,
        *,
        bus: Bus,
        engine: Engine,
        metrics: Metrics,
        watch: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """Nothing runs, nothing is written.

        Args:
            settings: What is kept, and where.
            replay_endpoint: Where subscribers ask for what they missed.
            bus: Where messages go.
            engine: Answers what was left over.
            metrics: Gets gauges of its own.
            watch: Called with each task that must not end before the daemon.
        """
        self.outlet = OrderedOutlet(bus)
        self.segment_ids = SegmentIds()
        self.storage: Storage | None = None
        self.replay: ReplayServer | None = None
        self._watch = watch
        self._bus = bus
        self._replaying: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        if not is_enabled(settings):
            return
        self.storage = storage = Storage(
            storage_options(settings),
            bus.epoch,
            on_stored=self.outlet.stored,
            on_open=self._on_open,
            call_soon=self._call_soon,
        )
        self.replay = ReplayServer(
            replay_endpoint,
            storage.path,
            unwritten=lambda: storage.status.pending,
            metrics=metrics,
        )
        self._recovery = Recovery(
            engine=engine,
            publish=self.outlet.publish,
            keep_s=settings.spool_hours * 3600,
            metrics=metrics,
        )
        metrics.watch_storage(lambda: storage.status)

    def status(self) -> StorageStatus | None:
        """How journal and spool are; None where none are kept."""
        return None if self.storage is None else self.storage.status

    async def start(self) -> None:
        """Open the journal, or find out that it cannot be."""
        if self.storage is None:
            return
        self._loop = asyncio.get_running_loop()
        self.storage.start()
        await asyncio.to_thread(self.storage.wait_open)
        self.outlet.storage = self.storage

    def listen(self, curve: CurveServer | None) -> None:
        """Take requests for replays: the bus is open, and nothing was published on it.

        Raises:
            EndpointInUse, AddressRefused: The replay socket cannot be bound.
        """
        if self.replay is not None:
            self.replay.open(self._bus.context, curve)
            self._replaying = self._start_task(self.replay.run(), "replay")

    async def stop_listening(self) -> None:
        """Before the bus is closed."""
        await _cancel(self._replaying)
        if self.replay is not None:
            self.replay.close()

    def start_recovery(self) -> None:
        """Answer what earlier runs left; the engine is ready."""
        if self.storage is not None:
            self._recovering = self._start_task(self._recovery.run(), "recovery")

    async def stop_recovery(self) -> None:
        """Leave the rest for the next start; before the engine ends."""
        await _cancel(self._recovering)

    async def stop(self, left_s: float) -> None:
        """Write what waits and close; the bus is closed."""
        if self.storage is not None and self.outlet.storage is not None:
            self.outlet.storage = None
            await asyncio.to_thread(self.storage.stop, max(left_s, _LEAST_STOP_S))

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._watch)
        return task

    def _call_soon(self, act: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(act, *arguments)

    def _on_open(self, first_segment: int, leftovers: Sequence[Leftover]) -> None:
        self.segment_ids.raise_to(first_segment)
        self._recovery.add(leftovers)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait((task,))


def is_enabled(settings: JournalSettings) -> bool:
    """Whether a journal is kept; left open, it is where a service manager gave a folder."""
    return bool(os.environ.get("STATE_DIRECTORY")) if settings.enabled is None else settings.enabled


def folder_of(settings: JournalSettings) -> Path:
    """Where it is kept."""
    return default_folder() if settings.folder is None else Path(settings.folder).expanduser()


def storage_options(settings: JournalSettings) -> StorageOptions:
    """What the storage thread is told."""
    return StorageOptions(
        folder=folder_of(settings),
        keep_text=settings.text,
        survives_power_cut=settings.survives == "power_cut",
        keep_ms=round(settings.keep_days * 86_400_000),
        max_bytes=settings.max_mb << 20,
        has_spool=settings.spool,
        spool_bytes=settings.spool_mb << 20,
    )
