"""What a run with live streams comes to: figures, verdicts, tables. Pure."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from voiced.bench.figures import (
    Drift,
    Spread,
    delay_drift,
    memory_drift,
    spread,
)
from voiced.bench.hearing import Fate, Outcome
from voiced.bench.ledger import Violations
from voiced.bench.report import Table
from voiced.bench.sampling import Samples

MOST_KEPT = 2_000
"""Utterances kept whole for the JSON file; of all others only the figures stay."""
MOST_BAD = 50
"""Lost and failed utterances that are always kept whole, the first ones."""
MISHEARD_ALLOWED = 0.02
"""Part of the utterances that may be misheard where streams count as served: where a clip is cut
decides about single words of it, with load or without. One is always allowed."""
_LATE_VALUES = 200_000
"""Newest block delays kept; the client's memory must not grow."""


class Tally:
    """Collects outcomes; about 50 bytes stay of each."""

    def __init__(self) -> None:
        self._columns: dict[str, array[float]] = {
            name: array("d")
            for name in (
                "spoken_s",
                "final_ms",
                "ended_ms",
                "after_ended_ms",
                "first_partial_ms",
                "eager_ms",
                "on_screen_ms",
            )
        }
        self.fates: Counter[Fate] = Counter()
        self.cut: int = 0
        """Utterances that the server cut into several segments."""
        self.kept: list[Outcome] = []
        self.bad: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Take one outcome."""
        self.fates[outcome.fate] += 1
        self.cut += outcome.segments > 1
        if outcome.fate in (Fate.MISHEARD, Fate.FAILED) and len(self.bad) < MOST_BAD:
            self.bad.append(outcome)
        if len(self.kept) < MOST_KEPT:
            self.kept.append(outcome)
        is_timed = outcome.fate not in (Fate.MISHEARD, Fate.FAILED)
        for name, column in self._columns.items():
            value = getattr(outcome, name)
            column.append(math.nan if value is None or not is_timed else value)

    def column(self, name: str) -> list[float | None]:
        """One figure of all utterances; None where an utterance has none."""
        return [None if math.isnan(value) else value for value in self._columns[name]]

    def points(self, name: str) -> list[tuple[float, float]]:
        """When each utterance was spoken, and a figure of it, where it has one."""
        pairs = zip(self._columns["spoken_s"], self._columns[name], strict=True)
        return [(at_s, value) for at_s, value in pairs if not math.isnan(value + at_s)]


@dataclass(slots=True)
class Pace:
    """How well the client itself kept time."""

    late_ms: array[float] = field(default_factory=lambda: array("d"))
    """Block by block, how late this process woke up for it."""
    behind_ms: float = 0.0
    """Most that any block was sent late, whoever was the cause; a server that does not read in
    time makes a client late too."""
    _next: int = 0

    def woke(self, late_ms: float) -> None:
        """Note a block for which the client had been waiting."""
        if len(self.late_ms) < _LATE_VALUES:
            self.late_ms.append(late_ms)
        else:
            self.late_ms[self._next] = late_ms
            self._next = (self._next + 1) % _LATE_VALUES

    def sent(self, late_ms: float) -> None:
        """Note a block that is out."""
        self.behind_ms = max(self.behind_ms, late_ms)


@dataclass(slots=True)
class Books:
    """The client's ledger over all streams."""

    announced: int = 0
    finals: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    partials: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Streams that were not taken, by code."""
    ended_early: Counter[str] = field(default_factory=Counter)
    """Streams that the server ended, by code."""
    lost_audio_ms: int = 0
    compared: int | None = None
    """Messages that came on the bus and on the WebSocket alike; None: no bus was read."""
    bus_lost: int = 0
    """Jumps of `seq` on the bus."""
    bus_restarts: int = 0
    violations: Violations = field(default_factory=Violations)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run."""

    streams: int
    seconds: float
    partials: bool
    hang_over_ms: float
    utterances: int
    fates: Mapping[str, int]
    cut: int
    beyond_ms: Spread
    """End of speech, plus the hang-over → final."""
    final_ms: Spread
    """End of speech → final."""
    wait_ms: Spread
    """End of speech → `speech_ended`."""
    after_ended_ms: Spread
    """`speech_ended` → final."""
    first_partial_ms: Spread
    eager_ms: Spread
    """End of speech → the `eager_final` that held."""
    on_screen_ms: Spread
    queue_age_ms: Spread
    most_queued: float
    partials_dropped: float
    late_ms: Spread
    behind_ms: float
    books: Books
    cpu_cores: float
    cpu_by_process: Mapping[str, float]
    """Cores."""
    peak_rss_mb: float
    """All processes of the server together."""
    rss_mb: Mapping[str, float]
    """At the end, per process."""
    drifts: Sequence[Drift]
    bad: Sequence[Outcome]
    kept: Sequence[Outcome]
    load_1min: float
    """Load average of the machine at the end."""
    complaints: Sequence[str] = ()
    """The daemon's own warnings, the first ones; of one that was started for the run."""
    bad_end: str | None = None
    """Why that daemon did not end as it should."""

    @property
    def misheard(self) -> int:
        """Utterances that the same weights get right and that came out wrong or not at all."""
        return self.fates.get(Fate.MISHEARD, 0)

    @property
    def refused(self) -> int:
        """Streams that were not taken, or not kept."""
        return self.books.refused.total() + self.books.ended_early.total()

    def serves(self, target_ms: float) -> str | None:
        """Return why these streams are not served well enough; None when they are."""
        if self.refused:
            return f"{self.refused} streams refused"
        if self.books.failed:
            return f"{self.books.failed.total()} segments failed"
        if self.books.violations.count:
            return f"{self.books.violations.count} promises broken"
        if self.misheard > max(1, MISHEARD_ALLOWED * self.utterances):
            return f"{self.misheard} of {self.utterances} utterances misheard"
        if not self.beyond_ms.count:
            return "no final"
        if not self.beyond_ms.p99 <= target_ms:
            return f"p99 {self.beyond_ms.p99:.0f} ms"
        return None


