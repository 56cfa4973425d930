"""Sentence files, the plain form of text, guards, and the plugin around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.plugins.errors import SentencesError
from voiced.plugins.intents.matcher import Matcher
from voiced.plugins.intents.normalize import normalize_characters, normalize_words
from voiced.plugins.intents.plugin import IntentsPlugin
from voiced.plugins.intents.sentences import Guard, build_set, load_sentences
from voiced.plugins.sdk import IntentPublisher, PluginContext
from voiced.plugins.testing import FakeBus

OWN = """
language: en
intents:
  MakeCoffee:
    data:
      - sentences: ["(make|brew) [me] a {drink}"]
  ClimateOn:
    data:
      - sentences: ["let there be cold"]
lists:
  drink: {values: [{in: "(coffee|cup of coffee)", out: coffee}]}
"""


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with FakeBus() as bus:
        yield bus


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Turn ON the A/C, please!  ", "turn on the ac please"),
        ("the A.C.", "the ac"),
        ("twenty-two", "twenty two"),
        ("It’s 22.5°C.", "it's 22.5 degrees celsius"),
        ("72 °F", "72 degrees fahrenheit"),
        ("-5 degrees", "-5 degrees"),
        ("５０％", "50 percent"),
        ("one hundred and five", "one hundred five"),
        ("nineteen and a half degrees", "nineteen point five degrees"),
        ("…", ""),
    ],
)
def test_words_get_a_plain_form(text: str, plain: str) -> None:
    assert normalize_words(text, {}) == plain


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("打 开 空 调 。", "打开空调"),
        ("２２．５℃", "22.5度"),
        ("22度半", "22.5度"),
        ("二十二度半", "二十二点五度"),
        ("50%", "百分之50"),
        ("播放 Hey Jude 这首歌", "播放hey jude这首歌"),
        ("一零三点七", "103.7"),
        ("八十七点五", "八十七点五"),
        ("第二十", "第二十"),
    ],
)
def test_characters_get_a_plain_form(text: str, plain: str) -> None:
    assert normalize_characters(text, {}) == plain


@given(st.text())
def test_the_plain_form_of_words_has_single_spaces_and_no_capitals(text: str) -> None:
    plain = normalize_words(text, {})
    assert plain == " ".join(plain.split())
    assert plain == plain.casefold()


def test_a_guard_judges_whole_words() -> None:
    guard = Guard(max_words=3, not_start=("it",), not_contain=("and then",), must_end=("road",))
    assert guard.allows("italian road", has_spaces=True)
    assert not guard.allows("it road", has_spaces=True)
    assert not guard.allows("one and then road", has_spaces=True)
    assert not guard.allows("a much too long road", has_spaces=True)
    assert not guard.allows("abroad", has_spaces=True)
    assert Guard(must_end=("路",)).allows("中山路", has_spaces=False)


def test_own_sentences_come_on_top_of_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    matcher = Matcher(load_sentences(tmp_path))
    coffee = matcher.match("Please brew me a cup of coffee.", "en")
    assert coffee is not None
    assert (coffee.name, coffee.slots) == ("MakeCoffee", {"drink": "coffee"})
    for text in ("let there be cold", "turn on the ac"):
        climate = matcher.match(text, "en")
        assert climate is not None
        assert climate.name == "ClimateOn"


def test_the_built_in_sentences_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    matcher = Matcher(load_sentences(tmp_path, builtin=False))
    assert matcher.languages == ("en",)
    assert matcher.match("turn off the ac", "en") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("intents: [", "not YAML"),
        ("intents: {}", "expected a table with `language: CODE`"),
        ("{language: en, intents: {A: {data: [{sentences: ['a {gone} list']}]}}}", "list {gone}"),
        ("{language: en, intents: {A: {data: [{sentences: ['a <gone> rule']}]}}}", "rule <gone>"),
        ("{language: en, intents: {A: {data: [{sentences: ['(open']}]}}}", "refused: ParseError"),
        ("{language: en, intents: {A: {}}}", "refused: KeyError: 'data'"),
        ("{language: en, expansion_rules: {on: a}}", "YAML wants quotes"),
        ("{language: en, lists: {w: {wildcard: true, not_start: [off]}}}", "YAML wants quotes"),
        ("{language: en, lists: {w: {wildcard: true, max_word: 3}}}", "max_word"),
        ("{language: en, intents: [a]}", "clashes"),
    ],
)
def test_a_bad_sentence_file_is_refused_with_the_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(SentencesError) as refused:
        load_sentences(tmp_path)
    assert reason in str(refused.value)


def test_a_missing_folder_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SentencesError, match="nowhere"):
        load_sentences(tmp_path / "nowhere")


def test_the_plugin_publishes_what_a_final_means(bus: FakeBus) -> None:
    with IntentPublisher(bus.ingest_endpoint) as publisher:
        plugin = IntentsPlugin()
        plugin.setup(PluginContext("intents", {"min_confidence": "0.8"}, publisher))
        plugin.on_message(bus.final("What time is it?"))
        plugin.on_message(bus.final("cloze the window"))  # below min_confidence
        plugin.on_message(bus.final("打开天窗", language="zh", stream="mic"))
        (intent,) = bus.intents()
    assert (intent.name, intent.slots, intent.stream) == ("OpenSunroof", {}, "mic")
    assert (intent.text, intent.segment, intent.plugin) == ("打开天窗", 3, "intents")


def test_the_plugin_acts_on_an_early_text_once_where_that_is_wanted(bus: FakeBus) -> None:
    with IntentPublisher(bus.ingest_endpoint) as publisher:
        plugin = IntentsPlugin()
        plugin.setup(PluginContext("intents", {"eager": "yes"}, publisher))
        plugin.on_message(bus.eager_final("Open the sunroof."))
        plugin.on_message(bus.resumed())
        plugin.on_message(bus.eager_final("Open the sunroof."))
        plugin.on_message(bus.final("Open the sunroof."))
        plugin.on_message(bus.eager_final("Open the sunroof."))
        plugin.on_message(bus.final("Close the sunroof."))
        plugin.on_message(bus.final("Close the sunroof."))
        found = bus.intents(4)
    names = [(intent.segment, intent.name) for intent in found]
    assert names == [
        (1, "OpenSunroof"),
        (2, "OpenSunroof"),
        (2, "CloseSunroof"),
        (3, "CloseSunroof"),
    ]


def test_the_plugin_leaves_early_texts_alone_unless_told(bus: FakeBus) -> None:
    with IntentPublisher(bus.ingest_endpoint) as publisher:
        plugin = IntentsPlugin()
        plugin.setup(PluginContext("intents", {}, publisher))
        plugin.on_message(bus.eager_final("Open the sunroof."))
        plugin.on_message(bus.final("Close the sunroof."))
        (intent,) = bus.intents()
    assert intent.name == "CloseSunroof"


def test_the_guide_lists_every_intent_and_its_example_loads(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
    listed = set(re.findall(r"`([A-Z]\w+)(?:\{[^`]*\})?`", guide.partition("## Intents")[2]))
    sets = load_sentences()
    assert set(sets["en"].intents.intents) <= listed
    example = re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert example is not None
    (tmp_path / "example.yaml").write_text(example[1])
    found = Matcher(load_sentences(tmp_path)).match("My dear, I'd like a coffee", "en")
    assert found is not None
    assert found.name == "MakeCoffee"


def test_words_around_a_request_need_one_gap() -> None:
    with pytest.raises(SentencesError, match=r"fillers\.around: 'can you' must have one …"):
        build_set("en", {"intents": {}, "fillers": {"around": ["can you"]}})


def test_words_around_a_request_are_stripped_together_only() -> None:
    content = {
        "intents": {"Open": {"data": [{"sentences": ["open it"]}]}},
        "fillers": {"around": ["might you … then"]},
    }
    matcher = Matcher({"en": build_set("en", content)})
    assert matcher.match("might you open it then", "en") is not None
    assert matcher.match("might you open it", "en") is None
    assert matcher.match("open it then", "en") is None
