"""`voiced bench load`: live streams over real WebSockets, from a process of their own.

Each stream is a client that sends dialogue at the speed of speech, on an absolute schedule, and
reads what comes back; one subscriber reads the bus. The schedule decides when speech ended: a
server that does not read in time is late, not the speaker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Dialogue, Spoken, choose, dialogues, prepare
from voiced.bench.hearing import Fate, Hearing, Judge
from voiced.bench.ledger import Sequence as BusSequence
from voiced.bench.ledger import StreamLedger, Twin
from voiced.bench.load_report import Books, LoadResult, Pace, Tally, sum_up
from voiced.bench.sampling import Sampler
from voiced.daemon import wire

if TYPE_CHECKING:
    import zmq.asyncio
    from websockets.asyncio.client import ClientConnection

    from voiced.engine.types import EngineConfig

MESSAGE_MS = 50
DRAIN_S = 90.0
"""Longest wait for the last words after a stream's end."""
_JOIN_S = 10.0
_LEAD_S = 0.5
"""From opening the streams to their first sample."""
_BUS_SPARE_S = 3.0
"""How long the bus may trail behind the last WebSocket."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What is played."""

    streams: int
    seconds: float = 60.0
    partials: bool = True
    eager: bool = False
    """Ask for `eager_final` too."""
    message_ms: int = MESSAGE_MS
    hang_over_ms: float = 600.0
    """Silence after which the server ends a segment; only subtracted."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon under load."""

    url: str
    bus: str | None
    """None: the bus is not compared."""
    pids: Callable[[], Sequence[int]]
    """Its processes now; empty where they are not known."""
    log: Path | None = None
    """What a daemon of our own writes."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What connections are opened with besides: `additional_headers`, `ssl`."""

    @property
    def metrics_url(self) -> str:
        """Where its metrics are: the same port."""
        return http_url(self.url, "/metrics")


MOST_COMPLAINTS = 40
_SEVERE = (" WARNING ", " ERROR ", " CRITICAL ")


def complaints(log: Path | None) -> list[str]:
    """Return the first lines of a daemon's log that are warnings or worse."""
    if log is None:
        return []
    with log.open(encoding="utf-8", errors="replace") as lines:
        severe = (line.rstrip() for line in lines if any(word in line for word in _SEVERE))
        return list(itertools.islice(severe, MOST_COMPLAINTS))