def sum_up(
    *,
    streams: int,
    seconds: float,
    partials: bool,
    hang_over_ms: float,
    tally: Tally,
    books: Books,
    pace: Pace,
    samples: Samples,
    load_1min: float,
) -> LoadResult:
    """Make the figures of a run."""
    dropped = sum(
        value
        for name, value in samples.counters.items()
        if name.startswith("voiced_partials_dropped_total")
    )
    span_s = samples.span_s or seconds
    drifts = [
        delay_drift(tally.points("final_ms"), seconds, percent=p, what=f"final p{p}, ms")
        for p in (50, 99)
    ]
    drifts += [
        memory_drift([(at, mb / 1e6) for at, mb in track.points()], seconds, what=f"{name} RSS, MB")
        for name, track in samples.rss.items()
    ]
    return LoadResult(
        streams=streams,
        seconds=seconds,
        partials=partials,
        hang_over_ms=hang_over_ms,
        utterances=tally.fates.total(),
        fates={fate.value: count for fate, count in sorted(tally.fates.items())},
        cut=tally.cut,
        beyond_ms=spread(
            None if value is None else value - hang_over_ms for value in tally.column("final_ms")
        ),
        final_ms=spread(tally.column("final_ms")),
        wait_ms=spread(tally.column("ended_ms")),
        after_ended_ms=spread(tally.column("after_ended_ms")),
        first_partial_ms=spread(tally.column("first_partial_ms")),
        eager_ms=spread(tally.column("eager_ms")),
        on_screen_ms=spread(tally.column("on_screen_ms")),
        queue_age_ms=spread([1000 * value for value in samples.queue_age_s.values]),
        most_queued=max(samples.queued_finals.values, default=0.0),
        partials_dropped=dropped,
        late_ms=spread(pace.late_ms),
        behind_ms=pace.behind_ms,
        books=books,
        cpu_cores=samples.cpu_s / span_s,
        cpu_by_process={name: s / span_s for name, s in samples.by_process_cpu_s.items()},
        peak_rss_mb=(samples.peak_rss() - _own_peak(samples)) / 1e6,
        rss_mb={
            name: track.values[-1] / 1e6 for name, track in samples.rss.items() if track.values
        },
        drifts=drifts,
        bad=tally.bad,
        kept=tally.kept,
        load_1min=load_1min,
    )


