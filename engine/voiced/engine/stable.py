"""How the text of one segment may change from revision to revision. Pure.

`PartialTracker` decides which part of a growing text is settled, by LocalAgreement: what some
hypotheses in a row begin with is committed (Macháček, Dabre and Bojar, "Turning Whisper into
Real-Time Transcription System", 2023, section 3), two where the recogniser is sure of its words and
more where it is not.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Token:
    """One word, or one character of a script without spaces, and where its text lies."""

    norm: str
    """The word without case and punctuation: what is compared."""
    start: int
    end: int


def tokens_of(text: str) -> list[Token]:
    """Split into words; Han characters and kana stand alone, whatever the language around them.

    Punctuation and spaces belong to no token, but an apostrophe inside of a word does.
    """
    found: list[Token] = []
    norm, start, end = "", 0, 0  # the word being read; empty norm: none

    def close() -> None:
        nonlocal norm
        if norm:
            found.append(Token(norm, start, end))
        norm = ""

    for at, char in enumerate(text):
        if stands_alone(char):
            close()
            found.append(Token(_normal(char), at, at + 1))
        elif _is_mark(char) and not norm and found and found[-1].end == at:
            last = found.pop()  # a combining mark on a character that stands alone
            found.append(Token(last.norm + _normal(char), last.start, at + 1))
        elif _is_word_char(char):
            if not norm:
                start = at
            norm, end = norm + _normal(char), at + 1
        elif char not in "'’":
            close()
    close()
    return found


def chances_of(text: str, pieces: Iterable[tuple[bytes, float]]) -> tuple[float, ...]:
    """Return how likely each word of a text is: as likely as the least likely of its tokens.

    Args:
        text: What became of the tokens: cased, converted or trimmed, but with the same words.
        pieces: UTF-8 of each token, where a character may be cut, and its probability.

    Returns:
        One for each of `tokens_of(text)`; none where the tokens have another number of words.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    said, likely, lowest = "", list[float](), 1.0
    for piece, chance in pieces:
        lowest = min(lowest, chance)
        chars = decoder.decode(piece)
        said += chars
        likely += [lowest] * len(chars)
        if not decoder.getstate()[0]:  # no character is half read
            lowest = 1.0
        elif chars:
            lowest = chance
    words = tokens_of(said)
    if len(words) != len(tokens_of(text)):
        return ()
    return tuple(min(likely[word.start : word.end]) for word in words)


