"""How long a silence must last to end a segment, by what was said before it. Pure.

The text is the eager one: it is known while the silence runs. What its end looks like is a hint,
not a proof: Whisper ends most texts with a full stop, whether or not the speaker goes on
([why](../../../docs/decisions/0009-instant-finals.md)).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from voiced.engine.stable import tokens_of

_SENTENCE_ENDS = ".?!。？！"
_CLOSING = "\"'”’」』)）"
_OPEN_ENDS = ",，、;；:：-–—…"
_ELLIPSES = ("...", "……")

_ENGLISH = """
um uhm uh er erm hm hmm mm mhm ah eh
and but or nor so because if when while although unless until than as that which who whose
the a an my your his her its our their this these those some any no every each
to of for from with without in on at by into onto about between under over
is are was were be am can could will would shall should may might must do does did
please let lets im id ill we youre its theres
"""
_MANDARIN = """
嗯 呃 额 唔 那个 这个 就是 然后 而且 但是 可是 因为 所以 如果 或者 还有 以及 并且 虽然 不过
和 跟 与 把 被 让 给 从 向 对 在 为 比 请
"""
_OPEN_WORDS = frozenset(_ENGLISH.split())
"""Fillers, and words behind which a sentence goes on."""
_OPEN_CHARACTERS = tuple(_MANDARIN.split())
"""The same of Mandarin, compared with the last characters of a text."""


class TextEnd(StrEnum):
    """What the end of a text says about more to come."""

    COMPLETE = "complete"
    """A sentence's full stop."""
    OPEN = "open"
    """A filler, a comma, or a word behind which a sentence goes on."""
    UNKNOWN = "unknown"


def end_of(text: str) -> TextEnd:
    """Look at the end of a text of English or Mandarin; others are known by punctuation alone."""
    shown = text.rstrip().rstrip(_CLOSING)
    if not shown:
        return TextEnd.UNKNOWN
    if shown.endswith(_ELLIPSES) or shown[-1] in _OPEN_ENDS:
        return TextEnd.OPEN
    words = shown.rstrip(_SENTENCE_ENDS)
    tokens = tokens_of(words)
    if not tokens:
        return TextEnd.UNKNOWN
    if tokens[-1].norm in _OPEN_WORDS or words.endswith(_OPEN_CHARACTERS):
        return TextEnd.OPEN
    return TextEnd.COMPLETE if shown[-1] in _SENTENCE_ENDS else TextEnd.UNKNOWN


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """Chooses the silence that ends a segment, within the bounds that are set for a stream."""

    end_ms: int = 600
    """Where nothing speaks for another."""
    min_ms: int = 300
    """Where an intent was found; never more than `end_ms`."""
    sentence_ms: int = 600
    """After a sentence that looks complete; never less than `min_ms` or more than `end_ms`."""
    max_ms: int = 900
    """After a hesitation; never less than `end_ms`."""

    def after(self, text: str) -> int:
        """Return the silence that ends a segment with this text, from its last speech on."""
        match end_of(text):
            case TextEnd.OPEN:
                return max(self.max_ms, self.end_ms)
            case TextEnd.COMPLETE:
                return min(max(self.sentence_ms, self.min_ms), self.end_ms)
            case TextEnd.UNKNOWN:
                return self.end_ms

    def after_intent(self) -> int:
        """Return the silence that ends a segment in whose text an intent was found."""
        return min(self.min_ms, self.end_ms)
