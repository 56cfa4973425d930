"""What clients were promised against what is in the journal and in a plugin's file. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]


@dataclass(slots=True)
class Ledger:
    """What clients have seen of their segments."""

    announced: dict[int, str] = field(default_factory=dict)
    """Segment → stream, for each that `speech_ended` promised an answer for."""
    answered: dict[int, list[str]] = field(default_factory=dict)
    """Segment → texts of the finals that its client got."""
    reused: set[int] = field(default_factory=set)
    """Segments that were announced twice: ids must be unique over restarts."""

    def note(self, message: Message) -> None:
        """Take a message from the daemon."""
        if message["type"] == "speech_ended":
            segment = message["segment"]
            if segment in self.announced:
                self.reused.add(segment)
            self.announced[segment] = message["stream"]
        elif message["type"] == "final":
            self.answered.setdefault(message["segment"], []).append(message["text"])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What does not agree; all zeros is what is promised."""

    announced: int
    """Segments that were promised an answer."""
    finals: int
    """Finals in the journal."""
    recovered: int
    """Of these: answered by a later run of the daemon."""
    failed: int
    """Segments that were answered with `failed`."""
    lost: tuple[int, ...]
    """Announced, and not in the journal."""
    doubled: tuple[int, ...]
    """More than one last word in the journal, or more than one final at a client."""
    reused: tuple[int, ...]
    """Ids given to two segments."""
    untold: tuple[int, ...]
    """A client had a final that the journal has not, or with another text."""
    plugin_lost: int
    """Finals of the journal that the plugin's file has not."""
    plugin_doubled: int
    """Finals that its file has more than once."""
    plugin_disordered: int
    """Lines of its file that come before what they follow on the bus."""

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing doubled, everywhere."""
        return not (
            self.lost or self.doubled or self.reused or self.untold
            or self.plugin_lost or self.plugin_doubled or self.plugin_disordered
        )  # fmt: skip


def compare(ledger: Ledger, journal: Iterable[Message], plugin: Iterable[Message]) -> Verdict:
    """Hold the three against each other.

    Args:
        ledger: What clients have seen.
        journal: Every entry, in the order of the bus.
        plugin: Every line of a plugin that writes finals down, as they came to it.
    """
    entries = list(journal)
    finals = [entry for entry in entries if entry["type"] == "final"]
    words = Counter(entry["segment"] for entry in entries)
    texts = {entry["segment"]: entry["text"] for entry in finals}
    order = {_place(entry): number for number, entry in enumerate(finals)}
    written = [_place(line) for line in plugin if line["type"] == "final"]
    counts = Counter(written)
    numbers = [order[place] for place in written if place in order]
    return Verdict(
        announced=len(ledger.announced),
        finals=len(finals),
        recovered=sum("recovered" in entry for entry in finals),
        failed=len(entries) - len(finals),
        lost=tuple(each for each in ledger.announced if not words[each]),
        doubled=tuple(
            sorted(
                {each for each, count in words.items() if count > 1}
                | {each for each, got in ledger.answered.items() if len(got) > 1}
            )
        ),
        reused=tuple(sorted(ledger.reused)),
        untold=tuple(each for each, got in ledger.answered.items() if texts.get(each) not in got),
        plugin_lost=sum(place not in counts for place in order),
        plugin_doubled=sum(count - 1 for count in counts.values()),
        plugin_disordered=sum(second < first for first, second in itertools.pairwise(numbers)),
    )


def _place(message: Message) -> tuple[str, int]:
    return message["epoch"], message["seq"]
