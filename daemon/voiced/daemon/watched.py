"""Files that the daemon reads again when they change: certificates, tokens, keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from voiced.daemon.errors import DaemonError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_INTERVAL_S = 2.0
"""How often the files are looked at."""


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
