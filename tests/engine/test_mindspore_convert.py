"""Converting a bundle: what is chosen, what is refused, and that a failure changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.mindspore import convert, trace
from voiced.engine.build.mindspore.convert import choose_gears, convert_bundle, forms
from voiced.engine.build.mindspore.tools import ConversionFailed, Form
from voiced.engine.build.mindspore.trace import FIRST, LAST, Traced, axes_of
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Bundle, GearShape, Manifest
from voiced.engine.errors import BackendFailed, BundleError
from voiced.engine.types import Gear

TARGET = "mindspore-cpu"


def doubling(axes: Sequence[int | str] = ("N", "C")) -> onnx.ModelProto:
    """y = x + x, and the place of the largest."""
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ArgMax", ["x"], ["wide"], axis=len(axes) - 1, keepdims=1),
        helper.make_node("Cast", ["wide"], ["ids"], to=i32),
    ]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info("x", f32, list(axes))],
        [
            helper.make_tensor_value_info("y", f32, list(axes)),
            helper.make_tensor_value_info("ids", i32, [*axes[:-1], 1]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    with BundleWriter(tmp_path / "tiny") as writer:
        onnx.save(doubling(), writer.path_for("step.onnx"))
        writer.add("golden.npz", b"")
        manifest = Manifest(
            name="tiny",
            family="whisper",
            graphs={"step": "step.onnx"},
            gears=tuple(GearShape(frames=n) for n in (200, 400, 600, 800)),
        )
        return Bundle.open(writer.commit(manifest))


def traced(bundle: Bundle, shape: tuple[int, int] = (1, 4)) -> Traced:
    """One recorded call of the bundle's graph."""
    path = bundle.path("step")
    found = Traced("step", path, axes_of(path, {"x": shape}), Gear(200))
    x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    found.keep({"x": x}, {"y": 2 * x, "ids": x.argmax(-1, keepdims=True).astype(np.int32)})
    return found


class CopyingConverter:
    """Stands for the converter: the artifact is the ONNX file itself."""

    library = "copier 1"

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.fails = fails
        self.asked: list[Form] = []

    def convert(self, source: Path, output: Path, form: Form, log: Path) -> Path:
        self.asked.append(form)
        if form.optimize in self.fails:
            raise ConversionFailed(f"no {form.optimize}")
        model = onnx.load(source)
        dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert all(dims), "the graph must come with all its axes fixed"
        artifact = output.with_name(output.name + ".ms")
        artifact.write_bytes(source.read_bytes())
        return artifact


class OnnxArtifacts:
    """Stands for the runtime: runs such artifacts, with an error of its own if asked for."""

    name, target, compiles_shapes = "mindspore_lite", TARGET, True

    def __init__(self, *, off: float = 0.0, id_off: int = 0, refuses: bool = False) -> None:
        self.off, self.id_off, self.refuses = off, id_off, refuses

    def load(self, path: Path, *, threads: int) -> Any:
        if self.refuses:
            raise BackendFailed("cannot build it")
        session = OrtBackend().load(path, threads=threads)
        bind = session.bind

        def wrapped(inputs: Any, outputs: Any) -> Any:
            call = bind(inputs, outputs)

            class Wrong:
                def run(_) -> None:
                    call.run()
                    outputs["y"] += self.off
                    outputs["ids"] += self.id_off

            return Wrong()

        session.bind = wrapped  # type: ignore[method-assign]
        return session


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, converter: Any, runtime: Any) -> list[str]:
    monkeypatch.setattr(convert, "trace", lambda *_: [traced(bundle)])
    said: list[str] = []
    convert_bundle(bundle, [Gear(200)], converter, runtime, said.append)
    return said


def test_the_artifact_comes_into_the_bundle_with_its_report(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle.root)
    said = run(bundle, monkeypatch, CopyingConverter(), OnnxArtifacts())
    assert said == ["converting step 1 of 1: N=1 C=4", "packing tiny"]
    again = Bundle.open(bundle.root)
    made = again.target(TARGET)
    assert made.library == "copier 1"
    assert made.gears == (GearShape(frames=200),)
    (artifact,) = made.artifacts
    assert artifact.options == {"save_type": "MINDIR_LITE", "optimize": "general"}
    assert artifact.parity.max_abs_diff == {"y": 0.0}
    assert artifact.parity.ids_equal == {"ids": True}
    assert again.artifact(TARGET, "step", {"N": 1, "C": 4, "S": 9}).is_file()
    assert "MINDIR_LITE" in again.file(made.log).read_text()
    assert again.narrowed(TARGET).gears == (Gear(200),)
    assert again.id != bundle.id
    after = contents(bundle.root)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }


