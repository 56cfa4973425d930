"""Utterances that come and go: none of them can tell who shares its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tests.engine.test_resident import DIMS, IDS, PROMPT, SHAPE, TEXT_IDS, WEIGHTS, load

from voiced.engine.backends.base import Session
from voiced.engine.build.graph import GraphBuilder, Precision
from voiced.engine.build.whisper_step import OPSET, best_columns, step_graph
from voiced.engine.cells import CellCache, DecoderShape, SpanCache
from voiced.engine.decode import BeamSearch, StepDecoder
from voiced.engine.hotwords import ContextGraph, HotwordSearch
from voiced.engine.slots import Rows, SlotDecoder

PACKED = replace(SHAPE, packed=True)
CELLS = (32, 64, 256)
SPANS = (5, 9, 16, 30)
LIMIT = 14


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    model = step_graph(WEIGHTS, DIMS, Precision.INT8, **IDS)
    return load(tmp_path_factory.mktemp("packed"), model)


@pytest.mark.parametrize("columns", [50_175, 2_053, 90])  # 75 in a group; a prime; few
@pytest.mark.parametrize("top", [1, 5, 33])
def test_the_best_columns_are_those_of_the_whole_row(
    tmp_path: Path, columns: int, top: int
) -> None:
    g = GraphBuilder("best", Precision.FP32, OPSET)
    text = g.input("text", TensorProto.FLOAT, ["A", columns])
    wanted = g.input("top", TensorProto.INT64, [1])
    values, ids = best_columns(g, text, wanted, columns)
    g.output(values, "values", TensorProto.FLOAT, ["A", "K"])
    g.output(ids, "ids", TensorProto.INT64, ["A", "K"])
    rows = np.random.default_rng(columns + top).standard_normal((3, columns)).astype(np.float32)
    rows[1, :top] += 9.0  # all of the best in one group
    found = {"values": np.zeros((3, top), np.float32), "ids": np.zeros((3, top), np.int64)}
    load(tmp_path, g.model()).bind({"text": rows, "top": np.array([top])}, found).run()
    order = np.argsort(-rows, axis=1)[:, :top]
    assert (found["ids"] == order).all()
    assert (found["values"] == np.take_along_axis(rows, order, axis=1)).all()


class Speaker:
    """One utterance: encoded, its prompt run, ready to join."""

    def __init__(
        self, session: Session, seed: int, beam: int, graph: ContextGraph | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        span = SPANS[seed % len(SPANS)]
        shapes = {"k": (1, DIMS.heads, span, DIMS.d_head), "v": (1, DIMS.heads, DIMS.d_head, span)}
        cross = {
            f"cross_{kv}_{layer}": rng.standard_normal(shape).astype(np.float32)
            for layer in range(DIMS.decoder_layers)
            for kv, shape in shapes.items()
        }
        cross["cross_mask"] = rng.standard_normal((1, 1, 1, span)).astype(np.float32)
        self.decoder = StepDecoder(session, PACKED, cells=CELLS, max_batch=1, max_rows=4)
        self.decoder.start(cross)
        self.search = BeamSearch(beam=beam, max_tokens=LIMIT)
        if graph is not None:
            self.search = HotwordSearch(beam=beam, max_tokens=LIMIT, graph=graph, top=beam + 9)
        top = self.search.top + 1
        result = self.decoder.step(
            [PROMPT], np.arange(4)[None], causal=True, rows=[3], scores=[[0.0]], top=top
        )
        self.search.begin(result.best_scores[0], result.best_tokens[0], banned=frozenset())
        self.position = 4

    @property
    def found(self) -> list[tuple[tuple[int, ...], float]]:
        return [(h.tokens, round(h.score, 4)) for h in self.search.results()]


class Room:
    """Speakers in slots."""

    def __init__(self, session: Session) -> None:
        self.slots = SlotDecoder(
            session, PACKED, cells=CELLS, ids=TEXT_IDS, max_batch=4, max_rows=5, positions=160
        )
        self.inside: list[Speaker] = []

    def join(self, speaker: Speaker) -> None:
        self.slots.join(speaker.decoder, rows=len(speaker.search.rows))
        self.inside.append(speaker)

    def leave(self, slot: int) -> None:
        self.slots.leave(slot)
        last = self.inside.pop()
        if slot < len(self.inside):
            self.inside[slot] = last

    def step(self) -> None:
        self.slots.step([Rows(each.search, each.position) for each in self.inside])
        for slot in reversed(range(len(self.inside))):
            self.inside[slot].position += 1
            if self.inside[slot].search.done:
                self.leave(slot)

    def run(self) -> None:
        while self.inside:
            self.step()


def alone(session: Session, seed: int, beam: int, graph: ContextGraph | None = None) -> Speaker:
    room, speaker = Room(session), Speaker(session, seed, beam, graph)
    room.join(speaker)
    room.run()
    return speaker


@pytest.mark.parametrize("steps", range(LIMIT))
def test_a_text_is_the_same_whenever_another_joins(session: Session, steps: int) -> None:
    for first, second in ((1, 3), (3, 1)):  # the newcomer is longer, or shorter
        room, speakers = Room(session), [Speaker(session, s, 5) for s in (first, second)]
        room.join(speakers[0])
        for _ in range(steps):
            if room.inside:
                room.step()
        room.join(speakers[1])
        room.run()
        for speaker, seed in zip(speakers, (first, second), strict=True):
            assert speaker.found == alone(session, seed, 5).found


@settings(deadline=None, max_examples=25)
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 5]), st.integers(0, 4)),
        min_size=1,
        max_size=6,
    ),
    gives_up=st.integers(0, 6),
)
def test_no_text_depends_on_who_comes_and_goes(
    session: Session, plan: list[tuple[int, int, int]], gives_up: int
) -> None:
    room, came = Room(session), []
    for number, (seed, beam, steps) in enumerate(plan):
        speaker = Speaker(session, seed, beam)
        while not room.slots.holds(SPANS[seed % len(SPANS)]):
            room.step()
        room.join(speaker)
        came.append((speaker, seed, beam))
        for _ in range(steps):
            if room.inside:
                room.step()
        if number == gives_up and speaker in room.inside:
            room.leave(room.inside.index(speaker))
            came.pop()
    room.run()
    for speaker, seed, beam in came:
        assert speaker.found == alone(session, seed, beam).found


@pytest.mark.parametrize("steps", range(0, LIMIT, 3))
def test_no_text_depends_on_the_hotwords_of_others(session: Session, steps: int) -> None:
    plain = [alone(session, seed, 5).found for seed in (1, 3)]
    phrases = [((int(t), int(t + 1)), 4.0) for t in range(0, len(TEXT_IDS) - 1, 2)]
    graph = ContextGraph(phrases, lambda first, second: False)
    guided = alone(session, 2, 5, graph).found
    assert guided != alone(session, 2, 5).found  # they do something
    room = Room(session)
    speakers = [Speaker(session, 1, 5), Speaker(session, 2, 5, graph), Speaker(session, 3, 5)]
    for speaker in speakers:
        room.join(speaker)
        for _ in range(steps):
            if room.inside:
                room.step()
    room.run()
    assert [each.found for each in speakers] == [plain[0], guided, plain[1]]


def test_a_row_that_may_not_go_on_is_not_computed(session: Session) -> None:
    seen: list[int] = []

    class Watched:
        traffic = session.traffic

        def bind(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> object:
            seen.append(len(inputs["live"]))
            return session.bind(inputs, outputs)

    room = Room(Watched())  # type: ignore[arg-type]
    speaker = Speaker(session, 1, 5)
    speaker.search.scores[2] = -1e4
    room.join(speaker)
    room.step()
    assert seen == [4]


def test_the_memory_of_spans_is_bounded_and_counts_its_padding() -> None:
    shape = DecoderShape(layers=1, heads=1, d_head=1, specials=1)
    spans = SpanCache(shape, max_batch=3, positions=12)

    def add(length: int) -> None:
        keys = np.full((1, 1, length, 1), length, np.float32)
        cross = {"cross_k_0": keys, "cross_v_0": keys.reshape(1, 1, 1, length)}
        spans.append(cross, np.full(length, 0.5, np.float32))

    add(2)
    assert (spans.span, spans.padding) == (2, 0)
    assert spans.holds(6)
    assert not spans.holds(7)
    add(4)
    assert (spans.span, spans.padding) == (4, 2)
    assert not spans.holds(5)
    np.testing.assert_array_equal(
        spans.mask()[:, 0, 0], [[0.5, 0.5, -1e4, -1e4], [0.5, 0.5, 0.5, 0.5]]
    )
    assert list(spans.views()["cross_k_0"][0, 0, :2, 0]) == [2, 2]
    add(3)
    spans.remove(1)  # the last one takes its place, and the padding goes
    assert (spans.span, spans.n) == (3, 2)
    assert list(spans.views()["cross_k_0"][1, 0, :, 0]) == [3, 3, 3]
    assert list(spans.views()["cross_v_0"][0, 0, 0, :2]) == [2, 2]


def cells_of(cache: CellCache, slot: int) -> list[float]:
    seen = cache.ancestors[slot, 0]
    return [float(x) for x in cache.views()["self_k_0"][slot, 0, 0][seen]]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 11))
def test_cells_lie_where_they_would_lie_alone(joins: list[int], lag: int) -> None:
    shape = DecoderShape(layers=1, heads=1, d_head=1, specials=1)

    def cache() -> CellCache:
        return CellCache(shape, (8, 16, 64), max_batch=2)

    def advance(which: CellCache, values: list[float], rows: list[int]) -> None:
        most = max(rows)
        which.make_room(rows)
        keys = np.zeros((len(rows), 1, 1, most), np.float32)
        for slot, value in enumerate(values):
            keys[slot, 0, 0, : rows[slot]] = value
        new = {"new_k_0": keys, "new_v_0": keys.swapaxes(2, 3)}
        which.write(new, np.eye(most, dtype=np.bool_)[None].repeat(len(rows), 0), rows)
        which.follow(np.zeros((len(rows), most), np.int64))

    both, single, prompt = cache(), cache(), cache()
    prompt.clear(1)
    advance(prompt, [7], [1])
    for each in (both, single):
        each.adopt(prompt, 1)
    for number, rows in enumerate(joins):
        if number == lag:
            both.adopt(prompt, 2)
        others = [2] if both.n == 2 else []
        advance(both, [number, *([99] * len(others))], [rows, *others])
        advance(single, [number], [rows])
        assert both.used[0] == single.used[0]
        assert cells_of(both, 0) == cells_of(single, 0) == [7, *range(number + 1)]
