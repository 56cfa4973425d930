"""The engine on a thread of this process, for command-line use and tests: no crash is survived."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from voiced.audio.clock import Clock, SystemClock
from voiced.engine.batch import Answer
from voiced.engine.errors import EngineDead, EngineError
from voiced.engine.loop import FinalsFirst, process_memory, run_engine
from voiced.engine.open_requests import OpenRequest, OpenRequests
from voiced.engine.recognizer import load_recognizer
from voiced.engine.scheduler import Scheduler, most_finals
from voiced.engine.types import EngineConfig, EngineInfo, EngineLoad, Request, Transcript

logger = logging.getLogger(__name__)

_STOP_GRACE_S = 1.0
"""For the thread to leave its last call."""


class InProcessEngine:
    """The engine on a thread of this process; see `host.Engine` for the contract."""

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._open = OpenRequests(config.max_queued_finals, self._clock)
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

    def _submit(self, item: OpenRequest) -> None:
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

    @property
    def queued_finals(self) -> int:
        """Finals that are accepted and unanswered."""
        return len(self._open.finals())

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
