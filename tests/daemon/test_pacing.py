from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator

import pytest

from voiced.daemon.pacing import (
    FREE_STREAMS,
    MAX_GAP_S,
    QUIET_MAX_GAP_S,
    CoalescingSelector,
    gap_s,
)


class Clock:
    """Seconds that pass only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now_s += seconds
        self.meanwhile()


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(2)]
    yield made
    for pair in made:
        for end in pair:
            os.close(end)


def selector(clock: Clock, gap: float) -> CoalescingSelector:
    return CoalescingSelector(lambda: gap, monotonic=lambda: clock.now_s, sleep=clock.sleep)


def ready(events: list[tuple[selectors.SelectorKey, int]]) -> set[int]:
    return {key.fd for key, _ in events}


@pytest.mark.parametrize(("is_quiet", "longest"), [(False, MAX_GAP_S), (True, QUIET_MAX_GAP_S)])
def test_few_streams_are_answered_at_once_and_many_wait_at_most_the_longest_gap(
    is_quiet: bool, longest: float
) -> None:
    few = [gap_s(n, is_quiet=is_quiet) for n in range(FREE_STREAMS)]
    assert few == [0.0] * FREE_STREAMS
    gaps = [gap_s(n, is_quiet=is_quiet) for n in range(FREE_STREAMS, 500)]
    assert gaps == sorted(gaps)
    assert 0 < gaps[0] < gaps[-1] == longest


def test_quiet_streams_are_looked_at_less_often() -> None:
    assert all(gap_s(n, is_quiet=True) > gap_s(n, is_quiet=False) for n in range(4, 500))


def test_events_soon_after_a_wake_up_gather_until_the_gap_is_over(
    pipes: list[tuple[int, int]],
) -> None:
    clock = Clock()
    (first, write_first), (second, write_second) = pipes
    with selector(clock, 0.02) as target:
        target.register(first, selectors.EVENT_READ)
        target.register(second, selectors.EVENT_READ)
        os.write(write_first, b"x")
        assert ready(target.select(None)) == {first}
        assert clock.slept == []
        clock.now_s += 0.005
        clock.meanwhile = lambda: os.write(write_second, b"x") and None
        assert ready(target.select(None)) == {first, second}
        assert clock.slept == [0.015]


def test_a_timer_is_never_late_for_it(pipes: list[tuple[int, int]]) -> None:
    clock = Clock()
    (first, write_first), _ = pipes
    with selector(clock, 0.02) as target:
        target.register(first, selectors.EVENT_READ)
        os.write(write_first, b"x")
        target.select(None)
        target.select(0.004)
        assert clock.slept == [0.004]


def test_a_look_in_between_takes_no_time(pipes: list[tuple[int, int]]) -> None:
    clock = Clock()
    (first, write_first), _ = pipes
    with selector(clock, 0.02) as target:
        target.register(first, selectors.EVENT_READ)
        os.write(write_first, b"x")
        target.select(None)
        assert ready(target.select(0)) == {first}
        assert clock.slept == []
