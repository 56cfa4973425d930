"""What a machine finds out about its own backend: numbers, memory, copies, time.

Written for the owner of an Ascend card, who runs it once and sends the report: everything that
could not be decided without a card is a check here. It runs anywhere; a check that needs a card
says so and is never counted as passed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from voiced.bench.report import Table, plain_table
from voiced.bench.subjects import load_model
from voiced.engine import golden
from voiced.engine.backends.base import Backend, Traffic
from voiced.engine.backends.onnxruntime import OrtBackend
from voiced.engine.bundle import Bundle
from voiced.engine.errors import BackendFailed, BundleError, EngineError
from voiced.engine.types import Gear

NO_CARD = "no Ascend device"

REPEAT_TOLERANCE = 1e-6
"""A gear that is visited again must give the same numbers; relative."""
GROWTH_LIMIT = 0.05
"""Largest growth of memory over the run, as a part of it."""
STEP_LIMIT_BYTES = 4096
"""Largest traffic of one decoder step and utterance, either way, where caches stay on the device.
A step of the resident graphs needs about 300."""
SAMPLES_PER_FRAME = 160
NPU_SMI_TIMEOUT_S = 20.0


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    MEASURED = "measured"
    """Figures without a limit to hold them to."""
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Check:
    """One section of the report."""

    name: str
    status: Status
    text: str
    """Why it failed or was not run, else what was found."""
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be tested, and how long."""

    bundle: Bundle
    open_backend: Callable[[], Backend]
    device: str
    """`cpu`, `ascend:<n>` or `fake:<n>`."""
    variants: Mapping[str, Callable[[], tuple[Bundle, Backend]]] = field(default_factory=dict)
    """Other ways to run the same model, for the comparison; opened one after the other."""
    beam: int = 5
    rounds: int = 3
    repeats: int = 5
    utterances: int = 1000
    longest_s: float = 16.0
    threads: int = 1

    @property
    def has_card(self) -> bool:
        """Runs on a real card."""
        return self.device.startswith("ascend")


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one gear answered to its sound, and at what cost."""

    keys: npt.NDArray[np.float32]
    """Every 8th value of the first layer's cross-attention keys."""
    scores: npt.NDArray[np.float32]
    """Log-probabilities of the first token's candidates."""
    first: tuple[int, ...]
    """Those candidates, best first."""
    tokens: tuple[int, ...]
    score: float
    steps: int
    prefill_ms: float
    decode_ms: float
    prefill_bytes: Traffic
    decode_bytes: Traffic

    @property
    def total_ms(self) -> float:
        """Prefill and decoding."""
        return self.prefill_ms + self.decode_ms


class Subject:
    """A loaded model and one sound per gear."""

    def __init__(self, plan: Plan, bundle: Bundle, backend: Backend) -> None:
        self.backend = backend
        self.model = load_model(bundle, backend, threads=plan.threads, beam=plan.beam)
        self._beam = plan.beam
        longest = round(plan.longest_s * 100)
        gears = sorted(g for g in self.model.gears if g.batch == 1)
        self.gears = [g for g in gears if g.frames <= longest] or gears[:1]
        pair = bundle.manifest.golden
        if pair is None:
            raise BundleError(bundle.root, found="no golden pair", expected="one in the manifest")
        with np.load(bundle.file(pair.input)) as question:
            sound: npt.NDArray[np.int16] = question["pcm"]
        self._sounds = {g: np.resize(sound, g.frames * SAMPLES_PER_FRAME) for g in self.gears}

    def ask(self, gear: Gear, *, beam: int | None = None) -> Answer:
        """Recognise the gear's sound."""
        model, pcm = self.model, self._sounds[gear]
        features = model.features(pcm, gear)
        with model.lend(gear) as loan:
            before, begun = model.traffic, time.perf_counter()
            loan.prefill([features])
            prefilled, prefill_ms = model.traffic, _ms_since(begun)
            begun = time.perf_counter()
            best = model.decode(loan, pcm, features, beam or self._beam)
            decoded, decode_ms = model.traffic, _ms_since(begun)
            scores, first = model.first_tokens(loan)
            keys, _ = loan.sample()
        return Answer(
            keys=keys[::8].copy(),
            scores=scores,
            first=tuple(int(t) for t in first),
            tokens=best.tokens,
            score=best.score,
            steps=best.steps,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            prefill_bytes=prefilled - before,
            decode_bytes=decoded - prefilled,
        )


