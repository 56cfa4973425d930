"""What a client writes down about its streams, to hold a server to its promises. Pure, bounded.

`StreamLedger` checks one stream on one channel: every segment that is announced gets exactly one
last word, revisions rise by one, nothing follows. `Twin` checks that two channels say the same.
Neither keeps anything about what has been settled, so a run may be as long as one likes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from voiced.daemon import wire

MOST_SHOWN = 20
"""Violations kept as text; all are counted."""
MOST_APART = 4_096
"""Messages that one channel may be ahead of the other before that is a violation itself."""


@dataclass(slots=True)
class Violations:
    """Broken promises: how many, and the first of them in words."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.shown) < MOST_SHOWN:
            self.shown.append(text)

    def extend(self, other: Violations) -> None:
        """Take over what another one noted."""
        self.count += other.count
        self.shown = (self.shown + other.shown)[:MOST_SHOWN]


class StreamLedger:
    """The segments of one stream as one channel tells them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: dict[int, int] = {}
        """Segments without their last word → the last revision seen."""
        self._last_announced = 0
        self._is_ready = False
        self._is_over = False
        self.violations = Violations()
        self.announced = 0
        self.finals = 0
        """Last words with text, and without."""
        self.failed: dict[str, int] = {}
        """Code → segments."""
        self.partials = 0

    @property
    def open_segments(self) -> int:
        """Announced and not answered yet."""
        return len(self._open)

    @property
    def is_over(self) -> bool:
        """`ended` has come."""
        return self._is_over

    def take(self, message: wire.ServerMessage) -> None:
        """Enter one message; types that say nothing about a segment's fate are passed over."""
        if self._is_over and not isinstance(message, wire.Intent | wire.Heartbeat):
            self._wrong(f"{_tag(message)} after the end of the stream")
        match message:
            case wire.Ready():
                if self._is_ready:
                    self._wrong("a second ready")
                self._is_ready = True
            case wire.SpeechStarted():
                self._announce(message.segment)
            case wire.Partial():
                self.partials += 1
                self._revise(message.segment, message.revision, "partial")
            case wire.SpeechEnded():
                if message.segment not in self._open:
                    self._wrong(f"speech_ended of segment {message.segment}, which is not open")
            case wire.Final():
                self._revise(message.segment, message.revision, "final")
                self.finals += self._open.pop(message.segment, None) is not None
            case wire.Failed():
                if self._open.pop(message.segment, None) is None:
                    self._wrong(f"failed of segment {message.segment}, which is not open")
                else:
                    self.failed[message.code] = self.failed.get(message.code, 0) + 1
            case wire.Ended():
                self._is_over = True
                if message.segments != self.announced:
                    self._wrong(f"ended after {message.segments} segments, seen {self.announced}")
            case _:
                pass

    def close(self) -> None:
        """Nothing more will come: what is open now was never answered."""
        for segment in self._open:
            self._wrong(f"segment {segment} got no last word")
        self._open.clear()

    def _announce(self, segment: int) -> None:
        self.announced += 1
        if not self._is_ready:
            self._wrong(f"segment {segment} before ready")
        if segment <= self._last_announced:
            self._wrong(f"segment {segment} announced after {self._last_announced}")
        self._last_announced = max(self._last_announced, segment)
        self._open[segment] = 0

    def _revise(self, segment: int, revision: int, what: str) -> None:
        before = self._open.get(segment)
        if before is None:
            known = segment <= self._last_announced
            why = "which has its last word" if known else "which was not announced"
            self._wrong(f"{what} of segment {segment}, {why}")
        elif what == "final" and revision <= before:
            self._wrong(f"final of segment {segment} has revision {revision} after {before}")
        elif what == "partial" and revision <= before:
            self._wrong(f"partial of segment {segment} has revision {revision} after {before}")
        else:
            self._open[segment] = revision

    def _wrong(self, text: str) -> None:
        self.violations.add(f"{self._name}: {text}")


class Twin:
    """Two channels that must tell the same, in the same order, about one stream.

    Partials are left out: a client that reads slowly is spared superseded ones, the bus is not.
    """

    _COMPARED = (wire.SpeechStarted, wire.SpeechEnded, wire.Final, wire.Failed, wire.Ended)

    def __init__(self, name: str, first: str, second: str) -> None:
        self._name = name
        self._names = (first, second)
        self._waiting: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.violations = Violations()
        self.compared = 0

    def take(self, channel: int, message: wire.ServerMessage) -> None:
        """Enter a message of channel 0 or 1."""
        if not isinstance(message, self._COMPARED):
            return
        ours, other = self._waiting[channel], self._waiting[1 - channel]
        digest = _digest(message)
        if not other:
            ours.append(digest)
            if len(ours) > MOST_APART:
                ours.popleft()
                self._wrong(
                    f"{self._names[1 - channel]} is missing more than {MOST_APART} messages"
                )
            return
        self.compared += 1
        if other.popleft() != digest:
            self._wrong(f"{self._names[channel]} says something else with {_tag(message)}")

    def close(self) -> None:
        """Nothing more will come on either channel."""
        for channel, waiting in enumerate(self._waiting):
            if waiting:
                self._wrong(f"{len(waiting)} messages came on {self._names[channel]} only")
                waiting.clear()

    def _wrong(self, text: str) -> None:
        self.violations.add(f"{self._name}: {text}")


@dataclass(slots=True)
class Sequence:
    """Gaps and duplicates on the bus, from `epoch` and `seq`."""

    epoch: str | None = None
    last: int | None = None
    lost: int = 0
    restarts: int = 0

    def take(self, message: wire.Message) -> None:
        """Enter one message of a subscriber to everything."""
        if message.seq is None:
            return
        if self.epoch is not None and message.epoch != self.epoch:
            self.restarts += 1
            self.last = None
        self.epoch = message.epoch
        step = 0 if isinstance(message, wire.Heartbeat) else 1
        if self.last is not None:
            self.lost += max(message.seq - self.last - step, 0)
        self.last = message.seq


def _digest(message: wire.ServerMessage) -> bytes:
    """What must be equal on both channels, in 16 bytes."""
    match message:
        case wire.Final():
            parts = (message.segment, message.revision, message.text, message.end_ms)
        case wire.Failed():
            parts = (message.segment, 0, message.code, 0)
        case wire.SpeechStarted() | wire.SpeechEnded():
            parts = (message.segment, 0, "", message.start_ms)
        case wire.Ended():
            parts = (message.segments, 0, "", message.audio_ms)
        case _:
            parts = (0, 0, "", 0)
    text = f"{_tag(message)} {parts}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _tag(message: wire.ServerMessage) -> str:
    return str(type(message).__struct_config__.tag)
