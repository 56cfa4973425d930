"""`voiced config …`: arguments in; the work is in `commands/config.py`."""

from __future__ import annotations

import typer

from voiced.daemon.cli_group import group
from voiced.daemon.cli_options import AsJson, Config

config_app = group("Check and show the settings.")


@config_app.command("check")
def _config_check(config: Config = None) -> None:
    """Read every source and report every problem at once."""
    from voiced.daemon.commands.config import check

    raise typer.Exit(check(config))


@config_app.command("show")
def _config_show(config: Config = None, as_json: AsJson = False) -> None:
    """Show the effective value of every setting and where it came from."""
    from voiced.daemon.commands.config import show_settings

    raise typer.Exit(show_settings(config, as_json=as_json))
