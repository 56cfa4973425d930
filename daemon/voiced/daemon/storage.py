"""The thread that writes journal and spool, and what it does when the disk does not let it.

Work comes in order and is reported done in order, several pieces at once where they have
gathered. A disk that is full, read-only or gone never holds a message up: what could not be
written is reported done all the same, last words wait in memory, and are written when it works
again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from voiced.audio.clock import Clock, SystemClock
from voiced.daemon.disk_writer import DiskWriter, Opened, StorageOptions, StorageStatus
from voiced.daemon.journal import Record
from voiced.daemon.journal_file import FILE_NAME
from voiced.daemon.spool import Heard, Leftover

logger = logging.getLogger(__name__)

_MAX_QUEUED = 10_000
"""Pieces of work waiting for a disk that hangs."""
_MAX_QUEUED_AUDIO = 64
"""Pieces waiting above which audio is not queued for it."""
_BATCH = 256
_OPEN_WAIT_S = 10.0
"""Longest that a start waits for the disk; it goes on without."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One piece of work: audio to keep, or a last word to write."""

    what: Heard | Record


class Storage:
    """Journal and spool behind a thread. Every method but the thread's own belongs to the loop."""

    def __init__(
        self,
        options: StorageOptions,
        epoch: str,
        *,
        on_stored: Callable[[Sequence[Task]], None],
        on_open: Opened,
        call_soon: Callable[..., object],
        clock: Clock | None = None,
    ) -> None:
        """Nothing runs.

        Args:
            options: Where and how much.
            epoch: Name of this run of the daemon.
            on_stored: Told what was done, in order; whether or not the disk let us.
            on_open: See `Opened`; called again when the journal was lost and found.
            call_soon: Has a function called on the loop's thread, e.g. `call_soon_threadsafe`.
        """
        self._options, self._epoch = options, epoch
        self._on_stored, self._on_open, self._call_soon = on_stored, on_open, call_soon
        self._clock = clock or SystemClock()
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._writer = DiskWriter(options, epoch, self._clock, self._tell_open)
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._first = threading.Event()
        self._refused = 0

    @property
    def status(self) -> StorageStatus:
        """How it is now."""
        status = self._writer.status
        return replace(status, lost=status.lost + self._refused)

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self._options.folder / FILE_NAME

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wait_open(self, timeout_s: float = _OPEN_WAIT_S) -> None:
        """Wait until the first attempt to open was made; blocks, for a thread of its own."""
        self._first.wait(timeout_s)

    def submit(self, task: Task) -> bool:
        """Queue a piece of work; False when the disk hangs and so much waits for it."""
        waiting = self._tasks.qsize()
        limit = _MAX_QUEUED_AUDIO if isinstance(task.what, Heard) else _MAX_QUEUED
        if waiting >= limit:
            self._refused += isinstance(task.what, Record)
            return False
        self._tasks.put(task)
        return True

    def stop(self, timeout_s: float) -> bool:
        """Write what waits and end; False when it does not within the time. Blocks."""
        self._tasks.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ---- the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        self._guard(self._writer.open_if_due)
        self._first.set()
        is_last = False
        while not is_last:
            batch, is_last = self._take(self._writer.idle_s())
            self._guard(partial(self._writer.work, [task.what for task in batch]))
            if batch:
                self._tell(self._on_stored, batch)
        self._guard(self._writer.close)

    def _take(self, timeout_s: float) -> tuple[list[Task], bool]:
        """What waits, at most a batch; and whether it is the end."""
        batch: list[Task] = []
        with contextlib.suppress(queue.Empty):
            task = self._tasks.get(timeout=timeout_s)
            while task is not None:
                batch.append(task)
                if len(batch) == _BATCH:
                    return batch, False
                task = self._tasks.get_nowait()
            return batch, True
        return batch, False

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # the top of a worker loop: our fault must not hold messages up
            logger.exception("storage broke, going on")
            self._writer.degrade("internal error; the log has more")

    def _tell_open(self, first_segment: int, leftovers: Sequence[Leftover]) -> None:
        self._tell(self._on_open, first_segment, leftovers)

    def _tell(self, act: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._call_soon(act, *arguments)
