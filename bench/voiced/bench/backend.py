"""A converted bundle against ONNX Runtime on the same graphs: texts, speed, crossing, memory.

Both recognise the same clips with the same gears, one after the other on each clip, so that a busy
machine slows both. Every graph call is timed where it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt

from voiced.audio.frames import Segment
from voiced.bench.corpus import Clip
from voiced.bench.report import Progress, Table
from voiced.bench.systems import Pcm, read_clip
from voiced.engine.backends.base import Backend, Call, DeviceTensor, Session, Tensors, Traffic
from voiced.engine.backends.mindspore_lite.backend import MsliteBackend, MsliteCall
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.bundle import Bundle
from voiced.engine.errors import EngineError
from voiced.engine.recognizer import Recognizer, load_recognizer
from voiced.engine.types import EngineConfig, Request, Transcript

Spot = tuple[str, int]
"""Graph's role, and feature frames of the gear."""

MEMORY_EVERY = 25
"""Utterances between two looks at the memory."""
FLAT = 0.05
"""Growth of the resident memory that counts as none."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a graph."""

    total_ms: float
    inside_ms: float
    """Inside the library."""
    keep_ms: float
    """Copying results into resident tensors; the rest of `total_ms` is what crossing costs."""
    cpu_ms: float
    """CPU time of all of it, in this process and in a graph server."""

    @property
    def crossing_ms(self) -> float:
        """What the call costs because the library runs in another process."""
        return self.total_ms - self.inside_ms - self.keep_ms


@dataclass(frozen=True, slots=True)
class Pair:
    """One clip as both recognise it."""

    clip: str
    set: str
    language: str | None
    seconds: float
    gear_s: float
    text: str
    reference: str
    """What ONNX Runtime makes of it."""

    @property
    def is_equal(self) -> bool:
        """Character for character."""
        return self.text == self.reference


@dataclass(slots=True)
class Timed:
    """Calls of one backend by role and gear."""

    runs: dict[Spot, list[Run]] = field(default_factory=dict)

    def middle(self, spot: Spot, figure: Callable[[Run], float]) -> float:
        """Median of one figure."""
        return median(figure(run) for run in self.runs[spot])


@dataclass(frozen=True, slots=True)
class GearMemory:
    """What the artifacts up to one gear hold."""

    gear_s: float
    grown_bytes: int
    """Resident memory that this gear added, artifacts shared with an earlier one not counted."""
    peak_bytes: int
    """Most that the process ever held so far."""
    load_ms: float


@dataclass(frozen=True, slots=True)
class Flatness:
    """Resident memory of the process over many utterances."""

    utterances: int
    rss_bytes: tuple[int, ...]
    """Every `MEMORY_EVERY` utterances, the first after as many."""

    @property
    def growth(self) -> float:
        """Growth from the first look to the last, relative."""
        return self.rss_bytes[-1] / self.rss_bytes[0] - 1


class TimedBackend:
    """Times every call of another backend."""

    def __init__(self, backend: Backend, roles: Mapping[str, str]) -> None:
        self.name, self.target = backend.name, backend.target
        self.compiles_shapes = backend.compiles_shapes
        self._backend = backend
        self._roles = roles
        self.gear_frames = 0
        """Gear that is being measured; 0 for none."""
        self.timed = Timed()

    def load(self, path: Path, *, threads: int) -> Session:
        """Load a graph, to be timed."""
        return _TimedSession(self, self._backend.load(path, threads=threads), path)

    def cpu_ns(self) -> int:
        """CPU time so far of this process and, where there is one, of the graph server."""
        spent = time.process_time_ns()
        if isinstance(self._backend, MsliteBackend) and self._backend.server is not None:
            spent += time.clock_gettime_ns(cpu_clock(self._backend.server.pid))
        return spent

    def note(self, path: Path, run: Run) -> None:
        """Take one call's times, unless no gear is being measured."""
        if not self.gear_frames:
            return
        spot = (self._roles[path.name], self.gear_frames)
        self.timed.runs.setdefault(spot, []).append(run)


class _TimedSession:
    def __init__(self, owner: TimedBackend, session: Session, path: Path) -> None:
        self._owner, self._session, self._path = owner, session, path

    @property
    def traffic(self) -> Traffic:
        return self._session.traffic

    def bind(self, inputs: Tensors, outputs: Tensors) -> Call:
        return _TimedCall(self._owner, self._session.bind(inputs, outputs), self._path)

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceTensor:
        return self._session.allocate(shape, dtype)


