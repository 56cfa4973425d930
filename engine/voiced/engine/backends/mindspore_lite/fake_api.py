"""A stand-in for `mindspore_lite` on an Ascend card, as far as the vendor documents it (2.7).

For tests, and for the parts of `voiced selftest` that need no card. It computes for real, by
running the ONNX graph that an artifact was made from on ONNX Runtime, and it is as strict as the
documents say the real library is:

- build before resize before predict, one build per model, one thread per model,
- a shape must be exactly one of the artifact's gears,
- `predict(outputs=)` wants every output, in order, with the type and shape of the gear, and no
  tensor twice,
- memory on the device is reached through `set_data_from_numpy` and `get_data_to_numpy` alone,
- a group's models are added by path and its workspace is measured before any of them is built.

`card` counts what crosses between host and device, also what crosses unasked (host tensors given
to `predict`, outputs not given). Artifacts are written by `Converter` here: one line of JSON, then
the ONNX graph with its weights, of 2 GB at most. Nothing here says anything about speed, fp16 or
whether the real converter succeeds.
"""

from __future__ import annotations

import configparser
import json
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiced.engine.backends.mindspore_lite.gear_text import parse_gears, show_shapes

__version__ = "0.0.0+fake"

MAGIC = b"fake-mindir "
DEVICES = 8
KEPT_CALLS = 4096

Array = npt.NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]


class DataType(Enum):
    """Types of tensors, numbered as in the real library."""

    UNKNOWN = 0
    BOOL = 30
    INT32 = 34
    INT64 = 35
    FLOAT16 = 42
    FLOAT32 = 43


_NUMPY = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.FLOAT16: np.dtype(np.float16),
    DataType.FLOAT32: np.dtype(np.float32),
}
_TYPES = {dtype: kind for kind, dtype in _NUMPY.items()}


class Format(Enum):
    """Layouts; only the default is used."""

    DEFAULT = -1
    NCHW = 0


class ModelType(Enum):
    """Kinds of artifact."""

    MINDIR = 0
    MINDIR_LITE = 4


class ModelGroupFlag(Enum):
    """What the models of a group share."""

    SHARE_WEIGHT = 1
    SHARE_WORKSPACE = 2
    SHARE_WEIGHT_WORKSPACE = 3


class FmkType(Enum):
    """Formats that the converter reads."""

    ONNX = 2


class FakeDevice:
    """What happened on the card since `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; tensors that are alive keep counting as memory."""
        self.calls: deque[tuple[str, str]] = deque(maxlen=KEPT_CALLS)
        """The last calls, (name, detail)."""
        self.counts: Counter[str] = Counter()
        self.to_device = 0
        """Bytes copied to the device, asked for or not."""
        self.from_device = 0
        self.implicit_bytes = 0
        """Of both, those that no `set_data_from_numpy` or `get_data_to_numpy` asked for."""
        self.groups: list[ModelGroup] = []
        self.built: list[str] = []
        if not hasattr(self, "tensor_bytes"):
            self.tensor_bytes = 0
            """Memory of the device tensors that are alive."""

    def note(self, name: str, detail: str = "") -> None:
        """Record one call."""
        self.calls.append((name, detail))
        self.counts[name] += 1

    def allocate(self, owner: object, size: int) -> None:
        """Count memory until `owner` is gone."""
        self.tensor_bytes += size
        weakref.finalize(owner, self._free, size)

    def _free(self, size: int) -> None:
        self.tensor_bytes -= size


card = FakeDevice()
"""The one card there is."""


class _Ascend:
    device_id = 0
    provider = ""
    precision_mode = ""
    rank_id = 0


class _Cpu:
    thread_num = 1
    precision_mode = ""


