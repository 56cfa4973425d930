"""Server side of one stream connection, sans I/O: messages in, actions out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

import msgspec

from voiced.daemon.wire import (
    VERSION,
    Cancel,
    ClientMessage,
    Flush,
    Resume,
    Start,
    Stop,
    WireError,
    decode_client,
)

MAX_TEXT_BYTES = 16 * 1024
"""Longest text message taken. A `start` with every field is below 400 bytes."""


class Code(StrEnum):
    """What a client can do wrong; the values go on the wire."""

    NOT_STARTED = "not_started"
    ALREADY_STARTED = "already_started"
    BAD_MESSAGE = "bad_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    TOO_LARGE = "too_large"
    IDLE = "idle"
    """Nothing came for too long; found by the shell, which has the clock."""
    QUOTA = "quota"
    """More audio than the client may send in an hour; counted by the shell, too."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A block of the stream's bytes; a sample may be split between two blocks."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Violation:
    """The client broke the protocol: answer with this error, then close."""

    code: Code
    message: str


Action = Start | Resume | Audio | Flush | Stop | Cancel | Violation


class _State(Enum):
    WAITING = auto()
    STREAMING = auto()
    ENDED = auto()


class StreamProtocol:
    """Holds a client to the order `start` or `resume`, audio and `flush`, `stop` or `cancel`.

    The first violation ends the conversation. What arrives after the end is ignored: it was
    already on its way when the client could have known.
    """

    def __init__(self) -> None:
        self._state = _State.WAITING

    @property
    def is_over(self) -> bool:
        """Nothing that arrives from now on has an effect."""
        return self._state is _State.ENDED

    def receive(self, data: bytes | str) -> Action | None:
        """Take one WebSocket message (binary: bytes, text: str); never raises for bad input.

        Returns:
            What the shell does next; None when there is nothing to do.
        """
        if self._state is _State.ENDED:
            return None
        if isinstance(data, bytes):
            return self._audio(data)
        if len(data) > MAX_TEXT_BYTES:
            return self._violation(
                Code.TOO_LARGE,
                f"text message of {len(data)} characters; at most {MAX_TEXT_BYTES} are taken",
            )
        try:
            message = decode_client(data)
        except WireError as error:
            version = _version_of(data)
            if version is not None and version != VERSION:
                return self._violation(
                    Code.UNSUPPORTED_VERSION,
                    f"protocol version {version!r} is not spoken; expected {VERSION}",
                )
            return self._violation(Code.BAD_MESSAGE, str(error))
        return self._message(message)

    def _audio(self, data: bytes) -> Action | None:
        if self._state is _State.WAITING:
            return self._violation(
                Code.NOT_STARTED, "found audio before `start`; send `start` as the first message"
            )
        return Audio(data) if data else None

    def _message(self, message: ClientMessage) -> Action:
        starts = isinstance(message, Start | Resume)
        if self._state is _State.WAITING and not starts:
            name = type(message).__name__.lower()
            return self._violation(
                Code.NOT_STARTED,
                f"found `{name}` before `start`; send `start` as the first message",
            )
        if self._state is _State.STREAMING and starts:
            return self._violation(
                Code.ALREADY_STARTED,
                f"found `{type(message).__name__.lower()}` on a connection that has a stream; "
                "open one connection per stream",
            )
        self._state = _State.ENDED if isinstance(message, Stop | Cancel) else _State.STREAMING
        return message

    def _violation(self, code: Code, message: str) -> Violation:
        self._state = _State.ENDED
        return Violation(code, message)


class _Versioned(msgspec.Struct):
    v: int | float | str | None = None


def _version_of(text: str) -> int | float | str | None:
    """Return the `v` of a message that did not decode; None when it has none."""
    try:
        return msgspec.json.decode(text, type=_Versioned).v
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
