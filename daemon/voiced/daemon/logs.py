"""Log lines on stderr: what the daemon, its plugins and the command line set up."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import sys
import time
from typing import Any, TextIO

from voiced.engine.loglines import formatter_for

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send our log lines of at least `level`, and warnings of libraries, to stderr.

    Replaces what an earlier call set up.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter_for(handler.stream))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("voiced").setLevel(level.upper())


class LoopErrors:
    """Says in one line a minute that no connection can be taken: asyncio has a traceback for each
    of a hundred tries a second. Anything else is left to asyncio."""

    def __init__(self) -> None:
        self._told_s = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what the loop could not; see `loop.set_exception_handler`."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_s > 60:
            self._told_s = time.monotonic()
            logger.error("no connection can be taken: %s; see `LimitNOFILE` of the unit", error)


def set_level(level: str) -> None:
    """Change the least severe level of our lines."""
    logging.getLogger("voiced").setLevel(level.upper())
