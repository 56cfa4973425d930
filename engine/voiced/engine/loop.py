"""The engine's one thread: brings jobs into the batch, runs its steps, hands out answers.

The worker process runs it on its main thread, `InProcessEngine` on a thread of this process. The
other threads only see the hand-over, `FinalsFirst`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from voiced.audio.clock import Clock
from voiced.engine.batch import Answer, Lockstep, batch_of
from voiced.engine.errors import BackendFailed, EngineError, StateLost
from voiced.engine.recognizer import Recognizer
from voiced.engine.scheduler import Dropped, Job, Scheduler
from voiced.engine.types import BatchLoad, EngineLoad, EngineTotals, Request

logger = logging.getLogger(__name__)

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
        self._call: Running | None = None
        self._batch = BatchLoad()
        self._totals = EngineTotals()

    @property
    def running(self) -> Running | None:
        """The call that the engine's thread is in; None while it waits."""
        return self._call

    @property
    def batch(self) -> BatchLoad:
        """How full the batch was when that call began; nobody runs while the thread waits."""
        if self._call is not None:
            return self._batch
        return dataclasses.replace(self._batch, running=0, positions=0, padding=0)

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
        """Let an eager job be a final, from any thread."""
        with self._changed:
            self._scheduler.promote(job_id, deadline_ns)

    def cancel(self, segment: int, job_id: int | None = None) -> list[Job]:
        """Take back what waits; what runs leaves at its next step. From any thread."""
        with self._changed:
            return self._scheduler.cancel(segment, job_id)

    def expire(self) -> list[Dropped]:
        """Take out what waited past its deadline, from any thread: also during a long call."""
        with self._changed:
            return self._scheduler.expire(self._clock.monotonic_ns())

    def load(self) -> EngineLoad:
        """Say how much waits and runs, from any thread."""
        with self._changed:
            waiting = self._scheduler.load(self._clock.monotonic_ns())
        return dataclasses.replace(waiting, batch=self.batch, totals=waiting.totals + self._totals)

    def stop(self) -> None:
        """Let `take` end once nothing waits; from any thread or a signal handler."""
        with self._changed:  # reentrant, so a handler may interrupt the thread that holds it
            self._stopping = True
            self._changed.notify()

    def wait(self, *, is_idle: bool) -> bool:
        """Wait for work unless some is at hand, on the engine's thread.

        Returns:
            False when all is done after `stop`.
        """
        with self._changed:
            self._call = None
            while is_idle and not self._scheduler and not self._stopping:
                self._changed.wait(_WAKE_S)
            return not is_idle or bool(self._scheduler)

    def evict(self, admits: Callable[[Request], bool]) -> list[Dropped]:
        """Take out what runs and must not go on; see `Scheduler.evict`. On the engine's thread."""
        with self._changed:
            return self._scheduler.evict(self._clock.monotonic_ns(), admits)

    def take(self, admits: Callable[[Request], bool]) -> Job | None:
        """Let one job run; see `Scheduler.take`. On the engine's thread."""
        with self._changed:
            return self._scheduler.take(self._clock.monotonic_ns(), admits)

    def finish(self, job_id: int) -> None:
        """Note that a job has its answer. On the engine's thread."""
        with self._changed:
            self._scheduler.finish(job_id)

    def begin(self, jobs: Iterable[int], load: BatchLoad) -> None:
        """Note that an engine call begins, on the engine's thread."""
        self._call = Running(tuple(jobs), self._clock.monotonic_ns())
        self._batch = load

    def end(self, totals: EngineTotals) -> None:
        """Note what was done up to the end of an engine call, on the engine's thread."""
        self._totals = totals


def run_engine(
    recognizer: Recognizer,
    queue: FinalsFirst,
    answer: Callable[[int, Answer], None],
    clock: Clock,
) -> None:
    """Answer jobs on the calling thread until `queue.stop` was called and all are answered."""
    driver = _Driver(recognizer, queue, answer, clock)
    while queue.wait(is_idle=driver.is_idle):
        driver.turn()


