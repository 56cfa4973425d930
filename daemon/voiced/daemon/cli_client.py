"""Commands that listen or talk to a running daemon. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voiced.daemon.cli_options import AsJson, Authority, Language, TokenFile


def add_commands(app: typer.Typer) -> None:
    """Add `voiced stream` and `listen`."""

    @app.command("stream")
    def _stream(
        file: Annotated[Path, typer.Argument(help="A recording.")],
        url: Annotated[
            str | None,
            typer.Option(
                help="The daemon's stream; default: from the settings, ws://127.0.0.1:8765/v1/stream.",
                metavar="URL",
            ),
        ] = None,
        language: Language = None,
        partials: Annotated[bool, typer.Option(help="Ask for partial results or not.")] = True,
        token_file: TokenFile = None,
        authority: Authority = None,
        as_json: AsJson = False,
    ) -> None:
        """Play a file to a running daemon at the speed of speech and print what comes back.

        Each line begins with the seconds since the first audio was sent; `+ms` behind a partial or
        final counts from sending the last audio that it covers.
        """
        from voiced.daemon.addresses import stream_url
        from voiced.daemon.commands.keys import read_token
        from voiced.daemon.commands.stream import stream
        from voiced.daemon.config import load

        token = read_token(token_file)
        url = url or stream_url(load().settings.server)
        raise typer.Exit(
            stream(
                file,
                url=url,
                language=language,
                partials=partials,
                as_json=as_json,
                token=token,
                authority=authority,
            )
        )

    @app.command("listen")
    def _listen(
        bus: Annotated[
            str | None, typer.Option(help="The daemon's bus; default: from the settings.")
        ] = None,
        types: Annotated[
            list[str] | None,
            typer.Option("--type", help="Only this type of message; may be repeated."),
        ] = None,
        count: Annotated[
            int | None, typer.Option(help="End after so many messages.", min=1)
        ] = None,
        since: Annotated[
            str | None,
            typer.Option(
                help="Begin with the journal's finals since then: 90s, 15m, 2h, 7d, all, or a "
                "time as 2026-03-01T08:00.",
                metavar="WHEN",
            ),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Print what a running daemon publishes on its bus."""
        from voiced.daemon.addresses import connectable
        from voiced.daemon.commands.keys import client_keys
        from voiced.daemon.commands.listen import listen
        from voiced.daemon.commands.times import since_ms
        from voiced.daemon.config import load

        endpoints = load().settings.bus
        bus = bus or connectable(endpoints.endpoint)
        start_ms = None if since is None else since_ms(since)
        raise typer.Exit(
            listen(
                bus,
                types or (),
                as_json,
                count,
                curve=client_keys(endpoints.curve),
                replay=None if start_ms is None else connectable(endpoints.replay),
                since_ms=start_ms,
            )
        )
