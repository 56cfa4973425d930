"""MindSpore Lite on a CPU behind the engine's contract: in process, or through the graph server.

In process when the running interpreter can import `mindspore_lite` and no other interpreter was
named (the vendor's wheels serve Python 3.9 to 3.11); else in a graph server under the interpreter
of `engine.mindspore_lite.python`, or the one that `make mindspore` made.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.base import Backend, Bindable, Tensors, Traffic
from voiced.engine.backends.binding import TensorSpec, check_binding, check_same, host_bytes
from voiced.engine.backends.mindspore_lite.client import GraphServer, load_failure, spec_from
from voiced.engine.backends.mindspore_lite.runtime import Runtime, RuntimeRefused
from voiced.engine.errors import BackendFailed, BackendUnavailable
from voiced.engine.types import EngineConfig

logger = logging.getLogger(__name__)

PYTHON_OPTION = "mindspore_lite.python"
"""Key of `EngineConfig.options`: the interpreter of the graph server."""
DEVICE_OPTION = "mindspore_lite.device"
"""Key of `EngineConfig.options`: `cpu` (the default) or `ascend:<id>`."""
CPU_TARGET = "mindspore-cpu"
"""Target of `voiced model convert` whose artifacts run on a CPU."""
DEADLINE_SHARE = 3
"""A run may take this part of the engine's hang timeout: the server must be replaced, loaded again
and asked again before the engine's own watchdog ends the worker."""

ENVIRONMENT = ".venv-mindspore"
"""What `make mindspore` makes, in the folder of the checkout."""

Array = npt.NDArray[Any]


class _Graph(Protocol):
    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...


class _Memory(Protocol):
    @property
    def spec(self) -> TensorSpec: ...
    def write(self, array: Array) -> None: ...
    def read(self) -> Array: ...


class _Call(Protocol):
    inside_ns: int
    keep_ns: int

    def run(self) -> None: ...


