"""`voiced bench decode`; wired into `cli.py`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from voiced.daemon.cli_live import JsonFile, Model


def add_commands(bench: typer.Typer, done: Callable[[int], None]) -> None:
    """Wire the command below into `voiced bench`; `done` ends the process with a status."""

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
        threads: Annotated[int, typer.Option(help="Threads of one graph call.", min=1)] = 1,
        beam: Annotated[
            int | None, typer.Option(help="Hypotheses of finals; default: as published.", min=1)
        ] = None,
        json_path: JsonFile = None,
    ) -> None:
        """What a decoder step costs when utterances share it, in CPU time."""
        from voiced.daemon.commands.bench_decode import decode

        done(
            decode(
                sizes=tuple(sizes) if sizes else (1, 2, 4, 8),
                rounds=rounds,
                model=model,
                threads=threads,
                beam=beam,
                json_path=json_path,
            )
        )
