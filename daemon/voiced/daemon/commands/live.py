"""`voiced bench load` and `soak`: a daemon under live streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voiced.bench import load_report
from voiced.bench.dialogue import Spoken
from voiced.bench.hearing import Judge
from voiced.bench.load import (
    LoadPlan,
    LoadRun,
    Target,
    complaints,
    offline_texts,
    prepare_speech,
)
from voiced.bench.load_report import LoadResult
from voiced.bench.machine import describe
from voiced.bench.normalise import best_normaliser
from voiced.bench.report import Report, progress, publish
from voiced.daemon.commands.bench import _folder, _say
from voiced.daemon.commands.child import ChildFailed, child_daemon, child_failures
from voiced.daemon.commands.engines import engine_config
from voiced.daemon.config import KEYS, flags_of, show, value_of
from voiced.daemon.config import load as load_config
from voiced.daemon.settings import VadSettings
from voiced.engine.types import FAKE_MODEL

FREE_KEYS = frozenset({"server.host", "server.port", "bus.endpoint", "bus.ingest"})
"""Settings that a daemon of our own does not take from a file: it listens on free ports."""


@dataclass(frozen=True, slots=True)
class Served:
    """Which daemon is measured and with what."""

    url: str | None = None
    """A running daemon; None starts one for each run."""
    bus: str | None = None
    """Of the running daemon."""
    pid: int | None = None
    """Of the running daemon, for CPU and memory."""
    token_file: Path | None = None
    """What the running daemon asks for."""
    authority: Path | None = None
    """PEM file with what signed the running daemon's certificate."""
    model: str | None = None
    backend: str | None = None
    config: Path | None = None
    """Settings of a daemon of our own."""
    assignments: Sequence[str] = ()
    """`section.key=value` of a daemon of our own, on top."""

    def settings(self) -> Mapping[str, Any]:
        """Settings of the own daemon that are not the default."""
        flags = flags_of(self.assignments, "--with")
        environment: Mapping[str, str] = {}
        if self.config is None:
            environment = {"VOICED_CONFIG": "/dev/null"}
        loaded = load_config(file=self.config, environment=environment, flags=flags)
        return {
            name: value_of(loaded.settings, name)
            for name in KEYS
            if loaded.origins[name] not in ("default", "/dev/null") and name not in FREE_KEYS
        }

    def arguments(self, extra: Mapping[str, Any] | None = None) -> list[str]:
        """Arguments of `voiced run` for the own daemon.

        Raises:
            ConfigError: The settings are wrong.
        """
        named = dict(self.settings()) | dict(extra or {})
        arguments: list[str] = []
        for name, value in named.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            shown = "" if text is None else str(text).lower() if isinstance(text, bool) else text
            arguments += ["--set", f"{name}={shown}"]
        for flag, given in (("--model", self.model), ("--backend", self.backend)):
            arguments += [flag, given] if given is not None else []
        return arguments

    def hang_over_ms(self) -> float:
        """Silence that ends a segment."""
        return float(self.settings().get("vad.end_ms", VadSettings().end_ms))

    def _options(self, url: str) -> Mapping[str, Any]:
        from voiced.daemon.commands.keys import read_token
        from voiced.daemon.commands.talk import Target as Way

        return Way(url, read_token(self.token_file), self.authority).options()

    @contextlib.contextmanager
    def target(self, extra: Mapping[str, Any] | None = None) -> Iterator[Target]:
        """The running daemon, or one of our own with settings on top.

        Raises:
            ChildFailed: Our own did not start or end as it should.
        """
        if self.url is not None:
            from voiced.daemon.commands.child import ChildDaemon

            pid = self.pid
            known = None if pid is None else ChildDaemon(pid, self.url, self.bus or "", 0.0)
            pids = (lambda: ()) if known is None else known.family
            yield Target(self.url, self.bus, pids, options=self._options(self.url))
            return
        with child_daemon(*self.arguments(extra)) as daemon:
            yield Target(daemon.url, daemon.bus, daemon.family, daemon.log)


@dataclass(frozen=True, slots=True)
class Speech:
    """What can be said, and how right texts are told from wrong ones."""

    spoken: dict[str, list[Spoken]]
    judge: Judge | None
    source: str


