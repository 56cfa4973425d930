"""Commands that measure real time in simulated time; wired into `cli.py`. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from voiced.daemon.cli_options import Backend, Corpus, FolderLanguage, JsonFile, Model, Sets

Limit = Annotated[int | None, typer.Option(help="Most clips of a set.", min=1)]


def add_commands(bench: typer.Typer) -> None:
    """Wire the commands below into `voiced bench`."""

    @bench.command("partials")
    def _partials(
        folder: Corpus,
        sets: Sets = None,
        limit: Limit = None,
        assignments: Annotated[
            list[str] | None,
            typer.Option(
                "--with", help="A setting to measure; may be repeated.", metavar="SECTION.KEY=VALUE"
            ),
        ] = None,
        slowdown: Annotated[
            float, typer.Option(help="Machine to simulate: CPU time times this.", min=0.01)
        ] = 1.0,
        model: Model = None,
        backend: Backend = None,
        language: FolderLanguage = None,
        json_path: JsonFile = None,
    ) -> None:
        """How soon partials and finals come and how stable they are, in simulated time.

        Each clip is a stream through the daemon's session; finals begun early are compared with
        those that are begun when the segment has ended.
        """
        from voiced.daemon.commands.realtime import partials

        raise typer.Exit(
            partials(
                folder,
                sets=sets or (),
                limit=limit,
                assignments=assignments or (),
                slowdown=slowdown,
                model=model,
                backend=backend,
                language=language,
                json_path=json_path,
            )
        )

    @bench.command("vad")
    def _vad(
        folder: Corpus,
        sets: Sets = None,
        limit: Limit = 20,
        peers: Annotated[
            list[str] | None, typer.Option("--peer", help="Also this detector: firered.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Another seed is another noise.", min=0)] = 0,
        json_path: JsonFile = None,
    ) -> None:
        """What each detector misses, invents, cuts and delays in noise, from clean to 0 dB.

        The noise is that of the folder's clips without speech.
        """
        from voiced.daemon.commands.realtime import vad

        raise typer.Exit(
            vad(
                folder,
                sets=sets or (),
                limit=limit,
                peers=peers or (),
                seed=seed,
                json_path=json_path,
            )
        )