def stands_alone(char: str) -> bool:
    """Whether a character of Han or kana, written without spaces between words."""
    code = ord(char)
    return (
        0x3400 <= code <= 0x9FFF  # Han and extension A
        or 0x3041 <= code <= 0x30FF  # hiragana, katakana
        or 0xF900 <= code <= 0xFAFF  # compatibility ideographs
        or 0x20000 <= code <= 0x323AF  # extensions B to H
    ) and _is_word_char(char)


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _is_word_char(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def _normal(char: str) -> str:
    return unicodedata.normalize("NFKC", char).casefold()


@dataclass(frozen=True, slots=True)
class _Trust:
    """What a word needs to be settled by a hypothesis of some confidence."""

    confidence: float
    """Mean probability of the hypothesis' tokens, at least."""
    agreed: int
    """Hypotheses in a row, this one included, that begin with the same words up to this one."""
    behind: int
    """Words behind it in this hypothesis."""


_TRUST = (_Trust(0.8, 2, 0), _Trust(0.65, 3, 1), _Trust(0.0, 5, 2))
"""Where the recogniser does not say how sure it is of each word: LocalAgreement-2 where it is sure
of the whole, more where it is not (docs/decisions/0013-stable-words.md)."""

MOST_DOUBT = 0.06
"""Of the words that are settled together, in the mean. The doubt of a word is what its probability
lacks of 1, divided by the hypotheses that agree on it (docs/decisions/0013-stable-words.md)."""
SEARCHED = 4
"""Hypotheses that a text counts for which was searched as a final. It is the final unless speech
goes on, and it had the wider search."""


class PartialTracker:
    """The settled prefix of one segment's growing text.

    The prefix never shrinks or changes, and every text given out begins with it.
    """

    def __init__(self) -> None:
        self._stable = ""
        self._previous: list[tuple[str, int]] = []
        """Words of the last hypothesis, and how many in a row agreed up to each."""
        self._language = ""

    def update(
        self,
        text: str,
        language: str,
        confidence: float = 1.0,
        chances: Sequence[float] = (),
        *,
        is_searched: bool = False,
    ) -> tuple[str, int]:
        """Take the newest hypothesis for the segment so far.

        A hypothesis in another language than the one before agrees with nothing.

        Args:
            text: The whole text.
            language: Its language.
            confidence: How sure the recogniser is of it, 0 to 1.
            chances: How sure it is of each word of `tokens_of(text)`; empty if it does not say.
            is_searched: The text will be the final if nothing more is said.

        Returns:
            The text to show, and how many of its first characters will never change. Punctuation
            behind the last settled word is not settled: the next word may take it away.
        """
        shown, used = _continued(self._stable, text)
        tokens = tokens_of(shown)
        before = self._previous if language == self._language else []
        agreed = _agreement([token.norm for token in tokens], before)
        done = sum(token.end <= len(self._stable) for token in tokens)
        new, own = agreed[done:], chances[used:]
        if len(own) == len(new):
            more = _settled_by_chances(new, own, is_searched=is_searched)
        else:
            more = _settled_by_confidence(new, 1.0 if is_searched else confidence)
        if more:
            self._stable = shown[: tokens[done + more - 1].end]
        self._previous = [(t.norm, count) for t, count in zip(tokens, agreed, strict=True)]
        self._language = language
        return shown, len(self._stable)


def _settled_by_chances(
    agreed: Sequence[int], chances: Sequence[float], *, is_searched: bool
) -> int:
    """Return how many of the next words are settled: the most whose mean doubt is small enough.

    A word in doubt waits until more hypotheses agree, or until sure words stand behind it. The last
    word needs a second hypothesis, however sure it is: it may be half said.
    """
    more = SEARCHED - 1 if is_searched else 0
    doubt, settled = 0.0, 0
    for number, (count, chance) in enumerate(zip(agreed, chances, strict=True), start=1):
        if number == len(agreed) and count + more < 2:
            break
        doubt += (1 - chance) / (count + more)
        if doubt <= MOST_DOUBT * number:
            settled = number
    return settled


def _settled_by_confidence(agreed: Sequence[int], confidence: float) -> int:
    """Return how many of the next words are settled by a hypothesis of this confidence."""
    trust = next(each for each in _TRUST if confidence >= each.confidence)
    for number, count in enumerate(agreed, start=1):
        if count < trust.agreed or len(agreed) - number < trust.behind:
            return number - 1
    return len(agreed)


def _agreement(words: list[str], before: list[tuple[str, int]]) -> list[int]:
    """Return for each word how many hypotheses in a row begin with the same words up to it."""
    counts: list[int] = []
    same = True
    for at, word in enumerate(words):
        same = same and at < len(before) and before[at][0] == word
        counts.append(before[at][1] + 1 if same else 1)
    return counts


def _continued(stable: str, text: str) -> tuple[str, int]:
    """Return `stable` and what `text` says after the words that correspond to it, and their number.

    The two are aligned by edit distance over words, so a hypothesis that differs inside of the
    settled part neither repeats nor swallows the words behind it.
    """
    if not stable:
        return text, 0
    tokens = tokens_of(text)
    used = _aligned_length([token.norm for token in tokens_of(stable)], [t.norm for t in tokens])
    rest = text[tokens[used - 1].end :] if used else text
    between = " " if rest and _would_join(stable[-1], rest[0]) else ""
    return stable + between + rest, used


def _would_join(left: str, right: str) -> bool:
    return (
        not right.isspace()
        and not stands_alone(left)
        and not stands_alone(right)
        and (_is_word_char(right) or right in "'’")
    )


def _aligned_length(settled: list[str], words: list[str]) -> int:
    """Return how many of `words` correspond best to all of `settled` (Levenshtein)."""
    row = list(range(len(words) + 1))
    for done, ours in enumerate(settled, start=1):
        above, row = row, [done]
        for at, theirs in enumerate(words, start=1):
            row.append(min(above[at] + 1, row[at - 1] + 1, above[at - 1] + (ours != theirs)))
    return min(range(len(row)), key=lambda used: (row[used], abs(used - len(settled))))
