"""What a client that lost its connection must know to go on: pure, no clock, no socket.

Two counts make it exact. The daemon counts the samples that it took: the client sends on from
there, so that nothing is doubled and nothing lost that it still has. Each message to the client has
a number: it says which one it had last, and gets those behind it again.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from voiced.daemon.errors import ResumeRefused
from voiced.daemon.wire import Failed, Final, Partial, Ready, Resume, ServerMessage, encode

MAX_HISTORY_BYTES = 512 * 1024
MAX_HISTORY_MESSAGES = 900
"""Below what an `Outbox` holds: all of it is sent at once to a client that comes back."""
MAX_LOST_S = 24 * 3_600
"""Longest gap that a client may tell of."""


class History:
    """The messages that a client may not have had, numbered from 1. Bounded.

    Of a segment's partials the newest is kept, and none once it has its last word: the others
    would not have been sent to a slow client either.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_HISTORY_BYTES,
        max_messages: int = MAX_HISTORY_MESSAGES,
    ) -> None:
        self._max_bytes, self._max_messages = max_bytes, max_messages
        self._kept: OrderedDict[int, tuple[ServerMessage, int]] = OrderedDict()
        self._partials: dict[int, int] = {}
        """Segment → number of its newest partial."""
        self._bytes = 0
        self.last = 0
        """The last number given."""
        self.forgotten = 0
        """A client must have had everything up to this number to go on."""

    def add(self, message: ServerMessage) -> ServerMessage:
        """Number a message, keep it, and return it as it is sent."""
        self.last += 1
        numbered = msgspec.structs.replace(message, number=self.last)
        if isinstance(message, Partial | Final | Failed):
            self._drop(self._partials.pop(message.segment, 0))
        if isinstance(message, Partial):
            self._partials[message.segment] = self.last
        size = len(encode(numbered))
        self._kept[self.last] = (numbered, size)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._kept) > self._max_messages:
            oldest, (gone, size) = self._kept.popitem(last=False)
            self._bytes -= size
            if isinstance(gone, Partial):
                del self._partials[gone.segment]
            self.forgotten = oldest
        return numbered

    def since(self, received: int) -> list[ServerMessage]:
        """Return what comes behind message `received`.

        Raises:
            ResumeRefused: It is not kept any more, or was never sent.
        """
        if received > self.last:
            raise ResumeRefused(f"message {received} was never sent; the last was {self.last}")
        if received < self.forgotten:
            raise ResumeRefused(
                f"messages {received + 1} to {self.forgotten} are not kept any more"
            )
        return [message for number, (message, _) in self._kept.items() if number > received]

    def _drop(self, number: int) -> None:
        found = self._kept.pop(number, None)
        if found is not None:
            self._bytes -= found[1]


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a stream goes on."""

    ready: Ready
    """The answer to `resume`."""
    messages: tuple[ServerMessage, ...]
    """What the client missed, behind it."""
    lost_frames: int
    """Samples (of all channels) that it has not any more."""


class ResumePoint:
    """Where one stream stands, for whoever can name its token."""

    def __init__(
        self,
        *,
        owner: str,
        frame_bytes: int,
        rate_hz: int,
        resume_ms: int,
        history: History | None = None,
        token: str | None = None,
    ) -> None:
        """Begin at sample 0, before `ready`.

        Args:
            owner: Name of the bearer token under which the stream was opened, or nothing.
            frame_bytes: Bytes of one sample of all channels.
            rate_hz: Of the source.
            resume_ms: How long a lost client may stay away, for `ready`.
            history: An empty one.
            token: What the client must show; by default a new one.
        """
        self.owner, self.rate_hz = owner, rate_hz
        self._frame_bytes, self._resume_ms = frame_bytes, resume_ms
        self._history = history or History()
        self._token = token or secrets.token_urlsafe(16)
        self._rest = b""
        self.next_sample = 0
        """The first sample (of all channels, at the source's rate) that was not taken yet."""
        self._bundle = ""

    @property
    def bytes_per_s(self) -> int:
        """Of the source's audio."""
        return self._frame_bytes * self.rate_hz

    def take(self, data: bytes) -> bytes:
        """Count a block; return the whole samples of it, with what was left of the last one."""
        data = self._rest + data
        end = len(data) - len(data) % self._frame_bytes
        self._rest = data[end:]
        self.next_sample += end // self._frame_bytes
        return data[:end]

    def number(self, message: ServerMessage) -> ServerMessage:
        """Number a message to the client and keep it."""
        if isinstance(message, Ready):
            self._bundle = message.bundle
            message = self._told(message)
        return self._history.add(message)

    def attach(self, request: Resume, *, owner: str, stream: str) -> Resumption:
        """Let a client go on; half a sample that the lost connection left is forgotten.

        Raises:
            ResumeRefused: Not with this token, or from there.
        """
        is_token = hmac.compare_digest(self._token.encode(), request.token.encode())
        if not is_token or owner != self.owner:
            raise ResumeRefused("the token is not that of the stream")
        lost = max(0, request.first_sample - self.next_sample)
        if lost > MAX_LOST_S * self.rate_hz:
            raise ResumeRefused(f"first_sample is {lost} samples ahead, more than a day")
        messages = tuple(self._history.since(request.received))
        self._rest = b""
        self.next_sample += lost
        ready = self._told(Ready(stream=stream, bundle=self._bundle, rate_hz=self.rate_hz))
        return Resumption(ready, messages, lost)

    def _told(self, ready: Ready) -> Ready:
        return msgspec.structs.replace(
            ready,
            resume_token=self._token,
            resume_ms=self._resume_ms,
            next_sample=self.next_sample,
        )
