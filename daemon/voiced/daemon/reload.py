"""What a reload may change, and how a new configuration is taken over in part. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from voiced.daemon.config import KEYS, value_of
from voiced.daemon.settings import Settings


class Effect(StrEnum):
    """What it takes for a setting to have its new value."""

    NOW = "now"
    """From the reload on: for new streams where it is about streams."""
    MODEL = "model"
    """A new engine worker beside the old one."""
    RESTART = "restart"
    """A new start of the daemon."""


_NOW = frozenset(
    {
        "bus.eager",
        "engine.hotwords",
        "engine.hotwords_file",
        "engine.hotwords_score",
        "engine.language",
        "limits.busy_age_s",
        "limits.final_timeout_s",
        "limits.max_backlog_s",
        "limits.partial_timeout_s",
        "logging.include_text",
        "logging.level",
        "server.max_streams",
    }
)


def effect_of(name: str) -> Effect:
    """What a setting's change takes; `name` is dotted."""
    if name in _NOW or (name.startswith("vad.") and name != "vad.max_segment_s"):
        return Effect.NOW
    if name.startswith("engine.") or name == "vad.max_segment_s":
        return Effect.MODEL
    return Effect.RESTART


@dataclass(frozen=True, slots=True)
class Changes:
    """Dotted names of settings whose values differ, by what they take."""

    now: tuple[str, ...]
    model: tuple[str, ...]
    restart: tuple[str, ...]


def compare(old: Settings, new: Settings) -> Changes:
    """Tell what a new configuration changes."""
    changed = [name for name in KEYS if value_of(old, name) != value_of(new, name)]
    now, model, restart = (
        tuple(name for name in changed if effect_of(name) is effect) for effect in Effect
    )
    return Changes(now, model, restart)


def merge(old: Settings, new: Settings, names: Iterable[str]) -> Settings:
    """Return `old` with some values of `new`."""
    tree = old.model_dump()
    for name in names:
        *sections, key = name.split(".")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[key] = value_of(new, name)
    return Settings.model_validate(tree)