def _own_peak(samples: Samples) -> float:
    return max(samples.rss["client"].values, default=0.0) if "client" in samples.rss else 0.0


# ---- tables ------------------------------------------------------------------------------------


def tables(results: Sequence[LoadResult]) -> list[Table]:
    """All tables of some runs, one row for each number of streams."""
    made = [_delays(results), _partials(results), _kept(results), _cost(results)]
    made += [_flatness(result) for result in results]
    bad = [(result, outcome) for result in results for outcome in result.bad]
    if bad:
        made.append(_bad(bad))
    return made


def _delays(results: Sequence[LoadResult]) -> Table:
    rows = tuple(
        (
            _streams(r),
            str(r.utterances),
            *_three(r.beyond_ms),
            _number(r.beyond_ms.most),
            *_three(r.after_ended_ms),
            _number(r.wait_ms.p50),
        )
        for r in results
    )
    hang_over = results[0].hang_over_ms if results else 0
    return Table(
        "delay of finals, ms",
        (
            "streams",
            "said",
            *("beyond p50", "p95", "p99", "max"),
            *("ended→final p50", "p95", "p99"),
            "wait p50",
        ),
        rows,
        (
            f"beyond: true end of speech + {hang_over:.0f} ms of hang-over → final; "
            "misheard utterances are not in it",
            "ended→final: from the server's speech_ended; wait: true end of speech → speech_ended",
            "p99 of fewer than 100 utterances is the largest one or two",
        ),
    )


def _partials(results: Sequence[LoadResult]) -> Table:
    rows = tuple(
        (
            _streams(r),
            *_three(r.first_partial_ms),
            *(_number(v) for v in (r.on_screen_ms.p50, r.on_screen_ms.p95)),
            *(_number(v) for v in (r.eager_ms.p50, r.eager_ms.p95)),
            str(r.books.partials),
            f"{r.partials_dropped:.0f}",
            *_three(r.queue_age_ms),
            f"{r.most_queued:.0f}",
        )
        for r in results
    )
    return Table(
        "partials and queue, ms",
        (
            "streams",
            *("first p50", "p95", "p99"),
            *("on screen p50", "p95"),
            *("eager p50", "p95"),
            *("partials", "dropped"),
            *("queue age p50", "p95", "p99"),
            "most queued",
        ),
        rows,
        (
            "first: true start of speech → first partial with text",
            "on screen: true end of speech → text as good as the final is shown at all; negative: "
            "before the end",
            "eager: true end of speech → the eager_final that was not taken back (--eager)",
            "queue age: oldest final waiting in the server, looked at every 2 s",
        ),
    )


def _kept(results: Sequence[LoadResult]) -> Table:
    rows = tuple(
        (
            _streams(r),
            str(r.books.announced),
            str(r.books.finals),
            _codes(r.books.failed),
            _codes(r.books.refused + r.books.ended_early),
            str(r.misheard),
            str(r.fates.get(Fate.HARD, 0)),
            str(r.cut),
            str(r.books.violations.count),
            "-" if r.books.compared is None else str(r.books.compared),
            str(r.books.bus_lost),
            f"{r.late_ms.p50:.1f}",
            f"{r.late_ms.p99:.1f}",
            f"{r.behind_ms:.0f}",
        )
        for r in results
    )
    notes = [
        "segments announced, and finals: each must have one; misheard: right offline, here missing "
        "or more than half wrong; hard: wrong offline too; cut: more than one segment",
        "broken: promises of the protocol; alike: messages equal on bus and WebSocket",
        "client: how late it woke for a block, and the most that a block was sent late, ms",
    ]
    notes += [f"broken: {text}" for r in results for text in r.books.violations.shown]
    notes += [f"daemon: {text}" for r in results for text in r.complaints]
    notes += [f"daemon: {r.bad_end}" for r in results if r.bad_end is not None]
    return Table(
        "ledger",
        (
            *("streams", "segments", "finals", "failed", "refused", "misheard", "hard", "cut"),
            *("broken", "alike", "bus lost", "client p50", "p99", "most late"),
        ),
        rows,
        tuple(notes),
    )


