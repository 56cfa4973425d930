"""The engine's one thread: takes batches, runs the Recognizer, hands out answers.

The worker process runs it on its main thread, `InProcessEngine` on a thread of this process. The
other threads only see the hand-over, `FinalsFirst`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voiced.audio.clock import Clock
from voiced.engine.errors import BackendFailed, EngineError, StateLost
from voiced.engine.recognizer import Recognizer
from voiced.engine.scheduler import Dropped, Job, Scheduler
from voiced.engine.types import EngineLoad, Request, Transcript

logger = logging.getLogger(__name__)

Answer = Transcript | EngineError
_WAKE_S = 0.25
"""How soon the engine's thread notices a signal while it has nothing to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """The engine call that runs now."""

    jobs: tuple[int, ...]
    since_ns: int


class FinalsFirst:
    """The hand-over to the engine's thread: bounded, by the rules of `Scheduler`."""

    def __init__(self, scheduler: Scheduler, clock: Clock) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._changed = threading.Condition()
        self._stopping = False
        self._running: Running | None = None

    @property
    def running(self) -> Running | None:
        """What the engine's thread is at; None while it waits."""
        return self._running

    def submit(self, job: Job) -> list[Dropped]:
        """Add a job, from any thread; return what it displaced.

        Raises:
            EngineBusy: Too many finals wait.
        """
        with self._changed:
            dropped = self._scheduler.submit(job)
            self._changed.notify()
            return dropped

    def promote(self, job_id: int, deadline_ns: int | None) -> None:
        """Let a waiting eager job be a final, from any thread."""
        with self._changed:
            self._scheduler.promote(job_id, deadline_ns)

    def cancel(self, segment: int, job_id: int | None = None) -> list[Job]:
        """Take back what still waits, from any thread."""
        with self._changed:
            return self._scheduler.cancel(segment, job_id)

    def expire(self) -> list[Dropped]:
        """Take out what waited past its deadline, from any thread: also during a long call."""
        with self._changed:
            return self._scheduler.expire(self._clock.monotonic_ns())

    def load(self) -> EngineLoad:
        """Say how much waits, from any thread."""
        with self._changed:
            return self._scheduler.load(self._clock.monotonic_ns())

    def stop(self) -> None:
        """Let `take` end once nothing waits; from any thread or a signal handler."""
        with self._changed:  # reentrant, so a handler may interrupt the thread that holds it
            self._stopping = True
            self._changed.notify()

    def take(
        self, key: Callable[[Request], Hashable], max_batch: int
    ) -> tuple[list[Job], list[Dropped]]:
        """Wait for work, on the engine's thread.

        Returns:
            A batch and what went past its deadline; both empty when all is done after `stop`.
        """
        with self._changed:
            self._running = None
            while not self._scheduler and not self._stopping:
                self._changed.wait(_WAKE_S)
            now_ns = self._clock.monotonic_ns()
            dropped = self._scheduler.expire(now_ns)
            return self._scheduler.next_batch(now_ns, key, max_batch), dropped

    def begin(self, jobs: Sequence[Job]) -> None:
        """Note that an engine call begins, on the engine's thread."""
        self._running = Running(tuple(job.id for job in jobs), self._clock.monotonic_ns())


def run_engine(
    recognizer: Recognizer,
    queue: FinalsFirst,
    answer: Callable[[int, Answer], None],
    clock: Clock,
) -> None:
    """Answer jobs on the calling thread until `queue.stop` was called and all are answered."""

    def key(request: Request) -> Hashable:
        try:
            return recognizer.batch_key(request)
        except EngineError:  # fits no gear: runs alone, and `recognize` says why it cannot
            return id(request)

    while True:
        batch, dropped = queue.take(key, recognizer.max_batch)
        for drop in dropped:
            answer(drop.job.id, drop.error)
        if not batch and not dropped:
            return
        for job, outcome in _run(recognizer, queue, batch, clock):
            answer(job.id, outcome)


def _run(
    recognizer: Recognizer, queue: FinalsFirst, batch: list[Job], clock: Clock
) -> Iterator[tuple[Job, Answer]]:
    """Run a batch; when it fails as a whole, its jobs once more, one by one."""
    if not batch:
        return
    try:
        try:
            outcomes = _call(recognizer, queue, batch, clock)
        except StateLost as error:
            logger.warning("batch is begun again size=%d: %s", len(batch), error)
            outcomes = _call(recognizer, queue, batch, clock)
        yield from outcomes
    except EngineError as error:
        if len(batch) == 1:
            logger.error("request failed segment=%d: %s", batch[0].request.segment.id, error)
            yield batch[0], error
            return
        logger.warning("batch failed, trying one by one size=%d: %s", len(batch), error)
        for job in batch:
            yield from _run(recognizer, queue, [job], clock)


def _call(
    recognizer: Recognizer, queue: FinalsFirst, jobs: list[Job], clock: Clock
) -> list[tuple[Job, Answer]]:
    began_ns = clock.monotonic_ns()
    queue.begin(jobs)
    try:
        outcomes = recognizer.recognize([job.request for job in jobs])
    except EngineError:
        raise
    except Exception as error:  # top of the worker's loop: a bug must cost its requests only
        logger.exception("recogniser raised segments=%s", [j.request.segment.id for j in jobs])
        raise BackendFailed(f"recogniser raised {type(error).__name__}") from error
    if len(outcomes) != len(jobs):
        raise BackendFailed(f"recogniser gave {len(outcomes)} answers to {len(jobs)} requests")
    return [
        (job, _with_queue_time(outcome, began_ns - job.accepted_ns))
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]


def _with_queue_time(outcome: Answer, waited_ns: int) -> Answer:
    if isinstance(outcome, EngineError):
        return outcome
    timings = dataclasses.replace(outcome.timings, queue_ms=waited_ns / 1e6)
    return dataclasses.replace(outcome, timings=timings)


def process_memory() -> tuple[int, int]:
    """Return this process's resident bytes now and at their peak (proc(5): VmRSS, VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {
        name: rest.split()[0]
        for name, _, rest in (line.partition(":") for line in lines)
        if rest.split()
    }
    return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024
