"""`voiced model convert BUNDLE --target mindspore-cpu`: artifacts that are known to be right.

For each gear it is recorded what ONNX Runtime computes (`trace.py`). Each graph is then fixed to
the shapes that ran, converted, built, and asked the recorded questions: the converter's own report
of success says nothing. The bundle is packed anew beside itself and put in place when all is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from voiced.engine.backends.base import Backend, Session
from voiced.engine.backends.mindspore_lite.backend import CPU_TARGET
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.build.mindspore.tools import ConversionFailed, Converter, Form
from voiced.engine.build.mindspore.trace import Arrays, Traced, trace
from voiced.engine.build.pack import BundleWriter
from voiced.engine.bundle import PORTABLE_HINT, Artifact, Bundle, GearShape, Parity, Target
from voiced.engine.errors import BackendFailed, BundleError
from voiced.engine.types import Gear

DEFAULT_GEARS_S = (2, 4, 8, 16)
"""Each gear is a model of its own with its own weights: these fit beside each other in 6 GB."""

TOLERANCE = 2e-3
"""Largest allowed difference, relative to the output's largest value but at least 1. Measured with
2.0.0: 5e-6 in keys and values, 4e-7 of the largest log-probability."""

Progress = Callable[[str], None]


def choose_gears(bundle: Bundle, lengths_s: Sequence[float]) -> list[Gear]:
    """Return the bundle's gears of these lengths.

    Args:
        bundle: The bundle.
        lengths_s: In seconds; empty for the default.

    Raises:
        BundleError: The bundle has no gear of a length, or cannot be converted at all.
    """
    if bundle.is_quantised:
        raise BundleError(
            bundle.root,
            found=f"{bundle.manifest.quantisation} graphs",
            expected="graphs in fp32 or fp16",
            next_step=PORTABLE_HINT,
        )
    have = sorted({gear.frames for gear in bundle.gears})
    wanted = sorted({round(s * 100) for s in lengths_s})
    if not wanted:
        wanted = [n for n in (s * 100 for s in DEFAULT_GEARS_S) if n in have] or have[-1:]
    for frames in wanted:
        if frames not in have:
            raise BundleError(
                bundle.root,
                found=f"gears of {', '.join(f'{n / 100:g}' for n in have)} s",
                expected=f"one of {frames / 100:g} s",
                next_step="choose among them with --gears",
            )
    return [gear for gear in sorted(bundle.gears) if gear.frames in wanted]


def convert_bundle(
    bundle: Bundle,
    gears: Sequence[Gear],
    converter: Converter,
    backend: Backend,
    progress: Progress,
    *,
    threads: int = 1,
) -> Path:
    """Convert a bundle's graphs for MindSpore Lite on a CPU; a failure leaves it as it was.

    Args:
        bundle: A bundle of portable graphs.
        gears: Which of its gears.
        converter: The tool.
        backend: Runs the artifacts for the gate: MindSpore Lite.
        progress: Told each stage.
        threads: Threads of one graph call in the gate.

    Returns:
        The bundle's folder.

    Raises:
        ConversionFailed: An artifact could not be made, or computes wrongly in every form.
        BundleError: The bundle cannot be written.
    """
    needed = 2 * sum(p.stat().st_size for p in map(bundle.path, bundle.manifest.graphs))
    with BundleWriter(bundle.root, needed_bytes=needed * len(gears), on_wait=progress) as writer:
        writer.check_room()
        traced = trace(bundle, gears, OrtBackend(), progress)
        keep_files(bundle, writer, CPU_TARGET)
        log = writer.path_for(f"{CPU_TARGET}.log")
        log.touch()
        artifacts = []
        for number, each in enumerate(traced, 1):
            what = f"{each.role} {number} of {len(traced)}"
            progress(f"converting {what}: {show_axes(each.axes)}")
            artifacts.append(_convert(each, writer, converter, backend, log, threads))
            each.samples.clear()
        target = Target(
            library=converter.library,
            gears=tuple(GearShape(frames=g.frames, batch=g.batch) for g in gears),
            artifacts=tuple(artifacts),
            log=log.name,
        )
        progress(f"packing {bundle.root.name}")
        targets = {**bundle.manifest.targets, CPU_TARGET: target}
        return writer.commit(msgspec.structs.replace(bundle.manifest, targets=targets))


def keep_files(bundle: Bundle, writer: BundleWriter, target: str) -> None:
    """Take over the bundle's files into the staged one, but for what an older conversion made."""
    older = bundle.manifest.targets.get(target)
    stale = {older.log, *(a.file for a in older.artifacts)} if older else set()
    for name in set(bundle.manifest.files) - stale:
        share(bundle.root / name, writer.path_for(name))


