"""The daemon as one object: what its parts cannot show alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from voiced.daemon.app import Daemon
from voiced.daemon.config import ConfigError
from voiced.daemon.engine_settings import EngineSettings
from voiced.daemon.errors import StartTimeout
from voiced.daemon.exit_status import exit_status
from voiced.daemon.sdnotify import Notifier
from voiced.daemon.settings import (
    BusSettings,
    LimitsSettings,
    MicrophoneSettings,
    ServerSettings,
    Settings,
    VadSettings,
)
from voiced.engine.types import FAKE_MODEL


def test_an_engine_that_takes_too_long_to_start_is_named_with_the_next_step() -> None:
    settings = Settings(
        server=ServerSettings(port=0),
        bus=BusSettings(endpoint="tcp://127.0.0.1:*", ingest="tcp://127.0.0.1:0"),
        engine=EngineSettings(model=FAKE_MODEL),
        vad=VadSettings(kind="webrtc"),
        limits=LimitsSettings(ready_timeout_s=1e-6),
    )

    async def run() -> int:
        return await Daemon(settings).run()

    with pytest.raises(StartTimeout, match=r"within 1e-06 s; raise `limits\.ready_timeout_s`"):
        asyncio.run(run())


def test_a_daemon_with_a_microphone_shows_how_that_is_doing(tmp_path: Path) -> None:
    settings = Settings(
        server=ServerSettings(port=0),
        bus=BusSettings(endpoint="tcp://127.0.0.1:*", ingest="tcp://127.0.0.1:0"),
        engine=EngineSettings(model=FAKE_MODEL),
        vad=VadSettings(kind="webrtc"),
        microphone=MicrophoneSettings(enabled=True, device="no device has this name"),
    )
    addresses = tmp_path / "addresses.json"

    async def get(path: str) -> str:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", json.loads(addresses.read_text())["port"]
        )
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer.partition("\r\n\r\n")[2]

    class Ready(Notifier):
        def __init__(self) -> None:
            super().__init__(None)
            self.is_ready = asyncio.Event()

        def ready(self, status: str) -> None:
            self.is_ready.set()

    async def run() -> None:
        notifier = Ready()
        running = asyncio.create_task(
            Daemon(settings, notifier=notifier, address_file=addresses).run()
        )
        async with asyncio.timeout(60):
            await notifier.is_ready.wait()
            told = json.loads(await get("/readyz"))
            metrics = await get("/metrics")
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running == 0
        assert told["ready"] is True
        assert told["microphone"]["state"] in {"opening", "waiting"}
        assert "voiced_microphone_lost_frames 0.0" in metrics.splitlines()

    asyncio.run(run())


def test_a_language_that_the_model_does_not_know_ends_the_start_with_the_setting() -> None:
    settings = Settings(
        server=ServerSettings(port=0),
        bus=BusSettings(endpoint="tcp://127.0.0.1:*", ingest="tcp://127.0.0.1:0"),
        engine=EngineSettings(model=FAKE_MODEL, language="fr"),
        vad=VadSettings(kind="webrtc"),
        microphone=MicrophoneSettings(language="de"),
    )

    async def run() -> int:
        return await Daemon(settings).run()

    with pytest.raises(ConfigError) as caught:
        asyncio.run(run())
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == 2
    assert problems[0].endswith('engine.language = "fr": must be one of en, zh, or absent')
    assert 'microphone.language = "de"' in problems[1]
    assert exit_status(caught.value.code) == 2


@pytest.mark.model
def test_a_daemon_whose_engine_cannot_start_says_why_and_recovers(
    bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in bundle.iterdir():
        if file.name != "manifest.json":
            shutil.copy(file, copy)
    (copy / "manifest.json").write_text("{}")
    settings = Settings(
        server=ServerSettings(port=0),
        bus=BusSettings(endpoint="tcp://127.0.0.1:*", ingest="tcp://127.0.0.1:0"),
        engine=EngineSettings(model=str(copy)),
        vad=VadSettings(kind="webrtc"),
    )
    addresses = tmp_path / "addresses.json"

    async def readyz() -> str:
        port = json.loads(addresses.read_text())["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        return answer

    async def until(text: str) -> str:
        async with asyncio.timeout(60):
            while not addresses.exists() or text not in (answer := await readyz()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return answer

    async def run() -> None:
        daemon = asyncio.create_task(Daemon(settings, address_file=addresses).run())
        answer = await until("bundle refused")
        assert " 503 " in answer
        assert "voiced model build" in answer
        shutil.copy(bundle / "manifest.json", copy)
        assert " 200 " in await until('"ready":true')
        os.kill(os.getpid(), signal.SIGTERM)
        assert await daemon == 0

    asyncio.run(run())
