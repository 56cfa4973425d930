"""`voiced run`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from voiced.daemon import logs
from voiced.daemon.config import load
from voiced.daemon.listening import passed_sockets

logger = logging.getLogger(__name__)


def run(
    *,
    config_file: Path | None,
    flags: Mapping[str, tuple[str, Any]],
    pull: bool,
    address_file: Path | None,
) -> int:
    """Run until SIGTERM or SIGINT; return the exit status.

    SIGHUP ends a daemon whose log goes to a terminal, because that is gone, and is ignored by
    any other.

    Raises:
        ConfigError: With every problem.
        BundleError, VadUnavailable: A model is not here; see `pull`.
        PortInUse, EndpointInUse: Something else, probably another daemon, is there.
        AddressRefused: The system cannot listen there.
    """
    # Importing takes a moment, too; the daemon itself takes the signals over.
    signal.signal(signal.SIGTERM, _end_at_once)
    signal.signal(signal.SIGHUP, _end_at_once if sys.stderr.isatty() else signal.SIG_IGN)
    # The watchdog's SIGABRT leaves every thread's stack in the log.
    faulthandler.enable()
    passed = passed_sockets()
    loaded = load(file=config_file, flags=flags)
    settings = loaded.settings
    logs.configure(settings.logging.level)
    for problem in loaded.warnings:
        logger.warning("configuration: %s", problem)
    logger.info("starting config=%s model=%s", loaded.file or "defaults", settings.engine.model)
    if pull:
        from voiced.daemon.commands.model import model_pull

        if code := model_pull(settings.engine.model):
            return code

    from voiced.daemon.app import Daemon
    from voiced.daemon.pacing import new_loop

    daemon = Daemon(
        settings,
        address_file=address_file,
        passed=passed,
        read_settings=lambda: load(file=config_file, flags=flags).settings,
    )
    with asyncio.Runner(loop_factory=lambda: new_loop(daemon.wake_gap_s)) as runner:
        return runner.run(daemon.run())


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End a daemon that has not accepted anything yet."""
    raise SystemExit(0)
