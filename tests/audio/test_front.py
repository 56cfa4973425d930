from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.audio.frames import (
    AudioFrame,
    CloseReason,
    SegmentClosed,
    SegmentDropped,
    SegmentEvent,
    SegmentGrown,
    SegmentOpened,
    SegmentPaused,
    SegmentResumed,
    StreamFormat,
)
from voiced.audio.front import FrontSettings, StreamFront
from voiced.audio.intake import Intake
from voiced.audio.pcm import Float32, float_to_int16
from voiced.audio.sources import synthetic
from voiced.audio.vad import VadModel
from voiced.audio.vad.webrtc import WebrtcVad

RATE = 16_000


class LoudnessVad:
    """Speech is what is loud. Like silero in its window and batch."""

    window_samples = 512
    batch_windows = 4

    def __init__(self) -> None:
        self.resets = 0

    def feed(self, samples: Float32) -> float:
        return self.feed_many(samples[np.newaxis])[0]

    def feed_many(self, windows: Float32) -> list[float]:
        return [float(level > 0.01) for level in np.abs(windows).mean(axis=1)]

    def reset(self) -> None:
        self.resets += 1


def make(vad: VadModel | None = None, settings: FrontSettings | None = None) -> StreamFront:
    return StreamFront(
        "s",
        settings=settings or FrontSettings(),
        vad=vad or LoudnessVad(),
        next_id=itertools.count(1).__next__,
        language="en",
    )


def play(front: StreamFront, samples: Float32, block: int = 320) -> list[SegmentEvent]:
    events: list[SegmentEvent] = []
    for begin in range(0, len(samples), block):
        part = samples[begin : begin + block].copy()
        events += front.feed(AudioFrame(front.end_sample, part))
    return events


def closed(events: list[SegmentEvent]) -> list[SegmentClosed]:
    return [event for event in events if isinstance(event, SegmentClosed)]


def described(events: list[SegmentEvent]) -> list[object]:
    """Events with their sound as plain values, to be compared."""
    plain: list[object] = []
    for event in events:
        if isinstance(event, SegmentClosed | SegmentPaused):
            segment = event.segment
            last = event.reason if isinstance(event, SegmentClosed) else event.speech_end
            plain.append((segment.id, segment.start_sample, segment.pcm.tobytes(), last))
        else:
            plain.append(event)
    return plain


def voice(seconds: float, seed: int = 1) -> Float32:
    return synthetic.buzz(seconds, seed=seed)


def sound(*parts: Float32) -> Float32:
    return np.concatenate(parts)


QUIET = synthetic.silence(1.5)


def test_a_sentence_gives_opened_grown_and_closed_with_its_own_sound() -> None:
    front = make()
    samples = sound(QUIET, voice(2), QUIET)
    events = play(front, samples)
    assert isinstance(events[0], SegmentOpened)
    assert all(isinstance(event, SegmentGrown) for event in events[1:-1])
    last = events[-1]
    assert isinstance(last, SegmentClosed)
    segment = last.segment
    assert (segment.id, segment.stream, segment.language) == (1, "s", "en")
    assert last.reason is CloseReason.SILENCE
    assert segment.start_sample == pytest.approx(RATE, abs=512)
    assert segment.end_sample == pytest.approx(4 * RATE, abs=1024)
    np.testing.assert_array_equal(
        segment.pcm, float_to_int16(samples)[segment.start_sample : segment.end_sample]
    )


def test_a_segment_opens_within_a_quarter_second_and_closes_when_the_silence_is_over() -> None:
    front = make()
    play(front, QUIET)
    loud = voice(2)
    heard = 0
    while not (events := play(front, loud[heard : heard + 160])):
        heard += 160
    assert isinstance(events[0], SegmentOpened)
    assert heard <= RATE // 4 + 160
    play(front, loud[heard + 160 :])
    waited = 0
    while not closed(play(front, synthetic.silence(0.01))):
        waited += 160
    assert waited <= 0.6 * RATE + 512


