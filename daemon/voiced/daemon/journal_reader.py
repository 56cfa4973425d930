"""Reads the journal: for replays, and for people."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from voiced.daemon.errors import JournalMissing, JournalUnusable
from voiced.daemon.journal_file import SCHEMA, connect, fact, naming_damage, purge
from voiced.daemon.wire import LastWord, WireError, decode_last_word

_PAGE_BYTES = 1 << 20
"""Bodies read at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    epoch: str
    seq: int
    wall_ms: int
    body: bytes
    """JSON, as it was on the bus."""
    message: LastWord
    """What it says."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries read at once, oldest first."""

    entries: tuple[Entry, ...]
    more: bool
    is_complete: bool
    """False: something in the range was published and is not (any more) in the journal."""
    damaged: int
    """Entries in the range that cannot be read and are left out."""


class JournalReader:
    """Reads a journal, whether or not a daemon writes it. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            JournalMissing: There is none.
            JournalDamaged, JournalUnusable: It cannot be read as a journal.
            sqlite3.Error: The system does not let us.
        """
        if not path.is_file():
            raise JournalMissing(path)
        self._path = path
        self._database = connect(path, read_only=True)
        try:
            with naming_damage(path):
                version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA:
                raise JournalUnusable(path, version, SCHEMA)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self,
        *,
        after: tuple[str, int] | None = None,
        until: tuple[str, int] | None = None,
        since_ms: int | None = None,
        before_ms: int | None = None,
        stream: str | None = None,
        limit: int = 200,
    ) -> Batch:
        """Read the next entries in the order of the bus.

        Args:
            after: Place of the last entry not wanted; an unknown epoch means: from the beginning.
            until: Place of the last entry wanted.
            since_ms: Begin at the first entry of this Unix time or later, instead of `after`.
            before_ms: Only entries older than this.
            stream: Only of this stream.
            limit: Most entries.

        Raises:
            JournalDamaged: The file is broken.
            sqlite3.Error: The file cannot be read.
        """
        with naming_damage(self._path):
            return self._read(after, until, since_ms, before_ms, stream, limit)

    def _read(
        self,
        after: tuple[str, int] | None,
        until: tuple[str, int] | None,
        since_ms: int | None,
        before_ms: int | None,
        stream: str | None,
        limit: int,
    ) -> Batch:
        start, is_complete = self._start(after, since_ms)
        where, values = ["(entries.epoch, seq) > (?, ?)"], [*start]
        end = None if until is None else self._end(until)
        if end is not None:
            where.append("(entries.epoch, seq) <= (?, ?)")
            values += end
        if before_ms is not None:
            where.append("wall_ms < ?")
            values.append(before_ms)
        parameters: list[int | str] = [*values]
        if stream is not None:
            where.append("stream = ?")
            parameters.append(stream)
        rows = self._database.execute(
            "SELECT epochs.epoch, seq, wall_ms, body FROM entries"
            " JOIN epochs ON entries.epoch = epochs.number"
            f" WHERE {' AND '.join(where)} ORDER BY entries.epoch, seq",
            parameters,
        )
        entries: list[Entry] = []
        size, damaged, more = 0, 0, False
        for row in rows:
            entry = _entry_of(row)
            if entry is None:
                damaged += 1
                continue
            size += len(entry.body)
            if len(entries) == limit or (entries and size > _PAGE_BYTES):
                more = True
                break
            entries.append(entry)
        is_complete = is_complete and not damaged and not self._has_hole(start, end)
        return Batch(tuple(entries), more, is_complete, damaged)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    def _start(self, after: tuple[str, int] | None, since_ms: int | None) -> tuple[list[int], bool]:
        """The place before the first entry wanted, and whether nothing behind it was deleted."""
        if since_ms is not None:
            row = self._database.execute(
                "SELECT CAST(epoch AS INTEGER), CAST(seq AS INTEGER) FROM entries"
                " WHERE wall_ms >= ? ORDER BY epoch, seq LIMIT 1",
                (since_ms,),
            ).fetchone()
            last = self._database.execute("SELECT max(number) FROM epochs").fetchone()[0] or 0
            # a broken file may have NULL where the schema says NOT NULL
            return ([row[0] or 0, (row[1] or 0) - 1] if row else [last + 1, 0]), True
        if after is None:
            return [0, 0], True
        epoch, seq = after
        number = self._epoch(epoch)
        if number is None:
            return [0, 0], False
        deleted = self._deleted()
        return [number, seq], [number, seq] >= deleted

    def _end(self, until: tuple[str, int]) -> list[int] | None:
        number = self._epoch(until[0])
        return None if number is None else [number, until[1]]

    def _epoch(self, epoch: str) -> int | None:
        row = self._database.execute(
            "SELECT number FROM epochs WHERE epoch = ?", (epoch,)
        ).fetchone()
        return None if row is None else int(row[0])

    def _deleted(self) -> list[int]:
        """Place of the newest entry that was deleted."""
        return [fact(self._database, "deleted_epoch"), fact(self._database, "deleted_seq")]

    def _has_hole(self, start: list[int], end: list[int] | None) -> bool:
        sql = "SELECT 1 FROM holes WHERE (epoch, seq) > (?, ?)"
        values = [*start]
        if end is not None:
            sql += " AND (epoch, seq) <= (?, ?)"
            values += end
        return self._database.execute(f"{sql} LIMIT 1", values).fetchone() is not None


def _entry_of(row: tuple[object, ...]) -> Entry | None:
    """Return what a row holds; None where it is not what was written: SQLite checks no type."""
    match row:
        case (str(epoch), int(seq), int(wall_ms), bytes(body)):
            with contextlib.suppress(WireError, UnicodeDecodeError):
                body.decode()  # the codec takes any bytes for the name of an unknown field
                return Entry(epoch, seq, wall_ms, body, decode_last_word(body))
    return None


def purge_file(path: Path, *, before_ms: int | None) -> int:
    """Delete entries from a file that a daemon may be writing, and the space they took.

    Raises:
        JournalMissing, JournalDamaged, JournalUnusable: There is no such journal.
        sqlite3.Error: The disk does not let us.
    """
    JournalReader(path).close()
    with naming_damage(path), contextlib.closing(connect(path)) as database:
        database.execute("PRAGMA secure_delete = ON").fetchone()
        deleted = purge(database, before_ms=before_ms)
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return deleted
