"""What an engine has accepted and not answered: each request is answered once, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from voiced.audio.clock import Clock
from voiced.engine.batch import Answer
from voiced.engine.errors import DeadlineExceeded, EngineBusy, EngineDead, EngineError, Superseded
from voiced.engine.scheduler import Dropped, Job, retry_after_ms
from voiced.engine.types import (
    BatchLoad,
    EngineLoad,
    EngineTotals,
    Request,
    RequestKind,
    Transcript,
)


@dataclass(slots=True, eq=False)
class OpenRequest:
    """An accepted request and whoever waits for it."""

    job: Job
    future: asyncio.Future[Transcript]
    handed_as: RequestKind | None = None
    """What it was when it was given to those who run it; None: not yet."""
    deaths: int = 0
    """Workers that died while they held it."""

    @property
    def in_worker(self) -> bool:
        return self.handed_as is not None

    def outlives(self, outcome: Answer) -> bool:
        """Whether the outcome refused an eager request that was promoted meanwhile."""
        return (
            self.job.is_final
            and self.handed_as is RequestKind.EAGER
            and isinstance(outcome, Superseded | DeadlineExceeded)
        )


class OpenRequests:
    """Accepted and unanswered requests, in order of acceptance; each is answered once."""

    def __init__(self, max_finals: int, clock: Clock) -> None:
        self._max_finals = max_finals
        self._clock = clock
        self._ids = itertools.count(1)
        self._open: dict[int, OpenRequest] = {}

    def __iter__(self) -> Iterator[OpenRequest]:
        return iter(list(self._open.values()))

    def __contains__(self, item: OpenRequest) -> bool:
        return item.job.id in self._open

    def accept(self, request: Request) -> OpenRequest:
        """Add a request.

        Raises:
            EngineBusy: As many finals as allowed are open.
        """
        now_ns = self._clock.monotonic_ns()
        job = Job(next(self._ids), request, now_ns)
        finals = self.finals()
        if job.is_final and len(finals) >= self._max_finals:
            raise EngineBusy(retry_after_ms(now_ns - finals[0].job.accepted_ns))
        item = OpenRequest(job, asyncio.get_running_loop().create_future())
        self._open[job.id] = item
        return item

    def promote(self, segment: int, deadline_ns: int | None) -> OpenRequest | None:
        """Make the newest open eager request of a segment a final; None when there is none."""
        for item in reversed(self._open.values()):
            request = item.job.request
            if request.segment.id == segment and request.kind is RequestKind.EAGER:
                item.job = item.job.promoted(deadline_ns)
                return item
        return None

    def answer(self, job_id: int, outcome: Answer) -> None:
        """Answer a request; nothing happens when it was answered or taken back before.

        A refusal that crossed the promotion of its request is none: it is to be handed over again.
        """
        item = self._open.get(job_id)
        if item is not None and item.outlives(outcome):
            item.handed_as = None
            return
        self._open.pop(job_id, None)
        if item is None or item.future.done():
            return
        if isinstance(outcome, EngineError):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)

    def drop(self, dropped: list[Dropped]) -> None:
        """Answer what the scheduler refused."""
        for drop in dropped:
            if drop.error is not None:
                self.answer(drop.job.id, drop.error)

    def take_back(self, item: OpenRequest) -> bool:
        """Forget a request; False when it was answered."""
        return self._open.pop(item.job.id, None) is not None

    def finals(self) -> list[OpenRequest]:
        """Open finals, oldest first."""
        return [item for item in self._open.values() if item.job.is_final]

    def load(self, batch: BatchLoad, totals: EngineTotals) -> EngineLoad:
        """Say how much is open, next to what the engine's side says of what runs and was done."""
        now_ns = self._clock.monotonic_ns()
        accepted_ns: dict[RequestKind, list[int]] = {kind: [] for kind in RequestKind}
        for item in self._open.values():
            accepted_ns[item.job.request.kind].append(item.job.accepted_ns)
        ages_s = {
            kind: (now_ns - min(at, default=now_ns)) / 1e9 for kind, at in accepted_ns.items()
        }
        return EngineLoad(
            queued_finals=len(accepted_ns[RequestKind.FINAL]),
            queued_eager=len(accepted_ns[RequestKind.EAGER]),
            queued_partials=len(accepted_ns[RequestKind.PARTIAL]),
            oldest_final_age_s=ages_s[RequestKind.FINAL],
            oldest_eager_age_s=ages_s[RequestKind.EAGER],
            oldest_partial_age_s=ages_s[RequestKind.PARTIAL],
            batch=batch,
            totals=totals,
        )

    async def drain(self, drain_s: float) -> None:
        """Wait until the finals of this moment are answered, or `drain_s` passed."""
        waiting = [item.future for item in self.finals()]
        if waiting and drain_s > 0:
            await asyncio.wait(waiting, timeout=drain_s)

    def fail_all(self, why: str) -> None:
        """Answer everything that is left: finals with EngineDead, others with Superseded."""
        for item in self:
            error = EngineDead(why) if item.job.is_final else Superseded(why)
            self.answer(item.job.id, error)
