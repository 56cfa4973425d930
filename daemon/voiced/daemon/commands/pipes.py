"""Standard streams that are not there: a reader went away (`… | head`), or they were closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from voiced.daemon.exit_status import EXIT_READER_GONE


class ReaderGone(SystemExit):
    """Nobody reads standard output any more; the program ends without a message."""

    def __init__(self) -> None:
        super().__init__(EXIT_READER_GONE)


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Turn a broken pipe into a silent exit, as Unix tools do.

    Raises:
        ReaderGone: Writing to standard output failed because its reader closed it.
    """
    try:
        try:
            yield
        except (SystemExit, RuntimeError):  # typer's Exit, which carries the status, is the latter
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        drop_unwritten_output()
        raise ReaderGone from None


def drop_unwritten_output() -> None:
    """Send what standard output could not take to the null device.

    The interpreter flushes it once more when it exits, and would fail again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def replace_closed_streams() -> None:
    """Open the null device in place of standard streams that are closed (`voiced run 2>&-`).

    Else the next file or socket would get their number, and what a library complains about on
    standard error would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
