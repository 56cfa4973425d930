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

    A backend's own settings come from the configuration file and the environment.

    Raises:
        BundleError: There is no such bundle.
        ConfigError: The backend's own settings are wrong.
    """
    name = model or DEFAULT_MODEL
    folder = FAKE if name == FAKE else str(store.resolve(name))
    own = {} if backend in (None, "onnxruntime") else _own_settings(str(backend))
    config = EngineConfig(bundle_dir=folder, threads=threads, options=own | dict(options or {}))
    return replace(
        config,
        backend=config.backend if backend is None else backend,
        beam=config.beam if beam is None else beam,
    )


def _own_settings(backend: str) -> dict[str, str]:
    from voiced.daemon.config import backend_options, load

    return backend_options(load().settings.engine, backend)
