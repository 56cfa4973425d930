"""`voiced journal …`, `voiced bench crash` and `interruptions` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_group import group
from voiced.daemon.cli_options import Clips, JsonFile, Model, Sets

journal_app = group("Read, export and delete what the daemon has kept.")

JournalFolder = Annotated[
    Path | None,
    typer.Option(
        "--folder", help="Folder of the journal; default: from the settings.", metavar="DIR"
    ),
]
Since = Annotated[
    str | None,
    typer.Option(help="From then on: 90s, 15m, 2h, 7d, all, or 2026-03-01T08:00.", metavar="WHEN"),
]
Before = Annotated[str | None, typer.Option(help="Only what is older; as --since.", metavar="WHEN")]
StreamOption = Annotated[
    str | None, typer.Option("--stream", help="Only of this stream.", metavar="NAME")
]


@journal_app.command("list")
def _journal_list(
    folder: JournalFolder = None,
    since: Since = None,
    before: Before = None,
    stream: StreamOption = None,
    last: Annotated[int | None, typer.Option(help="Only the last so many.", min=1)] = None,
) -> None:
    """Print what was said, one line each: time, stream, segment, text."""
    from voiced.daemon.commands.journal import Selection, journal_list

    raise typer.Exit(journal_list(folder, Selection.of(since, before, stream), last=last))


@journal_app.command("export")
def _journal_export(
    output_format: Annotated[
        Literal["jsonl", "csv", "srt"], typer.Option("--format", help="What to write.")
    ] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File; default: standard output.", metavar="FILE"),
    ] = None,
    folder: JournalFolder = None,
    since: Since = None,
    before: Before = None,
    stream: StreamOption = None,
) -> None:
    """Write entries: as they were on the bus, as a table, or as subtitles of one stream."""
    from voiced.daemon.commands.journal import Selection, journal_export

    raise typer.Exit(
        journal_export(folder, Selection.of(since, before, stream), output_format, out)
    )


@journal_app.command("purge")
def _journal_purge(
    older_than: Annotated[
        str | None, typer.Option(help="Delete what is older: 7d, 2h, or a time.", metavar="WHEN")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Delete everything, the spool's audio too.")
    ] = False,
    folder: JournalFolder = None,
) -> None:
    """Delete entries for good: their bytes are overwritten, the space is given back."""
    from voiced.daemon.commands.journal import journal_purge

    raise typer.Exit(journal_purge(folder, older_than=older_than, everything=everything))


def add_commands(bench_app: typer.Typer) -> None:
    """Add `voiced bench crash` and `voiced bench interruptions`."""

    @bench_app.command("crash")
    def _bench_crash(
        kills: Annotated[int, typer.Option(help="How many.", min=1)] = 200,
        streams: Annotated[int, typer.Option(help="Clients that speak.", min=1)] = 6,
        seed: Annotated[int, typer.Option(help="Of the moments and the sound.")] = 1,
        minutes: Annotated[
            float, typer.Option(help="No kill after this, however few there were.", min=0.1)
        ] = 60.0,
        survives: Annotated[
            Literal["crash", "power_cut"], typer.Option(help="journal.survives of the daemon.")
        ] = "crash",
        folder: Annotated[
            Path | None,
            typer.Option(help="New folder that keeps journal and logs.", metavar="DIR"),
        ] = None,
        json_path: Annotated[
            Path | None, typer.Option("--json", help="Also write it to FILE.", metavar="FILE")
        ] = None,
    ) -> None:
        """Kill daemon, worker and plugin at random under load; count lost and doubled finals."""
        from voiced.bench.crash import CrashPlan
        from voiced.daemon.commands.crash import crash

        plan = CrashPlan(
            kills=kills, streams=streams, seed=seed, longest_s=60 * minutes, survives=survives
        )
        raise typer.Exit(crash(plan, folder=folder, json_path=json_path))

    @bench_app.command("interruptions")
    def _bench_interruptions(
        clips: Clips = None,
        sets: Sets = None,
        streams: Annotated[int, typer.Option(help="Clients that speak.", min=1)] = 4,
        rounds: Annotated[int, typer.Option(help="Daemons, one after another.", min=1)] = 3,
        model: Model = None,
        json_path: JsonFile = None,
    ) -> None:
        """Seconds of a start, of a killed worker and of a stop under load; all must be answered.

        A daemon with the real model is started, its worker killed and the daemon stopped, each
        while live streams speak.
        """
        from voiced.daemon.commands.bench_interruptions import interruptions

        raise typer.Exit(
            interruptions(
                clips=clips,
                sets=sets or (),
                streams=streams,
                rounds=rounds,
                model=model,
                json_path=json_path,
            )
        )
