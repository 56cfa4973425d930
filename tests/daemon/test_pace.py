"""How often a stream asks for partials."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.pace import PartialPace

MS = 1_000_000


def test_a_quick_engine_is_asked_at_every_hop() -> None:
    pace = PartialPace()
    assert pace.refusal(0, queued_finals=0) is None
    pace.asked(0)
    pace.answered(150 * MS)
    assert pace.refusal(400 * MS, queued_finals=0) is None


def test_a_slow_engine_is_asked_less_often() -> None:
    pace = PartialPace()
    pace.asked(0)
    pace.answered(900 * MS)
    assert pace.refusal(1_199 * MS, queued_finals=0) == "stretched"
    assert pace.refusal(1_200 * MS, queued_finals=0) is None


def test_nobody_asks_while_finals_wait() -> None:
    assert PartialPace().refusal(0, queued_finals=1) == "finals_waiting"


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=30))
def test_a_stream_never_keeps_the_engine_more_than_three_quarters_of_the_time(
    answers_ms: list[int],
) -> None:
    pace, now_ms, busy_ms = PartialPace(), 0, 0
    for answer_ms in answers_ms:
        while pace.refusal(now_ms * MS, queued_finals=0) is not None:
            now_ms += 1
        assert busy_ms <= 0.75 * now_ms
        pace.asked(now_ms * MS)
        now_ms, busy_ms = now_ms + answer_ms, busy_ms + answer_ms
        pace.answered(now_ms * MS)
