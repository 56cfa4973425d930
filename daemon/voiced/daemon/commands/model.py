"""`voiced model`: which models are here, get one, build one, check one.

Every function returns the exit status: 0 done, 2 wrong use. Results go to stdout, progress to
stderr; what fails is raised (`EngineError`, `OSError`) and becomes a message and a status in
`cli.py`, as with every command.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from voiced.engine.bundle import Bundle

DEFAULT_MODEL = "whisper-base"

OK, USAGE = 0, 2

_PLAIN_EVERY_S = 5.0


def model_list() -> int:
    """Print every model that can be had or is here, with its state; plain: tab-separated."""
    rows = _list_rows()
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("model", "state", "size", "folder")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
    else:
        for row in rows:
            print(*row, sep="\t")
    return OK


def model_pull(name: str = DEFAULT_MODEL, from_dir: Path | None = None, force: bool = False) -> int:
    """Make a model ready to run: itself and the voice activity detector of the default VAD.

    What is there and valid stays, unless `force` (which rebuilds the named model alone).
    """
    from voiced.engine.build.hub import hub_models
    from voiced.engine.store import SILERO_BUNDLE

    if name.startswith(tuple(hub_models())):
        from voiced.daemon.commands.model_import import hub_pull

        code = hub_pull(name, from_dir, force)
    else:
        code = model_build(name, from_dir, force)
    if code != OK or name == SILERO_BUNDLE:
        return code
    return model_build(SILERO_BUNDLE, from_dir, force=False)


def model_build(
    name: str = DEFAULT_MODEL, from_dir: Path | None = None, force: bool = False
) -> int:
    """Build one model's bundle, from the package index or from files in `from_dir`.

    Prints the bundle's folder. A valid bundle stays, unless `force`; that may also be one of the
    user's own, by name or path, which could not be built here.
    """
    from voiced.engine.build import build_model
    from voiced.engine.build.sources import MODELS

    present = None if force else _valid_bundle(name)
    if present is not None:
        _say(f"{present.id} is already built" + "; --force builds it again" * (name in MODELS))
        print(present.root)
        return OK
    if name not in MODELS:
        return _usage(f"no model is known as {name!r}, expected one of: {', '.join(MODELS)}")
    with stop_on_sigterm(), show_progress() as progress:
        path = build_model(
            name, source_dir=from_dir, target=None, progress=progress, keep_valid=not force
        )
    print(path)
    return OK


def model_verify(name: str = DEFAULT_MODEL) -> int:
    """Check every byte of a bundle and, where its runtime is installed, its golden pair."""
    from voiced.engine.bundle import Bundle
    from voiced.engine.errors import BackendUnavailable
    from voiced.engine.store import resolve

    bundle = Bundle.open(resolve(name))
    files = bundle.manifest.files
    size = sum(entry.bytes for entry in files.values())
    print(f"{bundle.id}: {len(files)} file(s), {_megabytes(size)}, all as built")
    if bundle.manifest.golden is not None:
        from voiced.engine import golden

        try:
            print(f"{bundle.id}: {golden.check(bundle)}")
        except BackendUnavailable as error:
            _say(f"golden pair not checked: {error}")
    return OK


def model_path(name: str = DEFAULT_MODEL) -> int:
    """Print the folder of a bundle."""
    from voiced.engine.store import resolve

    print(resolve(name))
    return OK


def _list_rows() -> list[tuple[str, str, str, str]]:
    from voiced.engine.build.hub import hub_models
    from voiced.engine.build.sources import MODELS
    from voiced.engine.bundle import Bundle
    from voiced.engine.errors import BundleError
    from voiced.engine.store import list_bundles

    rows: dict[str, tuple[str, str, str, str]] = {
        name: (name, "not built", "-", "-") for name in (*MODELS, *hub_models())
    }
    for path in list_bundles():
        try:
            bundle = Bundle.open(path, verify="size")
        except BundleError as error:
            rows[path.name] = (path.name, f"damaged: {error.found}", "-", str(path))
        else:
            size = sum(entry.bytes for entry in bundle.manifest.files.values())
            rows[path.name] = (path.name, bundle.id, _megabytes(size), str(path))
    return [rows[name] for name in sorted(rows)]


def _valid_bundle(name: str) -> Bundle | None:
    from voiced.engine.bundle import Bundle
    from voiced.engine.errors import BundleError
    from voiced.engine.store import resolve

    try:
        return Bundle.open(resolve(name))
    except BundleError:
        return None  # missing or damaged: either way it is built


@contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Show one line that changes on a terminal, and plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield PlainProgress(sys.stderr, time.monotonic)
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda line: status.update(Text(line))


class PlainProgress:
    """Prints each new stage at once, and how far a stage has come every few seconds."""

    def __init__(self, out: TextIO, now_s: Callable[[], float]) -> None:
        self._out, self._now_s = out, now_s
        self._stage, self._shown_s = "", 0.0

    def __call__(self, line: str) -> None:
        """Take a line: a stage, and after a colon and a space how far it has come."""
        stage, now_s = line.split(": ")[0], self._now_s()
        if stage != self._stage or now_s - self._shown_s >= _PLAIN_EVERY_S:
            self._stage, self._shown_s = stage, now_s
            print(line, file=self._out, flush=True)


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that no half-built bundle stays."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _usage(text: str) -> int:
    _say(f"voiced: {text}")
    return USAGE
