"""Appends finals to a JSON Lines file that stays readable whatever happens to the disk."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from voiced.daemon import wire
from voiced.plugins.sdk import Plugin, PluginContext
from voiced.plugins.subscriber import Gap

logger = logging.getLogger(__name__)

WARN_EVERY_S = 60.0
_TAIL_BYTES = 1 << 20
"""Looked at for the last line; the longest line is far shorter."""
_MODE = 0o600  # what people said is private


class _Place(msgspec.Struct):
    """What a line says of its place: a final has `seq`, a gap `last`."""

    epoch: str | None = None
    seq: int | None = None
    last: int | None = None


class JsonlOptions(BaseModel):
    """Options of the jsonl plugin."""

    model_config = ConfigDict(frozen=True)

    path: Path
    """File to append to; its folder is created."""
    fsync: Literal["always", "never"] = "never"
    """`always`: a line is on the disk before the next message is taken."""
    max_mb: float = Field(default=100, gt=0)
    """The file is renamed to `.1` before it would grow beyond this."""
    keep: int = Field(default=5, ge=1, le=1000)
    """Renamed files kept: `.1` is the newest."""


class LineFile:
    """An append-only file of whole lines, rotated by size. Owned by one thread.

    A write that fails in the middle is cut off again, so that every line in the file is whole;
    the line is lost and counted. A torn line left by a crash is ended when the file is opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        keep: int,
        fsync: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost = 0
        """Lines that could not be written, since the start."""
        self._path, self._max_bytes, self._keep, self._fsync = path, max_bytes, keep, fsync
        self._now = now
        self._told_s: float | None = None
        self._told_lost = 0
        self._fd: int | None = None
        self._size = 0

    def append(self, line: bytes) -> bool:
        """Write one line (without its end); False when it was lost."""
        data = line + b"\n"
        try:
            self._make_room(len(data))
            self._write(data)
        except OSError as error:
            self._count_loss(error)
            return False
        if self._told_s is not None:
            logger.warning("writing again path=%s lost_lines=%d", self._path, self.lost)
            self._told_s = None
        return True

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _make_room(self, count: int) -> None:
        if self._fd is None:
            self._open()
        if self._size and self._size + count > self._max_bytes:
            self.close()
            self._rotate()
            self._open()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            self._size = os.fstat(self._fd).st_size
            is_torn = self._size and os.pread(self._fd, 1, self._size - 1) != b"\n"
        except OSError:
            self.close()  # unseen, a torn line would be continued
            raise
        if is_torn:
            self._write(b"\n")

    def _rotate(self) -> None:
        names = [self._path, *(Path(f"{self._path}.{n}") for n in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)

    def _write(self, data: bytes) -> None:
        assert self._fd is not None, "the file is not open"
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
            if self._fsync:
                os.fsync(self._fd)
        except OSError:
            try:
                if written:
                    os.ftruncate(self._fd, self._size)
            finally:
                # The next line opens again: the folder may have been replaced meanwhile, and what
                # could not be cut off is ended there.
                self.close()
            raise
        self._size += written

    def _count_loss(self, error: OSError) -> None:
        self.lost += 1
        now_s = self._now()
        if self._told_s is None or now_s - self._told_s >= WARN_EVERY_S:
            logger.warning(
                "line lost, trying again with the next one path=%s lost_lines=%d since_last=%d: %s",
                self._path,
                self.lost,
                self.lost - self._told_lost,
                error.strerror,
            )
            self._told_s, self._told_lost = now_s, self.lost


def last_place(path: Path) -> wire.Position | None:
    """Place on the bus of the last whole line of a file; None when it has none.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            place = msgspec.json.decode(line, type=_Place)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # torn, or the end of a line that begins further up
        if place.epoch is not None and (seq := place.last or place.seq) is not None:
            return wire.Position(place.epoch, seq)
    return None


class JsonlPlugin(Plugin):
    """Appends each final to a file, one JSON object a line, as it was on the bus."""

    name = "jsonl"
    topics = ("final/",)

    def setup(self, context: PluginContext) -> None:
        """Read the options; the file is opened with the first line."""
        super().setup(context)
        options = context.options(JsonlOptions)
        self._path = options.path.expanduser()
        self._file = LineFile(
            self._path,
            max_bytes=round(options.max_mb * 1_000_000),
            keep=options.keep,
            fsync=options.fsync == "always",
        )

    def position(self) -> wire.Position | None:
        """The last line is the position: a line and its place cannot come apart."""
        for path in (self._path, Path(f"{self._path}.1")):
            place = last_place(path)
            if place is not None:
                return place
        return None

    def on_final(self, message: wire.Final) -> None:
        """Write the message."""
        self._file.append(wire.encode(message))

    def on_gap(self, gap: Gap) -> None:
        """Leave a mark where finals may be missing."""
        mark = {"type": "gap", "epoch": gap.epoch, "first": gap.first, "last": gap.last}
        self._file.append(json.dumps(mark, separators=(",", ":")).encode())

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            self._file.close()
