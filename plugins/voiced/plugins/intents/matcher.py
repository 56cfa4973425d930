"""Text → intent: hassil's template matching made fit for recogniser output. Pure.

The text is tried in up to four forms, each further from what was said: without polite words at
its edges, as it is, without fillers anywhere, and (closed sentences only) with one misheard word
put right. A sentence without open text beats one with it, whatever the form; then literal text
counts: the template that spells out more of the sentence wins.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hassil import TextChunk, recognize_all
from hassil.expression import Expression, Group, ListReference, RuleReference
from hassil.intents import TextSlotList

from voiced.plugins.intents.normalize import normalizer
from voiced.plugins.intents.sentences import SentenceSet, wildcard_lists

EXACT, EDGES, FILLERS, CORRECTED = 1.0, 0.95, 0.9, 0.7
"""Confidence by the form of the text that matched."""
OPEN_TEXT = 0.9
"""Factor for a sentence with open text, which nothing can check."""

MAX_CHARS = 120
"""Longer utterances are no commands; not trying them bounds the time of a match."""
_CORRECTABLE_CHARS = 5
_SIMILARITY = 0.8  # difflib's ratio; one letter of five: `cloze` / `close`


@dataclass(frozen=True, slots=True)
class Match:
    """What the speaker wants."""

    name: str
    slots: dict[str, Any]
    """Values of closed lists do not depend on the language; numbers are numbers; open text is in
    the plain form of `normalize.py`."""
    confidence: float
    """1 is a sentence as written in the file; less with fillers, open text or a corrected word."""


class Matcher:
    """Finds the one intent of an utterance, or none. Not thread-safe: hassil caches in place."""

    def __init__(self, sets: Mapping[str, SentenceSet]) -> None:
        self._languages = {name: _LanguageMatcher(each) for name, each in sets.items()}

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that have sentences."""
        return tuple(self._languages)

    def match(self, text: str, language: str) -> Match | None:
        """Match a whole utterance; None when it is no command or the language has no set."""
        matcher = self._languages.get(language)
        return matcher.match(text) if matcher else None


@dataclass(frozen=True, slots=True)
class _Candidate:
    match: Match
    literal_chars: int
    is_open: bool


class _LanguageMatcher:
    def __init__(self, sentences: SentenceSet) -> None:
        self._set = sentences
        self._normalize = normalizer(ignore_whitespace=not sentences.has_spaces)
        fillers, gap = sentences.fillers, r"\s+" if sentences.has_spaces else ""
        self._around = tuple(
            re.compile(f"{re.escape(first.strip())}{gap}(.+){gap}{re.escape(last.strip())}")
            for first, last in (each.split("…") for each in fillers.around)
        )
        self._start = _any_of(fillers.start, f"^(?:{{}})(?:{gap or '(?=.)'})")
        self._end = _any_of(fillers.end, f"(?:{gap or '(?<=.)'})(?:{{}})$")
        inside = r"(?<!\w)(?:{})(?!\w)" if sentences.has_spaces else "(?:{})"
        self._anywhere = _any_of(fillers.anywhere, inside)
        self._vocabulary = _vocabulary(sentences.intents) if sentences.has_spaces else frozenset()

    def match(self, text: str) -> Match | None:
        plain = self._normalize(text, self._set.traditional)
        if not plain or len(plain) > MAX_CHARS:
            return None
        fallback: _Candidate | None = None
        for form, confidence in self._forms(plain):
            found = self._best(form, confidence)
            if found is not None and not found.is_open:
                return found.match
            fallback = fallback or found
        if fallback is not None:
            return fallback.match
        corrected = self._correct(self._strip_edges(plain))
        found = self._best(corrected, CORRECTED) if corrected else None
        return None if found is None or found.is_open else found.match

    def _forms(self, plain: str) -> Iterator[tuple[str, float]]:
        stripped = self._strip_edges(plain)
        yield stripped, EXACT if stripped == plain else EDGES
        if stripped != plain:
            yield plain, EXACT  # the words may be part of a template: "I want to go home"
        if self._anywhere is not None:
            thinned = self._strip_edges(" ".join(self._anywhere.sub(" ", stripped).split()))
            thinned = self._normalize(thinned, {})
            if thinned and thinned != stripped:
                yield thinned, FILLERS

    def _strip_edges(self, text: str) -> str:
        for around in self._around:
            if found := around.fullmatch(text):
                text = found[1]
                break
        before = None
        while text != before:
            before = text
            for pattern in (self._start, self._end):
                if pattern is not None:
                    text = pattern.sub("", text, count=1)
        return text

    def _best(self, text: str, confidence: float) -> _Candidate | None:
        found = self._candidates(text, confidence)
        return max(found, key=lambda c: (not c.is_open, c.literal_chars), default=None)

    def _candidates(self, text: str, confidence: float) -> Iterator[_Candidate]:
        intents = self._set.intents
        for result in recognize_all(text, intents, language=self._set.language):
            lists = wildcard_lists(result.intent_sentence, intents)
            open_text = {e.name: e.text for e in result.entities_list if e.is_wildcard}
            if not all(self._allows(lists[slot], value) for slot, value in open_text.items()):
                continue
            slots = {
                entity.name: _plain_number(entity.value)
                for entity in result.entities_list
                if entity.value is not None
            }
            factor = OPEN_TEXT if open_text else 1.0
            match = Match(result.intent.name, slots, round(confidence * factor, 3))
            yield _Candidate(match, result.text_chunks_matched, bool(open_text))

    def _allows(self, list_name: str, text: str) -> bool:
        return self._set.guards[list_name].allows(text, has_spaces=self._set.has_spaces)

    def _correct(self, text: str) -> str | None:
        """Put right the one word that no sentence has; None when there is no such one word."""
        words = text.split()
        unknown = [i for i, word in enumerate(words) if word not in self._vocabulary]
        unknown = [i for i in unknown if not words[i][0].isdigit()]
        if len(unknown) != 1 or len(words) < 2 or len(words[unknown[0]]) < _CORRECTABLE_CHARS:
            return None
        word = words[unknown[0]]
        similar = difflib.get_close_matches(word, self._vocabulary, n=3, cutoff=_SIMILARITY)
        similar = [each for each in similar if each[0] == word[0]]
        if not similar:
            return None
        words[unknown[0]] = similar[0]
        return " ".join(words)


def _any_of(texts: tuple[str, ...], pattern: str) -> re.Pattern[str] | None:
    """`pattern` with {} replaced by any of the texts, longest first."""
    if not texts:
        return None
    return re.compile(pattern.replace("{}", "|".join(map(re.escape, texts))))


def _vocabulary(intents: Any) -> frozenset[str]:
    """Every literal word of the sentences, rules and closed lists."""
    words: set[str] = set()
    for intent in intents.intents.values():
        for data in intent.data:
            for sentence in data.sentences:
                words.update(_words(sentence.expression))
    for rule in intents.expansion_rules.values():
        words.update(_words(rule.expression))
    for each in intents.slot_lists.values():
        if isinstance(each, TextSlotList):
            for value in each.values:
                words.update(_words(value.text_in))
    return frozenset(words)


def _words(expression: Expression) -> Iterator[str]:
    if isinstance(expression, TextChunk):
        yield from expression.text.casefold().split()
    elif isinstance(expression, Group):
        for item in expression.items:
            yield from _words(item)
    else:
        assert isinstance(expression, ListReference | RuleReference), type(expression)


def _plain_number(value: Any) -> Any:
    """22.0 → 22; the rest as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