def _cost(results: Sequence[LoadResult]) -> Table:
    names = list(dict.fromkeys(name for r in results for name in r.cpu_by_process))
    rows = tuple(
        (
            _streams(r),
            f"{r.cpu_cores:.2f}",
            *(f"{r.cpu_by_process.get(name, math.nan):.3f}" for name in names),
            f"{r.peak_rss_mb:.0f}",
            *(_number(r.rss_mb.get(name, math.nan)) for name in names),
            f"{r.load_1min:.1f}",
        )
        for r in results
    )
    return Table(
        "cost of the server",
        (
            *("streams", "cores"),
            *(f"{name} cores" for name in names),
            "peak MB",
            *(f"{name} MB" for name in names),
            "load",
        ),
        rows,
        ("load: of the whole machine over the last minute, this client and all others counted in",),
    )


def _flatness(result: LoadResult) -> Table:
    rows = tuple(
        (
            drift.what,
            _number(drift.first),
            _number(drift.last),
            "-" if math.isnan(drift.change) else f"{100 * drift.change:+.1f} %",
            f"{100 * drift.limit:.0f} %",
            "yes" if drift.is_flat else "unknown" if math.isnan(drift.change) else "NO",
        )
        for drift in result.drifts
    )
    window_s = result.drifts[0].window_s if result.drifts else 0
    return Table(
        f"over time, {_streams(result)} streams, {result.seconds:.0f} s",
        ("what", "first", "last", "change", "limit", "flat"),
        rows,
        (f"delays: first and last {window_s:.0f} s; memory: medians behind the first tenth",),
    )


def _bad(bad: Sequence[tuple[LoadResult, Outcome]]) -> Table:
    rows = tuple(
        (f"{o.clip}", _streams(r), str(o.stream), f"{o.spoken_s:.1f}", o.fate.value, o.text[:60])
        for r, o in bad
    )
    return Table("misheard and failed", ("clip", "streams", "stream", "at s", "fate", "text"), rows)


def _streams(result: LoadResult) -> str:
    return f"{result.streams}{'' if result.partials else ' (finals)'}"


def _codes(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(counts.items())) or "0"


def _three(values: Spread) -> tuple[str, str, str]:
    return _number(values.p50), _number(values.p95), _number(values.p99)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


# ---- a soak ------------------------------------------------------------------------------------


def soak_faults(result: LoadResult) -> list[str]:
    """Return what is wrong after a long run, in words; empty: nothing."""
    books = result.books
    counts = (
        (books.violations.count, "promises broken"),
        (books.failed.total(), "segments failed"),
        (result.refused, "streams refused or ended early"),
        (books.bus_lost, "messages lost on the bus"),
        (books.bus_restarts, "restarts of the daemon"),
        (books.announced - books.finals - books.failed.total(), "segments without a last word"),
    )
    faults = [f"{count} {what}" for count, what in counts if count]
    if result.bad_end is not None:
        faults.append(result.bad_end.partition("\n")[0])
    if result.misheard > max(1, MISHEARD_ALLOWED * result.utterances):
        faults.append(f"{result.misheard} of {result.utterances} utterances misheard")
    faults += [
        f"{drift.what} not flat: {drift.first:.0f} to {drift.last:.0f} "
        f"({100 * drift.change:+.1f} %)"
        for drift in result.drifts
        if not drift.is_flat and not math.isnan(drift.change)
    ]
    return faults


def verdict_table(faults: Sequence[str]) -> Table:
    """The verdict of a soak."""
    rows = tuple((fault,) for fault in faults) or (("nothing lost, doubled or growing",),)
    return Table("verdict", ("faults" if faults else "no fault",), rows)
