"""The engine as the daemon sees it: `recognize(request)`, whatever happens behind it.

`EngineHost` keeps one worker process alive and fed. `InProcessEngine` has the same contract with
a thread of this process, for command-line use and tests: it cannot survive a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import zmq.asyncio

from voiced.audio.clock import Clock, SystemClock
from voiced.engine import ipc
from voiced.engine.batch import Answer
from voiced.engine.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineDead,
    EngineError,
    NoGearError,
    Superseded,
)
from voiced.engine.loop import FinalsFirst, process_memory, run_engine
from voiced.engine.process import WorkerProcess
from voiced.engine.recognizer import load_recognizer
from voiced.engine.scheduler import Dropped, Job, Scheduler, most_finals, retry_after_ms, too_late
from voiced.engine.types import (
    BatchLoad,
    EngineConfig,
    EngineInfo,
    EngineLoad,
    EngineTotals,
    Request,
    RequestKind,
    Transcript,
)

logger = logging.getLogger(__name__)

_TICK_S = 0.25
"""How often deadlines and silence are looked at; as often as a worker's heartbeat."""
_QUIET_TICKS = 20
"""So many ticks without a word: the worker is gone (5 s). Counted in ticks, not on the clock,
so a stall of our own loop is not taken for the worker's."""
_LOADING_S = 120.0
"""Longest wait for the next sign of progress while a worker loads and warms."""
_LONGEST_BACK_OFF_S = 30.0
_STEADY_NS = 60_000_000_000
"""A worker that lived this long did not die of its start; the next is started at once."""
_STOP_GRACE_S = 1.0
"""For a worker to end by itself, and for an in-process thread to leave its last call."""


