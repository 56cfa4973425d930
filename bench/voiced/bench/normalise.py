"""Texts → the words or characters that are compared.

English prefers the `whisper-normalizer` package (group `peers`), the normaliser that published
Whisper figures use; without it a small one of our own covers case, punctuation, contractions,
fillers and numbers. Mandarin: simplified script (`opencc`), no punctuation, Arabic digits read out
as numerals. A report names the normaliser it used: figures of different ones are not comparable.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

TextRule = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Splits a text into its scored units."""

    name: str
    """The English rules, for the report."""
    english: TextRule

    def units(self, text: str, language: str) -> list[str]:
        """Return characters for Mandarin, words for every other language."""
        if language == "zh":
            return mandarin_characters(_simplifier()(text))
        return self.english(text).split()


def best_normaliser() -> Normaliser:
    """Return the normaliser of published figures where it is installed, else our own."""
    try:
        with warnings.catch_warnings():
            # 0.1.15 has an invalid escape in a docstring.
            warnings.simplefilter("ignore")
            from whisper_normalizer.english import EnglishTextNormalizer
    except ModuleNotFoundError:
        return builtin_normaliser()
    return Normaliser("whisper-normalizer", cast(TextRule, EnglishTextNormalizer()))


def builtin_normaliser() -> Normaliser:
    """Return our own rules for English."""
    return Normaliser("built-in", english_words)


@functools.cache
def _simplifier() -> TextRule:
    from opencc import OpenCC

    return cast(TextRule, OpenCC("t2s").convert)


# ---- English -----------------------------------------------------------------------------------

_FILLERS = {"uh", "um", "hm", "hmm", "mm", "mhm", "er"}
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_SCALES = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_NUMBER_WORDS = {*_NUMBERS, *_SCALES, "hundred"}
_CONTRACTIONS = (
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'m\b"), " am"),
)


def english_words(text: str) -> str:
    """Return lower-case words separated by one space, numbers as digits.

    Idempotent. Number words become digits ("twenty one" → "21", "nineteen sixty two" → "1962"),
    single digits in a row are joined ("one two three" → "123"), as are "1, 2, 3".
    """
    text = (
        unicodedata.normalize("NFKC", text)
        .casefold()
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    text = re.sub(r"\[[^\]]*\]|\([^)]*\)", " ", text)  # notes of the transcriber: [noise]
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    text = text.replace("%", " percent ").replace("'", "")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    words = [word for word in re.sub(r"[\W_]+", " ", text).split() if word not in _FILLERS]
    return " ".join(_join_digits(_numbers_to_digits(words)))


def _numbers_to_digits(words: Sequence[str]) -> list[str]:
    """Replace every run of number words ("two hundred and five") by digits."""
    done: list[str] = []
    run: list[str] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        links = word == "and" and run and run[-1] in {"hundred", *_SCALES}
        if word in _NUMBER_WORDS:
            run.append(word)
        elif not (links and following in _NUMBERS):
            done.extend(_run_to_digits(run))
            run = []
            done.append(word)
    done.extend(_run_to_digits(run))
    return done


def _run_to_digits(run: Sequence[str]) -> list[str]:
    """Read a run of number words as one or several numbers."""
    done: list[str] = []
    total, group = 0, -1  # finished thousands; what stands before the next scale, -1: nothing

    def finish() -> None:
        nonlocal total, group
        if total or group >= 0:
            done.append(str(total + max(group, 0)))
        total, group = 0, -1

    for word in run:
        if word in _SCALES:
            total, group = total + (group if group >= 0 else 1) * _SCALES[word], -1
        elif word == "hundred":
            if group >= 100:
                finish()
            group = 100 * (group if group >= 0 else 1)
        else:
            value = _NUMBERS[word]
            after_hundred = group > 0 and group % 100 == 0
            after_tens = group % 100 >= 20 and group % 10 == 0 and 0 < value < 10
            if group < 0 or (after_hundred and value > 0) or (after_tens and group > 0):
                group = max(group, 0) + value
            elif 10 <= group <= 99 and value >= 10:  # a year: nineteen sixty
                group = 100 * group + value
            else:
                finish()
                group = value
    finish()
    return done


def _join_digits(words: Sequence[str]) -> list[str]:
    done: list[str] = []
    joining = False
    for word in words:
        single = len(word) == 1 and word.isdecimal()
        if single and joining:
            done[-1] += word
        else:
            done.append(word)
        joining = single
    return done


# ---- Mandarin ----------------------------------------------------------------------------------

_DIGITS = "零一二三四五六七八九"
_ALIKE = str.maketrans({"两": "二", "幺": "一", "〇": "零"})
_SPELLED_FROM = 7
"""Digits from which a number is read one by one: a telephone number, not an amount."""


def mandarin_characters(text: str) -> list[str]:
    """Return the characters that are said: no punctuation, no spaces, digits as numerals.

    Latin letters are lower case, one unit each. The readings of 2 (两) and 1 (幺) are taken as
    equal to 二 and 一.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)%", r"百分之\1", text)
    text = re.sub(r"(\d+)(?:\.(\d+))?(年?)", _read_match, text)
    return [char for char in text.translate(_ALIKE) if char.isalnum()]


def _read_match(match: re.Match[str]) -> str:
    whole, decimals, year = match.groups()
    if (
        (year and len(whole) == 4)
        or len(whole) >= _SPELLED_FROM
        or (len(whole) > 1 and whole[0] == "0")
    ):
        read = _spell(whole)
    else:
        read = read_number(int(whole))
    return read + (f"点{_spell(decimals)}" if decimals else "") + year


def _spell(digits: str) -> str:
    return "".join(_DIGITS[int(digit)] for digit in digits)


def read_number(value: int) -> str:
    """Read 0 to 9999 9999 as a Mandarin numeral: 10 → 十, 110 → 一百一十, 1005 → 一千零五."""
    high, low = divmod(value, 10_000)
    if not high:
        return _read_below_10000(low) if low else _DIGITS[0]
    linked = _DIGITS[0] if 0 < low < 1_000 else ""
    return f"{_read_below_10000(high)}万{linked}{_read_below_10000(low, leading=False)}"


def _read_below_10000(value: int, *, leading: bool = True) -> str:
    read, gap = "", False
    for power, unit in ((1_000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // power % 10
        if digit == 0:
            gap = bool(read)
            continue
        read += (_DIGITS[0] if gap else "") + _DIGITS[digit] + unit
        gap = False
    return read[1:] if leading and read.startswith("一十") else read
