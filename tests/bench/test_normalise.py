from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.bench.normalise import (
    best_normaliser,
    builtin_normaliser,
    english_words,
    mandarin_characters,
    read_number,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("And so, my fellow Americans:", "and so my fellow americans"),
        ("It isn't; I can't. You\N{RIGHT SINGLE QUOTATION MARK}re", "it is not i can not you are"),
        ("Um, the well-known [noise] plan (laughs)", "the well known plan"),
        ("twenty-one percent", "21 percent"),
        ("21%", "21 percent"),
        ("fourteen sixty-two", "1462"),
        ("in nineteen hundred and five", "in 1905"),
        ("two thousand and five", "2005"),
        ("one hundred and one and two", "101 and 2"),
        ("205,301 of three million", "205301 of 3000000"),
        ("two hundred and five thousand three hundred and one", "205301"),
        ("one two three", "123"),
        ("1, 2, 3.", "123"),
        ("black and white", "black and white"),
        ("", ""),
    ],
)
def test_english_is_reduced_to_its_words(text: str, words: str) -> None:
    assert english_words(text) == words


@given(st.text(max_size=80))
def test_reducing_english_twice_changes_nothing(text: str) -> None:
    once = english_words(text)
    assert english_words(once) == once


@given(st.integers(0, 999_999))
def test_written_and_spoken_english_numbers_are_the_same(value: int) -> None:
    assert english_words(spoken(value)) == english_words(f"{value:,}")


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("星巴克咖啡(虹桥西航二店)", "星巴克咖啡虹桥西航二店"),
        ("打开 KTV。", "打开ktv"),
        ("2019年有10%的人", "二零一九年有百分之十的人"),
        ("三百二十块", "三百二十块"),
        ("320块", "三百二十块"),
        ("3.5万", "三点五万"),
        ("1,005个", "一千零五个"),
        ("13800138000", "一三八零零一三八零零零"),
        ("幺三八两个", "一三八二个"),
        ("007", "零零七"),
    ],
)
def test_mandarin_is_reduced_to_what_is_said(text: str, characters: str) -> None:
    assert "".join(mandarin_characters(text)) == characters


@given(st.text(max_size=80))
def test_reducing_mandarin_twice_changes_nothing(text: str) -> None:
    once = "".join(mandarin_characters(text))
    assert "".join(mandarin_characters(once)) == once


@given(st.integers(0, 99_999_999))
def test_a_mandarin_numeral_has_the_value_it_was_read_from(value: int) -> None:
    assert value_of_numeral(read_number(value)) == value


@pytest.mark.parametrize(
    ("value", "numeral"),
    [
        (0, "零"),
        (10, "十"),
        (12, "十二"),
        (110, "一百一十"),
        (1005, "一千零五"),
        (10_010, "一万零一十"),
        (100_100, "十万零一百"),
        (20_345_678, "二千零三十四万五千六百七十八"),
    ],
)
def test_known_mandarin_numerals(value: int, numeral: str) -> None:
    assert read_number(value) == numeral


def test_traditional_script_is_no_error() -> None:
    normaliser = builtin_normaliser()
    assert normaliser.units("打開車窗", "zh") == normaliser.units("打开车窗", "zh")


def test_the_kept_english_normaliser_is_used_where_it_is_installed() -> None:
    pytest.importorskip("text_to_num", reason="dependency group `peers` is not installed")
    normaliser = best_normaliser()
    assert normaliser.name == "whisper-normalizer"
    words = normaliser.units("The colour, of Mr. Smith", "en")
    assert words == ["the", "color", "of", "mister", "smith"]


def test_without_the_kept_normaliser_our_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whisper_normalizer", "whisper_normalizer.english"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert best_normaliser() == builtin_normaliser()


def test_the_report_can_tell_which_normaliser_was_used() -> None:
    assert builtin_normaliser().name == "built-in"
    assert builtin_normaliser().units("Hello, World", "en") == ["hello", "world"]
    assert builtin_normaliser().units("你好!", "zh") == ["你", "好"]


def value_of_numeral(numeral: str) -> int:
    """Read a numeral back, unit by unit."""
    units = {"十": 10, "百": 100, "千": 1000}
    total, section, digit = 0, 0, 0
    for char in numeral:
        if char == "万":
            total, section, digit = (section + digit) * 10_000, 0, 0
        elif char in units:
            section, digit = section + (digit or 1) * units[char], 0
        else:
            digit = "零一二三四五六七八九".index(char)
    return total + section + digit


def spoken(value: int) -> str:
    """Say a number below a million as people do."""
    small = (
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
        *("eighteen", "nineteen"),
    )
    tens = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
    if value < 20:
        return small[value]
    if value < 100:
        rest = f" {small[value % 10]}" if value % 10 else ""
        return tens[value // 10 - 2] + rest
    if value < 1000:
        rest = f" and {spoken(value % 100)}" if value % 100 else ""
        return f"{small[value // 100]} hundred{rest}"
    rest = f" {spoken(value % 1000)}" if value % 1000 else ""
    return f"{spoken(value // 1000)} thousand{rest}"
