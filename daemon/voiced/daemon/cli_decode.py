"""`voiced bench decode` and `hotwords`; wired into `cli.py`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_options import JsonFile, Model, Sets, Threads


def add_commands(bench: typer.Typer) -> None:
    """Wire the commands below into `voiced bench`."""

    @bench.command("decode")
    def _decode(
        sizes: Annotated[
            list[int] | None,
            typer.Option(
                "--batch", help="Utterances that share a step; may be repeated.", min=1, max=64
            ),
        ] = None,
        rounds: Annotated[int, typer.Option(help="Runs of each arrangement.", min=1)] = 10,
        model: Model = None,
        threads: Threads = 1,
        beam: Annotated[
            int | None, typer.Option(help="Hypotheses of finals; default: as published.", min=1)
        ] = None,
        json_path: JsonFile = None,
    ) -> None:
        """What a decoder step costs when utterances share it, in CPU time."""
        from voiced.daemon.commands.bench_decode import decode

        raise typer.Exit(
            decode(
                sizes=tuple(sizes) if sizes else (1, 2, 4, 8),
                rounds=rounds,
                model=model,
                threads=threads,
                beam=beam,
                json_path=json_path,
            )
        )

    @bench.command("hotwords")
    def _hotwords(
        folder: Annotated[
            Path, typer.Argument(help="Recordings with texts.", metavar="DIR", file_okay=False)
        ],
        bonuses: Annotated[
            list[float] | None,
            typer.Option("--bonus", help="Tried; 0: none; may be repeated.", min=0, max=10),
        ] = None,
        phrases: Annotated[
            Path | None,
            typer.Option(help="Phrases, one a line; default: rare words.", metavar="FILE"),
        ] = None,
        more: Annotated[
            Path | None, typer.Option(help="Phrases that nobody says.", metavar="FILE")
        ] = None,
        half: Annotated[
            Literal["a", "b"] | None, typer.Option(help="One half of the clips.")
        ] = None,
        sets: Sets = None,
        greedy: Annotated[bool, typer.Option("--greedy", help="Partials.")] = False,
        model: Model = None,
        json_path: JsonFile = None,
    ) -> None:
        """What a bonus for listed phrases finds, invents, and costs in errors."""
        from voiced.daemon.commands.bench_hotwords import hotwords

        raise typer.Exit(
            hotwords(
                folder,
                bonuses=bonuses or (0, 2),
                phrases=phrases,
                more=more,
                half=half,
                sets=sets or (),
                is_greedy=greedy,
                model=model,
                json_path=json_path,
            )
        )
