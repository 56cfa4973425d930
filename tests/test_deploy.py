"""The dashboard and the alerts name metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from voiced.daemon.metrics import Metrics
from voiced.daemon.microphone import MicrophoneState, MicrophoneStatus
from voiced.engine.types import EngineLoad

DEPLOY = Path(__file__).parents[1] / "deploy"
APP = Path(__file__).parents[1] / "daemon" / "voiced" / "daemon" / "app.py"
NAME = re.compile(r"\bvoiced_[a-z_]+")


def known() -> set[str]:
    """Every series of a daemon, by the name that a query uses."""
    metrics = Metrics()
    metrics.watch_engine(EngineLoad)
    metrics.watch_microphone(lambda: MicrophoneStatus(state=MicrophoneState.RUNNING))
    watched = re.findall(r'"(voiced_\w+)"', APP.read_text(encoding="utf-8"))
    for name in watched:
        metrics.watch(name, "as app.py does", lambda: 0.0)
    text = metrics.render().decode()
    names = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    histograms = set(re.findall(r"^# TYPE (\w+) histogram", text, re.MULTILINE))
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_metric_of_dashboard_and_alerts_exists() -> None:
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules()]
    expressions += [each["query"] for each in dashboard()["templating"]["list"]]
    named = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(named) > 20
    assert named <= known(), sorted(named - known())


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
