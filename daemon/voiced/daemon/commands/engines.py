"""From `--model` and `--backend` to what an engine is started with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from voiced.engine import store
from voiced.engine.bundle import MANIFEST_NAME
from voiced.engine.types import FAKE_MODEL, EngineConfig

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

    A backend's or a model family's own settings come from the configuration file and the
    environment.

    Raises:
        BundleError: There is no such bundle.
        ConfigError: Those settings are wrong.
    """
    name = model or DEFAULT_MODEL
    folder = FAKE_MODEL if name == FAKE_MODEL else str(store.resolve(name))
    plain = backend in (None, "onnxruntime") and family_of(folder) != "fireredasr"
    own = {} if plain else _own_settings(backend or "onnxruntime")
    config = EngineConfig(bundle_dir=folder, threads=threads, options=own | dict(options or {}))
    return replace(
        config,
        backend=config.backend if backend is None else backend,
        beam=config.beam if beam is None else beam,
    )


def _own_settings(backend: str) -> dict[str, str]:
    from voiced.daemon.config import load
    from voiced.daemon.engine_settings import engine_options

    return engine_options(load().settings.engine, backend)


def family_of(folder: str) -> str:
    """The bundle's family; empty where it cannot be told, which opening it will say better."""
    try:
        return str(json.loads((Path(folder) / MANIFEST_NAME).read_bytes())["family"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
