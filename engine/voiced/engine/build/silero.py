"""The bundle of the silero voice activity detector: its weights in a graph made for batches.

The released graph convolves each window by itself and so reads every weight once a window. The
same sums as matrix products over all windows of a call read them once a call, which is what counts
in a daemon whose caches other work has just filled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Manifest
from voiced.engine.errors import FetchError
from voiced.engine.store import SILERO_BUNDLE, SILERO_FILE

Float = npt.NDArray[np.float32]

OPSET = 16
_WINDOW = 576
"""64 samples of context and 512 new ones."""
_HOP, _FRAME, _FRAMES = 128, 256, 4
"""The spectrum of a window: frames of 256 samples, 128 apart, the end mirrored for the last."""
_BINS = _FRAME // 2 + 1
_UNITS = 128
_CONVOLUTIONS = {"0": (128, _BINS, 3), "1": (64, 128, 3), "2": (64, 64, 3), "3": (128, 64, 3)}


def build_silero(onnx_file: Path, writer: BundleWriter) -> Manifest:
    """Rewrite the graph into the bundle; the file's content was checked by hash before.

    The dimensions are those of silero-vad 6 at 16 kHz: 512 new samples behind 64 of context, any
    number of such windows in a call, and a recurrent state of two float32[1, 1, 128].

    Raises:
        FetchError: The file does not hold the weights of this network.
    """
    model = batched_graph(read_weights(onnx_file))
    writer.path_for(SILERO_FILE).write_bytes(model.SerializeToString())
    return Manifest(
        name=SILERO_BUNDLE,
        family="vad",
        graphs={"vad": SILERO_FILE},
        model={"state": [2, 1, 1, _UNITS], "opset": OPSET},
        frontend={"rate_hz": 16_000, "window_samples": 512, "context_samples": 64},
        quantisation="none",
    )


def read_weights(onnx_file: Path) -> dict[str, Float]:
    """Read the network's weights out of `silero_vad_16k_sequence.onnx`, under plain names.

    Raises:
        FetchError: It is no ONNX file, or a weight is missing or has another shape.
    """
    try:
        graph = onnx.load(onnx_file).graph
    except DecodeError as error:
        raise FetchError(f"{onnx_file}: found no ONNX graph, expected silero's: {error}") from error
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    lstm = next((node for node in graph.node if node.op_type == "LSTM"), None)
    names = {"stft": "stft.forward_basis_buffer", "out_w": "output.weight", "out_b": "output.bias"}
    shapes: dict[str, tuple[int, ...]] = {
        "stft": (2 * _BINS, 1, _FRAME),
        "out_w": (1, _UNITS, 1),
        "out_b": (1,),
        "lstm_w": (1, 4 * _UNITS, _UNITS),
        "lstm_r": (1, 4 * _UNITS, _UNITS),
        "lstm_b": (1, 8 * _UNITS),
    }
    for layer, kernel in _CONVOLUTIONS.items():
        names |= {
            f"conv{layer}_w": f"encoder.{layer}.weight",
            f"conv{layer}_b": f"encoder.{layer}.bias",
        }
        shapes |= {f"conv{layer}_w": kernel, f"conv{layer}_b": kernel[:1]}
    if lstm is not None:
        names |= dict(zip(("lstm_w", "lstm_r", "lstm_b"), lstm.input[1:4], strict=True))
    weights = {}
    for name, shape in shapes.items():
        array = stored.get(names.get(name, ""))
        if array is None or array.shape != shape:
            found = "nothing" if array is None else f"{list(array.shape)}"
            raise FetchError(f"{onnx_file}: weight {name}: found {found}, expected {list(shape)}")
        weights[name] = array.astype(np.float32)
    return weights


def batched_graph(weights: dict[str, Float]) -> onnx.ModelProto:
    """Build the network over k consecutive windows of one stream.

    Inputs: `input` float32[k, 576], `h` and `c` float32[1, 1, 128].
    Outputs: `speech_probs` float32[k], `hn` and `cn` like `h` and `c`.
    """
    g = GraphBuilder("silero_vad", Precision.FP32, OPSET)
    f32 = TensorProto.FLOAT
    x = g.input("input", f32, ["k", _WINDOW])
    h, c = (g.input(name, f32, [1, 1, _UNITS]) for name in "hc")
    power = _spectrum(g, x, weights["stft"])
    y = g.op("Reshape", power, g.ints(-1, _FRAMES, _BINS))
    y = _layer(g, _taps(g, y, (0, 1, 2), stride=1, frames=4), weights, "0", (0, 1, 2))
    y = g.op("Reshape", y, g.ints(-1, 4, 128))
    y = _layer(g, _taps(g, y, (0, 1, 2), stride=2, frames=2), weights, "1", (0, 1, 2))
    # of two frames with a zero on either side the third convolution sees [0, a, b] alone, and of
    # the one frame left the fourth sees [0, a, 0]: products with zeros are left out
    y = _layer(g, g.op("Reshape", y, g.ints(-1, 2 * 64)), weights, "2", (1, 2))
    y = _layer(g, y, weights, "3", (1,))
    y, h_next, c_next = g.ops(
        "LSTM",
        3,
        g.op("Reshape", y, g.ints(-1, 1, _UNITS)),
        *(g.constant(weights[name]) for name in ("lstm_w", "lstm_r", "lstm_b")),
        "",
        h,
        c,
        hidden_size=_UNITS,
    )
    y = g.op("Relu", g.op("Reshape", y, g.ints(-1, _UNITS)))
    y = g.linear(y, weights["out_w"][0], weights["out_b"])
    g.output(g.op("Reshape", g.op("Sigmoid", y), g.ints(-1)), "speech_probs", f32, ["k"])
    g.output(h_next, "hn", f32, [1, 1, _UNITS])
    g.output(c_next, "cn", f32, [1, 1, _UNITS])
    return g.model()


def _spectrum(g: GraphBuilder, x: str, basis: Float) -> str:
    """Magnitudes float32[4k, 129] of the frames of windows float32[k, 576]."""
    padded = g.op("Pad", x, g.ints(0, 0, 0, 64), mode="reflect")
    hops = g.op("Reshape", padded, g.ints(-1, _FRAMES + 1, _HOP))
    first = g.op("Slice", hops, g.ints(0), g.ints(_FRAMES), g.ints(1))
    second = g.op("Slice", hops, g.ints(1), g.ints(_FRAMES + 1), g.ints(1))
    frames = g.op("Reshape", g.op("Concat", first, second, axis=2), g.ints(-1, _FRAME))
    parts = g.op("MatMul", frames, g.constant(np.ascontiguousarray(basis[:, 0].T)))
    real = g.op("Slice", parts, g.ints(0), g.ints(_BINS), g.ints(1))
    imaginary = g.op("Slice", parts, g.ints(_BINS), g.ints(2 * _BINS), g.ints(1))
    squares = [g.op("Mul", part, part) for part in (real, imaginary)]
    return g.op("Sqrt", g.op("Add", *squares))


def _taps(g: GraphBuilder, x: str, taps: tuple[int, ...], *, stride: int, frames: int) -> str:
    """What a convolution of width 3 sees of float32[k, t, n], zeros around: [k·frames, taps·n]."""
    padded = g.op("Pad", x, g.ints(0, 1, 0, 0, 1, 0))
    seen = [
        g.op(
            "Slice",
            padded,
            g.ints(tap),
            g.ints(tap + (frames - 1) * stride + 1),
            g.ints(1),
            g.ints(stride),
        )
        for tap in taps
    ]
    joined = g.op("Concat", *seen, axis=2)
    channels = {1: _BINS, 2: 128}[stride]
    return g.op("Reshape", joined, g.ints(-1, len(taps) * channels))


def _layer(
    g: GraphBuilder, x: str, weights: dict[str, Float], layer: str, taps: tuple[int, ...]
) -> str:
    """A convolution over `taps` of its three, as a matrix product, and its ReLU."""
    kernel = weights[f"conv{layer}_w"]
    matrix = np.concatenate([kernel[:, :, tap].T for tap in taps])
    return g.op("Relu", g.linear(x, np.ascontiguousarray(matrix), weights[f"conv{layer}_b"]))
