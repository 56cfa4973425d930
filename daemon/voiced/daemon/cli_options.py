"""Options that several commands have, with one text of help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
FolderLanguage = Annotated[
    str | None,
    typer.Option("--language", help="Language of folders that name none.", metavar="CODE"),
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
