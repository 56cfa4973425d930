"""The bus seen by a client: order, losses, repeats, restarts, silence, rubbish."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon import wire
from voiced.plugins.subscriber import (
    BusItem,
    BusSubscriber,
    Gap,
    Lost,
    Regained,
    Restarted,
    SequenceTracker,
)
from voiced.plugins.testing import FakeBus

WAIT_S = 10.0


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with FakeBus() as bus:
        yield bus


def join(bus: FakeBus, *topics: str) -> BusSubscriber:
    """A subscriber that is connected. Heartbeats are slow enough to never be missed."""
    subscriber = BusSubscriber(bus.endpoint, topics, heartbeat_s=WAIT_S)
    bus.wait_for_subscriber()
    return subscriber


def take(subscriber: BusSubscriber, count: int) -> list[BusItem | None]:
    return [subscriber.receive(timeout_s=WAIT_S) for _ in range(count)]


def texts(items: list[BusItem | None]) -> list[object]:
    return [each.text if isinstance(each, wire.Final | wire.Partial) else each for each in items]


def test_messages_arrive_in_order_with_their_bus_fields(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        bus.partial("turn on")
        bus.final("turn on the radio")
        partial, final = take(subscriber, 2)
    assert isinstance(partial, wire.Partial)
    assert isinstance(final, wire.Final)
    assert (final.epoch, final.seq, final.text) == (bus.epoch, 2, "turn on the radio")


def test_a_lost_message_is_told_before_the_next_one(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        bus.final("one")
        bus.skip(3)
        bus.final("five")
        items = take(subscriber, 3)
    assert texts(items) == ["one", Gap(bus.epoch, 2, 4), "five"]
    assert Gap(bus.epoch, 2, 4).count == 3


def test_what_was_published_before_joining_is_no_loss(bus: FakeBus) -> None:
    bus.skip(100)
    with join(bus) as subscriber:
        bus.final("first heard")
        assert texts(take(subscriber, 1)) == ["first heard"]


def test_a_loss_at_the_end_is_told_by_the_heartbeat(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        bus.final("one")
        bus.skip()
        bus.heartbeat()
        assert texts(take(subscriber, 2)) == ["one", Gap(bus.epoch, 2, 2)]


def test_a_repeated_message_is_delivered_once(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        bus.final("one")
        bus.repeat()
        bus.final("two")
        assert texts(take(subscriber, 2)) == ["one", "two"]
        assert subscriber.duplicates == 1


def test_a_restarted_daemon_is_told_with_what_was_missed_since(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        bus.final("before")
        bus.restart()
        bus.skip(2)
        bus.final("after")
        items = take(subscriber, 4)
    assert texts(items) == ["before", Restarted("epoch-2"), Gap("epoch-2", 1, 2), "after"]


def test_topics_filter_messages_but_not_losses(bus: FakeBus) -> None:
    with join(bus, "final/mic") as subscriber:
        bus.partial("un", stream="mic")
        bus.final("elsewhere", stream="door")
        bus.final("here", stream="mic")
        bus.skip()
        bus.final("elsewhere again", stream="door")
        bus.final("here again", stream="mic")
        assert texts(take(subscriber, 3)) == ["here", Gap(bus.epoch, 4, 4), "here again"]


def test_rubbish_is_counted_and_skipped(bus: FakeBus, caplog: pytest.LogCaptureFixture) -> None:
    with join(bus) as subscriber:
        bus.publish_raw(b"final/x")
        bus.publish_raw(b"final/x", b"\xff not json")
        bus.publish_raw(b"a", b"b", b"c")
        bus.publish_raw(b"final/x", b'{"type":"from the future"}')
        bus.final("still here")
        assert texts(take(subscriber, 1)) == ["still here"]
        assert subscriber.rubbish == 4
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # at most once a minute


def test_silence_is_told_once_and_its_end_too(bus: FakeBus) -> None:
    with BusSubscriber(bus.endpoint, heartbeat_s=0.01) as subscriber:
        bus.wait_for_subscriber()
        assert isinstance(subscriber.receive(timeout_s=WAIT_S), Lost)
        assert subscriber.receive(timeout_s=0.05) is None
        bus.final("back")
        regained, final = take(subscriber, 2)
    assert isinstance(regained, Regained)
    assert texts([final]) == ["back"]


def test_a_daemon_that_comes_up_later_is_found(bus: FakeBus) -> None:
    endpoint = bus.endpoint
    bus.close()
    with BusSubscriber(endpoint, heartbeat_s=0.01) as subscriber:
        assert isinstance(subscriber.receive(timeout_s=WAIT_S), Lost)


def test_receive_gives_up_after_its_timeout(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        assert subscriber.receive(timeout_s=0.0) is None


def test_interrupt_ends_an_iteration_in_another_thread(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        items: list[BusItem] = []
        reader = threading.Thread(target=lambda: items.extend(subscriber))
        reader.start()
        subscriber.interrupt()
        reader.join(WAIT_S)
        assert not reader.is_alive()
        assert subscriber.receive() is None


def test_interrupt_does_not_wait_for_a_reader_that_is_behind(bus: FakeBus) -> None:
    with join(bus) as subscriber:
        for number in range(3):
            bus.final(f"text {number}")
        assert isinstance(subscriber.receive(timeout_s=WAIT_S), wire.Final)
        subscriber.interrupt()
        assert list(subscriber) == []


def test_a_closed_subscriber_yields_nothing_and_closes_again(bus: FakeBus) -> None:
    subscriber = join(bus)
    subscriber.close()
    subscriber.close()
    subscriber.interrupt()
    assert list(subscriber) == []


def test_an_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="bus endpoint 'nowhere' cannot be used"):
        BusSubscriber("nowhere")


@given(st.lists(st.integers(1, 30), max_size=40))
def test_every_number_is_delivered_once_or_told_as_missing(numbers: list[int]) -> None:
    tracker = SequenceTracker()
    delivered: list[int] = []
    missing: list[int] = []
    for seq in numbers:
        verdict = tracker.message("epoch", seq)
        for event in verdict.events:
            assert isinstance(event, Gap)
            missing.extend(range(event.first, event.last + 1))
        if verdict.is_new:
            delivered.append(seq)
    assert delivered == sorted(set(delivered))
    if delivered:
        whole = set(range(delivered[0], delivered[-1] + 1))
        assert sorted([*delivered, *missing]) == sorted(whole)


def test_a_straggler_of_the_old_epoch_is_not_delivered() -> None:
    tracker = SequenceTracker()
    tracker.message("old", 1)
    assert tracker.message("new", 1).events == (Restarted("new"),)
    assert not tracker.message("old", 2).is_new
    assert tracker.message("new", 2).events == ()
