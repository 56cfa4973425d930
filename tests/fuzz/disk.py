"""What is read back from the disk, the journal above all, and what its socket is asked."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from voiced.daemon import spool, wire
from voiced.daemon.commands.journal import Selection, cues, read, write_csv
from voiced.daemon.commands.subtitles import to_srt
from voiced.daemon.errors import JournalError
from voiced.daemon.journal import Journal, Record
from voiced.daemon.journal_file import FILE_NAME
from voiced.daemon.journal_reader import JournalReader
from voiced.daemon.metrics import Metrics
from voiced.daemon.replay import MAX_REQUEST_BYTES, ReplayServer

REFUSES = (JournalError, sqlite3.Error)
EPOCH = "71d0a2c09b35fe48"
ASKED = wire.encode(wire.Replay(v=1, id=1, after=wire.Position(EPOCH, 0)))
_ODD: tuple[Callable[[bytes], object], ...] = (
    bytes,
    lambda data: data.decode("utf-8", "replace"),
    lambda data: int.from_bytes(data[:8], "little", signed=True),
    lambda data: float(len(data)),
    lambda data: None,
)
"""What a row may hold instead of what was written: SQLite checks no type."""
_COLUMNS = ("body", "epoch", "seq", "wall_ms", "origin", "segment", "stream")


def final(seq: int, text: str = "open") -> wire.Final:
    """One last word."""
    return wire.Final(
        stream="desk", segment=seq, revision=1, text=text, language="en", confidence=0.5,
        start_ms=0, end_ms=9, latency_ms=1, epoch=EPOCH, seq=seq, wall_ms=1_700_000_000_000 + seq,
    )  # fmt: skip


class Folder:
    """A folder in memory with a small sound journal to spoil."""

    def __init__(self) -> None:
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = tempfile.TemporaryDirectory(prefix="voiced-fuzz-", dir=shm)
        atexit.register(folder.cleanup)
        self.path = Path(folder.name) / FILE_NAME
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            database.execute("PRAGMA page_size = 512")  # small, so that a change hits something
            database.execute("VACUUM")
        journal = Journal(self.path, EPOCH, started_ms=1)
        journal.append([Record(final(seq)) for seq in (1, 2, 3)], [(EPOCH, 9)])
        journal.close()
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            database.execute("PRAGMA journal_mode = DELETE")
        self.sound = self.path.read_bytes()
        self.server = ReplayServer(
            "tcp://127.0.0.1:*", self.path, unwritten=lambda: 0, metrics=Metrics()
        )

    def put(self, data: bytes) -> None:
        """Begin anew with this file alone."""
        for each in self.path.parent.iterdir():
            each.unlink()
        self.path.write_bytes(data)

    def look(self) -> object:
        """Do all that is done with a journal; the daemon's socket answers whatever is in it."""
        answer, outcome = self.server._answer(ASKED)
        wire.decode_answer(answer)
        with JournalReader(self.path) as reader:
            reader.read(since_ms=1, limit=2)
        with contextlib.redirect_stderr(io.StringIO()):
            entries = list(read(self.path, Selection()))
        write_csv(entries, io.StringIO())
        to_srt(cues(entries))
        journal = Journal(self.path, "another", started_ms=2, survives_power_cut=False)
        try:
            journal.append([Record(final(seq)) for seq in (2, 4)])
            journal.has(EPOCH, 1)
            journal.look(1_700_000_000_002, 86_400_000)
            journal.retain(max_bytes=4_096)
        finally:
            journal.close()
        return f"{outcome} {len(entries)}"


def file_reader() -> Callable[[bytes], object]:
    """Patches of a sound file one after another: place (2 bytes), length, bytes."""
    folder = Folder()

    def run(data: bytes) -> object:
        found = bytearray(folder.sound)
        at = 0
        while at + 3 <= len(data):
            place = int.from_bytes(data[at : at + 2], "little") % len(found)
            patch = data[at + 3 : at + 3 + data[at + 2]]
            found[place : place + len(patch)] = patch
            at += 3 + data[at + 2]
        folder.put(bytes(found[: len(folder.sound)]))
        return folder.look()

    return run


def row_reader() -> Callable[[bytes], object]:
    """Rows with one value that nobody wrote: its column, its type, its content."""
    folder = Folder()

    def run(data: bytes) -> object:
        folder.put(folder.sound)
        with contextlib.closing(sqlite3.connect(folder.path)) as database, database:
            for number, part in enumerate(data.split(b"\xfe")[:8]):
                head = part[:2].ljust(2, b"\0")
                odd = _ODD[head[1] % len(_ODD)](part[2:])
                column = head[0] % (len(_COLUMNS) + 2)
                if column == len(_COLUMNS):
                    sql = "UPDATE epochs SET epoch = ?1"
                elif column > len(_COLUMNS):
                    sql = "UPDATE facts SET value = ?1"
                else:
                    sql = f"UPDATE entries SET {_COLUMNS[column]} = ?1 WHERE seq = ?2"
                with contextlib.suppress(sqlite3.IntegrityError):
                    database.execute(sql, (odd, number + 1)[: sql.count("?")])
        return folder.look()

    return run


def asker() -> Callable[[bytes], object]:
    """What the replay socket is asked; every question has an answer that can be read."""
    folder = Folder()

    def run(data: bytes) -> object:
        answer, outcome = folder.server._answer(data[:MAX_REQUEST_BYTES])
        message = wire.decode_answer(answer)
        if isinstance(message, wire.Refused):
            assert outcome == message.code == "bad_message"
            raise wire.WireError(message.message)
        assert outcome == "page"
        return f"{len(message.messages)} {message.more} {message.complete}"

    return run


def read_spooled(data: bytes) -> object:
    """A segment's file: a header line and sound."""
    heard = spool.decode(data, Path("x.seg"))
    again = spool.decode(spool.encode(heard), Path("x.seg"))
    assert again.segment.pcm.tobytes() == heard.segment.pcm.tobytes()
    return heard