class _TimedCall:
    def __init__(self, owner: TimedBackend, call: Call, path: Path) -> None:
        self._owner, self._call, self._path = owner, call, path

    def run(self) -> None:
        spent, began = self._owner.cpu_ns(), time.perf_counter_ns()
        self._call.run()
        total_ns, cpu_ns = time.perf_counter_ns() - began, self._owner.cpu_ns() - spent
        inside_ns, keep_ns = total_ns, 0
        if isinstance(self._call, MsliteCall):
            inside_ns, keep_ns = self._call.inside_ns, self._call.keep_ns
        times = (ns / 1e6 for ns in (total_ns, inside_ns, keep_ns, cpu_ns))
        self._owner.note(self._path, Run(*times))


def cpu_clock(pid: int) -> int:
    """Number of the clock of a process's CPU time, as Linux makes it (clock_getcpuclockid(3))."""
    return ~pid << 3 | 2


class Contest:
    """Two recognisers of one bundle: a backend, and ONNX Runtime at the backend's gears."""

    def __init__(self, config: EngineConfig, backend: MsliteBackend) -> None:
        bundle = Bundle.open(Path(config.bundle_dir), verify="size")
        self.target = bundle.target(str(backend.target))
        self._frames = sorted({gear.frames for gear in self.target.gears})
        roles = {file: role for role, file in bundle.manifest.graphs.items()}
        roles |= {artifact.file: artifact.role for artifact in self.target.artifacts}
        self.ours = TimedBackend(backend, roles)
        self.theirs = TimedBackend(OrtBackend(), roles)
        options = {**config.options, "gears_of": str(backend.target)}
        reference = EngineConfig(
            config.bundle_dir,
            threads=config.threads,
            beam=config.beam,
            max_segment_s=config.max_segment_s,
            options=options,
        )
        self._ours = load_recognizer(config, self.ours)
        self._theirs = load_recognizer(reference, self.theirs)
        self.bundle = self._ours.info.bundle

    @property
    def longest_s(self) -> float:
        """Longest clip that fits a gear."""
        return self._frames[-1] / 100

    def run(self, clips: Sequence[Clip], advance: Progress) -> list[Pair]:
        """Recognise each clip with both, in turn."""
        pairs = []
        for number, clip in enumerate(clips):
            pcm = read_clip(clip)
            frames = next(n for n in self._frames if n * 160 >= len(pcm))
            self.ours.gear_frames = self.theirs.gear_frames = frames
            order = [(self._ours, self.ours), (self._theirs, self.theirs)]
            texts = {}
            for recognizer, timed in order if number % 2 else order[::-1]:
                texts[timed.name] = _text(recognizer, number, pcm, clip.language)
            advance(clip.id)
            ours, theirs = texts[self.ours.name], texts[self.theirs.name]
            found = Pair(clip.id, clip.set, clip.language, clip.seconds, frames / 100, ours, theirs)
            pairs.append(found)
        return pairs

    def endure(
        self, clips: Sequence[Clip], utterances: int, backend: MsliteBackend, advance: Progress
    ) -> Flatness:
        """Recognise `utterances` clips, again from the first when they run out."""
        self.ours.gear_frames = 0
        sounds = [read_clip(clip) for clip in clips]
        seen = []
        for number in range(utterances):
            _text(self._ours, number, sounds[number % len(sounds)], "en")
            if (number + 1) % MEMORY_EVERY == 0:
                seen.append(backend.resident_bytes()[0])
            advance(f"{seen[-1] / 1e6:.0f} MB" if seen else "")
        return Flatness(utterances, tuple(seen))

    def close(self) -> None:
        """Release both."""
        self._ours.close()
        self._theirs.close()


def _text(recognizer: Recognizer, number: int, pcm: Pcm, language: str | None) -> str:
    segment = Segment(number, "bench", 0, pcm.copy(), language)
    (answer,) = recognizer.recognize([Request(segment)])
    if isinstance(answer, EngineError):
        raise answer
    assert isinstance(answer, Transcript)
    return answer.text


