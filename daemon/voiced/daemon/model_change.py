"""Changes the model of a running engine: checked and built beside the old one, or not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from voiced.daemon.admin import Say
from voiced.daemon.config import ConfigError
from voiced.daemon.engine_switch import EngineSwitch
from voiced.daemon.errors import ModelStays
from voiced.daemon.part_settings import engine_config
from voiced.daemon.settings import Settings
from voiced.engine.errors import BackendFailed, EngineError
from voiced.engine.types import FAKE_MODEL, EngineConfig, EngineInfo


class ModelChange:
    """One change of the model at a time. Belongs to the event loop."""

    def __init__(self, engine: EngineSwitch, accept: Callable[[EngineInfo], None]) -> None:
        """`accept` raises ConfigError where the settings do not fit the new model."""
        self._engine, self._accept = engine, accept
        self._building: asyncio.Task[EngineInfo] | None = None

    async def change(self, settings: Settings, say: Say | None = None) -> EngineInfo:
        """Build what the settings ask for; what does not work changes nothing.

        Args:
            settings: Those that hold from then on.
            say: Told how it goes.

        Raises:
            ModelStays: It did not work.
        """
        if self._building is not None and not self._building.done():
            raise ModelStays("busy", "another change of the model is under way")
        if not self._engine.ready:
            raise ModelStays("not_ready", f"the engine is not ready: {self._engine.reason}")
        self._building = asyncio.create_task(self._build_beside(settings, say), name="switch")
        try:
            return await asyncio.shield(self._building)
        except (EngineError, ConfigError) as error:
            raise ModelStays(error.code, str(error)) from error
        except TimeoutError as error:
            raise ModelStays("deadline", "it did not answer in time") from error
        except asyncio.CancelledError:
            if self._building.cancelled():
                raise ModelStays("shutting_down", "the daemon stops") from None
            raise

    async def stop(self) -> None:
        """Give up what is being built."""
        if self._building is not None and not self._building.done():
            self._building.cancel()
            await asyncio.wait((self._building,))

    async def _build_beside(self, settings: Settings, say: Say | None) -> EngineInfo:
        async def tell(text: str) -> None:
            if say is not None:
                await say(text)

        config = engine_config(settings)
        async with asyncio.timeout(settings.limits.ready_timeout_s):
            await tell(f"checking {settings.engine.model}: every byte, and its golden pair")
            await _verify(config)
            await tell("building a worker beside the one that serves")
            return await self._engine.switch(config, accept=self._accept)


async def _verify(config: EngineConfig) -> None:
    """Check every byte of a bundle and its golden pair, in a process of its own.

    Raises:
        BackendFailed: It is not as it was built, or does not compute what it did.
    """
    if config.bundle_dir == FAKE_MODEL:
        return
    command = (sys.executable, "-m", "voiced.daemon.cli", "model", "verify", config.bundle_dir)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise BackendFailed(said.decode(errors="replace").strip() or "the model is not sound")
