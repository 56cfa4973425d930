"""The filter bank of FireRedASR against an implementation of its own, step by step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.audio.fireredasr_sounds import CMVN_SEED, GOLDENS, SOUNDS
from tests.audio.fireredasr_sounds import sound as sound_of
from tests.engine.fireredasr_cases import unpacked
from tests.engine.tiny_fireredasr import cmvn

from voiced.audio.features.kaldi import MELS, Cmvn, features, filter_bank, frames_of
from voiced.engine.build.fireredasr_checkpoint import read_cmvn

Pcm = npt.NDArray[np.int16]


def mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1127.0 * np.log(1.0 + hz / 700.0)


def reference(pcm: Pcm) -> npt.NDArray[np.float64]:
    """Kaldi's definition in float64."""
    count = 0 if len(pcm) < 400 else 1 + (len(pcm) - 400) // 160
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85  # povey
    edges = np.linspace(mel(np.array(20.0)), mel(np.array(8000.0)), 82)
    bins = mel(np.arange(257) * 16000 / 512)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[256] = 0  # Kaldi leaves the Nyquist bin out
    rows = []
    for i in range(count):
        frame = pcm[i * 160 : i * 160 + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        rows.append(np.log(np.maximum(power @ filters, np.finfo(np.float32).eps)))
    return np.array(rows).reshape(count, 80)


def sound(samples: int, seed: int = 0) -> Pcm:
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 16000
    tone = 8000 * np.sin(2 * np.pi * (300 + 400 * time) * time)
    return np.clip(tone + random.normal(0, 1500, samples), -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("samples", [400, 559, 560, 4000, 16_000, 16_159])
def test_the_filter_bank_is_kaldis(samples: int) -> None:
    found = filter_bank(sound(samples))
    assert found.dtype == np.float32
    expected = reference(sound(samples))
    assert found.shape == expected.shape == (frames_of(samples), MELS)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("samples", [0, 1, 160, 399])
def test_less_than_one_window_has_no_frame(samples: int) -> None:
    assert filter_bank(sound(samples)).shape == (0, MELS)


def test_digital_silence_is_the_floor_in_every_bin() -> None:
    np.testing.assert_allclose(filter_bank(np.zeros(1600, np.int16)), -15.942385, atol=1e-5)


def test_full_scale_is_not_divided_away() -> None:
    quiet, loud = filter_bank(sound(1600) // 64), filter_bank((sound(1600) // 64) * 32)
    np.testing.assert_allclose(loud - quiet, 2 * np.log(32), atol=2e-3)


def test_every_frame_depends_on_its_own_window_only() -> None:
    pcm = sound(8000)
    whole = filter_bank(pcm)
    np.testing.assert_array_equal(filter_bank(pcm[:4240]), whole[:25])
    np.testing.assert_array_equal(filter_bank(pcm[1600:]), whole[10:])


def test_normalised_features_are_computed_in_double_precision(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    mean, inverse = random.normal(10, 1, MELS), random.uniform(0.2, 0.4, MELS)
    np.stack([mean, inverse]).tofile(tmp_path / "cmvn")
    pcm = sound(1600)
    found = features(pcm, Cmvn.read(tmp_path / "cmvn"))
    assert found.dtype == np.float32
    expected = (filter_bank(pcm).astype(np.float64) - mean) * inverse
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_normalisation_of_another_size_is_refused(tmp_path: Path) -> None:
    np.zeros(2 * MELS + 1).tofile(tmp_path / "cmvn")
    with pytest.raises(ValueError, match=r"cmvn: found 161 numbers, expected 160"):
        Cmvn.read(tmp_path / "cmvn")


@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_those_of_the_published_front_end(name: str, tmp_path: Path) -> None:
    stored = unpacked(json.loads(GOLDENS.read_text(encoding="utf-8"))[name])
    (tmp_path / "cmvn.ark").write_bytes(cmvn(CMVN_SEED))
    read_cmvn(tmp_path / "cmvn.ark", MELS).tofile(tmp_path / "cmvn")
    found = features(sound_of(name), Cmvn.read(tmp_path / "cmvn"))
    assert found.shape == stored.shape
    assert np.abs(found - stored).max() <= 1e-5
