"""`voiced plan`: what a model will cost on a chip, and which gears to convert it with."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar

from voiced.bench.report import Report, Table, publish
from voiced.engine.plan import (
    CHIPS,
    MODELS,
    Chip,
    Estimate,
    GearChoice,
    Load,
    ModelCost,
    PlanError,
    batch_for_streams,
    batches_up_to,
    choose_gears,
    estimate,
    largest_batch,
)

METRIC = "voiced_segment_seconds"
"""Histogram of segment lengths that a running daemon shows on /metrics."""
SHOWN_BATCHES = (1, 4, 16, 64, 256)
FETCH_TIMEOUT_S = 10.0
T = TypeVar("T")
_BUCKET = re.compile(rf'{METRIC}_bucket{{.*?le="([^"]+)".*?}}\s+(\S+)')


def plan(
    *,
    chip: str,
    model: str,
    streams: int,
    utterance_s: float,
    beam: int,
    tokens: int | None = None,
    cells: int = 64,
    update: str = "blend",
    histogram: str | None = None,
    gears: int = 4,
    json_path: Path | None = None,
) -> int:
    """Print the plan; return 0, or 1 when the chip cannot serve that many streams.

    Args:
        chip: One of `CHIPS`.
        model: One of `MODELS`.
        streams: Streams that speak at the same time, without a pause.
        utterance_s: Length of an utterance.
        beam: Hypotheses.
        tokens: Steps per utterance; None takes 5 a second.
        cells: Length of the decoder's cache.
        update: `append` or `blend`, see `voiced.engine.plan.Load`.
        histogram: File, or address of a daemon's /metrics, with lengths of utterances.
        gears: Most lengths to choose for the histogram.
        json_path: Where to write all figures.

    Raises:
        PlanError: Nothing can be planned from this.
    """
    device, cost = _named(chip, CHIPS, "chip"), _named(model, MODELS, "model")
    tokens = max(1, round(5 * utterance_s)) if tokens is None else tokens
    load = Load(utterance_s=utterance_s, beam=beam, tokens=tokens, cells=cells, update=update)
    frames = cost.frames(utterance_s)
    most = largest_batch(cost, device, load, frames)
    chosen, capacity = batch_for_streams(cost, device, load, streams)
    batches = sorted({*(b for b in SHOWN_BATCHES if b <= max(most, 1)), *([most] if most else [])})
    estimates = [estimate(cost, device, load, batch) for batch in batches]
    tables = [_cost_table(estimates, chosen.batch if chosen else None), _memory_table(estimates)]
    tables.append(_verdict(streams, utterance_s, chosen, capacity, most, frames))
    choice = None
    if histogram is not None:
        lengths: dict[int, float] = {}
        for seconds, often in read_histogram(histogram).items():
            lengths[cost.frames(seconds)] = lengths.get(cost.frames(seconds), 0.0) + often
        choice = choose_gears(lengths, gears)
        tables.append(_gear_table(cost, device, load, choice, lengths, gears))
    result = {
        "model": cost, "chip": device, "load": load, "estimates": estimates, "chosen": chosen,
        "streams": capacity, "largest_batch": most, "largest_frames": most * frames,
        "gears": choice,
    }  # fmt: skip
    settings = {"model": model, "chip": f"{chip} ({device.text})", "beam": beam, "tokens": tokens,
                "cells": cells, "cache": update}  # fmt: skip
    report = Report("plan", settings, tables, result, command="voiced plan")
    publish(report, json_path=json_path)
    return 0 if chosen is not None else 1


def read_histogram(source: str) -> dict[float, float]:
    """Read lengths in seconds and how often each occurs.

    Three forms, in a file or behind an http address: JSON {"1.5": 10, …}; lines `seconds count`
    (a comma or blanks between, a lone number counts once); or a daemon's /metrics, where the upper
    end of each bucket stands for all in it.

    Raises:
        PlanError: It cannot be read, or is none of these.
    """
    try:
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source, timeout=FETCH_TIMEOUT_S) as answer:
                text = answer.read().decode("utf-8", errors="replace")
        else:
            text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"histogram {source} cannot be read: {error}") from error
    try:
        found = _parse(text)
    except (ValueError, AttributeError, TypeError) as error:
        raise PlanError(
            f"histogram {source}: found {error}, expected JSON, lines `seconds count` or /metrics"
        ) from error
    if not any(found.values()):
        raise PlanError(f"histogram {source}: found no utterance in it")
    return found


def _parse(text: str) -> dict[float, float]:
    if text.lstrip().startswith("{"):
        return {float(length): float(often) for length, often in json.loads(text).items()}
    if "# TYPE" in text:
        return _from_metrics(text)
    found: dict[float, float] = {}
    for line in text.splitlines():
        cells = line.split("#")[0].replace(",", " ").split()
        if not cells:
            continue
        length, often = float(cells[0]), float(cells[1]) if len(cells) > 1 else 1.0
        found[length] = found.get(length, 0.0) + often
    return found


def _from_metrics(text: str) -> dict[float, float]:
    totals = sorted((float(le), float(count)) for le, count in _BUCKET.findall(text))
    if not totals:
        raise ValueError(f"no histogram {METRIC}")
    found: dict[float, float] = {}
    before = last = 0.0
    for end, total in totals:
        last = end if end < inf else last
        found[last] = found.get(last, 0.0) + total - before
        before = total
    return {length: often for length, often in found.items() if often and length > 0}


def _named(name: str, known: dict[str, T], what: str) -> T:
    if name not in known:
        raise PlanError(f"no {what} {name!r}; expected {', '.join(known)}")
    return known[name]


def _cost_table(estimates: Sequence[Estimate], chosen: int | None) -> Table:
    rows = tuple(
        (
            f"{e.batch}{' *' if e.batch == chosen else ''}",
            f"{e.prefill_flops / 1e9:.0f}",
            f"{1000 * e.prefill_s:.1f}",
            f"{e.step_bytes / 1e9:.2f}",
            f"{e.step_flops / 1e9:.1f}",
            f"{1000 * e.step_s:.2f}",
            e.bound,
            f"{1000 * e.total_s:.0f}",
            f"{e.rtf:.2g}",
            f"{100 * e.expected_share:.0f} %",
        )
        for e in estimates
    )
    return Table(
        f"Roofline, {estimates[0].frames} encoder frames",
        (
            "batch", "prefill GFLOP", "ms", "step GB", "GFLOP", "ms", "bound by", "total ms",
            "RTF", "expected share",
        ),
        rows,
        (
            "at 100 % of the chip's peak figures; no card was measured",
            "expected share: what is left of it after starting every operator, an estimate",
        ),
    )  # fmt: skip


def _memory_table(estimates: Sequence[Estimate]) -> Table:
    rows = tuple(
        (
            str(e.batch),
            *(
                f"{part / 1e9:.2f}"
                for part in (
                    e.memory.weights,
                    e.memory.cross,
                    e.memory.self_cache,
                    e.memory.scores,
                    e.memory.total,
                )
            ),
            "yes" if e.fits else "no",
        )
        for e in estimates
    )
    columns = ("batch", "weights", "cross K/V", "self K/V, two sets", "scores", "total", "fits")
    return Table("Memory, GB", columns, rows)


def _verdict(
    streams: int,
    utterance_s: float,
    chosen: Estimate | None,
    capacity: float,
    most: int,
    frames: int,
) -> Table:
    if chosen is None:
        answer = "no batch that fits keeps up" if most else "the model does not fit"
    else:
        expected_ms = 1000 * chosen.total_s / chosen.expected_share
        answer = f"batch {chosen.batch}, {expected_ms:.0f} ms expected for each"
    rows = (
        (f"{streams} streams of {utterance_s:g} s", answer),
        ("streams at that batch" if chosen else "streams at the best batch", f"{capacity:.0f}"),
        ("largest batch that fits", f"{most} ({most * frames} encoder frames)"),
    )
    note = "cap a batch by the sum of its encoder frames, not by its count"
    return Table("Streams", ("question", "answer"), rows, (note,))


def _gear_table(
    model: ModelCost,
    chip: Chip,
    load: Load,
    choice: GearChoice,
    lengths: Mapping[int, float],
    asked: int,
) -> Table:
    rows = []
    below = 0
    for gear in choice.frames:
        inside = {n: often for n, often in lengths.items() if below < n <= gear}
        count = sum(inside.values())
        padding = 1 - sum(n * often for n, often in inside.items()) / (gear * count)
        most = largest_batch(model, chip, load, gear)
        batches = batches_up_to(most, len(choice.frames))
        rows.append(
            (
                f"{gear / model.frames_per_s:g} s",
                str(gear),
                f"{100 * count / sum(lengths.values()):.0f} %",
                f"{100 * padding:.1f} %",
                str(most),
                " ".join(map(str, batches)) or "none fits",
            )
        )
        below = gear
    others = ", ".join(
        f"{k}: {100 * choose_gears(lengths, k).waste:.1f} %" for k in range(1, 9) if k != asked
    )
    return Table(
        f"Gears for the histogram, {100 * choice.waste:.1f} % of the encoded frames are padding",
        ("length", "frames", "utterances", "padding", "largest batch", "batches"),
        tuple(rows),
        (f"padding with another number of gears: {others}",),
    )
