"""MindSpore Lite for real, in its own interpreter: numbers, tensors, failures, bad input."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from voiced.engine.backends.mindspore_lite import client
from voiced.engine.backends.mindspore_lite.backend import MsliteBackend, MsliteSession
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.mindspore.tools import ConversionFailed, Form, find_converter
from voiced.engine.errors import BackendFailed, BackendUnavailable, StateLost

CELLS, WIDTH, VOCABULARY, TOP = 6, 64, 50, 3
FORM = Form("MINDIR_LITE", "general")

Arrays = dict[str, np.ndarray]


def step_model(vocabulary: int = VOCABULARY) -> onnx.ModelProto:
    """A decoder step in small: writes a cell by blending, attends, picks tokens."""
    rng = np.random.default_rng(0)
    constants = {
        "table": rng.standard_normal((vocabulary, WIDTH)).astype(np.float32),
        "weight": (rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32),
        "one": np.ones(1, np.float32),
        "top": np.array([TOP], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["new"]),
        helper.make_node("Sub", ["one", "slot"], ["kept"]),
        helper.make_node("Mul", ["cache", "kept"], ["old"]),
        helper.make_node("Mul", ["new", "slot"], ["placed"]),
        helper.make_node("Add", ["old", "placed"], ["next_cache"]),
        helper.make_node("Transpose", ["next_cache"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "keys"], ["raw"]),
        helper.make_node("Add", ["raw", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "next_cache"], ["y"]),
        helper.make_node("TopK", ["y", "top"], ["scores", "index"], axis=-1),
        helper.make_node("Cast", ["index"], ["ids"], to=TensorProto.INT32),
    ]
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    takes = {
        "tokens": (i32, [2, 1]),
        "slot": (f32, [1, CELLS, 1]),
        "mask": (f32, [2, 1, CELLS]),
        "cache": (f32, [2, CELLS, WIDTH]),
    }
    gives = {
        "scores": (f32, [2, 1, TOP]),
        "ids": (i32, [2, 1, TOP]),
        "next_cache": (f32, [2, CELLS, WIDTH]),
    }
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(name, *spec) for name, spec in takes.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in gives.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def question(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    place = seed % CELLS
    return {
        "tokens": rng.integers(0, VOCABULARY, (2, 1), dtype=np.int32),
        "slot": np.eye(CELLS, dtype=np.float32)[place].reshape(1, CELLS, 1),
        "mask": np.tile(np.where(np.arange(CELLS) > place, -1e4, 0).astype(np.float32), (2, 1, 1)),
        "cache": rng.standard_normal((2, CELLS, WIDTH)).astype(np.float32),
    }


def empty_answer() -> Arrays:
    return {
        "scores": np.zeros((2, 1, TOP), np.float32),
        "ids": np.zeros((2, 1, TOP), np.int32),
        "next_cache": np.zeros((2, CELLS, WIDTH), np.float32),
    }


def assert_same(found: Arrays, expected: Arrays) -> None:
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["next_cache"], expected["next_cache"], atol=1e-4)
    np.testing.assert_array_equal(found["ids"], expected["ids"])


@pytest.fixture(scope="session")
def graphs(mslite_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the step as `step.onnx` and, converted, `step.ms`."""
    folder = tmp_path_factory.mktemp("mindspore")
    onnx.save(step_model(), folder / "step.onnx")
    converter = find_converter(mslite_python)
    assert converter.library.startswith("mindspore_lite ")
    converter.convert(folder / "step.onnx", folder / "step", FORM, folder / "log")
    return folder


class Reference:
    """The same graph in ONNX Runtime."""

    def __init__(self, graphs: Path) -> None:
        self._session = OrtBackend().load(graphs / "step.onnx", threads=1)

    def __call__(self, asked: Arrays) -> Arrays:
        answer = empty_answer()
        self._session.bind(asked, answer).run()
        return answer


@pytest.fixture(scope="session")
def reference(graphs: Path) -> Reference:
    return Reference(graphs)


@pytest.fixture
def backend(mslite_python: Path) -> Iterator[MsliteBackend]:
    with closing(MsliteBackend(python=mslite_python, deadline_s=30.0)) as backend:
        yield backend


@pytest.fixture
def server(backend: MsliteBackend) -> client.GraphServer:
    assert backend.server is not None
    return backend.server


