"""Which folder a bundle's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from voiced.engine import store
from voiced.engine.errors import BundleError


def put(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text("{}")
    return folder / name


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VOICED_MODEL_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "SERVICE_DIR", tmp_path / "service")
    return tmp_path / "service"


def test_the_environment_names_the_only_folder(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(service, "a")
    monkeypatch.setenv("VOICED_MODEL_DIR", str(tmp_path / "mine"))
    assert store.search_path() == (tmp_path / "mine",)
    assert store.models_dir() == tmp_path / "mine"
    assert store.list_bundles() == []


def test_without_a_service_bundles_live_in_the_cache(service: Path, tmp_path: Path) -> None:
    assert store.search_path() == (tmp_path / "cache/voiced/models",)
    assert store.models_dir() == tmp_path / "cache/voiced/models"


def test_a_relative_cache_folder_is_ignored(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.models_dir() == tmp_path / "home/.cache/voiced/models"


def test_the_service_folder_comes_first_when_it_is_there(service: Path, tmp_path: Path) -> None:
    put(tmp_path / "cache/voiced/models", "a")
    mine = put(tmp_path / "cache/voiced/models", "b")
    theirs = put(service, "a")
    assert store.resolve("a") == theirs
    assert store.resolve("b") == mine
    assert store.list_bundles() == [theirs, mine]
    assert store.models_dir() == service


def test_a_service_folder_that_cannot_be_written_is_read_only(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(service, "a")
    import os

    real = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: path != service or (not mode & os.W_OK and real(path, mode)),
    )
    assert store.resolve("a") == service / "a"
    assert store.models_dir() == tmp_path / "cache/voiced/models"


def test_anything_with_a_separator_is_a_path(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "elsewhere", "a")
    monkeypatch.chdir(tmp_path)
    assert store.resolve("elsewhere/a") == path
    assert store.resolve(path) == path
    with pytest.raises(BundleError, match="no manifest there"):
        store.resolve("./a")


def test_an_unknown_name_is_answered_with_the_known_ones(service: Path) -> None:
    with pytest.raises(BundleError, match=r"found no bundle at all.*voiced model pull whisper"):
        store.resolve("whisper")
    put(service, "a")
    with pytest.raises(BundleError, match="found only a, expected a bundle named 'whisper'"):
        store.resolve("whisper")
    with pytest.raises(BundleError, match="found bundle name ''"):
        store.resolve("")
    (service / "whisper").mkdir()
    with pytest.raises(BundleError, match=r"whisper: found a folder without manifest\.json"):
        store.resolve("whisper")


@pytest.mark.parametrize("name", ["a", "./a"])
def test_a_folder_of_another_user_is_no_surprise(
    service: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(service, "a")
    monkeypatch.chdir(service)

    def refuse(path: Path) -> bool:  # the superuser, who may run this, is refused nothing
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BundleError, match="a folder that this user may not enter"):
        store.resolve(name)


def test_what_builders_leave_is_not_listed(service: Path) -> None:
    kept = put(service, "a.b-1")
    for name in ("a.partial-1", "a.fetch-22", "a.old-3", ".hidden"):
        put(service, name)
    (service / ".a.lock").write_text("1")
    (service / "note.txt").write_text("1")
    assert store.list_bundles() == [kept]


def test_the_silero_file_is_found_when_it_was_fetched(service: Path) -> None:
    assert store.silero_path() is None
    (service / "silero-vad").mkdir(parents=True)
    (service / "silero-vad/silero_vad.onnx").write_bytes(b"x")
    assert store.silero_path() == service / "silero-vad/silero_vad.onnx"
