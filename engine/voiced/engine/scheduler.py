"""What the engine runs next, and with whom. Pure: time is an argument, nothing waits here.

A request that was accepted leaves exactly once: in a batch, or dropped with the error that says
why (superseded, past its deadline), or taken back by `cancel`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from voiced.engine.errors import DeadlineExceeded, EngineBusy, EngineError, Superseded
from voiced.engine.types import EngineLoad, Request, RequestKind

SIMILAR_AGE_NS = 500_000_000
"""Finals this close to the oldest in age take turns by stream; an older one is never passed by
a younger one that came later than this, so nobody starves."""
MAX_QUEUED_PARTIALS = 16
"""More streams than this waiting for a partial means that partials come too late to be of use."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request with the number that its answer carries."""

    id: int
    request: Request
    accepted_ns: int
    """Monotonic time when it was accepted: its age counts from here."""

    @property
    def is_final(self) -> bool:
        """Whether it must be answered."""
        return self.request.kind is RequestKind.FINAL

    def is_late(self, now_ns: int) -> bool:
        """Whether nobody wants the answer any more."""
        deadline_ns = self.request.deadline_ns
        return deadline_ns is not None and now_ns > deadline_ns


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """A job that will not run, and what its owner is told."""

    job: Job
    error: EngineError


def retry_after_ms(oldest_age_ns: int) -> int:
    """Return when a refused peer should try again: about the time the queue takes to turn over."""
    return min(max(oldest_age_ns // 1_000_000, 200), 10_000)


class Scheduler:
    """Waiting requests. Finals run before partials; of a segment's partials only the newest waits.

    Streams take turns among finals of similar age, so that one that talks much does not push the
    others back.
    """

    def __init__(
        self, *, max_queued_finals: int = 64, max_queued_partials: int = MAX_QUEUED_PARTIALS
    ) -> None:
        self._max_finals = max_queued_finals
        self._max_partials = max_queued_partials
        self._finals: dict[int, Job] = {}
        self._partials: dict[int, Job] = {}
        """Both by job id, in order of arrival."""
        self._served: dict[str, int] = {}
        """Turn at which each waiting stream was last served."""
        self._turn = 0

    def submit(self, job: Job) -> list[Dropped]:
        """Accept a job; return the partials that it displaced (itself, if a newer one waits).

        Raises:
            EngineBusy: As many finals as allowed are waiting already.
        """
        return self._submit_final(job) if job.is_final else self._submit_partial(job)

    def _submit_final(self, job: Job) -> list[Dropped]:
        if len(self._finals) >= self._max_finals:
            oldest_ns = min(waiting.accepted_ns for waiting in self._finals.values())
            raise EngineBusy(retry_after_ms(job.accepted_ns - oldest_ns))
        segment = job.request.segment.id
        stale = [p for p in self._partials.values() if p.request.segment.id == segment]
        self._finals[job.id] = job
        return [self._supersede(partial, "its final") for partial in stale]

    def _submit_partial(self, job: Job) -> list[Dropped]:
        segment, revision = job.request.segment.id, job.request.revision
        self._partials[job.id] = job
        if any(final.request.segment.id == segment for final in self._finals.values()):
            return [self._supersede(job, "its final")]
        dropped = []
        same = [p for p in self._partials.values() if p.request.segment.id == segment]
        newest = max(same, key=lambda p: (p.request.revision, p.id))
        dropped += [
            self._supersede(p, f"revision {newest.request.revision}")
            for p in same
            if p is not newest
        ]
        if len(self._partials) > self._max_partials:
            oldest = next(iter(self._partials.values()))
            dropped.append(self._supersede(oldest, f"revision {revision} of segment {segment}"))
        return dropped

    def _supersede(self, job: Job, successor: str) -> Dropped:
        del self._partials[job.id]
        request = job.request
        text = f"partial {request.revision} of segment {request.segment.id} gave way to {successor}"
        return Dropped(job, Superseded(text))

    def cancel(self, segment: int, job_id: int | None = None) -> list[Job]:
        """Take back the waiting jobs of a segment, or only one of them."""
        taken = [
            job
            for job in self._waiting()
            if job.request.segment.id == segment and job_id in (None, job.id)
        ]
        self._remove(taken)
        return taken

    def expire(self, now_ns: int) -> list[Dropped]:
        """Take out what waited past its deadline."""
        late = [job for job in self._waiting() if job.is_late(now_ns)]
        self._remove(late)
        return [Dropped(job, too_late(job, now_ns)) for job in late]

    def next_batch(
        self, now_ns: int, key: Callable[[Request], Hashable], max_batch: int
    ) -> list[Job]:
        """Take up to `max_batch` jobs that may run together: all finals, or all partials.

        Args:
            now_ns: Monotonic time; jobs past their deadline stay for `expire`.
            key: Requests with equal keys may share a batch (`Recognizer.batch_key`).
            max_batch: Most jobs to take, at least 1.

        Returns:
            The batch, the fairest choice first; empty when nothing waits.
        """
        waiting = self._finals if any(self._in_time(self._finals, now_ns)) else self._partials
        candidates = {job: key(job.request) for job in self._in_time(waiting, now_ns)}
        batch: list[Job] = []
        while candidates and len(batch) < max_batch:
            job = self._fairest(candidates)
            batch.append(job)
            self._turn += 1
            self._served[job.request.segment.stream] = self._turn
            wanted = candidates.pop(job)
            candidates = {other: k for other, k in candidates.items() if k == wanted}
        self._remove(batch)
        return batch

    def _in_time(self, jobs: dict[int, Job], now_ns: int) -> list[Job]:
        return [job for job in jobs.values() if not job.is_late(now_ns)]

    def _fairest(self, jobs: Iterable[Job]) -> Job:
        by_age = sorted(jobs, key=lambda job: (job.accepted_ns, job.id))
        limit_ns = by_age[0].accepted_ns + SIMILAR_AGE_NS
        similar = [job for job in by_age if job.accepted_ns <= limit_ns]
        return min(similar, key=lambda job: self._served.get(job.request.segment.stream, 0))

    def _waiting(self) -> list[Job]:
        return [*self._finals.values(), *self._partials.values()]

    def _remove(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            del (self._finals if job.is_final else self._partials)[job.id]
        if not self._finals and not self._partials:
            self._served.clear()  # nobody to be fair to; old stream names must not pile up

    def __len__(self) -> int:
        return len(self._finals) + len(self._partials)

    def load(self, now_ns: int) -> EngineLoad:
        """Say how much waits; `restarts` is not known here and stays 0."""
        oldest_ns = min((job.accepted_ns for job in self._finals.values()), default=now_ns)
        return EngineLoad(
            queued_finals=len(self._finals),
            queued_partials=len(self._partials),
            oldest_final_age_s=(now_ns - oldest_ns) / 1e9,
        )


def too_late(job: Job, now_ns: int) -> DeadlineExceeded:
    """Say how long a job waited in vain."""
    request = job.request
    waited_ms = (now_ns - job.accepted_ns) // 1_000_000
    return DeadlineExceeded(
        f"{request.kind} of segment {request.segment.id} waited {waited_ms} ms, past its deadline"
    )
