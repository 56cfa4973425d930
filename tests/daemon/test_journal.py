"""The journal's file: order, one entry for a segment, retention, damage."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.daemon.kept import DAY_MS, NOW_MS, final, places
from tests.fuzz.disk import file_reader

from voiced.daemon.age_clock import Jump
from voiced.daemon.errors import JournalBusy, JournalDamaged, JournalMissing, JournalUnusable
from voiced.daemon.journal import Journal, Record
from voiced.daemon.journal_file import FolderLock, default_folder, set_aside
from voiced.daemon.journal_reader import JournalReader, purge_file
from voiced.daemon.wire import Failed, decode_server


def open_journal(path: Path, epoch: str = "e1", *, keep_text: bool = True) -> Journal:
    return Journal(path, epoch, started_ms=NOW_MS, survives_power_cut=False, keep_text=keep_text)


def written(path: Path, *records: Record, epoch: str = "e1") -> None:
    journal = open_journal(path, epoch)
    journal.append(records)
    journal.close()


def test_entries_come_back_as_they_were_on_the_bus(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    record = final(7)
    failed = Failed(
        stream="desk", epoch="e1", seq=9, wall_ms=NOW_MS, segment=8, code="busy", message="full"
    )
    written(path, record, Record(failed))
    with JournalReader(path) as reader:
        batch = reader.read()
    assert [decode_server(each.body) for each in batch.entries] == [record.message, failed]
    assert batch.is_complete
    assert not batch.more


def test_order_is_that_of_the_bus_over_restarts_and_late_writes(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, final(5), final(3))
    written(path, final(1, epoch="e2", segment=21), epoch="e2")
    written(path, final(4, epoch="e2", segment=22), final(2, epoch="e2", segment=23), epoch="e2")
    assert places(path) == [("e1", 3), ("e1", 5), ("e2", 1), ("e2", 2), ("e2", 4)]
    assert places(path, after=("e1", 3)) == [("e1", 5), ("e2", 1), ("e2", 2), ("e2", 4)]
    assert places(path, after=("e1", 3), until=("e2", 2)) == [("e1", 5), ("e2", 1), ("e2", 2)]
    assert places(path, after=("e2", 0), until=("e2", 0)) == []


def test_a_segment_has_one_entry_however_often_its_answer_is_written(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, final(5, segment=40), final(6, segment=40, text="again"))
    again = final(1, epoch="e2", segment=40, recovered="e1", text="after a crash")
    written(path, again, epoch="e2")
    assert places(path) == [("e1", 5)]
    journal = open_journal(path, "e3")
    assert journal.has("e1", 40)
    assert not journal.has("e2", 40)
    journal.close()


def test_pages_are_bounded_in_number_and_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, *(final(seq) for seq in range(1, 8)))
    with JournalReader(path) as reader:
        first = reader.read(limit=3)
        assert [each.seq for each in first.entries] == [1, 2, 3]
        assert first.more
        rest = reader.read(after=("e1", 3), limit=4)
        assert [each.seq for each in rest.entries] == [4, 5, 6, 7]
        assert not rest.more
    large = tmp_path / "large.db"
    written(large, *(final(seq, text="x" * 300_000) for seq in range(1, 5)))
    with JournalReader(large) as reader:
        batch = reader.read()
        assert len(batch.entries) == 1  # its body has the text twice
        assert batch.more


def test_a_time_or_a_stream_selects(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(
        path,
        final(1, wall_ms=NOW_MS - 100),
        final(2, wall_ms=NOW_MS, stream="car"),
        final(3, wall_ms=NOW_MS - 50),  # the clock was set back meanwhile
    )
    assert places(path, since_ms=NOW_MS) == [("e1", 2), ("e1", 3)]
    assert places(path, since_ms=NOW_MS + 1) == []
    assert places(path, before_ms=NOW_MS) == [("e1", 1), ("e1", 3)]
    assert places(path, stream="car") == [("e1", 2)]


def test_segment_ids_are_never_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    first = open_journal(path, "e1")
    assert first.first_segment == 1
    first.append([final(1, segment=99_000)])
    first.close()
    second = open_journal(path, "e2")
    assert second.first_segment > 99_000
    second.close()


def test_a_run_that_wrote_nothing_has_its_ids_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    firsts = []
    for epoch in ("e1", "e2", "e3"):
        journal = open_journal(path, epoch)
        firsts.append(journal.first_segment)
        journal.close()
    assert firsts == sorted(set(firsts))


def test_without_text_nothing_said_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path, keep_text=False)
    journal.append([final(1, text="secret word"), final(2, text="")])
    journal.close()
    assert b"secret" not in path.read_bytes()
    with JournalReader(path) as reader:
        kept = [decode_server(each.body) for each in reader.read().entries]
    assert [getattr(each, "withheld", None) for each in kept] == [True, False]


def test_entries_go_when_the_journal_has_lived_that_long_since_and_the_reader_is_told(
    tmp_path: Path,
) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal.look(NOW_MS, 0)
    journal.append([final(1, wall_ms=1_000), final(2, wall_ms=NOW_MS)])
    journal.look(NOW_MS, 0)
    for day in range(1, 30):
        journal.look(NOW_MS + day * DAY_MS, DAY_MS)
        assert journal.retain(max_bytes=1 << 30) == 0
    journal.append([final(3, wall_ms=1_000), final(4, wall_ms=NOW_MS + 20 * 365 * DAY_MS)])
    journal.close()
    journal = open_journal(path, "e2")
    journal.look(NOW_MS + 30 * DAY_MS, 0)
    assert journal.retain(max_bytes=1 << 30) == 2
    journal.close()
    assert places(path) == [("e1", 3), ("e1", 4)]
    with JournalReader(path) as reader:
        assert not reader.read(after=("e1", 1)).is_complete
        assert reader.read(after=("e1", 2)).is_complete
    journal = open_journal(path, "e3")
    for day in (45, 60, 61):
        journal.look(NOW_MS + day * DAY_MS, 0)
    assert journal.retain(max_bytes=1 << 30) == 2
    journal.close()


def test_a_clock_set_wrong_or_right_deletes_no_entry_for_its_date(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    factory_ms = NOW_MS - 5 * 365 * DAY_MS
    journal.look(NOW_MS, 0)
    journal.append([final(1, wall_ms=NOW_MS)])
    journal.look(factory_ms, DAY_MS // 48)  # the battery was empty
    journal.append([final(2, wall_ms=factory_ms)])
    journal.look(NOW_MS + DAY_MS, DAY_MS // 48)  # a network was there
    journal.append([final(3, wall_ms=NOW_MS + DAY_MS)])
    assert journal.retain(max_bytes=1 << 30) == 0
    assert journal.look(NOW_MS + 12 * 365 * DAY_MS, DAY_MS // 48) is Jump.FAR_AHEAD
    assert journal.retain(max_bytes=1 << 30) == 0
    assert journal.look(NOW_MS + 12 * 365 * DAY_MS, DAY_MS) is Jump.BELIEVED
    assert journal.retain(max_bytes=1 << 30) == 0
    journal.close()
    assert places(path) == [("e1", 1), ("e1", 2), ("e1", 3)]


def test_the_journal_goes_on_with_its_age_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal.look(NOW_MS, 0)
    journal.look(NOW_MS + DAY_MS, DAY_MS)
    state = journal.age.state
    journal.close()
    journal = open_journal(path, "e2")
    assert journal.age.state == state
    journal._database.execute("UPDATE facts SET value = -7 WHERE key = 'lived_ms'")
    journal.append([final(1, epoch="e2")])
    journal._database.execute("INSERT INTO ages VALUES (2, 1, 9)")
    journal.close()
    journal = open_journal(path, "e3")  # what is damaged counts as nothing: kept longer, not less
    assert journal.age.lived_ms == 0
    assert journal._database.execute("SELECT count(*) FROM ages").fetchone() == (0,)
    journal.close()


def test_two_months_of_marks_of_age_are_a_small_table(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.db")
    journal.look(NOW_MS, 0)
    step_ms = DAY_MS // 12
    for number in range(1, 60 * 12):
        journal.append([final(number)])
        journal.look(NOW_MS + number * step_ms, step_ms)
        journal.retain(max_bytes=1 << 30)
    (count,) = journal._database.execute("SELECT count(*) FROM ages").fetchone()
    assert 150 < count <= 201
    (entries,) = journal._database.execute("SELECT count(*) FROM entries").fetchone()
    assert entries * step_ms == pytest.approx(30 * DAY_MS, rel=0.01)
    journal.close()


def test_a_purge_goes_by_dates_and_the_reader_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    unset_clock = 1_000
    written(
        path,
        final(1, wall_ms=unset_clock),
        final(2, wall_ms=NOW_MS - 40 * DAY_MS),
        final(3, wall_ms=unset_clock),
        final(4, wall_ms=NOW_MS),
    )
    assert purge_file(path, before_ms=NOW_MS - 30 * DAY_MS) == 2
    assert places(path) == [("e1", 3), ("e1", 4)]
    with JournalReader(path) as reader:
        assert not reader.read(after=("e1", 1)).is_complete
        assert reader.read(after=("e1", 2)).is_complete
        assert not reader.read(after=("never heard of", 2)).is_complete


def test_the_oldest_go_when_the_file_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal.append(final(seq, text="x" * 5_000) for seq in range(1, 101))
    assert journal.retain(max_bytes=500_000) >= 50
    journal.close()
    assert places(path, limit=1_000)[-1] == ("e1", 100)
    assert path.stat().st_size < 800_000


def test_a_check_whose_finding_is_no_text_is_damage() -> None:
    """SQLite names a damaged column; Python cannot read that, and has no number for it."""
    with pytest.raises(JournalDamaged, match="Could not decode"):
        file_reader()(b"\xb4\xed\xa0\x80\x90\xcd,\xcb\tE\xd4\x80\xa2")


def test_losses_of_the_journal_are_told(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal.append([final(1), final(3)], [("e1", 2)])
    journal.close()
    with JournalReader(path) as reader:
        assert not reader.read().is_complete
        assert reader.read(after=("e1", 2)).is_complete
        assert reader.read(until=("e1", 1)).is_complete


def test_an_append_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal._database.execute("PRAGMA max_page_count = 14")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.append(final(seq, text="x" * 5_000) for seq in range(1, 50))
    journal._database.execute("PRAGMA max_page_count = 100000")
    journal.append([final(50)])
    journal.close()
    assert places(path) == [("e1", 50)]


def test_purge_removes_entries_and_every_trace_of_the_words(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, final(1, text="secret word", wall_ms=NOW_MS - DAY_MS), final(2, text="hello"))
    assert purge_file(path, before_ms=NOW_MS) == 1
    assert places(path) == [("e1", 2)]
    assert all(b"secret" not in each.read_bytes() for each in tmp_path.iterdir())
    assert purge_file(path, before_ms=None) == 1
    assert places(path) == []


def test_a_purge_beside_a_daemon_leaves_both_working(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = open_journal(path)
    journal.append([final(1, text="secret word")])
    assert purge_file(path, before_ms=None) == 1
    journal.append([final(2)])
    journal.close()
    assert places(path) == [("e1", 2)]
    assert all(b"secret" not in each.read_bytes() for each in tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\7" * 8000]
)
def test_a_file_that_is_no_journal_is_refused_and_can_be_set_aside(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match="no sound journal"):
        open_journal(path)
    with pytest.raises(JournalDamaged):
        JournalReader(path)
    aside = set_aside(path, wall_ms=NOW_MS)
    assert aside.read_bytes() == content
    written(path, final(1))
    assert places(path) == [("e1", 1)]


def test_damage_inside_of_a_journal_is_found_at_its_opening(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, *(final(seq, text="x" * 500) for seq in range(1, 200)))
    data = bytearray(path.read_bytes())
    data[8 * 4096 : 20 * 4096] = b"\xff" * (12 * 4096)
    path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        open_journal(path, "e2")


def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    written(path, final(1))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match="layout 9, expected 1"):
        open_journal(path)
    with pytest.raises(JournalUnusable):
        JournalReader(path)
    assert path.read_bytes() == before


def test_a_missing_journal_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(JournalMissing, match=r"journal\.enabled"):
        JournalReader(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    lock = FolderLock(folder)
    written(folder / "j.db", final(1))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}
    lock.close()


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from voiced.daemon.journal_file import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(JournalBusy, match=f"process {holder.pid};"):
            FolderLock(tmp_path)
        holder.kill()
    FolderLock(tmp_path).close()  # the system let go of it


def test_one_that_has_just_taken_the_folder_is_waited_for_to_say_who_it_is(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock = tmp_path / "lock"
    lock.write_text(f"{ended.pid}\n")
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JournalBusy, match="by another process;"):
            FolderLock(tmp_path)
        naming = threading.Timer(0.2, lock.write_text, [f"{os.getpid()}\n"])
        naming.start()
        with pytest.raises(JournalBusy, match=f"by process {os.getpid()};"):
            FolderLock(tmp_path)
        naming.join()


def test_the_folder_is_the_service_managers_or_the_users() -> None:
    assert default_folder({"STATE_DIRECTORY": "/var/lib/v:/var/lib/v/models"}) == Path("/var/lib/v")
    assert default_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/voiced")
    assert default_folder({}) == Path.home() / ".local" / "state" / "voiced"
    assert os.environ.get("STATE_DIRECTORY") is None
