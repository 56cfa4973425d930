"""Small files that decide who may connect: refused where others can change them, written whole."""

from __future__ import annotations

import os
from pathlib import Path

from voiced.daemon.errors import DaemonError, os_reason


class FileRefused(DaemonError):
    """A file that the daemon was told to use cannot be used."""

    code = "config"

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_guarded(path: Path, *, max_bytes: int, is_secret: bool) -> bytes:
    """Read a small file that decides who may connect.

    Args:
        path: Which.
        max_bytes: A longer one is not read.
        is_secret: Others may not even read it.

    Raises:
        FileRefused: It cannot be read, is too long, or others may write (or read) it.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode & 0o777
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise FileRefused(path, f"cannot be read: {os_reason(error)}") from error
    if mode & (0o027 if is_secret else 0o022):
        allowed = "640" if is_secret else "644"
        raise FileRefused(
            path,
            f"has mode {mode:o}, expected at most {allowed}: others could "
            f"{'read' if is_secret else 'change'} it; run `chmod {allowed} {path}`",
        )
    if len(data) > max_bytes:
        raise FileRefused(path, f"is longer than {max_bytes} bytes")
    return data


def write_whole(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file in one step, keeping its owner and mode where it is there already.

    Raises:
        OSError: It cannot be written; names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        before = path.stat() if path.exists() else None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), mode if before is None else before.st_mode & 0o777)
            if before is not None and (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
