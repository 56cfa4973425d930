"""`voiced selftest`: what this machine's backend computes, copies, keeps and takes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from voiced.bench import selftest as bench
from voiced.bench.machine import describe
from voiced.bench.report import Report, publish, write_json
from voiced.daemon.commands.engines import engine_config
from voiced.engine.backends.base import Backend
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BackendUnavailable, BundleError
from voiced.engine.recognizer import load_backend

MINDSPORE = "mindspore_lite"
DEVICE_OPTION = "mindspore_lite.device"
FAKE_MODEL, MODEL = "whisper-base-fp32", "whisper-base"
FAKE_GEARS = 3
"""Gears of the rehearsal; each is recorded with ONNX Runtime first, which takes its time."""


def selftest(
    *,
    model: str | None = None,
    backend: str = MINDSPORE,
    device: str = "cpu",
    beam: int = 5,
    rounds: int = 3,
    repeats: int = 5,
    utterances: int = 1000,
    longest_s: float = 16.0,
    threads: int = 1,
    compare: Sequence[str] = (),
    out: Path | None = None,
) -> int:
    """Run the checks, print them, write `<out>.json` and `<out>.md`; return 1 if one failed.

    Args:
        model: Bundle name or folder.
        backend: `mindspore_lite` or `onnxruntime`.
        device: `cpu`, `ascend:<n>`, or `fake:0` for the stand-in of a card.
        beam: Hypotheses.
        rounds: How often all gears are visited in turn.
        repeats: Runs of each gear when timing.
        utterances: Utterances of the memory checks.
        longest_s: Gears beyond this are left out.
        threads: Threads of one graph call.
        compare: `NAME=BUNDLE`, the same model converted in other ways.
        out: Path without suffix; default `voiced-selftest-<time>` here.

    Raises:
        BackendUnavailable, BundleError: Nothing can be tested.
        OSError: The report cannot be written.
    """
    out = out or Path(f"voiced-selftest-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    name = model or (FAKE_MODEL if backend == MINDSPORE else MODEL)
    machine = describe()
    with _prepared(name, backend, device, longest_s) as (bundle, opened):
        plan = bench.Plan(
            bundle=bundle,
            open_backend=opened,
            device=device if backend == MINDSPORE else "cpu",
            beam=beam,
            rounds=rounds,
            repeats=repeats,
            utterances=utterances,
            longest_s=longest_s,
            threads=threads,
        )
        if plan.has_card:
            plan = replace(plan, variants=_variants(bundle, device, compare))
        checks = bench.run(plan, _say)
        text = bench.markdown(plan, checks, machine.lines())
    settings = {
        "bundle": bundle.id, "backend": backend, "device": device, "beam": beam,
        "rounds": rounds, "utterances": utterances, "threads": threads,
    }  # fmt: skip
    report = Report(
        "selftest", settings, [bench.summary(checks)], checks, machine, command="voiced selftest"
    )
    publish(report)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    write_json(report, out.with_suffix(".json"))
    _say(f"written: {out}.md, {out}.json")
    return 1 if any(check.status is bench.Status.FAILED for check in checks) else 0


@contextmanager
def _prepared(
    name: str, backend: str, device: str, longest_s: float
) -> Iterator[tuple[Bundle, Callable[[], Backend]]]:
    """Open the bundle, and say how its backend is opened."""
    config = engine_config(name, backend, options={DEVICE_OPTION: device})
    bundle = Bundle.open(Path(config.bundle_dir), verify="size")
    if backend != MINDSPORE or not device.startswith("fake"):
        yield bundle, lambda: load_backend(config)
        return
    from voiced.engine.backends.mindspore_lite import fake_api
    from voiced.engine.backends.mindspore_lite.ascend import AscendBackend

    with tempfile.TemporaryDirectory(prefix="voiced-selftest-") as folder:
        yield (
            rehearse(bundle, Path(folder) / bundle.manifest.name, longest_s, _say),
            lambda: AscendBackend("ascend:0", fake_api),
        )


def rehearse(bundle: Bundle, target: Path, longest_s: float, say: Callable[[str], None]) -> Bundle:
    """Convert a copy of the bundle with the stand-in for the library, for as many as `FAKE_GEARS`.

    Raises:
        BundleError: The bundle keeps its caches on the host.
    """
    from voiced.engine.backends.mindspore_lite import fake_api
    from voiced.engine.backends.mindspore_lite.ascend import AscendBackend
    from voiced.engine.build.mindspore.ascend import convert_ascend, library_runner
    from voiced.engine.build.mindspore.ascend_config import VARIANTS, Chip, variant_options

    if not bundle.manifest.model.get("resident"):
        raise BundleError(
            bundle.root,
            found="graphs that take and give their caches as host arrays",
            expected="portable graphs",
            next_step=f"choose --model {FAKE_MODEL}: `voiced model build {FAKE_MODEL}`",
        )
    target.mkdir()
    for path in bundle.root.iterdir():
        (target / path.name).symlink_to(path)
    copy = Bundle.open(target, verify="size")
    gears = [g for g in sorted(copy.gears) if g.batch == 1 and g.frames <= longest_s * 100]
    convert_ascend(
        copy,
        gears[:FAKE_GEARS] or sorted(copy.gears)[:1],
        lambda graph: variant_options(graph, Chip.ASCEND_910B, VARIANTS[0]),
        library_runner(fake_api),
        AscendBackend("ascend:0", fake_api),
        say,
        library=f"stand-in {fake_api.__version__}",
    )
    return Bundle.open(target, verify="size")


def _variants(
    bundle: Bundle, device: str, compare: Sequence[str]
) -> dict[str, Callable[[], tuple[Bundle, Backend]]]:
    """What to compare with: the same bundle without device buffers, and the named ones."""
    from voiced.engine.backends.mindspore_lite.ascend import AscendBackend

    def opened(other: Bundle, *, buffers: bool) -> Callable[[], tuple[Bundle, Backend]]:
        return lambda: (other, AscendBackend(device, device_buffers=buffers))

    found = {"without device buffers": opened(bundle, buffers=False)}
    for each in compare:
        name, equals, source = each.partition("=")
        if not equals or not name:
            raise BackendUnavailable(f"--compare is {each!r}, expected NAME=BUNDLE")
        folder = Path(engine_config(source).bundle_dir)
        found[name] = opened(Bundle.open(folder, verify="size"), buffers=True)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
