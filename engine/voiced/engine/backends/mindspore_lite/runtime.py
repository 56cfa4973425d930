"""The adapter to `mindspore_lite` on a CPU: load, keep tensors, bind, run. No process, no protocol.

Written in Python 3.7 with numpy as its only dependency, because the one published wheel wants 3.7:
the graph server runs it there, and `backend.py` runs it in process where the wheel can be imported.
What the library can do is probed, never concluded from its version. `ascend.py` is the same for a
card. On a CPU, with the library as old as 2.0.0:

- a resident tensor is a host array of ours, and a run copies its results into it: the library uses
  the outputs' memory again at every run, so they cannot be the next run's inputs as they are,
- resizing a model twice corrupts the heap: a model is resized at most once, before its first run,
  and has one set of shapes for ever,
- the tensors of `get_inputs` are computed with old data when they are asked for again and not set:
  every binding makes its own and sets them to the arrays that it reads.
"""

from __future__ import annotations

import importlib
import inspect
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Tuple  # noqa: UP035 (the alias below is evaluated by 3.7)

import numpy as np

FEATURES = ("predict_outputs", "device_tensors", "model_group", "build_from_buffer", "model_info")

Shape = Tuple[int, ...]  # noqa: UP006
Spec = Tuple[str, Shape]  # noqa: UP006
"""Type as numpy names it, and shape."""


class RuntimeRefused(Exception):
    """The library refused or failed; `kind` tells which clear error it becomes.

    Kinds: `library` it cannot be imported, `artifact` the file cannot be built, `memory` there is
    not enough, `shape` a name, shape or type does not fit the graph, `call` a run failed.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return self.text


class Graph:
    """One built model with one set of shapes."""

    def __init__(self, model: Any, inputs: list[Any]) -> None:
        self.model = model
        self.inputs = inputs
        self.names = [tensor.name for tensor in inputs]
        self.takes = {t.name: spec_of(t) for t in inputs}
        """Name → (type, shape) of each input, in the model's order."""
        self.gives: dict[str, Spec] = {}
        """The same of each output, in the model's order."""


