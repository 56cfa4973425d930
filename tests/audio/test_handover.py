"""The hand-over between a thread that must not wait and one that may."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.clock import FakeClock
from voiced.audio.handover import DropOldest


@given(st.integers(1, 8), st.lists(st.booleans(), max_size=60))
def test_what_is_taken_is_in_order_and_what_is_missing_is_counted(
    limit: int, puts: list[bool]
) -> None:
    handover: DropOldest[int] = DropOldest(limit)
    sent, taken = 0, []
    for is_put in puts:
        if is_put:
            handover.put(sent)
            sent += 1
        elif handover.depth:
            taken.append(handover.get(timeout_s=0))
    assert taken == sorted(set(taken))
    assert sent == len(taken) + handover.dropped + handover.depth
    assert handover.depth <= limit


def test_age_is_that_of_the_oldest_item() -> None:
    clock = FakeClock()
    handover: DropOldest[str] = DropOldest(2, clock=clock)
    assert handover.oldest_age_s == 0
    handover.put("a")
    clock.advance_ms(300)
    handover.put("b")
    clock.advance_ms(200)
    assert handover.oldest_age_s == 0.5
    handover.put("c")
    assert handover.oldest_age_s == 0.2
    assert handover.dropped == 1


def test_closing_wakes_the_reader_after_the_last_item() -> None:
    handover: DropOldest[str] = DropOldest(2)
    taken: list[str | None] = []
    reader = threading.Thread(
        target=lambda: taken.extend(handover.get(timeout_s=60) for _ in range(2))
    )
    reader.start()
    handover.put("last")
    handover.close()
    reader.join(30)
    assert taken == ["last", None]
    handover.put("too late")
    assert handover.depth == 0


def test_nothing_in_time_is_none() -> None:
    assert DropOldest[int](1).get(timeout_s=0) is None


def test_a_hand_over_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1"):
        DropOldest[int](0)
