"""The resident decoder against the one with host caches, over a small network of random weights."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from voiced.engine.backends.base import Session
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.graph import Precision
from voiced.engine.build.resident_layers import OPERATORS
from voiced.engine.build.whisper import prefill_graph
from voiced.engine.build.whisper_layers import WhisperDims, read_dims
from voiced.engine.build.whisper_resident import (
    resident_prefill_graph,
    resident_step_graph,
)
from voiced.engine.build.whisper_step import step_graph
from voiced.engine.decode import Decoder, DecoderShape, StepDecoder, StepResult
from voiced.engine.errors import BackendFailed
from voiced.engine.resident import ResidentDecoder, place

ROWS, CELLS, SPAN = 5, 64, 12
TEXT_IDS = np.arange(3, 40, dtype=np.int32)
SPECIAL_IDS = np.array([40, 41, 1, 2], np.int32)
PROMPT = [42, 1, 43, 44]


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """WhisperSpec tensors of a network with 2 + 2 layers, lively enough to prefer some tokens."""
    rng = np.random.default_rng(seed)
    d, inner, mels, vocabulary = 16, 24, 6, 45
    made: dict[str, np.ndarray] = {"encoder/num_heads": np.array(2, np.int16)}

    def linear(name: str, out: int, into: int) -> None:
        made[f"{name}/weight"] = (
            rng.standard_normal((out, into)).astype(np.float32) * 1.5 / into**0.5
        )
        made[f"{name}/bias"] = rng.standard_normal(out).astype(np.float32) * 0.1

    def norm(name: str) -> None:
        made[f"{name}/gamma"] = 1 + rng.standard_normal(d).astype(np.float32) * 0.1
        made[f"{name}/beta"] = rng.standard_normal(d).astype(np.float32) * 0.1

    for index, channels in (("1", mels), ("2", d)):
        shape = (d, channels, 3)
        made[f"encoder/conv{index}/weight"] = rng.standard_normal(shape).astype(np.float32) * 0.3
        made[f"encoder/conv{index}/bias"] = np.zeros(d, np.float32)
    for side, positions in (("encoder", 10), ("decoder", 64)):
        table = rng.standard_normal((positions, d)).astype(np.float32)
        made[f"{side}/position_encodings/encodings"] = table
        norm(f"{side}/layer_norm")
        for layer in range(2):
            at = f"{side}/layer_{layer}"
            norm(f"{at}/self_attention/layer_norm")
            linear(f"{at}/self_attention/linear_0", 3 * d, d)
            linear(f"{at}/self_attention/linear_1", d, d)
            norm(f"{at}/ffn/layer_norm")
            linear(f"{at}/ffn/linear_0", inner, d)
            linear(f"{at}/ffn/linear_1", d, inner)
            if side == "decoder":
                norm(f"{at}/attention/layer_norm")
                linear(f"{at}/attention/linear_0", d, d)
                linear(f"{at}/attention/linear_1", 2 * d, d)
                linear(f"{at}/attention/linear_2", d, d)
    made["decoder/embeddings/weight"] = rng.standard_normal((vocabulary, d)).astype(np.float32)
    return made


WEIGHTS = weights()
DIMS = read_dims(WEIGHTS)
SHAPE = DecoderShape(DIMS.decoder_layers, DIMS.heads, DIMS.d_head, len(SPECIAL_IDS))
IDS: dict[str, Any] = {"text_ids": TEXT_IDS, "special_ids": SPECIAL_IDS}


def load(folder: Path, model: onnx.ModelProto) -> Session:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return OrtBackend().load(path, threads=1)


@pytest.fixture(scope="module")
def host_session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    model = step_graph(WEIGHTS, DIMS, Precision.FP32, **IDS)
    return load(tmp_path_factory.mktemp("host"), model)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Session]:
    """Resident step graphs by their rows."""
    return {
        rows: load(
            tmp_path_factory.mktemp("resident"),
            resident_step_graph(WEIGHTS, DIMS, Precision.FP32, rows=rows, **IDS),
        )
        for rows in (1, 2, ROWS)
    }


class Pair:
    """Both decoders over the same encoded utterances."""

    def __init__(
        self,
        host: Session,
        resident: Session,
        *,
        n: int,
        seed: int,
        rows: int = ROWS,
        cells: int = CELLS,
        batch: int | None = None,
    ) -> None:
        self.n = n
        shape = replace(SHAPE, packed=True)
        self.host = StepDecoder(host, shape, cells=(64, 256, 512), max_batch=n, max_rows=ROWS)
        self.resident = ResidentDecoder(
            lambda axes: resident, SHAPE, rows=rows, cells={SPAN: cells}
        )
        rng = np.random.default_rng(seed)
        batch = batch or n
        flat = {
            f"cross_{letter}_{layer}": rng.standard_normal((batch, DIMS.d_model, SPAN))
            for layer in range(DIMS.decoder_layers)
            for letter in "kv"
        }
        self.cross = {}
        self.host_cross = {"cross_mask": np.zeros((n, 1, 1, SPAN), np.float32)}
        for name, array in flat.items():
            tensor = resident.allocate(array.shape, np.float32)
            tensor.write(array.astype(np.float32))
            self.cross[name] = tensor
            heads = array[:n].reshape(n, DIMS.heads, DIMS.d_head, SPAN).astype(np.float32)
            turned = heads if "_v_" in name else heads.swapaxes(2, 3)
            self.host_cross[name] = np.ascontiguousarray(turned)

    def start(self) -> tuple[Decoder, Decoder]:
        self.host.start(self.host_cross)
        self.resident.start(self.cross, self.n)
        return self.host, self.resident


def same(expected: StepResult, found: StepResult) -> None:
    np.testing.assert_allclose(found.best_scores, expected.best_scores, atol=1e-4)
    np.testing.assert_array_equal(found.best_rows, expected.best_rows)
    np.testing.assert_array_equal(found.best_tokens, expected.best_tokens)
    np.testing.assert_allclose(found.end_scores, expected.end_scores, atol=1e-4)


@settings(deadline=None, max_examples=12)
@given(n=st.integers(1, 3), beam=st.integers(1, ROWS), seed=st.integers(0, 50))
def test_both_decoders_answer_alike_through_every_reuse_of_a_cell(
    host_session: Session, sessions: dict[int, Session], n: int, beam: int, seed: int
) -> None:
    pair = Pair(host_session, sessions[ROWS], n=n, seed=seed)
    for _ in range(2):  # a second utterance must not see the first
        decoders = pair.start()
        answers = [
            decoder.step(
                [PROMPT] * n,
                np.arange(4)[None],
                causal=True,
                rows=[3],
                scores=np.zeros((n, 1)),
                top=beam,
            )
            for decoder in decoders
        ]
        same(*answers)
        np.testing.assert_allclose(answers[1].specials, answers[0].specials, atol=1e-4)
        for position in range(4, 34):  # 5 rows x 30 steps are more cells than there are
            last = answers[0]
            tokens, scores = TEXT_IDS[last.best_tokens], last.best_scores.copy()
            answers = [
                decoder.step(
                    tokens,
                    np.full((n, beam), position),
                    causal=False,
                    rows=range(beam),
                    scores=scores,
                    top=beam,
                )
                for decoder in decoders
            ]
            same(*answers)
            parents = answers[0].best_rows.copy()
            if position % 5 == 0:  # as in real search, most rows go back to one
                parents[:] = 0
            for decoder in decoders:
                decoder.follow(parents)
    assert pair.resident.rows_given_up == 0


@pytest.mark.parametrize("rows", [1, 2])
def test_a_prompt_longer_than_the_graph_has_rows_is_fed_in_parts(
    host_session: Session, sessions: dict[int, Session], rows: int
) -> None:
    pair = Pair(host_session, sessions[rows], n=1, seed=3, rows=rows)
    prompt: list[int] = []
    for part in ([42], [1, 43, 44]):  # as when the language has to be found
        answers = [
            decoder.step(
                [part],
                [np.arange(len(prompt), len(prompt) + len(part))],
                causal=True,
                rows=[len(part) - 1],
                scores=[[0.0]],
                top=rows,
            )
            for decoder in (pair.start() if not prompt else (pair.host, pair.resident))
        ]
        same(*answers)
        np.testing.assert_allclose(answers[1].specials, answers[0].specials, atol=1e-4)
        prompt += part


def test_a_batch_that_is_not_full_leaves_the_others_as_they_are(
    host_session: Session, sessions: dict[int, Session]
) -> None:
    pair = Pair(host_session, sessions[ROWS], n=2, seed=4, batch=3)
    question: dict[str, Any] = {"causal": True, "rows": [3], "scores": np.zeros((2, 1)), "top": 4}
    host, resident = pair.start()
    positions = np.arange(4)[None]
    same(
        host.step([PROMPT] * 2, positions, **question),
        resident.step([PROMPT] * 2, positions, **question),
    )


def test_rows_that_find_no_cell_are_given_up_and_the_best_goes_on(
    host_session: Session, sessions: dict[int, Session]
) -> None:
    pair = Pair(host_session, sessions[ROWS], n=1, seed=5, cells=28)
    scores = np.array([[-1.0, 0.0, -2.0, -3.0, -4.0]])
    tokens = np.array([[5, 6, 7, 8, 9]])
    decoders = pair.start()
    for position in range(25):  # five histories that share nothing: 125 cells
        expected, found = (
            decoder.step(
                tokens,
                np.full((1, ROWS), position),
                causal=False,
                rows=range(ROWS),
                scores=scores,
                top=1,
            )
            for decoder in decoders
        )
        np.testing.assert_allclose(found.end_scores[0, 1], expected.end_scores[0, 1], atol=1e-4)
        for decoder in decoders:
            decoder.follow([list(range(ROWS))])
    assert pair.resident.rows_given_up > 0


def test_a_text_longer_than_the_cache_is_refused(
    host_session: Session, sessions: dict[int, Session]
) -> None:
    pair = Pair(host_session, sessions[1], n=1, seed=6, rows=1, cells=8)
    decoder = pair.start()[1]

    def write(position: int) -> None:
        decoder.step([[5]], [[position]], causal=False, rows=[0], scores=[[0.0]], top=1)
        decoder.follow([[0]])

    for position in range(8):
        write(position)
    with pytest.raises(BackendFailed, match="cache of 8 cells"):
        write(8)


def test_a_step_moves_two_hundred_bytes_there_and_ninety_two_back(
    host_session: Session, sessions: dict[int, Session]
) -> None:
    session = sessions[ROWS]
    pair = Pair(host_session, session, n=1, seed=7)
    before = session.traffic - session.traffic
    pair.resident.start(pair.cross, 1)
    counts = [session.traffic - before]
    answer = pair.resident.step(
        [PROMPT], np.arange(4)[None], causal=True, rows=[3], scores=[[0.0]], top=ROWS
    )
    counts.append(session.traffic - before)
    for position in range(4, 9):
        answer = pair.resident.step(
            TEXT_IDS[answer.best_tokens],
            np.full((1, ROWS), position),
            causal=False,
            rows=range(ROWS),
            scores=answer.best_scores.copy(),
            top=ROWS,
        )
        pair.resident.follow(answer.best_rows)
        counts.append(session.traffic - before)
    moved = [(b - a) for a, b in itertools.pairwise(counts)]
    specials = ROWS * len(SPECIAL_IDS) * 4
    assert [m.to_device for m in moved] == [200] * 6
    assert [m.from_device for m in moved] == [92 + specials, *[92] * 5]


histories = st.integers(1, 6).flatmap(
    lambda rows: st.tuples(
        st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=rows, max_size=rows),
        st.lists(st.floats(-100, 0), min_size=rows, max_size=rows),
    )
)


@given(histories)
def test_a_new_cell_is_never_one_that_a_row_needs(
    case: tuple[list[list[bool]], list[float]],
) -> None:
    seen, scores = np.array(case[0]), np.array(case[1])
    try:
        found = place(seen, scores)
    except BackendFailed:
        assert seen[np.argmax(scores)].all()
        return
    cells = found.cells[found.kept]
    assert len(set(cells)) == len(cells)
    assert not found.histories[:, cells].any()
    assert (found.histories[found.kept] == seen[found.kept]).all()
    assert not found.histories[~found.kept].any()
    if not found.kept.all():
        assert scores[~found.kept].max() <= scores[found.kept].min()
        assert seen.any(axis=0).sum() + len(seen) > seen.shape[1]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_resident_graphs_hold_to_what_small_runtimes_know(precision: Precision) -> None:
    graphs = (
        resident_prefill_graph(WEIGHTS, DIMS, precision),
        resident_step_graph(WEIGHTS, DIMS, precision, rows=ROWS, **IDS),
    )
    known = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32}
    for model in graphs:
        onnx.checker.check_model(model, full_check=True)
        assert [entry.version for entry in model.opset_import] == [13]
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        constants = {c.name for c in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("TopK", "Reshape", "Unsqueeze", "Squeeze"):
                assert node.input[1] in constants, f"{node.op_type} depends on what it is given"
        crossing = [v.type.tensor_type for v in (*model.graph.input, *model.graph.output)]
        assert {t.elem_type for t in crossing} <= known
        assert max(len(t.shape.dim) for t in crossing) <= 3


def test_caches_go_in_as_they_come_out() -> None:
    model = resident_step_graph(WEIGHTS, DIMS, Precision.FP32, rows=ROWS, **IDS)

    def shapes(values: Any) -> dict[str, list[int | str]]:
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    taken, given_ = shapes(model.graph.input), shapes(model.graph.output)
    pairs = {"ancestors": "next_ancestors"} | {
        f"self_{letter}_{layer}": f"next_{letter}_{layer}"
        for letter in "kv"
        for layer in range(DIMS.decoder_layers)
    }
    assert all(taken[into] == given_[out] for into, out in pairs.items())


def test_both_encoders_say_the_same_for_each_of_a_batch(tmp_path: Path) -> None:
    host = load(tmp_path, prefill_graph(WEIGHTS, DIMS, Precision.FP32))
    resident = load(tmp_path, resident_prefill_graph(WEIGHTS, DIMS, Precision.FP32))
    rng = np.random.default_rng(8)
    n, frames, tail = 2, 8, 3
    span = frames // 2 + tail
    mel = rng.standard_normal((n, DIMS.mels, frames)).astype(np.float32)
    names = tail_names(DIMS)
    rows = {name: rng.standard_normal((tail, DIMS.d_model)).astype(np.float32) for name in names}
    found = {
        f"cross_{letter}_{layer}": np.zeros((n, DIMS.d_model, span), np.float32)
        for layer in range(DIMS.decoder_layers)
        for letter in "kv"
    }
    places = WEIGHTS["encoder/position_encodings/encodings"][: frames // 2]
    wide = {name: np.stack([row] * n) for name, row in rows.items()}
    resident.bind({"mel": mel, "places": places, **wide}, found).run()
    for i in range(n):
        expected = {}
        for name in found:
            shape = (1, DIMS.heads, DIMS.d_head, span)
            shape = shape if "_v_" in name else (1, DIMS.heads, span, DIMS.d_head)
            expected[name] = np.zeros(shape, np.float32)
        none = np.zeros((1, 1, 1, span), np.float32)
        host.bind({"mel": mel[i : i + 1], "span_mask": none, **rows}, expected).run()
        for name, array in expected.items():
            turned = array if "_v_" in name else array.swapaxes(2, 3)
            np.testing.assert_allclose(
                found[name][i], turned.reshape(DIMS.d_model, span), atol=1e-4
            )


def tail_names(dims: WhisperDims) -> list[str]:
    encoder = [f"encoder_{x}_{i}" for i in range(dims.encoder_layers) for x in "kv"]
    return encoder + [f"tail_{x}_{i}" for i in range(dims.decoder_layers) for x in "kv"]
