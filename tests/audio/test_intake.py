from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voiced.audio.frames import RATE_HZ, AudioFrame, Encoding, StreamFormat
from voiced.audio.intake import Intake
from voiced.audio.resample import StreamResampler
from voiced.audio.sources import synthetic


def pump(intake: Intake, data: bytes, block: int) -> list[AudioFrame]:
    frames = [intake.feed(data[i : i + block]) for i in range(0, len(data), block)]
    return [frame for frame in [*frames, intake.finish()] if frame is not None]


def joined(frames: list[AudioFrame]) -> npt.NDArray[np.float32]:
    return np.concatenate([frame.samples for frame in frames])


def sine(rate_hz: int, seconds: float, hz: float = 440) -> npt.NDArray[np.float32]:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


@given(
    rate_hz=st.sampled_from([4000, 8000, 11025, 16000, 22050, 44100, 48000, 192000]),
    count=st.integers(1, 20_000),
    block=st.integers(4, 9_000),
)
@settings(max_examples=60, deadline=None)
def test_length_follows_the_rate_and_frames_follow_each_other(
    rate_hz: int, count: int, block: int
) -> None:
    data = np.zeros(count, "<f4").tobytes()
    frames = pump(Intake(StreamFormat(Encoding.F32, rate_hz)), data, block)
    end = 0
    for frame in frames:
        assert frame.start_sample == end
        end = frame.end_sample
    assert abs(end - count * RATE_HZ / rate_hz) <= 1


@pytest.mark.parametrize("rate_hz", [8000, 44100, 48000])
def test_resampled_sound_does_not_depend_on_the_blocks(rate_hz: int) -> None:
    fmt = StreamFormat(Encoding.F32, rate_hz)
    for block, seconds in ((1, 0.2), (333, 1.0), (3840, 1.0)):
        data = sine(rate_hz, seconds).astype("<f4").tobytes()
        whole = joined(pump(Intake(fmt), data, len(data)))
        np.testing.assert_array_equal(joined(pump(Intake(fmt), data, block)), whole)


@pytest.mark.parametrize("rate_hz", [8000, 22050, 48000])
def test_resampled_sound_stays_in_place(rate_hz: int) -> None:
    data = sine(rate_hz, 1.0).astype("<f4").tobytes()
    out = joined(pump(Intake(StreamFormat(Encoding.F32, rate_hz)), data, 4096))
    middle = slice(2000, 14000)
    np.testing.assert_allclose(out[middle], sine(RATE_HZ, 1.0)[middle], atol=2e-3)


def test_48_khz_stereo_becomes_16_khz_mono() -> None:
    left = sine(48000, 0.5)
    stereo = np.stack([left, -left], axis=1).astype("<f4").tobytes()
    out = joined(pump(Intake(StreamFormat(Encoding.F32, 48000, 2)), stereo, 1000))
    assert len(out) == 8000
    assert np.abs(out).max() < 1e-6


def test_16_khz_s16_passes_bit_exact_in_blocks_of_one_sample() -> None:
    pcm = (synthetic.noise(0.1, seed=1) * 32768).astype("<i2")
    out = joined(pump(Intake(StreamFormat()), pcm.tobytes(), 2))
    np.testing.assert_array_equal(out * 32768, pcm)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_lost_audio_advances_the_clock_and_resampling_does_not_drift(rate_hz: int) -> None:
    intake = Intake(StreamFormat(Encoding.F32, rate_hz))
    block, lost = rate_hz // 7, rate_hz // 3
    total = 0
    for _ in range(20):
        intake.feed(bytes(4 * block))
        intake.lost(lost)
        total += block + lost
        assert abs(intake.end_sample - total * RATE_HZ / rate_hz) <= 1
    assert abs(intake.lost_samples - 20 * lost * RATE_HZ / rate_hz) <= 20


def test_the_tail_before_a_loss_is_not_smeared_across_it() -> None:
    intake = Intake(StreamFormat(Encoding.F32, 48000))
    first = intake.feed(sine(48000, 0.1).astype("<f4").tobytes())
    assert first is not None
    tail = intake.lost(48000)
    assert tail is not None
    assert first.end_sample == tail.start_sample
    assert tail.end_sample == 1600
    after = pump(intake, bytes(4 * 4800), 4 * 4800)
    assert after[0].start_sample == 1600 + 16000
    assert not joined(after).any()


def test_an_incomplete_sample_is_forgotten_at_a_loss() -> None:
    intake = Intake(StreamFormat())
    assert intake.feed(b"\x01") is None
    assert intake.pending_bytes == 1
    intake.lost(10)
    frame = intake.feed(b"\x00\x40")
    assert frame is not None
    assert (frame.start_sample, frame.samples.tolist()) == (10, [0.5])


def test_delay_is_what_went_in_and_did_not_come_out() -> None:
    resampler = StreamResampler(48000)
    out = resampler.feed(sine(48000, 0.5))
    delay = resampler.delay_samples
    assert delay == pytest.approx(8000 - len(out), abs=1)
    assert len(resampler.finish()) == pytest.approx(delay, abs=1)
    assert resampler.delay_samples == 0


def test_16_khz_needs_no_resampler_library() -> None:
    code = (
        "import sys\n"
        "from voiced.audio.frames import StreamFormat\n"
        "from voiced.audio.intake import Intake\n"
        "Intake(StreamFormat()).feed(bytes(640))\n"
        "sys.exit('soxr' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(
    rate_hz=st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=12),
    holds=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_blocks_that_wait_give_the_samples_of_blocks_that_do_not(
    rate_hz: int, sizes: list[int], holds: list[bool]
) -> None:
    fmt = StreamFormat(rate_hz=rate_hz)
    data = np.random.default_rng(5).integers(-9_000, 9_000, sum(sizes), np.int16).tobytes()
    data = data[: sum(sizes)]
    at_once = Intake(fmt)
    expected = pump(at_once, data, len(data) or 1)

    intake, begin = Intake(fmt), 0
    frames: list[AudioFrame | None] = []
    for size, hold in zip(sizes, holds, strict=False):
        block, begin = data[begin : begin + size], begin + size
        if hold:
            assert intake.hold(block) == begin // 2 * RATE_HZ // rate_hz
        else:
            frames.append(intake.feed(block))
    frames.append(intake.finish())
    found = [frame for frame in frames if frame is not None]
    assert [f.end_sample for f in found[:-1]] == [f.start_sample for f in found[1:]]
    assert bool(found) == bool(expected)
    if found:
        np.testing.assert_array_equal(joined(found), joined(expected))
    assert intake.end_sample == at_once.end_sample


def test_held_blocks_are_not_lost_by_a_gap_or_the_end() -> None:
    intake = Intake(StreamFormat())
    assert intake.hold(bytes(200)) == 100
    before = intake.lost(50)
    assert before is not None
    assert before.end_sample == 100
    assert intake.hold(bytes(20)) == 160
    last = intake.finish()
    assert last is not None
    assert (last.start_sample, last.end_sample) == (150, 160)


def test_tiny_blocks_that_wait_are_joined_and_come_out_the_same() -> None:
    data = bytes(range(200)) * 2
    tiny, whole = Intake(StreamFormat()), Intake(StreamFormat())
    for at in range(len(data)):
        assert tiny.hold(data[at : at + 1]) == (at + 1) // 2
    assert len(tiny._held) <= 64
    frame, expected = tiny.feed(), whole.feed(data)
    assert frame is not None
    assert expected is not None
    np.testing.assert_array_equal(frame.samples, expected.samples)
