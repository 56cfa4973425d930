"""`voiced model import`: a bundle from a model's released files."""

from __future__ import annotations

import sys
from pathlib import Path

from voiced.daemon.commands.model import OK, USAGE, show_progress, stop_on_sigterm


def model_import(
    family: str, folder: Path, name: str | None, precision: str, portable: bool, force: bool
) -> int:
    """Build the bundle and print its folder; `family` can only be `fireredasr` so far."""
    from voiced.engine.build.fireredasr_bundle import Form
    from voiced.engine.build.graph import Precision
    from voiced.engine.build.imports import import_fireredasr
    from voiced.engine.bundle import is_plain_name

    if name is not None and not is_plain_name(name):
        return _usage(f"found --name {name!r}, expected letters, digits, '.', '_' and '-'")
    if portable and precision == "int8":
        return _usage("found --portable with int8, expected fp32 or fp16: no converter takes int8")
    half = precision == "fp16"  # for cards
    form = Form(Precision(precision), resident=portable or half, stacked=half)
    with stop_on_sigterm(), show_progress() as progress:
        path = import_fireredasr(folder, form, name=name, force=force, progress=progress)
    print(path)
    return OK


def hub_pull(name: str, from_dir: Path | None, force: bool) -> int:
    """Fetch a model from a hub, or take its files from `from_dir`, and build its bundle."""
    from voiced.engine.build.imports import form_of, import_fireredasr, pull_fireredasr
    from voiced.engine.bundle import Bundle
    from voiced.engine.errors import BundleError
    from voiced.engine.store import resolve

    found = form_of(name)
    if found is None:
        return _usage(
            f"no model is known as {name!r}, expected the model's name with nothing, -int8, -fp16 "
            "or -portable behind it"
        )
    if not force:
        try:
            present = Bundle.open(resolve(name))
        except BundleError:
            pass  # missing or damaged: either way it is built
        else:
            print(f"{present.id} is already built; --force builds it again", file=sys.stderr)
            print(present.root)
            return OK
    with stop_on_sigterm(), show_progress() as progress:
        if from_dir is None:
            path = pull_fireredasr(name, force=force, progress=progress)
        else:
            _, form = found
            path = import_fireredasr(from_dir, form, name=name, force=force, progress=progress)
    print(path)
    return OK


def _usage(text: str) -> int:
    print(f"voiced: {text}", file=sys.stderr)
    return USAGE
