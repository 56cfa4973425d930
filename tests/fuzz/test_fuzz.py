"""Bytes from outside: the corpus again, and some seeded inputs more. `tools/fuzz` runs millions."""

from __future__ import annotations

import random

import pytest
from tests.fuzz.corpus_files import FOLDER, FOUND, load
from tests.fuzz.mutate import Fault, Hang, Target, fuzz, inputs, try_one
from tests.fuzz.targets import all_targets

TARGETS = all_targets()
COUNT = 2_000


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_seeded_inputs_are_taken_or_refused_and_nothing_else(name: str) -> None:
    target = TARGETS[name]
    known = load(name)
    assert known, f"no corpus of {name}: run `tools/fuzz corpus {name}`"
    tally = fuzz(target, known, count=round(COUNT * min(1.0, target.weight * 2)), seed=7)
    assert tally.inputs
    assert any(answer[0] == "taken" for answer in tally.answers) or name in ("token_text",)


def test_every_corpus_belongs_to_a_target() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(TARGETS)
    assert {path.stem for path in FOUND.glob("*.txt")} <= set(TARGETS)


def test_a_parser_that_breaks_or_hangs_is_found() -> None:
    def broken(data: bytes) -> object:
        if data.startswith(b"ab"):
            raise KeyError(data)
        return None

    target = Target("broken", broken, (b"a",), (ValueError,), (b"b",))
    with pytest.raises(Fault, match="broken: KeyError"):
        fuzz(target, [], count=100_000, seed=1)

    def hung(data: bytes) -> object:
        raise Hang("no answer")

    with pytest.raises(Fault, match="Hang"):
        try_one(Target("hung", hung, (), (Exception,)), b"")


def test_inputs_are_the_same_for_the_same_seed() -> None:
    target = TARGETS["wire_client"]

    def some(seed: int) -> list[bytes]:
        source = inputs(target, target.seeds, random.Random(seed))
        return [next(source) for _ in range(100)]

    assert some(1) == some(1) != some(2)
