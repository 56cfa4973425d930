"""A plugin that was away goes on where it stopped."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.plugins.fake_journal import FakeJournal

from voiced.daemon import wire
from voiced.plugins.position import PositionFile, default_folder
from voiced.plugins.runner import EXIT_FAILED, EXIT_OK, Limits, run_plugin
from voiced.plugins.sdk import Plugin
from voiced.plugins.sinks.jsonl import last_place
from voiced.plugins.testing import FakeBus


class Recording(Plugin):
    """Notes what it gets, and ends its process after so many."""

    name = "recording"
    topics = ("final/",)
    got: ClassVar[list[str]] = []
    enough: ClassVar[int] = 1
    fails: ClassVar[bool] = False

    def on_final(self, message: wire.Final) -> None:
        if self.fails:
            raise RuntimeError("on purpose")
        self.got.append(message.text)
        if len(self.got) == self.enough:
            signal.raise_signal(signal.SIGTERM)


class Careful(Recording):
    """Acts on what is new only."""

    max_age_s = 60.0


NAME = f"{__name__}:Recording"


class Scene:
    """A bus, its journal, and plugin processes one after the other (in this process)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = monkeypatch
        self.journal = FakeJournal()
        self._said = 0

    def final(self, text: str, *, age_s: float = 0.0) -> None:
        """Something is said; whoever runs then hears it."""
        self._said += 1
        self.journal.messages.append(
            wire.Final(
                stream="desk", segment=self._said, revision=1, text=text, language="en",
                confidence=1.0, start_ms=0, end_ms=1, latency_ms=0, epoch="epoch-1",
                seq=self._said, wall_ms=round((time.time() - age_s) * 1000),
            )
        )  # fmt: skip

    def run(
        self,
        count: int,
        plugin: type[Plugin] = Recording,
        *,
        live: tuple[str, ...] = (),
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[int, list[str]]:
        """Run a plugin until it has had `count` finals; `live` are said once it listens."""
        self._patch.setattr("voiced.plugins.runner.load_plugin", lambda name: plugin)
        for each in (Recording, Careful):
            self._patch.setattr(each, "got", [])
            self._patch.setattr(each, "enough", count)
        with FakeBus() as bus:

            def talk() -> None:
                bus.wait_for_subscriber()
                bus.seq = self._said
                bus.heartbeat()
                for text in live:
                    self.final(text)
                    message = self.journal.messages[-1]
                    bus.publish_raw(wire.topic(message), wire.encode(message))
                    bus.seq = self._said

            talking = threading.Thread(target=talk)
            talking.start()
            code = run_plugin(
                "recording", bus.endpoint, bus.ingest_endpoint, options,
                replay=self.journal.endpoint, folder=self.folder,
                limits=Limits(failures_in_a_row=2), **more,
            )  # fmt: skip
            talking.join()
        return code, Recording.got if plugin is Recording else Careful.got


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path / "state", monkeypatch)
    with made.journal:
        yield made


def test_what_was_said_while_a_plugin_was_away_comes_first_and_once(scene: Scene) -> None:
    scene.final("before it ever ran")
    assert scene.run(2, live=("one", "two")) == (EXIT_OK, ["one", "two"])
    scene.final("three", age_s=3_600)
    scene.final("four")
    assert scene.run(3, live=("five",)) == (EXIT_OK, ["three", "four", "five"])


def test_from_now_and_from_the_beginning_are_a_choice(scene: Scene) -> None:
    scene.final("one")
    assert scene.run(1, live=("two",))[1] == ["two"]
    scene.final("three")
    assert scene.run(1, live=("four",), start_from="now")[1] == ["four"]
    assert scene.run(4, start_from="beginning")[1] == ["one", "two", "three", "four"]


def test_a_plugin_whose_acts_would_come_too_late_gets_only_what_is_new(scene: Scene) -> None:
    scene.run(1, Careful, live=("one",))
    scene.final("an hour ago", age_s=3_600)
    scene.final("before the clock was set back", age_s=-86_400)
    scene.final("a moment ago", age_s=1)
    assert scene.run(1, Careful)[1] == ["a moment ago"]


def test_a_plugin_that_gives_up_gets_the_last_one_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.run(1, live=("one",))
    monkeypatch.setattr(Recording, "fails", True)
    assert scene.run(9, live=("two", "three"))[0] == EXIT_FAILED
    monkeypatch.setattr(Recording, "fails", False)
    assert scene.run(1) == (EXIT_OK, ["three"])  # `two` was its own loss, told in the log


def test_a_position_survives_and_is_private(tmp_path: Path) -> None:
    file = PositionFile(tmp_path / "a" / "b")
    assert file.load() is None
    file.save(wire.Position("e1", 5))
    file.save(wire.Position("e2", 1))
    assert PositionFile(tmp_path / "a" / "b").load() == wire.Position("e2", 1)
    assert [each.name for each in (tmp_path / "a" / "b").iterdir()] == ["position.json"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"epoch":1,"seq":2}', b"\xff" * 5_000, b"[" * 5_000]
)
def test_a_position_that_cannot_be_read_is_none(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "position.json").write_bytes(content)
    assert PositionFile(tmp_path).load() is None
    assert "position is lost" in caplog.text


def test_a_disk_that_takes_no_position_stops_nobody(
    tmp_path: Path,
    limit_files: Callable[[int | None], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = PositionFile(tmp_path)
    file.save(wire.Position("e1", 1))
    limit_files(0)
    file.save(wire.Position("e1", 2))
    file.save(wire.Position("e1", 3))
    limit_files(None)
    assert caplog.text.count("position is not kept") == 1
    assert file.load() == wire.Position("e1", 1)


def test_the_folder_is_the_service_managers_or_the_users() -> None:
    managed = {"STATE_DIRECTORY": "/var/lib/voiced-plugins/jsonl"}
    assert default_folder("jsonl", managed) == Path("/var/lib/voiced-plugins/jsonl")
    of_user = default_folder("my.module:Class", {"XDG_STATE_HOME": "/x"})
    assert of_user == Path("/x/voiced/plugins/my.module_Class")
    assert os.environ.get("STATE_DIRECTORY") is None


def test_the_last_whole_line_of_a_jsonl_file_is_its_place(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert last_place(path) is None
    path.write_text('{"epoch":"e1","seq":4,"text":"a"}\n{"epoch":"e1","seq":9,"te')
    assert last_place(path) == wire.Position("e1", 4)
    path.write_text('{"epoch":"e1","seq":4}\n{"type":"gap","epoch":"e1","first":5,"last":8}\n\n')
    assert last_place(path) == wire.Position("e1", 8)
    path.write_text("no json at all\n")
    assert last_place(path) is None
