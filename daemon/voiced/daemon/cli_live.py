"""Commands that measure with live streams; wired into `cli.py`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voiced.daemon.cli_options import Backend, Clips, FolderLanguage, JsonFile, Model, Sets

if TYPE_CHECKING:
    from voiced.daemon.commands.live import Served

Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Stream of a running daemon; default: one is started.", metavar="URL"
    ),
]
Bus = Annotated[str | None, typer.Option("--bus", help="Bus of that daemon.", metavar="ENDPOINT")]
Pid = Annotated[
    int | None, typer.Option("--pid", help="Process of that daemon, for CPU and memory.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token it asks for.", metavar="FILE"),
]
Authority = Annotated[
    Path | None,
    typer.Option("--authority", help="PEM file with what signed its certificate.", metavar="FILE"),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings of the daemon that is started; default: none.",
        metavar="FILE",
        dir_okay=False,
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", help="A setting of it; may be repeated.", metavar="SECTION.KEY=VALUE"),
]
PerLanguage = Annotated[
    int, typer.Option("--per-language", help="Different clips of a language.", min=1)
]
Partials = Annotated[bool, typer.Option(help="Ask for partial results or not.")]
Seed = Annotated[int, typer.Option(help="Another seed is another dialogue.", min=0)]


def add_commands(root: typer.Typer, bench: typer.Typer) -> None:
    """Wire the commands below into `voiced` and `voiced bench`."""

    @bench.command("load")
    def _load(
        streams: Annotated[
            list[int] | None,
            typer.Option(help="Live streams at once; repeated: one run for each.", min=1),
        ] = None,
        seconds: Annotated[float, typer.Option(help="Length of a run.", min=5)] = 60.0,
        partials: Partials = True,
        eager: Annotated[bool, typer.Option("--eager", help="Ask for early finals too.")] = False,
        message_ms: Annotated[
            int, typer.Option(help="Sound in one message, ms.", min=5, max=1000)
        ] = 50,
        check: Annotated[
            bool, typer.Option(help="Hold texts against what the same weights write offline.")
        ] = True,
        url: Url = None,
        bus: Bus = None,
        pid: Pid = None,
        token_file: TokenFile = None,
        authority: Authority = None,
        config: Config = None,
        assignments: With = None,
        model: Model = None,
        backend: Backend = None,
        clips: Clips = None,
        sets: Sets = None,
        per_language: PerLanguage = 24,
        language: FolderLanguage = None,
        seed: Seed = 0,
        json_path: JsonFile = None,
    ) -> None:
        """Live dialogue over WebSockets: delays, losses, CPU, memory, and a client's ledger."""
        from voiced.daemon.commands.live import load

        raise typer.Exit(
            load(
                served=_served(
                    config, assignments, model, backend, url, bus, pid, token_file, authority
                ),
                streams=streams or [4],
                seconds=seconds,
                partials=partials,
                eager=eager,
                message_ms=message_ms,
                seed=seed,
                clips=clips,
                sets=sets or (),
                per_language=per_language,
                language=language,
                check=check,
                json_path=json_path,
            )
        )

    @bench.command("soak")
    def _soak(
        minutes: Annotated[float, typer.Option(help="Length of the run.", min=0.1)] = 120.0,
        streams: Annotated[int, typer.Option(help="Live streams at once.", min=1)] = 4,
        partials: Partials = True,
        url: Url = None,
        bus: Bus = None,
        pid: Pid = None,
        token_file: TokenFile = None,
        authority: Authority = None,
        config: Config = None,
        assignments: With = None,
        model: Model = None,
        backend: Backend = None,
        clips: Clips = None,
        sets: Sets = None,
        per_language: PerLanguage = 24,
        language: FolderLanguage = None,
        seed: Seed = 0,
        json_path: JsonFile = None,
    ) -> None:
        """The same for hours, with a verdict: flat delay, flat memory, nothing lost or doubled."""
        from voiced.daemon.commands.live import soak

        raise typer.Exit(
            soak(
                served=_served(
                    config, assignments, model, backend, url, bus, pid, token_file, authority
                ),
                streams=streams,
                minutes=minutes,
                partials=partials,
                seed=seed,
                clips=clips,
                sets=sets or (),
                per_language=per_language,
                language=language,
                json_path=json_path,
            )
        )

    @root.command("tune")
    def _tune(
        quick: Annotated[
            bool, typer.Option("--quick", help="About 5 minutes instead of 20 to 30.")
        ] = False,
        target_ms: Annotated[
            float, typer.Option(help="p99 of finals beyond the hang-over, ms.", min=1)
        ] = 1000.0,
        most: Annotated[int, typer.Option(help="Never try more streams.", min=1)] = 64,
        settings: Annotated[
            bool, typer.Option(help="Also try settings, or only find the knee.")
        ] = True,
        partials: Partials = True,
        out: Annotated[
            Path | None,
            typer.Option("--out", help="Configuration to write; default: printed.", metavar="FILE"),
        ] = None,
        drawing: Annotated[
            Path | None, typer.Option("--svg", help="Drawing to write.", metavar="FILE")
        ] = None,
        config: Config = None,
        assignments: With = None,
        model: Model = None,
        backend: Backend = None,
        clips: Clips = None,
        sets: Sets = None,
        per_language: PerLanguage = 24,
        language: FolderLanguage = None,
        seed: Seed = 0,
        json_path: JsonFile = None,
    ) -> None:
        """Measure this machine: settings, how many live streams it serves, and a configuration.

        Without --clips the speech is the demo's, cut to a mix of common lengths.
        """
        from voiced.daemon.commands.tune import tune

        raise typer.Exit(
            tune(
                served=_served(config, assignments, model, backend),
                target_ms=target_ms,
                most=most,
                quick=quick,
                settings=settings,
                partials=partials,
                seed=seed,
                clips=clips,
                sets=sets or (),
                per_language=per_language,
                language=language,
                out=out,
                drawing=drawing,
                json_path=json_path,
            )
        )


def _served(
    config: Path | None,
    assignments: list[str] | None,
    model: str | None,
    backend: str | None,
    url: str | None = None,
    bus: str | None = None,
    pid: int | None = None,
    token_file: Path | None = None,
    authority: Path | None = None,
) -> Served:
    from voiced.daemon.commands.live import Served

    return Served(
        url=url,
        bus=bus,
        pid=pid,
        token_file=token_file,
        authority=authority,
        model=model,
        backend=backend,
        config=config,
        assignments=assignments or (),
    )
