"""The ZeroMQ side, with a real context."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from voiced.audio.clock import FakeClock
from voiced.daemon.bus import MAX_INGEST_BYTES, Bus, read_parts
from voiced.daemon.errors import AddressRefused, EndpointInUse
from voiced.daemon.metrics import Metrics
from voiced.daemon.wire import (
    Heartbeat,
    Intent,
    ServerMessage,
    SpeechStarted,
    decode_server,
    encode,
)

ANY = "tcp://127.0.0.1:*"
STARTED = SpeechStarted(stream="desk", segment=1, start_ms=20)
INTENT = Intent(
    stream="desk", segment=1, name="open", slots={"what": "window"}, text="open", confidence=1.0
)


class Peers:
    """The other ends of a bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._context = zmq.asyncio.Context()
        self._sockets: list[zmq.asyncio.Socket] = []

    async def subscriber(self, prefix: bytes = b"") -> zmq.asyncio.Socket:
        """Connect a subscriber and wait until the publisher knows it."""
        socket = self._connect(zmq.SUB, self._bus.endpoint)
        socket.subscribe(prefix)
        socket.subscribe(b"speech_started/probe")
        while not await socket.poll(20):
            self._bus.publish(SpeechStarted(stream="probe", segment=0, start_ms=0))
        return socket

    def plugin(self) -> zmq.asyncio.Socket:
        """Connect a socket that sends intents."""
        return self._connect(zmq.PUSH, str(self._bus.ingest_endpoint))

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()

    def _connect(self, kind: int, endpoint: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        socket.connect(endpoint)
        return socket


def with_bus(
    scenario: Callable[[Bus, Peers], Awaitable[None]],
    *,
    metrics: Metrics | None = None,
    heartbeat_s: float = 3_600,
) -> None:
    """Run a scenario beside an open bus."""

    async def run() -> None:
        bus = Bus(ANY, ANY, clock=FakeClock(), metrics=metrics, heartbeat_s=heartbeat_s)
        bus.open()
        running = asyncio.create_task(bus.run())
        peers = Peers(bus)
        try:
            async with asyncio.timeout(20):
                await scenario(bus, peers)
        finally:
            running.cancel()
            await asyncio.wait({running})
            peers.close()
            bus.close()

    asyncio.run(run())


async def received(socket: zmq.asyncio.Socket) -> tuple[bytes, ServerMessage]:
    """Take the next message that is no probe."""
    while True:
        topic, body = await socket.recv_multipart()
        if not topic.endswith(b"/probe"):
            return topic, decode_server(body)


def test_messages_are_numbered_one_by_one_under_one_epoch() -> None:
    async def scenario(bus: Bus, peers: Peers) -> None:
        socket = await peers.subscriber()
        before = bus.seq
        for _ in range(3):
            bus.publish(STARTED)
        for seq in range(before + 1, before + 4):
            topic, message = await received(socket)
            assert topic == b"speech_started/desk"
            assert (message.epoch, message.seq) == (bus.epoch, seq)
            assert message.wall_ms == FakeClock().wall_ms()

    with_bus(scenario)


def test_a_heartbeat_carries_the_last_number_and_uses_none() -> None:
    async def scenario(bus: Bus, peers: Peers) -> None:
        socket = await peers.subscriber(b"heartbeat/-")
        bus.publish(STARTED)
        for _ in range(2):
            topic, message = await received(socket)
            assert topic == b"heartbeat/-"
            assert isinstance(message, Heartbeat)
        assert message.seq == bus.seq

    with_bus(scenario, heartbeat_s=0.02)


def test_an_intent_is_published_again_under_the_buss_own_number() -> None:
    async def scenario(bus: Bus, peers: Peers) -> None:
        delivered: list[Intent] = []
        bus.on_intent = delivered.append
        socket = await peers.subscriber(b"intent/")
        push = peers.plugin()
        await push.send(encode(INTENT))
        topic, message = await received(socket)
        assert topic == b"intent/desk"
        assert isinstance(message, Intent)
        assert (message.name, message.slots) == ("open", {"what": "window"})
        assert (message.epoch, message.seq) == (bus.epoch, bus.seq)
        assert delivered == [INTENT]

    with_bus(scenario)


RUBBISH = {
    "not json": [b"\xff\x00"],
    "no probability": [encode(INTENT).replace(b'"confidence":1.0', b'"confidence":1.5')],
    "the name of no stream": [encode(INTENT).replace(b'"desk"', b'"-"')],
    "two parts": [encode(INTENT), b""],
    "another type": [encode(STARTED)],
    "another version": [encode(INTENT).replace(b'"v":1', b'"v":2')],
    "a stream that is no name": [encode(INTENT).replace(b'"desk"', b'"a/b c"')],
    "too long": [encode(INTENT).replace(b'"open"', b'"' + b"o" * MAX_INGEST_BYTES + b'"')],
    "too deep to read": [b'{"type":"intent","slots":' + b'{"a":' * 5_000],
    "too deep to write again": [
        encode(INTENT).replace(b'"window"', b"[" * 900 + b"]" * 900),
    ],
}


@pytest.mark.parametrize("parts", RUBBISH.values(), ids=RUBBISH.keys())
def test_rubbish_from_a_plugin_is_counted_and_goes_nowhere(parts: list[bytes]) -> None:
    metrics = Metrics()

    async def scenario(bus: Bus, peers: Peers) -> None:
        socket = await peers.subscriber(b"intent/")
        push = peers.plugin()
        await push.send_multipart(parts)
        await push.send(encode(INTENT))
        _, message = await received(socket)
        assert isinstance(message, Intent)
        assert message.text == "open"
        assert metrics.value("voiced_bus_rejected_total") == 1

    with_bus(scenario, metrics=metrics)


def test_a_message_of_many_parts_is_not_collected_and_stops_nobody() -> None:
    async def scenario() -> None:
        with (
            zmq.asyncio.Context() as context,
            context.socket(zmq.PULL) as pull,
            context.socket(zmq.PUSH) as push,
        ):
            push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
            await push.send_multipart([b"x"] * 5_000)
            await push.send(b"next")
            reading = asyncio.create_task(read_parts(pull))
            turns = 0
            while not reading.done():
                turns += 1
                await asyncio.sleep(0)
            assert await reading == [b"x", b"x"]
            assert turns > 1_000
            assert await read_parts(pull) == [b"next"]

    asyncio.run(scenario())


def test_a_second_daemon_on_the_same_endpoint_is_told_so() -> None:
    async def scenario(bus: Bus, _: Peers) -> None:
        with pytest.raises(EndpointInUse, match=r"tcp://127.* set another `bus\.endpoint`"):
            Bus(bus.endpoint, ANY).open()
        with pytest.raises(EndpointInUse, match=r"`bus\.ingest`"):
            Bus(ANY, bus.ingest_endpoint).open()

    with_bus(scenario)


def test_a_live_ipc_endpoint_is_not_taken_over_and_a_dead_one_is(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/bus"
    first = Bus(endpoint, None)
    first.open()
    with pytest.raises(EndpointInUse):
        Bus(endpoint, None).open()
    first.close()
    second = Bus(endpoint, None)
    second.open()
    second.close()


@pytest.mark.parametrize("endpoint", ["tcp://203.0.113.1:8766", "ipc:///nonexistent/bus"])
def test_an_address_that_cannot_be_bound_is_named_with_its_setting(endpoint: str) -> None:
    with pytest.raises(AddressRefused, match=f"{endpoint}: .*set `bus.ingest`"):
        Bus(ANY, endpoint).open()


def test_publishing_before_open_and_after_close_is_harmless() -> None:
    bus = Bus(ANY, ANY)
    bus.publish(STARTED)
    bus.close()
    assert bus.seq == 0


def test_somebody_with_too_many_topics_costs_bounded_memory_and_the_others_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voiced.daemon.bus._MAX_TOPIC_BYTES", 4_000)
    metrics = Metrics()

    async def scenario(bus: Bus, peers: Peers) -> None:
        listener = await peers.subscriber(b"speech_started/desk")
        greedy = await peers.subscriber()
        endpoint = bus.endpoint
        for number in range(100):
            greedy.subscribe(b"x" * 90 + str(number).encode())
        while not metrics.value("voiced_bus_cuts_total"):
            bus.publish(STARTED)
            await asyncio.sleep(0.01)
        greedy.close(linger=0)
        heard = None
        while heard is None or heard.seq != bus.seq:
            bus.publish(STARTED)
            if await listener.poll(20):
                _, heard = await received(listener)
        assert bus.endpoint == endpoint

    with_bus(scenario, metrics=metrics, heartbeat_s=0.05)
    assert "too many topics" in caplog.text


def test_a_subscription_that_is_no_topic_cuts_only_whoever_sends_it() -> None:
    async def scenario(bus: Bus, peers: Peers) -> None:
        listener = await peers.subscriber(b"speech_started/desk")
        rude = await peers.subscriber()
        rude.subscribe(b"x" * 2_000)
        for _ in range(20):
            bus.publish(STARTED)
            await received(listener)
        assert bus._topic_bytes < 100

    with_bus(scenario)
