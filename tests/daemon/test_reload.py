"""Changes without a stop: what a reload takes over, and a model that is changed for another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import numpy as np
import pytest

from voiced.audio.frames import Segment
from voiced.daemon.app import Daemon
from voiced.daemon.config import KEYS, ConfigError, Problem
from voiced.daemon.engine_switch import EngineSwitch
from voiced.daemon.errors import ModelStays
from voiced.daemon.reload import Changes, Effect, compare, effect_of, merge
from voiced.daemon.sdnotify import Notifier
from voiced.daemon.settings import Settings
from voiced.daemon.testing import ScriptedEngine
from voiced.engine.errors import BackendFailed
from voiced.engine.types import (
    EngineConfig,
    EngineLoad,
    EngineTotals,
    Request,
    RequestKind,
    Transcript,
)

PORTS = {
    "server": {"port": 0},
    "bus": {"endpoint": "tcp://127.0.0.1:*", "ingest": "tcp://127.0.0.1:0"},
}


def settings(model: str = "fake", **sections: object) -> Settings:
    return Settings.model_validate(
        {**PORTS, "engine": {"model": model}, "vad": {"kind": "webrtc"}, **sections}
    )


def test_changes_are_sorted_by_what_they_take() -> None:
    old = settings()
    new = settings("fake:delay_ms=1", vad={"kind": "webrtc", "end_ms": 900},
                   server={"port": 1}, logging={"level": "debug"})  # fmt: skip
    assert compare(old, old) == Changes((), (), ())
    assert compare(old, new) == Changes(
        ("vad.end_ms", "logging.level"), ("engine.model",), ("server.port",)
    )
    taken = merge(old, new, ("vad.end_ms",))
    assert taken.vad.end_ms == 900
    assert compare(old, taken) == Changes(("vad.end_ms",), (), ())


def test_every_setting_has_an_effect_and_ports_need_a_restart() -> None:
    effects = {name: effect_of(name) for name in KEYS}
    assert set(effects.values()) == set(Effect)
    assert effects["server.host"] is effects["journal.folder"] is Effect.RESTART
    assert effects["engine.threads"] is effects["vad.max_segment_s"] is Effect.MODEL


class Host(ScriptedEngine):
    """A host that says when it was stopped."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(answer=self.say)
        self.config = config
        self.is_stopped = False
        self.beats = 0
        self.totals = EngineTotals()

    def load(self) -> EngineLoad:
        return EngineLoad(queued_eager=1, totals=self.totals)

    def say(self, request: Request) -> Transcript:
        if self.config.bundle_dir == "broken":
            raise BackendFailed("no")
        return Transcript(
            segment=request.segment.id, revision=1, text=self.config.bundle_dir, is_final=True,
            language="en", confidence=1.0,
        )  # fmt: skip

    async def start(self) -> object:
        return self.info

    async def stop(self, drain_s: float = 0.0) -> None:
        self.is_stopped = True


class Hosts:
    def __init__(self) -> None:
        self.made: list[Host] = []
        self.switch = EngineSwitch(EngineConfig("old"), make_host=self.make)  # type: ignore[arg-type]

    def make(self, config: EngineConfig) -> Host:
        self.made.append(Host(config))
        return self.made[-1]

    async def ask(self, segment: int, kind: RequestKind = RequestKind.FINAL) -> str:
        pcm = np.zeros(1_600, np.int16)
        return (await self.switch.recognize(Request(Segment(segment, "s", 0, pcm), kind))).text


