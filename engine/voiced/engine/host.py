"""The engine as the daemon sees it: `recognize(request)`, whatever happens behind it.

`EngineHost` keeps one worker process alive and fed. `in_process.InProcessEngine` has the same
contract with a thread of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import zmq

from voiced.audio.clock import Clock, SystemClock
from voiced.engine import ipc
from voiced.engine.errors import (
    EngineDead,
    EngineError,
    NoGearError,
    Superseded,
)
from voiced.engine.open_requests import OpenRequest, OpenRequests
from voiced.engine.process import WorkerProcess
from voiced.engine.scheduler import too_late
from voiced.engine.types import (
    EngineConfig,
    EngineInfo,
    EngineLoad,
    EngineTotals,
    Request,
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
"""For a worker to end by itself."""


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

    @property
    def queued_finals(self) -> int:
        """As in `load`: for those who ask at every partial."""
        ...

    def load(self) -> EngineLoad:
        """Say how much is accepted and unanswered, running requests included."""
        ...

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, wait up to `drain_s` for open finals, fail the rest, end."""
        ...


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
        self._open = OpenRequests(config.max_queued_finals, self._clock)
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
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
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

    @property
    def queued_finals(self) -> int:
        """Finals that are accepted and unanswered."""
        return len(self._open.finals())

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

    def _submit(self, item: OpenRequest) -> None:
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
