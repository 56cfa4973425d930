"""What MindSpore Lite's backend does without the library: its rules, choices and messages."""

from __future__ import annotations

import ast
import enum
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from voiced.audio.clock import SystemClock
from voiced.audio.frames import Segment
from voiced.engine.backends.mindspore_lite import backend as backend_module
from voiced.engine.backends.mindspore_lite import client, runtime
from voiced.engine.backends.mindspore_lite.backend import MsliteBackend, find_python
from voiced.engine.backends.mindspore_lite.runtime import FEATURES, Runtime, RuntimeRefused, probe
from voiced.engine.errors import BackendFailed, BackendUnavailable, EngineError, StateLost
from voiced.engine.loop import FinalsFirst, run_engine
from voiced.engine.recognizer import load_backend
from voiced.engine.scheduler import Job, Scheduler
from voiced.engine.types import EngineConfig, EngineInfo, EngineTotals, Request, Transcript

PACKAGE = Path(runtime.__file__).parent
OLD_PYTHON = ("runtime.py", "graph_server.py", "converter_job.py", "__init__.py")
"""Files that an interpreter as old as 3.7 runs."""


class Kind(enum.Enum):
    FLOAT32 = 43
    INT32 = 34


class OldTensor:
    """As 2.0.0: no device, host memory is taken by reference."""

    def __init__(self, tensor: Any = None, *, name: str = "", shape: tuple[int, ...] = ()) -> None:
        self.name, self.shape, self.dtype, self.format = name, list(shape), Kind.FLOAT32, "NCHW"
        self.array: np.ndarray | None = None

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        self.array = array

    def get_data_to_numpy(self) -> np.ndarray:
        assert self.array is not None
        return self.array


