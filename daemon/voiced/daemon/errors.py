"""Errors of the daemon.

DaemonError             base; `code` is stable and goes on the wire
├── StreamRefused       the stream is not opened; `code` says why
│   ├── StreamInUse         stream_in_use: another open stream has this name
│   ├── TooManyStreams      busy: the daemon carries as many streams as it is allowed to
│   ├── TooManyOfClient     client_limit: this client has as many streams as it may
│   ├── Overloaded          busy: finals wait for too long already
│   ├── ResumeRefused       resume_refused: the stream cannot go on, or not for this client
│   ├── NotReady            not_ready: the engine is still loading or being replaced
│   ├── UnknownLanguage     unknown_language: the bundle cannot recognise it
│   └── ShuttingDown        shutting_down: the daemon is about to exit
├── StreamBroken        internal: a fault of ours ended the stream
├── SlowClient          slow_client: a client does not read what it is sent
├── StartTimeout        start_timeout: the engine was not ready within the time that is set
├── AddressRefused      address: the system cannot listen on the address that is set
├── PortInUse           port_in_use: another process listens on the TCP port
├── SocketInUse         socket_in_use: another process listens on the Unix socket
└── EndpointInUse       endpoint_in_use: another process is bound to the ZeroMQ endpoint
"""

from __future__ import annotations

import os
from pathlib import Path


class DaemonError(Exception):
    """Base class of the daemon's errors."""

    code = "daemon"


class StreamRefused(DaemonError):
    """The stream is not opened."""

    code = "refused"
    retry_after_ms: int | None = None
    """When to try again; None: trying again does not help."""


class StreamInUse(StreamRefused):
    """Another open stream has this name."""

    code = "stream_in_use"

    def __init__(self, stream: str, *, is_ending: bool = False) -> None:
        super().__init__(stream, is_ending)
        self.stream, self.is_ending = stream, is_ending
        self.retry_after_ms = 500 if is_ending else None

    def __str__(self) -> str:
        if self.is_ending:
            return (
                f"stream name {self.stream!r} is in use by a stream whose last results are "
                f"awaited; try again in {self.retry_after_ms} ms"
            )
        return (
            f"stream name {self.stream!r} is in use by an open stream; "
            "choose another or leave it out"
        )


class TooManyStreams(StreamRefused):
    """The daemon carries as many streams as it is allowed to."""

    code = "busy"

    def __init__(self, limit: int, *, retry_after_ms: int = 1_000) -> None:
        super().__init__(limit)
        self.limit, self.retry_after_ms = limit, retry_after_ms

    def __str__(self) -> str:
        return f"all {self.limit} streams are taken; try again in {self.retry_after_ms} ms"


class TooManyOfClient(StreamRefused):
    """This client, a token or an address, has as many streams as it may."""

    code = "client_limit"

    def __init__(self, limit: int, *, retry_after_ms: int = 1_000) -> None:
        super().__init__(limit)
        self.limit, self.retry_after_ms = limit, retry_after_ms

    def __str__(self) -> str:
        return (
            f"this client has {self.limit} connections, the most that `limits.client.streams` "
            f"allows; try again in {self.retry_after_ms} ms"
        )


class Overloaded(StreamRefused):
    """Finals of the open streams wait for too long already."""

    code = "busy"

    def __init__(self, queued: int, oldest_s: float, retry_after_ms: int) -> None:
        super().__init__(queued, oldest_s, retry_after_ms)
        self.queued, self.oldest_s, self.retry_after_ms = queued, oldest_s, retry_after_ms

    def __str__(self) -> str:
        return (
            f"engine is behind: {self.queued} finals wait, the oldest for {self.oldest_s:.1f} s; "
            f"try again in {self.retry_after_ms} ms"
        )


class ResumeRefused(StreamRefused):
    """The stream cannot go on from there, or not for this client."""

    code = "resume_refused"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"stream cannot be resumed: {self.reason}; open a new one with `start`"


class NotReady(StreamRefused):
    """The engine is still loading or being replaced."""

    code = "not_ready"

    def __init__(self, reason: str, *, retry_after_ms: int = 500) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_ms = reason, retry_after_ms

    def __str__(self) -> str:
        return f"engine is not ready: {self.reason}; try again in {self.retry_after_ms} ms"


class UnknownLanguage(StreamRefused):
    """The bundle cannot recognise the language that the stream asks for."""

    code = "unknown_language"

    def __init__(self, language: str, known: tuple[str, ...]) -> None:
        super().__init__(language, known)
        self.language, self.known = language, known

    def __str__(self) -> str:
        return (
            f"language {self.language!r} is not served; "
            f"expected one of {', '.join(self.known)}, or none to let the engine choose"
        )


class ShuttingDown(StreamRefused):
    """The daemon is about to exit."""

    code = "shutting_down"

    def __str__(self) -> str:
        return "daemon is shutting down; connect again later"


class StreamBroken(DaemonError):
    """A fault of ours ended the stream; the log has its traceback."""

    code = "internal"

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream

    def __str__(self) -> str:
        return f"stream {self.stream} was ended by an internal error"


class SlowClient(DaemonError):
    """A client does not read what it is sent."""

    code = "slow_client"

    def __init__(self, waiting_bytes: int, waiting_messages: int) -> None:
        super().__init__(waiting_bytes, waiting_messages)
        self.waiting_bytes, self.waiting_messages = waiting_bytes, waiting_messages

    def __str__(self) -> str:
        return (
            f"client does not read: {self.waiting_messages} messages "
            f"({self.waiting_bytes} bytes) were waiting for it"
        )


class StartTimeout(DaemonError):
    """The engine was not loaded and warmed in time."""

    code = "start_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return (
            f"engine was not ready within {self.limit_s:g} s; "
            "raise `limits.ready_timeout_s`, or see `voiced model verify`"
        )


class AddressRefused(DaemonError):
    """The system cannot listen on the address that is set."""

    code = "address"

    def __init__(self, setting: str, address: str, reason: str) -> None:
        super().__init__(setting, address, reason)
        self.setting, self.address, self.reason = setting, address, reason

    def __str__(self) -> str:
        return (
            f"cannot listen on {self.address}: {self.reason.lower()}; "
            f"set `{self.setting}` to an address of this machine that this user may use"
        )


class PortInUse(DaemonError):
    """Another process listens on the TCP port."""

    code = "port_in_use"

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.host, self.port = host, port

    def __str__(self) -> str:
        return (
            f"port {self.port} on {self.host} is in use, probably by another daemon; "
            f"stop it (`ss -ltnp 'sport = :{self.port}'` shows who it is) "
            "or set another `server.port`"
        )


class SocketInUse(DaemonError):
    """Another process listens on the Unix socket."""

    code = "socket_in_use"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"socket {self.path} is in use, probably by another daemon; stop it "
            "(`ss -lxp` shows who it is) or set another `server.unix_socket`"
        )


class EndpointInUse(DaemonError):
    """Another process is bound to the ZeroMQ endpoint."""

    code = "endpoint_in_use"

    def __init__(self, endpoint: str, setting: str) -> None:
        super().__init__(endpoint, setting)
        self.endpoint, self.setting = endpoint, setting

    def __str__(self) -> str:
        return (
            f"bus endpoint {self.endpoint} is in use, probably by another daemon; "
            f"stop it or set another `{self.setting}`"
        )


def os_reason(error: OSError) -> str:
    """Say what the system refused in our words: the file, if it names one, and why."""
    reason = (error.strerror or str(error)).lower()
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
