"""Who hears what one stream says: everybody on the bus, and its own client while that is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from voiced.audio.frames import Segment
from voiced.daemon.errors import StreamBroken
from voiced.daemon.outlet import DirectOutlet, Outlet
from voiced.daemon.wire import EagerFinal, Ended, Error, Failed, Final, Resumed, ServerMessage

logger = logging.getLogger(__name__)

Send = Callable[[ServerMessage], None]


class Receivers:
    """Passes one stream's messages to the outlet, and behind it to the client. Event loop only."""

    def __init__(
        self,
        stream: str,
        publish: Send | Outlet,
        send: Send | None,
        *,
        wants_eager: bool,
        publishes_eager: bool,
    ) -> None:
        """Neither `publish` nor `send` may block or raise.

        Args:
            stream: Its name.
            publish: Puts messages on the bus: at once, or when they are written down.
            send: Gives them to the client; None: there is none.
            wants_eager: The client is offered `eager_final`.
            publishes_eager: The bus is.
        """
        self._stream = stream
        self._outlet: Outlet = DirectOutlet(publish) if callable(publish) else publish
        self._send = send
        self._wants_eager, self._publishes_eager = wants_eager, publishes_eager

    @property
    def has_client(self) -> bool:
        """Whether somebody besides the bus listens."""
        return self._send is not None

    def detach(self) -> None:
        """The client is gone; go on for the bus alone."""
        self._send = None

    def deliver(self, message: ServerMessage) -> None:
        """Pass a message that is on the bus already to the client."""
        if self._send is not None:
            self._send(message)

    def put(
        self, message: ServerMessage, *, segment: Segment | None = None, revision: int = 1
    ) -> None:
        """Tell everybody; see `Outlet.put`."""
        self._outlet.put(message, lambda: self.deliver(message), segment=segment, revision=revision)

    def offer(self, message: EagerFinal | Resumed) -> None:
        """Tell those who asked to be told before it is certain."""

        def deliver() -> None:
            if self._wants_eager:
                self.deliver(message)

        if self._publishes_eager:
            self._outlet.put(message, deliver)
        else:
            self._outlet.follow(deliver)

    def put_last_word(self, message: Final | Failed) -> None:
        """Tell everybody a segment's last word; one that cannot take a `final` gets `failed`."""
        instead = Failed(
            stream=self._stream,
            segment=message.segment,
            code=StreamBroken.code,
            message="internal error",
        )

        def attempt(receiver: Callable[[Final | Failed], None]) -> None:
            for each in (message, instead):
                try:
                    receiver(each)
                    break
                except Exception:  # the top of a stream session: later segments have words too
                    logger.exception(
                        "last word broke stream=%s segment=%d", self._stream, message.segment
                    )

        attempt(lambda each: self._outlet.put(each, lambda: attempt(self.deliver)))

    def report(self, code: str, message: str) -> None:
        """Say that something is wrong with the stream."""
        error = Error(stream=self._stream, code=code, message=message)
        self._outlet.put(error, lambda: None)
        self.deliver(error)  # not behind what waits for the disk: the client is let go now

    async def put_end(self, ended: Ended) -> None:
        """Say the last message, and wait until it is out: then a client has everything."""
        is_out = asyncio.Event()

        def deliver_ended() -> None:
            is_out.set()
            self.deliver(ended)

        self._outlet.put(ended, deliver_ended)
        await is_out.wait()