def gear_memory(
    bundle: Bundle, make: Callable[[], MsliteBackend], *, threads: int
) -> list[GearMemory]:
    """Load the artifacts gear by gear in a fresh process and look at its memory."""
    backend = make()
    target = bundle.target(str(backend.target))
    found: list[GearMemory] = []
    sessions: dict[str, Any] = {}
    with closing(backend):
        for gear in sorted(target.gears, key=lambda g: (g.frames, g.batch)):
            before, began = backend.resident_bytes()[0], time.perf_counter()
            prefills = [a for a in target.artifacts if a.axes.get("2T") == gear.frames]
            spans = {a.axes["T"] + a.axes["P"] for a in prefills}
            steps = [a for a in target.artifacts if a.axes.get("S") in spans]
            for artifact in (*prefills, *steps):
                if artifact.file not in sessions:
                    path = bundle.file(artifact.file)
                    sessions[artifact.file] = backend.load(path, threads=threads)
            load_ms = (time.perf_counter() - began) * 1000
            now, peak = backend.resident_bytes()
            found.append(GearMemory(gear.frames / 100, now - before, peak, load_ms))
    return found


def tables(
    pairs: Sequence[Pair],
    ours: Timed,
    theirs: Timed,
    memory: Sequence[GearMemory],
    flatness: Flatness | None,
) -> list[Table]:
    """Everything that was found, for people."""
    found = [_speed_table(ours, theirs), _text_table(pairs), _memory_table(memory)]
    if flatness is not None and flatness.rss_bytes:
        found.append(_flatness_table(flatness))
    return found


def _speed_table(ours: Timed, theirs: Timed) -> Table:
    rows = []
    for spot in sorted(set(ours.runs) & set(theirs.runs)):
        role, frames = spot
        mine, other = (each.middle(spot, lambda run: run.total_ms) for each in (ours, theirs))
        cpu, other_cpu = (each.middle(spot, lambda run: run.cpu_ms) for each in (ours, theirs))
        rows.append(
            (
                f"{role} {frames / 100:g} s",
                str(len(ours.runs[spot])),
                f"{mine:.1f}",
                f"{other:.1f}",
                f"{mine / other:.2f}",
                f"{cpu:.1f}",
                f"{other_cpu:.1f}",
                f"{cpu / other_cpu:.2f}",
                f"{ours.middle(spot, lambda run: run.keep_ms):.2f}",
                f"{ours.middle(spot, lambda run: run.crossing_ms):.2f}",
            )
        )
    columns = ("graph, gear", "calls", "ms", "onnxruntime ms", "ratio")
    cpu_columns = ("cpu ms", "onnxruntime cpu ms", "cpu ratio")
    return Table(
        "time of a call",
        (*columns, *cpu_columns, "keeping ms", "crossing ms"),
        tuple(rows),
        (
            "medians; a ratio below 1 means faster than ONNX Runtime with the same fp32 graph",
            "cpu: time on a core, keeping and crossing included; waiting for the core is not in it",
            "keeping: copying caches from the library's outputs to where the next call reads them",
            "crossing: what is left of the call beyond that and the library's own time",
        ),
    )


def _text_table(pairs: Sequence[Pair]) -> Table:
    rows = []
    for name in sorted({pair.set for pair in pairs}):
        group = [pair for pair in pairs if pair.set == name]
        equal = sum(pair.is_equal for pair in group)
        rows.append((name, str(len(group)), str(equal), f"{equal / len(group):.1%}"))
    equal = sum(pair.is_equal for pair in pairs)
    rows.append(("all", str(len(pairs)), str(equal), f"{equal / max(1, len(pairs)):.1%}"))
    notes = [
        f"{pair.clip}: {pair.text!r}, onnxruntime {pair.reference!r}"
        for pair in pairs
        if not pair.is_equal
    ]
    return Table("same text", ("set", "clips", "equal", "share"), tuple(rows), tuple(notes))


def _memory_table(memory: Sequence[GearMemory]) -> Table:
    rows = tuple(
        (
            f"{each.gear_s:g} s",
            f"{each.grown_bytes / 1e6:.0f}",
            f"{each.peak_bytes / 1e6:.0f}",
            f"{each.load_ms:.0f}",
        )
        for each in memory
    )
    notes = ("loaded one after the other; artifacts shared with a shorter gear count there",)
    return Table("memory per gear", ("gear", "added MB", "peak so far MB", "load ms"), rows, notes)


def _flatness_table(flatness: Flatness) -> Table:
    first, last = flatness.rss_bytes[0], flatness.rss_bytes[-1]
    verdict = "flat" if flatness.growth <= FLAT else "GROWING"
    row = (
        str(flatness.utterances),
        f"{first / 1e6:.0f}",
        f"{max(flatness.rss_bytes) / 1e6:.0f}",
        f"{last / 1e6:.0f}",
        f"{flatness.growth:+.1%}",
        verdict,
    )
    columns = ("utterances", f"MB after {MEMORY_EVERY}", "most MB", "last MB", "growth", "")
    return Table("memory over time", columns, (row,))
