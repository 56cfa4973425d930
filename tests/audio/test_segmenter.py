from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.audio.frames import CloseReason
from voiced.audio.segmenter import (
    Began,
    Boundary,
    Ended,
    Grew,
    Paused,
    Refused,
    Resumed,
    Segmenter,
    SegmentRules,
)

W = 100
RULES = SegmentRules(
    min_speech=3 * W,
    end_silence=6 * W,
    pad_front=5 * W,
    pad_behind=5 * W,
    max_length=40 * W,
    cut_search=10 * W,
    dip=2 * W,
    gate_span=10 * W,
)
LEVELS = {".": 0.0, "~": 0.4, "s": 0.55, "S": 0.95}
"""Silence, between `off` and `on`, doubtful speech, sure speech."""


def latest(_first: int, last: int) -> int:
    return last


def segmenter(rules: SegmentRules = RULES) -> Segmenter:
    return Segmenter(rules, window_samples=W, quietest=latest)


def feed(target: Segmenter, levels: str) -> list[Boundary]:
    return [boundary for level in levels for boundary in target.feed(LEVELS[level])]


def test_speech_is_padded_on_both_sides_and_ends_after_the_silence() -> None:
    events = feed(segmenter(), "." * 10 + "S" * 12 + "." * 6)
    assert events == [Began(500), Ended(500, 2700, CloseReason.SILENCE)]


def test_a_segment_opens_as_soon_as_the_minimum_speech_is_there() -> None:
    target = segmenter()
    assert feed(target, ".." + "SS") == []
    assert feed(target, "S") == [Began(0)]


def test_a_sound_shorter_than_the_minimum_opens_nothing() -> None:
    assert feed(segmenter(), "..SS....SS....SS....") == []


def test_a_short_dip_does_not_restart_the_minimum() -> None:
    assert feed(segmenter(), "......SS.S") == [Began(100)]


def test_a_pause_shorter_than_the_end_silence_does_not_cut() -> None:
    events = feed(segmenter(), "SSSSSSSSSS.....SSSSSSSSSS......")
    assert events == [Began(0), Ended(0, 3000, CloseReason.SILENCE)]


def test_after_silence_only_the_higher_threshold_is_speech() -> None:
    assert feed(segmenter(), "S" * 12 + "~" * 9) == [Began(0)]
    events = feed(segmenter(), "S" * 12 + "." + "~" * 5)
    assert events == [Began(0), Ended(0, 1700, CloseReason.SILENCE)]


def test_two_segments_share_the_pause_between_them() -> None:
    events = feed(segmenter(), "S" * 12 + "." * 7 + "S" * 12 + "." * 6)
    assert [e for e in events if isinstance(e, Ended)] == [
        Ended(0, 1700, CloseReason.SILENCE),
        Ended(1700, 3600, CloseReason.SILENCE),
    ]


@pytest.mark.parametrize(("levels", "passes"), [("ssss", False), ("sSSs", True)])
def test_a_short_segment_must_be_sure(levels: str, *, passes: bool) -> None:
    events = feed(segmenter(), levels + "......")
    assert (events[-1] == Refused()) is not passes
    assert isinstance(events[-1], Ended) is passes


def test_a_long_doubtful_segment_passes() -> None:
    assert isinstance(feed(segmenter(), "s" * 10 + "......")[-1], Ended)


def test_speech_at_the_maximum_is_cut_at_the_quietest_point_and_goes_on_there() -> None:
    asked: list[tuple[int, int]] = []

    def quietest(first: int, last: int) -> int:
        asked.append((first, last))
        return 3456

    target = Segmenter(RULES, window_samples=W, quietest=quietest)
    events = feed(target, "S" * 42 + "." * 6)
    assert asked == [(3000, 4000)]
    assert events == [
        Began(0),
        Ended(0, 3456, CloseReason.MAX_LENGTH),
        Began(3456),
        Ended(3456, 4700, CloseReason.SILENCE),
    ]


def test_a_cut_in_the_pause_opens_nothing_until_speech_returns() -> None:
    target = segmenter()
    assert feed(target, "S" * 37 + "...") == [Began(0), Ended(0, 4000, CloseReason.MAX_LENGTH)]
    assert not target.is_open
    assert feed(target, "." * 30) == []


