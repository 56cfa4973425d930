"""What the server is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where the server listens and what it takes from one client."""

    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes a free port."""
    unix_socket: Path | None = None
    """Listened on as well."""
    unix_socket_mode: int = 0o660
    max_message_bytes: int = 1 << 20
    """A longer WebSocket message closes the connection with 1009, before it is read."""
    max_queue: int = 8
    """Messages read ahead per connection; memory is at most this x max_message_bytes."""
    max_connections: int = 128
    """TCP connections, streams or not. When there is one more, the oldest that has not sent its
    request, or its `start`, goes; where all have, the new one."""
    max_connections_per_address: int = 64
    """The same for one address of another machine."""
    open_timeout_s: float = 10.0
    """For TLS to be complete, and for the HTTP request behind it."""
    keepalive_s: float = 20.0
    """The kernel finds out within about this time that a peer cannot be reached any more."""
    start_timeout_s: float = 10.0
    """From the upgrade to `start`."""
    idle_timeout_s: float = 60.0
    """Longest silence on the wire after `start`; audio of silence counts as sound here."""
    resume_s: float = 30.0
    """How long a resumable stream waits for a client whose connection was lost."""
    send_timeout_s: float = 20.0
    """Longest that one message may wait for the client to read."""
    outbox_bytes: int = 1 << 20
    """Bytes waiting for one client above which it is given up."""
    close_timeout_s: float = 1.0
    """For a client to answer a close; then the connection is cut."""
    ping_interval_s: float = 20.0
    allowed_origins: tuple[str, ...] = ()
    """Browser origins, e.g. `https://car.example`, that may connect besides loopback; `*`: all."""
