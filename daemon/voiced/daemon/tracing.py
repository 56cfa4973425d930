"""One OpenTelemetry trace for each segment, where `tracing.endpoint` is set: extra `voiced[otel]`.

    segment                 arrival of its first audio → publication of its last word
    ├── speech              → arrival of its last audio
    ├── recognition         → the engine's answer
    └── turn                → publication: earlier segments of the stream come first

Attributes name the stream, the segment, its length, and how it ended; never what was said.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from voiced.daemon.errors import DaemonError
from voiced.engine.types import Timings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


logger = logging.getLogger(__name__)


class TracingUnavailable(DaemonError):
    """Traces are asked for and cannot be made."""

    code = "config"


@dataclass(frozen=True, slots=True)
class SegmentTimes:
    """When what happened to one segment, on the monotonic clock."""

    stream: str
    segment: int
    opened_ns: int
    """Its first audio was known to be speech."""
    closed_ns: int
    """Its last audio arrived."""
    answered_ns: int
    published_ns: int
    audio_ms: int
    outcome: str
    """`final`, or the code of its failure."""
    steps: int = 0
    """Decoder steps."""
    queue_ms: float = 0.0
    """Of the time before the answer: waiting in the engine."""


class SegmentTracer(Protocol):
    """Takes what happened to a segment once it is over; must not block or raise."""

    def segment(self, times: SegmentTimes) -> None: ...


@dataclass(slots=True)
class _Open:
    opened_ns: int
    closed_ns: int = 0
    answered_ns: int = 0
    audio_ms: int = 0
    steps: int = 0
    queue_ms: float = 0.0


class StreamTrace:
    """Notes the times of one stream's segments; without a tracer it notes nothing."""

    def __init__(self, stream: str, tracer: SegmentTracer | None) -> None:
        self._stream, self._tracer = stream, tracer
        self._open: dict[int, _Open] = {}

    def opened(self, segment: int, now_ns: int) -> None:
        """Speech was heard."""
        if self._tracer is not None:
            self._open[segment] = _Open(now_ns)

    def closed(self, segment: int, arrived_ns: int, audio_ms: int) -> None:
        """The segment's last audio had arrived then."""
        if (times := self._open.get(segment)) is not None:
            times.closed_ns, times.audio_ms = arrived_ns, audio_ms

    def answered(self, segment: int, now_ns: int, timings: Timings | None) -> None:
        """Its last word is decided; `timings` where the engine gave it."""
        if (times := self._open.get(segment)) is not None and not times.answered_ns:
            times.answered_ns = now_ns
            if timings is not None:
                times.steps, times.queue_ms = timings.steps, timings.queue_ms

    def published(self, segment: int, now_ns: int, outcome: str) -> None:
        """Its last word is out: `final`, or the code of a failure."""
        times = self._open.pop(segment, None)
        if times is None or self._tracer is None:
            return
        self._tracer.segment(
            SegmentTimes(
                stream=self._stream,
                segment=segment,
                opened_ns=times.opened_ns,
                closed_ns=times.closed_ns,
                answered_ns=times.answered_ns,
                published_ns=now_ns,
                audio_ms=times.audio_ms,
                outcome=outcome,
                steps=times.steps,
                queue_ms=times.queue_ms,
            )
        )


class OtelTracer:
    """Makes spans of segments, after the fact: nothing is measured for their sake."""

    def __init__(self, provider: TracerProvider, *, wall_minus_monotonic_ns: int) -> None:
        """Spans carry wall time, segments monotonic; the difference is taken once."""
        self._provider = provider
        self._tracer = provider.get_tracer("voiced")
        self._offset_ns = wall_minus_monotonic_ns

    def segment(self, times: SegmentTimes) -> None:
        """Record one segment."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        opened = times.opened_ns
        closed = max(opened, times.closed_ns)
        answered = max(closed, times.answered_ns)
        published = max(answered, times.published_ns)
        root = self._tracer.start_span(
            "segment",
            start_time=opened + self._offset_ns,
            attributes={
                "voiced.stream": times.stream,
                "voiced.segment": times.segment,
                "voiced.audio_ms": times.audio_ms,
                "voiced.outcome": times.outcome,
            },
        )
        inside = set_span_in_context(root)
        for name, begin, end in (
            ("speech", opened, closed),
            ("recognition", closed, answered),
            ("turn", answered, published),
        ):
            span = self._tracer.start_span(name, context=inside, start_time=begin + self._offset_ns)
            if name == "recognition":
                span.set_attribute("voiced.steps", times.steps)
                span.set_attribute("voiced.queue_ms", times.queue_ms)
            span.end(end + self._offset_ns)
        if times.outcome != "final":
            root.set_status(Status(StatusCode.ERROR, times.outcome))
        root.end(published + self._offset_ns)

    def close(self, timeout_s: float) -> None:
        """Send what waits. A collector that does not take it in time never gets it."""
        # The library waits for as long as its exporter does, which is up to 30 s.
        closing = threading.Thread(
            target=self._provider.shutdown, name="tracing-close", daemon=True
        )
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            logger.warning("traces are lost, the collector took none in_s=%g", timeout_s)


class OncePerMinute(logging.Filter):
    """Lets one line a minute through: the exporter has one for every try of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = time.monotonic()
        if now_s - self._passed_s < 60:
            return False
        self._passed_s = now_s
        return True


_EXPORTER_LINES = OncePerMinute()


def open_tracer(endpoint: str, *, wall_minus_monotonic_ns: int) -> OtelTracer:
    """Send traces to a collector by OTLP over HTTP, in batches, from a thread of the library's.

    Raises:
        TracingUnavailable: The extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            f"`tracing.endpoint` is set and {error.name} is not installed; "
            "install `voiced[otel]`, or leave it out"
        ) from error
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_EXPORTER_LINES)
    provider = TracerProvider(
        resource=Resource.create({"service.name": "voiced"}), shutdown_on_exit=False
    )
    # Bounded: spans above 2048 that wait are lost, and nobody waits for the collector.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OtelTracer(provider, wall_minus_monotonic_ns=wall_minus_monotonic_ns)
