"""Bundles from a model's released files, for models whose weights come from nowhere else.

Offline work, never imported by the running engine.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgspec

from voiced.engine import store
from voiced.engine.build.fetch import Progress
from voiced.engine.build.fireredasr_bundle import Form, Release, base_name, build_fireredasr
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError


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
