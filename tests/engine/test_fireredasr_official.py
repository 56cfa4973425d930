"""Our graphs and search give what the published FireRedASR code gives, padded or not, alone or not.

The official answers are stored (`fireredasr_goldens.json`); with torch and the published code in
`$VOICED_ORACLE_PYTHON` they are also made anew and compared.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.fireredasr_cases import (
    ENCODED,
    FRAMES,
    LENGTH_PENALTY,
    LONG,
    MODELS,
    SEARCHES,
    SMOOTHING,
    Search,
    stored_goldens,
    unpacked,
    utterance_seed,
)
from tests.engine.tiny_fireredasr import Tiny, features, weights

from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.fireredasr_bundle import Form
from voiced.engine.build.graph import Precision
from voiced.engine.bundle import Bundle
from voiced.engine.families.fireredasr_model import Decoded, FireRedModel
from voiced.engine.types import Gear

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
"""Of encoder outputs; the largest that was seen is 1.4e-5, in values up to 10."""


@dataclass(frozen=True)
class Opened:
    tiny: Tiny
    model: FireRedModel
    utterances: list[dict[str, Any]]

    def features(self, index: int) -> np.ndarray:
        return features(utterance_seed(self.tiny, index), FRAMES[index])

    def decode(self, gear: Gear, indices: Sequence[int], search: Search) -> list[Decoded]:
        with self.model.lend(gear) as loan:
            loan.prefill([self.features(index) for index in indices])
            return self.search(loan, indices, search)

    def search(self, loan: Any, indices: Sequence[int], search: Search) -> list[Decoded]:
        return self.model.decode(
            loan,
            [FRAMES[index] for index in indices],
            beam=search.beam,
            eos_penalty=search.eos_penalty,
            length_penalty=LENGTH_PENALTY,
        )

    def official(self, index: int, search: Search) -> list[tuple[int, ...]]:
        stored = self.utterances[index]["searches"][search.name]["tokens"]
        return [tuple(tokens) for tokens in stored]


def opened(folder: Path, tiny: Tiny) -> Opened:
    bundle = Bundle.open(folder)
    model = FireRedModel(folder, bundle.manifest, OrtBackend(), threads=1, max_batch=4, max_beam=5)
    assert model.info.search.smoothing == SMOOTHING
    return Opened(tiny, model, stored_goldens()[tiny.name]["utterances"])


@pytest.fixture(scope="module", params=MODELS, ids=lambda tiny: tiny.name)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    tiny: Tiny = request.param
    return opened(build_bundle(tmp_path_factory.mktemp("models") / tiny.name, tiny), tiny)


@pytest.fixture(scope="module", params=MODELS, ids=lambda tiny: tiny.name)
def int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    tiny: Tiny = request.param
    folder = tmp_path_factory.mktemp("int8") / tiny.name
    return opened(build_bundle(folder, tiny, Form(Precision.INT8)), tiny)


@pytest.fixture(
    scope="module",
    params=((MODELS[0], False), (MODELS[5], True), (MODELS[6], False)),
    ids=("a cache per layer", "stacked caches", "pads"),
)
def resident(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    tiny, stacked = request.param
    target = tmp_path_factory.mktemp("portable") / tiny.name
    form = Form(resident=True, stacked=stacked)
    return opened(build_bundle(target, tiny, form, gears_s=(1, 2)), tiny)


def test_the_stored_answers_are_no_empty_test() -> None:
    """Texts of many lengths and tokens, empty ones, ended ones, ones cut at their limit, ones with
    `<pad>` in them."""
    best = [
        (utterance["frames"], utterance["searches"][SEARCHES[1].name]["tokens"][0])
        for golden in stored_goldens().values()
        for utterance in golden["utterances"]
    ]
    assert len(best) >= 100
    assert {frames % 4 for frames, _ in best} == {0, 1, 2, 3}
    assert len({len(tokens) for _, tokens in best}) >= 20
    assert len({token for _, tokens in best for token in tokens}) >= 80
    assert sum(not tokens for _, tokens in best) >= 5
    assert sum(len(tokens) == -(-frames // 4) for frames, tokens in best) >= 20
    assert sum(0 < len(tokens) < -(-frames // 4) for frames, tokens in best) >= 40
    assert sum(MODELS[0].dims.pad in tokens[:-1] for _, tokens in best) >= 10


def test_every_search_of_every_utterance_finds_the_official_tokens(host: Opened) -> None:
    for index, frames in enumerate(FRAMES):
        with host.model.lend(host.model.gears.pick(1, frames)) as loan:
            loan.prefill([host.features(index)])
            for search in SEARCHES:
                found = host.search(loan, [index], search)[0]
                tokens = [h.tokens for h in found.hypotheses]
                assert tokens == host.official(index, search), (index, search)


@pytest.mark.parametrize("form", [Form(), Form(resident=True)], ids=["host", "resident"])
@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_long_texts_have_the_official_tokens(tmp_path: Path, tiny: Tiny, form: Form) -> None:
    """Up to 265 tokens, for which the caches grow and are cleared of what no row needs."""
    ours = opened(build_bundle(tmp_path / tiny.name, tiny, form, gears_s=(4, 10, 20)), tiny)
    for frames in LONG:
        with ours.model.lend(ours.model.gears.pick(1, frames)) as loan:
            loan.prefill([features(frames, frames)])
            (found,) = ours.model.decode(
                loan, [frames], beam=SEARCHES[1].beam, length_penalty=LENGTH_PENALTY
            )
        official = [tuple(t) for t in stored_goldens()[tiny.name]["long"][str(frames)]]
        assert [h.tokens for h in found.hypotheses] == official, frames


def test_cross_attention_is_of_the_official_encoder_whatever_the_gear(host: Opened) -> None:
    state, dims = weights(host.tiny), host.tiny.dims
    for index in ENCODED:
        encoded = unpacked(host.utterances[index]["encoded"])
        for gear in host.model.gears:
            if gear.frames < FRAMES[index] or gear.batch > 1:
                continue
            with host.model.lend(gear) as loan:
                loan.prefill([host.features(index)])
                keys, values = loan.sample()
            places = host.model.info.encoder_frames(gear.frames)
            keys = keys[: dims.d_model * places].reshape(dims.d_model, places)
            values = values[: dims.d_model * places].reshape(dims.heads, places, -1)
            at = "decoder.layer_stack.0.cross_attn"
            expected = encoded @ state[f"{at}.w_ks.weight"].T
            assert np.abs(keys.T[: len(encoded)] - expected).max() < TOLERANCE
            expected = encoded @ state[f"{at}.w_vs.weight"].T + state[f"{at}.w_vs.bias"]
            joined = values.transpose(1, 0, 2).reshape(places, -1)
            assert np.abs(joined[: len(encoded)] - expected).max() < TOLERANCE


def test_ctc_is_the_official_one_whatever_the_gear(host: Opened) -> None:
    if not host.model.info.has_ctc:
        assert host.tiny.version == 1
        return
    for index in ENCODED:
        expected = unpacked(host.utterances[index]["ctc"])
        for gear in host.model.gears:
            if gear.frames >= FRAMES[index] and gear.batch == 1:
                with host.model.lend(gear) as loan:
                    loan.prefill([host.features(index)])
                    found = loan.ctc(0)
                    assert found.shape == expected.shape
                    assert np.abs(found - expected).max() < TOLERANCE


def test_padding_to_every_larger_gear_changes_no_token(host: Opened) -> None:
    for index in ENCODED:
        for gear in host.model.gears:
            if gear.frames >= FRAMES[index] and gear.batch == 1:
                for search in SEARCHES[:3]:
                    found = host.decode(gear, [index], search)[0].hypotheses[0].tokens
                    assert found == host.official(index, search)[0], (index, gear, search)


def test_lengths_mixed_in_a_batch_find_what_each_finds_alone(host: Opened) -> None:
    """A short utterance keeps its own limit beside a long one."""
    mixed = [0, 17, 6, 12]
    for search in SEARCHES[1:3]:
        for place, found in enumerate(host.decode(Gear(200, 4), mixed, search)):
            tokens = [h.tokens for h in found.hypotheses]
            assert tokens == host.official(mixed[place], search)


def test_who_shares_the_batch_changes_no_token_of_int8_graphs(int8: Opened) -> None:
    """Rows are quantised one by one; quantised together, two texts of three are others."""
    shuffled = np.random.RandomState(1).permutation(len(FRAMES)).tolist()
    for search in SEARCHES[:3]:
        for first in range(0, len(shuffled), 4):
            mixed = shuffled[first : first + 4]
            together = int8.decode(Gear(200, 4), mixed, search)
            for index, found in zip(mixed, together, strict=True):
                gear = int8.model.gears.pick(1, FRAMES[index])
                (alone,) = int8.decode(gear, [index], search)
                tokens = [[h.tokens for h in each.hypotheses] for each in (found, alone)]
                assert tokens[0] == tokens[1], (index, search)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_dummy_row_beside_an_utterance_is_finite_and_changes_nothing(
    tmp_path: Path, precision: Precision
) -> None:
    tiny = MODELS[3]
    bundle = Bundle.open(build_bundle(tmp_path / tiny.name, tiny, Form(precision)))
    prefill = OrtBackend().load(bundle.path("prefill"), threads=1)
    dims, frames, places = tiny.dims, FRAMES[12], 30

    def run(rows: int) -> dict[str, np.ndarray]:
        given = np.zeros((rows, 4 * places + 3, dims.mels), np.float32)
        given[0, :frames] = features(utterance_seed(tiny, 12), frames)
        mask = np.zeros((rows, places), np.float32)
        mask[0, : -(-frames // 4)] = 1
        made = {"ctc": np.zeros((rows, places, dims.vocabulary), np.float32)}
        for layer in range(dims.decoder_layers):
            keys = (rows, dims.heads, dims.d_head, places)
            values = (rows, dims.heads, places, dims.d_head)
            made[f"cross_k_{layer}"] = np.zeros(keys, np.float32)
            made[f"cross_v_{layer}"] = np.zeros(values, np.float32)
        prefill.bind({"features": given, "mask": mask}, made).run()
        return made

    alone, beside = run(1), run(3)
    for name, expected in alone.items():
        assert np.isfinite(beside[name]).all()
        assert np.abs(beside[name][:1] - expected).max() < TOLERANCE


def test_resident_caches_find_the_official_tokens(resident: Opened) -> None:
    for index, frames in reversed(list(enumerate(FRAMES))):  # long ones leave something to clear
        with resident.model.lend(resident.model.gears.pick(1, frames)) as loan:
            loan.prefill([resident.features(index)])
            for search in SEARCHES[1:3]:
                found = resident.search(loan, [index], search)[0].hypotheses[0]
                assert found.tokens == resident.official(index, search)[0], (index, search)
            if resident.tiny.version == 2 and index in ENCODED:
                expected = unpacked(resident.utterances[index]["ctc"])
                assert np.abs(loan.ctc(0) - expected).max() < TOLERANCE


def test_confidence_is_the_official_one(host: Opened) -> None:
    if host.tiny.version == 1:
        assert "confidence" not in host.utterances[0]["searches"][SEARCHES[1].name]
        return
    for index in ENCODED:
        for search in SEARCHES[:3]:
            stored = host.utterances[index]["searches"][search.name]["confidence"]
            stored = [each or 0.0 for each in stored]  # none for the empty text
            gear = host.model.gears.pick(1, FRAMES[index])
            found = host.decode(gear, [index], search)[0].hypotheses
            assert [h.confidence for h in found] == pytest.approx(stored, abs=1e-6), (index, search)


@pytest.fixture(scope="module")
def oracle() -> Path:
    """An interpreter with torch and the published code."""
    named = os.environ.get("VOICED_ORACLE_PYTHON")
    python = Path(named) if named else ROOT / ".venv-oracle" / "bin" / "python"
    if not python.exists():
        pytest.skip("no torch: set VOICED_ORACLE_PYTHON, see tools/fireredasr-goldens")
    return python


@pytest.mark.oracle
def test_the_published_code_still_answers_what_is_stored(oracle: Path) -> None:
    done = subprocess.run(
        [str(oracle), str(ROOT / "tools" / "fireredasr-goldens"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