def test_a_word_right_after_a_cut_in_a_pause_needs_no_minimum() -> None:
    target = segmenter()
    feed(target, "S" * 37 + "...")
    assert feed(target, ".S") == [Began(4000)]
    assert feed(target, "......") == [Ended(4000, 4700, CloseReason.SILENCE)]


def test_the_rest_of_cut_speech_is_not_gated() -> None:
    events = feed(segmenter(), "s" * 42 + "......")
    assert events[-1] == Ended(4000, 4700, CloseReason.SILENCE)


def test_a_cut_at_the_very_end_of_speech_leaves_no_empty_segment() -> None:
    events = feed(segmenter(), "S" * 40 + "......")
    assert events[-2:] == [Began(4000), Refused()]


def test_a_flush_keeps_all_that_was_received_of_running_speech() -> None:
    target = segmenter()
    feed(target, "S" * 12)
    assert target.flush(1250, CloseReason.FLUSH) == [Ended(0, 1250, CloseReason.FLUSH)]
    assert target.flush(1250, CloseReason.FLUSH) == []
    assert feed(target, "SSS") == [Began(1250)]


def test_a_flush_in_the_pause_keeps_the_padding_only() -> None:
    rules = dataclasses.replace(RULES, pad_behind=2 * W)
    target = segmenter(rules)
    feed(target, "S" * 12 + "....")
    assert target.flush(1650, CloseReason.END_OF_STREAM) == [
        Ended(0, 1400, CloseReason.END_OF_STREAM)
    ]


def test_padding_never_reaches_over_a_jump() -> None:
    target = segmenter()
    feed(target, "SS....")
    target.jump(5000)
    assert feed(target, ".SSS") == [Began(5000)]


def test_growth_is_told_per_hop_and_only_with_new_speech() -> None:
    rules = dataclasses.replace(RULES, grow_hop=4 * W, end_silence=12 * W)
    events = feed(segmenter(rules), "S" * 9 + "." * 11)
    assert events == [Began(0), Grew(400), Grew(800), Grew(1200)]


EAGER = dataclasses.replace(RULES, pause=2 * W)


def test_the_beginning_of_silence_is_told_and_so_is_speech_that_goes_on() -> None:
    events = feed(segmenter(EAGER), "S" * 12 + "..." + "~" + "S" * 3 + "......")
    assert events == [
        Began(0),
        Paused(1200, 1400, 1700),
        Resumed(),
        Paused(1900, 2100, 2400),
        Ended(0, 2400, CloseReason.SILENCE),
    ]


def test_a_sound_that_will_be_refused_is_never_paused() -> None:
    assert feed(segmenter(EAGER), "ssss" + "......") == [Began(0), Refused()]


def test_no_pause_is_told_where_the_silence_ends_the_segment_first() -> None:
    rules = dataclasses.replace(EAGER, end_silence=2 * W, pad_behind=2 * W)
    assert feed(segmenter(rules), "S" * 12 + "..") == [
        Began(0),
        Ended(0, 1400, CloseReason.SILENCE),
    ]


def test_the_silence_that_runs_can_be_made_to_end_the_segment_sooner() -> None:
    target = segmenter(EAGER)
    feed(target, "S" * 12 + "..")
    assert target.end_after(4 * W) == []
    assert feed(target, "..") == [Ended(0, 1600, CloseReason.SILENCE)]


def test_a_silence_that_is_long_enough_already_ends_the_segment_at_once() -> None:
    target = segmenter(EAGER)
    feed(target, "S" * 12 + "...")
    assert target.end_after(3 * W) == [Ended(0, 1500, CloseReason.SILENCE)]
    assert target.end_after(3 * W) == []


def test_a_longer_end_of_this_silence_keeps_the_padding_and_ends_with_it() -> None:
    target = segmenter(EAGER)
    feed(target, "S" * 12 + "..")
    assert target.end_after(9 * W) == []
    assert feed(target, "......") == []
    assert feed(target, ".") == [Ended(0, 1700, CloseReason.SILENCE)]
    again = segmenter(EAGER)
    feed(again, "S" * 12 + "..")
    again.end_after(9 * W)
    assert feed(again, "......" + "S" + "......")[-1] == Ended(0, 2600, CloseReason.SILENCE)


def test_running_speech_is_not_ended_by_a_shorter_silence() -> None:
    target = segmenter(EAGER)
    feed(target, "S" * 12 + "..S")
    assert target.end_after(W) == []
    assert feed(target, ".....") == [Paused(1500, 1700, 2000)]


