"""`voiced bench interruptions`: what a start, a killed worker and a stop cost those who speak.

A daemon is started as a process, as a service manager does it: with a socket that hears READY.
Streams then speak in real time without a pause for long; its worker is killed while they do; and in
the end the daemon is told to stop while they do. What each client heard is held to the promises of
the protocol (`ledger.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from voiced.audio.frames import RATE_HZ
from voiced.bench.errors import BenchError
from voiced.bench.ledger import StreamLedger, Violations
from voiced.bench.report import Table
from voiced.bench.workers import kill_worker, worker_of
from voiced.daemon import wire
from voiced.daemon.commands.child import FREE_PORTS, cpu_s, without_settings

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

MESSAGE_MS = 50
_LONGEST_S = 120.0
"""For each thing that is waited for."""
_INTO_SPEECH_S = 0.7
"""The worker is killed so long after somebody has begun to speak."""
_TALK_S = 8.0
"""How long the streams speak on after the new worker is there, and before the stop."""


class NotInterrupted(BenchError):
    """A round could not be brought to its end, so that it proves nothing."""

    code = "interruptions"


@dataclass(frozen=True, slots=True)
class Round:
    """One daemon, from its start to its end."""

    ready_s: float
    """From the start of the process to READY=1."""
    ready_cpu_s: float
    """CPU time of daemon and worker until then."""
    back_s: float
    """From the kill of the worker to readiness with another one."""
    back_cpu_s: float
    """CPU time of that one until then."""
    usual_ms: float
    """Longest wait from `speech_ended` to the final before the kill."""
    crash_ms: float
    """The same after it: what the crash cost whoever spoke."""
    stop_s: float
    """From SIGTERM to the end of the process."""
    status: int
    """Of its exit."""
    segments: int
    """Announced to clients."""
    finals: int
    failed: int
    ended: int
    """Streams that were told `ended`."""
    violations: Violations
    load_1min: float

    @property
    def is_good(self) -> bool:
        """Everything was answered and every stream ended in order."""
        return (
            self.status == 0
            and self.finals == self.segments > 0
            and not (self.failed or self.violations.count)
        )


@dataclass(frozen=True, slots=True)
class Interruptions:
    """All rounds."""

    streams: int
    rounds: Sequence[Round]

    @property
    def is_good(self) -> bool:
        """Each round is."""
        return all(each.is_good and each.ended == self.streams for each in self.rounds)

    def table(self) -> Table:
        """The same for people."""
        rounds = self.rounds

        def row(name: str, get: Callable[[Round], float], form: str) -> tuple[str, ...]:
            values = [get(each) for each in rounds]
            shown = (min(values), statistics.median(values), max(values))
            return name, *(format(value, form) for value in shown)

        told = sum(each.ended for each in rounds)
        return Table(
            f"a start, a killed worker and a stop under {self.streams} streams, "
            f"{len(rounds)} rounds",
            ("", "least", "median", "most"),
            (
                row("process start to READY, s", lambda each: each.ready_s, ".2f"),
                row("CPU time until then, s", lambda each: each.ready_cpu_s, ".2f"),
                row("worker killed to ready again, s", lambda each: each.back_s, ".2f"),
                row("CPU time of the new one until then, s", lambda each: each.back_cpu_s, ".2f"),
                row("end of speech to final before, ms", lambda each: each.usual_ms, ".0f"),
                row("end of speech to final after the kill, ms", lambda each: each.crash_ms, ".0f"),
                row("SIGTERM to exit, s", lambda each: each.stop_s, ".2f"),
                row("load of a minute at the end", lambda each: each.load_1min, ".1f"),
            ),
            (
                "the longest wait of each round; the silence that ends a segment is not in it",
                f"segments {sum(each.segments for each in rounds)}, "
                f"finals {sum(each.finals for each in rounds)}, "
                f"failed {sum(each.failed for each in rounds)}, "
                f"streams told of their end {told} of {self.streams * len(rounds)}, "
                f"broken promises {sum(each.violations.count for each in rounds)}",
            ),
        )


@dataclass(slots=True)
class _Speaker:
    """One stream, and what its client hears."""

    name: str
    pcm: bytes
    heard: asyncio.Event
    ledger: StreamLedger = field(init=False)
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When each final came, and how long after its `speech_ended`, in seconds."""
    _ended_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = StreamLedger(self.name)

    @property
    def is_speaking(self) -> bool:
        return self.ledger.open_segments > len(self._ended_s)

    async def run(self, url: str) -> None:
        """Speak until the server ends the stream."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            async with connect(url, compression=None, proxy=None) as connection:
                start = wire.Start(v=1, audio=wire.AudioParams(), stream=self.name)
                await connection.send(wire.encode(start).decode())
                sending = asyncio.create_task(self._send(connection))
                try:
                    async for data in connection:
                        self._take(wire.decode_server(data))
                finally:
                    sending.cancel()
                    await asyncio.wait((sending,))
        self.ledger.close()

    def _take(self, message: wire.ServerMessage) -> None:
        now_s = time.monotonic()
        self.ledger.take(message)
        match message:
            case wire.SpeechEnded():
                self._ended_s[message.segment] = now_s
            case wire.Final() | wire.Failed():
                self.waits.append((now_s, now_s - self._ended_s.pop(message.segment, now_s)))
        self.heard.set()

    async def _send(self, connection: ClientConnection) -> None:
        """Send blocks on an absolute schedule, as a microphone does."""
        from websockets.exceptions import ConnectionClosed

        size, begin_s, number = 2 * RATE_HZ * MESSAGE_MS // 1000, time.monotonic(), 0
        with contextlib.suppress(ConnectionClosed):
            while True:
                place = number * size % (len(self.pcm) - size)
                await connection.send(self.pcm[place : place + size])
                number += 1
                ahead_s = begin_s + number * MESSAGE_MS / 1000 - time.monotonic()
                await asyncio.sleep(max(ahead_s, 0))


def run(
    speech: Sequence[bytes],
    *,
    rounds: int = 3,
    arguments: Sequence[str] = (),
    advance: Callable[[str], None] = lambda label: None,
) -> Interruptions:
    """Start, interrupt and stop as many daemons as there are rounds, one after another.

    Args:
        speech: What each stream says, s16 at 16 kHz with pauses that end segments; repeated.
        rounds: How often.
        arguments: Further arguments of `voiced run`.
        advance: Called after each round.

    Raises:
        NotInterrupted: A daemon did not start, or did not do what was waited for.
    """
    done = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="voiced-interrupted-") as folder:
            done.append(_round(Path(folder), speech, arguments))
        advance(f"round {number + 1}")
    return Interruptions(len(speech), tuple(done))


@dataclass(frozen=True, slots=True)
class _Started:
    """A daemon that has said that it is ready."""

    process: subprocess.Popen[bytes]
    address: str
    ready_s: float
    cpu_s: float


def _round(folder: Path, speech: Sequence[bytes], arguments: Sequence[str]) -> Round:
    heard = asyncio.Event()
    speakers = [_Speaker(f"speaker-{number}", pcm, heard) for number, pcm in enumerate(speech)]
    log = folder / "log"
    try:
        with _start(folder, log, arguments) as started:
            times = asyncio.run(_interrupt(started, speakers, heard))
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise NotInterrupted(f"waited {_LONGEST_S:g} s in vain\n{tail}") from error
    violations = Violations()
    for each in speakers:
        violations.extend(each.ledger.violations)
    return Round(
        ready_s=started.ready_s,
        ready_cpu_s=started.cpu_s,
        back_s=times.back_s,
        back_cpu_s=times.back_cpu_s,
        usual_ms=1_000 * times.usual_s,
        crash_ms=1_000 * times.crash_s,
        stop_s=times.stop_s,
        status=times.status,
        segments=sum(each.ledger.announced for each in speakers),
        finals=sum(each.ledger.finals for each in speakers),
        failed=sum(sum(each.ledger.failed.values()) for each in speakers),
        ended=sum(each.ledger.is_over for each in speakers),
        violations=violations,
        load_1min=os.getloadavg()[0],
    )


@contextlib.contextmanager
def _start(folder: Path, log: Path, arguments: Sequence[str]) -> Iterator[_Started]:
    """Start a daemon, and be the service manager that it tells of its readiness."""
    config = folder / "voiced.toml"
    config.write_text(FREE_PORTS, encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("wb") as sink:
        manager.bind(str(folder / "notify"))
        began_s = time.monotonic()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "voiced.daemon.cli", "run", "--config", str(config)),
                *("--address-file", str(folder / "addresses.json"), *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=without_settings() | {"NOTIFY_SOCKET": str(folder / "notify")},
        )
        try:
            manager.settimeout(_LONGEST_S)
            while b"READY=1" not in manager.recv(4_096):
                pass
            ready_s = time.monotonic() - began_s
            worker = worker_of(process.pid)
            spent_s = cpu_s([process.pid, *([] if worker is None else [worker])])
            where = json.loads((folder / "addresses.json").read_text(encoding="utf-8"))
            yield _Started(process, f"{where['host']}:{where['port']}", ready_s, spent_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@dataclass(frozen=True, slots=True)
class _Times:
    back_s: float
    back_cpu_s: float
    usual_s: float
    crash_s: float
    stop_s: float
    status: int


async def _interrupt(
    started: _Started, speakers: Sequence[_Speaker], heard: asyncio.Event
) -> _Times:
    """Let everybody speak, kill the worker, let everybody speak on, stop the daemon."""
    process, url = started.process, f"ws://{started.address}/v1/stream"
    talking = [asyncio.create_task(each.run(url)) for each in speakers]
    try:
        await _until(heard, lambda: all(each.waits for each in speakers))
        await _until(heard, lambda: any(each.is_speaking for each in speakers))
        await asyncio.sleep(_INTO_SPEECH_S)
        usual_s = max(wait_s for each in speakers for _, wait_s in each.waits)
        killed_s = time.monotonic()
        worker = worker_of(process.pid)
        if worker is None or not await asyncio.to_thread(kill_worker, worker):
            raise NotInterrupted("the daemon has no worker to kill")
        another = await asyncio.to_thread(_wait_back, process.pid, worker, started.address)
        back_cpu_s = cpu_s([another])
        back_s = time.monotonic() - killed_s
        await asyncio.sleep(_TALK_S)
        await _until(heard, lambda: any(each.is_speaking for each in speakers))
        waits_s = [wait for each in speakers for at_s, wait in each.waits if at_s > killed_s]
        stopped_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(process.wait, _LONGEST_S)
        stop_s = time.monotonic() - stopped_s
        async with asyncio.timeout(_LONGEST_S):
            await asyncio.gather(*talking)
    finally:
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)
    return _Times(back_s, back_cpu_s, usual_s, max(waits_s, default=math.inf), stop_s, status)


async def _until(heard: asyncio.Event, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONGEST_S):
        while not condition():
            heard.clear()
            await heard.wait()


def _wait_back(daemon: int, killed: int, address: str) -> int:
    """Wait until the daemon is ready with another worker, and return its pid; blocks."""
    deadline_s = time.monotonic() + _LONGEST_S
    while time.monotonic() < deadline_s:
        worker = worker_of(daemon)
        if worker is not None and worker != killed and _is_ready(f"http://{address}/readyz"):
            return worker
        time.sleep(0.02)
    raise TimeoutError


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
