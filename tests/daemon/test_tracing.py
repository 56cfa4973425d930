"""A trace for each segment: in the library's in-memory exporter, and at a collector."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.daemon.collector import attributes, collecting

from voiced.daemon.errors import DaemonError
from voiced.daemon.metrics import Metrics
from voiced.daemon.streams import Streams
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, silence, tone
from voiced.daemon.tracing import (
    OncePerMinute,
    OtelTracer,
    SegmentTimes,
    TracingUnavailable,
    open_tracer,
)
from voiced.daemon.wire import AudioParams, Start
from voiced.engine.errors import BackendFailed
from voiced.engine.types import Request, Transcript

WORD = silence(0.6) + tone(1.0) + silence(1.4)


def spans_of(engine: ScriptedEngine) -> list[Any]:
    """The spans of two words, in the order of their end."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OtelTracer(provider, wall_minus_monotonic_ns=10**18)
    speak(engine, tracer)
    found = list(exporter.get_finished_spans())
    tracer.close(20)
    return found


def speak(engine: ScriptedEngine, tracer: OtelTracer) -> None:
    """Let a stream of two words be heard."""

    async def run() -> None:
        streams = Streams(
            engine=engine,
            publish=lambda message: None,
            open_chain=LoudnessChains(),
            metrics=Metrics(),
            tracer=tracer,
        )
        session = streams.open(Start(v=1, audio=AudioParams(), stream="desk", partials=False))
        await session.feed(WORD * 2)
        await session.finish()

    asyncio.run(run())


def test_each_segment_is_one_trace_whose_parts_follow_each_other() -> None:
    spans = spans_of(ScriptedEngine())
    roots = [span for span in spans if span.parent is None]
    assert [span.name for span in roots] == ["segment", "segment"]
    assert len({span.context.trace_id for span in spans}) == 2
    for root in roots:
        parts = {
            span.name: span
            for span in spans
            if span.parent and span.parent.span_id == root.context.span_id
        }
        assert set(parts) == {"speech", "recognition", "turn"}
        assert root.start_time == parts["speech"].start_time > 10**18
        assert parts["speech"].end_time == parts["recognition"].start_time
        assert parts["recognition"].end_time == parts["turn"].start_time
        assert parts["turn"].end_time == root.end_time
        assert root.attributes["voiced.stream"] == "desk"
        assert root.attributes["voiced.outcome"] == "final"
        assert root.attributes["voiced.audio_ms"] == 2_000
    assert not any("samples" in str(span.attributes) for span in spans)


def test_a_failure_is_an_error_with_its_code() -> None:
    def fail(request: Request) -> Transcript:
        raise BackendFailed("broken")

    roots = [span for span in spans_of(ScriptedEngine(answer=fail)) if span.parent is None]
    assert [span.attributes["voiced.outcome"] for span in roots] == ["backend_failed"] * 2
    assert {span.status.status_code.name for span in roots} == {"ERROR"}


def test_without_the_extra_the_start_ends_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingUnavailable, match=r"install `voiced\[otel\]`") as caught:
        open_tracer("http://127.0.0.1:9/v1/traces", wall_minus_monotonic_ns=0)
    assert isinstance(caught.value, DaemonError)


# ---- a collector ---------------------------------------------------------------------------------

MS = 1_000_000
TIMES = SegmentTimes(
    stream="desk", segment=7, opened_ns=1_000 * MS, closed_ns=3_500 * MS, answered_ns=3_800 * MS,
    published_ns=3_801 * MS, audio_ms=2_400, outcome="final", steps=12, queue_ms=1.5,
)  # fmt: skip
EPOCH_NS = 1_700_000_000_000 * MS


def test_a_collector_gets_a_segment_with_its_parts_their_times_and_attributes() -> None:
    with collecting() as collector:
        tracer = open_tracer(collector.endpoint, wall_minus_monotonic_ns=EPOCH_NS)
        tracer.segment(TIMES)
        tracer.close(20)
        spans = {span.name: span for span in collector.spans}
    assert collector.services == {"voiced"}
    assert len(collector.spans) == 4
    root = spans.pop("segment")
    assert root.parent_span_id == b""
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert len({span.span_id for span in collector.spans}) == 4
    assert attributes(root) == {
        "voiced.stream": "desk",
        "voiced.segment": 7,
        "voiced.audio_ms": 2_400,
        "voiced.outcome": "final",
    }
    assert attributes(spans["recognition"]) == {"voiced.steps": 12, "voiced.queue_ms": 1.5}
    assert attributes(spans["speech"]) == attributes(spans["turn"]) == {}
    assert {
        span.name: (span.start_time_unix_nano - EPOCH_NS, span.end_time_unix_nano - EPOCH_NS)
        for span in collector.spans
    } == {
        "segment": (1_000 * MS, 3_801 * MS),
        "speech": (1_000 * MS, 3_500 * MS),
        "recognition": (3_500 * MS, 3_800 * MS),
        "turn": (3_800 * MS, 3_801 * MS),
    }


def test_a_collector_gets_the_code_of_a_failure_from_a_stream_and_no_words() -> None:
    def fail(request: Request) -> Transcript:
        raise BackendFailed("a secret")

    with collecting() as collector:
        tracer = open_tracer(collector.endpoint, wall_minus_monotonic_ns=EPOCH_NS)
        speak(ScriptedEngine(answer=fail), tracer)
        tracer.close(20)
        roots = [span for span in collector.spans if span.name == "segment"]
    assert len(roots) == 2
    for root in roots:
        assert (root.status.code, root.status.message) == (2, "backend_failed")  # STATUS_CODE_ERROR
        assert "secret" not in str(root)


def test_a_collector_that_never_answers_is_not_waited_for_and_fills_no_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with collecting() as collector:
        collector.answers.clear()
        tracer = open_tracer(collector.endpoint, wall_minus_monotonic_ns=EPOCH_NS)
        for _ in range(2_000):  # 8000 spans
            tracer.segment(TIMES)
        collector.wait(requests=1)
        kept = sum(isinstance(each, Span) for each in gc.get_objects())
        assert kept <= 2_048 + 512 + 4  # what waits, a batch on its way, one in the making
        tracer.close(0.05)
        assert collector.is_asked_still(), "the exporter's own time-out was waited for"
        collector.answers.set()
        for thread in threading.enumerate():
            if thread.name == "tracing-close":
                thread.join()
    assert "traces are lost" in caplog.text


def test_a_collector_that_refuses_costs_one_line_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voiced.daemon.tracing._EXPORTER_LINES", OncePerMinute())
    with collecting() as collector:
        collector.status = 400
        tracer = open_tracer(collector.endpoint, wall_minus_monotonic_ns=EPOCH_NS)
        for number in range(1, 4):
            for _ in range(128):  # a batch
                tracer.segment(TIMES)
            collector.wait(requests=number)
        tracer.close(20)
    lines = [each for each in caplog.records if "http.trace_exporter" in each.name]
    assert [each.levelno >= logging.WARNING for each in lines] == [True]
    assert "400" in lines[0].getMessage()