def run(plan: Plan, say: Callable[[str], None]) -> list[Check]:
    """Run every check; one that raises is a failed check, not the end.

    Args:
        plan: What to test.
        say: Told what is under way.
    """
    checks: list[Check] = []

    def step(name: str, check: Callable[[], Check]) -> None:
        say(name)
        try:
            checks.append(check())
        except EngineError as error:
            checks.append(Check(name, Status.FAILED, str(error)))

    backend: Backend | None = None
    try:
        backend = plan.open_backend()
        plan = replace(plan, bundle=_narrowed(plan.bundle, backend))
        _run(plan, Subject(plan, plan.bundle, backend), step)
    except EngineError as error:
        checks.append(Check("load", Status.FAILED, str(error)))
    finally:
        _close(backend)
    return checks


def _run(plan: Plan, subject: Subject, step: Callable[[str, Callable[[], Check]], None]) -> None:
    backend = subject.backend
    step("backend", lambda: describe_backend(plan, backend))
    step("golden pair", lambda: golden_pair(plan, backend))
    step("warming", lambda: warming(subject))
    step("gears in turn", lambda: gears_in_turn(plan, subject))
    reference: dict[Gear, Answer] = {}
    step("against ONNX Runtime", lambda: against_reference(plan, subject, reference))
    step("fp16 drift", lambda: drift(plan, subject, reference))
    step("host and device", lambda: traffic(plan, subject))
    step("host memory", lambda: host_memory(plan, subject))
    step("device memory", lambda: device_memory(plan, subject))
    step("latency", lambda: latency(plan, subject))
    step("optimisations", lambda: optimisations(plan, subject))


def describe_backend(plan: Plan, backend: Backend) -> Check:
    """Which library answers, and what it was found to offer."""
    features: Mapping[str, bool] = getattr(backend, "features", {})
    rows = tuple((name, "yes" if there else "no") for name, there in features.items())
    tables = (Table("Found features", ("feature", "there"), rows),) if rows else ()
    version = str(getattr(backend, "version", "unknown"))
    text = f"{backend.name} {version} on {plan.device}"
    if plan.device.startswith("fake"):
        text += "; ONNX Runtime computes here: nothing below is known of a card"
    figures = {"backend": backend.name, "version": version, "features": dict(features)}
    return Check("backend", Status.MEASURED, text, tables, figures)


def golden_pair(plan: Plan, backend: Backend) -> Check:
    """The bundle's own question."""
    return Check("golden pair", Status.PASSED, golden.check(plan.bundle, backend))


def warming(subject: Subject) -> Check:
    """Visit each gear once, so that everything after it is measured warm."""
    begun = time.perf_counter()
    for gear in subject.gears:
        subject.ask(gear)
    text = f"{len(subject.gears)} gears in {time.perf_counter() - begun:.1f} s"
    return Check("warming", Status.MEASURED, text)


def gears_in_turn(plan: Plan, subject: Subject) -> Check:
    """Short and long gears alternate; each must give its first numbers again."""
    order = _alternate(subject.gears)
    first: dict[Gear, Answer] = {}
    worst = 0.0
    for number in range(plan.rounds * len(order)):
        gear = order[number % len(order)]
        found = subject.ask(gear)
        before = first.setdefault(gear, found)
        if found.tokens != before.tokens or found.first != before.first:
            text = f"gear {gear.frames}: other tokens at visit {number // len(order) + 1}"
            return Check("gears in turn", Status.FAILED, text)
        differences = _relative(found.keys, before.keys), _relative(found.scores, before.scores)
        worst = max(worst, *differences)
    status = Status.PASSED if worst <= REPEAT_TOLERANCE else Status.FAILED
    text = f"{len(order)} gears, {plan.rounds} rounds, largest relative difference {worst:.1e}"
    return Check("gears in turn", status, text, figures={"worst": worst})


