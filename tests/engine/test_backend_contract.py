"""What every backend promises, asked of each one that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from voiced.engine.backends.base import Backend, DeviceTensor, Session
from voiced.engine.backends.binding import check_binding
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.errors import BackendFailed

SHAPE = (2, 3)
WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3) / 8


def graph() -> onnx.ModelProto:
    """y = x W + state; next = state + 1; shifted = ids + 1."""
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "state"], ["y"]),
        helper.make_node("Add", ["state", "one"], ["next"]),
        helper.make_node("Add", ["ids", "step"], ["shifted"]),
    ]
    values = {"x": f32, "state": f32, "ids": i32}, {"y": f32, "next": f32, "shifted": i32}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, SHAPE) for name, kind in side.items()]
        for side in values
    )
    constants = {"w": WEIGHT, "one": np.ones(1, np.float32), "step": np.ones(1, np.int32)}
    made = helper.make_graph(
        nodes,
        "contract",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    return model


@dataclass(frozen=True, slots=True)
class Kit:
    """A backend, and how an ONNX file becomes one that it loads."""

    backend: Backend
    make: Callable[[Path], Path]


def onnxruntime_kit(_: pytest.FixtureRequest) -> Iterator[Kit]:
    yield Kit(OrtBackend(), lambda source: source)


def mindspore_lite_kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    from voiced.engine.backends.mindspore_lite.backend import MsliteBackend
    from voiced.engine.build.mindspore.tools import Form, find_converter

    python: Path = request.getfixturevalue("mslite_python")
    converter = find_converter(python)
    backend = MsliteBackend(python=python)

    def make(source: Path) -> Path:
        form = Form("MINDIR_LITE", "general")
        return converter.convert(source, source.with_suffix(""), form, source.with_suffix(".log"))

    yield Kit(backend, make)
    backend.close()


def ascend_kit(_: pytest.FixtureRequest) -> Iterator[Kit]:
    """The adapter for a card, on the stand-in for the library."""
    from voiced.engine.backends.mindspore_lite import fake_api
    from voiced.engine.backends.mindspore_lite.ascend import AscendBackend

    def make(source: Path) -> Path:
        converter = fake_api.Converter()
        converter.optimize = "ascend_oriented"
        converter.input_shape = {name: list(SHAPE) for name in ("x", "state", "ids")}
        target = source.with_suffix("")
        converter.convert(fake_api.FmkType.ONNX, str(source), str(target))
        return target.with_suffix(".mindir")

    yield Kit(AscendBackend("ascend:0", fake_api), make)


KITS = {
    "onnxruntime": onnxruntime_kit,
    "mindspore_lite": mindspore_lite_kit,
    "ascend": ascend_kit,
}


@pytest.fixture(scope="module", params=KITS)
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from KITS[request.param](request)


@pytest.fixture(scope="module")
def artifact(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("contract") / "graph.onnx"
    onnx.save(graph(), source)
    return kit.make(source)


@pytest.fixture
def session(kit: Kit, artifact: Path) -> Session:
    return kit.backend.load(artifact, threads=1)


class Memory:
    """Host arrays for every input and output, with values in them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal(SHAPE).astype(np.float32)
        self.state = rng.standard_normal(SHAPE).astype(np.float32)
        self.ids = np.arange(6, dtype=np.int32).reshape(SHAPE)
        self.outputs: dict[str, Any] = {
            "y": np.zeros(SHAPE, np.float32),
            "next": np.zeros(SHAPE, np.float32),
            "shifted": np.zeros(SHAPE, np.int32),
        }

    @property
    def inputs(self) -> dict[str, Any]:
        return {"x": self.x, "state": self.state, "ids": self.ids}


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_host_arrays_are_read_and_written_at_every_run(session: Session, memory: Memory) -> None:
    call = session.bind(memory.inputs, memory.outputs)
    for factor in (1, 2, -3):
        memory.x[...] = np.float32(factor)
        memory.ids += factor
        call.run()
        y = memory.x @ WEIGHT + memory.state
        np.testing.assert_allclose(memory.outputs["y"], y, atol=1e-5)
        np.testing.assert_array_equal(memory.outputs["shifted"], memory.ids + 1)


def test_the_same_question_gets_the_same_answer_a_hundred_times(
    session: Session, memory: Memory
) -> None:
    call = session.bind(memory.inputs, memory.outputs)
    call.run()
    first = memory.outputs["y"].copy()
    for _ in range(100):
        memory.outputs["y"].fill(np.nan)
        call.run()
        np.testing.assert_array_equal(memory.outputs["y"], first)


def test_a_device_tensor_begins_with_zeros_and_keeps_what_is_written(session: Session) -> None:
    tensor = session.allocate(SHAPE, np.float32)
    assert isinstance(tensor, DeviceTensor)
    assert (tensor.shape, tensor.dtype) == (SHAPE, np.float32)
    np.testing.assert_array_equal(tensor.read(), np.zeros(SHAPE))
    values = np.arange(6, dtype=np.float32).reshape(SHAPE)
    tensor.write(values)
    values += 100  # the tensor has its own memory
    first = tensor.read()
    np.testing.assert_array_equal(first, values - 100)
    first += 1  # and so has what was read
    np.testing.assert_array_equal(tensor.read(), values - 100)


def test_two_device_tensors_in_turn_carry_a_state_from_run_to_run(
    session: Session, memory: Memory
) -> None:
    a, b = (session.allocate(SHAPE, np.float32) for _ in range(2))
    a.write(memory.state)
    there = session.bind({**memory.inputs, "state": a}, {**memory.outputs, "next": b})
    back = session.bind({**memory.inputs, "state": b}, {**memory.outputs, "next": a})
    for i in range(6):
        (there, back)[i % 2].run()
        expected = memory.x @ WEIGHT + memory.state + i
        np.testing.assert_allclose(memory.outputs["y"], expected, atol=1e-5)
    np.testing.assert_allclose(a.read(), memory.state + 6, atol=1e-5)


