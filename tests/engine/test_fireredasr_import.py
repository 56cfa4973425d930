"""A released FireRedASR folder becomes a bundle, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.engine import torch_writer
from tests.engine.fireredasr_bundles import build_bundle
from tests.engine.tiny_fireredasr import TOKENS, Tiny, arguments, weights, write_folder

from voiced.engine import golden
from voiced.engine.build.fireredasr_bundle import WEIGHTS, Form
from voiced.engine.build.fireredasr_checkpoint import FireRedDims, expected_shapes
from voiced.engine.build.fireredasr_resident import OPERATORS
from voiced.engine.build.graph import Precision
from voiced.engine.build.imports import import_fireredasr
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BundleError, EngineError, FetchError

FORMS = (
    Form(),
    Form(Precision.INT8),
    Form(resident=True),
    Form(Precision.FP16, resident=True, stacked=True),
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("release") / "v2", Tiny(5, 2))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def run_import(folder: Path, form: Form | None = None, **options: Any) -> Path:
    given: dict[str, Any] = {"name": None, "force": False, "progress": lambda _: None}
    return import_fireredasr(folder, form or Form(), **{**given, **options})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"v2{form.suffix}")
def test_every_form_of_a_bundle_is_whole_and_answers_its_golden_question(
    release: Path, models: Path, form: Form
) -> None:
    stages: list[str] = []
    path = run_import(release, form, progress=stages.append)
    assert path == models / f"fireredasr2-aed{form.suffix}"
    bundle = Bundle.open(path)
    assert bundle.manifest.model["version"] == 2
    assert bundle.manifest.source.packages == ("local",)
    assert len(bundle.manifest.source.content_sha256) == 64
    assert golden.check(bundle).startswith("golden pair ok, error 0.00%")
    assert any(stage.startswith("writing the graphs: tensor 100 of about") for stage in stages)
    for role in ("prefill", "step"):
        graph = onnx.load(bundle.path(role), load_external_data=False).graph
        places = {
            e.value for t in graph.initializer for e in t.external_data if e.key == "location"
        }
        assert places == {WEIGHTS}


def test_the_version_is_read_off_the_checkpoint(tmp_path: Path, models: Path) -> None:
    first = write_folder(tmp_path / "v1", Tiny(5, 1))
    path = run_import(first)
    assert path.name == "fireredasr-aed"
    assert Bundle.open(path).manifest.model["has_ctc"] is False


def test_the_same_weights_have_the_same_content_hash_in_every_form(
    release: Path, models: Path
) -> None:
    hashes = {
        Bundle.open(run_import(release, form)).manifest.source.content_sha256 for form in FORMS[:2]
    }
    assert len(hashes) == 1


def test_portable_graphs_keep_to_the_operators_of_every_runtime(tmp_path: Path) -> None:
    path = build_bundle(tmp_path / "portable", Tiny(5, 2), Form(resident=True), gears_s=(2,))
    for role in ("prefill", "step"):
        model = onnx.load(Bundle.open(path).path(role), load_external_data=False)
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        assert model.opset_import[0].version == 13
        for value in (*model.graph.input, *model.graph.output):
            assert len(value.type.tensor_type.shape.dim) <= 3


def test_a_damaged_bundle_says_how_it_is_made_again(release: Path, models: Path) -> None:
    path = run_import(release, name="mine")
    (path / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(BundleError, match="import fireredasr DIR --name mine --force`"):
        Bundle.open(path)


def test_a_taken_name_is_refused_and_force_replaces_it(release: Path, models: Path) -> None:
    path = run_import(release, name="mine")
    before = Bundle.open(path).id
    with pytest.raises(BundleError, match="a bundle of that name"):
        run_import(release, name="mine")
    assert (
        Bundle.open(run_import(release, Form(Precision.INT8), name="mine", force=True)).id != before
    )


@pytest.mark.parametrize(
    "stage", ["checking the weights", "writing the graphs", "computing the golden pair", "packing"]
)
def test_an_interrupt_leaves_nothing_and_an_older_bundle_as_it_was(
    release: Path, models: Path, stage: str
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_import(release, progress=interrupt)
    assert [each.name for each in models.iterdir()] == [".fireredasr2-aed.lock"]


State = dict[str, np.ndarray]


def changed(folder: Path, release: Tiny, change: Callable[[dict[str, Any], State], None]) -> Path:
    """A release whose checkpoint was changed: its settings and its tensors."""
    write_folder(folder, release)
    settings, state = arguments(release), weights(release)
    change(vars(settings), state)
    torch_writer.save(folder / "model.pth.tar", {"args": settings, "model_state_dict": state})
    return folder


def drop(_: dict[str, Any], state: State) -> None:
    del state["decoder.layer_stack.1.mlp.w_2.bias"]


def add(_: dict[str, Any], state: State) -> None:
    state["encoder.layer_stack.0.gate.weight"] = np.zeros((2, 2), np.float32)


def odim(settings: dict[str, Any], _: State) -> None:
    settings["odim"] = 7832


def layers(settings: dict[str, Any], _: State) -> None:
    settings["n_layers_enc"] = 16


def heads(settings: dict[str, Any], _: State) -> None:
    settings["n_head"] = 5


def no_width(settings: dict[str, Any], _: State) -> None:
    settings["d_model"] = "64"


def whole_numbers(_: dict[str, Any], state: State) -> None:
    state["decoder.layer_norm_out.bias"] = np.zeros(64, np.int64)


def not_a_number(_: dict[str, Any], state: State) -> None:
    state["ctc.ctc_lo.bias"] = np.full(len(TOKENS), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "found no decoder.layer_stack.1.mlp.w_2.bias, expected the 130 tensors"),
        (add, "found the unknown tensor encoder.layer_stack.0.gate.weight"),
        (odim, r"found decoder.tgt_word_emb.weight \[169, 64\], expected \[7832, 64\] as in args"),
        (layers, "found no encoder.layer_stack.2.ffn1.net.0.weight and 475 more"),
        (heads, "found d_model 64, heads 5"),
        (no_width, "found args.d_model = '64', expected a whole number"),
        (whole_numbers, "found decoder.layer_norm_out.bias of type int64"),
        (not_a_number, "found ctc.ctc_lo.bias with NaN or infinity, expected finite numbers"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, models: Path, change: Callable[[dict[str, Any], State], None], message: str
) -> None:
    folder = changed(tmp_path / "release", Tiny(5, 2), change)
    with pytest.raises(FetchError, match=message):
        run_import(folder)
    assert not models.exists() or all(each.name.endswith(".lock") for each in models.iterdir())


def test_tensors_of_another_model_in_the_file_are_left_out(tmp_path: Path, models: Path) -> None:
    """Version 2 is published with a loader that passes over what it does not know."""

    def ride_along(_: dict[str, Any], state: State) -> None:
        state["lm.lstm.weight"] = np.zeros((2, 2), np.float32)

    folder = changed(tmp_path / "release", Tiny(5, 2), ride_along)
    assert run_import(folder).name == "fireredasr2-aed"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cmvn.ark", b"\0BFM " + bytes(1306), "1311 bytes that begin with b'.x00BFM ', expected"),
        ("cmvn.ark", b"\0BDM ", "found 5 bytes"),
        ("dict.txt", b"<blank> 0\n<unk> 2\n", "found id 2 in line 2, expected 1"),
        ("dict.txt", b"<blank> 0\n<blank> 1\n", "found '<blank>' twice"),
        ("dict.txt", b"<blank> 0\n", "found 1 tokens, expected 169 as the checkpoint's odim"),
        ("dict.txt", b"\xff\xfe", "expected UTF-8"),
    ],
)
def test_a_file_beside_the_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, models: Path, name: str, content: bytes, message: str
) -> None:
    folder = write_folder(tmp_path / "release", Tiny(5, 2))
    (folder / name).write_bytes(content)
    with pytest.raises(EngineError, match=message):
        run_import(folder)


def test_a_folder_without_the_files_names_them(tmp_path: Path, models: Path) -> None:
    (tmp_path / "dict.txt").touch()
    with pytest.raises(FetchError, match=r"found no model.pth.tar, cmvn.ark in .*, expected"):
        run_import(tmp_path)


def test_blank_lines_and_spaces_in_the_dictionary_are_the_space(
    tmp_path: Path, models: Path
) -> None:
    folder = write_folder(tmp_path / "release", Tiny(5, 2))
    lines = (folder / "dict.txt").read_text(encoding="utf-8").split("\n")
    lines[10] = "<space> 10"
    lines[11] = lines[11].split()[0]  # without its id
    (folder / "dict.txt").write_text("\n".join(lines), encoding="utf-8")
    path = run_import(folder)
    stored = (path / "tokens.txt").read_text(encoding="utf-8").split("\n")
    assert stored[10:12] == [" ", TOKENS[11]]


def test_the_tensors_of_the_released_size_are_1_14_thousand_million_numbers() -> None:
    layers = {"encoder_layers": 16, "decoder_layers": 16, "decoder_positions": 5000}
    sizes = {"mels": 80, "d_model": 1280, "heads": 20, "kernel": 33}
    ids = {"start": 3, "end": 4, "pad": 2}

    def parameters(vocabulary: int, *, has_ctc: bool) -> int:
        dims = FireRedDims(**layers, **sizes, **ids, vocabulary=vocabulary, has_ctc=has_ctc)
        shapes = expected_shapes(dims)
        return sum(
            int(np.prod(shape))
            for name, shape in shapes.items()
            if not name.endswith("pe") and name != "decoder.tgt_word_prj.weight"  # tied
        )

    assert parameters(vocabulary=7832, has_ctc=False) == 1_140_350_048
    assert parameters(vocabulary=8667, has_ctc=True) == 1_140_350_048 + 835 * 1280 + 8667 * 1281


def test_the_manifest_spells_out_the_published_search(release: Path, models: Path) -> None:
    manifest = json.loads((run_import(release) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["search"] == {
        "beam": 3,
        "smoothing": 1.25,
        "length_penalty": 0.6,
        "eos_penalty": 1.0,
    }