def http_url(url: str, path: str) -> str:
    """Turn the address of a stream into that of a page of the same server."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    return urlunsplit((scheme, parts.netloc, path, "", ""))


class LoadRun:
    """One run: owns every stream and what is learned of it."""

    def __init__(
        self, target: Target, plan: LoadPlan, spoken: dict[str, list[Spoken]], judge: Judge | None
    ) -> None:
        self._target, self._plan, self._judge = target, plan, judge
        self._streams = dialogues(spoken, plan.streams, seconds=plan.seconds, seed=plan.seed)
        token = secrets.token_hex(3)
        self._names = [f"load-{token}-{number}" for number in range(plan.streams)]
        self._twins = {name: Twin(name, "WebSocket", "bus") for name in self._names}
        self._on_bus = {name: StreamLedger(f"bus {name}") for name in self._names}
        self._refused: set[str] = set()
        self._bus = BusSequence()
        self._bus_is_over = asyncio.Event()
        self.tally, self.books, self.pace = Tally(), Books(), Pace()

    async def run(self, advance: Callable[[str], None] = lambda _: None) -> LoadResult:
        """Play everything in real time.

        Args:
            advance: Called once a second of the plan, with how things are.

        Raises:
            OSError: Nobody listens there.
            TimeoutError: The bus says nothing.
        """
        async with contextlib.AsyncExitStack() as stack:
            reader = await self._join_bus(stack)
            begin_s = time.monotonic() + _LEAD_S
            sampler = Sampler(
                self._target.pids,
                metrics_url=self._target.metrics_url,
                headers=self._target.options.get("additional_headers"),
                context=self._target.options.get("ssl"),
            )
            watching = asyncio.create_task(sampler.run(begin_s))
            ticking = asyncio.create_task(self._tick(begin_s, advance))
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(self._plan.streams):
                        tasks.create_task(self._stream(number, begin_s))
                if reader is not None:
                    self._look_for_end()
                    await self._wait_for_bus()
            finally:
                await _cancel(ticking)
                await _cancel(watching)
                if reader is not None:
                    await _cancel(reader)
            samples = await sampler.finish()
        self._close_books(has_bus=reader is not None)
        return sum_up(
            streams=self._plan.streams,
            seconds=self._plan.seconds,
            partials=self._plan.partials,
            hang_over_ms=self._plan.hang_over_ms,
            tally=self.tally,
            books=self.books,
            pace=self.pace,
            samples=samples,
            load_1min=os.getloadavg()[0],
        )

    async def _tick(self, begin_s: float, advance: Callable[[str], None]) -> None:
        for second in range(1, math.ceil(self._plan.seconds) + 1):
            await asyncio.sleep(max(begin_s + second - time.monotonic(), 0))
            bad = self.tally.fates[Fate.MISHEARD] + self.tally.fates[Fate.FAILED]
            said = self.tally.fates.total()
            advance(f"{self._plan.streams} streams, {said} said, {bad} misheard or failed")

    # ---- one stream --------------------------------------------------------------------------

    async def _stream(self, number: int, begin_s: float) -> None:
        """Play one stream to its end, or to where the server ends it."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidStatus

        name = self._names[number]
        language, dialogue = self._streams[number]
        # Blocks of all streams are spread over the length of one.
        begin_s += number / self._plan.streams * self._plan.message_ms / 1000
        ledger = StreamLedger(name)
        options = {**self._target.options, "compression": None, "max_size": None}
        try:
            async with connect(self._target.url, **options) as connection:
                start = wire.Start(
                    v=1,
                    audio=wire.AudioParams(),
                    stream=name,
                    language=language,
                    partials=self._plan.partials,
                    eager=self._plan.eager,
                )
                await connection.send(wire.encode(start).decode())
                code = await self._converse(connection, number, dialogue, begin_s, ledger)
        except InvalidStatus as error:
            self._refuse(name, _refusal(error.response.status_code, error.response.body))
            return
        except ConnectionClosed as error:
            code = f"closed_{error.rcvd.code if error.rcvd else 'abnormally'}"
        except TimeoutError:
            code = "no_answer"
        if code is not None:
            self._refuse(name, code, was_ready=ledger.announced > 0)
        ledger.close()
        self._enter(ledger)

    async def _converse(
        self,
        connection: ClientConnection,
        number: int,
        dialogue: Dialogue,
        begin_s: float,
        ledger: StreamLedger,
    ) -> str | None:
        """Hold one conversation; return the code of an error that ended it."""
        hearing = Hearing(number, begin_s, self._judge)
        twin = self._twins[self._names[number]]
        code: str | None = None
        sender = asyncio.create_task(self._send(connection, dialogue, begin_s, hearing))
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time()
                + max(begin_s - time.monotonic(), 0)
                + self._plan.seconds
                + DRAIN_S
            ):
                async for data in connection:
                    now_s = time.monotonic()
                    message = wire.decode_server(data)
                    if isinstance(message, wire.Error):
                        code = message.code
                        break
                    ledger.take(message)
                    twin.take(0, message)
                    if isinstance(message, wire.Ended):
                        self.books.lost_audio_ms += message.lost_ms
                    for outcome in hearing.take(message, now_s):
                        self.tally.add(outcome)
        finally:
            await _cancel(sender)
            for outcome in hearing.close():
                self.tally.add(outcome)
        return code

    async def _send(
        self, connection: ClientConnection, dialogue: Dialogue, begin_s: float, hearing: Hearing
    ) -> None:
        """Send blocks on an absolute schedule, each when a microphone would have it complete."""
        from websockets.exceptions import ConnectionClosed

        step_s = self._plan.message_ms / 1000
        size = RATE_HZ * self._plan.message_ms // 1000
        number = 0
        with contextlib.suppress(ConnectionClosed):  # the reader knows why
            while (block := dialogue.block(size)) is not None:
                number += 1
                while dialogue.placed:
                    hearing.say(dialogue.placed.popleft())
                due_s = begin_s + number * step_s
                if (ahead_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(ahead_s)
                    self.pace.woke((time.monotonic() - due_s) * 1000)
                await connection.send(block)
                self.pace.sent((time.monotonic() - due_s) * 1000)
            await connection.send(wire.encode(wire.Stop()).decode())

    # ---- the bus -----------------------------------------------------------------------------

    async def _join_bus(self, stack: contextlib.AsyncExitStack) -> asyncio.Task[None] | None:
        if self._target.bus is None:
            return None
        import zmq
        import zmq.asyncio

        context = stack.enter_context(zmq.asyncio.Context())
        subscriber = stack.enter_context(context.socket(zmq.SUB))
        subscriber.set(zmq.LINGER, 0)
        subscriber.set(zmq.RCVHWM, 100_000)
        subscriber.subscribe(b"")
        subscriber.connect(self._target.bus)
        async with asyncio.timeout(_JOIN_S):
            await subscriber.recv_multipart()  # the first heartbeat: the bus is joined
        return asyncio.create_task(self._read_bus(subscriber))

    async def _read_bus(self, subscriber: zmq.asyncio.Socket) -> None:
        while True:
            _, body = await subscriber.recv_multipart()
            message = wire.decode_server(body)
            self._bus.take(message)
            if (twin := self._twins.get(message.stream)) is not None:
                twin.take(1, message)
                self._on_bus[message.stream].take(message)
                if isinstance(message, wire.Ended):
                    self._look_for_end()

    async def _wait_for_bus(self) -> None:
        with contextlib.suppress(TimeoutError):  # the books say what is missing
            async with asyncio.timeout(_BUS_SPARE_S):
                await self._bus_is_over.wait()

    def _look_for_end(self) -> None:
        kept = (name for name in self._names if name not in self._refused)
        if all(self._on_bus[name].is_over for name in kept):
            self._bus_is_over.set()

    # ---- the books ---------------------------------------------------------------------------

    def _refuse(self, name: str, code: str, *, was_ready: bool = False) -> None:
        counts = self.books.ended_early if was_ready else self.books.refused
        counts[code] += 1
        self._refused.add(name)

    def _enter(self, ledger: StreamLedger) -> None:
        self.books.announced += ledger.announced
        self.books.finals += ledger.finals
        self.books.failed.update(ledger.failed)
        self.books.partials += ledger.partials
        self.books.violations.extend(ledger.violations)

    def _close_books(self, *, has_bus: bool) -> None:
        if not has_bus:
            return
        self.books.compared = 0
        self.books.bus_lost, self.books.bus_restarts = self._bus.lost, self._bus.restarts
        for name in self._names:
            if name in self._refused:
                continue  # its connection broke off: the bus rightly says more
            twin, ledger = self._twins[name], self._on_bus[name]
            twin.close()
            ledger.close()
            self.books.compared += twin.compared
            self.books.violations.extend(twin.violations)
            self.books.violations.extend(ledger.violations)


def _refusal(status: int, body: bytes | bytearray | None) -> str:
    """The code of a refused connection; the status where the body has none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body or b"")["code"])
    return f"http_{status}"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


# ---- what is said ------------------------------------------------------------------------------


def prepare_speech(
    folder: Path, *, sets: Sequence[str] = (), per_language: int = 24, language: str | None = None
) -> dict[str, list[Spoken]]:
    """Choose, decode and mark clips of a folder.

    Raises:
        CorpusError: Nothing suitable is in it.
        MediaError: A recording cannot be decoded.
        VadUnavailable: The detector's model is missing.
    """
    from voiced.audio.vad import VadFactory, VadKind
    from voiced.bench.corpus import load_corpus
    from voiced.bench.systems import read_clip
    from voiced.engine import store

    factory = VadFactory(store.silero_path())
    return prepare(
        choose(load_corpus(folder, sets=sets, language=language), per_language),
        read_clip,
        lambda: factory.make(VadKind.SILERO),
    )


def offline_texts(
    spoken: dict[str, list[Spoken]],
    config: EngineConfig,
    advance: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Return what the model writes of each clip by itself: clip → text.

    Raises:
        EngineError: The bundle or its backend cannot be used.
    """
    from voiced.bench.systems import Segmentation, Voiced
    from voiced.engine import store

    system = Voiced("offline", config, Segmentation(store.silero_path()))
    texts: dict[str, str] = {}
    try:
        for each in (each for group in spoken.values() for each in group):
            texts[each.clip] = system.transcribe(each.pcm, each.language).text
            advance(each.clip)
    finally:
        system.close()
    return texts
