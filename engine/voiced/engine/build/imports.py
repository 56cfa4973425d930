"""Bundles from a model's released files, for models whose weights come from nowhere else.

Offline work, never imported by the running engine.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import msgspec

from voiced.engine import store
from voiced.engine.build.fetch import Progress
from voiced.engine.build.fireredasr_bundle import Form, Release, base_name, build_fireredasr
from voiced.engine.build.fireredasr_checkpoint import CHECKPOINT, CMVN, DICTIONARY
from voiced.engine.build.graph import Precision
from voiced.engine.build.hub import fetch_files, hub_models
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, FetchError


def import_fireredasr(
    folder: Path, form: Form, *, name: str | None, force: bool, progress: Progress
) -> Path:
    """Build a bundle from a released FireRedASR-AED folder.

    Args:
        folder: Has `model.pth.tar`, `cmvn.ark` and `dict.txt`.
        form: What graphs are wanted.
        name: Of the bundle; None for the version's own.
        force: Replace a valid bundle of that name.
        progress: Told each stage, and how far it has come.

    Returns:
        The bundle's folder.

    Raises:
        FetchError: The files are not a release's, or damaged.
        BundleError: The bundle cannot be written, or its name is taken.
    """
    release = Release.find(folder)
    chosen = name or base_name(release.checkpoint) + form.suffix
    target = store.models_dir() / chosen
    needed = int(release.checkpoint.stat().st_size * form.share)
    with BundleWriter(target, needed_bytes=needed, on_wait=progress) as writer:
        if not force:
            _refuse_taken(target)
        writer.check_room()
        manifest = build_fireredasr(release, form, writer, progress)
        progress(f"packing {chosen}")
        version = importlib.metadata.version("voiced")
        return writer.commit(
            msgspec.structs.replace(manifest, name=chosen, created_by=f"voiced {version}")
        )


FILES = (CMVN, DICTIONARY, CHECKPOINT)
"""Of a release, the small ones first: a hub that has none of them is found out at once."""


def form_of(name: str) -> tuple[str, Form] | None:
    """Take a bundle's name apart: the model on the hubs, and what graphs are wanted."""
    for form in (
        Form(),
        Form(Precision.INT8),
        Form(Precision.FP16, resident=True, stacked=True),
        Form(resident=True),
    ):
        model = name.removesuffix(form.suffix)
        if model in hub_models() and model + form.suffix == name:
            return model, form
    return None


def pull_fireredasr(name: str, *, force: bool, progress: Progress) -> Path:
    """Fetch a release from a hub and import it; the fetched files are then removed.

    Args:
        name: Of a hub's model, with a form's suffix or none.
        force: Replace a valid bundle of that name.
        progress: Told each stage.

    Returns:
        The bundle's folder.

    Raises:
        FetchError: No hub gave the files; what did arrive is used by the next call.
        BundleError: The bundle cannot be written.
    """
    found = form_of(name)
    if found is None:
        raise FetchError(
            f"no model is known as {name!r}, expected one of {', '.join(hub_models())}"
        )
    model, form = found
    folder = store.models_dir() / f".{model}.download"
    hint = (
        f"without a network, bring the files {', '.join(FILES)} of the release and run "
        "`voiced model import fireredasr DIR`"
    )
    fetch_files(hub_models()[model], FILES, folder, progress, hint)
    path = import_fireredasr(folder, form, name=name, force=force, progress=progress)
    shutil.rmtree(folder)
    return path


def _refuse_taken(target: Path) -> None:
    try:
        bundle = Bundle.open(target, verify="size")
    except BundleError:
        return  # missing or damaged: either way it may be written
    raise BundleError(
        target,
        found=f"a bundle of that name ({bundle.id})",
        expected="a name that is free",
        next_step="choose one with --name, or replace it with --force",
    )
