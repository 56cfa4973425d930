"""The journal's file: its tables, how it is opened and checked, and what is done to it as a whole.

SQLite in WAL mode, so that others may read while the daemon writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from voiced.daemon.age_clock import FIRST_PLAUSIBLE_MS
from voiced.daemon.errors import JournalBusy, JournalDamaged, JournalUnusable

FILE_NAME = "journal.db"
SCHEMA = 1
MODE = 0o600
"""Of every file here: what people said is private."""
_BUSY_S = 5.0
"""Wait for `voiced journal purge`, which may rewrite the file."""
_CHECK_S = 1.0
"""Longest check of a file at its opening; a larger one is taken as good."""

TABLES = """
CREATE TABLE IF NOT EXISTS epochs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch TEXT NOT NULL UNIQUE,
    started_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS entries (
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    stream TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (epoch, seq),
    UNIQUE (origin, segment)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_wall_ms ON entries (wall_ms);
CREATE TABLE IF NOT EXISTS holes (epoch INTEGER NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ages (
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    lived_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the journal and the spool are: the service manager's folder, else the user's."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    base = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "voiced"


_LOOKS, _LOOK_S = 20, 0.05
"""How often a folder's lock is read for its holder's number, and how long after each other."""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


class FolderLock:
    """Keeps a second daemon out of a folder; the system lets go of it when the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            JournalBusy: Another process has it.
            OSError: The folder cannot be made or written to.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._fd)
            raise JournalBusy(folder, holder) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds, the name is a courtesy
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _holder(self) -> str:
        """Read whose it is; empty: not known. Waits for one that has just taken it to say so.

        Until then the file has nothing, or the number of one that held it before and has ended.
        """
        for _ in range(_LOOKS):
            name = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            if name.isdecimal() and _is_running(int(name)):
                return name
            time.sleep(_LOOK_S)
        return ""

    def close(self) -> None:
        """Let go. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def purge(database: sqlite3.Connection, *, before_ms: int | None) -> int:
    """Delete entries up to the last one dated before `before_ms`, or all; return how many.

    Raises:
        sqlite3.Error: The disk does not let us.
    """
    sql, values = "SELECT epoch, seq FROM entries", []
    if before_ms is not None:
        sql += " WHERE wall_ms < ? AND wall_ms > ?"
        values = [before_ms, FIRST_PLAUSIBLE_MS]
    row = database.execute(f"{sql} ORDER BY epoch DESC, seq DESC LIMIT 1", values).fetchone()
    return 0 if row is None else delete_until(database, *row)


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Tell a broken file from a disk that is full, read-only or busy.

    Raises:
        JournalDamaged: The body found the file to be broken.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        is_no_text = code is None and isinstance(error, sqlite3.OperationalError)
        if is_no_text or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise JournalDamaged(path, str(error)) from error
        raise
    except (UnicodeDecodeError, OverflowError) as error:  # of a schema that is quoted; of a number
        raise JournalDamaged(path, str(error)) from error


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's own number; None where Python complains: of text that is no UTF-8, for one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def set_aside(path: Path, *, wall_ms: int) -> Path:
    """Rename a damaged journal with its side files, so that a new one can be begun.

    Raises:
        OSError: The folder does not let us.
    """
    aside = path.with_name(f"{path.name}.damaged-{wall_ms}")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(f"{aside}{suffix}")
    return aside


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit what the body does, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the first error counts; sqlite may have done it
            database.execute("ROLLBACK")
        raise


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    mode = "ro" if read_only else "rw"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_S,
        check_same_thread=False,  # one owner at a time; it is closed by another than its user
    )


def check(database: sqlite3.Connection, path: Path) -> None:
    """Find damage within a bounded time, and files that a newer voiced has written."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        raise JournalUnusable(path, version, SCHEMA)
    deadline_s = time.monotonic() + _CHECK_S
    database.set_progress_handler(lambda: time.monotonic() > deadline_s, 10_000)
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_INTERRUPT:
            raise
        found = "ok"
    finally:
        database.set_progress_handler(None, 0)
    if found != "ok":
        raise JournalDamaged(path, str(found))


def delete_until(database: sqlite3.Connection, epoch: int, seq: int) -> int:
    with transaction(database):
        count = database.execute(
            "DELETE FROM entries WHERE (epoch, seq) <= (?, ?)", (epoch, seq)
        ).rowcount
        database.execute("DELETE FROM holes WHERE (epoch, seq) <= (?, ?)", (epoch, seq))
        set_fact(database, "deleted_epoch", epoch)
        set_fact(database, "deleted_seq", seq)
    return count


def fact(database: sqlite3.Connection, key: str) -> int:
    row = database.execute(
        "SELECT CAST(value AS INTEGER) FROM facts WHERE key = ?", (key,)
    ).fetchone()
    return 0 if row is None else int(row[0] or 0)  # NULL in a broken file


def set_fact(database: sqlite3.Connection, key: str, value: int) -> None:
    database.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )
