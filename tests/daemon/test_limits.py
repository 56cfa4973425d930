"""Token buckets and clients: pure, with the time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.daemon.limits import Clients, Meter, TokenBucket, Toll
from voiced.daemon.security_settings import ClientLimits, TotalLimits

RATES = st.floats(0.1, 1e6)
AMOUNTS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), max_size=50)
"""What is taken, and how long after the last."""


@given(RATES, RATES, AMOUNTS)
def test_a_taker_who_waits_as_told_never_exceeds_burst_and_rate(
    rate: float, burst: float, takes: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now_s, taken = 0.0, 0.0
    for amount, pause_s in takes:
        now_s += pause_s
        now_s += bucket.take(amount, now_s)
        taken += amount
        assert taken <= (burst + rate * now_s) * (1 + 1e-6) + 1e-3


@given(RATES, RATES, AMOUNTS)
def test_the_level_is_never_above_the_burst_and_time_alone_never_lowers_it(
    rate: float, burst: float, takes: list[tuple[float, float]]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now_s = 0.0
    for amount, pause_s in takes:
        before = bucket.level(now_s)
        now_s += pause_s
        assert before <= bucket.level(now_s) <= burst
        bucket.allows(amount, now_s)
        assert bucket.level(now_s) >= 0


@given(RATES, st.floats(0, 1e6))
def test_within_the_burst_nobody_waits_and_a_clock_that_goes_back_gives_nothing(
    rate: float, amount: float
) -> None:
    bucket = TokenBucket(rate, amount, 1_000.0)
    assert bucket.take(amount, 1_000.0) == 0
    assert bucket.level(0.0) == bucket.level(1_000.0) == 0


def test_one_who_is_turned_away_takes_nothing() -> None:
    bucket = TokenBucket(1.0, 2.0, 0.0)
    assert bucket.allows(2.0, 0.0)
    assert not bucket.allows(0.5, 0.25)
    assert bucket.allows(0.5, 0.5)


def toll(meter: Meter, *, size: int = 0, audio_s: float = 0.0, now_s: float = 0.0) -> Toll:
    found = Toll()
    meter.charge(found, size=size, audio_s=audio_s, now_s=now_s)
    return found


def test_the_tightest_limit_decides_and_is_named() -> None:
    meter = Meter(0.0, messages_per_s=10.0, bytes_per_s=100.0, audio_s_per_hour=None)
    assert toll(meter, size=200) == Toll()
    assert toll(meter, size=100) == Toll(wait_s=1.0, limit="bytes")


def test_what_is_covered_makes_nobody_wait_and_asking_takes_nothing() -> None:
    meter = Meter(0.0, messages_per_s=10.0, bytes_per_s=100.0, audio_s_per_hour=3_600.0)
    for size, audio_s, is_covered in ((200, 1.0, True), (201, 1.0, False), (1, 3_601.0, False)):
        assert meter.covers(size=size, audio_s=audio_s, now_s=0.0) is is_covered
    assert toll(meter, size=200, audio_s=1.0) == Toll()
    assert not meter.covers(size=1, audio_s=0.0, now_s=0.0)
    assert meter.covers(size=1, audio_s=0.0, now_s=0.5)
    for _ in range(19):
        toll(meter)
    assert not meter.covers(size=0, audio_s=0.0, now_s=0.0)


def test_audio_beyond_the_hour_is_over_quota_until_time_has_passed() -> None:
    meter = Meter(0.0, messages_per_s=None, bytes_per_s=None, audio_s_per_hour=60.0)
    assert not toll(meter, audio_s=60.0).is_over_quota
    assert toll(meter, audio_s=1.0).is_over_quota
    assert not toll(meter, audio_s=1.0, now_s=61.0).is_over_quota


def test_clients_are_bounded_and_one_with_streams_is_never_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("voiced.daemon.limits._MAX_CLIENTS", 10)
    clients = Clients(ClientLimits(), TotalLimits())
    busy = clients.of("busy", 0.0)
    busy.streams = 1
    for number in range(1_000):
        clients.of(f"10.0.{number // 256}.{number % 256}", 0.0)
    assert len(clients) == 10
    assert clients.of("busy", 0.0) is busy


def test_without_limits_nothing_is_counted() -> None:
    assert Clients().everybody(0.0).is_unlimited
    assert not Clients().of("someone", 0.0).meter.is_unlimited
