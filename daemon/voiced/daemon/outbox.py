"""What waits to be sent to one client: bounded, so that one that never reads costs little."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from voiced.daemon.errors import SlowClient
from voiced.daemon.wire import Failed, Final, Partial, ServerMessage, encode

Key = tuple[int, bool]


class LatestPartialPerSegment:
    """A bounded queue of encoded messages in which only partials may be replaced. No I/O.

    A newer partial takes the place of a waiting one of its segment; a final removes it. When
    the bound is reached all waiting partials go; if that is not enough the queue is full, and
    the client is lost: nothing but partials is ever left out of a queue that is still read.
    """

    def __init__(self, *, max_bytes: int, max_messages: int) -> None:
        self._max_bytes, self._max_messages = max_bytes, max_messages
        self._waiting: dict[Key, bytes] = {}
        """In sending order. Keys: (segment, True) for its partial, (running number, False)."""
        self._count = 0
        self.waiting_bytes = 0
        self.replaced = 0
        """Partials that were never sent. Never reset; readers take differences."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: ServerMessage) -> None:
        """Append a message.

        Raises:
            SlowClient: It does not fit; the queue keeps what it had.
        """
        if isinstance(message, Partial | Final | Failed):
            self._drop((message.segment, True))
        data = encode(message)
        if not self._fits(data):
            for waiting in [key for key in self._waiting if key[1]]:
                self._drop(waiting)
        if not self._fits(data):
            raise SlowClient(self.waiting_bytes, len(self._waiting))
        self._count += 1
        key = (message.segment, True) if isinstance(message, Partial) else (self._count, False)
        self._waiting[key] = data
        self.waiting_bytes += len(data)

    def take(self) -> bytes:
        """Remove and return the oldest message; the queue must not be empty."""
        data = self._waiting.pop(next(iter(self._waiting)))
        self.waiting_bytes -= len(data)
        return data

    def _fits(self, data: bytes) -> bool:
        return (
            self.waiting_bytes + len(data) <= self._max_bytes
            and len(self._waiting) < self._max_messages
        )

    def _drop(self, key: Key) -> None:
        data = self._waiting.pop(key, None)
        if data is not None:
            self.waiting_bytes -= len(data)
            self.replaced += 1


class Outbox:
    """Sends one client its messages, so that nobody waits for it.

    While nothing waits, a message is sent at once, if that can be; else by a task, `pump`.
    `put` never blocks and never raises. A client that lets the queue fill up, or a single
    message wait longer than `send_timeout_s`, is given up: `pump` raises SlowClient.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 1 << 20,
        max_messages: int = 1_000,
        send_timeout_s: float = 20.0,
        send_now: Callable[[bytes], bool] = lambda data: False,
    ) -> None:
        """`send_now` sends a message if nobody has to wait for it, and says whether it did."""
        self._queue = LatestPartialPerSegment(max_bytes=max_bytes, max_messages=max_messages)
        self._send_timeout_s = send_timeout_s
        self._send_now = send_now
        self._wake = asyncio.Event()
        self._sending: asyncio.Timeout | None = None
        self._overflow: SlowClient | None = None
        self._is_closed = False
        self._moved_s = 0.0
        """When the queue was last empty or a message last left it."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait."""
        return self._queue.waiting_bytes

    @property
    def stalled_s(self) -> float:
        """How long the client has taken nothing, while something waits for it."""
        if len(self._queue) == 0 and self._sending is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._moved_s

    @property
    def replaced(self) -> int:
        """Partials that were replaced before they could be sent."""
        return self._queue.replaced

    def put(self, message: ServerMessage) -> None:
        """Queue a message; ignored after `close` and after the client was given up."""
        if self._is_closed or self._overflow is not None:
            return
        if len(self._queue) == 0 and self._sending is None:
            if self._send_now(encode(message)):
                return
            self._moved_s = asyncio.get_running_loop().time()
        try:
            self._queue.put(message)
        except SlowClient as error:
            self._overflow = error
            if self._sending is not None:
                self._sending.reschedule(asyncio.get_running_loop().time())
        self._wake.set()

    def close(self) -> None:
        """Take nothing more; `pump` returns when the queue is empty."""
        self._is_closed = True
        self._wake.set()

    async def pump(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Send until closed and empty.

        Raises:
            SlowClient: The client does not read.
        """
        while True:
            while self._overflow is None and len(self._queue) > 0:
                await self._send_one(send, self._queue.take())
                self._moved_s = asyncio.get_running_loop().time()
            if self._overflow is not None:
                raise self._overflow
            if self._is_closed:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _send_one(self, send: Callable[[str], Awaitable[None]], data: bytes) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s) as self._sending:
                await send(data.decode())
        except TimeoutError:
            if self._overflow is None:
                self._overflow = SlowClient(
                    self._queue.waiting_bytes + len(data), len(self._queue) + 1
                )
            raise self._overflow from None
        finally:
            self._sending = None
