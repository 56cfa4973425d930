"""The daemon as one object: what its parts cannot show alone."""

from __future__ import annotations

import asyncio

import pytest

from voiced.daemon.app import FAKE_MODEL, Daemon
from voiced.daemon.config import (
    BusSettings,
    EngineSettings,
    LimitsSettings,
    ServerSettings,
    Settings,
    VadSettings,
)
from voiced.daemon.errors import StartTimeout


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
