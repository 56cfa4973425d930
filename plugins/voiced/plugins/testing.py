"""A bus for plugin tests: the daemon's two sockets on free ports, driven by hand."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from voiced.daemon import wire


class FakeBus:
    """Publishes what a test says and collects the intents that come back.

    Numbers its messages as the daemon does; `skip`, `repeat`, `restart` and `publish_raw` break
    the stream in the ways a network and a daemon can. One thread.
    """

    def __init__(self) -> None:
        self.epoch = "epoch-1"
        self.seq = 0
        """The last number used."""
        self._epochs = 1
        self._segments = 0
        self._last_parts: list[bytes] = []
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.XPUB)  # XPUB tells when a subscriber came
        self._publisher.set(zmq.XPUB_VERBOSE, 1)
        self._ingest = self._context.socket(zmq.PULL)
        for each in (self._publisher, self._ingest):
            each.set(zmq.LINGER, 0)
            each.bind("tcp://127.0.0.1:*")
        self.endpoint: str = self._publisher.get_string(zmq.LAST_ENDPOINT)
        self.ingest_endpoint: str = self._ingest.get_string(zmq.LAST_ENDPOINT)

    def wait_for_subscriber(self, *, timeout_s: float = 10.0) -> None:
        """Return once one more subscriber is connected; what is published then reaches it.

        Raises:
            TimeoutError: Nobody came.
        """
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if self._publisher.poll(round(left_s * 1000)) and self._publisher.recv()[:1] == b"\x01":
                return
        raise TimeoutError(f"no subscriber within {timeout_s:g} s")

    def publish(self, message: wire.ServerMessage) -> wire.ServerMessage:
        """Give the message the next number and send it."""
        self.seq += 1
        numbered = msgspec.structs.replace(
            message, epoch=self.epoch, seq=self.seq, wall_ms=time.time_ns() // 1_000_000
        )
        self._send([wire.topic(numbered), wire.encode(numbered)])
        return numbered

    def final(
        self, text: str, *, language: str = "en", stream: str = "test", **fields: Any
    ) -> wire.Final:
        """Publish a final of a new segment; `fields` replace the made-up ones."""
        self._segments += 1
        message = wire.Final(
            stream=stream, segment=self._segments, revision=1, text=text, language=language,
            confidence=0.9, start_ms=0, end_ms=1_000, latency_ms=50,
        )  # fmt: skip
        message = msgspec.structs.replace(message, **fields)
        self.publish(message)
        return message

    def partial(
        self, text: str, *, language: str = "en", stream: str = "test", **fields: Any
    ) -> wire.Partial:
        """Publish a partial of the segment that the next final will end."""
        message = wire.Partial(
            stream=stream, segment=self._segments + 1, revision=1, text=text, language=language,
            start_ms=0, end_ms=500,
        )  # fmt: skip
        message = msgspec.structs.replace(message, **fields)
        self.publish(message)
        return message

    def eager_final(
        self, text: str, *, language: str = "en", stream: str = "test", **fields: Any
    ) -> wire.EagerFinal:
        """Publish the early text of the segment that the next final will end."""
        message = wire.EagerFinal(
            stream=stream, segment=self._segments + 1, revision=1, text=text, language=language,
            confidence=0.9, start_ms=0, end_ms=1_000,
        )  # fmt: skip
        message = msgspec.structs.replace(message, **fields)
        self.publish(message)
        return message

    def resumed(self, *, stream: str = "test", **fields: Any) -> wire.Resumed:
        """Take the early text of that segment back."""
        message = wire.Resumed(stream=stream, segment=self._segments + 1)
        message = msgspec.structs.replace(message, **fields)
        self.publish(message)
        return message

    def heartbeat(self) -> None:
        """Publish a heartbeat, which carries the last number."""
        beat = wire.Heartbeat(stream="-", epoch=self.epoch, seq=self.seq)
        self._send([wire.topic(beat), wire.encode(beat)])

    def skip(self, count: int = 1) -> None:
        """Use numbers up without sending: these messages are lost."""
        self.seq += count

    def repeat(self) -> None:
        """Send the last message a second time."""
        self._send(self._last_parts)

    def restart(self) -> None:
        """Become another run of the daemon: new epoch, numbers from 1."""
        self._epochs += 1
        self.epoch, self.seq = f"epoch-{self._epochs}", 0

    def publish_raw(self, *parts: bytes) -> None:
        """Send bytes that need not be a message."""
        self._send(list(parts))

    def intents(self, count: int = 1, *, timeout_s: float = 10.0) -> list[wire.Intent]:
        """Wait for `count` intents.

        Raises:
            TimeoutError: Fewer came; the text holds those that did.
            TypeError: A plugin sent something that is no intent.
        """
        deadline_s = time.monotonic() + timeout_s
        found: list[wire.Intent] = []
        while len(found) < count:
            left_ms = max(0, round((deadline_s - time.monotonic()) * 1000))
            if not self._ingest.poll(left_ms):
                raise TimeoutError(f"{len(found)} of {count} intents in {timeout_s:g} s: {found}")
            message = wire.decode_server(self._ingest.recv())
            if not isinstance(message, wire.Intent):
                raise TypeError(f"plugins send intents, not {type(message).__name__}")
            found.append(message)
        return found

    def close(self) -> None:
        """Give the sockets back."""
        self._publisher.close()
        self._ingest.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, parts: list[bytes]) -> None:
        self._last_parts = parts
        self._publisher.send_multipart(parts)