def speech(
    served: Served,
    clips: Path | None,
    *,
    sets: Sequence[str] = (),
    per_language: int = 24,
    language: str | None = None,
    check: bool = True,
) -> Speech:
    """Read the clips, and what the same weights write of them offline.

    Raises:
        CorpusError, MediaError, VadUnavailable, EngineError, FetchError: They cannot be had.
    """
    folder = _folder(clips)
    _say("reading the recordings")
    spoken = prepare_speech(folder, sets=sets, per_language=per_language, language=language)
    count = sum(map(len, spoken.values()))
    judge: Judge | None = None
    named = served.model or served.settings().get("engine.model")
    if check and named != FAKE_MODEL:
        beam = served.settings().get("engine.beam")
        config = engine_config(named, served.backend, beam=beam)
        with progress(count, "offline texts") as advance:
            texts = offline_texts(spoken, config, advance)
        judge = Judge(best_normaliser(), texts)
    languages = ", ".join(f"{len(each)} {name}" for name, each in spoken.items())
    return Speech(spoken, judge, f"{languages} of {folder.name}")


def run_once(
    served: Served,
    said: Speech,
    plan: LoadPlan,
    *,
    extra: Mapping[str, Any] | None = None,
    title: str = "load",
) -> LoadResult:
    """Play one run to one daemon.

    Raises:
        ChildFailed: The daemon did not start, answer or end as it should.
        OSError: Nobody listens there.
    """
    result: LoadResult | None = None
    try:
        with served.target(extra) as target, progress(round(plan.seconds), title) as advance:
            run = LoadRun(target, plan, said.spoken, said.judge)
            with child_failures():
                result = asyncio.run(run.run(advance))
            result = replace(result, complaints=complaints(target.log))
    except ChildFailed as error:
        if result is None:
            raise
        result = replace(result, bad_end=str(error))  # what was measured is not thrown away
    return result


def load(
    *,
    served: Served,
    streams: Sequence[int],
    seconds: float,
    partials: bool = True,
    eager: bool = False,
    message_ms: int = 50,
    seed: int = 0,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    per_language: int = 24,
    language: str | None = None,
    check: bool = True,
    json_path: Path | None = None,
) -> int:
    """Play live streams, one run for each number of them; return 0.

    Raises:
        BenchError, EngineError, AudioError, DaemonError, OSError: Nothing can be measured.
    """
    machine = describe()
    said = speech(
        served, clips, sets=sets, per_language=per_language, language=language, check=check
    )
    results = [
        run_once(
            served,
            said,
            LoadPlan(
                streams=count,
                seconds=seconds,
                partials=partials,
                eager=eager,
                message_ms=message_ms,
                hang_over_ms=served.hang_over_ms(),
                seed=seed,
            ),
        )
        for count in streams
    ]
    settings = run_settings(served, said, seconds=seconds, partials=partials, seed=seed)
    report = Report("load", settings, load_report.tables(results), {"runs": results}, machine)
    publish(report, json_path=json_path)
    return 0


def soak(
    *,
    served: Served,
    streams: int,
    minutes: float,
    partials: bool = True,
    seed: int = 0,
    clips: Path | None = None,
    sets: Sequence[str] = (),
    per_language: int = 24,
    language: str | None = None,
    json_path: Path | None = None,
) -> int:
    """Play live streams for long; return 0 when nothing was lost, broken or grew, else 1.

    Raises:
        BenchError, EngineError, AudioError, DaemonError, OSError: Nothing can be measured.
    """
    machine = describe()
    said = speech(served, clips, sets=sets, per_language=per_language, language=language)
    plan = LoadPlan(
        streams=streams,
        seconds=60 * minutes,
        partials=partials,
        hang_over_ms=served.hang_over_ms(),
        seed=seed,
    )
    result = run_once(served, said, plan, title="soak")
    settings = run_settings(served, said, seconds=plan.seconds, partials=partials, seed=seed)
    faults = load_report.soak_faults(result)
    made = [*load_report.tables([result]), load_report.verdict_table(faults)]
    report = Report("soak", settings, made, {"run": result, "faults": faults}, machine)
    publish(report, json_path=json_path)
    return 1 if faults else 0


def run_settings(
    served: Served, said: Speech, *, seconds: float, partials: bool, seed: int
) -> dict[str, object]:
    """What a report says about its runs."""
    own = {name: show(value) for name, value in served.settings().items()}
    return {
        "daemon": served.url or ("own" + (f", {own}" if own else "")),
        "model": served.model or "default",
        "seconds": f"{seconds:g}",
        "partials": partials,
        "seed": seed,
        "clips": said.source,
        "texts": "not checked" if said.judge is None else "checked against the same weights",
    }
