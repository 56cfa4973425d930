"""The bundle of the silero voice activity detector: its ONNX file, unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Manifest
from voiced.engine.store import SILERO_BUNDLE, SILERO_FILE


def build_silero(onnx_file: Path, writer: BundleWriter) -> Manifest:
    """Copy the graph into the bundle; its content was checked by hash before.

    The dimensions are those of silero-vad 6 at 16 kHz: 512 new samples behind 64 of context, any
    number of such windows in a call, and a recurrent state of two float32[1, 1, 128].
    """
    shutil.copyfile(onnx_file, writer.path_for(SILERO_FILE))
    return Manifest(
        name=SILERO_BUNDLE,
        family="vad",
        graphs={"vad": SILERO_FILE},
        model={"state": [2, 1, 1, 128], "opset": 16},
        frontend={"rate_hz": 16_000, "window_samples": 512, "context_samples": 64},
        quantisation="none",
    )
