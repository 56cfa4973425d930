"""Recogniser text → the plain form that sentence templates are written in. Pure.

Two writing systems: words between spaces (English) and characters without them (Mandarin).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "′": "'"})
_INITIALISM = re.compile(r"\b(?:[a-z]\.){2,}|\b([a-z])/([a-z])\b")
_DEGREE_SIGN = re.compile(r"(?<=\d)\s*(?:°\s*([cf])?\b|°|º)")
# Kept: letters, digits, apostrophes inside words, a point between digits, a minus before a digit
# at the start of a word.
_NOT_TEXT = re.compile(r"(?!(?<=\w)'(?=\w))(?!(?<=\d)\.(?=\d))(?!(?<!\w)-(?=\d))[^\w\s]|_")
_SPACE = re.compile(r"\s+")
_SPACE_BESIDE_CJK = re.compile(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])")
_UNITS = {"c": " degrees celsius ", "f": " degrees fahrenheit ", None: " degrees "}

_SPELLED = "〇零一二三四五六七八九幺"
_DIGIT_OF = {char: str(n) for n, char in enumerate("零一二三四五六七八九")} | {"〇": "0", "幺": "1"}
_DIGIT_BY_DIGIT = re.compile(
    rf"(?<![十百千万点第])[{_SPELLED}]{{2,}}(?:点[{_SPELLED}]+)?(?![十百千万点])"
)


def fold(text: str, characters: Mapping[int, str]) -> str:
    """Remove width, case and variant forms; `characters` is a `str.translate` table."""
    return unicodedata.normalize("NFKC", text).translate(characters).casefold()


def normalize_words(text: str, characters: Mapping[int, str]) -> str:
    """Plain form of a language that writes spaces: lower-case words, single spaces."""
    text = fold(text, characters).translate(_APOSTROPHES)
    text = _INITIALISM.sub(lambda m: re.sub(r"[^a-z]", "", m[0]) + " ", text)
    text = _DEGREE_SIGN.sub(lambda m: _UNITS[m[1]], text)
    text = re.sub(r"(?<=\d)\s*%", " percent", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " ", text)
    text = _collapse(_NOT_TEXT.sub(" ", text))
    text = text.replace("hundred and ", "hundred ").replace(" and a half", " point five")
    return re.sub(r"\bone oh (?=\w)", "one hundred ", text)


def normalize_characters(text: str, characters: Mapping[int, str]) -> str:
    """Plain form of a language without spaces; only Latin words keep the ones between them."""
    text = fold(text, characters)
    text = re.sub(r"(?<=\d)\s*(?:°\s*c?|º)", "度", text)
    text = re.sub(r"(\d+)\s*%", r"百分之\1", text)
    text = _SPACE_BESIDE_CJK.sub("", _collapse(_NOT_TEXT.sub(" ", text)))
    text = _DIGIT_BY_DIGIT.sub(_to_digits, text)
    return re.sub(r"(?<=\d)度半", ".5度", re.sub(r"(?<=[二三四五六七八九十])度半", "点五度", text))


def normalizer(*, ignore_whitespace: bool) -> Callable[[str, Mapping[int, str]], str]:
    """The function for a language, by hassil's setting of the same name."""
    return normalize_characters if ignore_whitespace else normalize_words


def _to_digits(match: re.Match[str]) -> str:
    return "".join(_DIGIT_OF.get(char, ".") for char in match[0])


def _collapse(text: str) -> str:
    return _SPACE.sub(" ", text).strip()
