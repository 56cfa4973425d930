"""Sockets that the server does not bind by host and port: passed by systemd, or in the file system.

Passed sockets (sd_listen_fds(3)) stay open while the daemon is replaced: connections wait in the
kernel's queue instead of being refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

from voiced.daemon.errors import AddressRefused, SocketInUse

_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd-daemon.h."""
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_SETTING = "server.unix_socket"


def passed_sockets(
    environment: MutableMapping[str, str] = os.environ, *, first_fd: int = _FIRST_FD
) -> tuple[socket.socket, ...]:
    """Take over the sockets that systemd passed to this process; none where it did not.

    The variables are removed, so that a second call and children take nothing.

    Raises:
        AddressRefused: One of them is no listening stream socket.
    """
    count = environment.get("LISTEN_FDS", "")
    is_ours = environment.get("LISTEN_PID") == str(os.getpid())
    for name in _VARIABLES:
        environment.pop(name, None)
    if not is_ours or not count.isdecimal():
        return ()
    return tuple(_take(fd) for fd in range(first_fd, first_fd + int(count)))


def _take(fd: int) -> socket.socket:
    """Make a socket of a descriptor that was passed.

    Raises:
        AddressRefused: It is no listening stream socket.
    """
    try:
        found = socket.socket(fileno=fd)
    except OSError as error:
        reason = f"descriptor {fd} is no socket ({(error.strerror or str(error)).lower()})"
        raise AddressRefused("ListenStream", "what systemd passed", reason) from error
    is_stream = found.type == socket.SOCK_STREAM
    if not is_stream or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        reason = f"found descriptor {fd} of type {found.type.name}, expected a listening stream"
        found.detach()
        raise AddressRefused("ListenStream", "what systemd passed", reason)
    os.set_inheritable(fd, False)
    found.setblocking(False)
    return found


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Bind a socket at `path`; one left behind by a dead process is replaced.

    Raises:
        SocketInUse: Somebody listens there.
        AddressRefused: It cannot be bound for another reason.
    """
    if is_answered(path):
        raise SocketInUse(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        bound.bind(str(path))
        path.chmod(mode)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressRefused(_SETTING, str(path), "the file exists and is no socket") from error
        # A path too long for the kernel has words of Python's and no number.
        raise AddressRefused(_SETTING, str(path), error.strerror or str(error)) from error
    return bound


def is_answered(path: Path) -> bool:
    """Tell whether somebody listens on a Unix socket."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0.5)
            probe.connect(str(path))
    except OSError:
        return False
    return True


def describe(listening: socket.socket) -> str:
    """Where a socket listens, for people: `127.0.0.1:8765` or a path."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return str(name) or "an unnamed socket"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"
