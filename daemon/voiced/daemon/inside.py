"""What goes on inside of a running daemon: for `/v1/status`, and for the log on SIGUSR1."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

from voiced.daemon.microphone import MicrophoneStatus
from voiced.daemon.streams import Streams

logger = logging.getLogger(__name__)

_MOST_TASKS = 200
"""Tasks whose stacks are written: a thousand streams have as many."""
_MOST_FRAMES = 12


class Connected(Protocol):
    """What is shown of the server."""

    @property
    def connections(self) -> int: ...
    @property
    def waiting_bytes(self) -> int: ...
    @property
    def stalled_s(self) -> float: ...
    @property
    def parked(self) -> int: ...


class Inside:
    """Gathers facts when they are asked for. Belongs to the loop."""

    def __init__(
        self,
        streams: Streams,
        *,
        bus_seq: Callable[[], int],
        microphone: Callable[[], MicrophoneStatus] | None = None,
        shows_text: bool = False,
    ) -> None:
        """Keep what is asked about; `shows_text` adds each stream's latest words."""
        self._streams, self._bus_seq = streams, bus_seq
        self._microphone, self._shows_text = microphone, shows_text
        self._began_s = time.monotonic()
        self.server: Connected | None = None

    def facts(self, *, with_text: bool | None = None) -> dict[str, Any]:
        """Everything, as plain values."""
        engine, streams, server = self._streams.engine, self._streams, self.server
        info = engine.info
        shows_text = self._shows_text if with_text is None else with_text
        found: dict[str, Any] = {
            "version": version("voiced"),
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "rss_bytes": _rss_bytes(),
            "engine": {
                "is_ready": engine.ready,
                "reason": engine.reason,
                "bundle": "" if info is None else info.bundle,
                "worker_pid": 0 if info is None else info.worker_pid,
                **asdict(engine.load()),
            },
            "streams": [each.facts(with_text=shows_text) for each in streams.sessions],
            "max_streams": streams.max_streams,
            "backlog_s": round(streams.backlog_s, 2),
            "backlog_age_s": round(streams.backlog_age_s, 2),
            "bus_seq": self._bus_seq(),
        }
        if server is not None:
            found["clients"] = {
                "connections": server.connections,
                "parked": server.parked,
                "waiting_bytes": server.waiting_bytes,
                "stalled_s": round(server.stalled_s, 2),
            }
        if self._microphone is not None:
            found["microphone"] = self._microphone().facts()
        return found

    def dump(self) -> None:
        """Write stacks and queues to the log, without a word that anybody said.

        The engine's worker writes its own stacks to standard error when it gets SIGUSR1.
        """
        facts = self.facts(with_text=False)
        logger.warning("dump facts=%s", json.dumps(facts))
        for line in _thread_stacks().splitlines():
            logger.warning("dump thread %s", line)
        for task in list(asyncio.all_tasks())[:_MOST_TASKS]:
            frames = task.get_stack(limit=_MOST_FRAMES)
            at = " < ".join(
                f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
                for frame in reversed(frames)
            )
            logger.warning("dump task name=%s at=%s", task.get_name(), at or "nowhere")
        worker_pid = facts["engine"]["worker_pid"]
        if worker_pid and facts["engine"]["is_ready"]:
            try:
                os.kill(worker_pid, signal.SIGUSR1)
            except ProcessLookupError:
                logger.warning("dump worker is gone pid=%d", worker_pid)


def _thread_stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _rss_bytes() -> int:
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
