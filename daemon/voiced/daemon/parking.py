"""Streams whose client may come back: who carries each now, and how long it waits for nobody."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from voiced.daemon.errors import ResumeRefused
from voiced.daemon.limits import Client
from voiced.daemon.resume import ResumePoint
from voiced.daemon.session import StreamSession
from voiced.daemon.wire import Resume, ServerMessage

logger = logging.getLogger(__name__)


class Carrier(Protocol):
    """A connection that carries a stream."""

    def put(self, message: ServerMessage) -> None:
        """Send a message; must not block or raise."""
        ...

    def supersede(self) -> None:
        """Another connection carries the stream from now on: close, and touch it no more."""
        ...


class Place:
    """One stream that may outlive its connection. Belongs to the loop."""

    def __init__(self, point: ResumePoint, client: Client | None) -> None:
        self.point = point
        self.session: StreamSession | None = None
        self.carrier: Carrier | None = None
        self.feeding = asyncio.Lock()
        """Held while audio is handed to the session: a new connection waits for the last block."""
        self.client = client
        self._timer: asyncio.TimerHandle | None = None

    def send(self, message: ServerMessage) -> None:
        """Keep a message for later and send it now, if there is a connection."""
        numbered = self.point.number(message)
        if self.carrier is not None:
            self.carrier.put(numbered)

    def wait_for(self, seconds: float, give_up: asyncio.TimerHandle) -> None:
        """Nobody carries it; `give_up` is what will happen."""
        self.carrier = None
        self._timer = give_up
        logger.info("stream parked stream=%s resume_s=%g", self.name, seconds)

    def keep(self) -> None:
        """It is carried again, or gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def name(self) -> str:
        """The stream's."""
        return "-" if self.session is None else self.session.name


class Parking:
    """All streams that may outlive their connections."""

    def __init__(self, resume_s: float) -> None:
        self.resume_s = resume_s
        """How long a stream waits for its client."""
        self.resumed = 0
        """Times that a client came back, since the start."""
        self._places: dict[str, Place] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: Place) -> None:
        """Keep a stream that was just opened; one that ended under its name is let go."""
        if place.name in self._places:
            self.remove(self._places[place.name])
        self._places[place.name] = place
        if place.client is not None:
            place.client.resumable += 1

    async def resume(self, request: Resume, carrier: Carrier, owner: str) -> Place:
        """Give a stream to a new connection; the old one, if it still stands, loses it.

        Raises:
            ResumeRefused: There is no such stream (any more), or not for this client.
        """
        place = self._places.get(request.stream)
        if place is None or place.session is None:
            raise ResumeRefused("there is no such stream, or not any more")
        async with place.feeding:
            resumption = place.point.attach(request, owner=owner, stream=place.name)
            for message in (resumption.ready, *resumption.messages):
                carrier.put(message)
            old, place.carrier = place.carrier, carrier
            place.keep()
        if old is not None:
            old.supersede()
        if resumption.lost_frames:
            place.session.lost(resumption.lost_frames)
        self.resumed += 1
        logger.info(
            "stream resumed stream=%s next_sample=%d resent=%d lost_samples=%d",
            place.name,
            place.point.next_sample,
            len(resumption.messages),
            resumption.lost_frames,
        )
        return place

    def park(self, place: Place) -> None:
        """Its connection is lost: wait for the client, then end the stream."""
        loop = asyncio.get_running_loop()
        place.wait_for(self.resume_s, loop.call_later(self.resume_s, self._give_up, place))

    def remove(self, place: Place) -> None:
        """The stream is over and its client knows, or it is not to go on. Idempotent."""
        place.keep()
        if self._places.get(place.name) is place:
            del self._places[place.name]
            if place.client is not None:
                place.client.resumable -= 1

    async def close(self) -> None:
        """Wait for nobody any more; the streams are ended by whoever owns them."""
        for place in list(self._places.values()):
            self.remove(place)
        if self._ending:
            await asyncio.wait(self._ending)

    def _give_up(self, place: Place) -> None:
        logger.info("stream given up stream=%s waited_s=%g", place.name, self.resume_s)
        self.remove(place)
        if place.session is not None:
            task = asyncio.create_task(place.session.abort())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