class Context:
    """Where a model is to run."""

    def __init__(self) -> None:
        self._target: list[str] = ["cpu"]
        self.ascend = _Ascend()
        self.cpu = _Cpu()

    @property
    def target(self) -> list[str]:
        """Device types, the first one first."""
        return self._target

    @target.setter
    def target(self, names: list[str]) -> None:
        wrong = [name for name in names if name.lower() not in {"cpu", "ascend"}]
        if wrong:
            raise ValueError(f"target elements must be in [cpu, gpu, ascend], but got {wrong[0]}.")
        self._target = [name.lower() for name in names]


class TensorMeta:
    """What is known of an output before it exists."""

    def __init__(self, name: str, dtype: DataType, shape: Sequence[int]) -> None:
        self.name, self.dtype, self.shape = name, dtype, list(shape)
        self.format = Format.DEFAULT
        self.element_num = prod(shape)
        self.data_size = self.element_num * _NUMPY[dtype].itemsize


class Tensor:
    """Memory on the host (no device given) or on a card."""

    def __init__(
        self,
        tensor: Array | None = None,
        shape: Sequence[int] | None = None,
        dtype: DataType | None = None,
        device: str | None = None,
    ) -> None:
        if device is not None:
            kind, _, number = device.partition(":")
            if kind != "ascend" or (number and int(number) not in range(DEVICES)):
                raise ValueError(f"device must be ascend or ascend:<0..7>, but got {device!r}.")
        self.name = ""
        self.format = Format.DEFAULT
        self.device = device or "None"
        self._on_device = device is not None
        if tensor is not None:
            shape, dtype = tensor.shape, _TYPES[tensor.dtype]
        self._shape = list(shape) if shape is not None else []
        self._dtype = dtype if dtype is not None else DataType.FLOAT32
        self._data: Array | None = None
        if self._on_device:
            if shape is None or dtype is None or any(size < 1 for size in shape):
                raise ValueError("a tensor on the device needs a shape and a dtype")
            # never zeros: whoever relies on that is found out
            self._data = np.full(self._shape, 77, _NUMPY[dtype])
            card.allocate(self, self._data.nbytes)
            card.note("Tensor", f"{self._dtype.name} {self._shape}")
        if tensor is not None:
            self.set_data_from_numpy(tensor)

    @property
    def shape(self) -> list[int]:
        """Sizes of the axes."""
        return list(self._shape)

    @shape.setter
    def shape(self, shape: Sequence[int]) -> None:
        if self._on_device:
            raise RuntimeError("shape of a tensor on the device cannot change")
        self._shape = list(shape)

    @property
    def dtype(self) -> DataType:
        """Type of one value."""
        return self._dtype

    @dtype.setter
    def dtype(self, dtype: DataType) -> None:
        if self._on_device:
            raise RuntimeError("dtype of a tensor on the device cannot change")
        self._dtype = dtype

    @property
    def element_num(self) -> int:
        """How many values."""
        return prod(self._shape)

    @property
    def data_size(self) -> int:
        """How many bytes."""
        return self.element_num * _NUMPY[self._dtype].itemsize

    def set_data_from_numpy(self, numpy_obj: Array) -> None:
        """Wrap host memory, or copy to the device."""
        if not isinstance(numpy_obj, np.ndarray):
            raise TypeError(f"numpy_obj must be numpy.ndarray, but got {type(numpy_obj)}.")
        if numpy_obj.dtype != _NUMPY[self._dtype]:
            raise RuntimeError(
                f"data type not equal! Numpy type: {numpy_obj.dtype}, Tensor type: {self._dtype}"
            )
        if numpy_obj.nbytes != self.data_size:
            raise RuntimeError(
                f"data size not equal! Numpy size: {numpy_obj.nbytes}, "
                f"Tensor size: {self.data_size}"
            )
        if not self._on_device:
            self._data = np.ascontiguousarray(numpy_obj)
            return
        assert self._data is not None
        self._data[...] = numpy_obj.reshape(self._shape)
        card.to_device += self.data_size
        card.note("upload", f"{self.data_size}")

    def get_data_to_numpy(self) -> Array:
        """A view of host memory, or a copy from the device."""
        if self._data is None:
            raise RuntimeError("tensor has no data")
        if not self._on_device:
            return self._data
        card.from_device += self.data_size
        card.note("download", f"{self.data_size}")
        return self._data.copy()

    def __array__(self, *_: object, **__: object) -> Array:
        raise RuntimeError("a Tensor is no array: call get_data_to_numpy")

    def _value(self) -> Array:
        """What a model reads; on the device without crossing."""
        if self._data is None:
            raise RuntimeError("input tensor was given no data")
        if not self._on_device:
            card.to_device += self.data_size
            card.implicit_bytes += self.data_size
        return self._data.reshape(self._shape)

    def _take(self, value: Array) -> None:
        """What a model writes."""
        if not self._on_device:
            self._data = value
            card.from_device += value.nbytes
            card.implicit_bytes += value.nbytes
        else:
            assert self._data is not None
            self._data[...] = value


