"""From FireRedASR's tokens to a text that people read."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import pytest

from voiced.engine import text as text_module
from voiced.engine.errors import TextPolicyUnavailable
from voiced.engine.families.fireredasr_text import Casing, Tokens, Writing, language_of, raw_text
from voiced.engine.families.fireredasr_words import TimedToken
from voiced.engine.text import load_policy

SPELLED = ["\u2581HEL", "LO", "\u2581WORLD"]


def test_pieces_are_joined_as_published() -> None:
    assert raw_text(SPELLED) == "HELLO WORLD"
    assert raw_text(["你", "好", *SPELLED, "世"]) == "你好 HELLO WORLD世"
    assert raw_text(["<blank>", "你", "<sil>", "好", "<unk>", "<sos>"]) == "你好"
    assert raw_text([]) == ""


@pytest.mark.parametrize(
    ("casing", "version", "text"),
    [
        (Casing.MODEL, 1, "HELLO WORLD"),
        (Casing.MODEL, 2, "hello world"),
        (Casing.UPPER, 2, "HELLO WORLD"),
        (Casing.LOWER, 1, "hello world"),
    ],
)
def test_the_casing_is_the_versions_or_the_chosen_one(
    casing: Casing, version: int, text: str
) -> None:
    assert Writing(casing, version).text(SPELLED) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["打", "开", "\u2581wi", "fi", "吧"], "打开 wifi 吧"),
        (["我", "有", "3", "个"], "我有 3 个"),
        (["\u2581a", "中", "b"], "a 中 b"),
        (["中", "文"], "中文"),
        (["你", "，", "好"], "你，好"),  # punctuation needs no space
        (["\u2581it", "'", "s"], "it's"),
    ],
)
def test_a_space_stands_between_mandarin_and_what_is_none(pieces: list[str], text: str) -> None:
    assert Writing().text(pieces) == text
    assert " ".join(Writing(spaces=False).text(pieces).split()) == raw_text(pieces).strip()


def test_words_of_an_alignment_are_written_alike_and_marks_are_none() -> None:
    words = [
        TimedToken("HELLO", 0, 1, 0.5),
        TimedToken("<sil>", 1, 2, 0.5),
        TimedToken("", 2, 3, 0.5),
        TimedToken("好", 3, 4, 0.5),
    ]
    assert [w.text for w in Writing().words(words)] == ["hello", "好"]


def test_the_language_is_that_of_the_script() -> None:
    assert [language_of(t) for t in ("打开 wifi", "hello", "123", "")] == ["zh", "en", None, None]


def test_tokens_are_read_in_the_order_of_the_lines(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("<blank>\n<unk>\n \n\u2028\n好\n", encoding="utf-8")
    tokens = Tokens.read(file)
    assert len(tokens) == 5
    assert tokens.written([4, 2, 3]) == ["好", " ", "\u2028"]


# ---- steps -------------------------------------------------------------------------------------


def test_without_steps_a_text_stays_as_it_is() -> None:
    assert load_policy([])("二十二点五度", "zh") == "二十二点五度"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("把空调调到二十二点五度", "zh", "把空调调到22.5°"),
        ("打开 wifi 二十次", "zh", "打开 wifi 20次"),
        ("一些人", "zh", "一些人"),
        ("set the timer for twenty two minutes", "en", "set the timer for 22 min"),
        ("SET THE TIMER FOR TWENTY TWO MINUTES", "en", "SET THE TIMER FOR 22 MIN"),
        ("vingt deux", "fr", "vingt deux"),
        ("", "zh", ""),
    ],
)
def test_itn_writes_numbers_as_digits(text: str, language: str, expected: str) -> None:
    assert load_policy(["itn"])(text, language) == expected


def test_itn_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wetext", None)
    with pytest.raises(TextPolicyUnavailable, match=r"needs the package wetext .*voiced\[itn\]"):
        load_policy(["itn"])


class Dots:
    """A step as another package would bring it."""

    def __call__(self, text: str, language: str) -> str:
        return f"{text}{'。' if language == 'zh' else '.'}"


def test_steps_of_other_packages_run_in_the_order_of_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = EntryPoints(
        [
            EntryPoint("dots", f"{__name__}:Dots", text_module.GROUP),
            EntryPoint("gone", "no_such_package:Step", text_module.GROUP),
        ]
    )
    monkeypatch.setattr(text_module, "entry_points", points.select)
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Dots=Dots))
    assert load_policy(["itn", "dots"])("二十二度", "zh") == "22°。"
    with pytest.raises(TextPolicyUnavailable, match=r"'gone' cannot be loaded: No module"):
        load_policy(["gone"])
    with pytest.raises(TextPolicyUnavailable, match=r"no text step 'dot'.*dots, gone, itn"):
        load_policy(["dot"])
