"""The spool's files: what goes in comes out, or is said to be damaged."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.kept import heard

from voiced.daemon.errors import SpoolDamaged, SpoolFull
from voiced.daemon.spool import Heard, Spool, count_attempt, decode, encode, read

SOMEWHERE = Path("somewhere.seg")


def facts(what: Heard) -> tuple[object, ...]:
    each = what.segment
    place = (what.origin, what.revision, what.wall_ms)
    return (each.id, each.stream, each.start_sample, each.language, each.pcm.tobytes(), *place)


def test_what_is_kept_comes_back_in_the_order_of_its_closing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    kept = [heard(2, stream="a.b:c-d"), heard(3), heard(1, origin="e2")]
    for age, each in zip((3, 2, 1), kept, strict=True):
        spool.put(each)
        path = next(p for p in tmp_path.glob(f"{each.origin}-{each.segment.id}.*"))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    again = Spool(tmp_path, max_bytes=1 << 20)
    found = again.leftovers()
    assert [(each.origin, each.segment, each.stream) for each in found] == [
        ("e1", 2, "a.b:c-d"), ("e1", 3, "desk"), ("e2", 1, "desk"),
    ]  # fmt: skip
    assert [facts(read(each.path)) for each in found] == [facts(each) for each in kept]
    assert len(again) == 3
    assert again.size == spool.size == sum(each.stat().st_size for each in tmp_path.iterdir())


def test_an_answered_segment_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    spool.put(heard(1))
    count_attempt(spool.leftovers()[0].path)
    spool.remove("e1", 1)
    spool.remove("e1", 1)
    assert list(tmp_path.iterdir()) == []
    assert (len(spool), spool.size) == (0, 0)


def test_attempts_are_counted_over_restarts(tmp_path: Path) -> None:
    Spool(tmp_path, max_bytes=1 << 20).put(heard(1))
    for tries in range(3):
        (left,) = Spool(tmp_path, max_bytes=1 << 20).leftovers()
        assert left.attempts == tries
        count_attempt(left.path)


def test_what_does_not_fit_is_refused_and_the_rest_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=5_000)
    spool.put(heard(1))
    with pytest.raises(SpoolFull, match="of 5000 bytes"):
        spool.put(heard(2))
    spool.remove("e1", 1)
    spool.put(heard(2))
    assert [each.segment for each in spool.leftovers()] == [2]


def test_half_written_files_of_a_crash_go_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "e1-1.desk.seg.part").write_bytes(b"half")
    (tmp_path / "e1-2.desk.seg.tries").write_bytes(b"1")
    (tmp_path / "notes.txt").write_text("not ours")
    assert Spool(tmp_path, max_bytes=1 << 20).leftovers() == []
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_full_leaves_no_part_of_a_file(
    tmp_path: Path, limit_files: Callable[[int | None], None]
) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    limit_files(50_000)
    with pytest.raises(OSError, match="File too large"):
        spool.put(heard(1, samples=160_000))
    limit_files(None)
    assert list(tmp_path.iterdir()) == []
    assert len(spool) == 0


def test_files_are_private(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", max_bytes=1 << 20).put(heard(1))
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "spool").iterdir()] == [0o600]


@given(st.binary(max_size=300))
def test_no_bytes_but_ours_are_taken_for_a_segment(data: bytes) -> None:
    with pytest.raises(SpoolDamaged):
        decode(data, SOMEWHERE)


@given(st.integers(0, 3_399), st.integers(1, 255))
def test_a_changed_byte_never_gives_other_audio(place: int, change: int) -> None:
    original = heard(5)
    data = bytearray(encode(original))
    data[place % len(data)] ^= change
    try:
        found = decode(bytes(data), SOMEWHERE)
    except SpoolDamaged:
        return
    assert found.segment.pcm.tobytes() == original.segment.pcm.tobytes()
