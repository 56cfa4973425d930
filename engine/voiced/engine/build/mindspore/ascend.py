"""Artifacts for an Ascend card: one per graph with all its gears, asked the recorded questions.

What `ascend_config` must know is read off the graph itself, so that nobody has to say it twice.
Only the stand-in (`fake_api.py`) has been through this; no card has.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from voiced.engine.backends.base import Backend
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.mindspore.ascend_config import (
    OPTIMIZE,
    AscendGraph,
    AscendOptions,
    Conversion,
    Shape,
    conversions,
    dynamic_dims,
)
from voiced.engine.build.mindspore.convert import compare, keep_files
from voiced.engine.build.mindspore.tools import ConversionFailed
from voiced.engine.build.mindspore.trace import Traced, trace
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import Artifact, Bundle, GearShape, Parity, Target
from voiced.engine.errors import BackendUnavailable
from voiced.engine.types import Gear

_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
_SMALL = 16
"""Values of a constant that may be a mask; tables and weights are larger."""


def describe(
    path: Path, axes: Sequence[Mapping[str, int]], *, relative_bias: bool = False
) -> AscendGraph:
    """Describe the graph in an ONNX file.

    Args:
        path: The file; its weights may lie beside it.
        axes: Per gear the size of every symbolic axis of the inputs; equal shapes count once.
        relative_bias: Its attention adds a relative position term. Not to be seen from outside.

    Raises:
        ValueError: An axis of an input has no name, or a gear leaves it open.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    gears: list[tuple[Shape, ...]] = []
    for sizes in axes:
        gear = tuple(_shape(value, sizes) for value in graph.input)
        if gear not in gears:
            gears.append(gear)
    weights: dict[str, int] = {}
    lowest = 0.0
    for tensor in graph.initializer:
        kind = _FLOATS.get(tensor.data_type)
        count = prod(tensor.dims)
        if kind is None:
            continue
        weights[kind] = weights.get(kind, 0) + count * (4 if kind == "fp32" else 2)
        if count <= _SMALL and tensor.data_location != TensorProto.EXTERNAL:
            # a mask is a constant, or a 0/1 tensor times one: the sign does not tell
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            lowest = min(lowest, -largest)
    return AscendGraph(
        name=path.stem,
        inputs=tuple(value.name for value in graph.input),
        gears=tuple(gears),
        body="fp16" if "fp16" in weights else "fp32",  # any of it makes the rules of fp16 hold
        fp32_tail=any(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in graph.output),
        lowest_constant=lowest,
        relative_bias=relative_bias,
        weight_bytes=sum(weights.values()),
    )


