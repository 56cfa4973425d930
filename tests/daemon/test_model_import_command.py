"""`voiced model import` and `voiced model pull` of a released FireRedASR folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.tiny_fireredasr import Tiny, write_folder

from voiced.daemon.commands.model import model_list, model_pull
from voiced.daemon.commands.model_import import hub_pull, model_import
from voiced.engine.errors import FetchError


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("release") / "v1", Tiny(5, 1))


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def test_import_prints_the_folder_and_says_how_far_it_is(
    release: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_import("fireredasr", release, None, "int8", False, False) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{models / 'fireredasr-aed-int8'}\n"
    for stage in ("checking the weights", "writing the encoder graph", "packing"):
        assert stage in shown.err


def test_half_precision_is_for_cards_so_its_caches_are_stacked_on_the_device(
    release: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_import("fireredasr", release, "half", "fp16", False, False) == 0
    manifest = (models / "half" / "manifest.json").read_text(encoding="utf-8")
    assert '"stacked"' in manifest
    assert '"dtype":"float16"' in manifest.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "precision", "portable", "said"),
    [
        ("../up", "fp32", False, "found --name '../up', expected letters"),
        (None, "int8", True, "found --portable with int8, expected fp32 or fp16"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_use(
    release: Path,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    name: str | None,
    precision: str,
    portable: bool,
    said: str,
) -> None:
    assert model_import("fireredasr", release, name, precision, portable, False) == 2
    assert said in capsys.readouterr().err
    assert not models.exists()


def test_pull_takes_the_files_from_a_folder_and_keeps_a_bundle_that_is_there(
    release: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hub_pull("fireredasr-aed", release, force=False) == 0
    built = (models / "fireredasr-aed" / "manifest.json").stat().st_mtime_ns
    assert hub_pull("fireredasr-aed", release, force=False) == 0
    assert "already built; --force builds it again" in capsys.readouterr().err
    assert (models / "fireredasr-aed" / "manifest.json").stat().st_mtime_ns == built


def test_pull_of_a_form_that_does_not_exist_is_wrong_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert model_pull("fireredasr2-aed-int4") == 2
    assert "no model is known as 'fireredasr2-aed-int4'" in capsys.readouterr().err


def test_pull_without_a_network_says_how_to_bring_the_files(
    monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # discard: nothing listens
    monkeypatch.setattr("voiced.engine.build.hub.ATTEMPTS", 1)
    with pytest.raises(FetchError, match="run `voiced model import fireredasr DIR`"):
        model_pull("fireredasr2-aed")
    assert not (models / "fireredasr2-aed").exists()


def test_what_can_be_pulled_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_list() == 0
    listed = capsys.readouterr().out
    assert "fireredasr-aed\tnot built" in listed
    assert "fireredasr2-aed\tnot built" in listed
