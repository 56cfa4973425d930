"""Log lines on stderr: what the daemon, its plugins and the command line set up."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from voiced.engine.loglines import formatter_for


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


def set_level(level: str) -> None:
    """Change the least severe level of our lines."""
    logging.getLogger("voiced").setLevel(level.upper())
