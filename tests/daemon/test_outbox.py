"""What waits for one client."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.errors import SlowClient
from voiced.daemon.outbox import LatestPartialPerSegment, Outbox
from voiced.daemon.wire import (
    Failed,
    Final,
    Partial,
    ServerMessage,
    SpeechStarted,
    decode_server,
    encode,
)


def partial(segment: int, revision: int, text: str = "so far") -> Partial:
    return Partial(
        stream="s",
        segment=segment,
        revision=revision,
        text=text,
        start_ms=0,
        end_ms=1,
        language="en",
    )


def final(segment: int, text: str = "done") -> Final:
    return Final(
        stream="s",
        segment=segment,
        revision=9,
        text=text,
        language="en",
        confidence=1.0,
        start_ms=0,
        end_ms=1,
        latency_ms=1,
    )


def queue(max_bytes: int = 10_000, max_messages: int = 100) -> LatestPartialPerSegment:
    return LatestPartialPerSegment(max_bytes=max_bytes, max_messages=max_messages)


def drained(waiting: LatestPartialPerSegment) -> list[ServerMessage]:
    return [decode_server(waiting.take()) for _ in range(len(waiting))]


def test_a_newer_partial_takes_the_place_of_an_older_one_of_its_segment() -> None:
    waiting = queue()
    for message in (partial(1, 1), partial(2, 1), partial(1, 2)):
        waiting.put(message)
    assert drained(waiting) == [partial(2, 1), partial(1, 2)]
    assert waiting.replaced == 1


@pytest.mark.parametrize("last", [final(1), Failed(stream="s", segment=1, code="c", message="m")])
def test_the_last_word_removes_the_partial_that_waits(last: Final | Failed) -> None:
    waiting = queue()
    waiting.put(partial(1, 1))
    waiting.put(last)
    assert drained(waiting) == [last]


def test_partials_give_way_when_the_queue_is_full() -> None:
    waiting = queue(max_messages=2)
    waiting.put(partial(1, 1))
    waiting.put(final(2))
    waiting.put(final(3))
    assert drained(waiting) == [final(2), final(3)]


def test_a_full_queue_of_finals_gives_the_client_up() -> None:
    waiting = queue(max_bytes=2 * len(encode(final(1))))
    waiting.put(final(1))
    waiting.put(final(2))
    with pytest.raises(SlowClient, match="2 messages"):
        waiting.put(final(3))


@given(
    st.lists(
        st.tuples(st.sampled_from(["partial", "final", "started", "take"]), st.integers(1, 4)),
        max_size=60,
    ),
    st.integers(150, 2_000),
    st.integers(1, 12),
)
def test_only_partials_are_left_out_and_order_and_bounds_hold(
    steps: list[tuple[str, int]], max_bytes: int, max_messages: int
) -> None:
    waiting = queue(max_bytes, max_messages)
    put: list[ServerMessage] = []
    got: list[ServerMessage] = []
    for revision, (step, segment) in enumerate(steps):
        message: ServerMessage
        match step:
            case "take":
                if len(waiting):
                    got.append(decode_server(waiting.take()))
                continue
            case "partial":
                message = partial(segment, revision)
            case "final":
                message = final(segment)
            case _:
                message = SpeechStarted(stream="s", segment=segment, start_ms=revision)
        try:
            waiting.put(message)
        except SlowClient:
            break
        put.append(message)
        assert waiting.waiting_bytes <= max_bytes
        assert len(waiting) <= max_messages
    got += drained(waiting)
    assert waiting.waiting_bytes == 0
    kept = [message for message in put if not isinstance(message, Partial)]
    assert [message for message in got if not isinstance(message, Partial)] == kept
    positions = [put.index(message) for message in got if isinstance(message, Partial)]
    assert positions == sorted(positions)


def test_the_outbox_sends_all_that_waits_before_it_ends() -> None:
    async def scenario() -> list[ServerMessage]:
        sent: list[ServerMessage] = []

        async def send(text: str) -> None:
            await asyncio.sleep(0)
            sent.append(decode_server(text))

        outbox = Outbox()
        pump = asyncio.create_task(outbox.pump(send))
        for segment in range(3):
            outbox.put(final(segment))
            await asyncio.sleep(0)
        outbox.close()
        outbox.put(final(99))
        async with asyncio.timeout(10):
            await pump
        return sent

    assert asyncio.run(scenario()) == [final(0), final(1), final(2)]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20))
def test_what_can_be_sent_at_once_never_passes_what_waits(turns: list[tuple[bool, bool]]) -> None:
    async def scenario() -> list[ServerMessage]:
        sent: list[ServerMessage] = []
        is_free = True

        def send_now(data: bytes) -> bool:
            if is_free:
                sent.append(decode_server(data))
            return is_free

        async def send(text: str) -> None:
            await asyncio.sleep(0)
            sent.append(decode_server(text))

        outbox = Outbox(send_now=send_now)
        pump = asyncio.create_task(outbox.pump(send))
        for segment, (is_free, yields) in enumerate(turns):  # noqa: B007 - send_now looks at it
            outbox.put(final(segment))
            if yields:
                await asyncio.sleep(0)
        outbox.close()
        async with asyncio.timeout(10):
            await pump
        return sent

    assert asyncio.run(scenario()) == [final(segment) for segment in range(len(turns))]


def test_a_client_that_never_reads_is_given_up_when_the_bound_is_reached() -> None:
    async def scenario() -> None:
        outbox = Outbox(max_messages=3, send_timeout_s=3_600)
        blocked = asyncio.Event()

        async def send(_: str) -> None:
            blocked.set()
            await asyncio.Event().wait()

        pump = asyncio.create_task(outbox.pump(send))
        outbox.put(final(0))
        async with asyncio.timeout(10):
            await blocked.wait()
            for segment in range(1, 5):
                outbox.put(final(segment))
            with pytest.raises(SlowClient):
                await pump

    asyncio.run(scenario())


def test_the_outbox_tells_how_much_waits_and_since_when_nothing_was_taken() -> None:
    async def scenario() -> None:
        outbox, gate = Outbox(), asyncio.Event()
        assert (outbox.waiting_bytes, outbox.stalled_s) == (0, 0.0)

        async def send(_: str) -> None:
            await gate.wait()

        pump = asyncio.create_task(outbox.pump(send))
        outbox.put(final(0))
        outbox.put(final(1))
        assert outbox.waiting_bytes > 0
        await asyncio.sleep(0)
        earlier_s = outbox.stalled_s
        while outbox.stalled_s == earlier_s:  # noqa: ASYNC110 - it is time that passes
            await asyncio.sleep(0)
        gate.set()
        outbox.close()
        async with asyncio.timeout(10):
            await pump
        assert (outbox.waiting_bytes, outbox.stalled_s) == (0, 0.0)

    asyncio.run(scenario())


def test_a_single_message_that_is_never_read_gives_the_client_up() -> None:
    async def scenario() -> None:
        outbox = Outbox(send_timeout_s=0.01)
        outbox.put(final(0))

        async def send(_: str) -> None:
            await asyncio.Event().wait()

        async with asyncio.timeout(10):
            with pytest.raises(SlowClient, match="1 messages"):
                await outbox.pump(send)
        outbox.put(final(1))  # ignored: the client is gone

    asyncio.run(scenario())
