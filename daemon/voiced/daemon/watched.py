"""Files that the daemon reads again when they change: certificates, tokens, keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from voiced.daemon.errors import DaemonError, os_reason

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_INTERVAL_S = 2.0
"""How often the files are looked at."""


class FileRefused(DaemonError):
    """A file that the daemon was told to use cannot be used."""

    code = "config"

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_guarded(path: Path, *, max_bytes: int, is_secret: bool) -> bytes:
    """Read a small file that decides who may connect.

    Args:
        path: Which.
        max_bytes: A longer one is not read.
        is_secret: Others may not even read it.

    Raises:
        FileRefused: It cannot be read, is too long, or others may write (or read) it.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode & 0o777
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise FileRefused(path, f"cannot be read: {os_reason(error)}") from error
    if mode & (0o027 if is_secret else 0o022):
        allowed = "640" if is_secret else "644"
        raise FileRefused(
            path,
            f"has mode {mode:o}, expected at most {allowed}: others could "
            f"{'read' if is_secret else 'change'} it; run `chmod {allowed} {path}`",
        )
    if len(data) > max_bytes:
        raise FileRefused(path, f"is longer than {max_bytes} bytes")
    return data


class Watched(Generic[T]):
    """What some files say, as last read without an error. Belongs to the loop.

    `value` is replaced as a whole: a file that is damaged, gone or half written changes nothing
    and is warned about once.
    """

    def __init__(self, paths: Iterable[Path], read: Callable[[], T]) -> None:
        """Read now.

        Raises:
            DaemonError: What `read` raises.
        """
        self._paths, self._read = tuple(paths), read
        self._seen = self._signature()
        self._complaint = ""
        self.value = read()
        self.reloads = 0
        """Times that a new value was taken, since the start."""

    def refresh(self, *, is_forced: bool = False) -> bool:
        """Read again if a file has changed, or in any case; return whether a new value came."""
        signature = self._signature()
        if signature == self._seen and not is_forced:
            return False
        try:
            self.value = self._read()
        except DaemonError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("not reloaded, the old content stays: %s", error)
            return False
        self._seen, self._complaint = signature, ""
        self.reloads += 1
        logger.info("reloaded file=%s", self._paths[0])
        return True

    def _signature(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)
