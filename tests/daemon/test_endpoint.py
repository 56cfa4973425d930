"""How long a silence must last, by what was said before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.front import FrontSettings
from voiced.daemon.chain import endpoint_policy
from voiced.daemon.endpoint import EndpointPolicy, TextEnd, end_of
from voiced.daemon.wire import VadParams

BOUNDS = st.integers(100, 5_000)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("Open the window.", TextEnd.COMPLETE),
        ('He said "stop."', TextEnd.COMPLETE),
        ("打开车窗。", TextEnd.COMPLETE),
        ("open the window", TextEnd.UNKNOWN),
        ("", TextEnd.UNKNOWN),
        ("...", TextEnd.OPEN),
        ("Open the...", TextEnd.OPEN),
        ("Open the window,", TextEnd.OPEN),
        ("I would like to, um.", TextEnd.OPEN),
        ("Call my.", TextEnd.OPEN),
        ("Let's.", TextEnd.OPEN),
        ("把空调调到", TextEnd.UNKNOWN),
        ("我想要，然后。", TextEnd.OPEN),
        ("打开，", TextEnd.OPEN),
        ("嗯", TextEnd.OPEN),
    ],
)
def test_the_end_of_a_text_tells_whether_more_may_come(text: str, end: TextEnd) -> None:
    assert end_of(text) is end


def test_a_hesitation_is_waited_for_and_an_intent_is_not() -> None:
    policy = EndpointPolicy(end_ms=600, min_ms=300, sentence_ms=450, max_ms=900)
    assert policy.after("Turn on the") == 900
    assert policy.after("Turn on the light") == 600
    assert policy.after("Turn on the light.") == 450
    assert policy.after_intent() == 300


@given(
    text=st.text() | st.sampled_from(["Yes.", "Yes", "Yes,"]),
    end_ms=BOUNDS,
    min_ms=BOUNDS,
    sentence_ms=BOUNDS,
    max_ms=BOUNDS,
)
def test_no_text_ends_a_segment_outside_of_the_bounds(
    text: str, end_ms: int, min_ms: int, sentence_ms: int, max_ms: int
) -> None:
    policy = EndpointPolicy(end_ms, min_ms, sentence_ms, max_ms)
    assert policy.after_intent() in (min_ms, end_ms)
    assert policy.after_intent() <= policy.after(text) <= max(end_ms, max_ms)
    if end_of(text) is not TextEnd.COMPLETE:
        assert policy.after(text) >= end_ms


@given(text=st.text(alphabet="um the, .…a打开嗯", max_size=30))
def test_a_full_stop_behind_a_hesitation_changes_nothing(text: str) -> None:
    if end_of(text) is TextEnd.OPEN and text.strip()[-1] not in ",.…":
        assert end_of(text.rstrip() + ".") is TextEnd.OPEN


def test_a_stream_moves_its_bounds_with_its_end_or_names_them() -> None:
    defaults = EndpointPolicy(end_ms=600, min_ms=300, max_ms=900)
    assert endpoint_policy(defaults, VadParams()) == defaults
    moved = endpoint_policy(defaults, VadParams(end_ms=800))
    assert moved == EndpointPolicy(end_ms=800, min_ms=500, sentence_ms=800, max_ms=1_100)
    asked = VadParams(end_ms=800, end_min_ms=200, end_sentence_ms=400, end_max_ms=2_000)
    named = endpoint_policy(defaults, asked)
    assert named == EndpointPolicy(end_ms=800, min_ms=200, sentence_ms=400, max_ms=2_000)


def test_the_policy_of_the_daemon_ends_with_that_of_the_audio_chain() -> None:
    assert EndpointPolicy().end_ms == FrontSettings().end_ms
