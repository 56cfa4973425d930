"""`voiced plugins …`: arguments in; the work is in `commands/plugins.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_group import group
from voiced.daemon.cli_options import Config

plugins_app = group("List and run plugins.")


@plugins_app.command("list")
def _plugins_list() -> None:
    """Show every installed plugin."""
    from voiced.daemon.commands.plugins import plugins_list

    raise typer.Exit(plugins_list())


@plugins_app.command("run")
def _plugins_run(
    name: Annotated[str, typer.Argument(help="Installed name, or package.module:Class.")],
    config: Config = None,
    bus: Annotated[
        str | None, typer.Option(help="The daemon's bus; default: from the settings.")
    ] = None,
    ingest: Annotated[
        str | None, typer.Option(help="Where intents go; default: from the settings.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the plugin; may be repeated.", metavar="K=V"),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(help="Where to ask for what was missed; default: from the settings."),
    ] = None,
    start_from: Annotated[
        Literal["last", "now", "beginning"] | None,
        typer.Option(
            "--from",
            help="Begin behind the last final that the plugin had, now, or with the oldest in the "
            "journal; default: what the plugin says.",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where the plugin's position is kept.", metavar="DIR", file_okay=False),
    ] = None,
) -> None:
    """Run one plugin in this process; its options are the file's table [plugins.NAME]."""
    from voiced.daemon import logs
    from voiced.daemon.addresses import connectable
    from voiced.daemon.commands.keys import client_keys
    from voiced.daemon.commands.plugins import plugins_run
    from voiced.daemon.config import load

    loaded = load(file=config)
    logs.configure(loaded.settings.logging.level)
    endpoints = loaded.settings.bus
    raise typer.Exit(
        plugins_run(
            name,
            bus or connectable(endpoints.endpoint),
            ingest or connectable(endpoints.ingest),
            loaded.file,
            options or (),
            curve=client_keys(endpoints.curve),
            replay=replay or connectable(endpoints.replay),
            start_from=start_from,
            folder=state_dir,
        )
    )
