"""The Ascend run time on the recording fake: what crosses, what is refused, in which order.

Small graphs with the shape of the real ones: a prefill whose output is the step's input, and a step
that gives back its cache in the shape it took it.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from voiced.engine.backends.base import DeviceTensor, Session, Traffic
from voiced.engine.backends.mindspore_lite import fake_api
from voiced.engine.backends.mindspore_lite.ascend import AscendBackend, AscendSession
from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.mindspore.ascend_config import (
    AscendGraph,
    AscendOptions,
    Chip,
    Provider,
    conversions,
)
from voiced.engine.errors import BackendFailed, BackendUnavailable

WIDTH, CELLS, BEAM = 8, 6, 2
GEARS = ((1, 4), (1, 12), (3, 4))
"""(batch, frames)."""
RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(size=(3, WIDTH)).astype(np.float32)
TABLE = RNG.normal(size=(11, WIDTH)).astype(np.float32)


def prefill_model() -> onnx.ModelProto:
    g = GraphBuilder("prefill", Precision.FP32, opset=13)
    x = g.input("feats", TensorProto.FLOAT, ["N", "T", 3])
    g.output(g.linear(x, WEIGHT), "cross", TensorProto.FLOAT, ["N", "T", WIDTH])
    return g.model()


def step_model() -> onnx.ModelProto:
    """scores[N, B] = embedding · (mean of cross + sum of cache); the cache gets the embedding."""
    g = GraphBuilder("step", Precision.FP32, opset=13)
    f32 = TensorProto.FLOAT
    tokens = g.input("tokens", TensorProto.INT32, ["N", BEAM])
    slot = g.input("slot", f32, [1, CELLS, 1, 1])
    cross = g.input("cross", f32, ["N", "T", WIDTH])
    cache = g.input("cache", f32, ["N", CELLS, BEAM, WIDTH])
    new = g.op("Gather", g.constant(TABLE), tokens, axis=0)  # [N, B, W]
    memory = g.op("ReduceMean", cross, axes=[1], keepdims=1)  # [N, 1, W]
    past = g.op("ReduceSum", cache, g.ints(1), keepdims=0)  # [N, B, W]
    product = g.op("Mul", new, g.op("Add", memory, past))
    g.output(g.op("ReduceSum", product, g.ints(2), keepdims=0), "scores", f32, ["N", BEAM])
    keep = g.op("Mul", cache, g.op("Sub", g.constant([1.0]), slot))
    write = g.op("Mul", g.op("Unsqueeze", new, g.ints(1)), slot)
    g.output(g.op("Add", keep, write), "new_cache", f32, ["N", CELLS, BEAM, WIDTH])
    return g.model()


def prefill_shapes(batch: int, frames: int) -> tuple[tuple[int, ...], ...]:
    return ((batch, frames, 3),)


def step_shapes(batch: int, frames: int) -> tuple[tuple[int, ...], ...]:
    return (
        (batch, BEAM),
        (1, CELLS, 1, 1),
        (batch, frames, WIDTH),
        (batch, CELLS, BEAM, WIDTH),
    )


def convert(folder: Path, model: onnx.ModelProto, graph: AscendGraph) -> Path:
    """Take the way of the real thing: configuration, converter, artifact."""
    source, target = folder / f"{graph.name}.onnx", folder / graph.name
    onnx.save(model, source)
    options = AscendOptions(Chip.ASCEND_910B)
    (run,) = conversions(graph, options, model_file=str(source), output_file=str(target))
    config = folder / f"{graph.name}.cfg"
    config.write_text(run.config_text, encoding="utf-8")
    converter = fake_api.Converter()
    converter.optimize = "ascend_oriented:910b"
    converter.convert(fake_api.FmkType.ONNX, str(source), str(target), config_file=str(config))
    return target.with_suffix(".mindir")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    prefill = AscendGraph("prefill", ("feats",), tuple(prefill_shapes(*g) for g in GEARS))
    names = ("tokens", "slot", "cross", "cache")
    step = AscendGraph("step", names, tuple(step_shapes(*g) for g in GEARS))
    return convert(folder, prefill_model(), prefill), convert(folder, step_model(), step)


@pytest.fixture
def backend() -> Iterator[AscendBackend]:
    fake_api.card.reset()
    yield AscendBackend("ascend:0", fake_api)
    fake_api.card.reset()


@dataclass
class Decoder:
    """Prefill and step of one gear, bound once; the cache lives in two sets used in turn."""

    prefill: Session
    step: Session
    batch: int
    frames: int

    def __post_init__(self) -> None:
        n, t = self.batch, self.frames
        self.feats = np.zeros((n, t, 3), np.float32)
        self.tokens = np.zeros((n, BEAM), np.int32)
        self.slot = np.zeros((1, CELLS, 1, 1), np.float32)
        self.scores = np.zeros((n, BEAM), np.float32)
        cross: DeviceTensor = self.prefill.allocate((n, t, WIDTH), np.float32)
        shape = (n, CELLS, BEAM, WIDTH)
        self.sets = [self.step.allocate(shape, np.float32) for _ in range(2)]
        self.start = self.prefill.bind({"feats": self.feats}, {"cross": cross})
        fixed = {"tokens": self.tokens, "slot": self.slot, "cross": cross}
        self.calls = [
            self.step.bind(
                {**fixed, "cache": self.sets[i]},
                {"scores": self.scores, "new_cache": self.sets[1 - i]},
            )
            for i in range(2)
        ]

    def decode(self, feats: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Scores float32[steps, N, B] of given tokens int32[steps, N, B]."""
        self.feats[...] = feats
        self.start.run()
        found = []
        for i, row in enumerate(tokens):
            self.tokens[...] = row
            self.slot[...] = 0
            self.slot[0, i] = 1
            self.calls[i % 2].run()
            found.append(self.scores.copy())
        return np.array(found)


