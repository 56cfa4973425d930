"""Commands that judge a chip or a runtime before it serves. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_options import JsonFile, Model, Threads


def add_commands(app: typer.Typer) -> None:
    """Add `voiced selftest` and `plan`."""

    @app.command("selftest")
    def _selftest(
        model: Model = None,
        backend: Annotated[
            Literal["mindspore_lite", "onnxruntime"], typer.Option(help="Runtime of the graphs.")
        ] = "mindspore_lite",
        device: Annotated[str, typer.Option(help="cpu, ascend:0, or fake:0 (no card).")] = "cpu",
        beam: Annotated[int, typer.Option(help="Hypotheses kept.", min=1)] = 5,
        rounds: Annotated[int, typer.Option(help="Visits of each gear, in turn.", min=2)] = 3,
        repeats: Annotated[int, typer.Option(help="Timed runs of each gear.", min=1)] = 5,
        utterances: Annotated[int, typer.Option(help="Of the memory checks.", min=1)] = 1000,
        longest_s: Annotated[float, typer.Option(help="Longest gear to test.")] = 16.0,
        threads: Threads = 1,
        compare: Annotated[
            list[str] | None,
            typer.Option(help="Also time this conversion; may be repeated.", metavar="NAME=BUNDLE"),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option("--out", help="Report's path, without suffix.", metavar="PATH"),
        ] = None,
    ) -> None:
        """Check what the backend computes, copies, keeps and takes; write a report to send."""
        from voiced.daemon.commands.selftest import selftest

        raise typer.Exit(
            selftest(
                model=model,
                backend=backend,
                device=device,
                beam=beam,
                rounds=rounds,
                repeats=repeats,
                utterances=utterances,
                longest_s=longest_s,
                threads=threads,
                compare=compare or (),
                out=out,
            )
        )

    @app.command("plan")
    def _plan(
        chip: Annotated[str, typer.Option(help="910B4, 910B, 310P or cpu.")],
        model: Annotated[
            str, typer.Option(help="firered-aed-l, -v2, whisper-base.")
        ] = "firered-aed-l",
        streams: Annotated[int, typer.Option(help="Streams that speak at once.", min=1)] = 16,
        utterance_s: Annotated[float, typer.Option(help="Length of an utterance.")] = 10.0,
        beam: Annotated[int, typer.Option(help="Hypotheses kept.", min=1)] = 3,
        tokens: Annotated[
            int | None, typer.Option(help="Per utterance; default 5 a second.")
        ] = None,
        cells: Annotated[int, typer.Option(help="Length of the decoder's cache.", min=1)] = 64,
        update: Annotated[str, typer.Option(help="Cache write: append or blend.")] = "blend",
        histogram: Annotated[
            str | None,
            typer.Option(
                help="Lengths of utterances: file, or a daemon's /metrics.", metavar="FILE"
            ),
        ] = None,
        gears: Annotated[int, typer.Option(help="Most lengths to choose.", min=1, max=100)] = 4,
        json_path: JsonFile = None,
    ) -> None:
        """What a model will cost on a chip, and which gears to convert it with."""
        from voiced.daemon.commands.plan import plan

        raise typer.Exit(
            plan(
                chip=chip,
                model=model,
                streams=streams,
                utterance_s=utterance_s,
                beam=beam,
                tokens=tokens,
                cells=cells,
                update=update,
                histogram=histogram,
                gears=gears,
                json_path=json_path,
            )
        )
