"""Requests of one gear → transcripts: what the worker's engine thread runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from voiced.engine.errors import EngineError
from voiced.engine.types import EngineConfig, EngineInfo, Request, Transcript


class Recognizer(Protocol):
    """One loaded model. Owned by one thread; nothing here is thread-safe."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded; `warm_ms` is 0 until `warm` ran."""
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


def load_recognizer(config: EngineConfig) -> Recognizer:
    """Open the bundle named in `config` with its backend; not yet warmed."""
    if config.bundle_dir == "fake":
        from voiced.engine.backends.fake import FakeRecognizer

        return FakeRecognizer(config)
    raise NotImplementedError
