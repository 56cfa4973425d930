"""Where clients on this machine find the daemon: told from its settings, or by itself in a file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from voiced.daemon.settings import ServerSettings


def stream_url(server: ServerSettings) -> str:
    """Where a client on this machine finds the server."""
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::", "") else server.host
    scheme = "ws" if server.tls.certificate is None else "wss"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}/v1/stream"


def status_url(server: ServerSettings) -> str:
    """Where a client on this machine asks how the daemon is."""
    return stream_url(server).replace("ws", "http", 1).replace("/v1/stream", "/v1/status")


def admin_url(server: ServerSettings) -> str:
    """Where an admin on this machine tells the daemon what to do."""
    return stream_url(server).replace("/v1/stream", "/v1/admin")


def connectable(endpoint: str) -> str:
    """Turn an endpoint that is bound on all addresses into one to connect to."""
    return re.sub(r"^tcp://(\*|0\.0\.0\.0):", "tcp://127.0.0.1:", endpoint)


def write_addresses(path: Path, addresses: dict[str, str | int | None]) -> None:
    """Put the file in place whole, so that nobody reads half of it.

    Raises:
        OSError: It cannot be written; names the file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(addresses) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
