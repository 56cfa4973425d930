"""`voiced status`: arguments in; the work is in `commands/status.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voiced.daemon.cli_options import Authority


def add_status(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("status")
    def _status(
        url: Annotated[
            str | None,
            typer.Option(
                help="Where to ask; default: from the settings, http://127.0.0.1:8765/v1/status.",
                metavar="URL",
            ),
        ] = None,
        once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON, once.")] = False,
        token_file: Annotated[
            Path | None,
            typer.Option(
                help="File with an admin's token, where one is asked for.", metavar="FILE"
            ),
        ] = None,
        authority: Authority = None,
    ) -> None:
        """Show a running daemon: streams with their levels, engine, queues."""
        from voiced.daemon.addresses import status_url
        from voiced.daemon.commands.keys import read_token
        from voiced.daemon.commands.status import status
        from voiced.daemon.config import load

        token = read_token(token_file)
        url = url or status_url(load().settings.server)
        raise typer.Exit(status(url, once=once, as_json=as_json, token=token, authority=authority))
