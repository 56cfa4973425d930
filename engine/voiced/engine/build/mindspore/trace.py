"""What the engine runs for a gear: every graph, its shapes, and the numbers that went in and out.

The golden input is recognised with ONNX Runtime while each call is recorded. That yields at once
which artifacts a gear needs and the questions, with answers, that they must pass, for every family
of models alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from voiced.audio.frames import RATE_HZ, Segment
from voiced.engine.backends.base import Backend, Bindable, Call, DeviceTensor, Session, Traffic
from voiced.engine.backends.base import Tensors as Bound
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, EngineError
from voiced.engine.recognizer import load_recognizer
from voiced.engine.types import EngineConfig, Gear, Request, RequestKind

Arrays = dict[str, npt.NDArray[Any]]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

FIRST, LAST = 3, 2
"""Calls kept of each graph at each shape: the prompt and the first step, and the longest cache."""
SAMPLES_PER_FRAME = RATE_HZ // 100


@dataclass(slots=True)
class Traced:
    """One graph at one set of shapes."""

    role: str
    graph: Path
    axes: dict[str, int]
    """Symbolic axes of the graph and their sizes."""
    gear: Gear
    """The first gear that needed it."""
    samples: list[tuple[Arrays, Arrays]] = field(default_factory=list)
    """Inputs and outputs of some calls, in order."""

    def keep(self, inputs: Arrays, outputs: Arrays) -> None:
        """Keep a call, and drop one in the middle when there are enough."""
        self.samples.append((inputs, outputs))
        if len(self.samples) > FIRST + LAST:
            del self.samples[FIRST]


def trace(
    bundle: Bundle, gears: Sequence[Gear], backend: Backend, progress: Callable[[str], None]
) -> list[Traced]:
    """Recognise the golden input at each gear; return what ran, in order of first use.

    Args:
        bundle: The bundle.
        gears: Some of its gears.
        backend: Runs the ONNX graphs.
        progress: Told each gear.

    Raises:
        BundleError: The bundle has no golden input.
        BackendFailed: A graph cannot be run.
    """
    golden = bundle.manifest.golden
    if golden is None:
        raise BundleError(bundle.root, found="no golden pair", expected="one in the manifest")
    with np.load(bundle.file(golden.input)) as question:
        sound: npt.NDArray[np.int16] = question["pcm"]
    roles = {bundle.root / file: role for role, file in bundle.manifest.graphs.items()}
    recorder = _Recorder(backend, roles)
    config = EngineConfig(
        str(bundle.root),
        languages=("en",),
        max_batch=max(gear.batch for gear in gears),
        max_segment_s=max(gear.frames for gear in gears) / 100,
    )
    recognizer = load_recognizer(config, recorder)
    try:
        for number, gear in enumerate(gears, 1):
            progress(f"recording ONNX Runtime: gear {number} of {len(gears)} ({_show(gear)})")
            recorder.gear = gear
            pcm = np.resize(sound, gear.frames * SAMPLES_PER_FRAME)
            for kind in (RequestKind.FINAL, RequestKind.PARTIAL):
                segments = [Segment(i, "golden", 0, pcm.copy()) for i in range(gear.batch)]
                answers = recognizer.recognize([Request(s, kind) for s in segments])
                for answer in answers:
                    if isinstance(answer, EngineError):
                        raise answer
    finally:
        recognizer.close()
    return list(recorder.found.values())


def axes_of(graph: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Read the symbolic axes of a graph's inputs off the shapes that they were given."""
    axes: dict[str, int] = {}
    for value in onnx.load(graph, load_external_data=False).graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            if dim.dim_param:
                axes[dim.dim_param] = size
    return axes


def _show(gear: Gear) -> str:
    return f"{gear.frames / 100:g} s, batch {gear.batch}"


class _Recorder:
    """A backend that lets another do the work and notes every call."""

    target: str | None = None
    compiles_shapes = False

    def __init__(self, backend: Backend, roles: Mapping[Path, str]) -> None:
        self.name = backend.name
        self._backend = backend
        self._roles = roles
        self.gear = Gear(0)
        self.found: dict[tuple[Path, Shapes], Traced] = {}

    def load(self, path: Path, *, threads: int) -> Session:
        return _RecordedSession(self, self._backend.load(path, threads=threads), path)

    def note(self, path: Path, inputs: Arrays, outputs: Arrays) -> None:
        shapes = {name: array.shape for name, array in inputs.items()}
        key = (path, tuple(sorted(shapes.items())))
        if key not in self.found:
            axes = axes_of(path, shapes)
            self.found[key] = Traced(self._roles[path], path, axes, self.gear)
        self.found[key].keep(inputs, outputs)


class _RecordedSession:
    def __init__(self, recorder: _Recorder, session: Session, path: Path) -> None:
        self._recorder, self._session, self._path = recorder, session, path

    @property
    def traffic(self) -> Traffic:
        return self._session.traffic

    def bind(self, inputs: Bound, outputs: Bound) -> Call:
        call = self._session.bind(inputs, outputs)
        return _RecordedCall(self._recorder, call, self._path, inputs, outputs)

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceTensor:
        return self._session.allocate(shape, dtype)


class _RecordedCall:
    def __init__(
        self, recorder: _Recorder, call: Call, path: Path, inputs: Bound, outputs: Bound
    ) -> None:
        self._recorder, self._call, self._path = recorder, call, path
        self._inputs, self._outputs = inputs, outputs

    def run(self) -> None:
        inputs = {name: _contents(tensor) for name, tensor in self._inputs.items()}
        self._call.run()
        outputs = {name: _contents(tensor) for name, tensor in self._outputs.items()}
        self._recorder.note(self._path, inputs, outputs)


def _contents(tensor: Bindable) -> npt.NDArray[Any]:
    return tensor.copy() if isinstance(tensor, np.ndarray) else tensor.read()