class Model:
    """One artifact, built for one device."""

    def __init__(self) -> None:
        self._session: Any = None
        self._inputs: list[Tensor] = []
        self._gears: tuple[Shapes, ...] = ()
        self._current: Shapes | None = None
        self._outputs: dict[Shapes, list[TensorMeta]] = {}
        self._owner = 0

    def build_from_file(
        self,
        model_path: str,
        model_type: ModelType,
        context: Context | None = None,
        config_path: str = "",
        config_dict: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """Load an artifact."""
        if self._session is not None:
            raise RuntimeError("build_from_file failed! Error is the model was built before.")
        if not Path(model_path).exists():
            raise RuntimeError("build_from_file failed, model_path does not exist!")
        header, graph = _read(Path(model_path))
        if context is None or context.target[0] != "ascend":
            raise RuntimeError(
                "build_from_file failed! Error is an Ascend artifact on another device."
            )
        if model_type is not ModelType.MINDIR:
            raise RuntimeError("build_from_file failed! Error is not a MINDIR_LITE artifact.")
        for group in card.groups:
            group.check_built(model_path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._header = header
        _, self._gears = parse_gears(header["input_shape"], header["dynamic_dims"])
        self._owner = threading.get_ident()
        for node in self._session.get_inputs():
            tensor = Tensor(shape=[-1], dtype=_onnx_type(node.type))
            tensor.name = node.name
            self._inputs.append(tensor)
        if len(self._gears) == 1:
            self._set(self._gears[0])
        card.built.append(model_path)
        card.note("build", Path(model_path).name)

    def get_inputs(self) -> list[Tensor]:
        """The model's own input tensors, on the host."""
        self._check()
        return list(self._inputs)

    def get_outputs(self) -> tuple[TensorMeta, ...]:
        """Outputs in order, with the shapes of the current gear."""
        self._check()
        if self._current is None:
            return tuple(
                TensorMeta(node.name, _onnx_type(node.type), [-1])
                for node in self._session.get_outputs()
            )
        return tuple(self._metas())

    def get_model_info(self, key: str) -> str:
        """`input_shape` and `dynamic_dims` as the converter was given them."""
        self._check()
        return str(self._header[key])

    def resize(self, inputs: Sequence[Tensor], dims: Sequence[Sequence[int]]) -> None:
        """Change to another gear."""
        self._check()
        if len(inputs) != len(dims):
            raise ValueError("inputs' size does not match dims' size")
        if [id(tensor) for tensor in inputs] != [id(tensor) for tensor in self._inputs]:
            raise RuntimeError("resize failed! Error is inputs are not those of get_inputs().")
        wanted = tuple(tuple(shape) for shape in dims)
        if wanted not in self._gears:
            raise RuntimeError(f"resize failed! Error is {show_shapes(wanted)} is no gear.")
        card.note("resize" if wanted != self._current else "resize-same", show_shapes(wanted))
        self._set(wanted)

    def predict(
        self, inputs: Sequence[Tensor | Array], outputs: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Run once."""
        self._check()
        if not isinstance(inputs, list | tuple):
            raise TypeError(f"inputs must be list or tuple, but got {type(inputs)}.")
        if self._current is None:
            raise RuntimeError("predict failed! Error is a dynamic model was not resized.")
        if len(inputs) != len(self._inputs):
            raise RuntimeError(
                f"model input len:{len(self._inputs)} not equal input len:{len(inputs)}!"
            )
        tensors = [t if isinstance(t, Tensor) else Tensor(t) for t in inputs]
        feeds: dict[str, Array] = {}
        for own, tensor, shape in zip(self._inputs, tensors, self._current, strict=True):
            if tuple(tensor.shape) != shape or tensor.dtype is not own.dtype:
                raise RuntimeError(
                    f"predict failed! Error is input {own.name} is {tensor.dtype.name} "
                    f"{tensor.shape}, the gear has {own.dtype.name} {list(shape)}."
                )
            feeds[own.name] = tensor._value()
        metas = self._metas()
        if outputs is None:
            outputs = [Tensor(shape=meta.shape, dtype=meta.dtype) for meta in metas]
        self._check_outputs(tensors, outputs, metas)
        found = self._session.run(None, feeds)
        for meta, tensor, value in zip(metas, outputs, found, strict=True):
            tensor._take(value)
            tensor.name = tensor.name or meta.name
        card.note("predict", f"{Path(self._session_name()).name}")
        return outputs

    def _check_outputs(
        self, inputs: Iterable[Tensor], outputs: list[Tensor], metas: Sequence[TensorMeta]
    ) -> None:
        if len(outputs) != len(metas):
            raise RuntimeError(
                f"predict failed! Error is {len(outputs)} outputs given, not {len(metas)}."
            )
        for meta, tensor in zip(metas, outputs, strict=True):
            if tensor.shape != meta.shape or tensor.dtype is not meta.dtype:
                raise RuntimeError(
                    f"predict failed! Error is output {meta.name} is {tensor.dtype.name} "
                    f"{tensor.shape}, the gear gives {meta.dtype.name} {meta.shape}."
                )
        ids = [id(tensor) for tensor in outputs]
        if len(set(ids)) != len(ids) or set(ids) & {id(tensor) for tensor in inputs}:
            raise RuntimeError("predict failed! Error is one tensor bound twice.")

    def _check(self) -> None:
        if self._session is None:
            raise RuntimeError("the model is not built")
        if threading.get_ident() != self._owner:
            raise RuntimeError("the model was built by another thread")

    def _set(self, gear: Shapes) -> None:
        self._current = gear
        for tensor, shape in zip(self._inputs, gear, strict=True):
            tensor._shape = list(shape)

    def _session_name(self) -> str:
        return str(self._header["name"])

    def _metas(self) -> list[TensorMeta]:
        gear = self._current
        assert gear is not None
        if gear not in self._outputs:
            zeros = {
                tensor.name: np.zeros(shape, _NUMPY[tensor.dtype])
                for tensor, shape in zip(self._inputs, gear, strict=True)
            }
            self._outputs[gear] = [
                TensorMeta(node.name, _TYPES[value.dtype], value.shape)
                for node, value in zip(
                    self._session.get_outputs(), self._session.run(None, zeros), strict=True
                )
            ]
        return self._outputs[gear]


class ModelGroup:
    """Models that share memory because they run in turn."""

    def __init__(self, flags: ModelGroupFlag = ModelGroupFlag.SHARE_WORKSPACE) -> None:
        self.flags = flags
        self.paths: list[str] = []
        self.measured = False
        card.groups.append(self)

    def add_model(self, models: Sequence[str]) -> None:
        """Name the artifacts of the group."""
        for path in models:
            if not isinstance(path, str):
                raise TypeError("models element must be str for SHARE_WORKSPACE")
            if path in card.built:
                raise RuntimeError(f"add_model failed! Error is {path} was built before.")
        self.paths.extend(models)
        card.note("add_model", " ".join(Path(path).name for path in models))

    def cal_max_size_of_workspace(self, model_type: ModelType, context: Context) -> None:
        """Measure the largest workspace among them."""
        if self.flags is ModelGroupFlag.SHARE_WEIGHT or not self.paths:
            raise RuntimeError("cal_max_size_of_workspace failed! Error is no model to measure.")
        if context.target[0] != "ascend" or not isinstance(model_type, ModelType):
            raise RuntimeError("cal_max_size_of_workspace failed! Error is not an Ascend context.")
        self.measured = True
        card.note("cal_max_size_of_workspace")

    def check_built(self, path: str) -> None:
        """Refuse to build before the measuring."""
        if path in self.paths and not self.measured:
            raise RuntimeError("build_from_file failed! Error is its group was not measured.")


class Converter:
    """Writes artifacts that `Model` here can build."""

    def __init__(self) -> None:
        self.save_type = ModelType.MINDIR
        self.input_shape: dict[str, list[int]] = {}
        self._optimize = "general"

    @property
    def optimize(self) -> str:
        """What the artifact is made for."""
        return self._optimize

    @optimize.setter
    def optimize(self, value: str) -> None:
        known = {"none", "general", "gpu_oriented", "ascend_oriented", "ascend_oriented:910b"}
        if value not in known:
            raise ValueError(f"optimize must be in {sorted(known)}, but got {value}.")
        self._optimize = value

    def convert(
        self,
        fmk_type: FmkType,
        model_file: str,
        output_file: str,
        weight_file: str = "",
        config_file: str = "",
    ) -> None:
        """Convert an ONNX file; `output_file` has no suffix."""
        if fmk_type is not FmkType.ONNX or not self._optimize.startswith("ascend_oriented"):
            raise RuntimeError("Convert model failed! Error is only ONNX for Ascend here.")
        import onnx

        model = onnx.load(Path(model_file).resolve())  # takes no weights that are a link
        names = [value.name for value in model.graph.input]
        shapes, dims = self._gears(config_file)
        found, _ = parse_gears(shapes, dims)
        if list(found) != names:
            raise RuntimeError(f"Convert model failed! Error is inputs {found}, expected {names}.")
        header = {
            "name": Path(output_file).name,
            "optimize": self._optimize,
            "input_shape": shapes,
            "dynamic_dims": dims,
        }
        Path(f"{output_file}.mindir").write_bytes(
            MAGIC + json.dumps(header).encode() + b"\n" + model.SerializeToString()
        )
        card.note("convert", header["name"])

    def _gears(self, config_file: str) -> tuple[str, str]:
        config = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        config.optionxform = str  # type: ignore[method-assign, assignment]
        if config_file:
            config.read(config_file, encoding="utf-8")
        for section, shapes, dims in (
            ("acl_build_options", "input_shape", "ge.dynamicDims"),
            ("ge_graph_options", "ge.inputShape", "ge.dynamicDims"),
        ):
            if config.has_option(section, dims):
                if self.input_shape:
                    raise RuntimeError("Convert model failed! Error is inputShape beside gears.")
                return config[section][shapes].strip('"'), config[section][dims].strip('"')
        static = (f"{name}:{','.join(map(str, s))}" for name, s in self.input_shape.items())
        return ";".join(static), ""


def _read(path: Path) -> tuple[dict[str, str], bytes]:
    content = path.read_bytes()
    line, _, graph = content.partition(b"\n")
    if not line.startswith(MAGIC) or not graph:
        raise RuntimeError(
            "build_from_file failed! Error is the file is no MindIR or is cut short."
        )
    header: dict[str, str] = json.loads(line[len(MAGIC) :])
    return header, graph


def _onnx_type(text: str) -> DataType:
    names = {"float": "float32", "double": "float64"}
    inner = text.removeprefix("tensor(").removesuffix(")")
    return _TYPES[np.dtype(names.get(inner, inner))]
