"""`voiced plan`: the forms of a histogram, the tables, the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from voiced.daemon.commands.plan import plan, read_histogram
from voiced.engine.plan import PlanError


def test_three_forms_of_a_histogram_say_the_same(tmp_path: Path) -> None:
    lines, as_json, metrics = (tmp_path / name for name in ("lines", "json", "metrics"))
    lines.write_text("# seconds count\n2 3\n5, 1\n2 1\n")
    as_json.write_text('{"2": 4, "5": 1}')
    registry = CollectorRegistry()
    seconds = Histogram("voiced_segment_seconds", "x", buckets=(1, 2, 5), registry=registry)
    for length in (1.5, 1.6, 1.9, 2.0, 4.0):
        seconds.observe(length)
    metrics.write_bytes(generate_latest(registry))
    expected = {2.0: 4.0, 5.0: 1.0}
    assert [read_histogram(str(p)) for p in (lines, as_json, metrics)] == [expected] * 3


def test_what_is_longer_than_the_last_bucket_counts_as_that(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    path.write_text(
        "# TYPE voiced_segment_seconds histogram\n"
        'voiced_segment_seconds_bucket{le="60.0"} 2\nvoiced_segment_seconds_bucket{le="+Inf"} 3\n'
    )
    assert read_histogram(str(path)) == {60.0: 3.0}


@pytest.mark.parametrize("text", ["", "two 3\n", "{", "# TYPE other counter\n", "[1]"])
def test_anything_else_is_refused_with_the_forms_there_are(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"bad: found"):
        read_histogram(str(path))
    with pytest.raises(PlanError, match="cannot be read"):
        read_histogram(str(tmp_path / "none"))


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histogram, out = tmp_path / "lengths", tmp_path / "plan.json"
    histogram.write_text("".join(f"{n / 10} {n % 5}\n" for n in range(10, 160)))
    status = plan(
        chip="910B4", model="firered-aed-l", streams=1000, utterance_s=10, beam=3,
        tokens=50, histogram=str(histogram), json_path=out,
    )  # fmt: skip
    text = capsys.readouterr().out
    assert status == 0
    for part in ("voiced plan: model firered-aed-l", "Roofline, 250", "Memory, GB", "Streams",
                 "Gears for the histogram", "padding with another number of gears"):  # fmt: skip
        assert part in text
    result = json.loads(out.read_text())["result"]
    assert len(result["gears"]["frames"]) == 4
    assert result["chosen"]["rtf"] * 1000 <= 1
    assert result["largest_frames"] == 250 * result["largest_batch"]


def test_a_chip_that_cannot_keep_up_gives_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(chip="cpu", model="firered-aed-l", streams=9, utterance_s=10, beam=3) == 1
    assert "no batch that fits keeps up" in capsys.readouterr().out


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(PlanError, match="no chip '910A'; expected 910B4, 910B, 310P, cpu"):
        plan(chip="910A", model="firered-aed-l", streams=1, utterance_s=10, beam=3)
