from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voiced.audio.features.whisper import FLOOR, PEAK, frames_touched, log_mel, mel_filters
from voiced.engine.build.graph import Precision, quantise_columns
from voiced.engine.build.whisper_bundle import byte_alphabet, read_tokens
from voiced.engine.decode import Hypothesis
from voiced.engine.errors import BundleError, FetchError
from voiced.engine.families.whisper import (
    SHORT_GEAR,
    SHORT_S,
    SHORT_TAIL,
    ResidentInfo,
    Vocabulary,
    WhisperModelInfo,
    choose_language,
    clean_text,
    frames_needed,
    is_no_speech,
    join_pieces,
    least_gear,
    max_tokens,
    tail_length,
)


def tone(seconds: float, hz: float = 440.0) -> np.ndarray:
    t = np.arange(round(seconds * 16_000)) / 16_000
    return (np.sin(2 * np.pi * hz * t) * 8000).astype(np.int16)


def test_the_loudest_bin_is_the_peak_and_silence_is_the_floor() -> None:
    features = log_mel(tone(1.0), 300)
    assert features.shape == (1, 80, 300)
    assert features.max() == pytest.approx(PEAK)
    assert features.min() >= FLOOR
    assert np.all(features[:, :, frames_touched(16_000) :] == FLOOR)


def test_features_do_not_depend_on_loudness_or_on_the_gear() -> None:
    quiet = (tone(1.0) // 8).astype(np.int16)
    loud = log_mel(tone(1.0), 150)
    # the least significant bit of the quiet one is audible near the floor only
    high = loud > 0
    assert np.abs(log_mel(quiet, 150) - loud)[high].max() < 0.02
    assert np.array_equal(log_mel(tone(1.0), 300)[:, :, :150], loud)


def test_features_of_nothing_are_silence() -> None:
    assert np.all(log_mel(np.zeros(0, np.int16), 150) == FLOOR)


def test_audio_longer_than_the_gear_is_cut_not_wrapped() -> None:
    assert log_mel(tone(3.0), 150).shape == (1, 80, 150)


def test_a_tone_lands_in_the_filter_of_its_pitch() -> None:
    filters = mel_filters(80)
    assert filters.shape == (201, 80)
    loudest = int(log_mel(tone(1.0, 1000), 100)[0, :, 50].argmax())
    assert loudest == int(filters[25].argmax())  # bin 25 of 40 Hz each


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_EXACT])
def test_quantised_columns_are_within_half_a_step(precision: Precision) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    weight[:, 3] = 0
    quantised, scale, zero = quantise_columns(weight, precision)
    back = (quantised.astype(np.float32) - zero.astype(np.float32)) * scale
    assert np.abs(back - weight).max() <= scale.max() / 2 + 1e-6


def test_int8_products_cannot_saturate_sixteen_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    quantised, _, _ = quantise_columns(weight, Precision.INT8)
    assert 2 * 255 * int(np.abs(quantised.astype(np.int32)).max()) <= 32767


def test_a_character_cut_in_half_is_left_out() -> None:
    words = Vocabulary([10, 11, 12], [b"ab", "中".encode()[:2], "中".encode()[2:]])
    assert words.text([0, 1]) == "ab"
    assert words.text([0, 1, 2]) == "ab中"


def test_mandarin_is_written_in_simplified_characters() -> None:
    assert clean_text(" 視頻截圖 ", "zh") == "视频截图"
    assert clean_text(" 視頻 ", "ja") == "視頻"


def test_only_configured_languages_are_chosen() -> None:
    chosen = choose_language([0.0, 5.0, 9.0], ["en", "zh", "ja"], ["en", "zh"])
    assert chosen.code == "zh"
    assert chosen.probability == pytest.approx(1 / (1 + np.exp(-5)))


def test_a_word_alone_has_a_gear_and_a_shorter_silence_of_its_own() -> None:
    model = WhisperModelInfo(80, 512, 8, 6, 6, 1500, 448)
    assert least_gear(int(SHORT_S * 16_000)) <= SHORT_GEAR < least_gear(int(SHORT_S * 16_000) + 1)
    assert least_gear(16_000 * 3) == 300
    assert tail_length(SHORT_GEAR, 1500, model) == SHORT_TAIL
    assert tail_length(SHORT_GEAR, 100, model) == 100
    assert tail_length(150, 1500, model) == 1500 - 75


def test_limits_grow_with_the_audio() -> None:
    assert frames_needed(16_000) == 100
    assert frames_needed(16_001) == 101
    assert max_tokens(0, 448) == 8
    assert max_tokens(16_000, 448) == 16
    assert max_tokens(16_000 * 60, 448) == 224


def test_an_answer_is_distrusted_when_both_signs_say_so_or_it_never_ended() -> None:
    good = Hypothesis((1,), -0.2, ended=True)
    bad = Hypothesis((1,), -1.2, ended=True)
    assert not is_no_speech(good, 0.9)
    assert not is_no_speech(bad, 0.1)
    assert is_no_speech(bad, 0.7)
    assert is_no_speech(Hypothesis((1,), -0.1, ended=False), 0.0)


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {}}, "added_tokens": []}))
    with pytest.raises(FetchError, match="no Whisper tokenizer"):
        read_tokens(path)


def test_every_byte_has_its_own_letter() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet.values())) == 256
    assert alphabet[ord("a")] == "a"
    assert alphabet[ord(" ")] == "Ġ"


def test_pieces_are_joined_as_their_scripts_ask() -> None:
    assert join_pieces([("你好", "zh"), ("世界", "zh")]) == "你好世界"
    assert join_pieces([("你好", "zh"), ("", "en"), ("world", "en")]) == "你好 world"
    assert join_pieces([("a", "en"), ("b", "en")]) == "a b"
    assert join_pieces([]) == ""


def test_a_beam_wider_than_the_rows_of_the_graph_is_refused_and_says_what_to_set(
    tmp_path: Path,
) -> None:
    resident = ResidentInfo(rows=5, dtype="float16", places="places.bin", spans=())
    resident.refuse_wider(5, tmp_path)
    with pytest.raises(BundleError, match=r"a decoder of 5 rows.*engine.beam to 5 or less"):
        resident.refuse_wider(6, tmp_path)


def test_position_encodings_are_rows_of_the_models_width(tmp_path: Path) -> None:
    np.arange(12, dtype=np.float32).tofile(tmp_path / "places.bin")
    resident = ResidentInfo(rows=5, dtype="float32", places="places.bin", spans=())
    places = resident.read_places(tmp_path, 4)
    assert places.shape == (3, 4)
    assert places[1].tolist() == [4, 5, 6, 7]