class OldModel:
    """Doubles its input into memory that every run uses again, as 2.0.0 does."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._x = OldTensor(name="x", shape=(2, -1))
        self._y = np.zeros((2, 3), np.float32)

    def build_from_file(self, path: str, kind: object, context: object) -> None:
        if "memory" in path:
            raise MemoryError
        if "bad" in path:
            raise RuntimeError("build_from_file failed! Error is Common error code.")
        self.log.append("build")

    def get_inputs(self) -> list[OldTensor]:
        return [self._x]

    def resize(self, inputs: list[OldTensor], dims: list[list[int]]) -> None:
        assert self.log == ["build"], "a model is resized once, before its first run"
        self._x.shape = dims[0]
        self.log.append("resize")

    def predict(self, inputs: list[OldTensor]) -> list[OldTensor]:
        array = inputs[0].array
        if inputs[0] is self._x:  # the model's own tensor keeps nothing from run to run
            self._x.array = None
        assert array is not None
        np.multiply(array, 2, out=self._y)
        self.log.append("predict")
        found = OldTensor(name="y", shape=(2, 3))
        found.array = self._y
        return [found]


class FixedModel(OldModel):
    """The same with its shapes in the artifact."""

    def __init__(self) -> None:
        super().__init__()
        self._x.shape = [2, 3]


def old_library() -> Any:
    context = SimpleNamespace(target=[], cpu=SimpleNamespace(thread_num=0))
    return SimpleNamespace(
        __version__="2.0.0",
        Context=lambda: context,
        Model=OldModel,
        ModelType=SimpleNamespace(MINDIR=0, MINDIR_LITE=4),
        Tensor=OldTensor,
        context=context,
    )


def loaded() -> tuple[Runtime, runtime.Graph]:
    lite = Runtime(old_library())
    return lite, lite.load("a.ms", 3, {"x": (2, 3)})


def test_a_model_is_resized_once_and_run_once_before_it_is_used() -> None:
    lite, graph = loaded()
    assert graph.model.log == ["build", "resize", "predict"]
    assert graph.takes == {"x": ("float32", (2, 3))}
    assert graph.gives == {"y": ("float32", (2, 3))}
    assert lite.library.context.cpu.thread_num == 3


def test_a_run_reads_its_arrays_as_they_are_then_and_another_array_when_it_is_given() -> None:
    lite, graph = loaded()
    x, y = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    bound = lite.bind(graph, {"x": None}, {"y": None}, {"x": x.shape, "y": y.shape})
    for value in (1, 5):
        x.fill(value)
        lite.run(bound, {"x": x}, {"y": y})
        np.testing.assert_array_equal(y, np.full((2, 3), 2 * value, np.float32))
    lite.run(bound, {"x": np.full((2, 3), 7, np.float32)}, {"y": y})
    np.testing.assert_array_equal(y, np.full((2, 3), 14, np.float32))


def test_two_bindings_of_a_graph_keep_their_inputs_apart() -> None:
    lite, graph = loaded()
    shapes = {"x": (2, 3), "y": (2, 3)}
    y = np.zeros((2, 3), np.float32)
    bounds = [
        lite.bind(graph, {"x": np.full((2, 3), value, np.float32)}, {"y": y}, shapes)
        for value in (1, 10)
    ]
    for turn, expected in enumerate((2, 20, 2, 20)):
        lite.run(bounds[turn % 2], {}, {})
        np.testing.assert_array_equal(y, np.full((2, 3), expected, np.float32))


def test_results_are_copied_out_of_the_memory_that_the_next_run_uses() -> None:
    lite, graph = loaded()
    sets = [np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)]
    shapes = {"x": (2, 3), "y": (2, 3)}
    for turn in range(4):
        old, new = sets[turn % 2], sets[(turn + 1) % 2]
        lite.run(lite.bind(graph, {"x": old}, {"y": new}, shapes), {}, {})
    np.testing.assert_array_equal(sets[0], np.full((2, 3), 16, np.float32))
    np.testing.assert_array_equal(sets[1], np.full((2, 3), 8, np.float32))


@pytest.mark.parametrize(
    ("path", "kind"), [("a.onnx", "artifact"), ("bad.ms", "artifact"), ("memory.ms", "memory")]
)
def test_a_refusal_tells_what_kind_it_is(path: str, kind: str) -> None:
    with pytest.raises(RuntimeRefused) as caught:
        Runtime(old_library()).load(path, 1, {"x": (2, 3)})
    assert caught.value.kind == kind


def test_open_dimensions_need_shapes_and_the_right_ones() -> None:
    lite = Runtime(old_library())
    with pytest.raises(RuntimeRefused, match="open dimensions"):
        lite.load("a.ms", 1)
    with pytest.raises(RuntimeRefused, match="no shape was given for input 'x'"):
        lite.load("a.ms", 1, {"other": (1,)})
    lite, graph = loaded()
    with pytest.raises(RuntimeRefused, match=r"input x is \[2, 4\], the artifact takes \[2, 3\]"):
        lite.bind(graph, {"x": None}, {"y": None}, {"x": (2, 4), "y": (2, 3)})


def test_features_are_found_by_looking_never_by_the_version() -> None:
    library = old_library()
    assert probe(library) == dict.fromkeys(FEATURES, False)

    class NewModel(OldModel):
        def predict(self, inputs: Any, outputs: Any = None) -> Any:
            return super().predict(inputs)

        def build_from_buffer(self) -> None: ...

        def get_model_info(self, key: str) -> str:
            return key

    class NewTensor(OldTensor):
        def __init__(self, tensor: Any = None, shape: Any = None, device: Any = None) -> None:
            super().__init__(tensor)

    library.Model, library.Tensor, library.ModelGroup = NewModel, NewTensor, object
    assert probe(library) == dict.fromkeys(FEATURES, True)  # and it still says 2.0.0


@pytest.mark.parametrize("name", OLD_PYTHON)
def test_what_the_old_interpreter_runs_is_python_3_7_with_numpy(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"), feature_version=(3, 7))
    allowed = {*sys.stdlib_module_names, "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {a.name.partition(".")[0] for a in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            ours = node.module.startswith("voiced.engine.backends.mindspore_lite.")
            assert ours or node.module.partition(".")[0] in allowed
            assert not ours or node.module.rpartition(".")[2] + ".py" in OLD_PYTHON


def test_packages_on_the_way_to_the_graph_server_import_nothing() -> None:
    folder = PACKAGE
    while folder.name != "voiced":
        assert (folder / "__init__.py").read_text(encoding="utf-8").strip() == ""
        folder = folder.parent


def test_the_first_error_of_the_library_is_the_reason() -> None:
    lines = [
        "[WARNING] ME(1,7f,python):2026-01-31-19:36:07.1 [a.cc:1] X] something else",
        "[ERROR] ME(1,7f,python):2026-01-31-19:36:07.2 [plugin.cc:9] Load] plugin is missing",
        "[ERROR] ME(1,7f,python):2026-01-31-19:36:07.3 [shape.cc:35] Infer] InferShape failed: x",
        "[ERROR] ME(1,7f,python):2026-01-31-19:36:07.4 [model.cc:16] Build] compile graph failed.",
    ]
    assert client.reason_in(lines) == "InferShape failed: x"
    assert client.reason_in(["Traceback", "ImportError: no numpy"]) == "ImportError: no numpy"
    assert client.reason_in([]) == ""


# ---- choosing --------------------------------------------------------------------------------


def test_the_interpreter_is_the_named_one_then_the_made_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOICED_MSLITE_PYTHON", "/opt/p37/bin/python")
    assert find_python() == Path("/opt/p37/bin/python")
    monkeypatch.delenv("VOICED_MSLITE_PYTHON")
    monkeypatch.setattr(backend_module, "ENVIRONMENT", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"make mindspore.*engine\.mindspore_lite\.python"):
        find_python()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert find_python() == tmp_path / "bin" / "python"


def test_a_library_of_this_interpreter_runs_in_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = ModuleType("mindspore_lite")
    library.__dict__.update(vars(old_library()), Model=FixedModel)
    monkeypatch.setitem(sys.modules, "mindspore_lite", library)
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda name: object())
    caplog.set_level(logging.INFO)
    config = EngineConfig("bundle", backend="mindspore_lite")
    backend = load_backend(config)
    assert isinstance(backend, MsliteBackend)
    assert backend.server is None
    assert backend.target == "mindspore-cpu"
    assert "mindspore_lite runs in process library=2.0.0 features=none" in caplog.text
    session = backend.load(tmp_path / "a.ms", threads=1)
    x, y = np.full((2, 3), 7, np.float32), np.zeros((2, 3), np.float32)
    tensor = session.allocate((2, 3), np.float32)
    session.bind({"x": x}, {"y": tensor}).run()
    session.bind({"x": tensor}, {"y": y}).run()
    np.testing.assert_array_equal(y, 4 * x)
    assert (session.traffic.to_device, session.traffic.from_device) == (x.nbytes, y.nbytes)
    with pytest.raises(BackendFailed, match=r"found no file .*bad\.ms"):
        backend.load(tmp_path / "bad.ms", threads=1)


def test_a_library_that_cannot_be_imported_here_names_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mindspore_lite", None)
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(BackendUnavailable, match="wheel of this Python version"):
        MsliteBackend()


def test_an_unknown_backend_names_those_there_are() -> None:
    with pytest.raises(BackendUnavailable, match="expected onnxruntime or mindspore_lite"):
        load_backend(EngineConfig("bundle", backend="mindspore"))


# ---- the retry -------------------------------------------------------------------------------


class Forgetful:
    """A recogniser whose runtime loses its tensors so many times."""

    max_batch = 4

    def __init__(self, losses: int) -> None:
        self.losses, self.calls = losses, 0

    @property
    def info(self) -> EngineInfo:
        raise AssertionError

    totals = EngineTotals()

    def warm(self, progress: Any) -> None: ...

    def close(self) -> None: ...

    def batch_key(self, request: Request) -> object:
        return 0

    def recognize(self, requests: Any) -> list[Transcript | EngineError]:
        self.calls += 1
        if self.calls <= self.losses:
            raise StateLost("the graph server was killed")
        return [Transcript(r.segment.id, 1, "text", True, "en", 1.0) for r in requests]


def answers_of(recognizer: Forgetful) -> list[Transcript | EngineError]:
    clock = SystemClock()
    queue = FinalsFirst(Scheduler(max_queued_finals=4), clock)
    request = Request(Segment(1, "s", 0, np.zeros(160, np.int16)))
    queue.submit(Job(1, request, clock.monotonic_ns()))
    queue.stop()
    found: list[Transcript | EngineError] = []
    run_engine(recognizer, queue, lambda job, outcome: found.append(outcome), clock)
    return found


def test_a_request_whose_state_was_lost_is_begun_again_once() -> None:
    recognizer = Forgetful(losses=1)
    (answer,) = answers_of(recognizer)
    assert isinstance(answer, Transcript)
    assert answer.text == "text"
    assert recognizer.calls == 2


def test_a_request_whose_state_is_lost_again_fails() -> None:
    recognizer = Forgetful(losses=2)
    (answer,) = answers_of(recognizer)
    assert isinstance(answer, StateLost)
    assert answer.code == "state_lost"
    assert recognizer.calls == 2
