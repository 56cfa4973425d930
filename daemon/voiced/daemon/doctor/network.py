"""Addresses: free, ours already, or in whose hands."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from voiced.daemon.doctor.finding import Finding, fail, ok, warn
from voiced.daemon.listening import is_answered
from voiced.daemon.settings import Settings

_LISTEN = "0A"
"""State of /proc/net/tcp, include/net/tcp_states.h."""


def check_ports(
    settings: Settings, *, holder_of: Callable[[int], str | None] | None = None
) -> Iterator[Finding]:
    """Try to bind every address that the daemon will listen on; a free port (0, *) needs no check.

    Args:
        settings: Where it listens.
        holder_of: Who listens on a port, as `name (pid 12)`; None where that cannot be seen.
    """
    holder_of = holder_of or find_holder
    server = settings.server
    wanted = [("server.port", server.host, server.port)]
    for key, endpoint in (
        ("bus.endpoint", settings.bus.endpoint),
        ("bus.ingest", settings.bus.ingest),
    ):
        if match := re.fullmatch(r"tcp://(.+):(\d+)", endpoint):
            host = "0.0.0.0" if match[1] == "*" else match[1].strip("[]")
            wanted.append((key, host, int(match[2])))
        elif endpoint.startswith("ipc://"):
            yield _check_path(key, Path(endpoint.removeprefix("ipc://")))
    for key, host, port in wanted:
        if port:
            yield _check_port(key, host, port, holder_of)
    if server.unix_socket is not None:
        yield _check_path("server.unix_socket", Path(server.unix_socket))


def _check_port(key: str, host: str, port: int, holder_of: Callable[[int], str | None]) -> Finding:
    try:
        place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(place[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place[4])
            probe.listen()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            reason = (error.strerror or str(error)).lower()
            found = f"{key}: cannot listen on {host}:{port}: {reason}"
            return fail("ports", found, f"set `{key}` to an address of this machine")
        holder = holder_of(port)
        if holder is not None and holder.startswith(("voiced", "systemd (pid 1)")):
            return ok("ports", f"{key}: {host}:{port}, held by {holder}")
        if holder is None:
            show = f"`ss -ltnp 'sport = :{port}'` as root shows by whom; well if it is the daemon"
            return warn("ports", f"{key}: {host}:{port} is taken", show)
        found = f"{key}: {host}:{port} is held by {holder}"
        return fail("ports", found, f"stop it, or set another `{key}`")
    return ok("ports", f"{key}: {host}:{port} is free")


def _check_path(key: str, path: Path) -> Finding:
    if is_answered(path):
        return ok("ports", f"{key}: {path}, somebody listens there")
    if not path.parent.is_dir():
        return fail(
            "ports", f"{key}: there is no folder {path.parent}", f"create it or set `{key}`"
        )
    if not os.access(path.parent, os.W_OK):
        found = f"{key}: {path.parent} is not writable for this user"
        return warn("ports", found, f"run the daemon as a user who may, or set `{key}`")
    return ok("ports", f"{key}: {path} is free")


def find_holder(port: int, *, proc: Path = Path("/proc")) -> str | None:
    """Name the process that listens on a TCP port; None where this user may not see it."""
    inodes = set()
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    processes = [path for path in proc.iterdir() if path.name.isdecimal()]
    # The highest number first: of a socket that systemd keeps, the daemon is the holder to name.
    for process in sorted(processes, key=lambda path: -int(path.name)):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None
