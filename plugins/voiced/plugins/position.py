"""Where a plugin stands on the bus, kept over its restarts."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from voiced.daemon import wire

logger = logging.getLogger(__name__)

FILE_NAME = "position.json"
_MAX_BYTES = 1_024
_WARN_EVERY_S = 60.0


def default_folder(plugin: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The service manager's folder for this plugin, else one of the user's."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    base = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "voiced" / "plugins" / re.sub(r"[^A-Za-z0-9._-]", "_", plugin)


class PositionFile:
    """A small file, replaced whole; a disk that does not let us costs nothing but a warning."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._told_s = -_WARN_EVERY_S

    def load(self) -> wire.Position | None:
        """Return what was saved last; None when nothing (readable) was."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=wire.Position)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            logger.warning("position is lost, starting now path=%s: %s", self._path, error)
            return None

    def save(self, position: wire.Position) -> None:
        """Keep a position: it survives the end of the process at any moment."""
        temporary = self._path.with_name(f"{FILE_NAME}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_bytes(msgspec.json.encode(position))
            temporary.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            now_s = time.monotonic()
            if now_s - self._told_s >= _WARN_EVERY_S:
                self._told_s = now_s
                logger.warning("position is not kept path=%s: %s", self._path, error)


def place_of(message: object) -> wire.Position | None:
    """The place of a message that the journal has, too; None for others."""
    if not isinstance(message, wire.Final | wire.Failed):
        return None
    if message.epoch is None or message.seq is None:
        return None
    return wire.Position(message.epoch, message.seq)
