"""From `--model` and `--backend` to what an engine is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from voiced.engine import store
from voiced.engine.types import EngineConfig

FAKE = "fake"
DEFAULT_MODEL = "whisper-base"


def engine_config(
    model: str | None = None,
    backend: str | None = None,
    *,
    threads: int = 1,
    beam: int | None = None,
    options: Mapping[str, str] | None = None,
) -> EngineConfig:
    """Find the bundle; what is None takes the engine's default.

    Raises:
        BundleError: There is no such bundle.
    """
    name = model or DEFAULT_MODEL
    folder = FAKE if name == FAKE else str(store.resolve(name))
    config = EngineConfig(bundle_dir=folder, threads=threads, options=dict(options or {}))
    return replace(
        config,
        backend=config.backend if backend is None else backend,
        beam=config.beam if beam is None else beam,
    )