def expected(feats: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    memory = (feats @ WEIGHT).mean(axis=1, keepdims=True)
    past = np.zeros((feats.shape[0], BEAM, WIDTH), np.float32)
    found = []
    for row in tokens:
        new = TABLE[row]
        found.append((new * (memory + past)).sum(axis=2))
        past = past + new
    return np.array(found)


def question(batch: int, frames: int, steps: int = 4) -> tuple[np.ndarray, np.ndarray]:
    feats = RNG.normal(size=(batch, frames, 3)).astype(np.float32)
    return feats, RNG.integers(0, 11, size=(steps, batch, BEAM)).astype(np.int32)


def test_an_utterance_stays_on_the_card_but_for_a_handful_of_values(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill, step = (backend.load(path, threads=1) for path in artifacts)
    batch, frames, steps = 3, 4, 4
    decoder = Decoder(prefill, step, batch, frames)
    feats, tokens = question(batch, frames, steps)
    fake_api.card.reset()
    traffic = prefill.traffic + Traffic(), step.traffic + Traffic()
    found = decoder.decode(feats, tokens)
    np.testing.assert_allclose(found, expected(feats, tokens), rtol=1e-5, atol=1e-5)
    up_once = batch * frames * 3 * 4
    up_step, down_step = batch * BEAM * 4 + CELLS * 4, batch * BEAM * 4
    card = fake_api.card
    assert (card.to_device, card.from_device) == (up_once + steps * up_step, steps * down_step)
    assert card.implicit_bytes == 0
    assert card.counts["Tensor"] == 0  # nothing is allocated while it runs
    counted = prefill.traffic - traffic[0], step.traffic - traffic[1]
    assert (counted[0].to_device, counted[0].from_device) == (up_once, 0)
    assert (counted[1].to_device, counted[1].from_device) == (steps * up_step, steps * down_step)


def test_a_copy_that_creeps_in_is_seen(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill, step = (backend.load(path, threads=1) for path in artifacts)
    decoder = Decoder(prefill, step, 1, 4)
    feats, tokens = question(1, 4, 1)
    decoder.decode(feats, tokens)
    clean = step.traffic + Traffic()
    decoder.decode(feats, tokens)
    per_step = step.traffic - clean
    # the same step, but with the cache on the host
    cache, new = np.zeros((2, 1, CELLS, BEAM, WIDTH), np.float32)
    cross = prefill.allocate((1, 4, WIDTH), np.float32)
    call = step.bind(
        {"tokens": decoder.tokens, "slot": decoder.slot, "cross": cross, "cache": cache},
        {"scores": decoder.scores, "new_cache": new},
    )
    before = step.traffic + Traffic()
    call.run()
    worse = step.traffic - before
    assert worse.to_device == per_step.to_device + cache.nbytes
    assert worse.from_device == per_step.from_device + cache.nbytes


def test_gears_alternate_and_give_the_same_numbers_each_time(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill, step = (backend.load(path, threads=1) for path in artifacts)
    decoders = {gear: Decoder(prefill, step, *gear) for gear in GEARS}
    questions = {gear: question(*gear) for gear in GEARS}
    first: dict[tuple[int, int], np.ndarray] = {}
    fake_api.card.reset()
    gc.collect()  # tensors of other tests
    memory = fake_api.card.tensor_bytes
    for gear in GEARS * 3:
        decoders[gear].sets[0].write(np.zeros((gear[0], CELLS, BEAM, WIDTH), np.float32))
        found = decoders[gear].decode(*questions[gear])
        np.testing.assert_array_equal(found, first.setdefault(gear, found))
        np.testing.assert_allclose(found, expected(*questions[gear]), rtol=1e-5, atol=1e-5)
    assert fake_api.card.tensor_bytes == memory
    assert fake_api.card.counts["resize-same"] == 0
    # two artifacts, moved once at each change of gear; at most once for the first of each
    assert fake_api.card.counts["resize"] <= 2 * 3 * len(GEARS)


def test_calls_of_one_gear_do_not_resize(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill, step = (backend.load(path, threads=1) for path in artifacts)
    decoder = Decoder(prefill, step, 1, 4)
    fake_api.card.reset()
    for _ in range(3):
        decoder.decode(*question(1, 4))
    assert fake_api.card.counts["resize"] == fake_api.card.counts["resize-same"] == 0


def test_host_arrays_of_a_gear_share_one_tensor_however_many_calls_there_are(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill, _ = (backend.load(path, threads=1) for path in artifacts)
    assert isinstance(prefill, AscendSession)
    for _ in range(5):
        feats, cross = np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, WIDTH), np.float32)
        prefill.bind({"feats": feats}, {"cross": cross}).run()
    assert prefill.own_bytes == feats.nbytes + cross.nbytes


def test_a_shape_that_is_no_gear_is_refused_with_those_there_are(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill = backend.load(artifacts[0], threads=1)
    feats, cross = np.zeros((1, 5, 3), np.float32), np.zeros((1, 5, WIDTH), np.float32)
    with pytest.raises(BackendFailed, match=r"no gear 1x5x3 \(feats\); it has 1x4x3; 1x12x3; 3x4"):
        prefill.bind({"feats": feats}, {"cross": cross})


def test_one_tensor_as_input_and_output_is_refused(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    step = backend.load(artifacts[1], threads=1)
    cache = step.allocate((1, CELLS, BEAM, WIDTH), np.float32)
    fixed = {
        "tokens": np.zeros((1, BEAM), np.int32),
        "slot": np.zeros((1, CELLS, 1, 1), np.float32),
        "cross": np.zeros((1, 4, WIDTH), np.float32),
    }
    scores = np.zeros((1, BEAM), np.float32)
    with pytest.raises(BackendFailed, match="shares memory"):
        step.bind({**fixed, "cache": cache}, {"scores": scores, "new_cache": cache})


def test_outputs_and_types_must_fit(backend: AscendBackend, artifacts: tuple[Path, Path]) -> None:
    prefill = backend.load(artifacts[0], threads=1)
    feats = np.zeros((1, 4, 3), np.float32)
    with pytest.raises(BackendFailed, match="output 'cross': found float32"):
        prefill.bind({"feats": feats}, {"cross": np.zeros((1, 5, WIDTH), np.float32)})
    with pytest.raises(BackendFailed, match="'cross' is not bound"):
        prefill.bind({"feats": feats}, {})
    with pytest.raises(BackendFailed, match="input 'feats': found float64"):
        prefill.bind({"feats": np.zeros((1, 4, 3))}, {"cross": feats})


def test_prefill_and_step_share_a_workspace_that_is_measured_before_they_are_built(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    assert backend.share_workspace(artifacts)
    for path in artifacts:
        backend.load(path, threads=1)
    names = [name for name, _ in fake_api.card.calls]
    assert names == ["add_model", "cal_max_size_of_workspace", "build", "build"]
    (group,) = fake_api.card.groups
    assert group.flags is fake_api.ModelGroupFlag.SHARE_WORKSPACE
    assert backend.share_workspace(artifacts)  # asked again: nothing new
    assert len(fake_api.card.groups) == 1
    with pytest.raises(BackendFailed, match="loaded already"):
        backend.share_workspace(artifacts[:1])


def test_an_artifact_is_built_once_however_often_it_is_loaded(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    first = backend.load(artifacts[0], threads=1)
    assert backend.load(artifacts[0], threads=1) is first
    assert fake_api.card.counts["build"] == 1


def test_the_card_belongs_to_one_thread(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    prefill = backend.load(artifacts[0], threads=1)
    feats, cross = np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, WIDTH), np.float32)
    call = prefill.bind({"feats": feats}, {"cross": cross})
    refused: list[str] = []

    def elsewhere() -> None:
        try:
            call.run()
        except BackendFailed as error:
            refused.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert refused == ["ascend:0 belongs to another thread of this process"]


def test_a_truncated_artifact_and_one_for_the_cpu_are_refused(
    backend: AscendBackend, artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.mindir"
    cut.write_bytes(artifacts[0].read_bytes()[:20])
    with pytest.raises(BackendFailed, match="truncated, or made for another chip"):
        backend.load(cut, threads=1)


def test_without_device_buffers_the_numbers_are_the_same_and_the_caches_cross(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    staged = AscendBackend("ascend:0", fake_api, device_buffers=False)
    asked = question(1, 4, 2)
    decoders = [
        Decoder(*(each.load(path, threads=1) for path in artifacts), 1, 4)
        for each in (backend, staged)
    ]
    crossed = []
    for decoder in decoders:
        before = decoder.step.traffic + Traffic()
        np.testing.assert_allclose(decoder.decode(*asked), expected(*asked), rtol=1e-5, atol=1e-5)
        crossed.append(decoder.step.traffic - before)
    cache, cross = CELLS * BEAM * WIDTH * 4, 4 * WIDTH * 4
    assert crossed[1].to_device - crossed[0].to_device == 2 * (cache + cross)
    assert crossed[1].from_device - crossed[0].from_device == 2 * cache


def test_memory_of_a_tensor_goes_with_its_last_reference(backend: AscendBackend) -> None:
    card = fake_api.card
    gc.collect()  # tensors of other tests
    before = card.tensor_bytes
    tensor = fake_api.Tensor(shape=[4, 4], dtype=fake_api.DataType.FLOAT32, device="ascend:0")
    assert card.tensor_bytes == before + 64
    del tensor
    assert card.tensor_bytes == before


def test_a_library_without_device_memory_is_refused_with_what_it_lacks() -> None:
    class Old:
        __version__ = "2.0.0"

        class Model:
            def predict(self, inputs: object) -> None: ...

        class Tensor:
            def __init__(self, tensor: object = None) -> None: ...

    with pytest.raises(BackendUnavailable, match=r"2\.0\.0 lacks predict_outputs, device_tensors"):
        AscendBackend("ascend:0", Old)
    with pytest.raises(BackendUnavailable, match="expected ascend:<number>"):
        AscendBackend("gpu:0", fake_api)


# ---- the fake itself is as strict as the documents ---------------------------------------------


def built(path: Path) -> fake_api.Model:
    context = fake_api.Context()
    context.target = ["Ascend"]
    model = fake_api.Model()
    model.build_from_file(str(path), fake_api.ModelType.MINDIR, context)
    return model


def on_card(*shape: int) -> fake_api.Tensor:
    return fake_api.Tensor(shape=shape, dtype=fake_api.DataType.FLOAT32, device="ascend:0")


def test_the_fake_wants_build_before_resize_before_predict(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    with pytest.raises(RuntimeError, match="not built"):
        fake_api.Model().predict([])
    model = built(artifacts[0])
    with pytest.raises(RuntimeError, match="not resized"):
        model.predict([on_card(1, 4, 3)])
    with pytest.raises(RuntimeError, match="built before"):
        model.build_from_file(str(artifacts[0]), fake_api.ModelType.MINDIR, None)
    with pytest.raises(RuntimeError, match="is no gear"):
        model.resize(model.get_inputs(), [[2, 4, 3]])


def test_the_fake_refuses_what_aliases_and_what_does_not_match(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    model = built(artifacts[0])
    model.resize(model.get_inputs(), [[1, 4, 3]])
    with pytest.raises(RuntimeError, match="input feats is FLOAT32"):
        model.predict([on_card(1, 12, 3)], outputs=[on_card(1, 4, WIDTH)])
    with pytest.raises(RuntimeError, match="output cross is FLOAT32"):
        model.predict([on_card(1, 4, 3)], outputs=[on_card(1, 4, 3)])
    with pytest.raises(RuntimeError, match="2 outputs given"):
        model.predict([on_card(1, 4, 3)], outputs=[on_card(1, 4, WIDTH)] * 2)


def test_the_fake_counts_what_crosses_unasked_and_hands_out_no_memory_of_the_card(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    model = built(artifacts[0])
    model.resize(model.get_inputs(), [[1, 4, 3]])
    feats = np.zeros((1, 4, 3), np.float32)
    model.predict([feats])
    assert fake_api.card.implicit_bytes == feats.nbytes + 4 * WIDTH * 4
    with pytest.raises(RuntimeError, match="no array"):
        np.asarray(on_card(1, 4))
    with pytest.raises(RuntimeError, match="data size not equal"):
        on_card(1, 4).set_data_from_numpy(np.zeros((1, 5), np.float32))


def test_the_fake_wants_a_group_measured_before_its_models_are_built(
    backend: AscendBackend, artifacts: tuple[Path, Path]
) -> None:
    group = fake_api.ModelGroup()
    group.add_model([str(path) for path in artifacts])
    with pytest.raises(RuntimeError, match="not measured"):
        built(artifacts[0])
    context = fake_api.Context()
    context.target = ["ascend"]
    group.cal_max_size_of_workspace(fake_api.ModelType.MINDIR, context)
    built(artifacts[0])
    with pytest.raises(RuntimeError, match="was built before"):
        fake_api.ModelGroup().add_model([str(artifacts[0])])


def test_the_fake_converter_reads_both_ways_of_writing_gears(
    backend: AscendBackend, tmp_path: Path
) -> None:
    source = tmp_path / "prefill.onnx"
    onnx.save(prefill_model(), source)
    graph = AscendGraph("prefill", ("feats",), tuple(prefill_shapes(*g) for g in GEARS))
    for provider in Provider:
        options = AscendOptions(Chip.ASCEND_310P, provider=provider)
        (run,) = conversions(graph, options, model_file=str(source), output_file="x")
        config = tmp_path / f"{provider.name}.cfg"
        config.write_text(run.config_text, encoding="utf-8")
        converter = fake_api.Converter()
        converter.optimize = "ascend_oriented"
        target = tmp_path / provider.name
        converter.convert(fake_api.FmkType.ONNX, str(source), str(target), config_file=str(config))
        assert built(target.with_suffix(".mindir")).get_model_info("dynamic_dims") == "1,4;1,12;3,4"
    with pytest.raises(ValueError, match="optimize must be in"):
        converter.optimize = "ascend_oriented:310p"