def test_a_tensor_of_one_session_serves_another(
    kit: Kit, artifact: Path, session: Session, memory: Memory
) -> None:
    other = kit.backend.load(artifact, threads=1)
    tensor = session.allocate(SHAPE, np.float32)
    session.bind(memory.inputs, {**memory.outputs, "next": tensor}).run()
    other.bind({**memory.inputs, "state": tensor}, memory.outputs).run()
    np.testing.assert_allclose(memory.outputs["next"], memory.state + 2, atol=1e-5)


def test_only_host_arrays_cross_at_a_run(session: Session, memory: Memory) -> None:
    size = 6 * 4
    before = session.traffic - session.traffic
    assert (before.to_device, before.from_device) == (0, 0)
    start = session.traffic - before
    a, b = (session.allocate(SHAPE, np.float32) for _ in range(2))
    a.write(memory.state)
    call = session.bind({**memory.inputs, "state": a}, {**memory.outputs, "next": b})
    written = session.traffic - start
    call.run()
    call.run()
    ran = session.traffic - start
    b.read()
    moved = session.traffic - start
    assert (written.to_device, written.from_device) == (size, 0)
    assert (ran.to_device, ran.from_device) == (size + 2 * 2 * size, 2 * 2 * size)
    assert (moved.to_device, moved.from_device) == (ran.to_device, ran.from_device + size)


@pytest.mark.parametrize("name", ["x", "ids"])
@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 2), np.float32), np.zeros(6, np.float32), np.zeros(SHAPE, np.float64)],
)
def test_memory_of_another_shape_or_type_is_refused(
    session: Session, memory: Memory, name: str, wrong: np.ndarray
) -> None:
    with pytest.raises(BackendFailed, match=rf"input '{name}': found .*expected .*\[2, 3\]"):
        session.bind({**memory.inputs, name: wrong}, memory.outputs)


def test_a_name_that_the_graph_does_not_have_is_refused(session: Session, memory: Memory) -> None:
    with pytest.raises(BackendFailed, match="no input 'z'; expected x, state, ids"):
        session.bind({**memory.inputs, "z": memory.x.copy()}, memory.outputs)


def test_a_graph_is_bound_whole_or_not_at_all(session: Session, memory: Memory) -> None:
    with pytest.raises(BackendFailed, match="output 'next' is not bound"):
        session.bind(memory.inputs, {k: v for k, v in memory.outputs.items() if k != "next"})


def test_an_array_with_gaps_is_refused(session: Session, memory: Memory) -> None:
    gaps = np.zeros((2, 6), np.float32)[:, ::2]
    with pytest.raises(BackendFailed, match="'x' must be C-contiguous"):
        session.bind({**memory.inputs, "x": gaps}, memory.outputs)


def test_no_output_shares_memory_with_anything(session: Session, memory: Memory) -> None:
    tensor = session.allocate(SHAPE, np.float32)
    with pytest.raises(BackendFailed, match="'next' shares memory with 'state'"):
        session.bind({**memory.inputs, "state": tensor}, {**memory.outputs, "next": tensor})
    with pytest.raises(BackendFailed, match="'next' shares memory with 'x'"):
        session.bind(memory.inputs, {**memory.outputs, "next": memory.x})
    with pytest.raises(BackendFailed, match="shares memory with"):
        session.bind(memory.inputs, {**memory.outputs, "next": memory.outputs["y"]})
    arena = np.zeros(9, np.float32)
    halves = {"y": arena[:6].reshape(SHAPE), "next": arena[3:].reshape(SHAPE)}
    with pytest.raises(BackendFailed, match="shares memory with"):
        session.bind(memory.inputs, {**memory.outputs, **halves})


def test_inputs_may_share_memory(session: Session, memory: Memory) -> None:
    session.bind({**memory.inputs, "state": memory.x}, memory.outputs).run()
    np.testing.assert_allclose(memory.outputs["next"], memory.x + 1, atol=1e-5)


def test_an_array_that_does_not_fit_is_not_written(session: Session) -> None:
    tensor = session.allocate(SHAPE, np.float32)
    for wrong in (np.zeros((3, 2), np.float32), np.zeros(SHAPE, np.int32), np.zeros(1)):
        with pytest.raises(BackendFailed, match=r"expected float32\[2, 3\]"):
            tensor.write(wrong)


def test_a_file_that_is_no_graph_is_refused_by_name(kit: Kit, artifact: Path) -> None:
    damaged = artifact.with_name("damaged" + artifact.suffix)
    damaged.write_bytes(artifact.read_bytes()[:100])
    with pytest.raises(BackendFailed, match="damaged"):
        kit.backend.load(damaged, threads=1)


def test_a_long_input_is_not_hidden_by_a_short_one_that_ends_sooner() -> None:
    arena = np.zeros(100, np.float32)
    inputs = {"long": arena[:90], "short": arena[10:20]}
    specs = {n: _spec(a) for n, a in inputs.items()}
    output = arena[50:60]
    with pytest.raises(BackendFailed, match="'out' shares memory with 'long'"):
        check_binding(specs, {"out": _spec(output)}, inputs, {"out": output})


def _spec(array: np.ndarray) -> Any:
    from voiced.engine.backends.binding import TensorSpec

    return TensorSpec(array.dtype, array.shape)