def against_reference(plan: Plan, subject: Subject, reference: dict[Gear, Answer]) -> Check:
    """The same bundle's graphs on ONNX Runtime, on this machine's CPU; kept in `reference`."""
    name = "against ONNX Runtime"
    if subject.backend.name == "onnxruntime":
        return Check(name, Status.NOT_RUN, "the backend is ONNX Runtime")
    other = Subject(plan, plan.bundle, OrtBackend())
    rows = []
    worst, wrong = 0.0, 0
    for gear in subject.gears:
        ours, theirs = subject.ask(gear), other.ask(gear)
        reference[gear] = theirs
        keys, scores = _relative(ours.keys, theirs.keys), _relative(ours.scores, theirs.scores)
        same = ours.tokens == theirs.tokens
        worst, wrong = max(worst, keys, scores), wrong + (not same)
        rows.append((f"{gear.frames / 100:g} s", f"{keys:.1e}", f"{scores:.1e}", _yes(same)))
    table = Table(
        "Relative difference to ONNX Runtime",
        ("gear", "cross keys", "log-probabilities", "same tokens"),
        tuple(rows),
    )
    fits = worst <= golden.TOLERANCE and not wrong
    text = f"largest {worst:.1e}, {wrong} of {len(rows)} texts differ"
    figures = {"worst": worst, "different": wrong}
    return Check(name, Status.PASSED if fits else Status.FAILED, text, (table,), figures)


def drift(plan: Plan, subject: Subject, reference: Mapping[Gear, Answer]) -> Check:
    """How far the card's arithmetic moves the numbers that decide."""
    if not plan.has_card:
        return Check("fp16 drift", Status.NOT_RUN, NO_CARD)
    rows = []
    worst = 0.0
    for gear, theirs in reference.items():
        ours = subject.ask(gear)
        absolute = float(np.abs(ours.scores - theirs.scores).max())
        ranks = ours.first == theirs.first
        worst = max(worst, absolute)
        rows.append(
            (f"{gear.frames / 100:g} s", f"{absolute:.4f}", f"{ours.score - theirs.score:+.4f}",
             _yes(ranks))
        )  # fmt: skip
    table = Table(
        "Drift of log-probabilities",
        ("gear", "first token, largest", "whole text, mean", "same order"),
        tuple(rows),
    )
    return Check("fp16 drift", Status.MEASURED, f"largest {worst:.4f}", (table,), {"worst": worst})


def traffic(plan: Plan, subject: Subject) -> Check:
    """What crosses per utterance and per step."""
    name = "host and device"
    resident = subject.model.is_resident
    rows = []
    problems = []
    for gear in subject.gears:
        found = subject.ask(gear)
        calls = found.steps + 1
        up, down = (
            n / calls for n in (found.decode_bytes.to_device, found.decode_bytes.from_device)
        )
        features = subject.model.prefill_bytes(gear)
        rows.append(
            (f"{gear.frames / 100:g} s", str(found.prefill_bytes.to_device),
             str(found.prefill_bytes.from_device), str(found.steps), f"{up:.0f}", f"{down:.0f}")
        )  # fmt: skip
        if max(up, down) > STEP_LIMIT_BYTES:
            problems.append(f"gear {gear.frames}: a step moves {max(up, down):.0f} bytes")
        if (found.prefill_bytes.to_device, found.prefill_bytes.from_device) != (features, 0):
            problems.append(f"gear {gear.frames}: prefill moves more than its features")
    table = Table(
        "Bytes between host and device",
        ("gear", "prefill up", "down", "steps", "up per step", "down per step"),
        tuple(rows),
        ("the prompt's calls are spread over the steps",),
    )
    if not resident:
        text = "this bundle keeps its caches on the host"
        return Check(name, Status.NOT_RUN, text, (table,))
    text = problems[0] if problems else f"features, and at most {STEP_LIMIT_BYTES} bytes per step"
    return Check(name, Status.FAILED if problems else Status.PASSED, text, (table,))


