"""Bundles of the small FireRedASR models. Apart from them: the published code's environment has
torch and no ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.engine.tiny_fireredasr import Tiny, write_folder

from voiced.engine.build.fireredasr_bundle import Form, Release, build_fireredasr
from voiced.engine.build.pack import BundleWriter


def build_bundle(
    target: Path, tiny: Tiny, form: Form | None = None, gears_s: tuple[float, ...] = (0.5, 1, 2, 4)
) -> Path:
    """Build a model's bundle into the folder `target`; returns it."""
    with BundleWriter(target) as writer:
        release = Release.find(write_folder(writer.scratch_dir() / "release", tiny))
        manifest = build_fireredasr(
            release, form or Form(), writer, lambda _: None, gears_s=gears_s
        )
        return writer.commit(msgspec.structs.replace(manifest, name=target.name))