def test_converting_again_replaces_what_was_made_before(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, monkeypatch, CopyingConverter(), OnnxArtifacts())
    first = Bundle.open(bundle.root)
    monkeypatch.setattr(convert, "trace", lambda *_: [traced(first, (1, 8))])
    convert_bundle(first, [Gear(400)], CopyingConverter(), OnnxArtifacts(), lambda _: None)
    second = Bundle.open(bundle.root)
    assert [a.axes for a in second.target(TARGET).artifacts] == [{"N": 1, "C": 8}]
    assert first.target(TARGET).artifacts[0].file not in second.manifest.files


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (OnnxArtifacts(off=0.5), "y is off by 0.5, expected at most 0.012"),
        (OnnxArtifacts(off=float("nan")), "y is off by inf"),
        (OnnxArtifacts(id_off=1), "gives other ids than ONNX Runtime: ids"),
        (OnnxArtifacts(refuses=True), "cannot build it"),
    ],
    ids=["numbers", "nan", "ids", "build"],
)
def test_a_wrong_artifact_is_refused_and_the_bundle_stays_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, runtime: OnnxArtifacts, message: str
) -> None:
    before = contents(bundle.root)
    converter = CopyingConverter()
    with pytest.raises(ConversionFailed) as caught:
        run(bundle, monkeypatch, converter, runtime)
    assert message in str(caught.value)
    assert len(converter.asked) == len(forms(doubling()))  # every form was tried
    assert contents(bundle.root) == before
    assert {p.name for p in bundle.root.parent.iterdir()} <= {"tiny", ".tiny.lock"}


def test_where_the_best_form_fails_the_next_is_taken(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle, monkeypatch, CopyingConverter(fails=["general"]), OnnxArtifacts())
    made = Bundle.open(bundle.root).target(TARGET)
    assert made.artifacts[0].options["optimize"] == "none"
    assert "refused: no general" in (bundle.root / made.log).read_text()


def test_an_interrupted_conversion_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(CopyingConverter):
        def convert(self, source: Path, output: Path, form: Form, log: Path) -> Path:
            super().convert(source, output, form, log)
            raise KeyboardInterrupt

    before = contents(bundle.root)
    with pytest.raises(KeyboardInterrupt):
        run(bundle, monkeypatch, Interrupted(), OnnxArtifacts())
    assert contents(bundle.root) == before
    assert {p.name for p in bundle.root.parent.iterdir()} <= {"tiny", ".tiny.lock"}


def test_gears_are_the_bundles_own(bundle: Bundle) -> None:
    assert choose_gears(bundle, []) == [Gear(200), Gear(400), Gear(800)]  # the default ones
    assert choose_gears(bundle, [6, 2.0]) == [Gear(200), Gear(600)]
    with pytest.raises(BundleError, match=r"gears of 2, 4, 6, 8 s, expected one of 5 s"):
        choose_gears(bundle, [5])


def test_inputs_with_four_axes_rule_the_small_form_out() -> None:
    assert forms(doubling())[0] == Form("MINDIR_LITE", "general")
    assert {form.save_type for form in forms(doubling(["N", 2, "C", 4]))} == {"MINDIR"}


def test_a_bundle_without_a_golden_input_cannot_be_converted(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no golden pair"):
        trace.trace(bundle, [Gear(200)], OrtBackend(), lambda _: None)


def test_recorded_calls_are_the_first_and_the_last_ones() -> None:
    found = Traced("step", Path("step.onnx"), {}, Gear(200))
    for number in range(40):
        found.keep({"n": np.array([number])}, {})
    numbers = [int(inputs["n"][0]) for inputs, _ in found.samples]
    assert numbers == [*range(FIRST), *range(40 - LAST, 40)]


def test_axes_are_read_off_the_shapes(tmp_path: Path) -> None:
    onnx.save(doubling(["N", 3, "C"]), tmp_path / "a.onnx")
    assert axes_of(tmp_path / "a.onnx", {"x": (2, 3, 64)}) == {"N": 2, "C": 64}


def test_a_quantised_bundle_is_refused_before_anything_starts(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, quantisation="int8")
    quantised = Bundle(bundle.root, manifest, "")
    with pytest.raises(BundleError, match=r"found int8 graphs.*model build whisper-base-fp32"):
        choose_gears(quantised, [2])
    with pytest.raises(BundleError, match="int8 graphs cannot be converted"):
        quantised.target(TARGET)