def test_partials_may_start_soon_and_then_come_every_hop() -> None:
    events = play(make(), sound(QUIET, voice(2)))
    grown = [event.end_sample for event in events if isinstance(event, SegmentGrown)]
    assert grown[0] <= QUIET.size + 0.4 * RATE + 512
    assert np.diff(grown) == pytest.approx(0.4 * RATE, abs=512)


def test_no_growth_is_told_when_it_is_turned_off() -> None:
    events = play(make(settings=FrontSettings(grown_ms=0)), sound(voice(2), QUIET))
    assert [type(event) for event in events] == [SegmentOpened, SegmentClosed]


def test_the_open_segment_can_be_copied_at_any_time() -> None:
    front = make()
    assert front.open_segment() is None
    samples = sound(QUIET, voice(1))
    play(front, samples)
    segment = front.open_segment()
    assert segment is not None
    assert segment.end_sample == len(samples)
    np.testing.assert_array_equal(segment.pcm, float_to_int16(samples[segment.start_sample :]))


def test_silence_is_measured_inside_an_open_segment() -> None:
    front = make()
    play(front, voice(1))
    assert front.silence_ms == 0
    play(front, synthetic.silence(0.4))
    assert 200 <= front.silence_ms <= 400
    play(front, synthetic.silence(0.4))
    assert front.silence_ms == 0


def test_a_pause_comes_with_the_sound_so_far_and_is_taken_back_by_speech() -> None:
    front = make(settings=FrontSettings(grown_ms=0, eager_ms=200))
    samples = sound(voice(1), synthetic.silence(0.3), voice(1), QUIET)
    events = play(front, samples)
    names = [type(event) for event in events]
    pause = [SegmentPaused, SegmentResumed, SegmentPaused]
    assert names == [SegmentOpened, *pause, SegmentClosed]
    (first, second) = [event for event in events if isinstance(event, SegmentPaused)]
    assert first.speech_end == pytest.approx(RATE, abs=512)
    (last,) = closed(events)
    whole, early = last.segment, second.segment
    assert (early.start_sample, early.end_sample) == (whole.start_sample, whole.end_sample)
    heard = second.speech_end + round(0.2 * RATE) - whole.start_sample
    np.testing.assert_array_equal(early.pcm[:heard], whole.pcm[:heard])


def test_the_padding_still_to_come_is_made_up_from_the_silence_heard() -> None:
    front = make(settings=FrontSettings(grown_ms=0, eager_ms=200))
    hum = (synthetic.noise(0.26, seed=2, level_dbfs=-50)).astype(np.float32)
    samples = sound(voice(1), hum)
    events = play(front, samples)
    (paused,) = [event for event in events if isinstance(event, SegmentPaused)]
    behind = paused.segment.pcm[paused.speech_end - paused.segment.start_sample :]
    assert len(behind) == RATE // 2
    heard = float_to_int16(samples)[paused.speech_end :]
    judged = int(np.flatnonzero(behind[: len(heard)] != heard[: len(behind)])[0])
    assert judged >= 0.19 * RATE
    np.testing.assert_array_equal(behind[judged : 2 * judged], behind[:judged][::-1])
    np.testing.assert_array_equal(behind[2 * judged :], behind[: len(behind) - 2 * judged])


def test_the_end_of_this_silence_can_be_chosen_while_it_runs() -> None:
    front = make(settings=FrontSettings(grown_ms=0, eager_ms=200))
    play(front, sound(voice(1), synthetic.silence(0.25)))
    assert front.end_after(350) == []
    (only,) = closed(play(front, synthetic.silence(0.14)))
    assert only.reason is CloseReason.SILENCE
    assert only.segment.end_sample == pytest.approx(1.37 * RATE, abs=512)
    play(front, sound(voice(1), synthetic.silence(0.4)))
    (now,) = closed(front.end_after(300))
    assert now.segment.start_sample >= only.segment.end_sample


def test_a_long_gap_closes_the_segment_and_forgets_the_past() -> None:
    vad = LoudnessVad()
    front = make(vad)
    play(front, voice(1))
    events = front.feed(AudioFrame(RATE + 1601, voice(1)))
    assert closed(events)[0].reason is CloseReason.GAP
    assert closed(events)[0].segment.end_sample == RATE
    assert vad.resets == 1
    opened = [event for event in events if isinstance(event, SegmentOpened)]
    assert opened[-1].start_sample == RATE + 1601


