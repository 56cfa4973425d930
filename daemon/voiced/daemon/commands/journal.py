"""`voiced journal list | export | purge`: what the daemon has kept, for people.

All three work on the files, whether or not a daemon runs.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from voiced.daemon.commands.subtitles import Cue, to_srt
from voiced.daemon.commands.times import since_ms
from voiced.daemon.config import load
from voiced.daemon.errors import JournalBusy, JournalError, JournalRefused
from voiced.daemon.journal_file import FILE_NAME, FolderLock
from voiced.daemon.journal_reader import Entry, JournalReader, purge_file
from voiced.daemon.persistence import folder_of
from voiced.daemon.spool import FOLDER_NAME
from voiced.daemon.wire import Final, LastWord

EXIT_OK, EXIT_USAGE = 0, 2
_COLUMNS = ("time", "stream", "segment", "type", "start_ms", "end_ms", "language", "confidence",
            "text", "code", "recovered")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries are meant."""

    since_ms: int | None = None
    before_ms: int | None = None
    stream: str | None = None

    @classmethod
    def of(cls, since: str | None, before: str | None, stream: str | None) -> Selection:
        """Read the options of the command line.

        Raises:
            TimeError: A text says no time.
        """
        return cls(
            None if since is None else since_ms(since),
            None if before is None else since_ms(before),
            stream,
        )


def journal_list(folder: Path | None, selection: Selection, *, last: int | None = None) -> int:
    """Print entries, one line each; return the exit status.

    Raises:
        JournalError: There is no journal, or it cannot be read.
    """
    entries: Iterable[Entry] = read(journal_path(folder), selection)
    for entry in entries if last is None else deque(entries, maxlen=last):
        message = entry.message
        print(f"{_time(entry.wall_ms)}  {message.stream}  {message.segment}  {_said(message)}")
    return EXIT_OK


def journal_export(
    folder: Path | None, selection: Selection, output_format: str, out: Path | None
) -> int:
    """Write entries as `jsonl`, `csv` or `srt`; return the exit status.

    Raises:
        JournalError: There is no journal, or it cannot be read.
        OSError: `out` cannot be written.
    """
    entries = read(journal_path(folder), selection)
    if output_format == "srt":
        found = list(entries)
        if len(streams := {each.message.stream for each in found}) > 1:
            names = ", ".join(sorted(streams))
            print(f"voiced: subtitles are of one stream; choose with --stream: {names}",
                  file=sys.stderr)  # fmt: skip
            return EXIT_USAGE
        entries = iter(found)
    with _output(out) as file:
        if output_format == "jsonl":
            for entry in entries:
                file.write(entry.body.decode() + "\n")
        elif output_format == "csv":
            write_csv(entries, file)
        else:
            file.write(to_srt(cues(entries)))
    return EXIT_OK


def journal_purge(folder: Path | None, *, older_than: str | None, everything: bool) -> int:
    """Delete entries for good; return the exit status.

    Raises:
        JournalError: There is no journal, or it cannot be changed.
        TimeError: `older_than` says no time.
    """
    if (older_than is None) == (not everything):
        print("voiced: say what to delete: --older-than WHEN, or --all", file=sys.stderr)
        return EXIT_USAGE
    path = journal_path(folder)
    before_ms = None if older_than is None else since_ms(older_than)
    with _named(path):
        deleted = purge_file(path, before_ms=before_ms)
    print(f"{deleted} entries deleted from {path}")
    if everything:
        for aside in sorted(path.parent.glob(f"{FILE_NAME}.damaged-*")):
            aside.unlink()
            print(f"deleted {aside}")
        _clear_spool(path.parent)
    return EXIT_OK


def journal_path(folder: Path | None) -> Path:
    """The journal of a folder, or of the settings."""
    return (folder_of(load().settings.journal) if folder is None else folder) / FILE_NAME


def read(path: Path, selection: Selection) -> Iterator[Entry]:
    """Read entries page by page.

    Raises:
        JournalError: There is no journal, or it cannot be read.
    """
    with _named(path), JournalReader(path) as reader:
        after, since, damaged = None, selection.since_ms, 0
        while True:
            batch = reader.read(
                after=after,
                since_ms=since,
                before_ms=selection.before_ms,
                stream=selection.stream,
                limit=1_000,
            )
            yield from batch.entries
            damaged += batch.damaged
            if not batch.more:
                if damaged:
                    print(
                        f"voiced: {path}: {damaged} entries are damaged and left out",
                        file=sys.stderr,
                    )
                return
            after, since = (batch.entries[-1].epoch, batch.entries[-1].seq), None


def write_csv(entries: Iterable[Entry], file: TextIO) -> None:
    """Write a table with a line of headings (RFC 4180)."""
    table = csv.writer(file)
    table.writerow(_COLUMNS)
    for entry in entries:
        fields = {**json.loads(entry.body), "time": _time(entry.wall_ms)}
        table.writerow([fields.get(column, "") for column in _COLUMNS])


def cues(entries: Iterable[Entry]) -> Iterator[Cue]:
    """Turn one stream's finals into subtitles; times count from the first of them, by the clock."""
    first_s: float | None = None
    for entry in entries:
        message = entry.message
        if isinstance(message, Final) and message.text:
            end_s = (entry.wall_ms - message.latency_ms) / 1000
            start_s = end_s - (message.end_ms - message.start_ms) / 1000
            first_s = start_s if first_s is None else first_s
            yield Cue(max(0.0, start_s - first_s), max(0.0, end_s - first_s), message.text)


def _clear_spool(folder: Path) -> None:
    files = sorted((folder / FOLDER_NAME).glob("*.seg*"))
    if not files:
        return
    try:
        with contextlib.closing(FolderLock(folder)):
            for path in files:
                path.unlink(missing_ok=True)
    except JournalBusy:
        print(f"audio of {len(files)} segments stays: the daemon that runs is answering them")
        return
    print(f"audio of {len(files)} segments deleted")


def _said(message: LastWord) -> str:
    if not isinstance(message, Final):
        return f"({message.code})"
    mark = " (recovered)" if message.recovered else ""
    if message.withheld:
        return f"(not kept){mark}"
    return f"{message.text or '(no speech)'}{mark}"


def _time(wall_ms: int) -> str:
    try:
        when = datetime.fromtimestamp(wall_ms / 1000).astimezone()
    except (ValueError, OverflowError, OSError):  # no time of this calendar: a damaged entry
        return "?"
    return when.isoformat(timespec="milliseconds")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file it was that the system did not let us use."""
    try:
        yield
    except JournalError:
        raise
    except sqlite3.Error as error:
        raise JournalRefused(path, str(error)) from error


def _output(out: Path | None) -> AbstractContextManager[TextIO]:
    if out is not None:
        return out.open("w", encoding="utf-8", newline="")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(newline="")  # a line of CSV ends as that format says
    return contextlib.nullcontext(sys.stdout)
