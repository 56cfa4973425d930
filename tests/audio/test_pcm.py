from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.audio.frames import Encoding, StreamFormat
from voiced.audio.pcm import PcmReader, float_to_int16, frame_bytes


def read(data: bytes, encoding: Encoding, channels: int = 1) -> list[float]:
    return PcmReader(StreamFormat(encoding, channels=channels)).feed(data).tolist()


def test_s16_is_scaled_by_32768() -> None:
    data = np.array([0, 1, -1, 32767, -32768], "<i2").tobytes()
    assert read(data, Encoding.S16) == [0, 1 / 32768, -1 / 32768, 32767 / 32768, -1]


def test_s32_is_scaled_by_its_full_range() -> None:
    data = np.array([0, 1 << 30, -(1 << 31), (1 << 31) - 1], "<i4").tobytes()
    assert read(data, Encoding.S32) == [0, 0.5, -1, 1]


def test_f32_reads_nan_and_infinity_as_silence_and_clips_the_rest() -> None:
    data = np.array([0.25, math.nan, math.inf, -math.inf, 1.5, -7], "<f4").tobytes()
    assert read(data, Encoding.F32) == [0.25, 0, 0, 0, 1, -1]


@pytest.mark.parametrize(
    ("encoding", "code", "value"),
    [  # ITU-T G.711: end points, smallest steps and one value in the middle of a chord
        (Encoding.MULAW, 0xFF, 0),
        (Encoding.MULAW, 0x7F, 0),
        (Encoding.MULAW, 0xFE, 8),
        (Encoding.MULAW, 0x80, 32124),
        (Encoding.MULAW, 0x00, -32124),
        (Encoding.MULAW, 0xC0, 1884),
        (Encoding.ALAW, 0xD5, 8),
        (Encoding.ALAW, 0x55, -8),
        (Encoding.ALAW, 0xAA, 32256),
        (Encoding.ALAW, 0x2A, -32256),
    ],
)
def test_g711_codes_decode_to_the_standard_values(
    encoding: Encoding, code: int, value: int
) -> None:
    assert read(bytes([code]), encoding)[0] * 32768 == value


@pytest.mark.parametrize("encoding", [Encoding.MULAW, Encoding.ALAW])
def test_g711_magnitudes_grow_by_steps_that_never_shrink(encoding: Encoding) -> None:
    values = np.unique(np.abs(read(bytes(range(256)), encoding)))
    assert len(values) == 128
    assert np.all(np.diff(values, n=2) >= 0)


def test_channels_are_mixed_by_their_mean() -> None:
    data = np.array([1000, 3000, -500, 500], "<i2").tobytes()
    assert read(data, Encoding.S16, channels=2) == [2000 / 32768, 0]


@given(
    encoding=st.sampled_from(Encoding),
    channels=st.integers(1, 3),
    data=st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_chopping_the_bytes_changes_nothing(
    encoding: Encoding, channels: int, data: bytes, cuts: list[int]
) -> None:
    fmt = StreamFormat(encoding, channels=channels)
    whole, chopped = PcmReader(fmt), PcmReader(fmt)
    expected = whole.feed(data)
    edges = [0, *sorted(cuts), len(data)]
    blocks = [data[a:b] for a, b in itertools.pairwise(edges) if a <= len(data)]
    parts = [chopped.feed(memoryview(block)) for block in blocks]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert chopped.pending_bytes == whole.pending_bytes == len(data) % frame_bytes(fmt)


@given(st.binary(max_size=400).map(lambda b: b[: len(b) // 4 * 4]))
def test_any_f32_bytes_become_finite_samples_in_range(data: bytes) -> None:
    samples = PcmReader(StreamFormat(Encoding.F32)).feed(data)
    assert np.all(np.abs(samples) <= 1)


def test_every_int16_survives_the_way_through_float() -> None:
    every = np.arange(-32768, 32768, dtype="<i2")
    samples = PcmReader(StreamFormat()).feed(every.tobytes())
    np.testing.assert_array_equal(float_to_int16(samples), every)


def test_full_scale_float_saturates() -> None:
    assert float_to_int16(np.array([1.0, -1.0], np.float32)).tolist() == [32767, -32768]
