"""Where clients on this machine find the daemon, told from its settings."""

from __future__ import annotations

import re

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
