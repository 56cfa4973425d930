"""What an examination finds, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, worse than it could, or will not for ever."""
    FAIL = "fail"
    """What is configured does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    check: str
    """Stable name: `cpu`, `model`, …; several findings may share it."""
    level: Level
    found: str
    next_step: str | None = None
    """What to do; None where all is well."""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warn(check: str, found: str, next_step: str) -> Finding:
    """It works, but."""
    return Finding(check, Level.WARN, found, next_step)


def fail(check: str, found: str, next_step: str) -> Finding:
    """It does not work."""
    return Finding(check, Level.FAIL, found, next_step)
