"""How long something has lived, whatever the machine's clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.age_clock import FIRST_PLAUSIBLE_MS, AgeClock, AgeState, Jump

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
YEAR_MS = 365 * DAY_MS
NOW_MS = 1_790_000_000_000
KEEP_MS = 30 * DAY_MS
UNSET_MS, FACTORY_MS = 5_000, FIRST_PLAUSIBLE_MS + YEAR_MS
"""What a clock without a battery begins with: 1970, or the day its firmware was made."""


class Car:
    """A machine that is driven and parked; its clock is set now and then, and not always well."""

    def __init__(self, *, keep_ms: int = KEEP_MS) -> None:
        self.true_ms, self.error_ms, self._keep_ms = NOW_MS, 0, keep_ms
        self.age = AgeClock(keep_ms)
        self.jumps: list[Jump] = []
        self._look(0)

    @property
    def lived_days(self) -> float:
        return self.age.lived_ms / DAY_MS

    def drive(self, ms: int) -> None:
        """A run of the daemon goes on, looking every ten minutes."""
        while ms > 0:
            step_ms = min(ms, 600_000)
            ms -= step_ms
            self.true_ms += step_ms
            self._look(step_ms)

    def park(self, ms: int) -> None:
        """The daemon ends and is started again."""
        self.true_ms += ms
        self.age = AgeClock(self._keep_ms, self.age.state)

    def start(self) -> None:
        self._look(0)

    def clock_shows(self, wall_ms: int) -> None:
        self.error_ms = wall_ms - self.true_ms

    def clock_is_right(self) -> None:
        self.error_ms = 0

    def _look(self, ran_ms: int) -> None:
        self.jumps.append(self.age.look(self.true_ms + self.error_ms, ran_ms))


def test_running_and_parking_count_for_what_they_are() -> None:
    car = Car()
    for _ in range(20):
        car.drive(HOUR_MS)
        car.park(DAY_MS - HOUR_MS)
        car.start()
    assert car.age.lived_ms == 20 * DAY_MS
    assert set(car.jumps) == {Jump.NONE}


@pytest.mark.parametrize("wrong_ms", [UNSET_MS, FACTORY_MS])
def test_a_clock_that_is_set_hours_after_each_start_counts_no_year_and_no_day_twice(
    wrong_ms: int,
) -> None:
    car = Car()
    for _ in range(10):
        car.park(DAY_MS - HOUR_MS)
        car.clock_shows(wrong_ms)
        car.start()
        car.drive(HOUR_MS // 2)
        car.clock_is_right()
        car.drive(HOUR_MS // 2)
    assert car.age.lived_ms == 10 * DAY_MS
    assert set(car.jumps) == {Jump.NONE}


def test_a_clock_years_ahead_is_told_once_and_counts_for_nothing_when_it_is_set_right() -> None:
    car = Car()
    car.drive(DAY_MS)
    car.clock_shows(NOW_MS + 12 * YEAR_MS)
    car.drive(23 * HOUR_MS)
    assert car.age.lived_ms == DAY_MS + 23 * HOUR_MS
    assert car.jumps.count(Jump.FAR_AHEAD) == 1
    car.clock_is_right()
    car.drive(2 * HOUR_MS)
    assert car.age.lived_ms == 2 * DAY_MS + HOUR_MS
    assert Jump.BELIEVED not in car.jumps


def test_a_clock_that_stays_far_ahead_is_believed_after_a_day_of_running_over_many_starts() -> None:
    car = Car()
    car.drive(DAY_MS)
    car.park(200 * DAY_MS)  # longer than is believed at once, and true
    car.start()
    assert car.jumps[-1] is Jump.FAR_AHEAD
    for _ in range(24):
        assert car.jumps[-1] is not Jump.BELIEVED
        car.park(DAY_MS)
        car.start()
        car.drive(HOUR_MS)
    assert car.jumps[-1] is Jump.BELIEVED
    assert 15 < car.lived_days <= 1 + 1 + KEEP_MS / DAY_MS / 2  # a jump counts for half of `keep`
    before = car.lived_days
    car.park(5 * DAY_MS)
    car.start()
    assert car.lived_days == before + 5


def test_a_clock_that_was_believed_wrongly_counts_again_after_a_day_of_being_right() -> None:
    car = Car()
    car.clock_shows(NOW_MS + 12 * YEAR_MS)
    car.drive(25 * HOUR_MS)
    assert Jump.BELIEVED in car.jumps
    car.clock_is_right()
    car.drive(25 * HOUR_MS)
    before = car.lived_days
    car.park(3 * DAY_MS)
    car.start()
    assert car.lived_days == before + 3


def test_who_keeps_things_for_a_day_waits_less_than_an_hour() -> None:
    car = Car(keep_ms=DAY_MS)
    car.drive(HOUR_MS)
    car.park(20 * HOUR_MS)
    car.start()
    assert car.jumps[-1] is Jump.FAR_AHEAD
    car.drive(HOUR_MS)
    assert Jump.BELIEVED in car.jumps


@pytest.mark.parametrize(
    "state", [AgeState(-1), AgeState(1 << 60), AgeState(0, 1 << 60), AgeState(0, 0, -5, 0)]
)
def test_what_a_damaged_file_says_counts_as_nothing(state: AgeState) -> None:
    assert AgeClock(KEEP_MS, state).state == AgeState()


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("drive"), st.integers(1, 30 * HOUR_MS)),
        st.tuples(st.just("park"), st.integers(0, 400 * DAY_MS)),
        st.tuples(st.just("clock"), st.integers(0, NOW_MS + 100 * YEAR_MS)),
        st.tuples(st.just("right"), st.just(0)),
    ),
    max_size=12,
)


@given(EVENTS)
def test_whatever_a_clock_does_age_never_falls_counts_running_and_jumps_by_half_of_keep_at_most(
    events: list[tuple[str, int]],
) -> None:
    car, run_since_far = Car(), 0
    for kind, ms in events:
        before_ms, told = car.age.lived_ms, len(car.jumps)
        match kind:
            case "drive":
                car.drive(ms)
            case "park":
                car.park(ms)
                car.start()
            case "clock":
                car.clock_shows(ms)
            case _:
                car.clock_is_right()
        grown_ms = car.age.lived_ms - before_ms
        ran_ms = ms if kind == "drive" else 0
        looks = len(car.jumps) - told
        believed = car.jumps[told:].count(Jump.BELIEVED)
        assert ran_ms <= grown_ms <= ran_ms + min(looks, 1 + believed) * car.age.leap_ms
        run_since_far += ran_ms
        if believed:
            assert run_since_far >= car.age.proof_ms
