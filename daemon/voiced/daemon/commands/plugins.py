"""`voiced plugins list | run`: what is installed, and one plugin in this process."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from voiced.daemon.exit_status import EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from voiced.plugins.curve import CurveKeys

DEFAULT_BUS = "tcp://127.0.0.1:8766"
DEFAULT_INGEST = "tcp://127.0.0.1:8767"


def plugins_list() -> int:
    """Print every installed plugin with its first line of documentation.

    Returns:
        0; a plugin that cannot be imported is listed with the reason.
    """
    from voiced.plugins.errors import PluginNotFound
    from voiced.plugins.runner import installed_plugins, load_plugin

    for name in installed_plugins():
        try:
            summary = (load_plugin(name).__doc__ or "").strip().partition("\n")[0]
        except PluginNotFound as error:
            summary = f"(broken: {error.reason})"
        print(f"{name:<16} {summary}".rstrip())
    return EXIT_OK


def plugins_run(
    name: str,
    bus: str = DEFAULT_BUS,
    ingest: str = DEFAULT_INGEST,
    config: Path | None = None,
    settings: Sequence[str] = (),
    *,
    curve: CurveKeys | None = None,
    replay: str | None = None,
    start_from: Literal["last", "now", "beginning"] | None = None,
    folder: Path | None = None,
) -> int:
    """Run one plugin until SIGTERM or SIGINT.

    Args:
        name: Installed name, or `package.module:Class`.
        bus: The daemon's PUB socket.
        ingest: The daemon's PULL socket for intents.
        config: TOML file; its table `[plugins.NAME]` are the options.
        settings: `key=value` pairs that go over those of the file.
        curve: For a bus that is closed to others.
        replay: The daemon's ROUTER socket for what was missed.
        start_from: Where to begin; None: as the plugin says.
        folder: Where the plugin's position is kept; None: the usual place.

    Returns:
        0 stopped by a signal, 1 failed or hung, 2 unusable name, options or file.
    """
    from voiced.plugins.errors import PluginError
    from voiced.plugins.runner import run_plugin

    try:
        return run_plugin(
            name,
            bus,
            ingest,
            read_options(name, config, settings),
            curve=curve,
            replay=replay,
            start_from=start_from,
            folder=folder,
        )
    except (PluginError, ValueError) as error:
        print(f"voiced: {error}", file=sys.stderr)
        return EXIT_USAGE


def read_options(name: str, config: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """Merge a plugin's table of the file with `key=value` pairs.

    Raises:
        ValueError: The file cannot be read or has no table where one is expected, or a pair has
            no `=`.
    """
    options: dict[str, Any] = {}
    if config is not None:
        try:
            table: Any = tomllib.loads(config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{config}: cannot be used: {error}") from error
        for key in ("plugins", name):
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise ValueError(f"{config}: plugins.{name}: expected a table, found {table!r}")
        options.update(table)
    for pair in settings:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {pair}: expected key=value")
        options[key] = value
    return options
