"""Only a whole bundle is ever seen under its name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from tests.needs import missing

from voiced.engine.build import pack
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Bundle, Manifest
from voiced.engine.errors import BundleError

DEADLINE_S = 30


MANIFEST = Manifest(name="tiny", family="vad", graphs={"vad": "vad.onnx"})


def build(
    target: Path,
    content: bytes = b"graph",
    *,
    manifest: Manifest = MANIFEST,
    needed_bytes: int = 0,
    error: BaseException | None = None,
) -> Path:
    with BundleWriter(target, needed_bytes=needed_bytes) as writer:
        writer.check_room()
        writer.add("vad.onnx", content)
        (writer.scratch_dir() / "download").write_bytes(b"x")
        if error is not None:
            raise error
        return writer.commit(manifest)


def seen(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_nothing_shows_under_the_name_before_commit(tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny"
    with BundleWriter(target) as writer:
        writer.path_for("vad.onnx").write_bytes(b"graph")
        (writer.scratch_dir() / "download").write_bytes(b"x")
        assert not target.exists()
        assert writer.commit(MANIFEST) == target
        assert Bundle.open(target).path("vad").read_bytes() == b"graph"
    assert seen(tmp_path / "models") == ["tiny"]


def test_an_older_bundle_is_replaced_whole(tmp_path: Path) -> None:
    target = build(tmp_path / "tiny", b"old")
    with BundleWriter(target) as writer:
        writer.add("vad.onnx", b"new!")
        assert Bundle.open(target).path("vad").read_bytes() == b"old"
        writer.commit(MANIFEST)
    assert Bundle.open(target).path("vad").read_bytes() == b"new!"
    assert seen(tmp_path) == ["tiny"]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_error_or_interrupt_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    target = build(tmp_path / "tiny", b"old")
    with pytest.raises(type(error)):
        build(target, b"new", error=error)
    assert Bundle.open(target).path("vad").read_bytes() == b"old"
    assert seen(tmp_path) == ["tiny"]


def test_leaving_without_commit_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.add("vad.onnx", b"new")
    assert seen(tmp_path) == []


def test_a_failing_last_rename_puts_the_older_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = build(tmp_path / "tiny", b"old")
    rename = Path.rename

    def fail_for_staging(path: Path, to: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(errno.EIO, "input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_for_staging)
    with pytest.raises(OSError, match="input/output error"):
        build(target, b"new")
    assert Bundle.open(target).path("vad").read_bytes() == b"old"
    assert seen(tmp_path) == ["tiny"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (msgspec.structs.replace(MANIFEST, graphs={"vad": "other"}), "graph 'vad' in 'other'"),
        (msgspec.structs.replace(MANIFEST, family="whisper"), "an empty list of gears"),
        (msgspec.structs.replace(MANIFEST, name="../tiny"), r"name '\.\./tiny'"),
    ],
)
def test_a_bundle_that_could_not_be_opened_is_not_published(
    tmp_path: Path, manifest: Manifest, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        build(tmp_path / "tiny", manifest=manifest)
    assert seen(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "manifest.json"])
def test_file_names_stay_inside_the_bundle(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "tiny") as writer, pytest.raises(ValueError, match="plain name"):
        writer.add(name, b"")


def test_the_target_must_have_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain name"):
        BundleWriter(tmp_path / ".hidden")


def test_a_full_disk_is_reported_with_needed_and_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = build(tmp_path / "tiny", b"old")

    def full(path: Path, content: bytes) -> int:
        assert ".partial-" in str(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match=r"full disk \(\d+ bytes free\).*about 1234 bytes.*room"):
        build(target, b"new", needed_bytes=1234)
    monkeypatch.undo()
    assert Bundle.open(target).path("vad").read_bytes() == b"old"
    assert seen(tmp_path) == ["tiny"]


def test_a_disk_that_really_is_full_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        missing("BOOT", "cannot mount a small tmpfs: needs root and the mount command")
    try:
        with pytest.raises(BundleError, match="found a full disk"):
            build(disk / "tiny", bytes(1 << 20))
        assert seen(disk) == []
        assert Bundle.open(build(disk / "tiny")).manifest.name == "tiny"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_too_little_room_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected about 1152921504606846976 bytes"):
        build(tmp_path / "tiny", needed_bytes=1 << 60)
    assert seen(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match=r"cannot be written to.*VOICED_MODEL_DIR"):
        build(tmp_path / "file" / "tiny")


def test_what_dead_builders_left_is_cleared(tmp_path: Path) -> None:
    for name in ("tiny.partial-1", "tiny.fetch-99999999", "tiny.old-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
    for name in ("other.partial-1", "tiny.partial-notes"):
        (tmp_path / name).mkdir()
    build(tmp_path / "tiny")
    # The `old` one came back first, as its target was missing, and was then replaced.
    assert seen(tmp_path) == ["other.partial-1", "tiny", "tiny.partial-notes"]


def test_a_bundle_moved_aside_by_a_killed_builder_comes_back(tmp_path: Path) -> None:
    target = build(tmp_path / "tiny", b"old")
    target.rename(tmp_path / "tiny.old-4711")
    with BundleWriter(target):
        assert Bundle.open(target).path("vad").read_bytes() == b"old"


CHILD = """
import sys
from pathlib import Path
from voiced.engine.build.pack import BundleWriter
with BundleWriter(Path(sys.argv[1])) as writer:
    writer.add("vad.onnx", b"half")
    (writer.scratch_dir() / "download").write_bytes(b"x")
    print("inside", flush=True)
    sys.stdin.read()
"""


def start_child(target: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "inside\n"
    return child


def test_a_killed_builder_leaves_no_bundle_and_the_next_one_clears_up(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    with start_child(target) as child:
        child.kill()
        child.wait(DEADLINE_S)
        assert child.returncode == -signal.SIGKILL
    assert seen(tmp_path) == [f"tiny.fetch-{child.pid}", f"tiny.partial-{child.pid}"]
    build(target)
    assert seen(tmp_path) == ["tiny"]


def test_a_second_builder_says_so_and_waits(tmp_path: Path) -> None:
    target, said, waiting = tmp_path / "tiny", [], threading.Event()

    def on_wait(text: str) -> None:
        said.append(text)
        waiting.set()

    def second() -> None:
        with BundleWriter(target, on_wait=on_wait) as writer:
            writer.add("vad.onnx", b"second")
            writer.commit(MANIFEST)

    with start_child(target) as child:
        thread = threading.Thread(target=second)
        thread.start()
        try:
            assert waiting.wait(DEADLINE_S)
            # The living builder's staging is not mistaken for a dead one's.
            assert f"tiny.partial-{child.pid}" in seen(tmp_path)
        finally:
            child.communicate("", timeout=DEADLINE_S)
            thread.join(DEADLINE_S)
    assert said == [f"waiting for another build of tiny (pid {child.pid})"]
    assert Bundle.open(target).path("vad").read_bytes() == b"second"


def test_everything_is_flushed_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(pack, "_fsync", lambda path: flushed.append(path.name))
    build(tmp_path / "tiny")
    staging = f"tiny.partial-{os.getpid()}"
    assert sorted(flushed[:2]) == ["manifest.json", "vad.onnx"]
    assert flushed[2:] == [staging, tmp_path.name]
