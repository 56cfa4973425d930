"""Values that cross the engine's border."""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True, slots=True)
class Hotword:
    """A phrase that is likely to be said."""

    phrase: str
    score: float
    """Added to the log-probability for each of its tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """The engine's one question: what was said in this segment?"""

    segment: Segment
    kind: RequestKind = RequestKind.FINAL
    revision: int = 1
    deadline_ns: int | None = None
    """Monotonic time after which nobody wants the answer; None waits for ever."""
    hotwords: tuple[Hotword, ...] = ()


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

    def __add__(self, other: Timings) -> Timings:
        """What two pieces of one answer took, one after the other."""
        return Timings(
            self.queue_ms + other.queue_ms,
            self.features_ms + other.features_ms,
            self.prefill_ms + other.prefill_ms,
            self.decode_ms + other.decode_ms,
            self.steps + other.steps,
            self.to_device_bytes + other.to_device_bytes,
            self.from_device_bytes + other.from_device_bytes,
        )


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
    chances: tuple[float, ...] = ()
    """Of each word of `text` as `stable.tokens_of` reads it, the lowest probability of its tokens;
    of partials and eager texts. Empty: not known."""
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

    def __add__(self, other: BatchLoad) -> BatchLoad:
        return BatchLoad(
            self.running + other.running,
            self.positions + other.positions,
            self.padding + other.padding,
        )


@dataclass(frozen=True, slots=True)
class GearUse:
    """What was encoded in one gear."""

    gear: Gear
    runs: int = 0
    inputs: int = 0
    """Utterances; below `runs * gear.batch` where places stayed empty."""
    heard_frames: int = 0
    """Feature frames of sound."""

    @property
    def gear_frames(self) -> int:
        """Feature frames that were computed; what is above `heard_frames` is padding."""
        return self.runs * self.gear.batch * self.gear.frames

    def __add__(self, other: GearUse) -> GearUse:
        if other.gear != self.gear:
            raise ValueError(f"uses of {self.gear} and {other.gear} make no sum")
        return GearUse(
            self.gear,
            self.runs + other.runs,
            self.inputs + other.inputs,
            self.heard_frames + other.heard_frames,
        )


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """What was done since the start. The sum over workers that followed each other only rises."""

    steps: int = 0
    """Pieces of work that the requests of a batch shared (`Batch.step`)."""
    step_requests: int = 0
    """Requests inside, summed over them: divided by `steps`, the mean size of a batch."""
    gears: tuple[GearUse, ...] = ()
    """Of the encoder, shortest first."""
    to_device_bytes: int = 0
    """Copied from host arrays to the runtime, see `backends.base.Traffic`; warming included."""
    from_device_bytes: int = 0
    """Copied back."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Requests that a living worker left unanswered, by `kind reason`, e.g. `partial deadline`."""
    restarts: int = 0
    """Workers that followed another one."""

    def __add__(self, other: EngineTotals) -> EngineTotals:
        gears = {use.gear: use for use in self.gears}
        for use in other.gears:
            gears[use.gear] = gears[use.gear] + use if use.gear in gears else use
        return EngineTotals(
            steps=self.steps + other.steps,
            step_requests=self.step_requests + other.step_requests,
            gears=tuple(gears[gear] for gear in sorted(gears)),
            to_device_bytes=self.to_device_bytes + other.to_device_bytes,
            from_device_bytes=self.from_device_bytes + other.from_device_bytes,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            restarts=self.restarts + other.restarts,
        )


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
    totals: EngineTotals = field(default_factory=EngineTotals)
    """Likewise."""

    def __add__(self, other: EngineLoad) -> EngineLoad:
        """The load of two workers that run beside each other."""
        return EngineLoad(
            queued_finals=self.queued_finals + other.queued_finals,
            queued_eager=self.queued_eager + other.queued_eager,
            queued_partials=self.queued_partials + other.queued_partials,
            oldest_final_age_s=max(self.oldest_final_age_s, other.oldest_final_age_s),
            oldest_eager_age_s=max(self.oldest_eager_age_s, other.oldest_eager_age_s),
            oldest_partial_age_s=max(self.oldest_partial_age_s, other.oldest_partial_age_s),
            batch=self.batch + other.batch,
            totals=self.totals + other.totals,
        )


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
    has_hotwords: bool = False
    """Whether it uses `Request.hotwords`; where it does not, they change nothing."""


FAKE_MODEL = "fake"
"""In place of a bundle's folder: the recogniser that tests use; it has no bundle."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a worker process is started with."""

    bundle_dir: str
    """Folder of the bundle; or `FAKE_MODEL`."""
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