@pytest.fixture
def session(backend: MsliteBackend, graphs: Path) -> MsliteSession:
    return backend.load(graphs / "step.ms", threads=1)


def test_the_numbers_are_those_of_onnxruntime(session: MsliteSession, reference: Reference) -> None:
    asked, answer = question(0), empty_answer()
    call = session.bind(asked, answer)
    for seed in range(40):
        for name, array in question(seed).items():
            asked[name][...] = array
        call.run()
        assert_same(answer, reference(asked))


def test_what_the_graph_takes_and_gives_is_known_before_the_first_run(
    session: MsliteSession,
) -> None:
    assert {n: s.shape for n, s in session.inputs.items()} == {
        name: array.shape for name, array in question(0).items()
    }
    assert {n: s.dtype for n, s in session.outputs.items()} == {
        name: array.dtype for name, array in empty_answer().items()
    }


def test_resident_tensors_stay_on_the_other_side(
    session: MsliteSession, reference: Reference
) -> None:
    """Two sets of the cache in turn, as the decoder does it; only small arrays cross."""
    asked, answer = question(0), empty_answer()
    host_cache = asked.pop("cache")
    answer.pop("next_cache")
    sets = [session.allocate(host_cache.shape, np.float32) for _ in range(2)]
    sets[0].write(host_cache)
    calls = [
        session.bind({**asked, "cache": old}, {**answer, "next_cache": new})
        for old, new in (sets, sets[::-1])
    ]
    before = session.traffic - type(session.traffic)()
    for step in range(20):
        for name, array in question(step).items():
            if name != "cache":
                asked[name][...] = array
        calls[step % 2].run()
        expected = reference({**asked, "cache": host_cache})
        assert_same({**answer, "next_cache": sets[(step + 1) % 2].read()}, expected)
        host_cache = expected["next_cache"]
    moved = session.traffic - before
    assert moved.to_device == 20 * sum(a.nbytes for a in asked.values())
    assert moved.from_device == 20 * (sum(a.nbytes for a in answer.values()) + host_cache.nbytes)


def test_a_killed_server_costs_one_retry(
    session: MsliteSession, server: client.GraphServer, reference: Reference
) -> None:
    asked, answer = question(3), empty_answer()
    call = session.bind(asked, answer)
    os.kill(server.pid, signal.SIGKILL)
    call.run()
    assert server.restarts == 1
    assert_same(answer, reference(asked))


def test_a_server_killed_with_results_makes_the_request_begin_again(
    session: MsliteSession, server: client.GraphServer, reference: Reference
) -> None:
    asked, answer = question(4), empty_answer()
    cache = session.allocate(asked["cache"].shape, np.float32)
    cache.write(asked["cache"])
    call = session.bind({**asked, "cache": cache}, answer)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(StateLost, match=r"signal 9 .* its tensors are lost"):
        call.run()
    np.testing.assert_array_equal(cache.read(), np.zeros_like(asked["cache"]))
    cache.write(asked["cache"])
    call.run()
    assert_same(answer, reference(asked))
    assert server.restarts == 1


