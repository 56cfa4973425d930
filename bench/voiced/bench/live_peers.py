"""`voiced bench peers --live`: other servers under the same dialogue and the same clock.

Each server runs as a process of its own, one at a time; the client is this process and paces every
system alike. A server's own protocol ends in a `Line` (`live_servers.py`); what comes back is put
as messages of our protocol, so that one `Hearing` times and judges all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from voiced.audio.frames import RATE_HZ
from voiced.bench.dialogue import Placed, Spoken, dialogues
from voiced.bench.errors import PeerUnavailable
from voiced.bench.hearing import Hearing, Judge
from voiced.bench.load import DRAIN_S, LoadPlan
from voiced.bench.load_report import Books, LoadResult, Pace, Tally, sum_up
from voiced.bench.report import Table
from voiced.bench.sampling import Sampler
from voiced.daemon import wire

_LEAD_S = 0.5

Heard = tuple[wire.ServerMessage, float]
"""A message and when it came."""


class Line(Protocol):
    """One stream to a server."""

    def say(self, placed: Placed) -> None:
        """An utterance begins with the next block."""
        ...

    async def send(self, block: bytes) -> None:
        """Send the next block of the stream."""
        ...

    async def finish(self) -> None:
        """Nothing more will be sent."""
        ...

    def heard(self) -> AsyncIterator[Heard]:
        """What came back; ends when everything has been answered."""
        ...


class LivePeer(Protocol):
    """A server that people would use instead."""

    @property
    def name(self) -> str:
        """As people know it."""
        ...

    @property
    def wait(self) -> str:
        """What ends an utterance, for the report."""
        ...

    @property
    def languages(self) -> frozenset[str] | None:
        """None: every language."""
        ...

    def serve(self) -> contextlib.AbstractContextManager[tuple[int, int]]:
        """Run the server; gives its process and its port."""
        ...

    def line(self, port: int, language: str) -> contextlib.AbstractAsyncContextManager[Line]:
        """Open one stream."""
        ...


class PeerRun:
    """One number of streams to one server: the counterpart of `load.LoadRun`."""

    def __init__(
        self, peer: LivePeer, plan: LoadPlan, spoken: dict[str, list[Spoken]], judge: Judge | None
    ) -> None:
        self._peer, self._plan, self._judge = peer, plan, judge
        known = peer.languages
        usable = {k: v for k, v in spoken.items() if known is None or k in known}
        if not usable:
            raise PeerUnavailable(
                f"{peer.name} knows {', '.join(sorted(known or ()))}; "
                f"the recordings are in {', '.join(sorted(spoken))}"
            )
        self._streams = dialogues(usable, plan.streams, seconds=plan.seconds, seed=plan.seed)
        self.tally, self.books, self.pace = Tally(), Books(), Pace()

    async def run(
        self,
        port: int,
        pids: Callable[[], Sequence[int]],
        advance: Callable[[str], None] = lambda _: None,
    ) -> LoadResult:
        """Play everything in real time."""
        begin_s = time.monotonic() + _LEAD_S
        sampler = Sampler(pids)
        watching = asyncio.create_task(sampler.run(begin_s))
        ticking = asyncio.create_task(self._tick(begin_s, advance))
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._plan.streams):
                    tasks.create_task(self._stream(number, port, begin_s))
        finally:
            for task in (ticking, watching):
                task.cancel()
                await asyncio.wait({task})
        samples = await sampler.finish()
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
        for second in range(1, round(self._plan.seconds) + 1):
            await asyncio.sleep(max(begin_s + second - time.monotonic(), 0))
            advance(f"{self._plan.streams} streams, {self.tally.fates.total()} said")

    async def _stream(self, number: int, port: int, begin_s: float) -> None:
        language, dialogue = self._streams[number]
        step_s = self._plan.message_ms / 1000
        begin_s += number / self._plan.streams * step_s
        hearing = Hearing(number, begin_s, self._judge)

        async def play(line: Line) -> None:
            size, sent = RATE_HZ * self._plan.message_ms // 1000, 0
            while (block := dialogue.block(size)) is not None:
                sent += 1
                while dialogue.placed:
                    placed = dialogue.placed.popleft()
                    hearing.say(placed)
                    line.say(placed)
                due_s = begin_s + sent * step_s
                if (ahead_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(ahead_s)
                    self.pace.woke((time.monotonic() - due_s) * 1000)
                await line.send(block)
                self.pace.sent((time.monotonic() - due_s) * 1000)
            await line.finish()

        async def listen(line: Line) -> None:
            async for message, at_s in line.heard():
                self._count(message)
                for outcome in hearing.take(message, at_s):
                    self.tally.add(outcome)

        try:
            async with (
                asyncio.timeout(self._plan.seconds + DRAIN_S),
                self._peer.line(port, language) as line,
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(play(line))
                tasks.create_task(listen(line))
        except* TimeoutError:
            self.books.ended_early["no_answer"] += 1
        except* OSError:
            self.books.ended_early["closed"] += 1
        for outcome in hearing.close():
            self.tally.add(outcome)

    def _count(self, message: wire.ServerMessage) -> None:
        match message:
            case wire.SpeechStarted():
                self.books.announced += 1
            case wire.Partial():
                self.books.partials += 1
            case wire.Final():
                self.books.finals += 1
            case wire.Failed():
                self.books.failed[message.code] += 1
            case _:
                pass


# ---- the comparison ----------------------------------------------------------------------------


def comparison(runs: Sequence[tuple[str, LoadResult]], waits: dict[str, str]) -> Table:
    """All systems side by side, in ms from the true end of speech."""

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.0f}"

    rows = tuple(
        (
            name,
            str(r.streams),
            str(r.utterances),
            *(number(v) for v in (r.final_ms.p50, r.final_ms.p95, r.final_ms.most)),
            *(number(v) for v in (r.on_screen_ms.p50, r.on_screen_ms.p95)),
            *(number(v) for v in (r.first_partial_ms.p50, r.first_partial_ms.p95)),
            f"{r.misheard}" + (f" +{r.refused} refused" if r.refused else ""),
            f"{r.cpu_cores:.2f}",
            f"{r.peak_rss_mb:.0f}",
            f"{number(r.drifts[0].first)} → {number(r.drifts[0].last)}",
            f"{r.late_ms.p99:.0f}",
        )
        for name, r in runs
    )
    return Table(
        "live, ms from the true end of speech",
        (
            *("system", "streams", "said", "final p50", "p95", "max", "on screen p50", "p95"),
            *(
                "first p50",
                "p95",
                "misheard",
                "cores",
                "MB",
                "p50 first → last third",
                "client p99",
            ),
        ),
        rows,
        (
            "final: can be acted on; on screen: as good as the final, shown at all; first: from "
            "the start of speech; the silence wait is in all of them",
            *(f"{name} ends an utterance by: {wait}" for name, wait in waits.items()),
            "misheard: the weights of our bundle get it right offline, here it is missing or more "
            "than half wrong; these are not timed",
        ),
    )
