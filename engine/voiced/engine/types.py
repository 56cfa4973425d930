"""Values that cross the engine's border."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from voiced.audio.frames import Segment


class RequestKind(StrEnum):
    """How much the answer matters: a partial may be dropped, a final never silently."""

    PARTIAL = "partial"
    EAGER = "eager"
    """The final's text, asked for before it is known that the segment ends here: searched like a
    final, dropped like a partial, until `Engine.promote` makes it the final."""
    FINAL = "final"

    @property
    def is_searched(self) -> bool:
        """Whether it gets the full search; partials are greedy."""
        return self is not RequestKind.PARTIAL


@dataclass(frozen=True, slots=True, order=True)
class Gear:
    """One compiled input shape: `batch` inputs of at most `frames` feature frames (10 ms)."""

    frames: int
    batch: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """The engine's one question: what was said in this segment?"""

    segment: Segment
    kind: RequestKind = RequestKind.FINAL
    revision: int = 1
    deadline_ns: int | None = None
    """Monotonic time after which nobody wants the answer; None waits for ever."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word (Mandarin: character) with its place in the stream."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one answer went, in milliseconds."""

    queue_ms: float = 0.0
    features_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    steps: int = 0
    """Decoder steps run."""
    to_device_bytes: int = 0
    """What the whole batch copied from host arrays to the runtime, see `backends.base.Traffic`."""
    from_device_bytes: int = 0
    """What it copied back."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one segment at one revision. Empty text means: no speech was found."""

    segment: int
    revision: int
    text: str
    is_final: bool
    """Whether it was asked for as a final; False for `EAGER`, also one promoted since."""
    language: str
    confidence: float
    """exp(mean token log-probability), 0 to 1."""
    stable_chars: int = 0
    """The first this many characters of `text` never change in later revisions."""
    words: tuple[Word, ...] = ()
    n_best: tuple[tuple[str, float], ...] = ()
    timings: Timings = field(default_factory=Timings)
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class BatchLoad:
    """What the engine works on now."""

    running: int = 0
    """Requests that share the next step."""
    positions: int = 0
    """Places of the decoder that they take, where the model knows; padding included."""
    padding: int = 0
    """Those that hold nothing, because another request is longer."""
    heard_frames: int = 0
    """Feature frames of sound encoded since the start."""
    gear_frames: int = 0
    """Feature frames of the gears that they were encoded in; the difference is waste."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, for overload decisions and metrics."""

    queued_finals: int = 0
    """Promoted ones among them."""
    queued_eager: int = 0
    queued_partials: int = 0
    oldest_final_age_s: float = 0.0
    oldest_eager_age_s: float = 0.0
    oldest_partial_age_s: float = 0.0
    batch: BatchLoad = field(default_factory=BatchLoad)
    """What runs, as last heard from the worker."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Requests that this worker did not answer, by `kind reason`, e.g. `partial superseded`."""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What answered when the engine became ready."""

    bundle: str
    """Name and short hash, e.g. `whisper-base@3f2a9c1d`."""
    backend: str
    languages: tuple[str, ...]
    """All that a segment may pin, not only the candidates for those that pin none."""
    max_segment_s: float
    """Longest segment one gear holds."""
    load_ms: float
    warm_ms: float
    worker_pid: int


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a worker process is started with."""

    bundle_dir: str
    """Folder of the bundle; `fake` starts the fake recogniser that tests use."""
    backend: str = "onnxruntime"
    threads: int = 1
    """Threads of one graph call."""
    languages: tuple[str, ...] = ("en", "zh")
    """Candidates when a segment pins no language."""
    beam: int | None = None
    """Hypotheses kept for finals and eager requests; partials are greedy. None: as many as the
    model was published with."""
    n_best: int = 0
    """Alternatives returned with a final; at most `beam` are found."""
    max_batch: int = 4
    """Most segments of one gear run together."""
    max_queued_finals: int = 64
    max_segment_s: float = 16.0
    """Longest segment of live streams: gears up to it are warmed before READY."""
    hang_timeout_s: float = 30.0
    """A single engine call longer than this means that the worker hangs and is replaced."""
    options: dict[str, str] = field(default_factory=dict)
    """Backend-specific settings."""
