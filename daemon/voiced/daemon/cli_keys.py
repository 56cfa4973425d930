"""`voiced keys …`: arguments in; the work is in `commands/keys.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voiced.daemon.cli_group import group

keys_app = group("Bearer tokens of the HTTP port, and keys of the bus.")
_token_app = group("Tokens: who may connect by HTTP and WebSocket.")
_curve_app = group("CURVE keys: who may connect to the bus by ZeroMQ.")
keys_app.add_typer(_token_app, name="token")
keys_app.add_typer(_curve_app, name="curve")

TokenFile = Annotated[
    Path | None,
    typer.Option("--file", help="The file; default: `server.tokens`.", metavar="FILE"),
]
AllowFile = Annotated[
    Path | None,
    typer.Option("--file", help="The file; default: `bus.curve.allowed`.", metavar="FILE"),
]
Name = Annotated[str, typer.Argument(help="What it is called here.")]


@_token_app.command("add")
def _token_add(
    name: Name,
    scope: Annotated[
        str, typer.Option(help="What it is for: stream, subscribe, admin.", metavar="LIST")
    ] = "stream",
    expires: Annotated[
        str, typer.Option(help="never, 12h, 90d, 8w, or a date.", metavar="WHEN")
    ] = "90d",
    file: TokenFile = None,
) -> None:
    """Make a token and print it; it is kept as a hash and cannot be shown again."""
    from voiced.daemon.commands.keys import token_add

    raise typer.Exit(token_add(name, scope=scope, expires=expires, file=file))


@_token_app.command("list")
def _token_list(file: TokenFile = None) -> None:
    """Show every token's name, scopes and end."""
    from voiced.daemon.commands.keys import token_list

    raise typer.Exit(token_list(file))


@_token_app.command("revoke")
def _token_revoke(name: Name, file: TokenFile = None) -> None:
    """Take a token back; a running daemon ends its connections within seconds."""
    from voiced.daemon.commands.keys import token_revoke

    raise typer.Exit(token_revoke(name, file))


@_curve_app.command("new")
def _curve_new(
    file: Annotated[Path, typer.Argument(help="Where the key pair goes; must not exist.")],
) -> None:
    """Make a key pair and print its public key."""
    from voiced.daemon.commands.keys import curve_new

    raise typer.Exit(curve_new(file))


@_curve_app.command("allow")
def _curve_allow(
    name: Name,
    public: Annotated[str, typer.Argument(help="The client's public key.", metavar="KEY")],
    use: Annotated[
        str, typer.Option("--for", help="subscribe, ingest.", metavar="LIST")
    ] = "subscribe",
    file: AllowFile = None,
) -> None:
    """Let a client connect to the bus, to hear it or to hand in intents."""
    from voiced.daemon.commands.keys import curve_allow

    raise typer.Exit(curve_allow(name, public, use=use, file=file))


@_curve_app.command("list")
def _curve_list(file: AllowFile = None) -> None:
    """Show every key that may connect."""
    from voiced.daemon.commands.keys import curve_list

    raise typer.Exit(curve_list(file))


@_curve_app.command("remove")
def _curve_remove(name: Name, file: AllowFile = None) -> None:
    """Take a key out of the list; connections that it has stay until they end."""
    from voiced.daemon.commands.keys import curve_remove

    raise typer.Exit(curve_remove(name, file))
