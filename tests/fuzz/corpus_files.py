"""The corpus: one file for each target, an input a line in base64, the smallest for each answer.

`corpus/found` has what once broke a target, for ever.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
FOUND = FOLDER / "found"
MAX_INPUTS, MAX_BYTES = 80, 1_024
"""Of one target, and of one input: the repository stays small."""


def load(name: str) -> list[bytes]:
    """Return a target's inputs; none where it has no file yet."""
    return [*_read(FOUND / f"{name}.txt"), *_read(FOLDER / f"{name}.txt")]


def store(name: str, inputs: Iterable[bytes]) -> None:
    """Write the smallest ones."""
    kept = sorted(
        {data for data in inputs if len(data) <= MAX_BYTES}, key=lambda each: (len(each), each)
    )
    _write(FOLDER / f"{name}.txt", kept[:MAX_INPUTS])


def keep(name: str, data: bytes) -> None:
    """Add what broke a target."""
    path = FOUND / f"{name}.txt"
    _write(path, sorted({*_read(path), data}))


def _read(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [base64.b64decode(line) for line in path.read_text("ascii").splitlines()]


def _write(path: Path, inputs: Iterable[bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [base64.b64encode(data).decode() for data in inputs]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
