"""The print and jsonl plugins: what people and files get to see."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from voiced.daemon import wire
from voiced.plugins.sdk import IntentPublisher, PluginContext
from voiced.plugins.sinks.jsonl import JsonlPlugin, LineFile
from voiced.plugins.sinks.print import PrintPlugin
from voiced.plugins.subscriber import Gap

FINAL = wire.Final(
    stream="mic", segment=7, revision=2, text="turn [red]left[/red]", language="en",
    confidence=0.9, start_ms=1500, end_ms=2500, latency_ms=80,
)  # fmt: skip
PARTIAL = wire.Partial(
    stream="mic", segment=7, revision=1, text="turn", start_ms=1500, end_ms=2000, language="en"
)
INTENT = wire.Intent(
    stream="mic", segment=7, name="OpenWindow", slots={"window": "rear"}, text="", confidence=0.95
)


@pytest.fixture
def publisher() -> Iterator[IntentPublisher]:
    with IntentPublisher("tcp://127.0.0.1:1") as publisher:
        yield publisher


def printed(publisher: IntentPublisher, *, terminal: bool, **options: Any) -> str:
    out = io.StringIO()
    colours = "standard" if terminal else "auto"
    console = Console(
        file=out, force_terminal=terminal, color_system=colours, highlight=False, soft_wrap=True
    )
    plugin = PrintPlugin(console)
    plugin.setup(PluginContext("print", options, publisher))
    for message in (PARTIAL, FINAL, INTENT):
        plugin.on_message(message)
    plugin.on_gap(Gap("e", 3, 5))
    return out.getvalue()


def test_print_writes_plain_lines_to_a_pipe(publisher: IntentPublisher) -> None:
    assert printed(publisher, terminal=False).splitlines() == [
        "[mic 1.5s] turn [red]left[/red]  (80 ms)",
        "[mic] → OpenWindow window=rear  (0.95)",
        "-- 3 messages were lost --",
    ]


def test_print_uses_colours_on_a_terminal_only(publisher: IntentPublisher) -> None:
    assert "\x1b[" in printed(publisher, terminal=True)
    assert "\x1b[" not in printed(publisher, terminal=False)


def test_print_shows_partials_when_asked(publisher: IntentPublisher) -> None:
    assert "[mic 1.5s] turn …" in printed(publisher, terminal=False, partials="yes")


def test_jsonl_appends_finals_and_marks_losses(publisher: IntentPublisher, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "said.jsonl"
    plugin = JsonlPlugin()
    plugin.setup(PluginContext("jsonl", {"path": str(path), "fsync": "always"}, publisher))
    plugin.on_final(FINAL)
    plugin.on_gap(Gap("e", 3, 5))
    plugin.close()
    final, gap = path.read_bytes().splitlines()
    assert wire.decode_server(final) == FINAL
    assert json.loads(gap) == {"type": "gap", "epoch": "e", "first": 3, "last": 5}
    assert path.stat().st_mode & 0o777 == 0o600


def line_file(path: Path, *, max_bytes: int = 1000, keep: int = 2) -> LineFile:
    return LineFile(path, max_bytes=max_bytes, keep=keep, fsync=False)


def test_a_full_file_is_renamed_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    file = line_file(tmp_path / "log", max_bytes=10, keep=2)
    for name in "abcd":
        assert file.append(name.encode() * 8)
    file.close()
    found = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert found == {"log": "d" * 8 + "\n", "log.1": "c" * 8 + "\n", "log.2": "b" * 8 + "\n"}


def test_a_line_longer_than_the_limit_is_still_written(tmp_path: Path) -> None:
    file = line_file(tmp_path / "log", max_bytes=3)
    assert file.append(b"longer than three")
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == ["log"]


def test_a_torn_line_of_a_crash_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"torn": ')
    file = line_file(path)
    file.append(b"whole")
    file.close()
    assert path.read_bytes() == b'{"torn": \nwhole\n'


def test_a_full_disk_is_warned_about_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    file = line_file(Path("/dev/full"))
    assert not any([file.append(b"one"), file.append(b"two"), file.append(b"three")])
    file.close()
    assert file.lost == 3
    (record,) = caplog.records  # once a minute
    assert "No space left on device" in record.getMessage()


def test_a_torn_line_that_cannot_be_cut_off_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = line_file(tmp_path / "log")
    assert file.append(b"first")
    write = os.write
    breaks = iter([False, True])

    def tearing(fd: int, data: bytes) -> int:
        if next(breaks):
            raise OSError(errno.EIO, "input/output error")
        return write(fd, data[:3])

    def refused(fd: int, size: int) -> None:
        raise OSError(errno.EPERM, "operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", tearing)
        patch.setattr(os, "ftruncate", refused)
        assert not file.append(b"second")
    assert file.append(b"third")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"first\nsec\nthird\n"


def test_a_file_whose_end_cannot_be_seen_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"torn")
    file = line_file(path)

    def refused(fd: int, count: int, at: int) -> bytes:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refused)
        assert not file.append(b"lost")
    assert file.append(b"whole")
    file.close()
    assert path.read_bytes() == b"torn\nwhole\n"


FILL_UP = """
    import resource, sys
    from pathlib import Path
    from voiced.plugins.sinks.jsonl import LineFile

    file = LineFile(Path(sys.argv[1]), max_bytes=10**6, keep=1, fsync=False)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    kept = [file.append(b"x" * 59) for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    kept.append(file.append(b"y" * 59))
    assert kept == [True, False, False, True], kept
    assert file.lost == 2
"""


def test_a_line_that_fits_only_in_part_leaves_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL_UP), str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == b"x" * 59 + b"\n" + b"y" * 59 + b"\n"
    assert "writing again" in done.stderr
