"""Errors of the engine.

EngineError             base; `code` is stable and goes on the wire
├── BundleError         bundle: a model folder that is missing, damaged or of another version
├── FetchError          fetch: a model cannot be obtained
├── NoGearError         no_gear: nothing compiled is large enough
├── LeaseError          buffer: a lease returned twice or used after return
├── BackendUnavailable  backend_unavailable: the runtime's library is missing
├── BackendFailed       backend_failed: the runtime raised while running
│   └── StateLost       state_lost: and what it had computed is gone; begin again
├── UnknownLanguage     unknown_language: the model does not know a pinned or configured language
├── TextPolicyUnavailable  text_policy: a step of the text's treatment is not installed
├── SegmentTooLong      too_long: the model cannot take a segment of that length
├── EngineBusy          busy: the queue is full; try again later
├── DeadlineExceeded    deadline: the answer would come too late
├── Superseded          superseded: a newer revision of the same segment took its place
└── EngineDead          engine_dead: the worker died and the retry failed too
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from voiced.engine.types import Gear


class EngineError(Exception):
    """Base class of the engine's errors."""

    code = "engine"


class BundleError(EngineError):
    """A bundle is refused: names the file, what was found, what was expected."""

    code = "bundle"

    def __init__(self, path: Path, *, found: str, expected: str, next_step: str = "") -> None:
        super().__init__(path, found, expected, next_step)
        self.path, self.found, self.expected, self.next_step = path, found, expected, next_step

    def __str__(self) -> str:
        tail = f"; {self.next_step}" if self.next_step else ""
        return f"bundle refused: {self.path}: found {self.found}, expected {self.expected}{tail}"


class FetchError(EngineError):
    """A model cannot be obtained from the package index or a folder."""

    code = "fetch"


class NoGearError(EngineError):
    """No compiled shape holds the request; the caller splits the segment."""

    code = "no_gear"

    def __init__(self, batch: int, frames: int, gears: tuple[Gear, ...]) -> None:
        super().__init__(batch, frames, gears)
        self.batch, self.frames, self.gears = batch, frames, gears

    def __str__(self) -> str:
        have = ", ".join(f"{g.batch}x{g.frames}" for g in self.gears) or "none"
        return f"no gear holds {self.batch}x{self.frames} (batch x frames); bundle has {have}"


class LeaseError(EngineError):
    """A buffer lease was returned twice or used after its return."""

    code = "buffer"


class BackendUnavailable(EngineError):
    """The runtime cannot be imported or offers no usable device."""

    code = "backend_unavailable"


class BackendFailed(EngineError):
    """The runtime raised while running a graph."""

    code = "backend_failed"


class StateLost(BackendFailed):
    """The runtime's process was replaced and its tensors are gone; the same request may succeed."""

    code = "state_lost"


class UnknownLanguage(EngineError):
    """A stream pins, or the settings name, a language that the model does not know."""

    code = "unknown_language"


class TextPolicyUnavailable(EngineError):
    """A step that the settings name for texts does not exist or cannot be imported."""

    code = "text_policy"


class SegmentTooLong(EngineError):
    """The segment is longer than anything the model can be asked."""

    code = "too_long"


class EngineBusy(EngineError):
    """The queue is full."""

    code = "busy"

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(retry_after_ms)
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"engine is busy; try again in {self.retry_after_ms} ms"


class DeadlineExceeded(EngineError):
    """The request was still waiting when its deadline passed."""

    code = "deadline"


class Superseded(EngineError):
    """A newer revision, or the final, of the same segment took this request's place."""

    code = "superseded"


class EngineDead(EngineError):
    """The worker process died while it held the request, and again on the retry."""

    code = "engine_dead"
