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
│   ├── HotwordRefused      bad_message: a hotword of the stream is none
│   └── ShuttingDown        shutting_down: the daemon is about to exit
├── StreamBroken        internal: a fault of ours ended the stream
├── SlowClient          slow_client: a client does not read what it is sent
├── JournalError        journal: base of those about the journal and the spool
│   ├── JournalBusy         journal_busy: another daemon uses the folder
│   ├── JournalMissing      journal_missing: there is no such file
│   ├── JournalDamaged      journal_damaged: the file is no journal, or a broken one
│   ├── JournalUnusable     journal_unusable: another version of voiced wrote it
│   ├── JournalRefused      journal_refused: the system does not let us read or change it
│   ├── SpoolFull           spool_full: the segment does not fit beside those that are kept
│   ├── SpoolDamaged        spool_damaged: a file is not what was written
│   ├── SpoolExpired        spool_expired: a segment is older than is of use
│   └── SpoolGivenUp        spool_given_up: too many runs of the daemon ended over a segment
├── TimeError           time: a text that says no time
├── ModelStays          the model was not changed; `code` is that of the reason
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
            f"this client has {self.limit} streams, the most that `limits.client.streams` allows; "
            f"try again in {self.retry_after_ms} ms"
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


class HotwordRefused(StreamRefused):
    """A text among the stream's hotwords is none."""

    code = "bad_message"

    def __init__(self, text: str, rule: str) -> None:
        super().__init__(text, rule)
        self.text, self.rule = text, rule

    def __str__(self) -> str:
        return f"hotword {self.text!r}: {self.rule}"


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


class JournalError(DaemonError):
    """The journal or the spool cannot be used."""

    code = "journal"


class JournalBusy(JournalError):
    """Another daemon uses the folder."""

    code = "journal_busy"

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(folder, holder)
        self.folder, self.holder = folder, holder

    def __str__(self) -> str:
        who = f"process {self.holder}" if self.holder else "another process"
        return (
            f"{self.folder} is in use by {who}; stop that daemon "
            "or set another `journal.folder` for one of the two"
        )


class JournalMissing(JournalError):
    """There is no journal."""

    code = "journal_missing"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"no journal at {self.path}; one is kept where `journal.enabled` is true, "
            "or name its folder with --folder"
        )


class JournalDamaged(JournalError):
    """The file is no journal, or a broken one."""

    code = "journal_damaged"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path} is no sound journal: {self.reason}; a daemon that starts moves it aside, "
            f"`sqlite3 FILE .recover` may read more of it"
        )


class JournalUnusable(JournalError):
    """The file has a layout that this version does not know."""

    code = "journal_unusable"

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(path, found, known)
        self.path, self.found, self.known = path, found, known

    def __str__(self) -> str:
        return (
            f"{self.path} has layout {self.found}, expected {self.known}; "
            "use the voiced that wrote it, or move the file away"
        )


class JournalRefused(JournalError):
    """The system does not let us read or change the file."""

    code = "journal_refused"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; is the disk full, or is it another user's?"


class SpoolFull(JournalError):
    """The segment does not fit beside those that are kept."""

    code = "spool_full"

    def __init__(self, folder: Path, used: int, limit: int) -> None:
        super().__init__(folder, used, limit)
        self.folder, self.used, self.limit = folder, used, limit

    def __str__(self) -> str:
        return (
            f"{self.folder} holds {self.used} of {self.limit} bytes; "
            "raise `journal.spool_mb`, or give the engine less to do"
        )


class SpoolDamaged(JournalError):
    """A file of the spool is not what was written."""

    code = "spool_damaged"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is no spooled segment: {self.reason}"


class SpoolExpired(JournalError):
    """A segment is older than is of use."""

    code = "spool_expired"

    def __init__(self, path: Path, keep_s: float) -> None:
        super().__init__(path, keep_s)
        self.path, self.keep_s = path, keep_s

    def __str__(self) -> str:
        return f"heard more than {self.keep_s / 3600:g} h ago (`journal.spool_hours`)"


class SpoolGivenUp(JournalError):
    """Too many runs of the daemon ended while they answered a segment."""

    code = "spool_given_up"

    def __init__(self, path: Path, attempts: int) -> None:
        super().__init__(path, attempts)
        self.path, self.attempts = path, attempts

    def __str__(self) -> str:
        return f"{self.attempts} runs of the daemon ended while they answered it"


class TimeError(DaemonError):
    """A text says no time."""

    code = "time"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return (
            f"{self.text!r} is no time; expected 90s, 15m, 2h, 7d, all, "
            "or a date as 2026-03-01 or 2026-03-01T08:00"
        )


class ModelStays(DaemonError):
    """The model was not changed for another; nothing else was, either."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason

    def __str__(self) -> str:
        return self.reason


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
