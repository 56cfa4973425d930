"""Writes journal and spool to a disk that may be full, read-only, damaged, or somebody else's.

`DiskWriter` never raises for the disk's sake: last words that cannot be written wait in memory
until they can.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from voiced.audio.clock import Clock
from voiced.daemon.age_clock import Jump
from voiced.daemon.errors import JournalDamaged, JournalError
from voiced.daemon.journal import Journal, Record
from voiced.daemon.journal_file import FILE_NAME, FolderLock, set_aside
from voiced.daemon.spool import FOLDER_NAME, Heard, Leftover, Spool

logger = logging.getLogger(__name__)

_MAX_PENDING = 10_000
"""Last words kept in memory while they cannot be written; then the oldest are lost to the
journal."""
_RETAIN_EVERY_S = 600.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0
_WARN_EVERY_S = 60.0
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000


class StorageState(StrEnum):
    """How the journal is."""

    OFF = "off"
    OPENING = "opening"
    OK = "ok"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class StorageStatus:
    """What people and programs are told about journal and spool."""

    state: StorageState = StorageState.OFF
    reason: str = ""
    """Why it is degraded."""
    written: int = 0
    """Last words written since the start."""
    pending: int = 0
    """Last words that wait in memory for a disk that works."""
    lost: int = 0
    """Last words that were published and will never be in the journal."""
    spooled: int = 0
    """Segments in the spool."""
    spool_bytes: int = 0
    not_spooled: int = 0
    """Segments that could not be spooled since the start."""

    def facts(self) -> dict[str, Any]:
        """Fields for `/readyz`."""
        return {
            "state": self.state.value,
            "reason": self.reason,
            "pending": self.pending,
            "lost": self.lost,
            "spooled": self.spooled,
            "not_spooled": self.not_spooled,
        }


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Where and how much."""

    folder: Path
    keep_text: bool = True
    survives_power_cut: bool = True
    keep_ms: int = 30 * 86_400_000
    max_bytes: int = 256 << 20
    has_spool: bool = True
    spool_bytes: int = 64 << 20
    first_retry_s: float = _FIRST_RETRY_S


Opened = Callable[[int, Sequence[Leftover]], None]
"""Told when the journal is open: the first unused segment id, and what is to be answered."""


