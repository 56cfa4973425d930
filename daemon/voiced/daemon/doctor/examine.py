"""Every check, in the order in which people should read the findings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from voiced.daemon.config import ConfigError, load
from voiced.daemon.doctor.finding import Finding, fail, ok, warn
from voiced.daemon.doctor.machine import check_clock, check_cpu, check_disk, check_memory
from voiced.daemon.doctor.model import check_model, check_npu, check_runtime
from voiced.daemon.doctor.network import check_ports
from voiced.daemon.doctor.sound import check_sound
from voiced.daemon.settings import Settings
from voiced.engine.store import models_dir

logger = logging.getLogger(__name__)


def examine(config_file: Path | None) -> Iterator[Finding]:
    """Check everything that the settings ask for; a wrong setting is a finding like the others.

    A check that breaks is one too: a doctor that falls over helps nobody.
    """
    settings = Settings()
    try:
        loaded = load(file=config_file)
    except ConfigError as error:
        for problem in error.problems:
            yield fail("config", str(problem), "mend it; the rest is judged by the defaults")
    else:
        settings = loaded.settings
        yield ok("config", str(loaded.file or "no file, all defaults"))
        for problem in loaded.warnings:
            yield warn("config", str(problem), "remove it, or correct its name")
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "cpu": lambda: check_cpu(settings.engine.threads),
        "memory": check_memory,
        "disk": lambda: check_disk(folders(os.environ)),
        "clock": check_clock,
        "model": lambda: check_model(settings),
        "runtime": lambda: check_runtime(settings),
        "npu": lambda: check_npu(settings),
        "ports": lambda: check_ports(settings),
        "audio": lambda: check_sound(settings.microphone),
    }
    for name, check in checks.items():
        yield from guarded(name, check)


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Run a check; what it raises is a finding."""
    try:
        yield from check()
    except Exception as error:
        logger.debug("check broke name=%s", name, exc_info=True)
        found = f"the check itself broke: {type(error).__name__}: {error}"
        yield fail(name, found, "please report it, with `voiced --debug doctor`")


def folders(environment: Mapping[str, str]) -> dict[str, Path]:
    """What is kept where: the models, and the folders that systemd gives a service."""
    found = {"models": models_dir()}
    for purpose, variable in (("state", "STATE_DIRECTORY"), ("cache", "CACHE_DIRECTORY")):
        if text := environment.get(variable):
            found[purpose] = Path(text.partition(":")[0])
    return found
