"""Writes a bundle so that only a whole one is ever seen under its name.

Files are staged in `<target>.partial-<pid>` beside the target, hashed, flushed to the disk and
then renamed. One builder at a time holds `.<name>.lock`; the kernel drops the lock with the
process, so whatever staging lies there once the lock is held belongs to a builder that died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from voiced.engine.bundle import (
    MANIFEST_NAME,
    Bundle,
    FileEntry,
    Manifest,
    check_consistency,
    is_plain_name,
    sha256_of,
)
from voiced.engine.errors import BundleError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class BundleWriter:
    """One bundle on its way to the disk, for use in a `with` statement.

    Leaving the block without `commit`, for whatever reason, leaves the target as it was.
    """

    def __init__(
        self,
        target: Path,
        *,
        needed_bytes: int = 0,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Prepare a writer; nothing is touched before `with`.

        Args:
            target: The bundle's folder, which may hold an older bundle.
            needed_bytes: What staging and scratch data will take, for `check_room` and for the
                message when the disk is full.
            on_wait: Called with a text before waiting for another builder of the same bundle.
        """
        if not is_plain_name(target.name):
            raise ValueError(f"bundle folder must have a plain name, not {target.name!r}")
        self.target = target
        self._needed_bytes = needed_bytes
        self._on_wait = on_wait
        self._staging = self._beside("partial")
        self._scratch = self._beside("fetch")
        self._old = self._beside("old")
        self._lock_fd = -1

    def __enter__(self) -> BundleWriter:
        """Take the lock, clear what dead builders left, and make the staging folder.

        Raises:
            BundleError: The folder cannot be written to.
        """
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock_fd = self._lock()
            self._recover()
            self._staging.mkdir()
        except OSError as error:
            self._unlock()
            raise self._explain(error) from error
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Looked at first: removing the staging folder is what gives the room back.
        explained = self._explain(error) if _is_disk_full(error) else None
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            shutil.rmtree(self._scratch, ignore_errors=True)
        finally:
            self._unlock()
        if explained is not None:
            raise explained from error

    def check_room(self) -> None:
        """Fail now rather than after minutes of work.

        Raises:
            BundleError: The disk has less room than the writer was told it takes.
        """
        if shutil.disk_usage(self.target.parent).free < self._needed_bytes:
            raise self._explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def path_for(self, name: str) -> Path:
        """Return where to write the bundle's file `name`.

        Raises:
            ValueError: The name has a separator, begins with a dot or is the manifest's.
        """
        if not is_plain_name(name) or name == MANIFEST_NAME:
            raise ValueError(f"bundle file must have a plain name, not {name!r}")
        return self._staging / name

    def add(self, name: str, content: bytes) -> Path:
        """Write the bundle's file `name`."""
        path = self.path_for(name)
        path.write_bytes(content)
        return path

    def scratch_dir(self) -> Path:
        """Return a folder on the bundle's disk for data that is needed while building only."""
        self._scratch.mkdir(exist_ok=True)
        return self._scratch

    def commit(self, manifest: Manifest) -> Path:
        """Hash every staged file, write the manifest and put the bundle in its place.

        Args:
            manifest: Complete but for `files`, which is made here.

        Returns:
            The target folder.

        Raises:
            BundleError: The manifest names files that were not written, or contradicts itself.
        """
        files = {
            path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in sorted(self._staging.iterdir())
        }
        manifest = msgspec.structs.replace(manifest, files=files)
        check_consistency(self.target / MANIFEST_NAME, manifest)
        fields = msgspec.to_builtins(manifest)
        if not manifest.targets:
            del fields["targets"]  # as bundles were written before there were any
        text = msgspec.json.format(msgspec.json.encode(fields), indent=2)
        (self._staging / MANIFEST_NAME).write_bytes(text + b"\n")
        Bundle.open(self._staging, verify="size")  # what is published can be opened
        for path in self._staging.iterdir():
            _fsync(path)
        _fsync(self._staging)
        self._swap()
        return self.target

    def _swap(self) -> None:
        """Put staging in the target's place. In between there is no target, never half a one."""
        if self.target.exists():
            self.target.rename(self._old)
        try:
            self._staging.rename(self.target)
        except BaseException:
            if self._old.exists():
                self._old.rename(self.target)
            raise
        _fsync(self.target.parent)
        shutil.rmtree(self._old, ignore_errors=True)

    def _recover(self) -> None:
        """Undo what a killed builder left: its staging, or an older bundle moved aside."""
        for path in self._leftovers("old"):
            if self.target.exists():
                shutil.rmtree(path)
            else:
                path.rename(self.target)
        for path in (*self._leftovers("partial"), *self._leftovers("fetch")):
            shutil.rmtree(path)

    def _leftovers(self, kind: str) -> list[Path]:
        prefix = f"{self.target.name}.{kind}-"
        return [
            path
            for path in self.target.parent.iterdir()
            if path.name.startswith(prefix) and path.name.removeprefix(prefix).isdigit()
        ]

    def _beside(self, kind: str) -> Path:
        return self.target.with_name(f"{self.target.name}.{kind}-{os.getpid()}")

    def _lock(self) -> int:
        # The file is never removed: a builder that waits on a removed one would lock nothing.
        path = self.target.with_name(f".{self.target.name}.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
                self._on_wait(f"waiting for another build of {self.target.name} (pid {owner})")
                fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _explain(self, error: BaseException | None) -> BundleError:
        if not _is_disk_full(error):
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return BundleError(
                self.target,
                found=f"a folder that cannot be written to ({reason})",
                expected="a writable folder",
                next_step="choose another with VOICED_MODEL_DIR",
            )
        try:
            free = f"{shutil.disk_usage(self.target.parent).free} bytes free"
        except OSError:
            free = "no free space"
        needed = f"about {self._needed_bytes} bytes" if self._needed_bytes else "more room"
        return BundleError(
            self.target,
            found=f"a full disk ({free})",
            expected=needed,
            next_step="make room, or choose another folder with VOICED_MODEL_DIR",
        )


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