def test_the_first_growth_can_come_sooner_and_none_comes_in_the_silence_before_a_pause() -> None:
    rules = dataclasses.replace(EAGER, grow_hop=4 * W, first_grow=3 * W)
    events = feed(segmenter(rules), "S" * 6 + "." + "S" * 4 + "...")
    assert events == [Began(0), Grew(400), Grew(800), Grew(1100), Paused(1100, 1300, 1600)]


levels_st = st.lists(
    st.tuples(st.sampled_from("..~sSS"), st.integers(1, 60)), min_size=1, max_size=25
).map(lambda runs: "".join(level * count for level, count in runs))


@given(levels=levels_st, cut=st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_sure_speech_lies_in_exactly_one_segment_and_cuts_meet(levels: str, cut: int) -> None:
    target = Segmenter(RULES, window_samples=W, quietest=lambda first, last: last - cut)
    events = feed(target, levels)
    events += target.flush(len(levels) * W, CloseReason.END_OF_STREAM)
    ended = [event for event in events if isinstance(event, Ended)]
    covered = [0] * (len(levels) * W)
    for before, after in zip([None, *ended], ended, strict=False):
        assert 0 <= after.start_sample < after.end_sample <= len(covered)
        assert after.end_sample - after.start_sample <= RULES.max_length
        assert before is None or before.end_sample <= after.start_sample
        for sample in range(after.start_sample, after.end_sample):
            covered[sample] += 1
    assert max(covered, default=0) <= 1
    begin = 0
    for run in levels.replace("~", ".").replace("s", ".").split("."):
        # Long enough to open and, alone or with doubtful neighbours, too long for the gate.
        if len(run) * W >= RULES.gate_span:
            assert all(covered[begin * W : (begin + len(run)) * W])
        begin += len(run) + 1
    for first, second in itertools.pairwise(events):
        if isinstance(first, Ended) and first.reason is CloseReason.MAX_LENGTH:
            window_after = first.end_sample // W
            if levels[window_after : window_after + 1] == "S" and isinstance(second, Began):
                assert second.start_sample == first.end_sample
    assert sum(isinstance(e, Began) for e in events) == sum(
        isinstance(e, Ended | Refused) for e in events
    )


@given(levels=levels_st, pause=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_no_boundary_comes_before_the_promised_window(levels: str, pause: int) -> None:
    rules = dataclasses.replace(RULES, grow_hop=7 * W, first_grow=5 * W, pause=pause * W)
    target = segmenter(rules)
    none_before = 0
    for index, level in enumerate(levels):
        none_before = max(none_before, index + target.windows_until_decision - 1)
        events = target.feed(LEVELS[level])
        assert not events or index >= none_before
        if events:
            none_before = 0


@given(levels=levels_st)
@settings(max_examples=200, deadline=None)
def test_audio_that_a_segment_still_needs_is_kept(levels: str) -> None:
    target = segmenter()
    kept_from = 0
    for level in levels:
        assert target.keep_from >= kept_from
        kept_from = target.keep_from
        for event in target.feed(LEVELS[level]):
            if isinstance(event, Began | Ended):
                assert event.start_sample >= kept_from


@given(levels=levels_st, cut=st.integers(0, 1000), hold=st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_what_a_pause_promised_holds_until_it_is_taken_back(
    levels: str, cut: int, hold: int
) -> None:
    target = Segmenter(EAGER, window_samples=W, quietest=lambda first, last: last - cut)
    speech_end: int | None = None
    is_open = False
    for index, level in enumerate(levels):
        events = target.feed(LEVELS[level])
        if index % 5 == 0:
            events += target.end_after(hold * W)
        for event in events:
            match event:
                case Began():
                    is_open, speech_end = True, None
                case Paused():
                    assert is_open
                    assert speech_end is None
                    assert event.end_sample - event.speech_end >= EAGER.pause
                    speech_end = event.speech_end
                case Resumed():
                    assert is_open
                    assert speech_end is not None
                    speech_end = None
                case Ended():
                    assert is_open
                    if speech_end is not None and event.reason is CloseReason.SILENCE:
                        assert event.end_sample >= speech_end
                    is_open = False
                case Refused():
                    assert speech_end is None
                    is_open = False
        if speech_end is not None and is_open:
            assert target.silence_samples == target.position - speech_end