def test_segments_that_were_begun_stay_and_later_ones_go_over() -> None:
    async def run() -> None:
        hosts = Hosts()
        assert await hosts.ask(1, RequestKind.PARTIAL) == "old"
        hosts.made[0].gate.clear()
        waiting = asyncio.create_task(hosts.ask(2))
        await asyncio.sleep(0)
        await hosts.switch.switch(EngineConfig("new"))
        assert await hosts.ask(3) == "new"
        assert await hosts.ask(1, RequestKind.PARTIAL) == "old"
        hosts.made[0].gate.set()
        assert await waiting == "old"
        assert not hosts.made[0].is_stopped
        assert await hosts.ask(1) == "old"
        assert hosts.switch._retiring is not None
        async with asyncio.timeout(20):
            await hosts.switch._retiring
        assert hosts.made[0].is_stopped
        assert not hosts.made[1].is_stopped
        assert await hosts.ask(4) == "new"

    asyncio.run(run())


def test_what_models_did_is_counted_together_before_during_and_after_a_switch() -> None:
    async def run() -> None:
        hosts = Hosts()
        hosts.made[0].gate.clear()
        waiting = asyncio.create_task(hosts.ask(1))
        await asyncio.sleep(0)
        hosts.made[0].totals = EngineTotals(steps=5, restarts=2)
        await hosts.switch.switch(EngineConfig("new"))
        hosts.made[1].totals = EngineTotals(steps=1)
        hosts.made[0].queued_finals, hosts.made[1].queued_finals = 1, 2
        assert hosts.switch.queued_finals == 3
        both = EngineTotals(steps=6, restarts=2)
        assert hosts.switch.load() == EngineLoad(queued_eager=2, totals=both)
        hosts.made[0].gate.set()
        await waiting
        assert hosts.switch._retiring is not None
        await hosts.switch._retiring
        assert hosts.switch.queued_finals == 2
        assert hosts.switch.load() == EngineLoad(queued_eager=1, totals=both)

    asyncio.run(run())


def test_a_model_that_does_not_answer_changes_nothing() -> None:
    async def run() -> None:
        hosts = Hosts()
        with pytest.raises(BackendFailed):
            await hosts.switch.switch(EngineConfig("broken"))
        assert hosts.made[1].is_stopped
        assert await hosts.ask(1) == "old"

    asyncio.run(run())


def test_an_old_model_is_not_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("voiced.daemon.engine_switch.RETIRE_S", 0.01)

    async def run() -> None:
        hosts = Hosts()
        await hosts.ask(1, RequestKind.PARTIAL)  # its segment turns out to be no speech
        await hosts.switch.switch(EngineConfig("new"))
        assert hosts.switch._retiring is not None
        async with asyncio.timeout(20):
            await hosts.switch._retiring
        assert hosts.made[0].is_stopped
        assert await hosts.ask(1) == "new"

    asyncio.run(run())
    assert "segments go over to the new model count=1" in caplog.text


class Ready(Notifier):
    def __init__(self) -> None:
        super().__init__(None)
        self.is_ready = asyncio.Event()

    def ready(self, status: str) -> None:
        self.is_ready.set()


def running(test: Callable[[Daemon, list[Settings | ConfigError]], object]) -> None:
    """Run a daemon with the fake model; the list's last item is what a reload reads."""
    sources: list[Settings | ConfigError] = [settings()]

    def read() -> Settings:
        if isinstance(sources[-1], ConfigError):
            raise sources[-1]
        return sources[-1]

    async def run() -> None:
        notifier = Ready()
        daemon = Daemon(settings(), notifier=notifier, read_settings=read)
        serving = asyncio.create_task(daemon.run())
        try:
            async with asyncio.timeout(120):
                await notifier.is_ready.wait()
                await test(daemon, sources)  # type: ignore[misc]
        finally:
            daemon._stop.set()
            await serving

    asyncio.run(run())


