"""The last words on one stream's segments: one each, in the order of the segments. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class LastWords(Generic[T]):
    """Holds a last word back until every earlier segment of the stream has had its own.

    The engine answers in the order that is quickest; clients join the texts as they come. The wait
    is as long as an earlier segment may take, which its deadline bounds.
    """

    def __init__(self) -> None:
        self._words: dict[int, list[T]] = {}
        """Segments whose last word was not let go yet, in their order; an empty list: none yet."""

    @property
    def owed(self) -> tuple[int, ...]:
        """Segments without a word, in their order."""
        return tuple(segment for segment, words in self._words.items() if not words)

    def expect(self, segment: int) -> None:
        """Note the next segment: it gets a word."""
        self._words[segment] = []

    def give(self, segment: int, word: T) -> list[T]:
        """Take a segment's word; return those whose turn has come, in order.

        A word on a segment that had one, or that was never expected, counts for nothing.
        """
        words = self._words.get(segment)
        if words is None or words:
            return []
        words.append(word)
        ready: list[T] = []
        for first in list(self._words):
            if not self._words[first]:
                break
            ready += self._words.pop(first)
        return ready
