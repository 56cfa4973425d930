"""A trace for each segment, with the library's in-memory exporter."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from voiced.daemon.errors import DaemonError
from voiced.daemon.metrics import Metrics
from voiced.daemon.streams import Streams
from voiced.daemon.testing import LoudnessChains, ScriptedEngine, silence, tone
from voiced.daemon.tracing import OtelTracer, TracingUnavailable, open_tracer
from voiced.daemon.wire import AudioParams, Start
from voiced.engine.errors import BackendFailed
from voiced.engine.types import Request, Transcript

export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

WORD = silence(0.6) + tone(1.0) + silence(1.4)


def spans_of(engine: ScriptedEngine) -> list[Any]:
    """The spans of two words, in the order of their end."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = export.InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OtelTracer(provider, wall_minus_monotonic_ns=10**18)

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
    found = list(exporter.get_finished_spans())
    tracer.close()
    return found


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
