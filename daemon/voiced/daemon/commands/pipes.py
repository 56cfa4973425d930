"""Standard output whose reader went away (`voiced transcribe … | head`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BROKEN_PIPE_EXIT = 141
"""What a shell reports for a program that SIGPIPE ended: 128 + 13."""


class ReaderGone(SystemExit):
    """Nobody reads standard output any more; the program ends without a message."""

    def __init__(self) -> None:
        super().__init__(BROKEN_PIPE_EXIT)


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Turn a broken pipe into a silent exit, as Unix tools do.

    Raises:
        ReaderGone: Writing to standard output failed because its reader closed it.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from None
