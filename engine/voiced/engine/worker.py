"""The worker process: `python -m voiced.engine.worker`, started by `voiced.engine.host` only.

The main thread owns the Recognizer with all its sessions and buffers. A second thread owns the
ZeroMQ socket and sends heartbeats, so a native call that hangs is seen by the host. The two meet
in `FinalsFirst` (requests) and an inproc pair (answers, already encoded).

The process ends after Stop or SIGTERM (it answers what it has accepted first), and at once when
its parent dies: standard input is the lifeline, its end is the parent's end. SIGINT and SIGHUP are
the terminal's ways to end the daemon, which then stops its worker in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import logging
import os
import signal
import sys
import threading

import zmq

from voiced.audio.clock import Clock, SystemClock
from voiced.engine import ipc
from voiced.engine.batch import Answer
from voiced.engine.errors import EngineError
from voiced.engine.loglines import formatter_for
from voiced.engine.loop import FinalsFirst, process_memory, run_engine
from voiced.engine.recognizer import load_recognizer
from voiced.engine.scheduler import Dropped, Job, Scheduler, most_finals
from voiced.engine.types import EngineConfig

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
_ANSWERS = "inproc://answers"
_END = b""
_LIFELINE_FD = 0
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
"""linux/prctl.h"""


def main(config: EngineConfig, endpoint: str) -> int:
    """Load, warm and serve on the calling thread until told to stop; return the exit status."""
    _prctl(_PR_SET_NAME, b"voiced-engine")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    clock = SystemClock()
    queue = FinalsFirst(Scheduler(max_queued_finals=most_finals(config)), clock)
    with zmq.Context() as context, context.socket(zmq.PAIR) as answers:
        answers.bind(_ANSWERS)
        io = threading.Thread(
            target=_serve_socket, args=(context, endpoint, queue, clock), name="engine-io"
        )
        io.start()
        try:
            return _serve_engine(config, queue, answers, clock)
        finally:
            answers.send(_END)
            io.join()


def _serve_engine(
    config: EngineConfig, queue: FinalsFirst, answers: zmq.Socket[bytes], clock: Clock
) -> int:
    """Own the recogniser from load to close."""

    def progress(text: str) -> None:
        answers.send(ipc.encode(ipc.Progress(text)))

    def answer(job: int, outcome: Answer) -> None:
        if isinstance(outcome, EngineError):
            answers.send(ipc.encode(ipc.failure_of(job, outcome)))
        else:
            answers.send(ipc.encode(ipc.Result(job, outcome)))

    try:
        recognizer = load_recognizer(config)
        recognizer.warm(progress)
    except EngineError as error:
        answers.send(ipc.encode(ipc.failure_of(None, error)))
        return 1
    except Exception as error:  # top of the worker: the host must learn why it cannot start
        logger.exception("worker cannot start")
        text = f"worker cannot start: {type(error).__name__}: {error}"
        answers.send(ipc.encode(ipc.failure_of(None, EngineError(text))))
        return 1
    # Until here SIGTERM ends the process at once: nothing was accepted.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: queue.stop())
    with contextlib.closing(recognizer):
        info = dataclasses.replace(recognizer.info, worker_pid=os.getpid())
        answers.send(ipc.encode(ipc.Ready(info)))
        logger.info("worker ready pid=%d bundle=%s", os.getpid(), info.bundle)
        run_engine(recognizer, queue, answer, clock)
    return 0


def _serve_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, queue: FinalsFirst, clock: Clock
) -> None:
    """Own the socket on the I/O thread until the engine's thread sends the end mark."""
    _prctl(_PR_SET_NAME, b"engine-io")
    with context.socket(zmq.DEALER) as host, context.socket(zmq.PAIR) as answers:
        host.set(zmq.LINGER, 1_000)
        host.set(zmq.MAXMSGSIZE, ipc.MAX_MESSAGE_BYTES)
        host.set(zmq.SNDHWM, 0)  # bounded by what the host has accepted
        host.set(zmq.RCVHWM, 0)
        host.connect(endpoint)
        answers.connect(_ANSWERS)
        host.send(ipc.encode(ipc.Hello(os.getpid())))
        poller = zmq.Poller()
        for source in (host, answers, _LIFELINE_FD):
            poller.register(source, zmq.POLLIN)
        next_beat_ns = 0
        while True:
            # Rounded up, or the last millisecond before each heartbeat would be spent polling.
            wait_ms = max(0, -(-(next_beat_ns - clock.monotonic_ns()) // 1_000_000))
            ready = dict(poller.poll(wait_ms))
            if _LIFELINE_FD in ready and not os.read(_LIFELINE_FD, 4_096):
                os._exit(1)  # the parent is gone, and the main thread may be in a hung call
            if answers in ready:
                data = answers.recv()
                if data == _END:
                    host.send(ipc.encode(ipc.Stopped()))
                    return
                host.send(data)
            if host in ready:
                _receive(host, queue, ipc.decode_from_host(host.recv()), clock)
            if clock.monotonic_ns() >= next_beat_ns:
                _refuse(host, queue.expire())
                host.send(ipc.encode(_heartbeat(queue, clock)))
                next_beat_ns = clock.monotonic_ns() + round(HEARTBEAT_S * 1e9)


def _receive(
    host: zmq.Socket[bytes], queue: FinalsFirst, message: ipc.FromHost, clock: Clock
) -> None:
    match message:
        case ipc.Submit():
            now_ns = clock.monotonic_ns()
            job = Job(message.job, ipc.request_of(message, now_ns), now_ns)
            try:
                _refuse(host, queue.submit(job))
            except EngineError as error:
                host.send(ipc.encode(ipc.failure_of(job.id, error)))
        case ipc.Promote():
            deadline_ns = ipc.deadline_of(message.time_left_ns, clock.monotonic_ns())
            queue.promote(message.job, deadline_ns)
        case ipc.Cancel():
            queue.cancel(message.segment, message.job)
        case ipc.Stop():
            queue.stop()


def _refuse(host: zmq.Socket[bytes], dropped: list[Dropped]) -> None:
    for drop in dropped:
        if drop.error is not None:
            host.send(ipc.encode(ipc.failure_of(drop.job.id, drop.error)))


def _heartbeat(queue: FinalsFirst, clock: Clock) -> ipc.Heartbeat:
    running, (rss_bytes, peak_rss_bytes) = queue.running, process_memory()
    return ipc.Heartbeat(
        running=running.jobs if running else (),
        running_for_ns=max(0, clock.monotonic_ns() - running.since_ns) if running else 0,
        load=queue.load(),
        rss_bytes=rss_bytes,
        peak_rss_bytes=peak_rss_bytes,
    )


def _prctl(option: int, value: int | bytes) -> None:
    """Set a property of this process or thread (prctl(2))."""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    ctypes.CDLL(None).prctl(option, argument)


def _read_launch() -> ipc.Launch:
    """Read the one line of standard input; what follows it is the lifeline."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(_LIFELINE_FD, 1)  # unbuffered: a buffer would hide the pipe's end
        if not byte:
            raise ipc.IpcError("standard input ended before the launch line")
        line += byte
    return ipc.decode_launch(bytes(line))


def _run_as_process() -> int:
    # A call that hangs with the GIL held stops the lifeline's reader; the kernel still ends us.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        launch = _read_launch()
    except ipc.IpcError as error:
        print(f"voiced.engine.worker is started by the voiced daemon: {error}", file=sys.stderr)
        return 2
    if sys.stderr is not None:
        faulthandler.register(signal.SIGUSR1, file=sys.stderr)  # the daemon asks with its own dump
    else:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter_for(sys.stderr))
    logging.basicConfig(handlers=[handler], level=launch.log_level)
    return main(launch.config, launch.endpoint)


if __name__ == "__main__":
    sys.exit(_run_as_process())