def test_a_long_loss_closes_the_segment_before_sound_returns() -> None:
    front = make()
    play(front, voice(1))
    assert front.skip(RATE + 1600) == []  # short: filled when sound returns
    (gap,) = closed(front.skip(RATE + 1601))
    assert (gap.reason, gap.segment.end_sample) == (CloseReason.GAP, RATE)
    assert front.skip(60 * RATE) == []
    (after,) = closed(front.feed(AudioFrame(60 * RATE + 80, voice(1))) + front.finish())
    whole = (60 * RATE + 80, 61 * RATE + 80)  # the last piece of the loss is none of the segment
    assert (after.segment.start_sample, after.segment.end_sample) == whole


def test_a_short_gap_is_filled_with_silence() -> None:
    front = make()
    play(front, voice(1))
    events = front.feed(AudioFrame(RATE + 1600, voice(1))) + front.finish()
    (only,) = closed(events)
    assert len(only.segment.pcm) == 2 * RATE + 1600
    assert not only.segment.pcm[RATE : RATE + 1600].any()


def test_a_frame_from_the_past_is_refused() -> None:
    front = make()
    play(front, QUIET)
    with pytest.raises(ValueError, match="expected 24000 or later"):
        front.feed(AudioFrame(23_999, QUIET[:10].copy()))


def test_a_flush_closes_now_and_the_next_segment_meets_it() -> None:
    front = make()
    play(front, voice(1.01))
    (first,) = closed(front.flush())
    assert (first.reason, first.segment.end_sample) == (CloseReason.FLUSH, round(1.01 * RATE))
    assert front.flush() == []
    (second,) = closed(play(front, voice(1)) + front.finish())
    assert second.segment.start_sample == first.segment.end_sample


def test_the_end_of_the_stream_closes_the_segment_with_all_that_was_received() -> None:
    front = make()
    play(front, voice(1.017))
    (only,) = closed(front.finish())
    assert only.reason is CloseReason.END_OF_STREAM
    assert only.segment.end_sample == round(1.017 * RATE)
    assert front.finish() == []


def test_cancel_drops_the_open_segment_and_its_sound() -> None:
    front = make()
    play(front, voice(1))
    assert front.cancel() == [SegmentDropped(1)]
    assert front.cancel() == []
    (after,) = closed(play(front, voice(1)) + front.finish())
    assert after.segment.start_sample == RATE


def test_long_speech_is_cut_in_its_quietest_place_without_losing_a_sample() -> None:
    speech = voice(40, seed=4)
    speech[14 * RATE : 14 * RATE + 3200] *= 0.05
    front = make()
    segments = [event.segment for event in closed(play(front, speech) + front.finish())]
    assert len(segments) >= 3
    assert 14 * RATE < segments[0].end_sample < 14 * RATE + 3200
    assert max(segment.duration_s for segment in segments) <= 16
    for before, after in itertools.pairwise(segments):
        assert before.end_sample == after.start_sample
    np.testing.assert_array_equal(
        np.concatenate([segment.pcm for segment in segments]), float_to_int16(speech)
    )


parts_st = st.lists(
    st.tuples(st.sampled_from(["voice", "noise", "silence"]), st.integers(1, 900)),
    min_size=1,
    max_size=8,
)


def assemble(parts: list[tuple[str, int]]) -> Float32:
    made = []
    for kind, length in parts:
        seconds = length / 300
        if kind == "voice":
            made.append(voice(seconds, seed=length))
        elif kind == "noise":
            made.append(synthetic.noise(seconds, seed=length))
        else:
            made.append(synthetic.silence(seconds))
    return sound(*made)


