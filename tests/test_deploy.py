"""The dashboard and the alerts name metrics that a running daemon has."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.system.running_daemon import FAKE, Daemon, launch, noise, receive_until, silence, stream

DEPLOY = Path(__file__).parents[1] / "deploy"
NAME = re.compile(r"\bvoiced_[a-z_]+")
PARTIAL_S = 3.0
"""Long enough for a partial, with the default `vad.first_partial_ms`."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with all its optional parts that has answered a segment, partials before it."""
    folder = tmp_path_factory.mktemp("daemon")
    settings = (
        *("microphone.enabled=true", "microphone.device=none of this name"),
        *("journal.enabled=true", f"journal.folder={folder}", "bus.replay=tcp://127.0.0.1:*"),
    )
    daemon = launch(folder, *FAKE, *(word for each in settings for word in ("--set", each)))

    async def speak() -> None:
        async with stream(daemon) as connection:
            await connection.send(noise(PARTIAL_S))
            await receive_until(connection, "partial")
            await connection.send(silence(2.0))
            await receive_until(connection, "final")

    try:
        daemon.wait_ready()
        asyncio.run(speak())
        # what the worker has counted comes with its next heartbeat
        daemon.wait_for("the engine's counts", lambda: value(daemon, "voiced_engine_steps_total"))
        yield daemon
    finally:
        daemon.kill()


def page(daemon: Daemon) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every series of `/metrics` by the name that a query uses: labels and values."""
    status, text = daemon.get("/metrics")
    assert status == 200
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        # a counter with labels that has counted nothing is announced all the same
        found.setdefault(f"{family.name}_total" if family.type == "counter" else family.name, [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(daemon: Daemon, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(number for _, number in page(daemon)[name])


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_metric_of_dashboard_and_alerts_is_on_the_page_of_a_running_daemon(
    daemon: Daemon,
) -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]
    expressions += [each["query"] for each in dashboard()["templating"]["list"]]
    named = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(named) > 40
    assert named <= set(page(daemon)), sorted(named - set(page(daemon)))


@pytest.mark.parametrize(
    "name",
    [
        "voiced_streams_total",
        "voiced_segments_total",
        "voiced_finals_total",
        "voiced_partials_total",
        "voiced_partial_latency_seconds_count",
        "voiced_final_latency_seconds_count",
        "voiced_audio_bytes_total",
        "voiced_bus_messages_total",
        "voiced_engine_steps_total",
        "voiced_engine_step_requests_total",
        "voiced_engine_gear_runs_total",
        "voiced_engine_gear_inputs_total",
        "voiced_engine_heard_seconds_total",
        "voiced_engine_gear_seconds_total",
        "voiced_engine_to_device_bytes_total",
        "voiced_engine_from_device_bytes_total",
    ],
)
def test_one_segment_is_counted_on_its_whole_way_from_the_worker(daemon: Daemon, name: str) -> None:
    assert value(daemon, name) > 0


def test_what_alerts_watch_for_its_first_increase_is_there_from_the_start(daemon: Daemon) -> None:
    series = page(daemon)
    failed = {labels["code"]: number for labels, number in series["voiced_failed_total"]}
    assert len(failed) > 10
    assert set(failed.values()) == {0.0}
    dropped = {labels["reason"] for labels, _ in series["voiced_engine_dropped_total"]}
    assert dropped == {"superseded", "deadline", "withdrawn", "made_room"}


def test_every_panel_and_rule_says_what_it_is() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels})
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert "$labels.instance" in rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
