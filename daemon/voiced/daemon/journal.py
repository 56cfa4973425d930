"""The journal: every last word on a segment, on disk, in the order of the bus.

An entry is found by its place on the bus (`epoch`, `seq`) and, once for all, by the segment that it
answers (`origin`, `segment`): a segment has one entry, however often its answer is written.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import msgspec

from voiced.daemon.age_clock import AgeClock, AgeState, Jump
from voiced.daemon.journal_file import (
    MODE,
    SCHEMA,
    TABLES,
    check,
    connect,
    delete_until,
    fact,
    naming_damage,
    set_fact,
    transaction,
)
from voiced.daemon.wire import Failed, Final, encode

_SEGMENT_BLOCK = 100_000
"""Segment ids set aside at once, so that one write is enough for days."""
_MARKS = 200
"""Of age, while entries grow as old as they may: how finely age is known."""


_AGE_FACTS = ("lived_ms", "lived_offset_ms", "lived_ahead_ms", "lived_behind_ms")


@dataclass(frozen=True, slots=True)
class Record:
    """One last word, as it is on the bus."""

    message: Final | Failed
    """Numbered: `epoch`, `seq` and `wall_ms` are set."""

    @property
    def origin(self) -> str:
        """Epoch in which the segment was heard."""
        return self.message.recovered or self.place[0]

    @property
    def place(self) -> tuple[str, int]:
        """Where it is on the bus."""
        if self.message.epoch is None or self.message.seq is None:
            raise ValueError("a journal takes numbered messages only")
        return self.message.epoch, self.message.seq

    def body(self, *, keep_text: bool) -> bytes:
        """What is stored."""
        message = self.message
        if not keep_text and isinstance(message, Final) and message.text:
            message = msgspec.structs.replace(message, text="", words=(), n_best=(), withheld=True)
        return encode(message)


class Journal:
    """Writes a journal. Belongs to one thread."""

    def __init__(
        self,
        path: Path,
        epoch: str,
        *,
        started_ms: int,
        survives_power_cut: bool = True,
        keep_text: bool = True,
        keep_ms: int = 30 * 86_400_000,
    ) -> None:
        """Open or make the file; a run of the daemon begins.

        Args:
            path: The file; its folder exists.
            epoch: Name of this run.
            started_ms: When it began, Unix time.
            survives_power_cut: Wait for the disk with every `append`; else only a crash of the
                process loses nothing, and a power cut may cost the last seconds.
            keep_text: Store what was said, not only that something was.
            keep_ms: The age at which entries go.

        Raises:
            JournalDamaged: It is no database, or a broken one.
            JournalUnusable: It has a newer schema.
            sqlite3.Error, OSError: The disk does not let us.
        """
        self._path, self._keep_text, self._keep_ms = path, keep_text, keep_ms
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE))
        self._database = connect(path)
        try:
            with naming_damage(path):
                self._prepare("FULL" if survives_power_cut else "NORMAL")
                self._numbers: dict[str, int] = {}
                self.first_segment = self._begin(epoch, started_ms)
                """Segment ids from here on have never been used."""
                self.age = self._age_clock()
                """How long the journal has lived."""
        except BaseException:
            self.close()
            raise

    def append(self, records: Iterable[Record], holes: Iterable[tuple[str, int]] = ()) -> None:
        """Store all of them or, when it raises, none. A segment that has an entry gets no second.

        Args:
            records: Last words.
            holes: Places on the bus of last words that were published and are lost.

        Raises:
            JournalDamaged: The file is broken.
            sqlite3.Error: The disk does not let us.
        """
        highest = 0
        with naming_damage(self._path), self._transaction():
            for record in records:
                epoch, seq = record.place
                message = record.message
                highest = max(highest, message.segment) if not message.recovered else highest
                self._database.execute(
                    "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        self._number(epoch),
                        seq,
                        message.wall_ms,
                        self._number(record.origin),
                        message.segment,
                        message.stream,
                        record.body(keep_text=self._keep_text),
                    ),
                )
            for epoch, seq in holes:
                self._database.execute(
                    "INSERT INTO holes VALUES (?, ?)", (self._number(epoch), seq)
                )
            self._reserve(highest)

    def has(self, origin: str, segment: int) -> bool:
        """Tell whether a segment was answered.

        Raises:
            JournalDamaged: The file is broken.
            sqlite3.Error: The disk does not let us.
        """
        with naming_damage(self._path):
            row = self._database.execute(
                "SELECT 1 FROM entries JOIN epochs ON entries.origin = epochs.number"
                " WHERE epochs.epoch = ? AND segment = ?",
                (origin, segment),
            ).fetchone()
        return row is not None

    def look(self, wall_ms: int, ran_ms: int) -> Jump:
        """Let the journal grow older, and write down how old what is in it is now at least.

        Args:
            wall_ms: What the machine's clock shows.
            ran_ms: How long this run has lasted since the last look, whatever that clock did.

        Raises:
            JournalDamaged: The file is broken.
            sqlite3.Error: The disk does not let us.
        """
        with naming_damage(self._path), self._transaction():
            jump = self.age.look(wall_ms, ran_ms)
            for key, value in zip(_AGE_FACTS, astuple(self.age.state), strict=True):
                set_fact(self._database, key, value)
            self._mark_age()
        return jump

    def retain(self, *, max_bytes: int) -> int:
        """Delete what is too old, and the oldest tenth as long as the file is too large.

        How an entry is dated does not matter: its age is what the journal has lived since. Returns
        the number of entries deleted.

        Raises:
            JournalDamaged: The file is broken.
            sqlite3.Error: The disk does not let us.
        """
        with naming_damage(self._path):
            return self._retain(max_bytes)

    def _retain(self, max_bytes: int) -> int:
        deleted = self._delete_old()
        while self._live_bytes() > max_bytes:
            (count,) = self._database.execute("SELECT count(*) FROM entries").fetchone()
            if not count:
                break
            epoch, seq = self._database.execute(
                "SELECT epoch, seq FROM entries ORDER BY epoch, seq LIMIT 1 OFFSET ?",
                (max(0, count // 10 - 1),),
            ).fetchone()
            deleted += delete_until(self._database, epoch, seq)
        if deleted:
            # A script is run to its end; a single statement stops at its first row: one page.
            self._database.executescript("PRAGMA incremental_vacuum")
        return deleted

    def close(self) -> None:
        """Give the file back. Idempotent."""
        with contextlib.suppress(sqlite3.Error):  # closing checkpoints; what is in the WAL stays
            self._database.close()

    def _age_clock(self) -> AgeClock:
        state = AgeState(*(fact(self._database, key) for key in _AGE_FACTS))
        clock = AgeClock(self._keep_ms, state)
        # Those of a damaged file: what they were for is as old as the next mark says.
        self._database.execute("DELETE FROM ages WHERE lived_ms > ?", (clock.lived_ms,))
        return clock

    def _mark_age(self) -> None:
        """Note that the newest entry was there now, unless that was done a moment ago."""
        newest = self._database.execute(
            "SELECT epoch, seq FROM entries ORDER BY epoch DESC, seq DESC LIMIT 1"
        ).fetchone()
        last = self._database.execute(
            "SELECT epoch, seq, CAST(lived_ms AS INTEGER) FROM ages ORDER BY lived_ms DESC LIMIT 1"
        ).fetchone()
        if newest is None or (last is not None and newest == last[:2]):
            return
        if last is None or self.age.lived_ms - (last[2] or 0) >= self._keep_ms // _MARKS:
            row = *newest, self.age.lived_ms
            self._database.execute("INSERT INTO ages VALUES (?, ?, ?)", row)

    def _delete_old(self) -> int:
        oldest_ms = self.age.lived_ms - self._keep_ms
        row = self._database.execute(
            "SELECT CAST(epoch AS INTEGER), CAST(seq AS INTEGER) FROM ages WHERE lived_ms <= ?"
            " ORDER BY lived_ms DESC LIMIT 1",
            (oldest_ms,),
        ).fetchone()
        if row is None:
            return 0
        deleted = delete_until(self._database, *row)
        self._database.execute("DELETE FROM ages WHERE lived_ms <= ?", (oldest_ms,))
        return deleted

    def _prepare(self, synchronous: str) -> None:
        database = self._database
        check(database, self._path)
        if not database.execute("PRAGMA auto_vacuum").fetchone()[0]:
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table
        database.execute("PRAGMA journal_mode = WAL").fetchone()
        database.execute(f"PRAGMA synchronous = {synchronous}")
        database.execute("PRAGMA secure_delete = ON").fetchone()
        database.execute("PRAGMA journal_size_limit = 4194304").fetchone()
        database.executescript(TABLES)
        database.execute(f"PRAGMA user_version = {SCHEMA}")

    def _begin(self, epoch: str, started_ms: int) -> int:
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO epochs (epoch, started_ms) VALUES (?, ?)",
                (epoch, started_ms),
            )
            first = fact(self._database, "next_segment") or 1
            self._reserved = first
            self._reserve(first)
        return first

    def _reserve(self, segment: int) -> None:
        """Keep the ids set aside well ahead of those in use."""
        if segment + _SEGMENT_BLOCK // 2 > self._reserved:
            self._reserved = segment + _SEGMENT_BLOCK
            set_fact(self._database, "next_segment", self._reserved)

    def _number(self, epoch: str) -> int:
        number = self._numbers.get(epoch)
        if number is None:
            row = self._database.execute(
                "SELECT number FROM epochs WHERE epoch = ?", (epoch,)
            ).fetchone()
            if row is None:  # the journal was lost, the spool was not
                number = self._database.execute(
                    "INSERT INTO epochs (epoch, started_ms) VALUES (?, 0)", (epoch,)
                ).lastrowid
            else:
                number = row[0]
            assert number is not None
            self._numbers[epoch] = number
        return number

    def _live_bytes(self) -> int:
        pages, free, size = (
            self._database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with transaction(self._database):
            try:
                yield
            except BaseException:
                self._numbers.clear()  # numbers given in it are taken back
                raise
