"""What the engine runs next, and with whom. Pure: time is an argument, nothing waits here.

Finals run before eager requests, those before partials. For one segment the more certain question
displaces the less certain one: a final all others, an eager request the partials.

A request that was accepted leaves exactly once: finished, or dropped with the error that says why
(superseded, past its deadline), or taken back by `cancel`; waiting or between two steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from voiced.engine.errors import DeadlineExceeded, EngineBusy, EngineError, Superseded
from voiced.engine.types import EngineConfig, EngineLoad, EngineTotals, Request, RequestKind

SIMILAR_AGE_NS = 500_000_000
"""Finals this close to the oldest in age take turns by stream; an older one is never passed by
a younger one that came later than this, so nobody starves."""
MAX_QUEUED_PARTIALS = 16
"""More streams than this waiting for a partial means that partials come too late to be of use."""
MAX_QUEUED_EAGER = 16
"""Eager answers that come later than this many others come after the pause that they bridge."""
PASSED_NS = 1_000_000_000
"""How long a request that does not fit beside what runs lets others of its urgency pass it."""
DROP_REASONS = ("superseded", "deadline", "withdrawn", "made_room")
"""Why a request left unanswered: a better one of its segment or too many came, it was late, its
owner took it back, it ran where something more urgent needed the place."""
_BY_URGENCY = (RequestKind.FINAL, RequestKind.EAGER, RequestKind.PARTIAL)


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

    def promoted(self, deadline_ns: int | None) -> Job:
        """Return the job as a final; its age still counts from when it was accepted."""
        request = replace(self.request, kind=RequestKind.FINAL, deadline_ns=deadline_ns)
        return replace(self, request=request)

    def is_late(self, now_ns: int) -> bool:
        """Whether nobody wants the answer any more."""
        deadline_ns = self.request.deadline_ns
        return deadline_ns is not None and now_ns > deadline_ns


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """A job that will not run to its end, and what its owner is told."""

    job: Job
    error: EngineError | None
    """None: whoever asked has taken the request back and hears nothing."""


def _rank(job: Job) -> int:
    """Place in the order of urgency, 0 first."""
    return _BY_URGENCY.index(job.request.kind)


def retry_after_ms(oldest_age_ns: int) -> int:
    """Return when a refused peer should try again: about the time the queue takes to turn over."""
    return min(max(oldest_age_ns // 1_000_000, 200), 10_000)


class Scheduler:
    """Waiting requests, at most one that may be dropped for each segment.

    Streams take turns among requests of similar age, so that one that talks much does not push
    the others back.
    """

    def __init__(
        self,
        *,
        max_queued_finals: int = 64,
        max_queued_eager: int = MAX_QUEUED_EAGER,
        max_queued_partials: int = MAX_QUEUED_PARTIALS,
    ) -> None:
        self._limits = {
            RequestKind.FINAL: max_queued_finals,
            RequestKind.EAGER: max_queued_eager,
            RequestKind.PARTIAL: max_queued_partials,
        }
        self._queues: dict[RequestKind, dict[int, Job]] = {kind: {} for kind in _BY_URGENCY}
        """By job id, in order of arrival."""
        self._running: dict[int, Job] = {}
        """In the order in which they began."""
        self._withdrawn: set[int] = set()
        self._dropped: Counter[str] = Counter()
        """By kind and reason."""
        self._served: dict[str, int] = {}
        """Turn at which each waiting stream was last served."""
        self._turn = 0

    def submit(self, job: Job) -> list[Dropped]:
        """Accept a job; return what it displaced (itself, if its segment has a better one).

        Raises:
            EngineBusy: As many finals as allowed are waiting already.
        """
        kind, segment = job.request.kind, job.request.segment.id
        queue = self._queues[kind]
        if job.is_final:
            if len(queue) >= self._limits[kind]:
                oldest_ns = min(waiting.accepted_ns for waiting in queue.values())
                raise EngineBusy(retry_after_ms(job.accepted_ns - oldest_ns))
            queue[job.id] = job
            return self._drop(self._droppable(segment), "its final")
        rivals = [*self._droppable(segment), job]
        queue[job.id] = job
        if any(final.request.segment.id == segment for final in self._finals.values()):
            return self._drop([job], "its final")
        best = max(
            rivals, key=lambda j: (j.request.kind is RequestKind.EAGER, j.request.revision, j.id)
        )
        successor = f"its {best.request.kind} of revision {best.request.revision}"
        dropped = self._drop([rival for rival in rivals if rival is not best], successor)
        if len(queue) > self._limits[kind]:
            dropped += self._drop([next(iter(queue.values()))], f"{kind} of segment {segment}")
        return dropped

    @property
    def _finals(self) -> dict[int, Job]:
        return self._queues[RequestKind.FINAL]

    def _droppable(self, segment: int) -> list[Job]:
        return [j for j in self._waiting() if j.request.segment.id == segment and not j.is_final]

    def _drop(self, jobs: list[Job], successor: str) -> list[Dropped]:
        self._remove(jobs)
        dropped = []
        for job in jobs:
            request = job.request
            name = f"{request.kind} {request.revision} of segment {request.segment.id}"
            self._count(job, "superseded")
            dropped.append(Dropped(job, Superseded(f"{name} gave way to {successor}")))
        return dropped

    def promote(self, job_id: int, deadline_ns: int | None) -> bool:
        """Let an eager job be a final, never refused: it was accepted before.

        Returns:
            Whether it waits or runs; False for one that has left.
        """
        job = self._queues[RequestKind.EAGER].pop(job_id, None)
        if job is not None:
            self._finals[job_id] = job.promoted(deadline_ns)
        elif job_id in self._running:
            self._running[job_id] = self._running[job_id].promoted(deadline_ns)
        else:
            return False
        return True

    def cancel(self, segment: int, job_id: int | None = None) -> list[Job]:
        """Take back the waiting jobs of a segment, or only one of them.

        Those that run are marked: `evict` takes them out at the next step.
        """

        def is_meant(job: Job) -> bool:
            return job.request.segment.id == segment and job_id in (None, job.id)

        self._withdrawn.update(job.id for job in self._running.values() if is_meant(job))
        taken = [job for job in self._waiting() if is_meant(job)]
        self._remove(taken)
        for job in taken:
            self._count(job, "withdrawn")
        return taken

    def expire(self, now_ns: int) -> list[Dropped]:
        """Take out what waited past its deadline."""
        late = [job for job in self._waiting() if job.is_late(now_ns)]
        self._remove(late)
        for job in late:
            self._count(job, "deadline")
        return [Dropped(job, too_late(job, now_ns)) for job in late]

    def take(self, now_ns: int, admits: Callable[[Request], bool]) -> Job | None:
        """Let one job run.

        Partials wait while anything more urgent runs: encoding one would hold up all that share
        the batch. A job that does not fit lets others of its urgency pass, for a second.

        Args:
            now_ns: Monotonic time; jobs past their deadline stay for `expire`.
            admits: Whether a request could join what runs (`Batch.admits`).

        Returns:
            The most urgent, and among equals the fairest choice; None when nothing may join now.
        """
        kind, candidates = self._most_urgent(now_ns)
        if kind is RequestKind.PARTIAL and any(
            job.request.kind.is_searched for job in self._running.values()
        ):
            return None
        oldest_ns = min((job.accepted_ns for job in candidates), default=now_ns)
        while candidates:
            job = self._fairest(candidates)
            if admits(job.request):
                self._remove([job])
                self._running[job.id] = job
                self._turn += 1
                self._served[job.request.segment.stream] = self._turn
                return job
            if now_ns - oldest_ns > PASSED_NS:
                return None
            candidates.remove(job)
        return None

    def evict(self, now_ns: int, admits: Callable[[Request], bool]) -> list[Dropped]:
        """Take out of what runs, between two steps: withdrawn, late, and what must make room.

        A partial gives its place to anything more urgent that does not fit beside it, and an eager
        job to a final: the one that began last goes first, one at a time.

        Returns:
            Jobs with what their owners are told; a withdrawn one has no owner any more.
        """
        dropped = [Dropped(self._running[i], None) for i in self._withdrawn]
        self._withdrawn.clear()
        for drop in dropped:
            del self._running[drop.job.id]
            self._count(drop.job, "withdrawn")
        for job in [job for job in self._running.values() if job.is_late(now_ns)]:
            del self._running[job.id]
            self._count(job, "deadline")
            dropped.append(Dropped(job, too_late(job, now_ns)))
        kind, waiting = self._most_urgent(now_ns)
        if kind is not None and self._running and not dropped:
            lesser = [job for job in self._running.values() if _rank(job) > _BY_URGENCY.index(kind)]
            if lesser and not any(admits(job.request) for job in waiting):
                order = list(self._running)
                victim = max(lesser, key=lambda job: (_rank(job), order.index(job.id)))
                del self._running[victim.id]
                self._count(victim, "made_room")
                request = victim.request
                name = f"{request.kind} {request.revision} of segment {request.segment.id}"
                dropped.append(Dropped(victim, Superseded(f"{name} made room for a {kind}")))
        return dropped

    def _count(self, job: Job, reason: str) -> None:
        self._dropped[f"{job.request.kind} {reason}"] += 1

    def finish(self, job_id: int) -> Job | None:
        """Note that a job no longer runs; None when it was taken out before."""
        self._withdrawn.discard(job_id)
        job = self._running.pop(job_id, None)
        self._forget_streams()
        return job

    @property
    def running(self) -> tuple[Job, ...]:
        """Jobs that were taken and have not left, in the order in which they began."""
        return tuple(self._running.values())

    def _most_urgent(self, now_ns: int) -> tuple[RequestKind | None, list[Job]]:
        for kind in _BY_URGENCY:
            jobs = self._in_time(self._queues[kind], now_ns)
            if jobs:
                return kind, jobs
        return None, []

    def _in_time(self, jobs: dict[int, Job], now_ns: int) -> list[Job]:
        return [job for job in jobs.values() if not job.is_late(now_ns)]

    def _fairest(self, jobs: Iterable[Job]) -> Job:
        by_age = sorted(jobs, key=lambda job: (job.accepted_ns, job.id))
        limit_ns = by_age[0].accepted_ns + SIMILAR_AGE_NS
        similar = [job for job in by_age if job.accepted_ns <= limit_ns]
        return min(similar, key=lambda job: self._served.get(job.request.segment.stream, 0))

    def _waiting(self) -> list[Job]:
        return [job for queue in self._queues.values() for job in queue.values()]

    def _remove(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            del self._queues[job.request.kind][job.id]
        self._forget_streams()

    def _forget_streams(self) -> None:
        if not len(self) and not self._running:
            self._served.clear()  # nobody to be fair to; old stream names must not pile up

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def load(self, now_ns: int) -> EngineLoad:
        """Say how much waits, and what was dropped; nothing else is known here."""
        ages_s = {
            kind: (now_ns - min((job.accepted_ns for job in queue.values()), default=now_ns)) / 1e9
            for kind, queue in self._queues.items()
        }
        return EngineLoad(
            queued_finals=len(self._finals),
            queued_eager=len(self._queues[RequestKind.EAGER]),
            queued_partials=len(self._queues[RequestKind.PARTIAL]),
            oldest_final_age_s=ages_s[RequestKind.FINAL],
            oldest_eager_age_s=ages_s[RequestKind.EAGER],
            oldest_partial_age_s=ages_s[RequestKind.PARTIAL],
            totals=EngineTotals(dropped=dict(self._dropped)),
        )


def most_finals(config: EngineConfig) -> int:
    """Finals that can wait in an engine: those that its host accepts, and promoted requests."""
    return config.max_queued_finals + MAX_QUEUED_EAGER


def too_late(job: Job, now_ns: int) -> DeadlineExceeded:
    """Say how long a job waited in vain."""
    request = job.request
    waited_ms = (now_ns - job.accepted_ns) // 1_000_000
    return DeadlineExceeded(
        f"{request.kind} of segment {request.segment.id} waited {waited_ms} ms, past its deadline"
    )
