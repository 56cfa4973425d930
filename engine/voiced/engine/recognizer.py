"""Requests of one gear → transcripts: what the worker's engine thread runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from voiced.engine.backends.base import Backend
from voiced.engine.errors import BackendUnavailable, BundleError, EngineError
from voiced.engine.types import (
    FAKE_MODEL,
    EngineConfig,
    EngineInfo,
    EngineTotals,
    Request,
    Transcript,
)


class Recognizer(Protocol):
    """One loaded model. Owned by one thread; nothing here is thread-safe."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded; `warm_ms` is 0 until `warm` ran."""
        ...

    @property
    def totals(self) -> EngineTotals:
        """Use of the gears since `warm`, and bytes that crossed to the device and back."""
        ...

    @property
    def max_batch(self) -> int:
        """Most requests that `recognize` takes at once."""
        ...

    def warm(self, progress: Callable[[str], None]) -> None:
        """Allocate every gear's buffers and run each once."""
        ...

    def batch_key(self, request: Request) -> object:
        """Requests with equal keys may run together (same gear and search)."""
        ...

    def recognize(self, requests: Sequence[Request]) -> list[Transcript | EngineError]:
        """Answer each request, in order. Never raises for one bad request among good ones.

        Raises:
            BackendFailed: The whole batch failed; the caller retries one by one.
        """
        ...

    def close(self) -> None:
        """Release sessions and buffers."""
        ...


def load_recognizer(config: EngineConfig, backend: Backend | None = None) -> Recognizer:
    """Open the bundle named in `config` with its backend, or with `backend`; not yet warmed."""
    if config.bundle_dir == FAKE_MODEL:
        from voiced.engine.backends.fake import FakeRecognizer

        return FakeRecognizer(config)
    from voiced.engine.bundle import Bundle

    bundle = Bundle.open(Path(config.bundle_dir))
    backend = load_backend(config) if backend is None else backend
    # a reference for a converted target must make the same choice of gears
    target = backend.target or config.options.get("gears_of")
    if target is not None:
        bundle = bundle.narrowed(target)
    if bundle.manifest.family == "whisper":
        from voiced.engine.families.whisper_recognizer import WhisperRecognizer

        return WhisperRecognizer(bundle, config, backend)
    if bundle.manifest.family == "fireredasr":
        from voiced.engine.families.fireredasr_recognizer import FireRedRecognizer

        return FireRedRecognizer(bundle, config, backend)
    raise BundleError(
        bundle.root,
        found=f"family {bundle.manifest.family}",
        expected="a speech recognition model (family whisper or fireredasr)",
        next_step="choose another with --model; `voiced model list` shows what there is",
    )


def load_backend(config: EngineConfig) -> Backend:
    """Return the runtime that `config` names.

    Raises:
        BackendUnavailable: There is no such backend, or its library is missing.
    """
    if config.backend == "onnxruntime":
        from voiced.engine.backends.onnxruntime import OrtBackend

        return OrtBackend()
    if config.backend == "mindspore_lite":
        from voiced.engine.backends.mindspore_lite.backend import open_backend

        return open_backend(config)
    raise BackendUnavailable(
        f"no backend {config.backend!r}; expected onnxruntime or mindspore_lite"
    )
