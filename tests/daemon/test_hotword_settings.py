"""Hotwords on their way: settings, file and `start` in, requests out."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from tests.daemon.server_rig import START, WORD, Rig, rest, send, serve
from tests.daemon.test_reload import running, settings

from voiced.audio.frames import Segment
from voiced.daemon.app import Daemon
from voiced.daemon.config import ConfigError, load
from voiced.daemon.engine_settings import EngineSettings
from voiced.daemon.engine_switch import EngineSwitch
from voiced.daemon.hotwords import MAX_PHRASES, hotwords_of
from voiced.daemon.settings import Settings
from voiced.daemon.testing import ScriptedEngine
from voiced.daemon.wire import Error, Start, Stop, WireError, decode_client, encode
from voiced.engine.types import EngineConfig, Hotword, Request, RequestKind


def test_list_and_file_go_together(tmp_path: Path) -> None:
    file = tmp_path / "hotwords.txt"
    file.write_text("# names\n\n  左小蕾 :3\nMerneptah  # a king\n", encoding="utf-8")
    engine = EngineSettings(hotwords=("Alexa",), hotwords_file=str(file), hotwords_score=2.0)
    assert hotwords_of(engine) == (
        Hotword("Alexa", 2.0),
        Hotword("左小蕾", 3.0),
        Hotword("Merneptah", 2.0),
    )


def test_every_problem_of_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "hotwords.txt"
    file.write_text(f"good\n...\n{'x' * 65}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        hotwords_of(EngineSettings(hotwords_file=str(file)))
    assert [problem.source for problem in caught.value.problems] == [f"{file}:2", f"{file}:3"]
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="must be UTF-8"):
        hotwords_of(EngineSettings(hotwords_file=str(file)))
    with pytest.raises(ConfigError, match=r"hotwords_file: cannot be read: .*no such file"):
        hotwords_of(EngineSettings(hotwords_file=str(tmp_path / "none")))
    file.write_text("\n".join(f"word {i}" for i in range(MAX_PHRASES)), encoding="utf-8")
    with pytest.raises(ConfigError, match="at most 1000 phrases"):
        hotwords_of(EngineSettings(hotwords=("one more",), hotwords_file=str(file)))


def test_a_bad_hotword_in_the_settings_is_a_problem_like_others(tmp_path: Path) -> None:
    file = tmp_path / "voiced.toml"
    file.write_text('[engine]\nhotwords = ["Alexa :2", "?!"]\nhotwords_score = 0.0\n')
    with pytest.raises(ConfigError) as caught:
        load(file=file, environment={})
    assert [str(problem).partition(": ")[2] for problem in caught.value.problems] == [
        'engine.hotwords.1 = "?!": must hold a letter or a digit',
        "engine.hotwords_score = 0.0: must be greater than 0",
    ]


def test_a_stream_brings_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario(rig: Rig) -> None:
        start = Start(v=1, audio=START.audio, hotwords=("Samantha Jones", "车库门 :2.5"))
        async with rig.client() as client:
            await send(client, start, WORD, Stop())
            await rest(client)
        kinds = {request.kind for request in rig.engine.requests}
        assert kinds >= {RequestKind.PARTIAL, RequestKind.FINAL}
        assert re.search(r"hotwords are not used, \S+ has none stream=\S+", caplog.text)
        own = (Hotword("Samantha Jones", 2.0), Hotword("车库门", 2.5))
        assert {request.hotwords for request in rig.engine.requests} == {own}
        async with rig.client() as client:
            await send(client, Start(v=1, audio=START.audio, hotwords=("alexa :11",)))
            (error,) = await rest(client)
        assert isinstance(error, Error)
        assert error.code == "bad_message"
        assert error.message.startswith("hotword 'alexa :11': must have a bonus")
        assert client.close_code == 1008

    serve(scenario)


@pytest.mark.parametrize("hotwords", [("word",) * 101, ("x" * 73,), ("",)])
def test_a_client_cannot_bring_more_than_its_share(hotwords: tuple[str, ...]) -> None:
    with pytest.raises(WireError, match="hotwords"):
        decode_client(encode(Start(v=1, audio=START.audio, hotwords=hotwords)))


def test_every_request_gets_those_of_the_daemon_and_a_stream_may_weigh_them_anew() -> None:
    async def run() -> None:
        engine = ScriptedEngine()
        switch = EngineSwitch(EngineConfig("fake"), make_host=lambda _: engine)  # type: ignore[arg-type,return-value]

        async def asked(*own: Hotword) -> tuple[Hotword, ...]:
            segment = Segment(1, "s", 0, np.zeros(1_600, np.int16))
            await switch.recognize(Request(segment, hotwords=own))
            return engine.requests[-1].hotwords

        one, two = Hotword("one", 1.0), Hotword("two", 1.0)
        assert await asked() == ()
        assert await asked(one) == (one,)
        switch.hotwords = (one,)
        assert await asked() == (one,)
        assert await asked(two, Hotword("one", 3.0)) == (Hotword("one", 3.0), two)

    asyncio.run(run())


def test_a_reload_takes_them_over_for_streams_that_are_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "hotwords.txt"
    file.write_text("Merneptah\n")
    engine = {"model": "fake", "hotwords_file": str(file)}

    async def test(daemon: Daemon, sources: list[Settings | ConfigError]) -> None:
        assert daemon._engine.hotwords == ()
        before = daemon._engine.info
        sources.append(Settings.model_validate({**settings().model_dump(), "engine": engine}))
        await daemon.reload()
        assert daemon._engine.hotwords == (Hotword("Merneptah", 2.0),)
        assert "hotwords are not used, fake@00000000 has none count=1" in caplog.text
        file.write_text("Manasseh\n")  # the settings are the same
        await daemon.reload()
        assert daemon._engine.hotwords == (Hotword("Manasseh", 2.0),)
        file.unlink()
        changed = {**engine, "model": "fake:delay_ms=1"}
        sources.append(Settings.model_validate({**settings().model_dump(), "engine": changed}))
        await daemon.reload()  # refused as a whole
        assert daemon._engine.hotwords == (Hotword("Manasseh", 2.0),)
        assert daemon._engine.info is before  # without another worker

    running(test)
