"""A replay socket over a list of messages, for tests of those who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

import zmq

from voiced.daemon import wire


class FakeJournal:
    """Answers on a thread of its own from what was put into it, in that order."""

    def __init__(self, *, page: int = 200) -> None:
        self.messages: list[wire.Final | wire.Failed] = []
        self.requests: list[wire.Replay] = []
        self.refuse: str | None = None
        """A code to refuse everything with."""
        self.complete = True
        self.silent_for = 0
        """So many requests get no answer."""
        self.before_answer: Callable[[], None] = lambda: None
        self._page = page
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind("tcp://127.0.0.1:*")
        self.endpoint: str = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(20):
                continue
            peer, data = self._socket.recv_multipart()
            request = wire.decode_replay(data)
            self.requests.append(request)
            if self.silent_for:
                self.silent_for -= 1
                continue
            self.before_answer()
            self._socket.send_multipart([peer, wire.encode(self._answer(request))])

    def _answer(self, request: wire.Replay) -> wire.ReplayAnswer:
        if self.refuse is not None:
            return wire.Refused(id=request.id, code=self.refuse, message="no")
        epochs = list(dict.fromkeys(each.epoch for each in self.messages))

        def place(epoch: str | None, seq: int | None) -> tuple[int, int]:
            return (epochs.index(epoch) if epoch in epochs else len(epochs), seq or 0)

        after = (-1, 0) if request.after is None else place(request.after.epoch, request.after.seq)
        until = request.until
        end = (len(epochs), 1 << 60) if until is None else place(until.epoch, until.seq)
        found = [
            each
            for each in self.messages
            if after < place(each.epoch, each.seq) <= end
            and (each.wall_ms or 0) >= (request.since_ms or 0)
        ]
        page = tuple(found[: self._page])
        return wire.Page(
            id=request.id, messages=page, more=len(found) > len(page), complete=self.complete
        )
