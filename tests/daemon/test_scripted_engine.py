"""The stand-in for the engine keeps its contract for eager requests."""

from __future__ import annotations

import asyncio

import numpy as np

from voiced.audio.frames import Segment
from voiced.daemon.testing import ScriptedEngine
from voiced.engine.types import Request, RequestKind


def eager(segment: int) -> Request:
    return Request(Segment(segment, "a", 0, np.zeros(160, np.int16)), RequestKind.EAGER)


def test_a_promoted_request_waits_where_finals_wait() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.eager_gate.clear()
        engine.gate.clear()
        task = asyncio.create_task(engine.recognize(eager(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not engine.promote(2)
        assert engine.promote(1)
        await asyncio.sleep(0)
        assert not task.done()
        engine.gate.set()
        assert (await task).text == "160 samples"
        assert not engine.promote(1)

    asyncio.run(scenario())


def test_a_withdrawn_request_cannot_be_promoted() -> None:
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.eager_gate.clear()
        task = asyncio.create_task(engine.recognize(eager(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not engine.promote(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
