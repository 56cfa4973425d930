"""A daemon as a process sends its traces, and does without whoever should take them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.daemon.collector import Collector, attributes, collecting
from tests.system.running_daemon import FAKE, finals, launch, noise, say, silence


def serve_once(folder: Path, collector: Collector) -> str:
    """Run a daemon for one word of one stream; return its log."""
    daemon = launch(folder, *FAKE, "--set", f"tracing.endpoint={collector.endpoint}")
    try:
        daemon.wait_ready()
        said = asyncio.run(say(daemon, noise(0.5) + silence(1.0), stream="desk"))
        assert len(finals(said)) == 1
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
        return daemon.log
    finally:
        daemon.kill()


def test_the_last_segment_is_at_the_collector_when_the_daemon_has_ended(tmp_path: Path) -> None:
    with collecting() as collector:
        serve_once(tmp_path, collector)
    (root,) = (span for span in collector.spans if not span.parent_span_id)
    assert attributes(root)["voiced.stream"] == "desk"
    assert attributes(root)["voiced.outcome"] == "final"
    assert {span.name for span in collector.spans if span.parent_span_id == root.span_id} == {
        "speech",
        "recognition",
        "turn",
    }


@pytest.mark.parametrize("is_there", [True, False])
def test_a_daemon_ends_in_order_whatever_its_collector_does(
    tmp_path: Path, *, is_there: bool
) -> None:
    with collecting() as collector:
        collector.answers.clear()
        if is_there:
            log = serve_once(tmp_path, collector)
            assert collector.requests == 1
    if not is_there:
        log = serve_once(tmp_path, collector)
    assert "stopped clean=True" in log
    assert "traces are lost" in log
    assert "Traceback" not in log
