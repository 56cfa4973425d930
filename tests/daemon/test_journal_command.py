"""`voiced journal`: what people get out of a journal, and out of the way."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.daemon.kept import NOW_MS, final, heard

from voiced.daemon.commands.journal import (
    Selection,
    journal_export,
    journal_list,
    journal_purge,
)
from voiced.daemon.commands.times import since_ms
from voiced.daemon.errors import JournalMissing, JournalRefused, TimeError
from voiced.daemon.exit_status import exit_status
from voiced.daemon.journal import Journal, Record
from voiced.daemon.journal_file import FILE_NAME, FolderLock
from voiced.daemon.spool import Spool
from voiced.daemon.wire import Failed

ALL = Selection()
SECOND_MS = 1_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / FILE_NAME, "e1", started_ms=NOW_MS, survives_power_cut=False)
    failed = Failed(stream="desk", epoch="e1", seq=4, wall_ms=NOW_MS + 2_000, segment=4,
                    code="busy", message="full")  # fmt: skip
    journal.append([
        final(1, text="open, the \"window\""),
        final(2, text="开门", stream="car", wall_ms=NOW_MS + 1_000),
        final(3, text="", wall_ms=NOW_MS + 1_500),
        Record(failed),
        final(5, text="again", wall_ms=NOW_MS + 60_000, recovered="e0"),
    ])  # fmt: skip
    journal.close()
    return tmp_path


def test_damaged_entries_are_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as database, database:
        database.execute("UPDATE entries SET body = 'gone' WHERE seq = 1")
        database.execute("UPDATE entries SET wall_ms = ? WHERE seq = 2", (1 << 62,))
    assert journal_list(folder, ALL) == 0
    said = capsys.readouterr()
    assert said.out.startswith("?  car  2  开门\n")
    assert len(said.out.splitlines()) == 4
    assert said.err == f"voiced: {folder / FILE_NAME}: 1 entries are damaged and left out\n"


def test_the_list_has_a_line_for_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert journal_list(folder, ALL) == 0
    lines = [line.split("  ")[1:] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["desk", "1", 'open, the "window"'],
        ["car", "2", "开门"],
        ["desk", "3", "(no speech)"],
        ["desk", "4", "(busy)"],
        ["desk", "5", "again (recovered)"],
    ]
    assert journal_list(folder, Selection(stream="desk"), last=2) == 0
    assert [line.split("  ")[2] for line in capsys.readouterr().out.splitlines()] == ["4", "5"]
    selection = Selection(since_ms=NOW_MS + 1_000, before_ms=NOW_MS + 2_000)
    assert journal_list(folder, selection) == 0
    assert [line.split("  ")[2] for line in capsys.readouterr().out.splitlines()] == ["2", "3"]


def test_exports_hold_what_was_on_the_bus(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert journal_export(folder, ALL, "jsonl", out) == 0
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert lines[1] == json.loads(final(2, text="开门", stream="car", wall_ms=NOW_MS + 1_000).body(
        keep_text=True))  # fmt: skip
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert journal_export(folder, ALL, "csv", out) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ['open, the "window"', "开门", "", "", "again"]
    assert [row["type"] for row in rows] == ["final", "final", "final", "failed", "final"]
    assert rows[3]["code"] == "busy"
    assert rows[4]["recovered"] == "e0"


def test_subtitles_are_of_one_stream(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert journal_export(folder, ALL, "srt", out) == 2
    assert "choose with --stream: car, desk" in capsys.readouterr().err
    assert journal_export(folder, Selection(stream="desk"), "srt", out) == 0
    assert out.read_text() == (
        '1\n00:00:00,000 --> 00:00:00,900\nopen, the "window"\n\n'
        "2\n00:01:00,000 --> 00:01:00,900\nagain\n"
    )


def test_purge_deletes_what_is_old_or_everything(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Spool(folder / "spool", max_bytes=1 << 20).put(heard(9))
    (folder / f"{FILE_NAME}.damaged-5").write_bytes(b"old words")
    assert journal_purge(folder, older_than="2023-11-14T22:13:22+00:00", everything=False) == 0
    assert capsys.readouterr().out.startswith("3 entries deleted")
    with_daemon = FolderLock(folder)
    assert journal_purge(folder, older_than=None, everything=True) == 0
    assert "audio of 1 segments stays" in capsys.readouterr().out
    with_daemon.close()
    assert journal_purge(folder, older_than=None, everything=True) == 0
    assert "audio of 1 segments deleted" in capsys.readouterr().out
    assert journal_list(folder, ALL) == 0
    assert capsys.readouterr().out == ""
    assert list((folder / "spool").iterdir()) == []
    assert not any(b"window" in each.read_bytes() for each in folder.glob("journal*"))
    assert list(folder.glob("*.damaged-*")) == []


@pytest.mark.parametrize(("older_than", "everything"), [(None, False), ("7d", True)])
def test_purge_deletes_nothing_by_default(
    folder: Path, older_than: str | None, everything: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert journal_purge(folder, older_than=older_than, everything=everything) == 2
    assert "say what to delete" in capsys.readouterr().err


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalMissing, match=r"journal\.enabled"):
        journal_list(tmp_path, ALL)
    assert exit_status("journal_missing") == 3
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(JournalMissing):
        journal_purge(tmp_path, older_than=None, everything=True)


def test_a_journal_that_another_holds_too_long_is_an_error_with_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voiced.daemon.journal_file._BUSY_S", 0.01)
    journal = Journal(folder / FILE_NAME, "e2", started_ms=NOW_MS, survives_power_cut=False)
    journal._database.execute("BEGIN IMMEDIATE")
    with pytest.raises(JournalRefused, match=f"{FILE_NAME}: database is locked"):
        journal_purge(folder, older_than=None, everything=True)
    journal.close()


def test_times_are_ages_or_dates() -> None:
    now_s = 1_000_000.0
    assert since_ms("90s", now_s=lambda: now_s) == 1_000_000_000 - 90_000
    assert since_ms("1.5h", now_s=lambda: now_s) == 1_000_000_000 - 5_400_000
    assert since_ms("7d", now_s=lambda: now_s) == 1_000_000_000 - 604_800_000
    assert since_ms("all") == 0
    assert since_ms("2023-11-14T22:13:20+00:00") == NOW_MS
    for text in ("", "yesterday", "5", "5w", "2026-13-01", "-5m", "99999999999d"):
        with pytest.raises(TimeError, match="is no time"):
            since_ms(text)
    assert exit_status("time") == 2