def host_memory(plan: Plan, subject: Subject) -> Check:
    """Memory of the process that runs the library, over many utterances."""
    read: Callable[[], int] = _resident_bytes
    of_server = getattr(subject.backend, "resident_bytes", None)
    if of_server is not None:

        def read() -> int:
            return int(of_server()[0])

    return _growth("host memory", plan, subject, read)


def device_memory(plan: Plan, subject: Subject) -> Check:
    """Memory of the card, over many utterances."""
    if not plan.has_card:
        return Check("device memory", Status.NOT_RUN, NO_CARD)
    number = int(plan.device.partition(":")[2] or 0)
    if shutil.which("npu-smi") is None:
        return Check("device memory", Status.NOT_RUN, "no npu-smi on PATH: install the driver")
    return _growth("device memory", plan, subject, lambda: card_memory(number))


def _growth(name: str, plan: Plan, subject: Subject, read: Callable[[], int]) -> Check:
    order = _alternate(subject.gears)
    warm = max(len(order), plan.utterances // 10)
    start = 0
    for number in range(plan.utterances):
        if number == warm:
            start = read()
        subject.ask(order[number % len(order)], beam=1)
    if plan.utterances <= warm:
        return Check(name, Status.NOT_RUN, f"needs more than {warm} utterances")
    end = read()
    growth = (end - start) / start if start else float(end > 0)
    text = f"{start / 1e6:.1f} to {end / 1e6:.1f} MB over {plan.utterances - warm} utterances"
    status = Status.PASSED if growth <= GROWTH_LIMIT else Status.FAILED
    figures = {"start": start, "end": end, "growth": growth, "utterances": plan.utterances}
    return Check(name, status, text, figures=figures)


def latency(plan: Plan, subject: Subject) -> Check:
    """Time per gear, warm."""
    if plan.device.startswith("fake"):
        return Check("latency", Status.NOT_RUN, "the stand-in's times say nothing")
    times = measure(subject, plan.repeats)
    rows = tuple(
        (f"{g.frames / 100:g} s", f"{t.prefill_ms:.1f}", f"{t.step_ms:.2f}", f"{t.total_ms:.1f}")
        for g, t in times.items()
    )
    columns = ("gear", "prefill ms", "step ms", "utterance ms")
    table = Table(f"Median of {plan.repeats}, beam {plan.beam}", columns, rows)
    figures = {str(g.frames): t for g, t in times.items()}
    return Check("latency", Status.MEASURED, f"{len(rows)} gears", (table,), figures)


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of one gear."""

    prefill_ms: float
    step_ms: float
    total_ms: float


def measure(subject: Subject, repeats: int) -> dict[Gear, Times]:
    """Time every gear, warm."""
    found: dict[Gear, Times] = {}
    for gear in subject.gears:
        subject.ask(gear)
        answers = [subject.ask(gear) for _ in range(repeats)]
        found[gear] = Times(
            statistics.median(a.prefill_ms for a in answers),
            statistics.median(a.decode_ms / (a.steps + 1) for a in answers),
            statistics.median(a.total_ms for a in answers),
        )
    return found


def optimisations(plan: Plan, subject: Subject) -> Check:
    """Each optimisation against the plain conversion: the article says up to 55 % less."""
    name = "optimisations"
    if not plan.has_card:
        return Check(name, Status.NOT_RUN, NO_CARD)
    if not plan.variants:
        return Check(name, Status.NOT_RUN, "nothing to compare with: give --compare NAME=BUNDLE")
    results = {"as configured": measure(subject, plan.repeats)}
    failed = []
    for variant, opened in plan.variants.items():
        try:
            bundle, backend = opened()
            try:
                other = Subject(plan, _narrowed(bundle, backend), backend)
                results[variant] = measure(other, plan.repeats)
            finally:
                _close(backend)
        except EngineError as error:
            failed.append(f"{variant}: {error}")
    base = next(iter(results.values()))
    rows = []
    for gear in subject.gears:
        cells = [f"{gear.frames / 100:g} s"]
        for times in results.values():
            if gear in times:
                change = times[gear].total_ms / base[gear].total_ms - 1
                cells.append(f"{times[gear].total_ms:.1f} ms ({100 * change:+.0f} %)")
            else:
                cells.append("no such gear")
        rows.append(tuple(cells))
    table = Table("Latency of an utterance", ("gear", *results), tuple(rows), tuple(failed))
    status = Status.FAILED if failed else Status.MEASURED
    figures = {k: {str(g.frames): t for g, t in v.items()} for k, v in results.items()}
    return Check(name, status, f"{len(results)} ways to run it", (table,), figures)


def card_memory(number: int) -> int:
    """Bytes in use on a card, as npu-smi tells. Its output was never seen here: read with care.

    Raises:
        BackendFailed: The tool failed, or said nothing that can be read.
    """
    command = ["npu-smi", "info", "-t", "usages", "-i", str(number)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=NPU_SMI_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendFailed(f"{' '.join(command)} failed: {error}") from error
    return parse_usages(done.stdout)


def parse_usages(text: str) -> int:
    """Read lines `<memory> Capacity(MB) : n` and `<memory> Usage Rate(%) : n`; HBM before DDR.

    Raises:
        BackendFailed: They are not there.
    """
    values: dict[str, float] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        try:
            values[key.strip().lower()] = float(value)
        except ValueError:
            continue
    for memory in ("hbm", "ddr"):
        capacity = values.get(f"{memory} capacity(mb)")
        rate = values.get(f"{memory} usage rate(%)")
        if capacity is not None and rate is not None:
            return round(capacity * rate / 100 * 1024**2)
    raise BackendFailed("npu-smi names no capacity and usage rate of HBM or DDR")


def markdown(plan: Plan, checks: Sequence[Check], lines: Sequence[str]) -> str:
    """The report for people, to attach to an issue.

    Args:
        plan: What was tested.
        checks: What was found.
        lines: The machine, as `Machine.lines` gives it.
    """
    rows = "\n".join(f"| {c.name} | {c.status} | {c.text} |" for c in checks)
    tables = (
        f"## {check.name}\n\n```\n{plain_table(table)}\n```"
        for check in checks
        for table in check.tables
    )
    title = f"# voiced selftest: {plan.bundle.id} on {plan.device}"
    head = f"| check | status | found |\n| --- | --- | --- |\n{rows}"
    return "\n\n".join((title, "\n".join(f"- {line}" for line in lines), head, *tables)) + "\n"


def summary(checks: Sequence[Check]) -> Table:
    """One row per check."""
    return Table(
        "Checks",
        ("check", "status", "found"),
        tuple((check.name, check.status.value, check.text) for check in checks),
    )


def _close(backend: Backend | None) -> None:
    """End what the backend started: a graph server, or its hold on a card."""
    close = getattr(backend, "close", None)
    if close is not None:
        close()


def _narrowed(bundle: Bundle, backend: Backend) -> Bundle:
    """The bundle with the gears that the backend has artifacts for."""
    return bundle if backend.target is None else bundle.narrowed(backend.target)


def _alternate(gears: Sequence[Gear]) -> list[Gear]:
    """Shortest, longest, second shortest, …: neighbours differ as much as they can."""
    ordered = sorted(gears)
    return [ordered[i // 2] if i % 2 == 0 else ordered[-1 - i // 2] for i in range(len(ordered))]


def _relative(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    scale = float(np.abs(b).max(initial=1e-9))
    difference = np.abs(a.astype(np.float64) - b)
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)) / scale


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
