"""Kills daemon, worker and plugin at random moments under load, and counts what that costs.

The daemon runs the fake recogniser with a journal; clients speak into it without pause and note
what they are promised; a `jsonl` plugin writes finals down. Whatever is killed is started again, as
a service manager would. In the end the three accounts are compared (`crash_ledger.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus, WebSocketException

from voiced.bench.crash_ledger import Ledger, Verdict, compare
from voiced.bench.errors import BenchError
from voiced.bench.workers import kill_worker, worker_of
from voiced.daemon.journal_file import FILE_NAME
from voiced.daemon.journal_reader import JournalReader

logger = logging.getLogger(__name__)

RATE_HZ = 16_000
_BLOCK_S = 0.1
_SPEED = 6
"""Times faster than speech: what is closed and unanswered is what a crash can cost."""
_SETTLE_S = 300.0
"""Longest wait for everything to be answered and written down at the end."""
_WHILE_STARTING = 0.1
"""Share of kills that come whatever the daemon does; the rest comes while it serves."""
_VICTIMS = ("daemon", "daemon", "worker", "plugin")
_DEATH_S = 60.0
"""Longest wait for a killed process to be gone."""


class CrashRunFailed(BenchError):
    """The run could not be brought to its end, so that it proves nothing."""

    code = "crash_run"


@dataclass(frozen=True, slots=True)
class CrashPlan:
    """What is done."""

    kills: int = 200
    streams: int = 6
    seed: int = 1
    longest_pause_s: float = 1.5
    """Between two kills: evenly from 0."""
    delay_ms: int = 60
    """Time that the recogniser takes for each segment."""
    longest_s: float = 3_600.0
    """No kill comes after this, however few there were."""
    survives: str = "crash"
    """`journal.survives`: a kill is a crash."""


@dataclass(slots=True)
class _Child:
    """A process that is started again whenever it ends."""

    command: Callable[[], list[str]]
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def keep(self) -> None:
        """Start it unless it runs."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=self.environment,
                )  # fmt: skip
            self.starts += 1

    def stop(self, timeout_s: float) -> None:
        """End it, by force when it does not within the time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class CrashResult:
    """What came of it."""

    verdict: Verdict
    asked: int
    """Kills of the plan; fewer came where the time was over before."""
    kills: dict[str, int]
    """Processes that ended by them, each counted once."""
    duration_s: float
    starts: dict[str, int] = field(default_factory=dict)


class CrashRun:
    """One run in a folder of its own; the folder keeps journal, logs and the plugin's file."""

    def __init__(self, plan: CrashPlan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._random = random.Random(plan.seed)
        self._ports = _free_ports(4)
        self._ledger = Ledger()
        self._out = folder / "finals.jsonl"
        self._state = folder / "state"
        self._kills: Counter[str] = Counter()
        self._is_over = asyncio.Event()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("VOICED_")}
        clean |= {"XDG_CONFIG_HOME": str(folder), "STATE_DIRECTORY": str(self._state)}
        self._daemon = _Child(self._daemon_command, folder / "daemon.log", clean)
        self._plugin = _Child(self._plugin_command, folder / "plugin.log", clean)

    async def run(self, progress: Callable[[str], None] = lambda text: None) -> CrashResult:
        """Kill as planned, let everything settle, compare.

        Raises:
            CrashRunFailed: The daemon did not settle.
        """
        began_s = time.monotonic()
        clients: list[asyncio.Task[None]] = []
        keeper = asyncio.create_task(self._keep())
        try:
            await self._until(self._is_ready, "the daemon to be ready")
            clients = [
                asyncio.create_task(self._speak(f"car-{number}", number))
                for number in range(self._plan.streams)
            ]
            await self._kill_all(progress)
            self._is_over.set()
            await asyncio.gather(*clients)
            await self._until(self._is_settled, "everything to be answered and written down")
        finally:
            for task in (keeper, *clients):
                task.cancel()
            await asyncio.gather(keeper, *clients, return_exceptions=True)
            await asyncio.to_thread(self._plugin.stop, 20)
            await asyncio.to_thread(self._daemon.stop, 20)
        return CrashResult(
            verdict=compare(self._ledger, self._journal(), self._lines()),
            asked=self._plan.kills,
            kills=dict(self._kills),
            duration_s=time.monotonic() - began_s,
            starts={"daemon": self._daemon.starts, "plugin": self._plugin.starts},
        )

    # ---- processes -------------------------------------------------------------------------

    def _daemon_command(self) -> list[str]:
        http, bus, ingest, replay = self._ports
        settings = {
            "vad.kind": "webrtc",
            "bus.replay": f"tcp://127.0.0.1:{replay}",
            "journal.survives": self._plan.survives,
            "limits.max_backlog_s": "600",
        }
        pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return [
            *(sys.executable, "-m", "voiced.daemon.cli", "run", *pairs, "--port", str(http)),
            *("--bus", f"tcp://127.0.0.1:{bus}", "--ingest", f"tcp://127.0.0.1:{ingest}"),
            *("--model", f"fake:delay_ms={self._plan.delay_ms}"),
        ]

    def _plugin_command(self) -> list[str]:
        _, bus, ingest, replay = self._ports
        begin = () if self._out.exists() and self._out.stat().st_size else ("--from", "beginning")
        return [
            *(sys.executable, "-m", "voiced.daemon.cli", "plugins", "run", "jsonl"),
            *("--bus", f"tcp://127.0.0.1:{bus}", "--ingest", f"tcp://127.0.0.1:{ingest}"),
            *("--replay", f"tcp://127.0.0.1:{replay}", "--set", f"path={self._out}"),
            *("--set", "max_mb=10000", "--state-dir", str(self._folder / "plugin"), *begin),
        ]

    async def _keep(self) -> None:
        while True:
            self._daemon.keep()
            self._plugin.keep()
            await asyncio.sleep(0.05)

    async def _kill_all(self, progress: Callable[[str], None]) -> None:
        done, end_s = 0, time.monotonic() + self._plan.longest_s
        while done < self._plan.kills and time.monotonic() < end_s:
            if self._random.random() >= _WHILE_STARTING:
                await self._until(self._is_ready, "the daemon to be ready")
            await asyncio.sleep(self._random.uniform(0, self._plan.longest_pause_s))
            victim = self._random.choice(_VICTIMS)
            try:
                is_killed = await asyncio.to_thread(self._kill, victim)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                raise CrashRunFailed(f"killed {victim} is not gone: {error}") from error
            if is_killed:
                self._kills[victim] += 1
                done += 1
                if done % 20 == 0 or done == self._plan.kills:
                    progress(f"{done} kills, {len(self._ledger.announced)} segments announced")

    def _kill(self, victim: str) -> bool:
        """Kill a process and see it gone; False when there is none, or it ended by itself.

        Nothing else is killed before it is gone: none can be killed, or counted, twice.
        """
        process = (self._plugin if victim == "plugin" else self._daemon).process
        if process is None or process.poll() is not None:
            return False
        if victim == "worker":
            worker = worker_of(process.pid)
            return worker is not None and kill_worker(worker)
        process.kill()
        return process.wait(_DEATH_S) == -signal.SIGKILL

    # ---- clients ---------------------------------------------------------------------------

    async def _speak(self, stream: str, number: int) -> None:
        """Say one thing after the other; come back whenever the connection breaks."""
        words = _words(self._plan.seed * 1_000 + number)
        start = {"type": "start", "v": 1, "stream": stream, "audio": {}, "partials": False}
        while not self._is_over.is_set():
            try:
                async with connect(
                    f"ws://127.0.0.1:{self._ports[0]}/v1/stream", compression=None, proxy=None
                ) as connection:
                    await connection.send(json.dumps(start))
                    hearing = asyncio.create_task(self._hear(connection))
                    try:
                        block = 0
                        while not self._is_over.is_set() and not hearing.done():
                            await connection.send(words[block % len(words)])
                            block += 1
                            await asyncio.sleep(_BLOCK_S / _SPEED)
                        with contextlib.suppress(WebSocketException):
                            await connection.send('{"type":"stop"}')
                        await hearing
                    finally:
                        hearing.cancel()
            except (OSError, InvalidStatus, InvalidMessage, WebSocketException, EOFError):
                await asyncio.sleep(0.05)

    async def _hear(self, connection: Any) -> None:
        with contextlib.suppress(WebSocketException):
            async for text in connection:
                self._ledger.note(json.loads(text))

    # ---- the end ---------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _SETTLE_S
        while not await asyncio.to_thread(condition):
            if time.monotonic() > deadline_s:
                raise CrashRunFailed(f"waited {_SETTLE_S:g} s for {what}; see {self._folder}")
            await asyncio.sleep(0.1)

    def _readyz(self) -> dict[str, Any]:
        try:
            url = f"http://127.0.0.1:{self._ports[0]}/readyz"
            with urllib.request.urlopen(url, timeout=5) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except (OSError, urllib.error.URLError, ValueError):
            return {}

    def _is_ready(self) -> bool:
        return bool(self._readyz().get("ready"))

    def _is_settled(self) -> bool:
        """Nothing is spooled or waits, and the plugin has the last final."""
        journal = self._readyz().get("journal", {"spooled": 1})
        if journal["spooled"] or journal["pending"]:
            return False
        finals = [entry for entry in self._journal() if entry["type"] == "final"]
        lines = self._lines()
        return not finals or (bool(lines) and lines[-1]["seq"] == finals[-1]["seq"])

    def _journal(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        after = None
        with JournalReader(self._state / FILE_NAME) as reader:
            while True:
                batch = reader.read(after=after, limit=1_000)
                entries += [json.loads(entry.body) for entry in batch.entries]
                if not batch.more:
                    return entries
                after = (batch.entries[-1].epoch, batch.entries[-1].seq)

    def _lines(self) -> list[dict[str, Any]]:
        """Whole lines; one that a kill has torn has been ended and is no JSON."""
        found = []
        if self._out.exists():
            for line in self._out.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found


def _words(seed: int) -> list[bytes]:
    """Blocks of noise, which webrtcvad takes for speech, and of silence: about 20 segments."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(20):
        speech_s, pause_s = generator.uniform(0.5, 1.2), generator.uniform(0.8, 1.0)
        loud = generator.normal(0, 6_000, round(speech_s * RATE_HZ)).clip(-32_000, 32_000)
        parts += [loud.astype("<i2"), np.zeros(round(pause_s * RATE_HZ), "<i2")]
    pcm = np.concatenate(parts).tobytes()
    size = 2 * round(_BLOCK_S * RATE_HZ)
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