class Engine(Protocol):
    """What the daemon needs. All methods belong to one event loop."""

    @property
    def ready(self) -> bool:
        """Whether requests are answered now; finals are accepted and wait while it is False."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        ...

    @property
    def info(self) -> EngineInfo | None:
        """What was loaded last; None before the first start."""
        ...

    @property
    def worker_pid(self) -> int | None:
        """Process that holds the model; None while there is none."""
        ...

    @property
    def rss_bytes(self) -> int:
        """Resident memory of that process, as last heard."""
        ...

    @property
    def peak_rss_bytes(self) -> int:
        """Highest resident memory of any worker since the start."""
        ...

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineInfo:
        """Load and warm; once per engine.

        Raises:
            EngineError: The model cannot be loaded, in the words of the process that tried.
        """
        ...

    async def recognize(self, request: Request) -> Transcript:
        """Answer one request. Cancelling the awaiting task takes the request back.

        Raises:
            EngineBusy: Too many finals wait; nothing was accepted.
            EngineError: Any other: the request was accepted and has no text, see its code.
        """
        ...

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Let the open eager request of a segment be its final, waiting or running.

        From now on it counts as an accepted final: it is answered or fails with a code by its new
        deadline, and survives the death of a worker. Its `recognize` call goes on.

        Returns:
            False when no eager request is open: it was answered, refused or taken back. Unless
            the caller has its text, it asks for a final.
        """
        ...

    def load(self) -> EngineLoad:
        """Say how much is accepted and unanswered, running requests included."""
        ...

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, wait up to `drain_s` for open finals, fail the rest, end."""
        ...


@dataclass(slots=True, eq=False)
class _Open:
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


class _OpenRequests:
    """Accepted and unanswered requests, in order of acceptance; each is answered once."""

    def __init__(self, max_finals: int, clock: Clock) -> None:
        self._max_finals = max_finals
        self._clock = clock
        self._ids = itertools.count(1)
        self._open: dict[int, _Open] = {}

    def __iter__(self) -> Iterator[_Open]:
        return iter(list(self._open.values()))

    def __contains__(self, item: _Open) -> bool:
        return item.job.id in self._open

    def accept(self, request: Request) -> _Open:
        """Add a request.

        Raises:
            EngineBusy: As many finals as allowed are open.
        """
        now_ns = self._clock.monotonic_ns()
        job = Job(next(self._ids), request, now_ns)
        finals = self.finals()
        if job.is_final and len(finals) >= self._max_finals:
            raise EngineBusy(retry_after_ms(now_ns - finals[0].job.accepted_ns))
        item = _Open(job, asyncio.get_running_loop().create_future())
        self._open[job.id] = item
        return item

    def promote(self, segment: int, deadline_ns: int | None) -> _Open | None:
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

    def take_back(self, item: _Open) -> bool:
        """Forget a request; False when it was answered."""
        return self._open.pop(item.job.id, None) is not None

    def finals(self) -> list[_Open]:
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


def restart_delay_s(deaths_in_a_row: int) -> float:
    """Return how long to wait before the next worker: 0 first, then 0.5 s doubled up to 30 s."""
    if deaths_in_a_row <= 1:
        return 0.0
    return min(0.5 * 2.0 ** min(deaths_in_a_row - 2, 16), _LONGEST_BACK_OFF_S)


class EngineHost:
    """Keeps one worker process alive and fed.

    A worker that dies or hangs is replaced. The finals that it held are run once more, one at a
    time, so that one which kills workers is told from its neighbours: only a final whose second
    worker died too fails with EngineDead. All else of a dead worker fails as superseded.
    """

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._open = _OpenRequests(config.max_queued_finals, self._clock)
        self._cleanup = contextlib.ExitStack()
        self._worker: WorkerProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._past = EngineTotals()
        """Of the workers before this one."""
        self._heard = EngineLoad()
        """What the worker said last."""
        self._deaths_in_a_row = 0
        self._is_stopping = self._is_broken = False
        self.ready = False
        self.reason = "not started"
        self.info: EngineInfo | None = None
        self.rss_bytes = 0
        self.peak_rss_bytes = 0
        self._beats = 0
        self._is_resting = False

    @property
    def worker_pid(self) -> int | None:
        """Process that holds the model, also while it loads; None while there is none."""
        return self._worker.pid if self._worker is not None else None

    @property
    def beats(self) -> int | None:
        """Rises with every word of a worker and every start of one.

        None while nothing is to be expected: before the start, in the pause before the next
        worker, and from the stop on.
        """
        is_idle = not self._tasks or self._is_resting or self._is_stopping
        return None if is_idle else self._beats

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineInfo:
        """Start the worker; see `Engine.start`."""
        self.reason = "starting"
        try:
            self._context = zmq.asyncio.Context()
            self._cleanup.callback(self._context.term)
            info = await self._launch(progress or (lambda _text: None))
        except BaseException as error:
            self.reason = str(error) or "start was cancelled"
            self._cleanup.close()
            raise
        self._tasks = [
            asyncio.create_task(self._supervise(), name="engine-supervisor"),
            asyncio.create_task(self._watch_deadlines(), name="engine-deadlines"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._on_task_done)
        return info

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A fault of ours: nobody keeps a worker any more, so no request may wait for one."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.error("engine is lost task=%s", task.get_name(), exc_info=error)
        self._is_broken = True
        self.ready, self.reason = False, f"engine supervision broke: {type(error).__name__}"
        self._open.fail_all(self.reason)

    async def recognize(self, request: Request) -> Transcript:
        """Have the worker answer one request; see `Engine.recognize`."""
        if not self._tasks or self._is_broken or self._is_stopping:
            raise EngineDead(f"engine takes no requests: {self.reason}")
        samples = len(request.segment.pcm)
        if samples > ipc.MAX_SEGMENT_SAMPLES:
            raise NoGearError(1, samples // 160, ())
        item = self._open.accept(request)
        self._feed()
        try:
            return await item.future
        finally:
            if self._open.take_back(item):  # cancelled
                if item.in_worker and self._worker is not None:
                    self._worker.send(ipc.Cancel(request.segment.id, item.job.id))
                self._feed()

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Let an eager request be the final; see `Engine.promote`."""
        item = self._open.promote(segment_id, deadline_ns)
        if item is None:
            return False
        if item.in_worker and self._worker is not None:
            left_ns = ipc.time_left_of(deadline_ns, self._clock.monotonic_ns())
            self._worker.send(ipc.Promote(item.job.id, left_ns))
        return True

    def load(self) -> EngineLoad:
        """Say how much is accepted and unanswered."""
        return self._open.load(self._heard.batch, self._past + self._heard.totals)

    async def stop(self, drain_s: float = 0.0) -> None:
        """End in order; see `Engine.stop`. A second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        try:
            if self._tasks:
                await self._open.drain(drain_s)
        finally:
            self.ready, self.reason = False, "stopped"
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._open.fail_all("engine was stopped")
            if self._worker is not None:
                worker, self._worker = self._worker, None
                worker.send(ipc.Stop())
                await worker.end(_STOP_GRACE_S)
            self._cleanup.close()

    # ---- feeding -------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give the worker what it may have now.

        Finals that survived a dead worker go alone, one after the other; the rest waits for them.
        """
        suspects = [item for item in self._open if item.deaths]
        if self.ready and suspects:
            if not any(item.in_worker for item in self._open):
                self._submit(suspects[0])
        elif self.ready:
            for item in self._open:
                if not item.in_worker:
                    self._submit(item)
        for item in self._open:
            if not item.job.is_final and not item.in_worker:
                self._open.answer(item.job.id, Superseded("engine is recovering"))

    def _submit(self, item: _Open) -> None:
        assert self._worker is not None
        now_ns = self._clock.monotonic_ns()
        item.handed_as = item.job.request.kind
        self._worker.send(ipc.submit_of(item.job.id, item.job.request, now_ns))

    def _hear(self, message: ipc.FromWorker | None) -> None:
        """Take what a ready worker says.

        Raises:
            EngineDead: The worker hangs, or ends without being asked.
        """
        match message:
            case ipc.Result():
                self._open.answer(message.job, message.transcript)
                self._feed()
            case ipc.Failure(job=int(job)):
                self._open.answer(job, ipc.error_of(message))
                self._feed()
            case ipc.Heartbeat():
                self._note_memory(message)
                running_s = message.running_for_ns / 1e9
                if running_s > self._config.hang_timeout_s:
                    raise EngineDead(f"engine worker hangs: one call lasts {running_s:.1f} s")
            case ipc.Stopped():
                raise EngineDead("engine worker stopped by itself")

    def _note_memory(self, beat: ipc.Heartbeat) -> None:
        self._heard = beat.load
        self.rss_bytes = beat.rss_bytes
        self.peak_rss_bytes = max(self.peak_rss_bytes, beat.peak_rss_bytes)

    async def _watch_deadlines(self) -> None:
        """Fail what waits here past its deadline; the worker does so for what it holds."""
        while True:
            now_ns = self._clock.monotonic_ns()
            for item in self._open:
                if not item.in_worker and item.job.is_late(now_ns):
                    self._open.answer(item.job.id, too_late(item.job, now_ns))
            await asyncio.sleep(_TICK_S)

    # ---- keeping a worker ----------------------------------------------------------------------

    async def _launch(self, progress: Callable[[str], None]) -> EngineInfo:
        """Start a worker and wait until it is warm.

        Raises:
            EngineError: It cannot start, in its own words where it had any.
        """
        self._beats += 1
        self._worker = worker = await WorkerProcess.start(self._context, self._config)
        try:
            self.info = await self._until_ready(worker, progress)
        except BaseException:
            self._worker = None
            await worker.end()
            raise
        self.ready, self.reason = True, ""
        return self.info

    async def _until_ready(
        self, worker: WorkerProcess, progress: Callable[[str], None]
    ) -> EngineInfo:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_LOADING_S) as limit:
                while True:
                    message = await worker.receive(_TICK_S)
                    self._beats += message is not None
                    match message:
                        case ipc.Hello() if message.protocol != ipc.PROTOCOL:
                            found = f"engine worker speaks protocol {message.protocol}"
                            raise EngineDead(f"{found}, expected {ipc.PROTOCOL}; reinstall voiced")
                        case ipc.Hello():
                            worker.forget_address()
                        case ipc.Progress():
                            limit.reschedule(loop.time() + _LOADING_S)
                            progress(message.text)
                        case ipc.Heartbeat():
                            self._note_memory(message)
                        case ipc.Failure():
                            raise ipc.error_of(message)
                        case ipc.Ready():
                            return message.info
        except TimeoutError:
            text = f"engine worker {worker.pid} made no progress in {_LOADING_S:.0f} s of loading"
            raise EngineDead(text) from None

    async def _supervise(self) -> None:
        """Serve with one worker after the other until cancelled."""
        while True:
            started_ns = self._clock.monotonic_ns()
            self._feed()
            died = await self._serve()
            if self._clock.monotonic_ns() - started_ns > _STEADY_NS:
                self._deaths_in_a_row = 0
            await self._bury(died)
            while not self.ready:
                delay_s = restart_delay_s(self._deaths_in_a_row)
                logger.warning("engine worker is replaced in_s=%.1f: %s", delay_s, self.reason)
                self._is_resting = True
                await asyncio.sleep(delay_s)
                self._is_resting = False
                self._past += EngineTotals(restarts=1)
                try:
                    await self._launch(lambda text: logger.info("engine worker: %s", text))
                except (EngineError, OSError, ipc.IpcError) as error:
                    self._deaths_in_a_row += 1
                    self.reason = f"engine worker cannot start: {error}"

    async def _serve(self) -> str:
        """Listen to the worker; return why it cannot go on."""
        assert self._worker is not None
        quiet_ticks = 0
        try:
            while quiet_ticks < _QUIET_TICKS:
                message = await self._worker.receive(_TICK_S)
                quiet_ticks = quiet_ticks + 1 if message is None else 0
                self._beats += message is not None
                self._hear(message)
        except (EngineDead, ipc.IpcError) as error:
            return str(error)
        return f"engine worker {self._worker.pid} is silent for {_QUIET_TICKS * _TICK_S:.0f} s"

    async def _bury(self, died: str) -> None:
        """End what is left of a worker, and settle the requests that it held."""
        self.ready, self.reason = False, died
        self._deaths_in_a_row += 1
        if self._worker is not None:
            worker, self._worker = self._worker, None
            await worker.end()
        self._past += self._heard.totals
        self.rss_bytes, self._heard = 0, EngineLoad()
        for item in self._open:
            if item.in_worker:
                item.handed_as = None
                item.deaths += 1
            if item.deaths > 1:
                segment = item.job.request.segment
                logger.error("final lost, its retry died too segment=%d", segment.id)
                self._open.answer(item.job.id, EngineDead(f"{died}, twice with this request"))
        self._feed()