class Bound:
    """A graph with its inputs and outputs: host arrays are handed in for every run.

    It has input tensors of its own, each set once: the library reads an array where it lies, at
    every run, and a call of Python into it costs 7 us with warm caches, several times that after
    a run.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: list[Any],
        inputs: Mapping[str, np.ndarray | None],
        outputs: Mapping[str, np.ndarray | None],
    ) -> None:
        self.graph = graph
        self.tensors = tensors
        """The library's, in the graph's order."""
        self.arrays: list[np.ndarray | None] = [None] * len(tensors)
        """What each was set to, kept alive as long."""
        self.inputs = dict(inputs)
        self.outputs = dict(outputs)


class Runtime:
    """The library of this interpreter. One thread only.

    Args:
        library: Instead of the installed `mindspore_lite`.

    Raises:
        RuntimeRefused: It cannot be imported.
    """

    def __init__(self, library: Any = None) -> None:
        self.library = import_library() if library is None else library
        self.version = str(getattr(self.library, "__version__", "unknown"))
        self.features = probe(self.library)
        self.run_ns = 0
        """Time that the last run spent inside `predict`."""
        self.keep_ns = 0
        """Time that it spent on copying results into resident tensors."""

    def load(
        self, path: str, threads: int, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Graph:
        """Build a model and run it once; `shapes` are for one with open dimensions, given once.

        The run finds an artifact out that builds and cannot run, makes later runs as fast as they
        will be, and tells what the outputs are where the library does not (2.0.0).
        """
        lite = self.library
        types = {".ms": "MINDIR_LITE", ".mindir": "MINDIR"}
        suffix = os.path.splitext(path)[1]
        if suffix not in types:
            raise RuntimeRefused("artifact", "not a MindSpore Lite artifact (.ms or .mindir)")
        context = lite.Context()
        context.target = ["cpu"]
        context.cpu.thread_num = threads
        model = lite.Model()
        try:
            model.build_from_file(path, getattr(lite.ModelType, types[suffix]), context)
            inputs = list(model.get_inputs())
            if shapes is not None:
                dims = [[int(n) for n in shapes[tensor.name]] for tensor in inputs]
                model.resize(inputs, dims)
        except MemoryError as error:
            raise RuntimeRefused("memory", str(error) or "out of memory") from error
        except KeyError as error:
            raise RuntimeRefused("shape", f"no shape was given for input {error}") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise RuntimeRefused("artifact", str(error)) from error
        graph = Graph(model, inputs)
        if any(n < 1 for _, shape in graph.takes.values() for n in shape):
            text = f"the model has open dimensions and no shapes were given: {graph.takes}"
            raise RuntimeRefused("shape", text)
        zeros = {name: np.zeros(shape, dtype) for name, (dtype, shape) in graph.takes.items()}
        for tensor in inputs:
            tensor.set_data_from_numpy(zeros[tensor.name])
        try:
            found = model.predict(inputs)
        except MemoryError as error:
            raise RuntimeRefused("memory", str(error) or "out of memory") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise RuntimeRefused("artifact", f"its first run failed: {error}") from error
        graph.gives = {tensor.name: spec_of(tensor) for tensor in found}
        return graph

    def bind(
        self,
        graph: Graph,
        inputs: Mapping[str, np.ndarray | None],
        outputs: Mapping[str, np.ndarray | None],
        shapes: Mapping[str, Sequence[int]],
    ) -> Bound:
        """Bind memory; None is a host array of `shapes`' shape that is handed in at each run."""
        for name in graph.names:
            given, (_, wanted) = tuple(shapes[name]), graph.takes[name]
            if given != wanted:
                raise RuntimeRefused(
                    "shape", f"input {name} is {list(given)}, the artifact takes {list(wanted)}"
                )
        tensors = []
        for like in graph.inputs:
            tensor = self.library.Tensor()
            tensor.name, tensor.dtype, tensor.format = like.name, like.dtype, like.format
            tensor.shape = like.shape
            tensors.append(tensor)
        return Bound(graph, tensors, inputs, outputs)

    def run(
        self,
        bound: Bound,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Run once: read host arrays `inputs`, overwrite host arrays `outputs` and residents."""
        for place, name in enumerate(bound.graph.names):
            resident = bound.inputs[name]
            array = inputs[name] if resident is None else resident
            if bound.arrays[place] is not array:
                bound.tensors[place].set_data_from_numpy(array)
                bound.arrays[place] = array
        try:
            began = time.perf_counter()
            found = bound.graph.model.predict(bound.tensors)
            self.run_ns = int((time.perf_counter() - began) * 1e9)
        except MemoryError as error:
            raise RuntimeRefused("memory", str(error) or "out of memory") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise RuntimeRefused("call", str(error)) from error
        self.keep_ns = 0
        # asking each output for its name takes 5 us; their order is that of the first run
        for tensor, name in zip(found, bound.graph.gives):  # noqa: B905 (3.7 has no strict)
            resident = bound.outputs[name]
            target = outputs[name] if resident is None else resident
            began = time.perf_counter()
            np.copyto(target, np.asarray(tensor.get_data_to_numpy()).reshape(target.shape))
            if resident is not None:
                self.keep_ns += int((time.perf_counter() - began) * 1e9)


def import_library() -> Any:
    """Import `mindspore_lite`; raises RuntimeRefused with the reason why it cannot be."""
    try:
        return importlib.import_module("mindspore_lite")
    except ImportError as error:
        raise RuntimeRefused("library", str(error)) from error


def spec_of(tensor: Any) -> Spec:
    """Type and shape of the library's tensor."""
    return tensor.dtype.name.lower(), tuple(int(n) for n in tensor.shape)


def probe(library: Any) -> dict[str, bool]:
    """Find out what the library can do by looking at its objects."""

    def takes(function: Any, parameter: str) -> bool:
        try:
            return parameter in inspect.signature(function).parameters
        except (TypeError, ValueError):
            return False

    return {
        "predict_outputs": takes(library.Model.predict, "outputs"),
        "device_tensors": takes(library.Tensor.__init__, "device"),
        "model_group": hasattr(library, "ModelGroup"),
        "build_from_buffer": hasattr(library.Model, "build_from_buffer"),
        "model_info": hasattr(library.Model, "get_model_info"),
    }
