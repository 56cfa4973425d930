"""Log lines for people and for the journal."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import pytest

from voiced.engine.loglines import JournalFormatter, formatter_for


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("voiced.test", level, "file", 1, text, (), None)


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
        (logging.CRITICAL, "<2>"),
    ],
)
def test_every_line_for_the_journal_begins_with_its_priority(level: int, prefix: str) -> None:
    lines = JournalFormatter().format(record(level, "first\nsecond")).splitlines()
    assert lines == [f"{prefix}voiced.test: first", f"{prefix}second"]


def test_only_the_stream_that_systemd_connected_gets_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w") as journal, (tmp_path / "file").open("w") as file:
        status = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert isinstance(formatter_for(journal), JournalFormatter)
        assert not isinstance(formatter_for(file), JournalFormatter)
        assert not isinstance(formatter_for(io.StringIO()), JournalFormatter)