def test_a_running_daemon_takes_over_what_it_can_and_keeps_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(daemon: Daemon, sources: list[Settings | ConfigError]) -> None:
        sources.append(settings(vad={"kind": "webrtc", "end_ms": 900}, server={"port": 5}))
        await daemon.reload()
        assert daemon._settings.vad.end_ms == 900
        assert "changes that need a restart: server.port" in caplog.text
        assert daemon._streams._open_chain._defaults.end_ms == 900  # type: ignore[attr-defined]
        sources.append(ConfigError([Problem("voiced.toml", "vad.end_ms", "must be more")]))
        await daemon.reload()
        assert "reload refused" in caplog.text
        assert "voiced.toml: vad.end_ms: must be more" in caplog.text
        assert daemon._settings.vad.end_ms == 900
        first = daemon._engine.info
        assert first is not None
        sources.append(settings("fake:fail_on=always"))
        await daemon.reload()
        assert "model stays, the new one failed: fake failure" in caplog.text
        assert daemon._engine.info is first
        assert daemon._settings.engine.model == "fake"
        sources.append(settings("fake:delay_ms=1"))
        await daemon.reload()
        second = daemon._engine.info
        assert second is not None
        assert second.worker_pid != first.worker_pid
        assert daemon._settings.engine.model == "fake:delay_ms=1"

    with caplog.at_level(logging.INFO):
        running(test)


async def silent(text: str) -> None:
    """Nobody asks what is being done."""


def test_a_command_changes_the_model_and_its_choice_outlives_reloads() -> None:
    async def test(daemon: Daemon, sources: list[Settings | ConfigError]) -> None:
        said: list[str] = []

        async def say(text: str) -> None:
            said.append(text)

        first = daemon._engine.info
        switched = await daemon.switch_model("fake:delay_ms=1", say)
        assert switched.before == switched.bundle == "fake@00000000"
        assert said == [
            "checking fake:delay_ms=1: every byte, and its golden pair",
            "building a worker beside the one that serves",
        ]
        second = daemon._engine.info
        assert second is not first
        sources.append(settings(vad={"kind": "webrtc", "end_ms": 900}))  # another thing
        await daemon.reload()
        assert daemon._settings.vad.end_ms == 900
        assert daemon._engine.info is second
        await daemon.switch_model("fake:delay_ms=2", silent)
        await daemon.reload()
        assert daemon._settings.engine.model == "fake:delay_ms=2"
        sources.append(settings("fake:delay_ms=3"))  # now the settings speak
        await daemon.reload()
        assert daemon._settings.engine.model == "fake:delay_ms=3"
        sources.append(settings("fake"))
        await daemon.reload()
        assert daemon._settings.engine.model == "fake"

    running(test)


def test_a_model_that_fails_or_does_not_suit_stays_out_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(daemon: Daemon, sources: list[Settings | ConfigError]) -> None:
        first = daemon._engine.info
        for model, code in (
            ("none", "bundle"),
            ("fake:start=bundle_error", "bundle"),
            ("fake:fail_on=always", "backend_failed"),
        ):
            with pytest.raises(ModelStays) as caught:
                await daemon.switch_model(model, silent)
            assert caught.value.code == code
        daemon._settings = settings(engine={"model": "fake", "language": "de"})
        with pytest.raises(ModelStays, match=r"engine.language.*must be one of en, zh") as caught:
            await daemon.switch_model("fake:delay_ms=1", silent)
        assert caught.value.code == "config"
        assert daemon._engine.info is first
        assert daemon._settings.engine.model == "fake"

    running(test)


def test_one_change_at_a_time_and_none_outlives_the_daemon() -> None:
    waiting: list[asyncio.Task[object]] = []

    async def test(daemon: Daemon, sources: list[Settings | ConfigError]) -> None:
        building = asyncio.Event()

        async def say(text: str) -> None:
            if text.startswith("building"):
                building.set()

        waiting.append(asyncio.create_task(daemon.switch_model("fake:start=hang", say)))
        await building.wait()
        with pytest.raises(ModelStays) as caught:
            await daemon.switch_model("fake", silent)
        assert caught.value.code == "busy"
        daemon._stop.set()
        with pytest.raises(ModelStays) as caught:
            await waiting[0]
        assert caught.value.code == "shutting_down"

    running(test)