class _Engine(Protocol):
    """What the graph server's client and the library in this process have in common."""

    features: dict[str, bool]
    version: str

    def load(self, path: Path, *, threads: int) -> Any: ...
    def tensor(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any: ...
    def call(self, graph: Any, inputs: Any, outputs: Any) -> Any: ...
    def resident_bytes(self) -> tuple[int, int]: ...
    def close(self) -> None: ...


class MsliteTensor:
    """A device tensor: an array where the library runs."""

    def __init__(self, memory: _Memory, traffic: Traffic) -> None:
        self.memory = memory
        self._traffic = traffic
        self.shape = tuple(n or 0 for n in memory.spec.shape)
        self.dtype = memory.spec.dtype
        self._nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def write(self, array: Array) -> None:
        """Copy an array of the same shape and type into the tensor."""
        check_same("device tensor", self.memory.spec, array)
        self.memory.write(array)
        self._traffic.to_device += self._nbytes

    def read(self) -> Array:
        """Copy the values into a new array."""
        self._traffic.from_device += self._nbytes
        return self.memory.read()


class MsliteCall:
    """A graph with memory bound to it."""

    def __init__(self, call: _Call, inputs: Tensors, outputs: Tensors, traffic: Traffic) -> None:
        self._call = call
        self._traffic = traffic
        self._in_bytes = host_bytes(inputs.values())
        self._out_bytes = host_bytes(outputs.values())
        self._kept = (dict(inputs), dict(outputs))

    @property
    def inside_ns(self) -> int:
        """Time that the last run spent in the library."""
        return self._call.inside_ns

    @property
    def keep_ns(self) -> int:
        """Time that it spent on copying results into device tensors, see `runtime.py`."""
        return self._call.keep_ns

    def run(self) -> None:
        """Run the graph once."""
        self._call.run()
        self._traffic.to_device += self._in_bytes
        self._traffic.from_device += self._out_bytes


class MsliteSession:
    """One artifact: a graph with one set of shapes."""

    def __init__(self, engine: _Engine, graph: _Graph) -> None:
        self._engine, self._graph = engine, graph
        self.traffic = Traffic()

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph takes."""
        return self._graph.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph gives."""
        return self._graph.outputs

    def bind(self, inputs: Tensors, outputs: Tensors) -> MsliteCall:
        """Bind memory to every input and output of the graph."""
        check_binding(self.inputs, self.outputs, inputs, outputs)
        call = self._engine.call(self._graph, _memories(inputs), _memories(outputs))
        return MsliteCall(call, inputs, outputs, self.traffic)

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> MsliteTensor:
        """Allocate a device tensor of zeros."""
        return MsliteTensor(self._engine.tensor(tuple(shape), dtype), self.traffic)


class MsliteBackend:
    """Loads artifacts of `voiced model convert`. One thread only.

    Args:
        python: Interpreter of the graph server; None looks for one, see the module.
        deadline_s: A run longer than this means a hang.

    Raises:
        BackendUnavailable: There is no library, and how to get it.
    """

    name = "mindspore_lite"
    target: str | None = CPU_TARGET
    compiles_shapes = True

    def __init__(self, *, python: Path | None = None, deadline_s: float = 10.0) -> None:
        self._engine: _Engine
        if python is None and importlib.util.find_spec("mindspore_lite") is not None:
            self._engine = InProcess()
        else:
            self._engine = GraphServer(
                find_python() if python is None else python, deadline_s=deadline_s
            )

    @property
    def version(self) -> str:
        """The library's version, for reports; nothing is decided by it."""
        return self._engine.version

    @property
    def features(self) -> Mapping[str, bool]:
        """What the library was found to offer, see `runtime.FEATURES`."""
        return self._engine.features

    @property
    def server(self) -> GraphServer | None:
        """The graph server; None in process."""
        return self._engine if isinstance(self._engine, GraphServer) else None

    def load(self, path: Path, *, threads: int) -> MsliteSession:
        """Build an artifact and run it once."""
        if path.suffix not in (".ms", ".mindir"):
            raise BackendFailed(
                f"mindspore_lite: found {path}, expected an artifact made for it (.ms, .mindir): "
                "convert the bundle with `voiced model convert`"
            )
        return MsliteSession(self._engine, self._engine.load(path, threads=threads))

    def resident_bytes(self) -> tuple[int, int]:
        """Memory of the process that runs the library: (now, at its peak)."""
        return self._engine.resident_bytes()

    def close(self) -> None:
        """End the graph server."""
        self._engine.close()


def open_backend(config: EngineConfig) -> Backend:
    """The backend that an engine's configuration asks for: a card's, or the CPU's.

    Raises:
        BackendUnavailable: There is no library, and how to get it.
    """
    device = config.options.get(DEVICE_OPTION, "cpu")
    if device != "cpu":
        from voiced.engine.backends.mindspore_lite.ascend import AscendBackend

        return AscendBackend(device)
    python = config.options.get(PYTHON_OPTION)
    return MsliteBackend(
        python=Path(python).expanduser() if python else None,
        deadline_s=config.hang_timeout_s / DEADLINE_SHARE,
    )


def find_python() -> Path:
    """The interpreter that runs the graph server where the settings name none.

    Raises:
        BackendUnavailable: There is none.
    """
    named = os.environ.get("VOICED_MSLITE_PYTHON")
    if named:
        return Path(named)
    made = Path(__file__).parents[5] / ENVIRONMENT / "bin" / "python"
    if made.exists():
        return made
    raise BackendUnavailable(
        "mindspore_lite cannot be imported here and no interpreter for its graph server was named; "
        "make one with `make mindspore`, or name one with engine.mindspore_lite.python"
    )


class InProcess:
    """The library in this process: the same calls as the graph server, without a crossing."""

    def __init__(self) -> None:
        try:
            self._runtime = Runtime()
        except RuntimeRefused as error:
            raise BackendUnavailable(
                f"mindspore_lite is installed here but cannot be imported: {error}; install the "
                "wheel of this Python version, or name another interpreter with "
                "engine.mindspore_lite.python"
            ) from error
        self.features, self.version = self._runtime.features, self._runtime.version
        have = [name for name, is_there in self.features.items() if is_there]
        logger.info(
            "mindspore_lite runs in process library=%s features=%s",
            self.version,
            ",".join(have) or "none",
        )

    def load(self, path: Path, *, threads: int) -> LocalGraph:
        """Build a model."""
        return LocalGraph(self._runtime, path, threads)

    def tensor(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> LocalTensor:
        """Allocate a tensor where the library keeps it."""
        return LocalTensor(shape, dtype)

    def call(
        self,
        graph: LocalGraph,
        inputs: Mapping[str, Array | LocalTensor],
        outputs: Mapping[str, Array | LocalTensor],
    ) -> LocalCall:
        """Bind memory to a graph."""
        return LocalCall(self._runtime, graph, inputs, outputs)

    def resident_bytes(self) -> tuple[int, int]:
        """Memory of this process: (now, at its peak)."""
        from voiced.engine.loop import process_memory

        return process_memory()

    def close(self) -> None:
        """Nothing is held but by the sessions."""


class LocalGraph:
    """A model in this process."""

    def __init__(self, runtime: Runtime, path: Path, threads: int) -> None:
        try:
            self.graph = runtime.load(str(path), threads)
        except RuntimeRefused as error:
            text = f"{error} [mindspore_lite {runtime.version}]"
            raise load_failure(path, error.kind, text) from error
        self.inputs, self.outputs = (
            {name: spec_from(dtype, shape) for name, (dtype, shape) in specs.items()}
            for specs in (self.graph.takes, self.graph.gives)
        )


class LocalTensor:
    """A tensor that only this backend sees."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.spec = TensorSpec(np.dtype(dtype), shape)
        self.array = np.zeros(shape, dtype)

    def write(self, array: Array) -> None:
        """Copy an array in."""
        self.array[...] = array

    def read(self) -> Array:
        """Copy the values out."""
        return self.array.copy()


class LocalCall:
    """A model with memory bound to it."""

    def __init__(
        self,
        runtime: Runtime,
        graph: LocalGraph,
        inputs: Mapping[str, Array | LocalTensor],
        outputs: Mapping[str, Array | LocalTensor],
    ) -> None:
        self._runtime = runtime
        residents, written = (
            {n: v.array if isinstance(v, LocalTensor) else None for n, v in side.items()}
            for side in (inputs, outputs)
        )
        shapes = {
            name: v.shape if isinstance(v, np.ndarray) else v.array.shape
            for name, v in (*inputs.items(), *outputs.items())
        }
        try:
            self._bound = runtime.bind(graph.graph, residents, written, shapes)
        except RuntimeRefused as error:
            raise BackendFailed(f"mindspore_lite: {error}") from error
        self._in, self._out = (
            {n: v for n, v in side.items() if isinstance(v, np.ndarray)}
            for side in (inputs, outputs)
        )
        self.inside_ns = self.keep_ns = 0

    def run(self) -> None:
        """Run once."""
        try:
            self._runtime.run(self._bound, self._in, self._out)
        except RuntimeRefused as error:
            raise BackendFailed(f"mindspore_lite: {error}") from error
        self.inside_ns, self.keep_ns = self._runtime.run_ns, self._runtime.keep_ns


def _memories(tensors: Tensors) -> dict[str, Any]:
    return {name: _memory(name, tensor) for name, tensor in tensors.items()}


def _memory(name: str, tensor: Bindable) -> Any:
    if isinstance(tensor, MsliteTensor):
        return tensor.memory
    if isinstance(tensor, np.ndarray):
        return tensor
    raise BackendFailed(f"{name!r} is a {type(tensor).__name__} of another backend")
