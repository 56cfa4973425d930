"""`voiced model …`: arguments in; the work is in `commands/model*.py` and `convert.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_group import group
from voiced.daemon.cli_options import Authority, Threads, TokenFile

model_app = group("Get, build and check models.")

ModelName = Annotated[str, typer.Argument(help="Which model.", metavar="[NAME]")]
FromDir = Annotated[
    Path | None,
    typer.Option("--from", help="Folder with the model's files: no network.", metavar="DIR"),
]
Force = Annotated[bool, typer.Option("--force", help="Build again even if it is there.")]


@model_app.command("list")
def _model_list() -> None:
    """Show every model that can be had or is here."""
    from voiced.daemon.commands.model import model_list

    raise typer.Exit(model_list())


@model_app.command("pull")
def _model_pull(
    name: ModelName = "whisper-base", from_dir: FromDir = None, force: Force = False
) -> None:
    """Fetch and build a model and what it needs to run."""
    from voiced.daemon.commands.model import model_pull

    raise typer.Exit(model_pull(name, from_dir, force))


@model_app.command("build")
def _model_build(
    name: ModelName = "whisper-base", from_dir: FromDir = None, force: Force = False
) -> None:
    """Build one model's bundle."""
    from voiced.daemon.commands.model import model_build

    raise typer.Exit(model_build(name, from_dir, force))


@model_app.command("import")
def _model_import(
    family: Annotated[Literal["fireredasr"], typer.Argument(help="Kind of model.")],
    folder: Annotated[
        Path, typer.Argument(help="A released model's files.", metavar="DIR", file_okay=False)
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the bundle.", metavar="NAME")
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8", "fp16"], typer.Option(help="Of the weights; fp16 is portable.")
    ] = "fp32",
    portable: Annotated[
        bool, typer.Option("--portable", help="What `voiced model convert` starts from.")
    ] = False,
    force: Force = False,
) -> None:
    """Build a bundle from a model's released files."""
    from voiced.daemon.commands.model_import import model_import

    raise typer.Exit(model_import(family, folder, name, precision, portable, force))


@model_app.command("convert")
def _model_convert(
    name: ModelName = "whisper-base-fp32",
    target: Annotated[
        Literal["mindspore-cpu", "mindspore-ascend"],
        typer.Option("--target", help="What to convert it for."),
    ] = "mindspore-cpu",
    gears: Annotated[
        str, typer.Option("--gears", help="Gear lengths in seconds, e.g. 2,4,8.", metavar="LIST")
    ] = "",
    threads: Threads = 1,
    chip: Annotated[Literal["310P", "910B"], typer.Option(help="Ascend: the chip.")] = "910B",
    variant: Annotated[
        Literal["plain", "fused", "aoe"], typer.Option(help="Ascend: how far to optimise.")
    ] = "fused",
    device: Annotated[str, typer.Option(help="Ascend: card that checks it.")] = "ascend:0",
    config_only: Annotated[
        Path | None,
        typer.Option(help="Ascend: only write configurations here.", metavar="DIR"),
    ] = None,
) -> None:
    """Convert a bundle's graphs for another runtime, and check every one."""
    from voiced.daemon.commands.convert import model_convert, model_convert_ascend

    try:
        lengths_s = [float(text) for text in gears.split(",") if text.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"--gears takes numbers and commas: {error}") from error
    if target == "mindspore-cpu":
        raise typer.Exit(model_convert(name, target=target, gears_s=lengths_s, threads=threads))
    raise typer.Exit(
        model_convert_ascend(
            name,
            gears_s=lengths_s,
            chip=chip,
            variant=variant,
            device=device,
            config_dir=config_only,
        )
    )


@model_app.command("verify")
def _model_verify(name: ModelName = "whisper-base") -> None:
    """Check every byte of a bundle, and its golden pair."""
    from voiced.daemon.commands.model import model_verify

    raise typer.Exit(model_verify(name))


@model_app.command("switch")
def _model_switch(
    name: Annotated[str, typer.Argument(help="Name of a bundle that is here.", metavar="NAME")],
    url: Annotated[
        str | None,
        typer.Option(
            help="The daemon; default: from the settings, ws://127.0.0.1:8765/v1/admin.",
            metavar="URL",
        ),
    ] = None,
    token_file: TokenFile = None,
    authority: Authority = None,
) -> None:
    """Let a running daemon recognise with another model."""
    from voiced.daemon.addresses import admin_url
    from voiced.daemon.commands.keys import read_token
    from voiced.daemon.commands.model_switch import model_switch
    from voiced.daemon.commands.talk import Target
    from voiced.daemon.config import load

    token = read_token(token_file)
    target = Target(url or admin_url(load().settings.server), token, authority)
    raise typer.Exit(model_switch(name, target))


@model_app.command("path")
def _model_path(name: ModelName = "whisper-base") -> None:
    """Print a bundle's folder."""
    from voiced.daemon.commands.model import model_path

    raise typer.Exit(model_path(name))
