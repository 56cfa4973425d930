"""Asks the daemon's journal for what a subscriber has missed. No thread: the owner polls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from voiced.daemon import wire
from voiced.plugins.curve import CurveKeys

DEFAULT_REPLAY = "tcp://127.0.0.1:8768"
_ASK_AGAIN_S = 2.0
"""An answer that takes longer is asked for once more: a daemon was started anew meanwhile."""
PATIENCE_S = 30.0
"""How long a journal that was there before is waited for."""
FIRST_PATIENCE_S = 2.0
"""How long one is waited for that never answered: there may be none."""

_SKIP_S = 60.0
"""How long a journal that does not answer is not asked again."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the bus: behind `after` or from `since_ms` on, up to and with `until`."""

    after: wire.Position | None
    until: wire.Position | None
    since_ms: int | None = None


class ReplayClient:
    """Fetches one span after the other, page by page. Owned by one thread, never blocks."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        now: Callable[[], float],
        is_expected: bool,
        curve: CurveKeys | None = None,
    ) -> None:
        """Connect; nothing is asked.

        Args:
            context: The owner's, which closes the socket before it ends it.
            endpoint: The daemon's ROUTER socket.
            now: Monotonic seconds.
            is_expected: Whether a journal was there before, so that it is worth waiting for.
            curve: For a bus that is closed to others.

        Raises:
            ValueError: A key cannot be used.
            zmq.ZMQError: The endpoint cannot be used.
        """
        self._now, self._is_expected = now, is_expected
        self._ids = itertools.count(1)
        self._span: Span | None = None
        self._id = 0
        self._skip_until_s = now()
        self._ask_at_s = self._give_up_at_s = 0.0
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 1_000)
        self.socket.set(zmq.IMMEDIATE, 1)  # nothing queues for a daemon that is not there
        try:
            if curve is not None:
                curve.apply(self.socket)
            self.socket.connect(endpoint)
        except BaseException:
            self.close()
            raise

    @property
    def is_busy(self) -> bool:
        """Whether a span is being fetched."""
        return self._span is not None

    def expect(self) -> None:
        """There was a journal before: it is worth waiting for."""
        self._is_expected = True

    def begin(self, span: Span) -> None:
        """Fetch a span; `step` has the pages."""
        self._span = span
        now_s = self._now()
        if self._is_expected:
            self._give_up_at_s = now_s + PATIENCE_S
        else:
            self._give_up_at_s = now_s + FIRST_PATIENCE_S * (now_s >= self._skip_until_s)
        self._next_page()

    def wait_s(self) -> float:
        """How long `step` may be left alone while nothing arrives."""
        return max(0.0, min(self._ask_at_s, self._give_up_at_s) - self._now())

    def step(self) -> wire.Page | wire.Refused | None:
        """Do what can be done now.

        Returns:
            A page; or why there is no (more) page, which ends the span; None: nothing yet.
        """
        if self._span is None:
            return None
        while (answer := self._receive()) is not None:
            if answer.id == self._id:
                return self._take(answer)
        now_s = self._now()
        if now_s >= self._give_up_at_s:
            self._span, self._is_expected = None, False
            self._skip_until_s = now_s + _SKIP_S
            return wire.Refused(id=self._id, code="no_answer", message="nobody answers")
        if now_s >= self._ask_at_s:
            self._ask()
        return None

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close()

    def _next_page(self) -> None:
        self._id = next(self._ids)
        self._ask_at_s = self._now()
        self._ask()

    def _ask(self) -> None:
        assert self._span is not None
        span: dict[str, Any] = {
            "after": self._span.after, "until": self._span.until, "since_ms": self._span.since_ms
        }  # fmt: skip
        try:
            self.socket.send(wire.encode(wire.Replay(v=1, id=self._id, **span)), flags=zmq.NOBLOCK)
            self._ask_at_s = self._now() + _ASK_AGAIN_S
        except zmq.Again:  # not connected (yet)
            self._ask_at_s = self._now() + 0.05

    def _receive(self) -> wire.ReplayAnswer | None:
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                return wire.decode_answer(parts[-1])
            except wire.WireError:
                continue  # rubbish is no answer; the question is asked again

    def _take(self, answer: wire.ReplayAnswer) -> wire.ReplayAnswer:
        self._is_expected = True
        assert self._span is not None
        if isinstance(answer, wire.Refused) or not answer.more or not answer.messages:
            self._span = None
            return answer
        last = answer.messages[-1]
        after = wire.Position(str(last.epoch), last.seq or 0)
        self._span = Span(after, self._span.until)
        self._give_up_at_s = self._now() + PATIENCE_S
        self._next_page()
        return answer
