"""What is counted of gears, and sums of it over workers."""

from __future__ import annotations

import pytest

from voiced.engine.tally import GearTally
from voiced.engine.types import BatchLoad, EngineLoad, EngineTotals, Gear, GearUse

SHORT, LONG = Gear(100, batch=2), Gear(300)


def test_padding_is_what_a_gear_has_above_what_was_heard() -> None:
    tally = GearTally()
    tally.note(LONG, [120])
    tally.note(SHORT, [100, 40])
    tally.note(SHORT, [130])  # what the gear cuts off is not heard
    short, long = tally.uses
    assert short == GearUse(SHORT, runs=2, inputs=3, heard_frames=240)
    assert short.gear_frames == 2 * 2 * 100, "the empty place of the second run is padding"
    assert (long.heard_frames, long.gear_frames) == (120, 300)


def test_uses_of_two_gears_make_no_sum() -> None:
    with pytest.raises(ValueError, match="make no sum"):
        _ = GearUse(SHORT) + GearUse(LONG)


def test_totals_of_workers_are_summed_by_gear_and_reason() -> None:
    first = EngineTotals(
        steps=3, step_requests=5, to_device_bytes=10, from_device_bytes=1,
        gears=(GearUse(SHORT, 1, 2, 150),), dropped={"partial superseded": 2},
    )  # fmt: skip
    second = EngineTotals(
        steps=1, step_requests=1, to_device_bytes=7, from_device_bytes=2, restarts=1,
        gears=(GearUse(SHORT, 1, 1, 50), GearUse(LONG, 1, 1, 290)),
        dropped={"partial superseded": 1, "final deadline": 1},
    )  # fmt: skip
    assert first + second == EngineTotals(
        steps=4, step_requests=6, to_device_bytes=17, from_device_bytes=3, restarts=1,
        gears=(GearUse(SHORT, 2, 3, 200), GearUse(LONG, 1, 1, 290)),
        dropped={"partial superseded": 3, "final deadline": 1},
    )  # fmt: skip


def test_the_load_of_two_models_side_by_side_has_all_of_both() -> None:
    one = EngineLoad(1, 2, 3, 0.5, 0.1, 0.9, BatchLoad(1, 10, 2))
    two = EngineLoad(4, 0, 1, 0.2, 0.3, 0.0, BatchLoad(2, 5, 0), EngineTotals(steps=9))
    assert one + two == EngineLoad(
        5, 2, 4, 0.5, 0.3, 0.9, BatchLoad(3, 15, 2), EngineTotals(steps=9)
    )
