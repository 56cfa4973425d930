"""When a journal is kept, and where; and segment ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from voiced.daemon.journal_settings import JournalSettings
from voiced.daemon.persistence import SegmentIds, folder_of, is_enabled, storage_options


def test_nothing_is_kept_unless_somebody_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert not is_enabled(JournalSettings())
    assert is_enabled(JournalSettings(enabled=True))
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/voiced:/var/lib/voiced/models")
    assert is_enabled(JournalSettings())
    assert not is_enabled(JournalSettings(enabled=False))  # the administrator's word is the last
    assert folder_of(JournalSettings()) == Path("/var/lib/voiced")
    assert folder_of(JournalSettings(folder="/data")) == Path("/data")


def test_settings_reach_the_disk_in_its_units() -> None:
    options = storage_options(
        JournalSettings(folder="/data", survives="crash", keep_days=2, max_mb=3, spool_mb=4)
    )
    assert not options.survives_power_cut
    assert (options.keep_ms, options.max_bytes, options.spool_bytes) == (
        172_800_000, 3 << 20, 4 << 20,
    )  # fmt: skip


def test_ids_rise_and_are_never_lowered() -> None:
    ids = SegmentIds()
    assert [ids(), ids()] == [1, 2]
    ids.raise_to(100)
    assert ids() == 100
    ids.raise_to(50)
    assert ids() == 101
