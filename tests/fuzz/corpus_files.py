"""The corpus: one file for each target, an input a line in base64, the smallest for each answer."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
MAX_INPUTS, MAX_BYTES = 80, 1_024
"""Of one target, and of one input: the repository stays small."""


def load(name: str) -> list[bytes]:
    """Return a target's inputs; none where it has no file yet."""
    path = FOLDER / f"{name}.txt"
    if not path.exists():
        return []
    return [base64.b64decode(line) for line in path.read_text("ascii").splitlines()]


def store(name: str, inputs: Iterable[bytes]) -> None:
    """Write the smallest ones."""
    kept = sorted(
        {data for data in inputs if len(data) <= MAX_BYTES}, key=lambda each: (len(each), each)
    )
    lines = [base64.b64encode(data).decode() for data in kept[:MAX_INPUTS]]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
