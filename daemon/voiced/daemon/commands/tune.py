"""`voiced tune`: settings for this machine, and the number of live streams that it serves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from voiced.bench import load_report
from voiced.bench import tune as tuning
from voiced.bench.dialogue import SPEECH_SHARE, dialogues
from voiced.bench.drawing import Curve, Point, bars, svg
from voiced.bench.knee import KneeSearch
from voiced.bench.load import LoadPlan
from voiced.bench.load_report import LoadResult
from voiced.bench.machine import Machine, describe
from voiced.bench.report import Report, Table, publish
from voiced.bench.tune import Advice, GearFit, Knob, Probe
from voiced.daemon.commands.bench import _say
from voiced.daemon.commands.child import cpu_s
from voiced.daemon.commands.engines import DEFAULT_MODEL
from voiced.daemon.commands.live import Served, Speech, run_once, run_settings, speech
from voiced.daemon.config import KEYS, load, show, value_of
from voiced.daemon.errors import DaemonError
from voiced.daemon.settings import Settings, VadSettings
from voiced.engine.types import FAKE_MODEL

PROBE_STREAMS = 8


class TuneFailed(DaemonError):
    """Not even one stream is served within the target."""

    code = "tune"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long everything takes."""

    probe_s: float
    """Length of each stream that a candidate setting is given."""
    repeats: int
    run_s: float
    """Length of a live run."""
    confirm_s: float
    most_runs: int


QUICK = Effort(probe_s=20, repeats=1, run_s=25, confirm_s=45, most_runs=4)
THOROUGH = Effort(probe_s=40, repeats=3, run_s=60, confirm_s=180, most_runs=7)


