"""`voiced config`: check the settings, and show where each came from."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from voiced.daemon import exposure
from voiced.daemon.config import KEYS, ConfigError, Loaded, load, show, value_of
from voiced.daemon.hotwords import hotwords_of
from voiced.daemon.security import problems_of


def check(file: Path | None) -> int:
    """Read every source; say that it is good, or raise `ConfigError` with every problem.

    Good is what a daemon would start with, as far as the settings and the file of hotwords tell.
    Keys and certificates are not opened: whoever checks need not be allowed to read them.
    """
    loaded = load(file=file)
    warn(loaded)
    for warning in exposure.warnings(loaded.settings):
        print(f"voiced: warning: insecure: {warning}", file=sys.stderr)
    problems = problems_of(loaded.settings)
    try:
        hotwords_of(loaded.settings.engine)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(
            [replace(each, source=loaded.origins.get(each.key, each.source)) for each in problems]
        )
    print(f"configuration is valid ({loaded.file or 'no file, defaults'})")
    return 0


def show_settings(file: Path | None, *, as_json: bool) -> int:
    """Print the effective value and the origin of every key."""
    loaded = load(file=file)
    warn(loaded)
    values = {name: value_of(loaded.settings, name) for name in KEYS}
    if as_json:
        document = {
            name: {"value": value, "origin": loaded.origins[name]} for name, value in values.items()
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    rows = [(f"{name} = {show(value)}", loaded.origins[name]) for name, value in values.items()]
    width = max(len(left) for left, _ in rows)
    for left, origin in rows:
        print(f"{left:<{width}}  # {origin}")
    return 0


def warn(loaded: Loaded) -> None:
    """Print what does no harm and is probably not meant."""
    for problem in loaded.warnings:
        print(f"voiced: warning: {problem}", file=sys.stderr)