@dataclass(frozen=True, slots=True, eq=False)
class _Inside:
    """A job in the batch."""

    job: Job
    waited_ns: int


class _Driver:
    """Brings jobs into the batch between its steps, and their answers out.

    When a step fails, all inside are suspects: each is run once more with nobody beside it, before
    anything new.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        queue: FinalsFirst,
        answer: Callable[[int, Answer], None],
        clock: Clock,
    ) -> None:
        self._recognizer = recognizer
        self._batch = batch_of(recognizer)
        self._steps = self._step_requests = 0
        self._queue = queue
        self._answer = answer
        self._clock = clock
        self._inside: dict[int, _Inside] = {}
        self._suspects: deque[Job] = deque()
        self._lost_state = False
        """The last step lost the device's state; it is begun again once."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is inside."""
        return not self._inside and not self._suspects

    def turn(self) -> None:
        """Let jobs leave, let jobs join, and run one step."""
        for drop in (*self._queue.expire(), *self._queue.evict(self._batch.admits)):
            self._drop(drop)
        if self._suspects and not self._inside:
            self._join(self._suspects.popleft())
        # where some are at work, one newcomer a step: each holds up all the others
        while not self._suspects and (job := self._queue.take(self._batch.admits)) is not None:
            was_idle = not self._inside
            self._join(job)
            if not was_idle and not isinstance(self._batch, Lockstep):
                break
        if self._inside:
            self._step()

    def _drop(self, drop: Dropped) -> None:
        job_id = drop.job.id
        if self._inside.pop(job_id, None) is not None:
            self._batch.leave(job_id)
        self._suspects = deque(job for job in self._suspects if job.id != job_id)
        if drop.error is not None:
            self._answer(job_id, drop.error)

    def _join(self, job: Job) -> None:
        waited_ns = self._clock.monotonic_ns() - job.accepted_ns
        self._queue.begin([*self._inside, job.id], self._batch.load())
        try:
            with _bugs_as_failures([job]):
                self._batch.join(job.id, job.request)
        except EngineError as error:
            self._fail(job, error)
        else:
            self._inside[job.id] = _Inside(job, waited_ns)

    def _step(self) -> None:
        self._queue.begin(self._inside, self._batch.load())
        try:
            with _bugs_as_failures([each.job for each in self._inside.values()]):
                answered = self._batch.step()
        except EngineError as error:
            self._recover(error)
            return
        self._lost_state = False
        self._steps += 1
        self._step_requests += len(self._inside)
        self._queue.end(
            dataclasses.replace(
                self._recognizer.totals, steps=self._steps, step_requests=self._step_requests
            )
        )
        for job_id, outcome in answered:
            inside = self._inside.pop(job_id)
            self._queue.finish(job_id)
            self._answer(job_id, _with_queue_time(outcome, inside.waited_ns))

    def _recover(self, error: EngineError) -> None:
        """Begin again after a step that failed for all."""
        jobs = [each.job for each in self._inside.values()]
        self._batch.clear()
        self._inside.clear()
        if isinstance(error, StateLost) and not self._lost_state:
            logger.warning("batch is begun again size=%d: %s", len(jobs), error)
            self._lost_state = True
            for job in jobs:
                self._join(job)
        elif len(jobs) == 1:
            self._lost_state = False
            self._fail(jobs[0], error)
        else:
            self._lost_state = False
            logger.warning("batch failed, trying one by one size=%d: %s", len(jobs), error)
            self._suspects.extend(jobs)

    def _fail(self, job: Job, error: EngineError) -> None:
        logger.error("request failed segment=%d: %s", job.request.segment.id, error)
        self._queue.finish(job.id)
        self._answer(job.id, error)


@contextmanager
def _bugs_as_failures(jobs: Sequence[Job]) -> Iterator[None]:
    """Top of the worker's loop: a bug in a recogniser must cost its requests only."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        logger.exception("recogniser raised segments=%s", [j.request.segment.id for j in jobs])
        raise BackendFailed(f"recogniser raised {type(error).__name__}") from error


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
