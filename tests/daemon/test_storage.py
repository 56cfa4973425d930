"""Journal and spool behind their thread: order, and every way a disk can refuse."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.daemon.kept import DAY_MS, NOW_MS, final, heard, places

from voiced.audio.clock import FakeClock
from voiced.daemon import disk_writer, spool
from voiced.daemon.disk_writer import StorageOptions, StorageState
from voiced.daemon.journal import Record
from voiced.daemon.journal_file import FILE_NAME, FolderLock
from voiced.daemon.spool import Heard, Leftover
from voiced.daemon.storage import Storage, Task

DEADLINE_S = 20.0


class Bench:
    """A storage thread whose reports are read here."""

    def __init__(
        self, folder: Path, epoch: str = "e1", wall_ms: int = NOW_MS, **options: object
    ) -> None:
        self.folder = folder
        self._reports: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
        self.opened: list[tuple[int, list[tuple[str, int]]]] = []
        self.ages: list[tuple[int | None, int | None]] = []
        """Of each leftover: how long the journal had lived when it was found and when heard."""
        self._done: list[Task] = []
        self.storage = Storage(
            StorageOptions(folder, first_retry_s=0.01, survives_power_cut=False, **options),  # type: ignore[arg-type]
            epoch,
            on_stored=self._on_stored,
            on_open=self._on_open,
            call_soon=lambda act, *arguments: act(*arguments),
            clock=FakeClock(wall_ms=wall_ms),
        )
        self.storage.start()
        self.storage.wait_open()

    def _on_stored(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._reports.put(("stored", task))

    def _on_open(self, first_segment: int, leftovers: Sequence[Leftover]) -> None:
        self.opened.append((first_segment, [(each.origin, each.segment) for each in leftovers]))
        self.ages += [(each.lived_ms, spool.read(each.path).lived_ms) for each in leftovers]
        self._reports.put(("opened", None))

    def do(self, *pieces: Heard | Record) -> None:
        """Hand work over; return when it is reported done, in order."""
        tasks = [Task(each) for each in pieces]
        for task in tasks:
            assert self.storage.submit(task)
        for task in tasks:
            while (report := self._reports.get(timeout=DEADLINE_S)) != ("stored", task):
                assert report[0] == "opened"

    def until_open(self) -> None:
        while self._reports.get(timeout=DEADLINE_S)[0] != "opened":
            pass

    @property
    def state(self) -> StorageState:
        return self.storage.status.state

    def places(self) -> list[tuple[str, int]]:
        return places(self.folder / FILE_NAME, limit=1_000)

    def spool(self) -> list[str]:
        return sorted(each.name for each in (self.folder / "spool").iterdir())


@contextlib.contextmanager
def bench(
    folder: Path, epoch: str = "e1", wall_ms: int = NOW_MS, **options: object
) -> Iterator[Bench]:
    made = Bench(folder, epoch, wall_ms, **options)
    try:
        yield made
    finally:
        assert made.storage.stop(DEADLINE_S)


def test_a_segment_is_on_the_disk_until_its_answer_is(tmp_path: Path) -> None:
    with bench(tmp_path) as it:
        it.do(heard(1), heard(2))
        assert len(it.spool()) == 2
        it.do(final(5, segment=1))
        assert it.spool() == ["e1-2.desk.seg"]
        it.do(final(6, segment=2), final(7, segment=3))
        assert it.spool() == []
        assert it.places() == [("e1", 5), ("e1", 6), ("e1", 7)]
        assert it.storage.status.written == 3


def test_the_next_run_is_told_what_was_not_answered(tmp_path: Path) -> None:
    with bench(tmp_path) as it:
        it.do(heard(1), heard(2), final(5, segment=1))
    with bench(tmp_path, "e2") as it:
        ((first, leftovers),) = it.opened
        assert leftovers == [("e1", 2)]
        assert first > 2
        it.do(final(1, epoch="e2", segment=2, recovered="e1"))
        assert it.spool() == []
    with bench(tmp_path, "e3") as it:
        assert it.opened[0][1] == []
        assert it.places() == [("e1", 5), ("e2", 1)]


def test_a_clock_years_ahead_at_a_start_deletes_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(tmp_path) as it:
        it.do(heard(1), heard(2), final(5, segment=1))
    with bench(tmp_path, "e2", NOW_MS + 10 * DAY_MS) as it:  # parked: that is believed
        assert it.ages == [(10 * DAY_MS, 0)]
        assert "the clock is" not in caplog.text
    for epoch, wall_ms in (("e3", NOW_MS + 4_000 * DAY_MS), ("e4", 9_000), ("e5", NOW_MS)):
        with bench(tmp_path, epoch, wall_ms) as it:
            it.do(final(1, epoch=epoch, wall_ms=wall_ms))
            assert it.ages == [(10 * DAY_MS, 0)]
        assert caplog.text.count("the clock is days=3990.0 further on than the journal") == 1
    with bench(tmp_path, "e6", NOW_MS + 11 * DAY_MS) as it:
        assert it.ages == [(11 * DAY_MS, 0)]
        assert it.places() == [("e1", 5), ("e3", 1), ("e4", 1), ("e5", 1)]
    with bench(tmp_path, "e7", NOW_MS + 26 * DAY_MS) as it:
        pass
    with bench(tmp_path, "e8", NOW_MS + 40 * DAY_MS) as it:
        it.do(final(1, epoch="e8"))
        assert it.places() == [("e4", 1), ("e5", 1), ("e8", 1)]  # what is 40 and 30 days old went


def test_an_end_between_journal_and_spool_gives_no_second_answer(tmp_path: Path) -> None:
    with bench(tmp_path) as it:
        it.do(heard(1))
        kept = (tmp_path / "spool" / "e1-1.desk.seg").read_bytes()
        it.do(final(5, segment=1))
    (tmp_path / "spool" / "e1-1.desk.seg").write_bytes(kept)  # the file had not gone yet
    with bench(tmp_path, "e2") as it:
        assert it.opened[0][1] == []
        assert it.spool() == []


def test_a_full_disk_holds_nothing_up_and_is_caught_up_with(
    tmp_path: Path, limit_files: Callable[[int | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    with bench(tmp_path) as it:
        it.do(final(1))
        limit_files(8_192)
        it.do(heard(2, samples=40_000), final(2), final(3, text="x" * 20_000))
        status = it.storage.status
        assert status.state is StorageState.DEGRADED
        assert (status.pending, status.not_spooled) == (2, 1)
        assert "published without it" in caplog.text
        limit_files(None)
        it.until_open()
        it.do(final(4))
        assert it.state is StorageState.OK
        assert it.places() == [("e1", seq) for seq in (1, 2, 3, 4)]
        assert it.storage.status.pending == 0


def test_a_folder_that_appears_later_is_used_then(tmp_path: Path) -> None:
    folder = tmp_path / "a file" / "state"
    folder.parent.write_text("in the way")
    with bench(folder) as it:
        it.do(heard(1), final(1))
        assert it.state is StorageState.DEGRADED
        assert it.storage.status.reason.endswith("Not a directory")
        folder.parent.unlink()
        it.until_open()
        it.do(final(2))
        assert it.places() == [("e1", 1), ("e1", 2)]


def test_a_read_only_database_is_named_and_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as it:
        it.do(final(1))
        connect = sqlite3.connect

        def read_only(target: str, **options: object) -> sqlite3.Connection:
            database = connect(target, **options)  # type: ignore[call-overload]
            database.execute("PRAGMA query_only = ON")
            return database  # type: ignore[no-any-return]

        it.storage._writer._journal._database.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
        monkeypatch.setattr(sqlite3, "connect", read_only)
        it.do(final(2))
        assert it.state is StorageState.DEGRADED
        assert "readonly" in it.storage.status.reason
        monkeypatch.undo()
        it.until_open()
        it.do(final(3))
        assert it.places() == [("e1", 1), ("e1", 2), ("e1", 3)]


def test_a_damaged_journal_is_moved_aside_and_a_new_one_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, and that is long enough" * 100)
    with bench(tmp_path) as it:
        it.do(final(1))
        assert it.state is StorageState.OK
        assert it.places() == [("e1", 1)]
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*")
    assert aside.read_bytes().startswith(b"this is no")
    assert f"old={aside}" in caplog.text


def test_a_schema_that_is_no_text_is_damage_too(tmp_path: Path) -> None:
    """SQLite quotes it in its message, which Python then cannot read as UTF-8."""
    with bench(tmp_path) as it:
        it.do(final(1))
    path = tmp_path / FILE_NAME
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"CREATE INDEX", b"\xff" * len("CREATE INDEX")))
    assert path.read_bytes() != sound
    with bench(tmp_path, "e2") as it:
        it.do(final(1, epoch="e2"))
        assert it.state is StorageState.OK
        assert it.places() == [("e2", 1)]
    assert len(list(tmp_path.glob(f"{FILE_NAME}.damaged-*[0-9]"))) == 1


def test_damage_found_while_writing_costs_no_answer(tmp_path: Path) -> None:
    with bench(tmp_path) as it:
        it.do(*(final(seq, text="x" * 900) for seq in range(1, 60)))
        journal = it.storage._writer._journal
        assert journal is not None
        journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        with (tmp_path / FILE_NAME).open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (os.path.getsize(tmp_path / FILE_NAME) - 4096))
        journal._database.execute("PRAGMA cache_size = 0")
        journal._database.execute("PRAGMA shrink_memory")
        it.do(final(60))
        if it.state is not StorageState.OK:  # the retry may have come already
            it.until_open()
        it.do(final(61))
        assert it.places() == [("e1", 60), ("e1", 61)]
    assert len(list(tmp_path.glob(f"{FILE_NAME}.damaged-*[0-9]"))) == 1


def test_a_folder_of_another_daemon_is_left_alone_until_that_ends(tmp_path: Path) -> None:
    other = FolderLock(tmp_path)
    with bench(tmp_path) as it:
        it.do(heard(1), final(1))
        assert it.state is StorageState.DEGRADED
        assert "in use by process" in it.storage.status.reason
        assert sorted(each.name for each in tmp_path.iterdir()) == ["lock"]
        other.close()
        it.until_open()
        it.do(final(2))
        assert it.places() == [("e1", 1), ("e1", 2)]


def test_memory_for_what_cannot_be_written_is_bounded_and_the_loss_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_writer, "_MAX_PENDING", 5)
    other = FolderLock(tmp_path)
    with bench(tmp_path) as it:
        it.do(*(final(seq) for seq in range(1, 9)))
        status = it.storage.status
        assert (status.pending, status.lost) == (5, 3)
        other.close()
        it.until_open()
        it.do(final(9))
        assert it.places() == [("e1", seq) for seq in range(4, 10)]


def test_a_full_spool_is_told_and_the_journal_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(tmp_path, spool_bytes=5_000) as it:
        it.do(heard(1), heard(2), final(1, segment=1), final(2, segment=2))
        assert it.storage.status.not_spooled == 1
        assert "journal.spool_mb" in caplog.text
        assert it.places() == [("e1", 1), ("e1", 2)]
        it.do(heard(3))
        assert it.spool() == ["e1-3.desk.seg"]


def test_without_a_spool_no_audio_is_on_the_disk(tmp_path: Path) -> None:
    with bench(tmp_path, has_spool=False) as it:
        it.do(heard(1), final(1))
        assert not (tmp_path / "spool").exists()
        assert it.storage.status.not_spooled == 0


def test_a_fault_of_ours_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(tmp_path) as it:

        def bug(self: object, what: Heard) -> None:
            raise RuntimeError("bug")

        monkeypatch.setattr(disk_writer.DiskWriter, "_keep", bug)
        it.do(heard(1))
        assert "storage broke" in caplog.text
        monkeypatch.undo()
        it.until_open()
        it.do(final(1))
        assert it.places() == [("e1", 1)]


def test_what_cannot_be_written_at_the_end_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = FolderLock(tmp_path)
    with caplog.at_level(logging.ERROR), bench(tmp_path) as it:
        it.do(final(1), final(2))
    assert "results are not in the journal count=2" in caplog.text
    other.close()
