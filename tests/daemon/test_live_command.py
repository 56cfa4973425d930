"""`voiced bench load` and `soak` around their runs: which daemon, which status."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from voiced.bench.hearing import Fate, Outcome
from voiced.bench.load import LoadPlan, Target
from voiced.bench.load_report import Books, LoadResult, Pace, Tally, soak_faults, sum_up
from voiced.bench.sampling import Samples
from voiced.daemon.commands import live
from voiced.daemon.commands.child import ChildFailed
from voiced.daemon.commands.live import Served, Speech
from voiced.daemon.config import ConfigError


def test_a_daemon_of_our_own_takes_a_files_settings_but_not_its_ports(tmp_path: Path) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text(
        '[server]\nport = 9\nmax_streams = 7\n[engine]\nlanguages = ["en", "zh"]\nthreads = 2\n',
        encoding="utf-8",
    )
    served = Served(config=file, assignments=["engine.threads=3", "logging.include_text=true"])
    assert served.arguments({"engine.max_batch": 2}) == [
        *("--set", "server.max_streams=7"),
        *("--set", "engine.threads=3"),
        *("--set", "engine.languages=en,zh"),
        *("--set", "logging.include_text=true"),
        *("--set", "engine.max_batch=2"),
    ]


def test_without_a_file_nothing_but_what_is_asked_for_differs_from_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VOICED_CONFIG", str(tmp_path / "not-there.toml"))
    monkeypatch.setenv("VOICED_ENGINE_THREADS", "9")
    served = Served(model="fake", assignments=["vad.end_ms=300"])
    assert served.arguments() == ["--set", "vad.end_ms=300", "--model", "fake"]
    assert served.hang_over_ms() == 300
    assert Served().hang_over_ms() == 600


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        Served(assignments=["engine.treads=2"]).arguments()


def test_a_running_daemon_is_taken_as_it_is_with_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n", encoding="utf-8")
    token.chmod(0o600)
    served = Served(url="ws://h:1/v1/stream", bus="tcp://h:2", token_file=token)
    with served.target() as target:
        assert (target.url, target.bus, target.pids()) == ("ws://h:1/v1/stream", "tcp://h:2", ())
        assert target.options["additional_headers"] == {"Authorization": "Bearer secret"}
        assert "secret" not in repr(target)


real_run_once = live.run_once


class Runs:
    """Stands in for real runs; loses what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, lost: int = 0) -> None:
        self.plans: list[LoadPlan] = []
        self.lost = lost
        monkeypatch.setattr(live, "speech", lambda *_, **__: Speech({}, None, "some clips"))
        monkeypatch.setattr(live, "run_once", self.run)

    def run(self, served: Served, said: Speech, plan: LoadPlan, **_: Any) -> LoadResult:
        self.plans.append(plan)
        tally = Tally()
        for number in range(100):
            fate = Fate.MISHEARD if number < self.lost else Fate.RIGHT
            tally.add(
                Outcome(
                    stream=0,
                    clip="a",
                    language="en",
                    spoken_s=plan.seconds * number / 100,
                    fate=fate,
                    final_ms=700.0,
                    ended_ms=600.0,
                    after_ended_ms=100.0,
                    first_partial_ms=None,
                    eager_ms=None,
                    on_screen_ms=None,
                    text="a",
                    segments=1,
                )
            )
        return sum_up(
            streams=plan.streams,
            seconds=plan.seconds,
            partials=plan.partials,
            hang_over_ms=plan.hang_over_ms,
            tally=tally,
            books=Books(announced=100, finals=100),
            pace=Pace(),
            samples=Samples(),
            load_1min=0.0,
        )


def test_each_number_of_streams_is_a_run_of_its_own_and_all_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(monkeypatch)
    report = tmp_path / "load.json"
    status = live.load(
        served=Served(), streams=[2, 4], seconds=60, partials=False, json_path=report
    )
    assert status == 0
    assert [plan.streams for plan in runs.plans] == [2, 4]
    written = json.loads(report.read_text(encoding="utf-8"))["result"]["runs"]
    assert [run["streams"] for run in written] == [2, 4]
    assert written[0]["beyond_ms"]["p99"] == 100
    shown = capsys.readouterr().out
    assert "2 (finals)" in shown
    assert "4 (finals)" in shown


@pytest.mark.parametrize(("lost", "status"), [(0, 0), (3, 1)])
def test_a_soak_ends_with_its_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: int, status: int
) -> None:
    runs = Runs(monkeypatch, lost=lost)
    assert live.soak(served=Served(), streams=3, minutes=2) == status
    assert [(plan.streams, plan.seconds) for plan in runs.plans] == [(3, 120)]
    shown = capsys.readouterr().out
    assert ("3 of 100 utterances misheard" if lost else "nothing lost, doubled or growing") in shown


def test_what_was_measured_is_kept_when_the_daemon_does_not_end_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("1 INFO    a: b\n2 WARNING a: late\n3 ERROR   a: gone\n", encoding="utf-8")

    class Stubborn(Served):
        @contextlib.contextmanager
        def target(self, extra: Mapping[str, Any] | None = None) -> Iterator[Target]:
            yield Target("ws://h:1/v1/stream", None, lambda: (), log)
            raise ChildFailed("daemon did not end within 20 s after SIGTERM\n  | last line")

    runs = Runs(monkeypatch)
    plan = LoadPlan(streams=1, seconds=1)

    class Played:
        def __init__(self, *_: Any) -> None: ...

        async def run(self, _: Any) -> LoadResult:
            return runs.run(Served(), Speech({}, None, ""), plan)

    monkeypatch.setattr(live, "LoadRun", Played)
    result = real_run_once(Stubborn(), Speech({}, None, ""), plan)
    assert result.utterances == 100
    assert result.complaints == ["2 WARNING a: late", "3 ERROR   a: gone"]
    assert "daemon did not end within 20 s after SIGTERM" in soak_faults(result)
