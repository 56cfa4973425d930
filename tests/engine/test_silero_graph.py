"""The rewritten detector against the graph as it is released, with generated weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from tests.engine.released_silero import released_graph

from voiced.engine.build.silero import batched_graph, read_weights
from voiced.engine.errors import FetchError

Float = npt.NDArray[np.float32]
STATE = np.zeros((1, 1, 128), np.float32)


def run(model: onnx.ModelProto, windows: Float, h: Float, c: Float) -> list[Float]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = session.run(("speech_probs", "hn", "cn"), {"input": windows, "h": h, "c": c})
    return [np.asarray(answer, np.float32) for answer in answers]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_rewritten_detector_answers_as_the_released_one(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    released = released_graph(rng)
    path = tmp_path / "released.onnx"
    onnx.save(released, path)
    windows = rng.standard_normal((count, 576)).astype(np.float32)
    h, c = (rng.standard_normal((1, 1, 128)).astype(np.float32) for _ in "hc")
    expected = run(released, windows, h, c)
    found = run(batched_graph(read_weights(path)), windows, h, c)
    assert np.ptp(expected[0]) > 0.01 or count == 1  # lively: a constant would match anything
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_one_call_equals_one_call_for_each_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "released.onnx"
    onnx.save(released_graph(rng), path)
    model = batched_graph(read_weights(path))
    windows = rng.standard_normal((6, 576)).astype(np.float32)
    together, h, _ = run(model, windows, STATE, STATE)
    state = (STATE, STATE)
    alone = []
    for window in windows:
        chance, *state = run(model, window[np.newaxis], *state)
        alone.append(chance[0])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(h, state[0], atol=1e-5)


def test_a_file_with_other_weights_is_refused_by_name(tmp_path: Path) -> None:
    model = released_graph(np.random.default_rng(1))
    kept = [t for t in model.graph.initializer if t.name != "encoder.2.weight"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FetchError, match=r"conv2_w: found nothing, expected \[64, 64, 3\]"):
        read_weights(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(b"silero graph")
    with pytest.raises(FetchError, match="no ONNX graph"):
        read_weights(path)
