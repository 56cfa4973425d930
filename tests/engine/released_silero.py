"""The voice detector's graph as it is released, with generated weights instead of the real ones."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def released_graph(rng: np.random.Generator) -> onnx.ModelProto:
    """Convolutions window by window, as in silero-vad's `silero_vad_16k_sequence.onnx`."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1.5 / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 16)
        return numpy_helper.from_array(
            (rng.standard_normal(shape) * scale).astype(np.float32), name
        )

    shapes = {"0": (128, 129, 3), "1": (64, 128, 3), "2": (64, 64, 3), "3": (128, 64, 3)}
    stored = [
        weight("stft.forward_basis_buffer", 258, 1, 256),
        *(weight(f"encoder.{n}.weight", *shape) for n, shape in shapes.items()),
        *(weight(f"encoder.{n}.bias", shape[0]) for n, shape in shapes.items()),
        weight("W", 1, 512, 128),
        weight("R", 1, 512, 128),
        weight("B", 1, 1024),
        weight("output.weight", 1, 128, 1),
        weight("output.bias", 1),
    ]
    ints = {
        "pads": [0, 0, 0, 64], "channel": [1], "real": [0], "middle": [129], "end": [258],
        "one": [1], "flat": [-1],
    }  # fmt: skip
    stored += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in ints.items()]
    stored.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    node = helper.make_node
    nodes = [
        node("Pad", ["input", "pads"], ["padded"], mode="reflect"),
        node("Unsqueeze", ["padded", "channel"], ["x"]),
        node("Conv", ["x", "stft.forward_basis_buffer"], ["parts"], strides=[128]),
        node("Slice", ["parts", "real", "middle", "one"], ["re"]),
        node("Slice", ["parts", "middle", "end", "one"], ["im"]),
        node("Pow", ["re", "two"], ["re2"]),
        node("Pow", ["im", "two"], ["im2"]),
        node("Add", ["re2", "im2"], ["power"]),
        node("Sqrt", ["power"], ["y0"]),
    ]
    for index, (name, stride) in enumerate((("0", 1), ("1", 2), ("2", 2), ("3", 1))):
        inputs = [f"y{index}", f"encoder.{name}.weight", f"encoder.{name}.bias"]
        nodes += [
            node("Conv", inputs, [f"z{index}"], pads=[1, 1], strides=[stride]),
            node("Relu", [f"z{index}"], [f"y{index + 1}"]),
        ]
    nodes += [
        node("Transpose", ["y4"], ["sequence"], perm=[0, 2, 1]),
        node(
            "LSTM", ["sequence", "W", "R", "B", "", "h", "c"], ["ys", "hn", "cn"], hidden_size=128
        ),
        node("Squeeze", ["ys", "one"], ["hidden"]),
        node("Relu", ["hidden"], ["seen"]),
        node("Transpose", ["seen"], ["channels"], perm=[1, 2, 0]),
        node("Conv", ["channels", "output.weight", "output.bias"], ["logits"]),
        node("Sigmoid", ["logits"], ["chances"]),
        node("Reshape", ["chances", "flat"], ["speech_probs"]),
    ]

    def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "released",
        [info("input", "k", 576), info("h", 1, 1, 128), info("c", 1, 1, 128)],
        [info("speech_probs", "k"), info("hn", 1, 1, 128), info("cn", 1, 1, 128)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
