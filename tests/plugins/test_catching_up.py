"""A subscriber that missed something has it from the journal: once, in order, before the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plugins.fake_journal import FakeJournal

from voiced.daemon import wire
from voiced.plugins import replay
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

DEADLINE_S = 20.0
FINALS = ("final/", "failed/")


class Clock:
    """Seconds that a test moves; ZeroMQ waits in real ones, a moment at a time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Pair:
    """A bus whose finals are in a journal, and one subscriber."""

    def __init__(self, bus: FakeBus, journal: FakeJournal) -> None:
        self.bus, self.journal = bus, journal

    def final(self, text: str, *, is_lost: bool = False) -> wire.Final:
        """A final that is in the journal, and on the bus unless it gets lost."""
        self.bus.skip()
        message = wire.Final(
            stream="desk", segment=self.bus.seq, revision=1, text=text, language="en",
            confidence=1.0, start_ms=0, end_ms=1, latency_ms=0,
            epoch=self.bus.epoch, seq=self.bus.seq, wall_ms=1_000 + len(self.journal.messages),
        )  # fmt: skip
        self.journal.messages.append(message)
        if not is_lost:
            self.bus.publish_raw(wire.topic(message), wire.encode(message))
        return message

    @contextmanager
    def subscriber(
        self, *topics: str, start: wire.Position | int | None = None, **more: Any
    ) -> Iterator[BusSubscriber]:
        made = BusSubscriber(
            self.bus.endpoint,
            topics or FINALS,
            replay=more.pop("replay", self.journal.endpoint),
            start=start,
            heartbeat_s=1e6,
            **more,
        )
        with made:
            self.bus.wait_for_subscriber()
            yield made


@pytest.fixture
def pair() -> Iterator[Pair]:
    with FakeBus() as bus, FakeJournal() as journal:
        yield Pair(bus, journal)


def take(subscriber: BusSubscriber, count: int) -> list[BusItem]:
    found = []
    for _ in range(count):
        item = subscriber.receive(timeout_s=DEADLINE_S)
        assert item is not None, f"only {found}"
        found.append(item)
    return found


def texts(items: list[BusItem]) -> list[Any]:
    return [item.text if isinstance(item, wire.Final) else item for item in items]


def test_a_loss_while_running_is_filled_and_not_told(pair: Pair) -> None:
    with pair.subscriber() as subscriber:
        pair.final("one")
        assert texts(take(subscriber, 1)) == ["one"]
        pair.final("two", is_lost=True)
        pair.bus.skip(3)  # partials, say
        pair.final("three", is_lost=True)
        pair.final("four")
        assert texts(take(subscriber, 3)) == ["two", "three", "four"]
        assert subscriber.replayed == 2
        pair.final("five")
        assert texts(take(subscriber, 1)) == ["five"]
        assert not subscriber.is_replayed


def test_a_loss_at_the_end_is_filled_with_the_next_heartbeat(pair: Pair) -> None:
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.final("two", is_lost=True)
        pair.bus.heartbeat()
        assert texts(take(subscriber, 1)) == ["two"]
        assert subscriber.is_replayed
        pair.final("three")
        assert texts(take(subscriber, 1)) == ["three"]


def test_a_subscriber_takes_up_where_it_stopped(pair: Pair) -> None:
    first = pair.final("one", is_lost=True)
    pair.final("two", is_lost=True)
    pair.bus.skip(2)
    with pair.subscriber(start=wire.Position(str(first.epoch), first.seq or 0)) as subscriber:
        pair.final("three")
        assert texts(take(subscriber, 2)) == ["two", "three"]


def test_runs_of_the_daemon_in_between_are_told_in_their_place(pair: Pair) -> None:
    first = pair.final("one", is_lost=True)
    pair.final("two", is_lost=True)
    pair.bus.restart()
    pair.final("three", is_lost=True)
    pair.bus.restart()
    with pair.subscriber(start=wire.Position(str(first.epoch), first.seq or 0)) as subscriber:
        pair.bus.skip(4)
        pair.bus.heartbeat()
        pair.final("four")
        assert texts(take(subscriber, 5)) == [
            "two", Restarted("epoch-2"), "three", Restarted("epoch-3"), "four",
        ]  # fmt: skip


def test_a_restart_while_running_costs_no_final_of_the_old_run(pair: Pair) -> None:
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.final("two", is_lost=True)  # in the journal, then the daemon was killed
        pair.bus.restart()
        pair.final("three", is_lost=True)
        pair.final("four")
        assert texts(take(subscriber, 4)) == ["two", Restarted("epoch-2"), "three", "four"]


def test_the_beginning_and_a_time_are_places_too(pair: Pair) -> None:
    pair.final("one", is_lost=True)
    pair.final("two", is_lost=True)
    for start, expected in ((0, ["one", "two", "three"]), (1_001, ["two", "three"])):
        with pair.subscriber(start=start) as subscriber:
            if start == 0:
                pair.final("three")
            else:
                pair.bus.heartbeat()
            assert texts(take(subscriber, len(expected))) == expected


def test_many_pages_come_in_order_and_newer_messages_wait(pair: Pair) -> None:
    pair.journal._page = 3
    first = pair.final("first", is_lost=True)
    expected = [pair.final(f"old {n}", is_lost=True).text for n in range(10)]
    with pair.subscriber(start=wire.Position(str(first.epoch), first.seq or 0)) as subscriber:
        pair.bus.heartbeat()
        assert texts(take(subscriber, 1)) == expected[:1]
        pair.final("live")  # while most is still to come
        assert texts(take(subscriber, 10)) == [*expected[1:], "live"]
        assert len(pair.journal.requests) == 4


