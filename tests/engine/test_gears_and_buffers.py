from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.batch import LockstepKey
from voiced.engine.buffers import BufferPool
from voiced.engine.errors import LeaseError, NoGearError
from voiced.engine.gears import GearSet
from voiced.engine.types import Gear, Timings

gears = st.builds(Gear, frames=st.integers(1, 500), batch=st.integers(1, 8))


@given(st.lists(gears, min_size=1), st.integers(1, 8), st.integers(1, 500))
def test_the_gear_picked_holds_the_request_and_none_that_does_is_smaller(
    have: list[Gear], batch: int, frames: int
) -> None:
    fitting = [g for g in have if g.batch >= batch and g.frames >= frames]
    if not fitting:
        with pytest.raises(NoGearError, match=rf"{batch}x{frames}"):
            GearSet(have).pick(batch, frames)
        return
    picked = GearSet(have).pick(batch, frames)
    assert picked in fitting
    assert picked.batch * picked.frames == min(g.batch * g.frames for g in fitting)


def test_an_empty_gear_set_says_that_it_is_empty() -> None:
    with pytest.raises(NoGearError, match="bundle has none"):
        GearSet([]).pick(1, 1)


def test_each_live_gear_is_warmed_or_the_outermost_two_where_no_shape_is_compiled() -> None:
    have = GearSet([Gear(100), Gear(100, 4), Gear(200), Gear(400), Gear(800)])
    assert have.to_warm(400, compiles_shapes=True) == [
        Gear(400),
        Gear(200),
        Gear(100, 4),
        Gear(100),
    ]
    assert have.to_warm(400, compiles_shapes=False) == [Gear(400), Gear(100)]


def test_gears_that_end_in_the_same_second_share_a_batch_unless_their_searches_differ() -> None:
    assert LockstepKey.of(101, 5) == LockstepKey.of(200, 5)
    assert LockstepKey.of(100, 5) != LockstepKey.of(101, 5)
    assert LockstepKey.of(200, 1) != LockstepKey.of(200, 5)


def test_what_the_pieces_of_an_answer_took_is_added_up() -> None:
    first = Timings(1.0, 2.0, 3.0, 4.0, 5, 6, 7)
    assert first + Timings() == first
    assert first + Timings(10.0, 20.0, 30.0, 40.0, 50, 60, 70) == Timings(
        11.0, 22.0, 33.0, 44.0, 55, 66, 77
    )


def pool() -> BufferPool:
    return BufferPool({Gear(100): {"k": (2, 100)}, Gear(200): {"k": (2, 200), "v": (200, 2)}})


def test_a_gear_gets_the_same_memory_at_every_lease() -> None:
    buffers = pool()
    with buffers.lease(Gear(200)) as lease:
        address = lease["k"].ctypes.data
        assert lease["k"].shape == (2, 200)
        assert lease["k"].flags.c_contiguous
    with buffers.lease(Gear(100)):
        pass
    with buffers.lease(Gear(200)) as lease:
        assert lease["k"].ctypes.data == address


def test_all_gears_share_one_arena_as_large_as_the_largest() -> None:
    assert pool().nbytes == (400 + 400) * 4


def test_returning_a_lease_twice_is_an_error() -> None:
    lease = pool().lease(Gear(100))
    lease.release()
    with pytest.raises(LeaseError, match="twice"):
        lease.release()


def test_a_returned_lease_cannot_be_used() -> None:
    lease = pool().lease(Gear(100))
    lease.release()
    with pytest.raises(LeaseError, match="after its return"):
        lease["k"]


def test_a_second_lease_is_refused_while_one_is_out() -> None:
    buffers = pool()
    lease = buffers.lease(Gear(100))
    with pytest.raises(LeaseError, match="still lent"):
        buffers.lease(Gear(200))
    lease.release()
    buffers.lease(Gear(200)).release()


def test_a_gear_without_buffers_is_refused() -> None:
    with pytest.raises(LeaseError, match="no buffers"):
        pool().lease(Gear(300))
