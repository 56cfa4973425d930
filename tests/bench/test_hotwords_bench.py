"""What the benchmark of hotwords counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from voiced.bench import hotwords
from voiced.bench.corpus import Clip
from voiced.bench.normalise import builtin_normaliser
from voiced.engine.types import Request, Transcript


def clip(name: str, text: str) -> Clip:
    return Clip(name, Path(name), text, "en", frozenset(), 1.0, "set")


def test_what_is_found_and_what_is_invented() -> None:
    phrases = [["ann"], ["new", "york"]]
    reference = ["ann", "saw", "ann", "in", "new", "york"]
    heard = hotwords.compare(
        reference, ["ann", "saw", "an", "in", "new", "york", "new", "york"], phrases
    )
    assert (heard.said, heard.found, heard.inserted) == (3, 2, 1)
    assert heard.score.errors == 3
    heard = hotwords.compare(["no"], ["no"], phrases)
    assert (heard.said, heard.found, heard.inserted) == (0, 0, 0)


def test_rare_words_are_those_without_a_token_of_their_own() -> None:
    clips = [clip("a", "King Merneptah spoke"), clip("b", "spoke of merneptah, alas")]
    assert hotwords.rare_words(clips, lambda word: 1 + ("ern" in word)) == ["merneptah"]


def test_the_halves_hold_everything_once() -> None:
    halves = [hotwords.half_of(clip(f"set/{i}", "x")) for i in range(100)]
    assert 30 < halves.count("a") < 70
    assert set(halves) == {"a", "b"}


class Listener:
    """Hears what it was told to expect."""

    def __init__(self) -> None:
        self.bonuses: list[float] = []

    def recognize(self, requests: Sequence[Request]) -> list[Transcript]:
        (request,) = requests
        self.bonuses += [each.score for each in request.hotwords]
        text = "king " + " ".join(each.phrase for each in request.hotwords)
        return [Transcript(1, 1, text, is_final=True, language="en", confidence=1.0)]


def test_every_clip_is_heard_with_the_whole_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotwords, "read_clip", lambda _: np.zeros(160, np.int16))
    clips, listener = [clip("a", "king merneptah"), clip("b", "king")], Listener()
    heard = hotwords.measure(
        clips,
        listener,
        ["Merneptah"],
        (0, 2.0),
        builtin_normaliser(),
        lambda _: None,  # type: ignore[arg-type]
    )
    assert listener.bonuses == [2.0, 2.0]
    rows = hotwords.table(heard, "x").rows
    assert rows == (
        ("none", "0/1", "0 %", "0", "50.00", "0.00"),
        ("2", "1/1", "100 %", "1", "0.00", "100.00"),
    )
