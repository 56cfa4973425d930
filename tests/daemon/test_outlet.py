"""The way out: in order, and not before the disk has what belongs to a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.kept import final, heard

from voiced.daemon.bus import Bus, Numbered
from voiced.daemon.outlet import OrderedOutlet
from voiced.daemon.storage import Task
from voiced.daemon.wire import Ended, Final, Partial, ServerMessage, SpeechEnded

FINAL = final(1).message
PARTIAL = Partial(
    stream="desk", segment=1, revision=1, text="op", start_ms=0, end_ms=9, language="en"
)
SPEECH_ENDED = SpeechEnded(stream="desk", segment=1, start_ms=0, end_ms=9, reason="silence")
ENDED = Ended(stream="desk", audio_ms=9, segments=1)


class SentBus(Bus):
    """A bus that keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[ServerMessage] = []
        self._pub = object()  # type: ignore[assignment]  # as if open

    def send(self, numbered: Numbered) -> None:
        self.sent.append(numbered.message)


class HeldStorage:
    """A disk that is done when the test says so."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.accepts = True

    def submit(self, task: Task) -> bool:
        if self.accepts:
            self.tasks.append(task)
        return self.accepts


class Made:
    def __init__(self, *, stall_s: float = 1e9) -> None:
        self.bus = SentBus()
        self.storage = HeldStorage()
        self.outlet = OrderedOutlet(self.bus, stall_s=stall_s)
        self.outlet.storage = self.storage  # type: ignore[assignment]
        self.client: list[str] = []

    def put(self, message: ServerMessage, **more: Any) -> None:
        name = type(message).__name__
        self.outlet.put(message, lambda: self.client.append(name), **more)

    @property
    def out(self) -> list[str]:
        return [type(each).__name__ for each in self.bus.sent]

    def done(self, count: int) -> None:
        tasks, self.storage.tasks = self.storage.tasks[:count], self.storage.tasks[count:]
        self.outlet.stored(tasks)


def in_loop(test: Callable[[], None]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


def test_a_last_word_waits_for_the_journal_and_the_rest_behind_it() -> None:
    def test() -> None:
        made = Made()
        made.put(PARTIAL)
        made.put(FINAL)
        made.put(PARTIAL)
        made.put(ENDED)
        assert made.out == made.client == ["Partial"]
        made.done(1)
        assert made.out == made.client == ["Partial", "Final", "Partial", "Ended"]
        assert [each.seq for each in made.bus.sent] == [1, 2, 3, 4]

    in_loop(test)


def test_the_end_of_a_segment_waits_until_its_audio_is_kept() -> None:
    def test() -> None:
        made = Made()
        segment = heard(1).segment
        made.put(SPEECH_ENDED, segment=segment, revision=4)
        assert made.out == []
        (task,) = made.storage.tasks
        kept = task.what
        assert (kept.segment, kept.origin, kept.revision) == (segment, made.bus.epoch, 4)  # type: ignore[union-attr]
        made.done(1)
        assert made.out == made.client == ["SpeechEnded"]

    in_loop(test)


@given(st.lists(st.sampled_from(["partial", "final", "ended"]), max_size=12), st.data())
def test_no_order_of_completions_changes_the_order_of_messages(
    kinds: list[str], data: st.DataObject
) -> None:
    def test() -> None:
        made = Made()
        messages = {"partial": PARTIAL, "final": FINAL, "ended": ENDED}
        for kind in kinds:
            made.put(messages[kind])
            if made.storage.tasks and data.draw(st.booleans()):
                made.done(data.draw(st.integers(1, len(made.storage.tasks))))
            finals_out = sum(isinstance(each, Final) for each in made.bus.sent)
            finals_in = sum(
                isinstance(messages[kind], Final) for kind in kinds[: len(made.bus.sent)]
            )
            assert finals_out == finals_in
        made.done(len(made.storage.tasks))
        assert [each.seq for each in made.bus.sent] == list(range(1, len(kinds) + 1))
        assert made.out == made.client == [type(messages[kind]).__name__ for kind in kinds]

    in_loop(test)


def test_a_disk_that_hangs_is_not_waited_for_and_again_when_it_works() -> None:
    async def run() -> None:
        made = Made(stall_s=0.001)
        made.put(FINAL)
        async with asyncio.timeout(20):
            await made.outlet._empty.wait()
        assert made.out == ["Final"]
        made.put(FINAL)  # at once: one stall is enough
        assert made.out == ["Final", "Final"]
        assert len(made.storage.tasks) == 2  # it is written when the disk comes back
        assert made.outlet.stalls == 1
        made.done(2)
        made.put(FINAL)
        assert made.out == ["Final", "Final"]
        made.done(1)
        assert made.out == ["Final", "Final", "Final"]

    asyncio.run(run())


def test_what_only_a_client_is_told_keeps_its_place_and_takes_no_number() -> None:
    def test() -> None:
        made = Made()
        made.outlet.follow(lambda: made.client.append("first"))
        made.put(FINAL)
        made.outlet.follow(lambda: made.client.append("eager"))
        made.put(ENDED)
        assert made.client == ["first"]
        made.done(1)
        assert made.client == ["first", "Final", "eager", "Ended"]
        assert [each.seq for each in made.bus.sent] == [1, 2]

    in_loop(test)


def test_a_disk_with_too_much_to_do_is_passed_by() -> None:
    def test() -> None:
        made = Made()
        made.storage.accepts = False
        made.put(FINAL)
        assert made.out == ["Final"]

    in_loop(test)


def test_a_message_that_cannot_be_encoded_uses_no_number() -> None:
    def test() -> None:
        made = Made()
        broken = final(1, text="\ud800").message
        with pytest.raises(UnicodeEncodeError):
            made.put(broken)
        made.put(PARTIAL)
        assert [each.seq for each in made.bus.sent] == [1]
        assert made.client == ["Partial"]

    in_loop(test)


def test_a_client_whose_part_breaks_holds_no_other_up(caplog: pytest.LogCaptureFixture) -> None:
    def test() -> None:
        made = Made()

        def broken() -> None:
            raise RuntimeError("bug")

        made.outlet.put(FINAL, broken)
        made.put(ENDED)
        made.done(1)
        assert made.out == ["Final", "Ended"]
        assert made.client == ["Ended"]
        assert "client's part broke stream=desk" in caplog.text

    in_loop(test)


def test_before_the_bus_is_open_only_the_client_is_told() -> None:
    def test() -> None:
        outlet = OrderedOutlet(Bus())
        told: list[int] = []
        outlet.put(FINAL, lambda: told.append(1))
        assert told == [1]

    in_loop(test)


def test_the_end_waits_for_what_is_on_its_way_but_not_for_ever() -> None:
    async def run() -> None:
        made = Made()
        await made.outlet.drain(0.0)
        made.put(FINAL)
        draining = asyncio.create_task(made.outlet.drain(60.0))
        await asyncio.sleep(0)
        made.done(1)
        await draining
        made.put(FINAL)
        await made.outlet.drain(0.001)
        assert made.out == ["Final", "Final"]

    asyncio.run(run())
