"""How much of the daemon one client, and all together, may take. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from voiced.daemon.security_settings import ClientLimits, TotalLimits

_MAX_CLIENTS = 10_000
"""Clients remembered; of more, the one that was quiet longest is forgotten."""
_HOUR_S = 3_600.0


class TokenBucket:
    """Lets `burst` through at once and `rate_per_s` in the long run.

    `take` always takes, and says how long the taker must wait to have been within the rate: a
    message larger than the bucket is slowed, not refused. Whoever shares a bucket waits in turn.
    """

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self._level, self._at_s = burst, now_s

    def level(self, now_s: float) -> float:
        """What may be taken now without waiting; below 0: what is owed."""
        return min(self.burst, self._level + max(0.0, now_s - self._at_s) * self.rate_per_s)

    def take(self, amount: float, now_s: float) -> float:
        """Take, and return the seconds to wait; 0 where it was there."""
        self._level = self.level(now_s) - amount
        self._at_s = max(self._at_s, now_s)
        return max(0.0, -self._level / self.rate_per_s)

    def allows(self, amount: float, now_s: float) -> bool:
        """Take if it is there; a taker that is turned away takes nothing."""
        level = self.level(now_s)
        if level < amount:
            return False
        self._level, self._at_s = level - amount, max(self._at_s, now_s)
        return True


@dataclass(slots=True)
class Toll:
    """What one message costs its sender."""

    wait_s: float = 0.0
    """Read nothing more from it for this long."""
    limit: str = ""
    """Which limit made it wait, for the count."""
    is_over_quota: bool = False
    """No more audio: end its stream."""


class Meter:
    """The buckets of one client, or of all."""

    def __init__(
        self,
        now_s: float,
        *,
        messages_per_s: float | None,
        bytes_per_s: float | None,
        audio_s_per_hour: float | None,
    ) -> None:
        self._messages = _bucket(messages_per_s, 2.0, now_s)
        self._bytes = _bucket(bytes_per_s, 2.0, now_s)
        self._audio = _bucket(
            None if audio_s_per_hour is None else audio_s_per_hour / _HOUR_S, _HOUR_S, now_s
        )

    @property
    def is_unlimited(self) -> bool:
        """Nothing is ever counted here."""
        return self._messages is None and self._bytes is None and self._audio is None

    def covers(self, *, size: int, audio_s: float, now_s: float) -> bool:
        """Whether a message can be charged and nobody has to wait for it."""
        return all(
            bucket is None or bucket.level(now_s) >= amount
            for bucket, amount in (
                (self._messages, 1.0),
                (self._bytes, float(size)),
                (self._audio, audio_s),
            )
        )

    def charge(self, toll: Toll, *, size: int, audio_s: float, now_s: float) -> None:
        """Count a message."""
        for name, bucket, amount in (
            ("messages", self._messages, 1.0),
            ("bytes", self._bytes, float(size)),
        ):
            if bucket is not None and (wait_s := bucket.take(amount, now_s)) > toll.wait_s:
                toll.wait_s, toll.limit = wait_s, name
        if self._audio is not None and audio_s and not self._audio.allows(audio_s, now_s):
            toll.is_over_quota = True


class Client:
    """One client: its streams, its requests, its buckets."""

    def __init__(self, limits: ClientLimits, now_s: float) -> None:
        self.streams = 0
        """Connections with a stream now, and listeners."""
        self.resumable = 0
        """Streams that may outlive their connection: each may have a second one for a moment."""
        self.max_streams = limits.streams
        self.meter = Meter(
            now_s,
            messages_per_s=limits.messages_per_s,
            bytes_per_s=limits.bytes_per_s,
            audio_s_per_hour=limits.audio_s_per_hour,
        )
        self._requests = TokenBucket(
            limits.requests_per_minute / 60, limits.requests_per_minute, now_s
        )

    def may_request(self, now_s: float) -> bool:
        """Count an HTTP request; False when it is one too many."""
        return self._requests.allows(1.0, now_s)


class Clients:
    """All clients of late, by token or address. Bounded; one with open streams is never forgotten.

    A client that comes back after it was forgotten begins with full buckets: to use that it would
    need 10000 addresses or tokens that are busier than it is.
    """

    def __init__(
        self, limits: ClientLimits | None = None, total: TotalLimits | None = None
    ) -> None:
        self._limits, self._total = limits or ClientLimits(), total or TotalLimits()
        self._clients: OrderedDict[str, Client] = OrderedDict()
        self._all: Meter | None = None

    def __len__(self) -> int:
        return len(self._clients)

    def of(self, key: str, now_s: float) -> Client:
        """Return the client with this key."""
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = Client(self._limits, now_s)
            self._forget()
        self._clients.move_to_end(key)
        return client

    def everybody(self, now_s: float) -> Meter:
        """What all share."""
        if self._all is None:
            self._all = Meter(
                now_s,
                messages_per_s=self._total.messages_per_s,
                bytes_per_s=self._total.bytes_per_s,
                audio_s_per_hour=self._total.audio_s_per_hour,
            )
        return self._all

    def _forget(self) -> None:
        if len(self._clients) <= _MAX_CLIENTS:
            return
        quiet = next((key for key, client in self._clients.items() if not client.streams), None)
        if quiet is not None:
            del self._clients[quiet]


def _bucket(rate_per_s: float | None, seconds: float, now_s: float) -> TokenBucket | None:
    """A bucket that holds the rate of so many seconds; None: no limit."""
    return None if rate_per_s is None else TokenBucket(rate_per_s, rate_per_s * seconds, now_s)
