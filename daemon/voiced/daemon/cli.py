"""The `voiced` command: arguments in, exit status out; each command's work is in `commands/`.

Exit status:

| status | meaning                                                                              |
|--------|--------------------------------------------------------------------------------------|
| 0      | done; for `run`: stopped by a signal, everything accepted was answered               |
| 1      | failed, also in part (one of several files); for `run`: the end was not a clean one  |
| 2      | wrong use: arguments or configuration                                                |
| 3      | something needed is missing or taken: a model, a library, a device, a port, a daemon |
| 130    | interrupted by Ctrl-C (`run`, `listen` and `plugins run` end that way: 0)            |
| 141    | nobody reads standard output any more                                                |

This module imports nothing heavy, so that `voiced --help` answers at once
(`tests/test_architecture.py`); the functions below import what they need.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from voiced.audio.errors import AudioError
from voiced.bench.errors import BenchError
from voiced.daemon import cli_decode, cli_doctor, cli_journal, cli_live, cli_realtime
from voiced.daemon.cli_group import group
from voiced.daemon.cli_keys import keys_app
from voiced.daemon.cli_status import add_status
from voiced.daemon.commands.pipes import drop_unwritten_output, replace_closed_streams
from voiced.daemon.errors import DaemonError, os_reason
from voiced.engine.errors import EngineError
from voiced.plugins.errors import PluginError

EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 3, 130

UNAVAILABLE = frozenset(
    {
        "backend_unavailable",
        "bundle",
        "device_busy",
        "device_not_found",
        "endpoint_in_use",
        "fetch",
        "journal_busy",
        "journal_damaged",
        "journal_missing",
        "journal_unusable",
        "peer_unavailable",
        "port_in_use",
        "portaudio_missing",
        "socket_in_use",
        "unreachable",
        "vad_unavailable",
    }
)
"""Codes of errors that mean: what is needed is not there. Their exit status is 3."""

USAGE = frozenset(
    {"address", "config", "corpus", "output", "plan", "plugin_config", "plugin_not_found", "time"}
)
"""Codes of errors that only other arguments or settings can mend. Their exit status is 2."""


app = group("A voice daemon: audio in, transcripts on WebSocket and ZeroMQ, plugins act on them.")
model_app = group("Get, build and check models.")
config_app = group("Check and show the settings.")
bench_app = group("Measure accuracy and speed.")
plugins_app = group("List and run plugins.")
app.add_typer(model_app, name="model")
app.add_typer(plugins_app, name="plugins")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(cli_journal.journal_app, name="journal")
app.add_typer(bench_app, name="bench")

Config = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (TOML).", metavar="FILE", dir_okay=False),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Bundle name or folder; default whisper-base.", metavar="NAME"),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="Runtime of the graphs; default onnxruntime.", metavar="NAME"),
]
Language = Annotated[
    str | None,
    typer.Option(
        "--language", help="Language spoken, e.g. en; default: chosen per segment.", metavar="CODE"
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File with the token to show, where one is asked for.", metavar="FILE"
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--authority", help="PEM file with what signed the daemon's certificate.", metavar="FILE"
    ),
]
Threads = Annotated[int, typer.Option("--threads", help="Threads of one graph call.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or VOICED_DEBUG=1).")
    ] = False,
) -> None:
    if debug:
        os.environ["VOICED_DEBUG"] = "1"


@app.command("run")
def _run(
    config: Config = None,
    model: Model = None,
    backend: Backend = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; default 127.0.0.1.", metavar="ADDRESS"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="TCP port; 0: any free one; default 8765.", metavar="PORT"),
    ] = None,
    bus: Annotated[
        str | None,
        typer.Option(
            help="ZeroMQ endpoint to publish on; default tcp://127.0.0.1:8766.", metavar="ENDPOINT"
        ),
    ] = None,
    ingest: Annotated[
        str | None,
        typer.Option(
            help="ZeroMQ endpoint plugins send to; default tcp://127.0.0.1:8767.",
            metavar="ENDPOINT",
        ),
    ] = None,
    microphone: Annotated[
        bool | None,
        typer.Option(
            "--microphone/--no-microphone", help="Open the sound device or not; default: not."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Sound device, by number or name (see `voiced devices`); default: the system's.",
            metavar="DEVICE",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning or error; default info.", metavar="LEVEL"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting; may be repeated.", metavar="SECTION.KEY=VALUE"),
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch and build the model if it is not here.")
    ] = False,
    address_file: Annotated[
        Path | None,
        typer.Option(help="Gets the addresses listened on, as JSON.", metavar="FILE"),
    ] = None,
) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C ends it, a second one at once.

    Defaults are those of the configuration file and of VOICED_SECTION_KEY variables where they
    say something: `voiced config show` prints the effective ones.
    """
    from voiced.daemon.commands.run import run
    from voiced.daemon.config import parse_assignment

    named: dict[str, tuple[str, Any]] = {
        "engine.model": ("--model", model),
        "engine.backend": ("--backend", backend),
        "server.host": ("--host", host),
        "server.port": ("--port", port),
        "bus.endpoint": ("--bus", bus),
        "bus.ingest": ("--ingest", ingest),
        "microphone.enabled": ("--microphone/--no-microphone", microphone),
        "microphone.device": ("--device", device),
        "logging.level": ("--log-level", log_level),
    }
    flags = {name: flag for name, flag in named.items() if flag[1] is not None}
    for assignment in assignments or ():
        name, value = parse_assignment(assignment)
        flags[name] = ("--set", value)
    _exit(run(config_file=config, flags=flags, pull=pull, address_file=address_file))


