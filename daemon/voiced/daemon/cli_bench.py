"""`voiced bench …` on recordings; the work is in `commands/bench.py` and `live_peers.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from voiced.daemon.cli_group import group
from voiced.daemon.cli_options import (
    Backend,
    Clips,
    Corpus,
    JsonFile,
    Language,
    Model,
    Sets,
    Threads,
)

bench_app = group("Measure accuracy and speed.")

Beam = Annotated[int, typer.Option("--beam", help="Hypotheses kept.", min=1)]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="The peer's weights; default: fetched once.", metavar="DIR"),
]


@bench_app.command("accuracy")
def _bench_accuracy(
    folder: Corpus,
    sets: Sets = None,
    policy: Annotated[
        Literal["shipped", "pad30"] | None,
        typer.Option(help="This policy alone; default: the shipped one and the 30-s baseline."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most clips of a set.", min=1)] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", help="Also measure this recogniser.")
    ] = None,
    model: Model = None,
    backend: Backend = None,
    beam: Annotated[
        int | None, typer.Option(help="Hypotheses kept; default: as published.", min=1)
    ] = None,
    threads: Threads = 1,
    language: Language = None,
    layout: Annotated[
        Literal[
            "auto",
            "manifests",
            "librispeech",
            "aishell1",
            "aishell2",
            "wenetspeech",
            "kespeech",
            "kaldi",
            "plain",
        ],
        typer.Option(help="How DIR is laid out."),
    ] = "auto",
    weights: Weights = None,
    json_path: JsonFile = None,
) -> None:
    """Word and character errors per set in %, loops, and false text on noise.

    DIR holds manifests or a public test set, whose published figures stand beside ours. Whisper is
    also compared with itself at 30-s padding, pair by pair.
    """
    from voiced.bench.accuracy import Policy
    from voiced.bench.public_sets import Layout
    from voiced.daemon.commands.bench import accuracy

    raise typer.Exit(
        accuracy(
            folder,
            sets=sets or (),
            policy=None if policy is None else Policy(policy),
            limit=limit,
            peers=peers or (),
            model=model,
            backend=backend,
            beam=beam,
            threads=threads,
            language=language,
            layout=Layout(layout),
            weights=weights,
            json_path=json_path,
        )
    )


@bench_app.command("backend")
def _bench_backend(
    folder: Corpus,
    sets: Sets = None,
    limit: Annotated[int, typer.Option(help="Most clips of a set.", min=1)] = 6,
    utterances: Annotated[
        int, typer.Option(help="Also watch the memory over so many utterances.", min=0)
    ] = 0,
    model: Annotated[
        str, typer.Option("--model", help="A converted bundle.", metavar="NAME")
    ] = "whisper-base-fp32",
    runtime: Annotated[
        Literal["mindspore_lite"], typer.Option("--backend", help="What to measure.")
    ] = "mindspore_lite",
    beam: Beam = 5,
    threads: Threads = 1,
    json_path: JsonFile = None,
) -> None:
    """A converted bundle against ONNX Runtime: texts, speed, crossing, memory."""
    from voiced.daemon.commands.bench import backend

    raise typer.Exit(
        backend(
            folder,
            sets=sets or (),
            limit=limit,
            utterances=utterances,
            model=model,
            runtime=runtime,
            beam=beam,
            threads=threads,
            json_path=json_path,
        )
    )


@bench_app.command("peers")
def _bench_peers(
    clips: Clips = None,
    sets: Sets = None,
    per_length: Annotated[int, typer.Option(help="Clips of each length.", min=1)] = 12,
    repeats: Annotated[int, typer.Option(help="Runs on each clip.", min=1)] = 3,
    live: Annotated[
        bool, typer.Option("--live", help="Whole servers under live streams instead.")
    ] = False,
    streams: Annotated[
        list[int] | None,
        typer.Option(help="Live streams; repeated: one run each; default 1, 2, 4, 8.", min=1),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of a live run.", min=5)] = 60.0,
    names: Annotated[
        list[str] | None,
        typer.Option("--peer", help="Live: only this server (wyoming, moonshine)."),
    ] = None,
    model: Model = None,
    backend: Backend = None,
    beam: Beam = 5,
    threads: Annotated[
        int | None, typer.Option(help="Threads; default 1, live: one a core.", min=1)
    ] = None,
    language: Language = None,
    weights: Weights = None,
    json_path: JsonFile = None,
) -> None:
    """Milliseconds from the end of a segment to its text, against faster-whisper in the same run.

    Needs the peers: `make peers`; with --live: `make peers-live`.
    """
    if live:
        from voiced.daemon.commands.live_peers import live_peers

        raise typer.Exit(
            live_peers(
                clips=clips,
                sets=sets or (),
                streams=streams or (1, 2, 4, 8),
                seconds=seconds,
                peers=names or (),
                threads=threads,
                beam=beam,
                model=model,
                backend=backend,
                language=language,
                weights=weights,
                json_path=json_path,
            )
        )
    from voiced.daemon.commands.bench import peers

    raise typer.Exit(
        peers(
            clips,
            per_length=per_length,
            repeats=repeats,
            threads=threads or 1,
            beam=beam,
            sets=sets or (),
            model=model,
            backend=backend,
            language=language,
            weights=weights,
            json_path=json_path,
        )
    )


@bench_app.command("frontend")
def _bench_frontend(
    clips: Clips = None,
    sets: Sets = None,
    seconds: Annotated[
        float, typer.Option(help="Seconds of speech to take from the recordings.", min=1)
    ] = 60.0,
    daemon: Annotated[
        bool, typer.Option("--daemon/--no-daemon", help="Measure a whole daemon too.")
    ] = True,
    streams: Annotated[
        int, typer.Option(help="Streams at once that are played to the daemon.", min=1)
    ] = 16,
    play_s: Annotated[
        float, typer.Option(help="Seconds that each of them is played, in real time.", min=1)
    ] = 15.0,
    json_path: JsonFile = None,
) -> None:
    """CPU milliseconds per second of speech and silence of everything but the recogniser.

    First the audio chain of one stream in this process, then a daemon with the fake recogniser
    and real-time streams over WebSockets: sockets, session and bus included.
    """
    from voiced.daemon.commands.bench import frontend

    raise typer.Exit(
        frontend(
            clips=clips,
            sets=sets or (),
            seconds=seconds,
            streams=streams if daemon else 0,
            play_s=play_s,
            json_path=json_path,
        )
    )