class DiskWriter:
    """What the thread does: opens, writes, waits for better times. One thread."""

    def __init__(
        self, options: StorageOptions, epoch: str, clock: Clock, tell_open: Opened
    ) -> None:
        self._options, self._epoch, self._clock, self._tell_open = options, epoch, clock, tell_open
        self._lock: FolderLock | None = None
        self._journal: Journal | None = None
        self._spool: Spool | None = None
        self._pending: deque[Record] = deque()
        self._holes: deque[tuple[str, int]] = deque(maxlen=_MAX_PENDING)
        self._is_damaged = False
        self._retry_at_s, self._retry_s = 0.0, options.first_retry_s
        self._retain_at_s = 0.0
        self._lived_ms: int | None = None
        """The journal's age at the last look at it; None: never open."""
        self._looked_ns: int | None = None
        self._warned_s: dict[str, float] = {}
        self.status = StorageStatus(StorageState.OPENING)

    def idle_s(self) -> float:
        """How long nothing needs to be done."""
        due_s = self._retry_at_s if self._journal is None else self._retain_at_s
        return min(max(0.0, due_s - time.monotonic()), _RETAIN_EVERY_S)

    def work(self, pieces: Sequence[Heard | Record]) -> None:
        """Keep what was heard, write what was said, forget what is answered."""
        for piece in pieces:
            if isinstance(piece, Heard):
                self._keep(piece)
            else:
                self._pending.append(piece)
        while len(self._pending) > _MAX_PENDING:
            self._holes.append(self._pending.popleft().place)
            self.status = replace(self.status, lost=self.status.lost + 1)
        self.open_if_due()
        if self._journal is not None:
            self._write()
            self._retain_if_due()
        self._note()

    def open_if_due(self) -> None:
        """Open the journal unless it is open or was tried a moment ago."""
        if self._journal is not None or time.monotonic() < self._retry_at_s:
            return
        try:
            self._open()
        except (JournalError, sqlite3.Error, OSError) as error:
            self._is_damaged |= isinstance(error, JournalDamaged)
            self.degrade(_reason(error))
            return
        self._retry_s = self._options.first_retry_s
        was_degraded = self.status.state is StorageState.DEGRADED
        self.status = replace(self.status, state=StorageState.OK, reason="")
        say = logger.warning if was_degraded else logger.info
        say(
            "journal open path=%s waiting=%d spooled=%d",
            self._options.folder / FILE_NAME,
            len(self._pending),
            len(self._spool or ()),
        )

    def degrade(self, reason: str) -> None:
        """Go on without the disk for a while."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._retry_at_s = time.monotonic() + self._retry_s
        self._warn(
            "journal",
            "journal cannot be written, results are published without it next_attempt_in_s=%g "
            "waiting=%d: %s",
            self._retry_s,
            len(self._pending),
            reason,
        )
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        self.status = replace(self.status, state=StorageState.DEGRADED, reason=reason)
        self._note()

    def close(self) -> None:
        """Give files and lock back."""
        if self._pending and self._journal is None:
            logger.error("results are not in the journal count=%d", len(self._pending))
        if self._journal is not None:
            with contextlib.suppress(JournalDamaged, sqlite3.Error):  # some minutes of its age
                self._look(self._journal)
            self._journal.close()
        if self._lock is not None:
            self._lock.close()

    # ---- opening ---------------------------------------------------------------------------

    def _open(self) -> None:
        options = self._options
        if self._lock is None:
            self._lock = FolderLock(options.folder)
        path = options.folder / FILE_NAME
        if self._is_damaged:
            self._set_aside(path, "found while it was in use")
        try:
            journal = self._open_journal(path)
        except JournalDamaged as error:
            self._set_aside(path, error.reason)
            journal = self._open_journal(path)
        try:
            if self._spool is None and options.has_spool:
                self._spool = Spool(
                    options.folder / FOLDER_NAME,
                    max_bytes=options.spool_bytes,
                    survives_power_cut=options.survives_power_cut,
                )
            self._look(journal)
            leftovers, highest = self._leftovers(journal)
        except BaseException:
            journal.close()
            raise
        self._journal = journal
        self._tell_open(max(journal.first_segment, highest + 1), leftovers)

    def _open_journal(self, path: Path) -> Journal:
        return Journal(
            path,
            self._epoch,
            started_ms=self._clock.wall_ms(),
            survives_power_cut=self._options.survives_power_cut,
            keep_text=self._options.keep_text,
            keep_ms=self._options.keep_ms,
        )

    def _set_aside(self, path: Path, reason: str) -> None:
        aside = set_aside(path, wall_ms=self._clock.wall_ms())
        self._is_damaged = False
        logger.error("journal was damaged, a new one begins old=%s: %s", aside, reason)

    def _leftovers(self, journal: Journal) -> tuple[list[Leftover], int]:
        """What earlier runs have heard and not answered; and the highest segment id there."""
        found, highest = [], 0
        for each in self._spool.leftovers() if self._spool is not None else ():
            if each.origin == self._epoch:
                continue
            highest = max(highest, each.segment)
            if journal.has(each.origin, each.segment):  # ended between the two
                assert self._spool is not None
                self._spool.remove(each.origin, each.segment)
            else:
                found.append(replace(each, lived_ms=journal.age.lived_ms))
        return found, highest

    # ---- writing ---------------------------------------------------------------------------

    def _keep(self, heard: Heard) -> None:
        if self._spool is None:
            if self._options.has_spool:
                self.status = replace(self.status, not_spooled=self.status.not_spooled + 1)
            return
        try:
            self._spool.put(replace(heard, lived_ms=self._age_now_ms()))
        except (JournalError, OSError) as error:
            self.status = replace(self.status, not_spooled=self.status.not_spooled + 1)
            self._warn(
                "spool",
                "segment is not spooled, a crash before its answer would lose it not_spooled=%d: "
                "%s",
                self.status.not_spooled,
                _reason(error),
            )

    def _write(self) -> None:
        if not self._pending and not self._holes:
            return
        assert self._journal is not None
        records = list(self._pending)
        try:
            self._journal.append(records, self._holes)
        except (JournalDamaged, sqlite3.Error) as error:
            self._is_damaged = isinstance(error, JournalDamaged)
            self.degrade(_reason(error))
            return
        self._pending.clear()
        self._holes.clear()
        self.status = replace(self.status, written=self.status.written + len(records))
        if self._spool is not None:
            for record in records:
                try:
                    self._spool.remove(record.origin, record.message.segment)
                except OSError as error:  # found again at the next start, and answered once
                    self._warn("unlink", "spool file stays: %s", _reason(error))

    def _retain_if_due(self) -> None:
        now_s = time.monotonic()
        if self._journal is None or now_s < self._retain_at_s:
            return
        self._retain_at_s = now_s + _RETAIN_EVERY_S
        try:
            self._look(self._journal)
            deleted = self._journal.retain(max_bytes=self._options.max_bytes)
        except (JournalDamaged, sqlite3.Error) as error:
            self._is_damaged = isinstance(error, JournalDamaged)
            self.degrade(_reason(error))
            return
        if deleted:
            logger.info("old results deleted from the journal count=%d", deleted)

    # ---- age -------------------------------------------------------------------------------

    def _look(self, journal: Journal) -> None:
        """Let the journal grow older, and say so where the clock does what clocks do not."""
        wall_ms, now_ns = self._clock.wall_ms(), self._clock.monotonic_ns()
        jump = journal.look(wall_ms, self._ran_ms(now_ns))
        self._lived_ms, self._looked_ns = journal.age.lived_ms, now_ns
        if jump is Jump.FAR_AHEAD:
            logger.warning(
                "the clock is days=%.1f further on than the journal: it was wrong, or is, or the "
                "machine was off; nothing is deleted for its age before hours=%.1f of running",
                journal.age.ahead_ms(wall_ms) / _DAY_MS,
                journal.age.proof_ms / _HOUR_MS,
            )
        elif jump is Jump.BELIEVED:
            logger.warning("the clock has stayed where it jumped to, and counts for age again")

    def _age_now_ms(self) -> int | None:
        if self._lived_ms is None:
            return None
        return self._lived_ms + self._ran_ms(self._clock.monotonic_ns())

    def _ran_ms(self, now_ns: int) -> int:
        return 0 if self._looked_ns is None else (now_ns - self._looked_ns) // 1_000_000

    def _note(self) -> None:
        spool = self._spool
        self.status = replace(
            self.status,
            pending=len(self._pending),
            spooled=0 if spool is None else len(spool),
            spool_bytes=0 if spool is None else spool.size,
        )

    def _warn(self, kind: str, text: str, *arguments: object) -> None:
        """At once, then at most once a minute."""
        now_s = time.monotonic()
        if now_s - self._warned_s.get(kind, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned_s[kind] = now_s
            logger.warning(text, *arguments)


def _reason(error: Exception) -> str:
    if isinstance(error, JournalError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{error} ({name})"
