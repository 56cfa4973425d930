"""The spool: closed segments that nobody has answered yet, one file each.

A file is there before its segment is announced as closed, and goes when the journal has the
answer. What is there at the start was closed and not answered: the last run was killed, or the
power was cut. Belongs to one thread; `read` may be called from any.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from voiced.audio.frames import Segment
from voiced.daemon.errors import SpoolDamaged, SpoolFull

FOLDER_NAME = "spool"
_MODE = 0o600  # what people said is private
_NAME = re.compile(r"(?P<origin>[0-9A-Za-z]+)-(?P<segment>\d+)\.(?P<stream>.+)\.seg")
_TRIES = ".tries"
_MAX_HEADER_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Heard:
    """A closed segment with all that its answer needs."""

    segment: Segment
    origin: str
    """Epoch of the run in which it was heard."""
    revision: int
    """That its answer has."""
    wall_ms: int
    """When it was closed, Unix time."""
    lived_ms: int | None = None
    """How long the journal had lived then; None: it was not open."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    origin: str
    segment: int
    stream: str
    start_sample: int
    language: str | None
    revision: int
    wall_ms: int
    crc32: int
    """Of the audio."""
    lived_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that an earlier run left."""

    path: Path
    origin: str
    segment: int
    stream: str
    attempts: int
    """Runs that have tried to answer it before."""
    size: int
    mtime_s: float
    lived_ms: int | None = None
    """How long the journal had lived when this was found."""


class Spool:
    """Keeps segments in a folder, up to a number of bytes."""

    def __init__(self, folder: Path, *, max_bytes: int, survives_power_cut: bool = True) -> None:
        """Make the folder; half-written files of an earlier run are removed.

        Raises:
            OSError: The disk does not let us.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob("*.part"):
            path.unlink()
        for path in folder.glob(f"*{_TRIES}"):
            if not path.with_suffix("").exists():
                path.unlink()
        self._folder, self._max_bytes = folder, max_bytes
        self._syncs = survives_power_cut
        self._sizes: dict[tuple[str, int], tuple[Path, int]] = {
            (each.origin, each.segment): (each.path, each.size) for each in self.leftovers()
        }

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self._sizes.values())

    def put(self, heard: Heard) -> None:
        """Keep a segment.

        Raises:
            SpoolFull: It does not fit; nothing is kept.
            OSError: The disk does not let us; nothing is kept.
        """
        data = encode(heard)
        if self.size + len(data) > self._max_bytes:
            raise SpoolFull(self._folder, self.size, self._max_bytes)
        key = heard.origin, heard.segment.id
        path = self._folder / f"{heard.origin}-{heard.segment.id}.{heard.segment.stream}.seg"
        temporary = path.with_name(f"{path.name}.part")
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(data)
                if self._syncs:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._sizes[key] = path, len(data)
        self._sync_folder()

    def remove(self, origin: str, segment: int) -> None:
        """Forget a segment; nothing happens when it is not there.

        Raises:
            OSError: The disk does not let us.
        """
        kept = self._sizes.get((origin, segment))
        if kept is not None:
            kept[0].unlink(missing_ok=True)
            tries_path(kept[0]).unlink(missing_ok=True)
            del self._sizes[(origin, segment)]

    def leftovers(self) -> list[Leftover]:
        """List what is there, oldest first.

        Raises:
            OSError: The disk does not let us.
        """
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name is not None:
                    facts = entry.stat()
                    found.append(
                        Leftover(
                            Path(entry.path),
                            name["origin"],
                            int(name["segment"]),
                            name["stream"],
                            _tries(Path(entry.path)),
                            facts.st_size,
                            facts.st_mtime,
                        )
                    )
        return sorted(found, key=lambda each: (each.mtime_s, each.segment))

    def _sync_folder(self) -> None:
        if not self._syncs:
            return
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def tries_path(path: Path) -> Path:
    """Beside a segment's file: one byte for each run of the daemon that began to answer it."""
    return path.with_name(path.name + _TRIES)


def count_attempt(path: Path) -> None:
    """Note on the disk that a run begins to answer a segment: one that kills daemons must end.

    Raises:
        OSError: The disk does not let us.
    """
    with open(tries_path(path), "ab", opener=_private) as file:
        file.write(b"1")


def _tries(path: Path) -> int:
    try:
        return tries_path(path).stat().st_size
    except FileNotFoundError:
        return 0


def encode(heard: Heard) -> bytes:
    """Write a segment: a line of JSON, then int16 samples, little-endian."""
    segment = heard.segment
    pcm = segment.pcm.astype("<i2", copy=False).tobytes()
    header = _Header(
        v=1,
        origin=heard.origin,
        segment=segment.id,
        stream=segment.stream,
        start_sample=segment.start_sample,
        language=segment.language,
        revision=heard.revision,
        wall_ms=heard.wall_ms,
        crc32=zlib.crc32(pcm),
        lived_ms=heard.lived_ms,
    )
    return msgspec.json.encode(header) + b"\n" + pcm


def read(path: Path) -> Heard:
    """Read a file that `Spool.put` has written.

    Raises:
        SpoolDamaged: It is something else, or was changed.
        OSError: It cannot be read.
    """
    return decode(path.read_bytes(), path)


def decode(data: bytes, path: Path) -> Heard:
    """Read the content of a file.

    Raises:
        SpoolDamaged: It is not what `encode` writes.
    """
    line, newline, pcm = data[: _MAX_HEADER_BYTES + 1].partition(b"\n")
    if not newline:
        raise SpoolDamaged(path, "no header line")
    pcm = data[len(line) + 1 :]
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolDamaged(path, f"header: {error}") from error
    if header.v != 1:
        raise SpoolDamaged(path, f"version {header.v}")
    if len(pcm) % 2 or zlib.crc32(pcm) != header.crc32:
        raise SpoolDamaged(path, "audio is not what was written")
    segment = Segment(
        id=header.segment,
        stream=header.stream,
        start_sample=header.start_sample,
        pcm=np.frombuffer(pcm, "<i2").astype(np.int16),
        language=header.language,
    )
    return Heard(segment, header.origin, header.revision, header.wall_ms, header.lived_ms)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, _MODE)