def test_a_hung_server_is_replaced_after_the_deadline(
    session: MsliteSession,
    server: client.GraphServer,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = question(5), empty_answer()
    call = session.bind(asked, answer)
    hung, start = server.pid, server._start

    def start_and_be_patient() -> None:
        start()
        server.deadline_s = 30.0

    monkeypatch.setattr(server, "_start", start_and_be_patient)
    server.deadline_s = 0.2
    os.kill(hung, signal.SIGSTOP)
    call.run()
    assert server.restarts == 1
    assert not Path(f"/proc/{hung}").exists()
    assert_same(answer, reference(asked))


def test_a_call_that_fails_twice_is_given_up(
    session: MsliteSession, server: client.GraphServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = question(6), empty_answer()
    call = session.bind(asked, answer)
    start = server._start

    def start_and_kill() -> None:
        start()
        os.kill(server.pid, signal.SIGKILL)

    monkeypatch.setattr(server, "_start", start_and_kill)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(BackendFailed, match=r"was killed by signal 9 .*, and on the retry it was"):
        call.run()
    monkeypatch.undo()
    call.run()
    assert server.restarts == 3


def test_objects_that_are_gone_are_freed_on_the_other_side(
    session: MsliteSession, backend: MsliteBackend
) -> None:
    megabyte = (256, 1024)
    session.allocate(megabyte, np.float32)
    before = backend.resident_bytes()[0]
    for _ in range(200):  # each is dropped before the next but one
        session.allocate(megabyte, np.float32).write(np.ones(megabyte, np.float32))
    assert backend.resident_bytes()[0] - before < 50e6


def test_closing_ends_the_process(backend: MsliteBackend, server: client.GraphServer) -> None:
    pid = server.pid
    backend.close()
    assert not Path(f"/proc/{pid}").exists()


# ---- bad input -------------------------------------------------------------------------------


def test_memory_that_does_not_fit_the_graph_is_refused(session: MsliteSession) -> None:
    wrong = question(0) | {"mask": np.zeros((2, 1, CELLS + 1), np.float32)}
    with pytest.raises(BackendFailed, match=r"'mask': found float32\[2, 1, 7\], expected"):
        session.bind(wrong, empty_answer())
    asked = question(0)
    cache = session.allocate(asked["cache"].shape, np.float32)
    with pytest.raises(BackendFailed, match="shares memory"):
        session.bind({**asked, "cache": cache}, {**empty_answer(), "next_cache": cache})


@pytest.mark.parametrize("kept_bytes", [0, 100, 20_000])
def test_a_truncated_artifact_names_the_file_and_the_fix(
    backend: MsliteBackend, graphs: Path, tmp_path: Path, kept_bytes: int
) -> None:
    path = tmp_path / "cut.ms"
    path.write_bytes((graphs / "step.ms").read_bytes()[:kept_bytes])
    with pytest.raises(BackendFailed, match=r"cut\.ms.*truncated.*voiced model convert"):
        backend.load(path, threads=1)


def test_an_artifact_of_another_target_names_the_fix(
    backend: MsliteBackend, graphs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "step.mindir"
    shutil.copyfile(graphs / "step.ms", other)
    with pytest.raises(BackendFailed, match="made for another target or version"):
        backend.load(other, threads=1)
    with pytest.raises(BackendFailed, match=r"expected an artifact made for it .*convert"):
        backend.load(graphs / "step.onnx", threads=1)


def test_a_missing_artifact_names_the_fix(backend: MsliteBackend, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"found no file .*voiced model convert"):
        backend.load(tmp_path / "none.ms", threads=1)


def test_no_memory_to_build_says_to_convert_fewer_gears(
    session: MsliteSession,
    server: client.GraphServer,
    backend: MsliteBackend,
    mslite_python: Path,
    tmp_path: Path,
) -> None:
    onnx.save(step_model(vocabulary=200_000), tmp_path / "large.onnx")
    converter = find_converter(mslite_python)
    large = converter.convert(tmp_path / "large.onnx", tmp_path / "large", FORM, tmp_path / "log")
    status = Path(f"/proc/{server.pid}/status").read_text()
    size = int(status.partition("VmSize:")[2].split()[0]) * 1024
    resource.prlimit(server.pid, resource.RLIMIT_AS, (size + 8_000_000, size + 8_000_000))
    with pytest.raises(BackendFailed, match=r"not enough memory to build .*fewer --gears"):
        backend.load(large, threads=1)
    session.bind(question(0), empty_answer()).run()  # what was there goes on


def test_a_missing_interpreter_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no usable interpreter .*make mindspore"):
        MsliteBackend(python=tmp_path / "python")


def test_an_interpreter_without_the_library_names_the_fix() -> None:
    with pytest.raises(BackendUnavailable, match=r"No module named .*one Python version only"):
        MsliteBackend(python=Path(sys.executable))


def test_a_program_that_is_no_interpreter_is_told() -> None:
    program = shutil.which("true")
    assert program is not None
    with pytest.raises(BackendUnavailable, match="ended with status 0 before it was ready"):
        MsliteBackend(python=Path(program))


def test_a_conversion_that_fails_says_what_the_converter_said(
    mslite_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    converter = find_converter(mslite_python)
    with pytest.raises(ConversionFailed, match=r"failed on bad\.onnx .*it said: \S"):
        converter.convert(tmp_path / "bad.onnx", tmp_path / "bad", FORM, tmp_path / "log")


def test_without_any_converter_the_fix_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"No module named .*make mindspore"):
        find_converter(Path(sys.executable))
