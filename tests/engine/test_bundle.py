"""A bundle is exactly what was built, or it is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import FORMAT, Bundle, GearShape, Golden, Manifest, Source, is_plain_name
from voiced.engine.errors import BundleError
from voiced.engine.types import Gear

MANIFEST = Manifest(
    name="tiny",
    family="whisper",
    created_by="test",
    source=Source(content_sha256="0" * 64, packages=("a==1",), licence="MIT"),
    graphs={"step": "step.onnx"},
    model={"layers": 2},
    gears=(GearShape(frames=200), GearShape(frames=400, batch=2)),
    golden=Golden(input="golden.pcm", output="golden.json"),
    quantisation="int8",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with BundleWriter(tmp_path / "tiny") as writer:
        writer.add("step.onnx", b"graph" * 100)
        writer.add("golden.pcm", b"\0\1" * 50)
        writer.add("golden.json", b"{}")
        return writer.commit(MANIFEST)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def refused(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    return caught.value


def test_a_bundle_opens_as_it_was_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.path("step") == folder / "step.onnx"
    assert bundle.file("golden.json").read_bytes() == b"{}"
    assert bundle.gears == (Gear(200), Gear(400, 2))
    assert bundle.manifest.model == {"layers": 2}
    assert bundle.manifest.source == MANIFEST.source


def test_the_id_is_the_name_and_a_hash_that_follows_the_manifest(folder: Path) -> None:
    before = Bundle.open(folder).id
    edit(folder, lambda fields: fields.update(created_by="someone else"))
    after = Bundle.open(folder).id
    assert before.startswith("tiny@")
    assert len(before) == len("tiny@") + 8
    assert before != after


def test_an_unknown_role_or_file_is_an_error_that_says_what_there_is(folder: Path) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="found graphs step, expected a graph with role 'ctc'"):
        bundle.path("ctc")
    with pytest.raises(BundleError, match=r"golden\.json.*expected a file 'vocabulary'"):
        bundle.file("vocabulary")


def test_a_missing_folder_says_how_to_get_the_model(tmp_path: Path) -> None:
    error = refused(tmp_path / "tiny")
    assert error.path == tmp_path / "tiny"
    assert "voiced model pull tiny" in str(error)


def test_a_missing_manifest_is_named(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    error = refused(folder)
    assert error.path.name == "manifest.json"
    assert error.found == "no such file"
    assert "voiced model build tiny --force" in error.next_step


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": 1,}'])
def test_bad_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    assert "JSON" in refused(folder).found


@pytest.mark.parametrize("version", [0, FORMAT - 1, str(FORMAT), None, float(FORMAT), True])
def test_another_format_version_is_refused_before_anything_else(
    folder: Path, version: object
) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": version}))
    error = refused(folder)
    assert error.found == f"format {version!r}"
    assert error.expected == f"format {FORMAT}"


@pytest.mark.parametrize("name", sorted(set(Manifest.__struct_fields__) - {"targets"}))
def test_every_field_must_be_there(folder: Path, name: str) -> None:
    edit(folder, lambda fields: fields.pop(name))
    assert refused(folder).found == f"no field '{name}'"


@pytest.mark.parametrize("inside", [(), ("source",), ("golden",), ("files", "step.onnx")])
def test_an_unknown_field_is_refused_at_any_depth(folder: Path, inside: tuple[str, ...]) -> None:
    def change(fields: dict[str, Any]) -> None:
        for name in inside:
            fields = fields[name]
        fields["surprise"] = 1

    edit(folder, change)
    assert "surprise" in refused(folder).found


@pytest.mark.parametrize(
    ("field", "value"),
    [("family", "parrot"), ("gears", [{"frames": "many"}]), ("files", []), ("model", None)],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(
    folder: Path, field: str, value: object
) -> None:
    edit(folder, lambda fields: fields.update({field: value}))
    assert f"$.{field}" in refused(folder).found


@pytest.mark.parametrize("gears", [[], [{"frames": 0, "batch": 1}], [{"frames": 9, "batch": -1}]])
def test_gears_that_hold_nothing_are_refused(folder: Path, gears: list[object]) -> None:
    edit(folder, lambda fields: fields.update(gears=gears))
    assert "gear" in refused(folder).found


def test_only_a_vad_may_have_no_gears(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "silero") as writer:
        writer.add("vad.onnx", b"graph")
        path = writer.commit(Manifest(name="silero", family="vad", graphs={"vad": "vad.onnx"}))
    assert Bundle.open(path).gears == ()


@pytest.mark.parametrize(
    "name", ["../step.onnx", "/etc/passwd", "a/b", ".hidden", "..", "", "manifest.json", "a\0b"]
)
def test_a_file_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda fields: fields["files"].update({name: fields["files"]["step.onnx"]}))
    error = refused(folder)
    assert error.path.name == "manifest.json"
    assert error.found == f"file name {name!r}"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields["graphs"].update(step="other.onnx"),
        lambda fields: fields["graphs"].update(step="../step.onnx"),
        lambda fields: fields["golden"].update(output="other.onnx"),
    ],
)
def test_a_role_must_name_a_listed_file(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(folder, change)
    assert refused(folder).expected == "a file listed in 'files'"


@pytest.mark.parametrize("entry", [{"sha256": "F" * 64, "bytes": 1}, {"sha256": "", "bytes": -1}])
def test_a_hash_or_size_that_cannot_be_is_refused(folder: Path, entry: object) -> None:
    edit(folder, lambda fields: fields["files"].update({"step.onnx": entry}))
    assert "step.onnx" in refused(folder).found


@pytest.mark.parametrize("verify", ["hash", "size"])
def test_missing_extra_and_truncated_files_are_named(folder: Path, verify: Any) -> None:
    step = folder / "step.onnx"
    content = step.read_bytes()

    def error() -> BundleError:
        with pytest.raises(BundleError) as caught:
            Bundle.open(folder, verify=verify)
        return caught.value

    step.write_bytes(content[:-1])
    assert (error().path, error().found, error().expected) == (step, "499 bytes", "500 bytes")
    step.unlink()
    assert (error().path, error().found) == (step, "no such file")
    step.mkdir()
    assert (error().path, error().found) == (step, "no regular file")
    step.rmdir()
    step.write_bytes(content)
    (folder / "extra.bin").write_bytes(b"")
    assert error().path.name == "extra.bin"


def test_an_altered_file_is_found_by_hash_and_not_by_size(folder: Path) -> None:
    step = folder / "step.onnx"
    step.write_bytes(b"G" + step.read_bytes()[1:])
    error = refused(folder)
    assert error.path == step
    assert error.found.startswith("sha256 ")
    assert error.found != error.expected
    assert Bundle.open(folder, verify="size").manifest.name == "tiny"


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    with BundleWriter(tmp_path_factory.mktemp("flip") / "tiny") as writer:
        for name in ("step.onnx", "golden.pcm", "golden.json"):
            writer.add(name, name.encode() * 20)
        folder = writer.commit(MANIFEST)
    content = bytearray((folder / "golden.pcm").read_bytes())
    content[at % len(content)] ^= flip
    (folder / "golden.pcm").write_bytes(content)
    assert refused(folder).path.name == "golden.pcm"


@given(st.text(max_size=20))
def test_a_plain_name_is_one_component_below_the_folder(name: str) -> None:
    if is_plain_name(name):
        path = Path("/bundle") / name
        assert path.parent == Path("/bundle")
        assert not path.name.startswith(".")


def converted(folder: Path, **artifact: Any) -> None:
    """Give the bundle a target with one artifact, for which an existing file stands in."""
    made = {
        "role": "step",
        "axes": {"N": 1, "C": 64},
        "file": "step.onnx",
        "options": {"optimize": "general"},
        "parity": {"samples": 3, "max_abs_diff": {"scores": 1e-5}, "ids_equal": {"tokens": True}},
    } | artifact
    target = {"library": "mindspore_lite 2.0.0", "gears": [{"frames": 200, "batch": 1}]}
    target |= {"artifacts": [made], "log": "step.onnx"}
    edit(folder, lambda fields: fields.update(targets={"mindspore-cpu": target}))


def test_an_artifact_is_found_by_target_role_and_axes(folder: Path) -> None:
    converted(folder)
    bundle = Bundle.open(folder)
    axes = {"N": 1, "C": 64, "S": 500}
    assert bundle.artifact("mindspore-cpu", "step", axes) == folder / "step.onnx"
    with pytest.raises(BundleError, match=r"with N=1 C=64, expected one with N=1 C=128; .*--gears"):
        bundle.artifact("mindspore-cpu", "step", {"N": 1, "C": 128})
    with pytest.raises(BundleError, match="no prefill for mindspore-cpu"):
        bundle.artifact("mindspore-cpu", "prefill", axes)


def test_a_bundle_for_another_target_says_how_to_convert_it(folder: Path) -> None:
    edit(folder, lambda fields: fields.update(quantisation="none"))
    with pytest.raises(BundleError, match=r"no converted artifacts.*--target mindspore-cpu`"):
        Bundle.open(folder).target("mindspore-cpu")
    converted(folder)
    with pytest.raises(BundleError, match="for mindspore-cpu only, expected some for ascend"):
        Bundle.open(folder).target("ascend")


def test_an_artifact_without_a_parity_report_is_refused(folder: Path) -> None:
    converted(folder, parity=None)
    assert "parity" in refused(folder).found
    converted(folder)
    edit(folder, lambda f: f["targets"]["mindspore-cpu"]["artifacts"][0].pop("parity"))
    assert "missing required field `parity`" in refused(folder).found


def test_an_artifact_must_be_a_listed_file(folder: Path) -> None:
    converted(folder, file="elsewhere.ms")
    assert "elsewhere.ms" in refused(folder).found
