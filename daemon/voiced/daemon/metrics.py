"""What the daemon counts, in a registry of its own, for `GET /metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from voiced.engine.scheduler import DROP_REASONS
from voiced.engine.types import EngineLoad, GearUse, RequestKind

if TYPE_CHECKING:
    from voiced.daemon.disk_writer import StorageState, StorageStatus
    from voiced.daemon.microphone import MicrophoneState, MicrophoneStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FAILED_CODES = (
    *("busy", "shutting_down", "deadline", "engine_dead", "backend_failed", "state_lost"),
    *("no_gear", "too_long", "buffer", "superseded", "internal"),
    *("spool_expired", "spool_damaged", "spool_given_up"),
)
"""Of `failed` messages. Each is 0 from the start: a series that begins at 1 has no increase, and
an alert on its increase would not see the first failure."""

_SEGMENT_BUCKETS_S = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 16, 20, 30, 60)
_LATENCY_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and gauges of one daemon. Every method is cheap and belongs to the loop."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.streams_open = Gauge(
            "voiced_streams_open", "Streams that are open now", registry=registry
        )
        self.streams = Counter("voiced_streams", "Streams opened", registry=registry)
        self.streams_resumed = Counter(
            "voiced_streams_resumed",
            "Times a client came back to its stream",
            registry=registry,
        )
        self.streams_refused = Counter(
            "voiced_streams_refused", "Streams not opened, by code", ["code"], registry=registry
        )
        self.connections_open = Gauge(
            "voiced_connections_open", "WebSocket connections now", registry=registry
        )
        self.client_errors = Counter(
            "voiced_client_errors",
            "Connections ended by an error, by code",
            ["code"],
            registry=registry,
        )
        self.client_errors.labels(code="slow_client")  # see FAILED_CODES
        self.connections_cut = Counter(
            "voiced_connections_cut",
            "Connections cut, by reason: before their request, or of the bus for their key",
            ["reason"],
            registry=registry,
        )
        self.access_denied = Counter(
            "voiced_access_denied",
            "HTTP requests without a sufficient token, by code",
            ["code"],
            registry=registry,
        )
        self.reloads = Counter(
            "voiced_files_reloaded",
            "Certificates, tokens and keys read again",
            registry=registry,
        )
        self.limited = Counter(
            "voiced_limited",
            "Times a client was slowed or turned away, by limit",
            ["limit"],
            registry=registry,
        )
        self.audio_bytes = Counter(
            "voiced_audio_bytes", "Bytes of audio received", registry=registry
        )
        self.audio_gaps = Counter(
            "voiced_audio_gaps", "Stretches of audio that a source lost", registry=registry
        )
        self.audio_gap_s = Counter(
            "voiced_audio_gap_seconds", "Audio that sources lost", registry=registry
        )
        self.segments = Counter(
            "voiced_segments", "Segments closed, by reason", ["reason"], registry=registry
        )
        self.segment_s = Histogram(
            "voiced_segment_seconds",
            "Length of closed segments; `voiced plan --histogram` reads it",
            buckets=_SEGMENT_BUCKETS_S,
            registry=registry,
        )
        self.segments_dropped = Counter(
            "voiced_segments_dropped", "Segments that were no speech", registry=registry
        )
        self.finals = Counter("voiced_finals", "Final results", registry=registry)
        self.finals_corrected = Counter(
            "voiced_finals_corrected",
            "Finals that differ from what their partials called stable",
            registry=registry,
        )
        self.failed = Counter(
            "voiced_failed", "Segments without a result, by code", ["code"], registry=registry
        )
        for code in FAILED_CODES:
            self.failed.labels(code=code)
        self.partials = Counter("voiced_partials", "Partial results", registry=registry)
        self.partials_dropped = Counter(
            "voiced_partials_dropped",
            "Partial results not made or not sent, by reason",
            ["reason"],
            registry=registry,
        )
        self.speculations = Counter(
            "voiced_speculations",
            "Finals begun when silence began, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.partial_latency_s = Histogram(
            "voiced_partial_latency_seconds",
            "Arrival of the last audio in a partial to the partial",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.latency_s = Histogram(
            "voiced_final_latency_seconds",
            "Arrival of a segment's last audio to its final",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.recovered = Counter(
            "voiced_recovered",
            "Segments of earlier runs that were answered, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.replays = Counter(
            "voiced_replays",
            "Requests on the replay socket, by outcome",
            ["outcome"],
            registry=registry,
        )
        self.bus_messages = Counter(
            "voiced_bus_messages", "Messages published on the bus", registry=registry
        )
        self.bus_rejected = Counter(
            "voiced_bus_rejected",
            "Messages on the ingest socket that were refused",
            registry=registry,
        )

        self.bus_cuts = Counter(
            "voiced_bus_cuts",
            "Times all subscribers were cut because somebody had too many topics",
            registry=registry,
        )

    def watch_engine(self, load: Callable[[], EngineLoad]) -> None:
        """Add gauges of the engine's queue and its totals, read when `/metrics` is; call once."""
        readers: dict[str, tuple[str, Callable[[], float]]] = {
            "voiced_engine_queued_finals": (
                "Final requests waiting",
                lambda: load().queued_finals,
            ),
            "voiced_engine_queued_eager": (
                "Speculative final requests waiting",
                lambda: load().queued_eager,
            ),
            "voiced_engine_queued_partials": (
                "Partial requests waiting",
                lambda: load().queued_partials,
            ),
            "voiced_engine_oldest_final_age_seconds": (
                "Age of the oldest waiting final request",
                lambda: load().oldest_final_age_s,
            ),
            "voiced_engine_oldest_eager_age_seconds": (
                "Age of the oldest speculative final request",
                lambda: load().oldest_eager_age_s,
            ),
            "voiced_engine_oldest_partial_age_seconds": (
                "Age of the oldest partial request",
                lambda: load().oldest_partial_age_s,
            ),
            "voiced_engine_batch_size": (
                "Requests that share a decoder step",
                lambda: load().batch.running,
            ),
            "voiced_engine_batch_padding_ratio": (
                "Part of the decoder's places that hold nothing",
                lambda: load().batch.padding / max(1, load().batch.positions),
            ),
        }
        for name, (text, read) in readers.items():
            Gauge(name, text, registry=self._registry).set_function(read)
        self._registry.register(_EngineTotals(load))

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when `/metrics` is; once per name."""
        Gauge(name, text, registry=self._registry).set_function(read)

    def watch_storage(self, status: Callable[[], StorageStatus]) -> None:
        """Add gauges of journal and spool, read when `/metrics` is; call once."""
        state = Gauge(
            "voiced_journal_state",
            "1 for how the journal is, 0 for the other states",
            ["state"],
            registry=self._registry,
        )
        for each in type(status().state):
            state.labels(state=each.value).set_function(partial(_has_state, status, each))
        readers: dict[str, tuple[str, Callable[[], float]]] = {
            "voiced_journal_entries": ("Last words written", lambda: status().written),
            "voiced_journal_waiting": (
                "Last words that wait in memory for a disk that works",
                lambda: status().pending,
            ),
            "voiced_journal_lost": (
                "Last words that were published and will never be in the journal",
                lambda: status().lost,
            ),
            "voiced_spool_segments": ("Segments in the spool", lambda: status().spooled),
            "voiced_spool_bytes": ("Bytes in the spool", lambda: status().spool_bytes),
            "voiced_spool_refused": (
                "Segments that could not be spooled",
                lambda: status().not_spooled,
            ),
        }
        for name, (text, read) in readers.items():
            Gauge(name, text, registry=self._registry).set_function(read)

    def watch_microphone(self, status: Callable[[], MicrophoneStatus]) -> None:
        """Add gauges of the local microphone, read when `/metrics` is; call once."""
        state = Gauge(
            "voiced_microphone_state",
            "1 for what the microphone is doing, 0 for the other states",
            ["state"],
            registry=self._registry,
        )
        for each in type(status().state):
            state.labels(state=each.value).set_function(partial(_is_in, status, each))
        readers: dict[str, tuple[str, Callable[[], float]]] = {
            "voiced_microphone_opened": (
                "Times the sound device was opened",
                lambda: status().opened,
            ),
            "voiced_microphone_lost_frames": (
                "Frames of the sound device that were lost, at its own rate",
                lambda: status().lost_frames,
            ),
            "voiced_microphone_drift_ppm": (
                "Millionths by which the sound device's clock is faster than ours; NaN: not known",
                lambda: math.nan if (ppm := status().drift_ppm) is None else ppm,
            ),
            "voiced_microphone_silent": (
                "1 while only digital zeros come: muted, or a dummy device",
                lambda: status().is_silent,
            ),
        }
        for name, (text, read) in readers.items():
            Gauge(name, text, registry=self._registry).set_function(read)

    def value(self, name: str, **labels: str) -> float:
        """Return one sample, e.g. `value("voiced_failed_total", code="busy")`; 0 if unknown."""
        return self._registry.get_sample_value(name, labels) or 0.0

    def render(self) -> bytes:
        """Write every metric in Prometheus text format 0.0.4."""
        return generate_latest(self._registry)


class _EngineTotals(Collector):
    """Counters that the engine keeps, over all its workers."""

    def __init__(self, load: Callable[[], EngineLoad]) -> None:
        self._load = load

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Read them once for all."""
        totals = self._load().totals
        for name, text, value in (
            ("restarts", "Times the worker process was replaced", totals.restarts),
            ("steps", "Steps of the running batch", totals.steps),
            (
                "step_requests",
                "Requests that shared a step, summed; by steps: the mean size of a batch",
                totals.step_requests,
            ),
            (
                "to_device_bytes",
                "Bytes copied from host arrays to the runtime",
                totals.to_device_bytes,
            ),
            (
                "from_device_bytes",
                "Bytes copied from the runtime to host arrays",
                totals.from_device_bytes,
            ),
        ):
            yield CounterMetricFamily(f"voiced_engine_{name}", text, value=value)
        for name, text, read in _OF_GEARS:
            family = CounterMetricFamily(f"voiced_engine_{name}", text, labels=["gear"])
            for use in totals.gears:
                family.add_metric([f"{use.gear.batch}x{use.gear.frames}"], read(use))
            yield family
        dropped = CounterMetricFamily(
            "voiced_engine_dropped",
            "Requests that a worker left unanswered, by kind and reason",
            labels=["kind", "reason"],
        )
        for kind in RequestKind:
            for reason in DROP_REASONS:
                count = totals.dropped.get(f"{kind.value} {reason}", 0)
                dropped.add_metric([kind.value, reason], count)
        yield dropped


_OF_GEARS: tuple[tuple[str, str, Callable[[GearUse], float]], ...] = (
    ("gear_runs", "Times the encoder ran in a gear (batch x frames of 10 ms)", lambda u: u.runs),
    ("gear_inputs", "Utterances encoded in a gear", lambda u: u.inputs),
    ("heard_seconds", "Sound encoded in a gear", lambda u: u.heard_frames / 100),
    (
        "gear_seconds",
        "Length that was encoded for it; the difference is padding",
        lambda u: u.gear_frames / 100,
    ),
)


def _has_state(status: Callable[[], StorageStatus], state: StorageState) -> float:
    return float(status().state is state)


def _is_in(status: Callable[[], MicrophoneStatus], state: MicrophoneState) -> float:
    return float(status().state is state)