@pytest.mark.parametrize("vad", [LoudnessVad, WebrtcVad])
@given(parts=parts_st, seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_events_do_not_depend_on_the_blocks(
    vad: type[LoudnessVad | WebrtcVad], parts: list[tuple[str, int]], seed: int
) -> None:
    samples = assemble(parts)
    settings_ = FrontSettings(max_segment_s=3, eager_ms=200)
    whole_front, chopped_front = make(vad(), settings_), make(vad(), settings_)
    whole = play(whole_front, samples, len(samples)) + whole_front.finish()
    rng = np.random.default_rng(seed)
    chopped: list[SegmentEvent] = []
    at = 0
    while at < len(samples):
        block = int(rng.choice([1, 7, 160, 512, 5000]))
        chopped += play(chopped_front, samples[at : at + block], block)
        at += block
    chopped += chopped_front.finish()
    assert described(chopped) == described(whole)
    ends = [0]
    for event in closed(whole):
        assert event.segment.start_sample >= ends[-1]
        assert event.segment.duration_s <= 3
        ends.append(event.segment.end_sample)
    assert ends[-1] <= len(samples)


def timed_events(fmt: StreamFormat, blocks: list[bytes], *, wait: bool) -> list[object]:
    """Run intake and front; each event with the number of the block that brought it."""
    intake, front = Intake(fmt), make(settings=FrontSettings(max_segment_s=3, eager_ms=200))
    shown: list[object] = []
    for index, block in enumerate(blocks):
        if wait and intake.hold(block) < front.decision_sample:
            continue
        frame = intake.feed(b"" if wait else block)
        events = [] if frame is None else front.feed(frame)
        shown += [(index, event) for event in described(events)]
    frame = intake.finish()
    last = ([] if frame is None else front.feed(frame)) + front.finish()
    return shown + described(last)


@given(
    parts=parts_st,
    rate_hz=st.sampled_from([8_000, 16_000, 48_000]),
    size=st.sampled_from([319, 640, 1920, 9000]),
)
@settings(max_examples=25, deadline=None)
def test_audio_that_waits_until_the_decision_makes_no_event_other_or_later(
    parts: list[tuple[str, int]], rate_hz: int, size: int
) -> None:
    data = float_to_int16(assemble(parts)).tobytes()  # at another rate it is another sound
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    fmt = StreamFormat(rate_hz=rate_hz)
    assert timed_events(fmt, blocks, wait=True) == timed_events(fmt, blocks, wait=False)


def test_blocks_of_one_sample_give_the_same_events() -> None:
    samples = sound(QUIET, voice(0.7), synthetic.silence(0.7))
    assert described(play(make(), samples, 1)) == described(play(make(), samples, len(samples)))


def test_minutes_of_silence_hold_little_memory_and_open_nothing() -> None:
    front = make()
    ten_seconds = synthetic.silence(10)
    for _ in range(30):
        assert play(front, ten_seconds, len(ten_seconds)) == []
    assert front.buffered_bytes < 100_000
    assert front.end_sample == 300 * RATE


def test_memory_is_bounded_while_speech_never_ends_and_shrinks_after_it() -> None:
    front = make()
    ten_seconds = voice(10)
    for _ in range(20):
        play(front, ten_seconds, 3200)
        assert front.buffered_bytes < 1_000_000
    play(front, synthetic.silence(40), 3200)
    assert front.buffered_bytes < 100_000


def test_a_hundred_seconds_in_one_block_hold_no_more_memory() -> None:
    front = make()
    play(front, voice(100), 100 * RATE)
    assert front.buffered_bytes < 1_000_000


def test_clipped_speech_is_found() -> None:
    loud = np.clip(voice(2) * 40, -1, 1)
    (only,) = closed(play(make(WebrtcVad()), sound(QUIET, loud, QUIET)))
    assert only.segment.duration_s == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("end_ms", 99), ("pad_ms", -1), ("min_speech_ms", 1001), ("max_segment_s", 1.9)],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        FrontSettings(**{name: value})  # type: ignore[arg-type]


def test_padding_longer_than_the_end_silence_waits_for_nothing() -> None:
    front = make(settings=FrontSettings(end_ms=100, pad_ms=2000, max_segment_s=2))
    (only,) = closed(play(front, sound(QUIET, voice(1), QUIET)))
    assert only.segment.start_sample == pytest.approx(RATE, abs=512)
    assert only.segment.end_sample == pytest.approx(2.6 * RATE, abs=1024)