def _shape(value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> Shape:
    shape = []
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_value:
            shape.append(int(dim.dim_value))
        elif dim.dim_param in sizes:
            shape.append(sizes[dim.dim_param])
        else:
            raise ValueError(
                f"input {value.name!r} has the open axis {dim.dim_param!r}; expected one of "
                f"{', '.join(sizes) or 'none'}"
            )
    return tuple(shape)


TARGET = "mindspore-ascend"

TOLERANCES = {"fp32": 2e-3, "fp16": 5e-2}
"""Body of a graph → largest allowed difference, relative to the output's largest value but at
least 1. Loose in fp16: what a card does to it is not measured yet."""

Progress = Callable[[str], None]
Runner = Callable[[Conversion, Path, Path, Path, Path], None]
"""Runs one conversion: (what, its configuration, ONNX file, output without suffix, log)."""


@dataclass(frozen=True, slots=True)
class Work:
    """One graph of a bundle, and what it is to become."""

    role: str
    ran: list[Traced]
    """What ran of it, one entry per set of shapes."""
    graph: AscendGraph
    options: AscendOptions

    @property
    def source(self) -> Path:
        """The ONNX file."""
        return self.ran[0].graph

    def runs(self, output: str) -> tuple[Conversion, ...]:
        """The converter's runs for it; `output` has no suffix."""
        return conversions(
            self.graph, self.options, model_file=str(self.source), output_file=output
        )


def convert_ascend(
    bundle: Bundle,
    gears: Sequence[Gear],
    options: Callable[[AscendGraph], AscendOptions],
    runner: Runner,
    backend: Backend,
    progress: Progress,
    *,
    library: str,
) -> Path:
    """Convert a bundle's graphs for a card; a failure leaves the bundle as it was.

    One artifact per graph holds all gears. Each gear of each artifact is asked on the card what
    ONNX Runtime was asked, before the bundle takes it in.

    Args:
        bundle: A bundle of portable graphs, best in fp16.
        gears: Which of its gears.
        options: What each graph is to become; every graph's are checked before the first run.
        runner: Runs the converter.
        backend: Runs the artifacts: on the card that they are for.
        progress: Told each stage.
        library: Name and version of the converter, for the manifest.

    Returns:
        The bundle's folder.

    Raises:
        ConversionRefused: Options and graph do not go together; nothing was started.
        ConversionFailed: An artifact was not made, or computes wrongly.
        BundleError: The bundle cannot be written.
    """
    work = plan_work(bundle, gears, options, progress)
    with BundleWriter(bundle.root, on_wait=progress) as writer:
        keep_files(bundle, writer, TARGET)
        log = writer.path_for(f"{TARGET}.log")
        log.touch()
        artifacts = [_convert(each, writer, runner, backend, log, progress) for each in work]
        target = Target(
            library=library,
            gears=tuple(GearShape(frames=g.frames, batch=g.batch) for g in gears),
            artifacts=tuple(artifacts),
            log=log.name,
        )
        progress(f"packing {bundle.root.name}")
        targets = {**bundle.manifest.targets, TARGET: target}
        return writer.commit(msgspec.structs.replace(bundle.manifest, targets=targets))


def plan_work(
    bundle: Bundle,
    gears: Sequence[Gear],
    options: Callable[[AscendGraph], AscendOptions],
    progress: Progress,
) -> list[Work]:
    """Find out what each graph of the bundle needs; nothing is converted.

    Raises:
        ConversionRefused: Options and graph do not go together.
    """
    traced = trace(bundle, gears, OrtBackend(), progress)
    work = []
    for role in dict.fromkeys(each.role for each in traced):
        ran = [each for each in traced if each.role == role]
        relative = bundle.manifest.family == "fireredasr" and role == "prefill"
        axes = [each.axes for each in ran]
        graph = describe(ran[0].graph, axes, relative_bias=relative)
        each = Work(role, ran, graph, options(graph))
        each.runs("")  # refused before anything is started
        work.append(each)
    return work


def write_configs(work: Sequence[Work], folder: Path) -> list[str]:
    """Write the converter's configurations; returns its command lines, in order."""
    commands = []
    for each in work:
        for number, run in enumerate(each.runs(str(folder / f"{TARGET}-{each.role}")), 1):
            config = folder / f"{each.role}-{number}.cfg"
            config.write_text(run.config_text, encoding="utf-8")
            commands.append(shlex.join(run.command(str(config))))
    return commands


def _convert(
    work: Work,
    writer: BundleWriter,
    runner: Runner,
    backend: Backend,
    log: Path,
    progress: Progress,
) -> Artifact:
    role, ran, graph, options = work.role, work.ran, work.graph, work.options
    source = work.source
    output = writer.path_for(f"{TARGET}-{role}")
    runs = work.runs(str(output))
    for number, run in enumerate(runs, 1):
        progress(f"{role}: {run.purpose} ({number} of {len(runs)}, {len(graph.gears)} gears)")
        config = writer.scratch_dir() / f"{role}-{number}.cfg"
        config.write_text(run.config_text, encoding="utf-8")
        with log.open("a", encoding="utf-8") as file:
            file.write(f"== {role}: {run.purpose}\n{run.config_text}")
        runner(run, config, source, output, log)
    artifact = output.with_name(f"{output.name}.mindir")
    if not artifact.is_file():
        raise ConversionFailed(f"the converter made no {artifact.name}, see {log.name}")
    progress(f"{role}: asking each gear of the artifact what ONNX Runtime was asked")
    session = backend.load(artifact, threads=1)
    total = Parity(samples=0, max_abs_diff={}, ids_equal={})
    for each in ran:
        report = compare(session, each.samples)
        _gate(report, each, graph.body)
        total = _join(total, report)
        each.samples.clear()
    return Artifact(
        role=role,
        axes={},  # all of the target's gears
        file=artifact.name,
        options={
            "chip": options.chip.value,
            "optimize": OPTIMIZE[options.chip],
            "precision_mode": options.precision.value,
            "plugin_custom_ops": ",".join(options.fused) or "None",
            "aoe": options.aoe.value,
            "provider": options.provider.value or "acl",
            "body": graph.body,
            "dynamic_dims": dynamic_dims(graph) if graph.is_dynamic else "",
        },
        parity=total,
    )


def _gate(report: Parity, traced: Traced, body: str) -> None:
    """Refuse what computes wrongly. Ids must be equal in fp32; fp16 may turn a near tie around."""
    wrong = [name for name, is_equal in report.ids_equal.items() if not is_equal]
    if wrong and body == "fp32":
        raise ConversionFailed(f"{traced.role} gives other ids than ONNX Runtime: {wrong[0]}")
    for name, off in report.max_abs_diff.items():
        scale = max(float(np.abs(a[name]).max(initial=1.0)) for _, a in traced.samples)
        if not off <= TOLERANCES[body] * scale:
            raise ConversionFailed(
                f"{traced.role} at {traced.axes} is not what ONNX Runtime computes: {name} is off "
                f"by {off:.3g}, expected at most {TOLERANCES[body] * scale:.3g}"
            )


def _join(a: Parity, b: Parity) -> Parity:
    return Parity(
        samples=a.samples + b.samples,
        max_abs_diff={n: max(a.max_abs_diff.get(n, 0.0), d) for n, d in b.max_abs_diff.items()},
        ids_equal={n: a.ids_equal.get(n, True) and same for n, same in b.ids_equal.items()},
    )


def run_tool(run: Conversion, config: Path, source: Path, output: Path, log: Path) -> None:
    """Run `converter_lite` of PATH.

    Raises:
        BackendUnavailable: There is none.
        ConversionFailed: It failed.
    """
    if shutil.which(run.arguments[0]) is None:
        raise BackendUnavailable(
            f"found no {run.arguments[0]} on PATH; unpack the vendor's MindSpore Lite package and "
            "source CANN's set_env.sh, see docs/ascend.md"
        )
    with log.open("ab") as file:
        done = subprocess.run(
            run.command(str(config)), stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise ConversionFailed(
            f"converter_lite ended with status {done.returncode} on {source.name}, see the log: "
            f"{log.read_text(errors='replace').strip().splitlines()[-1:]}"
        )


def library_runner(library: Any) -> Runner:
    """A runner through the Python API of `mindspore_lite`, or of its stand-in."""

    def run(run: Conversion, config: Path, source: Path, output: Path, log: Path) -> None:
        flags = dict(flag[2:].split("=", 1) for flag in run.arguments[1:])
        converter = library.Converter()
        converter.optimize = flags["optimize"]
        converter.save_type = library.ModelType.MINDIR
        if "inputShape" in flags:
            parts = (part.rpartition(":") for part in flags["inputShape"].split(";"))
            converter.input_shape = {n: [int(s) for s in shape.split(",")] for n, _, shape in parts}
        try:
            converter.convert(
                fmk_type=library.FmkType.ONNX,
                model_file=str(source),
                output_file=str(output),
                config_file=str(config),
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConversionFailed(f"the converter refused {source.name}: {error}") from error

    return run
