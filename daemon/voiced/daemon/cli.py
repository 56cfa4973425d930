"""The `voiced` command: arguments in, exit status out; each command's work is in `commands/`.

This module and `cli_*.py` import nothing heavy, so that `voiced --help` answers at once
(`tests/test_architecture.py`); the functions below import what they need. What the exit status says
is in `exit_status.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from voiced.audio.errors import AudioError
from voiced.bench.errors import BenchError
from voiced.daemon import (
    cli_chip,
    cli_client,
    cli_decode,
    cli_doctor,
    cli_journal,
    cli_live,
    cli_realtime,
)
from voiced.daemon.cli_bench import bench_app
from voiced.daemon.cli_config import config_app
from voiced.daemon.cli_group import group
from voiced.daemon.cli_keys import keys_app
from voiced.daemon.cli_model import model_app
from voiced.daemon.cli_options import AsJson, Backend, Config, Language, Model, Threads
from voiced.daemon.cli_plugins import plugins_app
from voiced.daemon.cli_status import add_status
from voiced.daemon.commands.pipes import drop_unwritten_output, replace_closed_streams
from voiced.daemon.errors import DaemonError, os_reason
from voiced.daemon.exit_status import EXIT_FAILED, EXIT_INTERRUPTED, exit_status
from voiced.engine.errors import EngineError
from voiced.plugins.errors import PluginError

app = group("A voice daemon: audio in, transcripts on WebSocket and ZeroMQ, plugins act on them.")
app.add_typer(model_app, name="model")
app.add_typer(plugins_app, name="plugins")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(cli_journal.journal_app, name="journal")
app.add_typer(bench_app, name="bench")


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
    from voiced.daemon.config import flags_of

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
    flags |= flags_of(assignments or (), "--set")
    raise typer.Exit(run(config_file=config, flags=flags, pull=pull, address_file=address_file))


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
    hotwords: Annotated[
        Path | None,
        typer.Option(
            "--hotwords",
            help="Phrases that are likely to be said, one a line, as in `engine.hotwords_file`.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Transcribe recorded files.

    text: one line for each file, after its name when there are several. jsonl: one object for each
    file, times in seconds. srt, vtt: subtitles, one file each (--out FOLDER for several). A file
    that fails is reported on standard error, the rest go on, and the exit status is 1.
    """
    from voiced.audio.vad import VadKind
    from voiced.daemon.commands.transcribe import OutputFormat, transcribe

    raise typer.Exit(
        transcribe(
            files,
            output_format=OutputFormat(output_format),
            language=language,
            vad=None if no_vad else VadKind(vad),
            out=out,
            model=model,
            backend=backend,
            threads=threads,
            hotwords=hotwords,
        )
    )


cli_client.add_commands(app)


@app.command("devices")
def _devices(as_json: AsJson = False) -> None:
    """List the sound devices that can record."""
    from voiced.daemon.commands.devices import devices

    raise typer.Exit(devices(as_json))


@app.command("demo")
def _demo(
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write the summary to FILE.", metavar="FILE")
    ] = None,
) -> None:
    """Recorded speech through a real daemon, its transcripts from the bus, and one line of sums."""
    from voiced.daemon.commands.demo import demo

    raise typer.Exit(demo(as_json))


cli_chip.add_commands(app)


@app.command("version")
def _version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print(f"voiced {version('voiced')}")


cli_doctor.add_commands(app)
cli_live.add_commands(app, bench_app)
cli_realtime.add_commands(bench_app)
cli_decode.add_commands(bench_app)
cli_journal.add_commands(bench_app)
add_status(app)


OUR_ERRORS = (AudioError, EngineError, DaemonError, PluginError, BenchError)


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


if __name__ == "__main__":
    main()