def share(source: Path, target: Path) -> None:
    """Put a file in a second place, without a copy where that can be; one that is there stays."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def weight_files(model: onnx.ModelProto) -> set[str]:
    """Names of the files beside a graph that hold its large constants."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _convert(
    traced: Traced,
    writer: BundleWriter,
    converter: Converter,
    backend: Backend,
    log: Path,
    threads: int,
) -> Artifact:
    """Try each form until one passes the gate."""
    name = f"{CPU_TARGET}-{traced.role}-" + "-".join(f"{a}{n}" for a, n in traced.axes.items())
    source = writer.scratch_dir() / f"{traced.role}.onnx"
    # weights in a file of their own stay there: they may be larger than a message can be
    model = onnx.load(traced.graph, load_external_data=False)
    onnx.save(fixed(model, traced), source)
    for weights in weight_files(model):
        share(traced.graph.with_name(weights), source.with_name(weights))
    problems = []
    for form in forms(model):
        artifact = None
        try:
            _note(log, f"== {name} {form.options}")
            artifact = converter.convert(source, writer.path_for(name), form, log)
            session = backend.load(artifact, threads=threads)
            report = compare(session, traced.samples)
            _note(log, f"== {msgspec.json.encode(report).decode()}")
            check(report, traced)
            return Artifact(
                role=traced.role,
                axes=traced.axes,
                file=artifact.name,
                options=form.options,
                parity=report,
            )
        except (ConversionFailed, BackendFailed) as error:
            _note(log, f"== refused: {error}")
            problems.append(f"{form.save_type} optimize={form.optimize}: {error}")
            if artifact is not None:
                artifact.unlink()
    raise ConversionFailed(f"{name}: no form of it passed:\n  " + "\n  ".join(problems))


def forms(model: onnx.ModelProto) -> tuple[Form, ...]:
    """What to try, best first.

    A `.ms` takes half the memory of a `.mindir`, but wants inputs with four axes in another order.
    """
    four = any(len(v.type.tensor_type.shape.dim) == 4 for v in model.graph.input)
    lite = Form("MINDIR_LITE", "general"), Form("MINDIR_LITE", "none")
    whole = Form("MINDIR", "general"), Form("MINDIR", "none")
    return whole if four else (*lite, *whole)


def fixed(model: onnx.ModelProto, traced: Traced) -> onnx.ModelProto:
    """Return the graph with every input and output at the shapes that ran."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inputs, outputs = traced.samples[0]
    shapes = {name: array.shape for name, array in (*inputs.items(), *outputs.items())}
    for value in (*result.graph.input, *result.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.dim_value = size
    return result


def compare(session: Session, samples: Sequence[tuple[Arrays, Arrays]]) -> Parity:
    """Ask the recorded questions and measure how far the answers are off."""
    inputs, outputs = ({name: a.copy() for name, a in side.items()} for side in samples[0])
    call = session.bind(inputs, outputs)
    worst: dict[str, float] = {}
    equal: dict[str, bool] = {}
    for question, answer in samples:
        for name, array in question.items():
            inputs[name][...] = array
        call.run()
        for name, expected in answer.items():
            found = outputs[name]
            if np.issubdtype(expected.dtype, np.floating):
                difference = np.abs(found.astype(np.float64) - expected)
                # NaN compares as false with everything: make it the worst there is
                off = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
                worst[name] = max(worst.get(name, 0.0), off)
            else:
                equal[name] = equal.get(name, True) and bool(np.array_equal(found, expected))
    return Parity(samples=len(samples), max_abs_diff=worst, ids_equal=equal)


def check(report: Parity, traced: Traced) -> None:
    """Refuse an artifact that computes wrongly.

    Raises:
        ConversionFailed: It does; names the output that is worst.
    """
    if not all(report.ids_equal.values()):
        wrong = ", ".join(name for name, is_equal in report.ids_equal.items() if not is_equal)
        raise ConversionFailed(f"{traced.role} gives other ids than ONNX Runtime: {wrong}")
    for name, off in report.max_abs_diff.items():
        scale = max(float(np.abs(a[name]).max(initial=1.0)) for _, a in traced.samples)
        if not off <= TOLERANCE * scale:
            raise ConversionFailed(
                f"{traced.role} is not what ONNX Runtime computes: {name} is off by {off:.3g}, "
                f"expected at most {TOLERANCE * scale:.3g}"
            )


def show_axes(axes: dict[str, int]) -> str:
    """As progress and messages show them."""
    return " ".join(f"{axis}={size}" for axis, size in axes.items())


def _note(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text + "\n")