class InProcessEngine:
    """The engine on a thread of this process; see `Engine` for the contract."""

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._open = _OpenRequests(config.max_queued_finals, self._clock)
        scheduler = Scheduler(max_queued_finals=most_finals(config))
        self._queue = FinalsFirst(scheduler, self._clock)
        self._thread: threading.Thread | None = None
        self.ready = False
        self.reason = "not started"
        self.info: EngineInfo | None = None

    @property
    def worker_pid(self) -> int | None:
        """This process, once the model is loaded."""
        return self.info.worker_pid if self.info is not None else None

    @property
    def rss_bytes(self) -> int:
        """Resident memory of this process."""
        return process_memory()[0]

    @property
    def peak_rss_bytes(self) -> int:
        """Highest resident memory of this process."""
        return process_memory()[1]

    async def start(self, progress: Callable[[str], None] | None = None) -> EngineInfo:
        """Load and warm on the engine's thread; see `Engine.start`."""
        self.reason = "starting"
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[EngineInfo] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        arguments = (loop, loaded, progress or (lambda _text: None))
        self._thread = threading.Thread(
            target=self._run, args=arguments, name="engine", daemon=True
        )
        self._thread.start()
        try:
            self.info = await asyncio.shield(loaded)
        except BaseException as error:
            self.reason = str(error) or "start was cancelled"
            self._queue.stop()
            if isinstance(error, EngineError):
                await self._ended
                self._thread.join()
            loaded.cancel()
            raise
        self.ready, self.reason = True, ""
        return self.info

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        loaded: asyncio.Future[EngineInfo],
        progress: Callable[[str], None],
    ) -> None:
        """The engine's thread; every call into the event loop leaves from here."""

        def tell(act: Callable[..., object], *arguments: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(act, *arguments)

        def settle(act: Callable[[], object]) -> None:
            if not loaded.done():
                act()

        try:
            recognizer = load_recognizer(self._config)
            with contextlib.closing(recognizer):
                recognizer.warm(lambda text: tell(progress, text))
                info = recognizer.info
                tell(settle, lambda: loaded.set_result(info))
                run_engine(
                    recognizer,
                    self._queue,
                    lambda job, outcome: tell(self._answer, job, outcome),
                    self._clock,
                )
        except Exception as error:  # top of the worker: whoever waits must learn of it
            failure = error if isinstance(error, EngineError) else None
            if failure is None:
                logger.exception("engine thread ends")
                failure = EngineDead(f"engine thread ended: {type(error).__name__}: {error}")
            tell(self._failed, loaded, failure)
        finally:
            tell(self._ended.set_result, None)

    def _failed(self, loaded: asyncio.Future[EngineInfo], error: EngineError) -> None:
        self.ready, self.reason = False, str(error)
        if not loaded.done():
            loaded.set_exception(error)
        self._open.fail_all(str(error))

    async def recognize(self, request: Request) -> Transcript:
        """Have the thread answer one request; see `Engine.recognize`."""
        if not self.ready:
            raise EngineDead(f"engine takes no requests: {self.reason}")
        item = self._open.accept(request)
        try:
            self._submit(item)
            return await item.future
        finally:
            if self._open.take_back(item):  # cancelled
                self._queue.cancel(request.segment.id, item.job.id)

    def _submit(self, item: _Open) -> None:
        item.handed_as = item.job.request.kind
        self._open.drop(self._queue.submit(item.job))

    def _answer(self, job_id: int, outcome: Answer) -> None:
        self._open.answer(job_id, outcome)
        for item in self._open:
            if not item.in_worker:  # refused as eager, but a final since
                self._submit(item)

    def promote(self, segment_id: int, deadline_ns: int | None = None) -> bool:
        """Let an eager request be the final; see `Engine.promote`."""
        item = self._open.promote(segment_id, deadline_ns)
        if item is None:
            return False
        self._queue.promote(item.job.id, deadline_ns)
        return True

    def load(self) -> EngineLoad:
        """Say how much is accepted and unanswered."""
        running = self._queue.load()
        return self._open.load(running.batch, running.totals)

    async def stop(self, drain_s: float = 0.0) -> None:
        """End in order; see `Engine.stop`. A call that hangs keeps its thread, not the process."""
        was_ready, self.ready = self.ready, False
        self.reason = "stopped" if was_ready else self.reason
        await self._open.drain(drain_s)
        for item in self._open:
            self._queue.cancel(item.job.request.segment.id)
        self._open.fail_all("engine was stopped")
        self._queue.stop()
        if self._thread is None:
            return
        await asyncio.wait((self._ended,), timeout=_STOP_GRACE_S)
        if self._ended.done():
            self._thread.join()
        else:
            logger.warning("engine thread is in a call and is left behind")
