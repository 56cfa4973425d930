"""A small layer over onnx.helper: names, constants, and linear layers in the chosen precision.

Written for graphs that are assembled by hand, node by node; nothing here runs a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Float = npt.NDArray[np.float32]

RUNTIME_DOMAIN = "com.microsoft"
"""Operators that only ONNX Runtime has."""

GELU_LEAST, SWISH_LEAST = -0.17, -0.2785
"""No value of the function lies below: the minima are -0.16997 and -0.27846."""


class Precision(StrEnum):
    """How weights of linear layers are stored and multiplied."""

    FP32 = "fp32"
    FP16 = "fp16"
    """Weights and activations; layer norms and whatever is built with `score` stay float32."""
    INT8 = "int8"
    """Symmetric per output column, 7 bits and sign; activations uint8 at run time, per tensor
    (`linear`) or per row (`row_linear`)."""
    INT8_EXACT = "int8-exact"
    """As INT8 with the full 8 bits, stored unsigned: see `quantise_columns`."""


def quantise_columns(
    weight: Float, precision: Precision
) -> tuple[npt.NDArray[np.int8] | npt.NDArray[np.uint8], Float, npt.NDArray[np.generic]]:
    """Quantise `weight` float32[k, n] symmetrically per column.

    Kernels for AVX2 and AVX-512 without VNNI add pairs of u8 x s8 products in 16 bits and saturate
    when both are large (255 * 127 * 2 > 32767). INT8 therefore uses -63..63, which cannot
    saturate on any CPU; INT8_EXACT keeps -127..127 as unsigned bytes around 128, for which the
    runtime widens first.

    Returns:
        (quantised[k, n], scale float32[n], zero point[n]).
    """
    limit = 63 if precision is Precision.INT8 else 127
    scale = np.abs(weight).max(axis=0) / limit
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    rounded = np.clip(np.rint(weight / scale), -limit, limit)
    columns = weight.shape[1]
    if precision is Precision.INT8_EXACT:
        return (rounded + 128).astype(np.uint8), scale, np.full(columns, 128, np.uint8)
    return rounded.astype(np.int8), scale, np.zeros(columns, np.int8)


class WeightFile:
    """The one file beside a bundle's graphs that their large constants go to as they are made.

    So memory holds one tensor at a time, and no graph exceeds the 2 GB of a protobuf message. For
    use in a `with` statement; several graphs may share it.
    """

    LEAST_BYTES = 4096
    """Smaller constants stay in the graph, where optimisers and converters look at them."""
    ALIGNMENT = 4096
    """Of each tensor's start, so that a runtime can map it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, array: npt.NDArray[np.generic], name: str) -> onnx.TensorProto:
        """Append an array; returns the constant that refers to it."""
        start = -(-self._file.tell() // self.ALIGNMENT) * self.ALIGNMENT
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).data)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": str(start), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        return tensor