@app.command("transcribe")
def _transcribe(
    files: Annotated[list[Path], typer.Argument(help="Recordings, of any common format.")],
    output_format: Annotated[
        Literal["text", "jsonl", "srt", "vtt"],
        typer.Option("--format", help="What to write; see above."),
    ] = "text",
    language: Language = None,
    vad: Annotated[
        Literal["cascade", "silero", "webrtc"], typer.Option(help="Detector of speech.")
    ] = "cascade",
    no_vad: Annotated[
        bool, typer.Option("--no-vad", help="Take each file as one segment.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File or, with no suffix, folder to write to instead of standard output.",
            metavar="PATH",
        ),
    ] = None,
    model: Model = None,
    backend: Backend = None,
    threads: Threads = 1,
) -> None:
    """Transcribe recorded files.

    text: one line for each file, after its name when there are several. jsonl: one object for each
    file, times in seconds. srt, vtt: subtitles, one file each (--out FOLDER for several). A file
    that fails is reported on standard error, the rest go on, and the exit status is 1.
    """
    from voiced.audio.vad import VadKind
    from voiced.daemon.commands.transcribe import OutputFormat, transcribe

    _exit(
        transcribe(
            files,
            output_format=OutputFormat(output_format),
            language=language,
            vad=None if no_vad else VadKind(vad),
            out=out,
            model=model,
            backend=backend,
            threads=threads,
        )
    )


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
    from voiced.daemon.commands.keys import read_token
    from voiced.daemon.commands.stream import stream
    from voiced.daemon.config import load, stream_url

    token = None if token_file is None else read_token(token_file)
    url = url or stream_url(load().settings.server)
    _exit(
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
    count: Annotated[int | None, typer.Option(help="End after so many messages.", min=1)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with the journal's finals since then: 90s, 15m, 2h, 7d, all, or a time as "
            "2026-03-01T08:00.",
            metavar="WHEN",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a running daemon publishes on its bus."""
    from voiced.daemon.commands.keys import client_keys
    from voiced.daemon.commands.listen import listen
    from voiced.daemon.commands.times import since_ms
    from voiced.daemon.config import connectable, load

    endpoints = load().settings.bus
    bus = bus or connectable(endpoints.endpoint)
    start_ms = None if since is None else since_ms(since)
    _exit(
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


@app.command("devices")
def _devices(as_json: AsJson = False) -> None:
    """List the sound devices that can record."""
    from voiced.daemon.commands.devices import devices

    _exit(devices(as_json))


@app.command("demo")
def _demo(
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write the summary to FILE.", metavar="FILE")
    ] = None,
) -> None:
    """Recorded speech through a real daemon, its transcripts from the bus, and one line of sums."""
    from voiced.daemon.commands.demo import demo

    _exit(demo(as_json))


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
        Path | None, typer.Option("--out", help="Report's path, without suffix.", metavar="PATH")
    ] = None,
) -> None:
    """Check what the backend computes, copies, keeps and takes; write a report to send."""
    from voiced.daemon.commands.selftest import selftest

    _exit(
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
    model: Annotated[str, typer.Option(help="firered-aed-l, -v2, whisper-base.")] = "firered-aed-l",
    streams: Annotated[int, typer.Option(help="Streams that speak at once.", min=1)] = 16,
    utterance_s: Annotated[float, typer.Option(help="Length of an utterance.")] = 10.0,
    beam: Annotated[int, typer.Option(help="Hypotheses kept.", min=1)] = 3,
    tokens: Annotated[int | None, typer.Option(help="Per utterance; default 5 a second.")] = None,
    cells: Annotated[int, typer.Option(help="Length of the decoder's cache.", min=1)] = 64,
    update: Annotated[str, typer.Option(help="Cache write: append or blend.")] = "blend",
    histogram: Annotated[
        str | None,
        typer.Option(help="Lengths of utterances: file, or a daemon's /metrics.", metavar="FILE"),
    ] = None,
    gears: Annotated[int, typer.Option(help="Most lengths to choose.", min=1, max=100)] = 4,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to FILE.", metavar="FILE")
    ] = None,
) -> None:
    """What a model will cost on a chip, and which gears to convert it with."""
    from voiced.daemon.commands.plan import plan

    _exit(
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


@app.command("version")
def _version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print(f"voiced {version('voiced')}")


# ---- voiced model ------------------------------------------------------------------------------

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

    _exit(model_list())


@model_app.command("pull")
def _model_pull(
    name: ModelName = "whisper-base", from_dir: FromDir = None, force: Force = False
) -> None:
    """Fetch and build a model and what it needs to run."""
    from voiced.daemon.commands.model import model_pull

    _exit(model_pull(name, from_dir, force))


@model_app.command("build")
def _model_build(
    name: ModelName = "whisper-base", from_dir: FromDir = None, force: Force = False
) -> None:
    """Build one model's bundle."""
    from voiced.daemon.commands.model import model_build

    _exit(model_build(name, from_dir, force))


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

    _exit(model_import(family, folder, name, precision, portable, force))


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
        _exit(model_convert(name, target=target, gears_s=lengths_s, threads=threads))
    _exit(
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

    _exit(model_verify(name))


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
    from voiced.daemon.commands.keys import read_token
    from voiced.daemon.commands.model_switch import model_switch
    from voiced.daemon.commands.talk import Target
    from voiced.daemon.config import admin_url, load

    token = None if token_file is None else read_token(token_file)
    target = Target(url or admin_url(load().settings.server), token, authority)
    _exit(model_switch(name, target))


@model_app.command("path")
def _model_path(name: ModelName = "whisper-base") -> None:
    """Print a bundle's folder."""
    from voiced.daemon.commands.model import model_path

    _exit(model_path(name))


# ---- voiced plugins ----------------------------------------------------------------------------


@plugins_app.command("list")
def _plugins_list() -> None:
    """Show every installed plugin."""
    from voiced.daemon.commands.plugins import plugins_list

    _exit(plugins_list())


@plugins_app.command("run")
def _plugins_run(
    name: Annotated[str, typer.Argument(help="Installed name, or package.module:Class.")],
    config: Config = None,
    bus: Annotated[
        str | None, typer.Option(help="The daemon's bus; default: from the settings.")
    ] = None,
    ingest: Annotated[
        str | None, typer.Option(help="Where intents go; default: from the settings.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the plugin; may be repeated.", metavar="K=V"),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(help="Where to ask for what was missed; default: from the settings."),
    ] = None,
    start_from: Annotated[
        Literal["last", "now", "beginning"] | None,
        typer.Option(
            "--from",
            help="Begin behind the last final that the plugin had, now, or with the oldest in the "
            "journal; default: what the plugin says.",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where the plugin's position is kept.", metavar="DIR", file_okay=False),
    ] = None,
) -> None:
    """Run one plugin in this process; its options are the file's table [plugins.NAME]."""
    from voiced.daemon import logs
    from voiced.daemon.commands.keys import client_keys
    from voiced.daemon.commands.plugins import plugins_run
    from voiced.daemon.config import connectable, load

    loaded = load(file=config)
    logs.configure(loaded.settings.logging.level)
    endpoints = loaded.settings.bus
    _exit(
        plugins_run(
            name,
            bus or connectable(endpoints.endpoint),
            ingest or connectable(endpoints.ingest),
            loaded.file,
            options or (),
            curve=client_keys(endpoints.curve),
            replay=replay or connectable(endpoints.replay),
            start_from=start_from,
            folder=state_dir,
        )
    )


# ---- voiced config -----------------------------------------------------------------------------


@config_app.command("check")
def _config_check(config: Config = None) -> None:
    """Read every source and report every problem at once."""
    from voiced.daemon.commands.config import check

    _exit(check(config))


@config_app.command("show")
def _config_show(config: Config = None, as_json: AsJson = False) -> None:
    """Show the effective value of every setting and where it came from."""
    from voiced.daemon.commands.config import show_settings

    _exit(show_settings(config, as_json=as_json))


# ---- voiced bench ------------------------------------------------------------------------------

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write everything to FILE.", metavar="FILE")
]
Corpus = Annotated[Path, typer.Argument(help="Folder of recordings with texts.", metavar="DIR")]
Clips = Annotated[
    Path | None,
    typer.Option(
        "--clips",
        help="Folder of recordings; default: the few short ones of the demo.",
        metavar="DIR",
    ),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Only this set of it; may be repeated.")
]
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

    _exit(
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

    _exit(
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

        _exit(
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

    _exit(
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

    _exit(
        frontend(
            clips=clips,
            sets=sets or (),
            seconds=seconds,
            streams=streams if daemon else 0,
            play_s=play_s,
            json_path=json_path,
        )
    )


cli_doctor.add_commands(app, lambda status: _exit(status))
cli_live.add_commands(app, bench_app, lambda status: _exit(status))
cli_realtime.add_commands(bench_app, lambda status: _exit(status))
cli_decode.add_commands(bench_app, lambda status: _exit(status))
cli_journal.add_commands(bench_app, lambda status: _exit(status))


add_status(app)


# ---- errors ------------------------------------------------------------------------------------


OUR_ERRORS = (AudioError, EngineError, DaemonError, PluginError, BenchError)


def exit_status(code: str) -> int:
    """The exit status for the code of an error of ours."""
    if code in USAGE:
        return EXIT_USAGE
    return EXIT_UNAVAILABLE if code in UNAVAILABLE else EXIT_FAILED


def main() -> None:
    """Run the command line of this process; never returns."""
    replace_closed_streams()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OUR_ERRORS as error:
        _report(error, exit_status(error.code))
    except OSError as error:  # a file of the user's, a full disk, an address that is not ours
        _report(error, EXIT_FAILED)


def _report(error: Exception, status: int) -> NoReturn:
    if os.environ.get("VOICED_DEBUG"):
        raise error
    text = os_reason(error) if isinstance(error, OSError) else str(error)
    print(f"voiced: {text}", file=sys.stderr)
    if isinstance(error, OSError):
        drop_unwritten_output()
    sys.exit(status)


def _exit(status: int) -> None:
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