@dataclass(slots=True)
class Found:
    """What was learned."""

    probes: list[Probe] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Beyond those given."""
    points: list[Point] = field(default_factory=list)
    runs: list[LoadResult] = field(default_factory=list)
    knee: int = 0
    is_confirmed: bool = False
    proof: LoadResult | None = None
    """The run that confirmed the knee, else the last one that was served."""
    gears: GearFit | None = None


def tune(
    *,
    served: Served,
    target_ms: float = 1000.0,
    most: int = 64,
    quick: bool = False,
    settings: bool = True,
    partials: bool = True,
    seed: int = 0,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    per_language: int = 24,
    language: str | None = None,
    out: Path | None = None,
    drawing: Path | None = None,
    json_path: Path | None = None,
) -> int:
    """Measure, draw, and write a configuration; return 0.

    Raises:
        TuneFailed: One stream is too much already.
        BenchError, EngineError, AudioError, DaemonError, OSError: Nothing can be measured.
    """
    machine, began_s = describe(), time.monotonic()
    effort = QUICK if quick else THOROUGH
    said = speech(
        served,
        clips,
        sets=sets,
        per_language=per_language,
        language=language,
        check=clips is not None,
    )
    if clips is None:
        mixed = tuning.synthetic_mix(said.spoken)
        said = Speech(mixed, None, f"made-up lengths, {said.source}")
    found = Found(gears=_gears(served, said))
    cores = len(os.sched_getaffinity(0))
    base = _probe(served, said, {}, effort, seed)
    found.probes.append(base)
    if settings:
        for knob in tuning.knobs(cores, KEYS, quick=quick):
            base = _turn(served, said, knob, base, found, effort, seed)
        found.settings = dict(base.settings)
    _find_knee(served, said, found, base, effort, target_ms, most, partials=partials, seed=seed)
    if found.proof is None:
        publish(
            Report("tune", {}, _tables(found, target_ms), found, machine, "voiced tune"),
            json_path=json_path,
        )
        raise TuneFailed(
            f"one stream is not served within {target_ms:.0f} ms: {found.points[-1].note}; "
            "try a smaller model, a larger --target-ms, or a machine with less other work"
        )

    kind = "finals and partials" if partials else "finals only"
    model = served.model or served.settings().get("engine.model", DEFAULT_MODEL)
    curve = Curve(
        f"Delay of finals with live streams, {cores} cores",
        f"{model}, {kind} · {machine.cpu} · runs of {effort.run_s:.0f} s, "
        f"{100 * SPEECH_SHARE:.0f} % speech · commit {machine.commit or 'unknown'}",
        found.points,
        target_ms,
        found.knee,
    )
    if drawing is not None:
        drawing.write_text(svg(curve), encoding="utf-8")
    advice = _advice(served, found, target_ms)
    heading = _heading(machine, found, said, kind, target_ms, time.monotonic() - began_s)
    text = tuning.config_text(heading, advice)
    if drawing is not None:
        _say(f"written: {drawing}")
    if out is not None:
        out.write_text(text, encoding="utf-8")
        load(file=out, environment={})  # what we recommend must be what the daemon takes
    shown = {
        **run_settings(served, said, seconds=effort.run_s, partials=partials, seed=seed),
        "target_ms": target_ms,
        "quick": quick,
    }
    report = Report(
        "tune",
        shown,
        _tables(found, target_ms),
        {"found": found, "curve": curve, "advice": advice, "config": text},
        machine,
        "voiced tune",
    )
    publish(report, json_path=json_path)
    print("\n" + "\n".join(bars(curve)) + "\n")
    print(text if out is None else f"written: {out}; use it with `voiced run --config {out}`")
    return 0


# ---- settings ----------------------------------------------------------------------------------


def _probe(
    served: Served, said: Speech, settings: Mapping[str, Any], effort: Effort, seed: int
) -> Probe:
    shown = ", ".join(f"{key} {show(value)}" for key, value in settings.items()) or "as given"
    runs: list[Probe] = []
    with served.target(settings) as target:
        for repeat in range(effort.repeats):

            def make(number: int = repeat) -> list[Any]:
                return dialogues(
                    said.spoken, PROBE_STREAMS, seconds=effort.probe_s, seed=seed + number
                )

            runs.append(
                tuning.run_probe(target.url, make, settings, lambda: cpu_s(list(target.pids())))
            )
    probe = tuning.median_probe(runs)
    _say(
        f"{shown}: {probe.speed:.1f} s of speech per second, "
        f"{probe.cpu_per_s:.3f} CPU s per s of speech"
    )
    return probe


def _turn(
    served: Served,
    said: Speech,
    knob: Knob,
    base: Probe,
    found: Found,
    effort: Effort,
    seed: int,
) -> Probe:
    """Try the values of one setting on top of what is best so far."""
    now = base.settings.get(knob.key, _now(served, knob.key))
    tried = [
        _probe(served, said, {**base.settings, knob.key: value}, effort, seed)
        for value in knob.values
        if value != now
    ]
    found.probes += tried
    return tuning.better(tried, base)


def _now(served: Served, key: str) -> Any:
    return served.settings().get(key, value_of(Settings(), key))


# ---- streams -----------------------------------------------------------------------------------


def _find_knee(
    served: Served,
    said: Speech,
    found: Found,
    base: Probe,
    effort: Effort,
    target_ms: float,
    most: int,
    *,
    partials: bool,
    seed: int,
) -> None:
    guess = tuning.first_guess(base.speed, share=SPEECH_SHARE, most=most)
    search = KneeSearch(guess=guess, most=most, most_runs=effort.most_runs)
    plan = LoadPlan(
        streams=guess,
        seconds=effort.run_s,
        partials=partials,
        hang_over_ms=served.hang_over_ms(),
        seed=seed,
    )

    def run(streams: int, seconds: float, note: str) -> bool:
        # The daemon must take as many as are tried.
        extra = {**found.settings, "server.max_streams": max(most, streams)}
        now = replace(plan, streams=streams, seconds=seconds)
        result = run_once(served, said, now, extra=extra, title=f"{streams} streams")
        why = result.serves(target_ms)
        found.runs.append(result)
        found.points.append(
            Point(
                streams,
                result.beyond_ms.p50,
                result.beyond_ms.p95,
                result.beyond_ms.p99,
                why is None,
                why or note,
            )
        )
        _say(
            f"{streams} streams: p99 {result.beyond_ms.p99:.0f} ms of {result.utterances}, "
            f"{'served' if why is None else why}"
        )
        if why is None:
            found.proof = result
        return why is None

    while (streams := search.wanted()) is not None:
        search.tell(streams, is_served=run(streams, effort.run_s, ""))
    while (streams := search.to_confirm()) is not None:
        search.confirm(is_served=run(streams, effort.confirm_s, "confirmation"))
    found.knee, found.is_confirmed = search.knee, search.is_confirmed
    if not found.knee:
        found.proof = None


# ---- what comes of it --------------------------------------------------------------------------


def _gears(served: Served, said: Speech) -> GearFit | None:
    from voiced.engine import store
    from voiced.engine.bundle import Bundle

    name = served.model or served.settings().get("engine.model", DEFAULT_MODEL)
    if name == FAKE_MODEL:
        return None
    bundle = Bundle.open(store.resolve(name), verify="size")
    frames = tuning.segment_frames(said.spoken, VadSettings().pad_ms)
    return tuning.fit_gears(frames, [gear.frames for gear in bundle.gears])


def _advice(served: Served, found: Found, target_ms: float) -> list[Advice]:
    advice = [
        Advice(
            "server.max_streams",
            found.knee,
            f"largest number of live streams with p99 within {target_ms:.0f} ms"
            + ("" if found.is_confirmed else "; not confirmed by a second run"),
        )
    ]
    first = found.probes[0]
    last = next((p for p in found.probes if p.settings == found.settings), first)
    given = {
        name: value
        for name, value in served.settings().items()
        if name != "server.max_streams" and name not in found.settings
    }
    advice += [Advice(name, value, "as given") for name, value in given.items()]
    if served.model is not None and "engine.model" not in given:
        advice.append(Advice("engine.model", served.model, "as given"))
    advice += [
        Advice(
            name,
            value,
            f"was {show(_now(served, name))}: {first.speed:.1f} → {last.speed:.1f} s of speech "
            "per second when saturated, all changes together",
        )
        for name, value in found.settings.items()
    ]
    return advice


def _heading(
    machine: Machine, found: Found, said: Speech, kind: str, target_ms: float, took_s: float
) -> list[str]:
    proof = found.proof
    lines = [
        f"Written by `voiced tune` at {datetime.now(UTC).isoformat(timespec='seconds')}, "
        f"{took_s / 60:.0f} min.",
        *machine.lines(),
        f"Speech: {said.source}.",
        f"Served: p99 of final beyond the hang-over at most {target_ms:.0f} ms, {kind}.",
    ]
    lines += [
        f"  {p.streams:>3} streams: p50 {p.p50_ms:.0f}, p95 {p.p95_ms:.0f}, p99 {p.p99_ms:.0f} ms"
        + ("" if p.is_served else "  NOT SERVED")
        + (f" ({p.note})" if p.note else "")
        for p in sorted(found.points, key=lambda p: p.streams)
    ]
    if proof is not None:
        lines.append(
            f"At {proof.streams} streams: {proof.cpu_cores:.2f} cores, "
            f"{proof.peak_rss_mb:.0f} MB, "
            f"{proof.misheard} of {proof.utterances} utterances misheard."
        )
    if found.gears is not None:
        lines.append(
            f"Gears: {found.gears.gears} in the bundle, {100 * found.gears.waste:.1f} % padding."
        )
    return lines


def _tables(found: Found, target_ms: float) -> list[Table]:
    rows = tuple(
        (
            ", ".join(f"{k} {show(v)}" for k, v in p.settings.items()) or "as given",
            f"{p.speed:.2f}",
            f"{p.cpu_per_s:.3f}",
            f"{p.p50_ms:.0f}",
            str(p.segments),
        )
        for p in found.probes
    )
    made = [
        Table(
            "settings, saturated",
            ("settings", "speech s/s", "CPU s per s", "latency p50 ms", "finals"),
            rows,
            (f"{PROBE_STREAMS} streams sent as fast as they are taken; the fastest is kept",),
        )
    ]
    if found.gears is not None:
        best = ", ".join(f"{frames / 100:g}" for frames in found.gears.best)
        made.append(
            Table(
                "gears",
                ("gears", "number", "padding, %"),
                (
                    ("bundle", str(found.gears.gears), f"{100 * found.gears.waste:.1f}"),
                    (
                        f"best for this mix: {best} s",
                        str(len(found.gears.best)),
                        f"{100 * found.gears.best_waste:.1f}",
                    ),
                ),
                ("a bundle's gears are chosen when it is built",),
            )
        )
    made += load_report.tables(found.runs)[:4]
    word = "confirmed" if found.is_confirmed else "not confirmed"
    made.append(
        Table(
            "knee",
            ("streams", "p99 target ms", "state"),
            ((str(found.knee), f"{target_ms:.0f}", word),),
        )
    )
    return made