class GraphBuilder:
    """Collects nodes and constants of one graph; every method returns the output's name.

    Operators that came with a later opset than the graph's are written out in older ones.
    """

    def __init__(
        self, name: str, precision: Precision, opset: int, weights: WeightFile | None = None
    ) -> None:
        self.name = name
        self.precision = precision
        self.opset = opset
        self._weights = weights
        is_half = precision is Precision.FP16
        self.dtype = np.dtype(np.float16 if is_half else np.float32)
        """Of activations."""
        self.float = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
        """`dtype` as ONNX names it."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._shared: dict[tuple[str, bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: object) -> list[str]:
        """Add a node with several outputs."""
        names = [self._fresh(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Add a constant, of the activations' type by default; small equal ones are stored once."""
        # not ascontiguousarray, which makes a vector of a scalar
        array = np.asarray(value, dtype=dtype or self.dtype, order="C")
        key = (f"{array.dtype}{array.shape}", array.tobytes() if array.size <= 16 else b"")
        if array.size <= 16 and key in self._shared:
            return self._shared[key]
        name = self._fresh("const")
        if self._weights is not None and array.nbytes >= WeightFile.LEAST_BYTES:
            self._constants.append(self._weights.add(array, name))
        else:
            self._constants.append(numpy_helper.from_array(array, name))
        if array.size <= 16:
            self._shared[key] = name
        return name

    def ints(self, *values: int) -> str:
        """Add an int64 vector, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an input; strings are dynamic dimensions."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Declare `value` as an output under `name`."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, used in enumerate(names):
                    if used == value:
                        names[index] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def linear(self, x: str, weight: Float, bias: Float | None = None) -> str:
        """x float32[..., k] times `weight` float32[k, n] plus `bias` float32[n]."""
        if self.precision in (Precision.FP32, Precision.FP16):
            y = self.op("MatMul", x, self.constant(weight))
        else:
            quantised, scale, zero = quantise_columns(weight, self.precision)
            xq, x_scale, x_zero = self.ops("DynamicQuantizeLinear", 3, x)
            product = self.op(
                "MatMulInteger",
                xq,
                self.constant(quantised, quantised.dtype),
                x_zero,
                self.constant(zero, zero.dtype),
            )
            scales = self.op("Mul", x_scale, self.constant(scale))
            y = self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), scales)
        return y if bias is None else self.op("Add", y, self.constant(bias))

    def row_linear(
        self, x: str, weight: Float, bias: Float | None = None, *, least: float | None = None
    ) -> str:
        """As `linear`, with every row of x float32[..., k] quantised by itself.

        So no row's result depends on its neighbours, whoever shares the batch. Uses a fused
        operator of ONNX Runtime.

        Args:
            x: The rows.
            weight: float32[k, n].
            bias: float32[n].
            least: What no value of x lies below, where that is near 0: all 8 bits serve what lies
                above. None: as far below 0 as above.
        """
        if self.precision is not Precision.INT8:
            return self.linear(x, weight, bias)
        f32, u8 = np.float32, np.uint8
        quantised, scale, zero = quantise_columns(weight, self.precision)
        if least is None:
            levels, origin = 127, 128
            size = self.reduce("ReduceMax", self.op("Abs", x), -1)
        else:
            levels, origin = 255, 0
            x = self.op("Sub", x, self.constant(least, f32))
            size = self.reduce("ReduceMax", x, -1)
            # (x - least) W is too much by -least W
            extra = least * (quantised.astype(f32) * scale).sum(axis=0)
            bias = extra if bias is None else bias + extra
        size = self.op("Max", size, self.constant(1e-9, f32))
        unit = self.op("Div", x, size)
        step, zero_point = self.constant(1 / levels, f32), self.constant(origin, u8)
        rows = self.op("QuantizeLinear", unit, step, zero_point)
        product = self.op(
            "MatMulIntegerToFloat",
            rows,
            self.constant(quantised, quantised.dtype),
            step,
            self.constant(scale),
            zero_point,
            self.constant(zero, zero.dtype),
            domain=RUNTIME_DOMAIN,
        )
        y = self.op("Mul", product, size)
        return y if bias is None else self.op("Add", y, self.constant(bias))

    def embedding(self, ids: str, table: Float) -> str:
        """Rows of `table` float32[v, d] for `ids` int32[...]."""
        if self.precision in (Precision.FP32, Precision.FP16):
            return self.op("Gather", self.constant(table), ids, axis=0)
        scale = np.abs(table).max(axis=1, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        rows = self.constant(np.rint(table / scale).astype(np.int8), np.int8)
        values = self.op("Cast", self.op("Gather", rows, ids, axis=0), to=TensorProto.FLOAT)
        return self.op("Mul", values, self.op("Gather", self.constant(scale), ids, axis=0))

    def layer_norm(self, x: str, gamma: Float, beta: Float) -> str:
        """Layer normalisation over the last axis, epsilon 1e-5; always computed in float32."""
        f32 = np.float32
        if self.opset >= 17:
            scale, shift = self.constant(gamma, f32), self.constant(beta, f32)
            return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
        x = self.score(x)
        centred = self.op("Sub", x, self.reduce("ReduceMean", x, -1))
        square = self.op("Pow", centred, self.constant(2.0, f32))
        variance = self.op("Add", self.reduce("ReduceMean", square, -1), self.constant(1e-5, f32))
        unit = self.op("Div", centred, self.op("Sqrt", variance))
        y = self.op("Mul", unit, self.constant(gamma, f32))
        return self.body(self.op("Add", y, self.constant(beta, f32)))

    def gelu(self, x: str) -> str:
        """The exact GELU, x / 2 * (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel 2016)."""
        if self.opset >= 20:
            return self.op("Gelu", x)
        erf = self.op("Erf", self.op("Div", x, self.constant(2**0.5)))
        y = self.op("Mul", x, self.op("Add", erf, self.constant(1.0)))
        return self.op("Mul", y, self.constant(0.5))

    def split(self, x: str, parts: int) -> list[str]:
        """Cut the last axis into equal parts."""
        if self.opset >= 18:
            return self.ops("Split", parts, x, axis=-1, num_outputs=parts)
        return self.ops("Split", parts, x, axis=-1)

    def reduce(self, kind: str, x: str, axis: int, *, keepdims: int = 1) -> str:
        """ReduceMean, ReduceMax or ReduceSum over one axis."""
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return self.op(kind, x, self.ints(axis), keepdims=keepdims)
        return self.op(kind, x, axes=[axis], keepdims=keepdims)

    def score(self, x: str) -> str:
        """Take activations to float32, where sums over the vocabulary are made."""
        if self.dtype == np.float32:
            return x
        return self.op("Cast", x, to=TensorProto.FLOAT)

    def body(self, x: str) -> str:
        """Take float32 back to the activations' type."""
        return x if self.dtype == np.float32 else self.op("Cast", x, to=self.float)

    def model(self) -> onnx.ModelProto:
        """Put the graph together and check it, unless its weights are in a file: see `save`."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._constants
        )
        domains = {"": self.opset}
        if any(node.domain == RUNTIME_DOMAIN for node in self._nodes):
            domains[RUNTIME_DOMAIN] = 1
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, v) for domain, v in domains.items()],
            # the version of the format that came with the opset; old converters look at it
            ir_version=10 if self.opset > 13 else 7,
            producer_name="voiced",
        )
        if self._weights is None:
            onnx.checker.check_model(model)
        return model

    def save(self, path: Path) -> None:
        """Write the graph, beside its file of weights if it has one, and check it."""
        onnx.save(self.model(), path)
        onnx.checker.check_model(str(path))
