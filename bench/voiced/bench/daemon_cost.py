"""`voiced bench frontend`, second half: what a stream costs a real daemon besides the recogniser.

A daemon runs as a process of its own, with the fake recogniser in its worker. This process plays
streams to it over WebSockets in real time, and listens on its bus. What is counted is the CPU time
of the daemon's process alone, in nanoseconds: sockets, protocol, audio chain, session, bus, and
handing segments to the worker. The worker is not in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from voiced.audio.frames import RATE_HZ
from voiced.audio.pcm import Float32, float_to_int16
from voiced.audio.sources import synthetic
from voiced.bench.frontend import SILENCE_BUDGET_MS, SPEECH_BUDGET_MS
from voiced.bench.report import Table
from voiced.daemon import wire
from voiced.daemon.commands.child import ChildDaemon, child_daemon, child_failures, cpu_s

if TYPE_CHECKING:
    import zmq.asyncio

MESSAGE_MS = (20, 40, 100)
"""Sound in one WebSocket message: what browsers, telephony and microphones send."""
STREAMS = 16
"""Streams at once; their messages are spread evenly over time."""
_IDLE_S = 3.0
_SPARE_S = 30.0
"""Longest wait for an answer beyond the time that playing takes."""


@dataclass(frozen=True, slots=True)
class DaemonFigure:
    """One message length."""

    message_ms: int
    partials_ms_per_s: float
    """CPU milliseconds of the daemon per second of speech and stream, partials included: one for
    each hop, as the fake recogniser answers at once."""
    speech_ms_per_s: float
    """The same for streams that want finals only: what does not depend on the recogniser."""
    silence_ms_per_s: float
    """The same per second of a quiet room (white noise at -60 dBFS)."""
    finals: int
    """Finals of all streams of the speech."""


@dataclass(frozen=True, slots=True)
class DaemonFigures:
    """All figures of one run."""

    source: str
    """What the speech was."""
    streams: int
    seconds: float
    """Real time that each kind of sound was played."""
    idle_ms_per_s: float
    """CPU of a daemon without streams: heartbeats and timers. Part of all figures."""
    figures: Sequence[DaemonFigure]

    def table(self) -> Table:
        """The same for people."""
        rows = tuple(
            (
                f"{figure.message_ms} ms",
                f"{figure.partials_ms_per_s:.2f}",
                f"{figure.speech_ms_per_s:.2f}",
                f"{figure.silence_ms_per_s:.2f}",
                str(figure.finals),
            )
            for figure in self.figures
        )
        return Table(
            "daemon: CPU of one stream, network, session and bus included, recogniser not",
            (
                "message length",
                "ms per s speech, partials",
                "ms per s speech, finals only",
                "ms per s silence",
                "finals",
            ),
            rows,
            (
                f"{self.streams} streams of 16 kHz mono at once for {self.seconds:.0f} s each; "
                f"speech: {self.source}",
                f"budget: {SPEECH_BUDGET_MS:g} and {SILENCE_BUDGET_MS:g} ms; "
                f"the idle daemon takes {self.idle_ms_per_s:.2f} ms per s, counted in",
            ),
        )


def run(
    *,
    speech: Float32,
    source: str,
    seconds: float = 15.0,
    streams: int = STREAMS,
    message_ms: Sequence[int] = MESSAGE_MS,
    idle_s: float = _IDLE_S,
    arguments: Sequence[str] = (),
    advance: Callable[[str], None] = lambda label: None,
) -> DaemonFigures:
    """Measure a daemon; takes `3 * seconds` of real time for each message length.

    Args:
        speech: float32[n] at 16 kHz; each stream begins at another place in it.
        source: What `speech` is, for the report.
        seconds: How long each kind of sound is played.
        streams: Streams at once.
        message_ms: Lengths of a message, each measured alone.
        idle_s: How long the daemon is watched without streams.
        arguments: Further arguments of `voiced run`.
        advance: Called after each measurement.

    Raises:
        ChildFailed: The daemon did not start, answer or end as it should.
    """
    quiet = synthetic.noise(seconds, seed=1, level_dbfs=-60)
    with child_daemon("--model", "fake", *arguments) as daemon:
        figures = asyncio.run(
            _measure(
                daemon,
                [_part(speech, number / streams, seconds) for number in range(streams)],
                [_part(quiet, number / streams, seconds) for number in range(streams)],
                message_ms,
                idle_s,
                advance,
            )
        )
    idle, rows = figures
    return DaemonFigures(source, streams, seconds, idle, rows)


def _part(sound: Float32, offset: float, seconds: float) -> bytes:
    """Return `seconds` of s16 from a place in the sound, which is repeated as often as needed."""
    rolled = np.roll(sound, -round(offset * len(sound)))
    return float_to_int16(np.resize(rolled, round(seconds * RATE_HZ))).astype("<i2").tobytes()


async def _measure(
    daemon: ChildDaemon,
    speech: Sequence[bytes],
    silence: Sequence[bytes],
    message_ms: Sequence[int],
    idle_s: float,
    advance: Callable[[str], None],
) -> tuple[float, tuple[DaemonFigure, ...]]:
    import zmq
    import zmq.asyncio

    rows: list[DaemonFigure] = []
    with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.subscribe(b"")
        subscriber.connect(daemon.bus)
        reader = asyncio.create_task(_drain(subscriber))
        try:
            before_s = cpu_s([daemon.pid])
            await asyncio.sleep(idle_s)
            idle = (cpu_s([daemon.pid]) - before_s) * 1000 / idle_s
            # The first stream loads the detector: not a cost of every stream.
            await _play_all(daemon, [part[: RATE_HZ * 2] for part in speech[:1]], 100)
            for each in message_ms:
                partials_ms, finals = await _play_all(daemon, speech, each)
                advance(f"{each} ms, speech with partials")
                speech_ms, _ = await _play_all(daemon, speech, each, partials=False)
                advance(f"{each} ms, speech")
                silence_ms, _ = await _play_all(daemon, silence, each)
                advance(f"{each} ms, silence")
                rows.append(DaemonFigure(each, partials_ms, speech_ms, silence_ms, finals))
        finally:
            reader.cancel()
            await asyncio.wait({reader})
    return idle, tuple(rows)


async def _drain(subscriber: zmq.asyncio.Socket) -> None:
    while True:
        await subscriber.recv_multipart()


async def _play_all(
    daemon: ChildDaemon, parts: Sequence[bytes], message_ms: int, *, partials: bool = True
) -> tuple[float, int]:
    """Play streams side by side; return CPU milliseconds per second of sound, and the finals."""
    before_s = cpu_s([daemon.pid])
    begin_s = time.monotonic()
    step_s = message_ms / 1000 / len(parts)
    with child_failures():
        async with asyncio.TaskGroup() as tasks:
            streams = [
                tasks.create_task(
                    _play(daemon.url, part, message_ms, begin_s + number * step_s, partials)
                )
                for number, part in enumerate(parts)
            ]
    used_s = cpu_s([daemon.pid]) - before_s
    sound_s = sum(map(len, parts)) / 2 / RATE_HZ
    return used_s * 1000 / sound_s, sum(stream.result() for stream in streams)


async def _play(url: str, pcm: bytes, message_ms: int, begin_s: float, partials: bool) -> int:
    """Play one stream on an absolute schedule; return the number of its finals."""
    from websockets.asyncio.client import connect

    size = RATE_HZ * message_ms // 1000 * 2
    async with (
        asyncio.timeout(len(pcm) / 2 / RATE_HZ + _SPARE_S),
        connect(url, compression=None) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        start = wire.Start(v=1, audio=wire.AudioParams(), partials=partials)
        await connection.send(wire.encode(start).decode())

        async def send() -> None:
            for number, at in enumerate(range(0, len(pcm), size), start=1):
                due_s = begin_s + number * message_ms / 1000
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await connection.send(pcm[at : at + size])
            await connection.send(wire.encode(wire.Stop()).decode())

        tasks.create_task(send())
        finals = 0
        async for message in connection:
            finals += isinstance(wire.decode_server(message), wire.Final)
    return finals
