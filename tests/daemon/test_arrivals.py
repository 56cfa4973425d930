"""When samples arrived."""

from __future__ import annotations

from voiced.daemon.arrivals import Arrivals


def test_a_sample_arrived_with_the_block_that_holds_it() -> None:
    arrivals = Arrivals()
    arrivals.note(320, 1)
    arrivals.note(640, 2)
    arrivals.note(960, 3)
    assert [arrivals.of(end) for end in (1, 320, 321, 960)] == [1, 1, 2, 3]
    assert arrivals.of(961) is None


def test_single_samples_do_not_push_out_the_marks_that_count() -> None:
    arrivals = Arrivals()
    for end in range(1, 4 * 16_000 + 1):
        arrivals.note(end, end)
    assert len(arrivals) <= 1_020
    for end in (1_000, 20_000, 64_000):
        found = arrivals.of(end)
        assert found is not None
        assert end <= found < end + 64


def test_only_the_newest_seconds_are_kept() -> None:
    arrivals = Arrivals()
    for second in range(60):
        arrivals.note(second * 16_000, second)
    assert len(arrivals) <= 9
