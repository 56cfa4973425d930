"""What may be listened on: this machine alone, unless who connects is known and nobody reads along.

Pure but for host names, which are looked up.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence

from voiced.daemon.config import Problem, show
from voiced.daemon.settings import Settings

OVERRIDE = "server.insecure"


def is_of_this_machine(host: str) -> bool:
    """Tell whether only processes of this machine can reach a socket bound to `host`.

    A name counts when every address that it has is a loopback one; an interface's name, an empty
    text and `*` do not.
    """
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        pass
    if host in ("", "*"):
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(is_of_this_machine(str(address[4][0])) for address in found)


def is_local_endpoint(endpoint: str) -> bool:
    """The same for a ZeroMQ endpoint; `ipc://` has its folder's permissions as the guard."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    host = re.sub(r"^tcp://(.*):(?:\d+|\*)$", r"\1", endpoint)
    return host != endpoint and is_of_this_machine(host)


def problems(settings: Settings, passed: Sequence[socket.socket] = ()) -> list[Problem]:
    """Return every address that would be open to others without protection.

    Args:
        settings: All of them.
        passed: Listening sockets that are served instead of `server.host`.
    """
    if settings.server.insecure:
        return []
    return [
        Problem("settings", key, rule, show(value)) for key, value, rule in _open(settings, passed)
    ]


def warnings(settings: Settings, passed: Sequence[socket.socket] = ()) -> list[str]:
    """Say what `server.insecure` lets through."""
    if not settings.server.insecure:
        return []
    return [f"{key} = {show(value)}: {rule}" for key, value, rule in _open(settings, passed)]


def _open(settings: Settings, passed: Sequence[socket.socket]) -> Iterator[tuple[str, str, str]]:
    server, bus = settings.server, settings.bus
    hosts = [("server.host", server.host)]
    if passed:
        names = (each.getsockname() for each in passed)  # a text for a Unix socket
        hosts = [("passed socket", str(name[0])) for name in names if isinstance(name, tuple)]
    for key, host in hosts:
        if is_of_this_machine(host):
            continue
        missing = []
        if server.tls.certificate is None:
            missing.append("`server.tls.certificate`")
        if server.tokens is None:
            missing.append("`server.tokens`")
        if missing:
            yield key, host, _rule(" and ".join(missing))
    if bus.curve.key is None:
        for name in ("endpoint", "ingest", "replay"):
            endpoint = getattr(bus, name)
            if not is_local_endpoint(endpoint):
                yield f"bus.{name}", endpoint, _rule("`bus.curve.key`")


def _rule(missing: str) -> str:
    return (
        f"can be reached from other machines, which needs {missing}; "
        f"use a loopback address, or `{OVERRIDE}` where the network is trusted"
    )
