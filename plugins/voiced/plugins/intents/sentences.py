"""Sentence files → checked sentence sets. The only part of the intents that reads files.

A file is a hassil intents file (YAML) with three keys of ours: `fillers`, `traditional` and, in
wildcard lists, guards. `docs/plugins.md` describes the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hassil import Intents, WildcardSlotList, merge_dict, parse_sentence
from hassil.errors import HassilError
from hassil.expression import Group, RuleReference
from hassil.parser import ParseError
from hassil.sample import sample_expression

from voiced.plugins.errors import SentencesError


@dataclass(frozen=True, slots=True)
class Guard:
    """What open text may be. A wildcard without limits would take any sentence for a command."""

    max_words: int = 8
    """Words, in a language with spaces."""
    max_chars: int = 60
    not_start: tuple[str, ...] = ()
    """The text does not begin with one of these (whole words in a language with spaces)."""
    not_contain: tuple[str, ...] = ()
    must_end: tuple[str, ...] = ()
    """The text ends with one of these; empty allows every end."""

    def __post_init__(self) -> None:
        for each in (*self.not_start, *self.not_contain, *self.must_end):
            if not isinstance(each, str):
                raise TypeError(f"guards are texts, not {each!r}: YAML wants quotes around it")

    def allows(self, text: str, *, has_spaces: bool) -> bool:
        """Whether `text`, in its plain form, may fill the slot."""
        if len(text) > self.max_chars or (has_spaces and len(text.split()) > self.max_words):
            return False
        edge = " " if has_spaces else ""
        padded = f"{edge}{text}{edge}"
        return (
            not padded.startswith(tuple(f"{edge}{each}{edge}" for each in self.not_start))
            and not any(f"{edge}{each}{edge}" in padded for each in self.not_contain)
            and (
                not self.must_end
                or padded.endswith(tuple(f"{edge}{e}{edge}" for e in self.must_end))
            )
        )


@dataclass(frozen=True, slots=True)
class Fillers:
    """Words that carry no meaning for a command: polite forms, hesitations."""

    start: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    """Words at both ends that make a request of a question, `…` between them: `can you … then`."""
    anywhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SentenceSet:
    """All sentences of one language, checked: every rule and list that is named exists."""

    language: str
    intents: Any
    """A `hassil.Intents`."""
    fillers: Fillers
    traditional: Mapping[int, str]
    """`str.translate` table of character variants."""
    guards: Mapping[str, Guard]
    """List name → guard, for every wildcard list."""

    @property
    def has_spaces(self) -> bool:
        """Whether words are written with spaces between them."""
        return not self.intents.settings.ignore_whitespace


def load_sentences(folder: Path | None = None, *, builtin: bool = True) -> dict[str, SentenceSet]:
    """Read the built-in sets and `folder`'s `*.yaml`, merged by their `language`.

    Raises:
        SentencesError: Names the file, or the language where files only clash when merged.
    """
    texts: list[tuple[str, str]] = []
    if builtin:
        data = resources.files("voiced.plugins.intents").joinpath("data")
        texts += [(f.name, f.read_text("utf-8")) for f in data.iterdir() if f.name[-5:] == ".yaml"]
    if folder is not None:
        try:
            files = sorted(folder.iterdir())
            texts += [
                (str(f), f.read_text("utf-8")) for f in files if f.suffix in {".yaml", ".yml"}
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise SentencesError(f"sentences in {folder} cannot be read: {error}") from error
    merged: dict[str, dict[str, Any]] = {}
    for name, text in texts:
        content = _parse(name, text)
        language = content.pop("language")
        try:
            merge_dict(merged.setdefault(language, {}), content)
        except AssertionError as error:  # hassil's way to refuse a list where a table was
            raise SentencesError(f"{name}: clashes with the other {language} files: {error}") from (
                error
            )
    return {language: build_set(language, content) for language, content in merged.items()}


def build_set(language: str, content: Mapping[str, Any]) -> SentenceSet:
    """Check and compile the merged content of one language's files.

    Raises:
        SentencesError: A template is no template, or names a rule or list that does not exist.
    """
    try:
        for name in content.get("expansion_rules", {}):
            if not isinstance(name, str):
                raise TypeError(f"rule names are texts, not {name!r}: YAML wants quotes around it")
        intents = Intents.from_dict({**content, "language": language})
        _check_references(intents)
        guards = {
            name: Guard(**{k: _frozen(v) for k, v in each.items() if k != "wildcard"})
            for name, each in content.get("lists", {}).items()
            if each.get("wildcard")
        }
        fillers = {
            place: tuple(_expand(templates))
            for place, templates in content.get("fillers", {}).items()
        }
        for each in fillers.get("around", ()):
            if len(each.split("…")) != 2:
                raise ValueError(f"fillers.around: {each!r} must have one … in it")
        return SentenceSet(
            language=language,
            intents=intents,
            fillers=Fillers(**fillers),
            traditional=str.maketrans(dict(content.get("traditional", {}))),
            guards=guards,
        )
    except (HassilError, ParseError, KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise SentencesError(f"sentences for {language} are refused: {what}") from error


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SentencesError(f"{name}: not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("language"), str):
        raise SentencesError(f"{name}: expected a table with `language: CODE`, e.g. `language: en`")
    content.setdefault("intents", {})
    return content


def _check_references(intents: Any) -> None:
    for intent in intents.intents.values():
        for data in intent.data:
            rules = {**intents.expansion_rules, **data.expansion_rules}
            lists = {**intents.slot_lists, **data.slot_lists}
            for sentence in data.sentences:
                for name in _rule_names(sentence.expression, rules):
                    if name not in rules:
                        raise KeyError(
                            f"{intent.name}: {sentence.text!r} names the rule <{name}>, "
                            "which does not exist"
                        )
                for reference in sentence.expression.list_references(rules):
                    if reference.list_name not in lists:
                        raise KeyError(
                            f"{intent.name}: {sentence.text!r} names the list "
                            f"{{{reference.list_name}}}, which does not exist"
                        )


def _rule_names(expression: Any, rules: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(expression, RuleReference):
        yield expression.rule_name
        if expression.rule_name in rules:
            yield from _rule_names(rules[expression.rule_name].expression, rules)
    elif isinstance(expression, Group):
        for item in expression.items:
            yield from _rule_names(item, rules)


def wildcard_lists(sentence: Any, intents: Any) -> dict[str, str]:
    """Slot name → list name of every wildcard in one `hassil.Sentence`."""
    return {
        reference.slot_name: reference.list_name
        for reference in sentence.expression.list_references(intents.expansion_rules)
        if isinstance(intents.slot_lists.get(reference.list_name), WildcardSlotList)
    }


def _expand(templates: Iterable[str]) -> list[str]:
    """Every text that the filler templates stand for, longest first."""
    texts = {
        " ".join(text.split())
        for template in templates
        for text in sample_expression(parse_sentence(template).expression)
    }
    return sorted(texts - {""}, key=lambda text: (-len(text), text))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