def test_other_topics_are_still_told_of_the_loss(pair: Pair) -> None:
    with pair.subscriber("final/", "partial/") as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.final("two", is_lost=True)
        pair.final("three")
        assert texts(take(subscriber, 3)) == ["two", Gap("epoch-1", 2, 2), "three"]


def test_a_stream_of_its_own_gets_only_that_from_the_journal(pair: Pair) -> None:
    with pair.subscriber("final/car") as subscriber:
        pair.final("one")
        pair.final("two", is_lost=True)
        car = msgspec.structs.replace(pair.final("three", is_lost=True), stream="car")
        pair.journal.messages[-1] = car
        pair.bus.heartbeat()
        assert take(subscriber, 1) == [car]


def test_a_journal_that_has_not_everything_leaves_the_loss_told(pair: Pair) -> None:
    pair.journal.complete = False
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.bus.skip(2)
        pair.final("two", is_lost=True)
        pair.final("three")
        assert texts(take(subscriber, 3)) == ["two", Gap("epoch-1", 2, 4), "three"]


def test_a_page_of_nothing_that_promises_more_ends_the_asking(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that says so for ever would be asked for ever."""
    monkeypatch.setattr(
        pair.journal,
        "_answer",
        lambda request: wire.Page(id=request.id, messages=(), more=True, complete=False),
    )
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.bus.skip(2)
        pair.final("three")
        assert texts(take(subscriber, 2)) == [Gap("epoch-1", 2, 3), "three"]


def test_a_refusal_leaves_the_loss_told(pair: Pair) -> None:
    pair.journal.refuse = "journal_unavailable"
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.bus.skip(2)
        pair.final("two")
        assert texts(take(subscriber, 2)) == [Gap("epoch-1", 2, 3), "two"]


def test_without_a_journal_the_loss_is_told_after_a_while_and_at_once_the_next_time(
    pair: Pair,
) -> None:
    clock = Clock()
    with pair.subscriber(replay="tcp://127.0.0.1:1", now=clock) as subscriber:
        pair.final("one")
        take(subscriber, 1)
        clock.step_s = 0.5
        pair.bus.skip(2)
        pair.final("two")
        assert texts(take(subscriber, 2)) == [Gap("epoch-1", 2, 3), "two"]
        clock.step_s = 0.0
        pair.bus.skip(1)
        pair.final("three")
        assert texts(take(subscriber, 2)) == [Gap("epoch-1", 5, 5), "three"]


def test_a_question_without_an_answer_is_asked_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_ASK_AGAIN_S", 0.02)
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.final("zero", is_lost=True)
        pair.final("two")
        assert texts(take(subscriber, 2)) == ["zero", "two"]  # from here on one is expected
        pair.journal.silent_for = 1
        pair.final("three", is_lost=True)
        pair.final("four")
        assert texts(take(subscriber, 2)) == ["three", "four"]
        first, second = pair.journal.requests[-2:]
        assert (first.after, first.until) == (second.after, second.until)


def test_a_subscriber_that_is_interrupted_while_it_catches_up_ends(pair: Pair) -> None:
    pair.journal.silent_for = 1 << 30
    with pair.subscriber(start=wire.Position("epoch-1", 1)) as subscriber:
        pair.journal.before_answer = subscriber.interrupt
        pair.bus.skip(5)
        pair.bus.heartbeat()
        assert subscriber.receive(timeout_s=0.05) is None
        subscriber.interrupt()
        assert subscriber.receive(timeout_s=DEADLINE_S) is None


def test_the_time_spent_catching_up_is_no_silence_of_the_daemon(pair: Pair) -> None:
    with pair.subscriber() as subscriber:
        pair.final("one")
        take(subscriber, 1)
        pair.final("two", is_lost=True)
        pair.final("three")
        items = take(subscriber, 2)
        assert not any(isinstance(item, Lost | Regained) for item in items)


def test_a_position_begins_the_count() -> None:
    tracker = SequenceTracker(wire.Position("e1", 7))
    assert not tracker.message("e1", 7).is_new
    verdict = tracker.message("e1", 9)
    assert verdict.events == (Gap("e1", 8, 8),)
    assert verdict.missed is not None
    assert verdict.missed.after == wire.Position("e1", 7)
    assert verdict.missed.until == wire.Position("e1", 8)


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from(["heard", "lost", "twice", "heartbeat", "restart", "other"]),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 3),
)
def test_whatever_is_lost_doubled_or_restarted_each_final_comes_once_in_order(
    events: list[str], page: int
) -> None:
    with FakeBus() as bus, FakeJournal(page=page) as journal:
        pair = Pair(bus, journal)
        with pair.subscriber() as subscriber:
            pair.final("joined")
            for number, event in enumerate(events):
                if event in ("heard", "lost"):
                    pair.final(str(number), is_lost=event == "lost")
                elif event == "twice":
                    message = pair.final(str(number))
                    bus.publish_raw(wire.topic(message), wire.encode(message))
                elif event == "heartbeat":
                    bus.heartbeat()
                elif event == "restart":
                    bus.restart()
                else:
                    bus.skip()
            pair.final("last")
            got: list[BusItem] = []
            while not got or texts(got)[-1] != "last":
                got += take(subscriber, 1)
            assert [each for each in got if isinstance(each, wire.Final)] == journal.messages
            assert not any(isinstance(each, Gap) for each in got)
