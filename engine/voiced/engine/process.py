"""One worker process as the host sees it: started, spoken to, ended. Knows nothing of requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import zmq

from voiced.engine import ipc
from voiced.engine.errors import EngineDead
from voiced.engine.types import EngineConfig

logger = logging.getLogger(__name__)

_LAST_WORDS_S = 0.05
"""What a dead worker sent is in the kernel already; ZeroMQ needs a moment to read it."""
_MAX_SOCKET_PATH = 107
"""unix(7): sun_path holds 108 bytes with the closing zero."""


@contextlib.contextmanager
def runtime_dir() -> Iterator[Path]:
    """Make a folder that only this user may enter (0700), for sockets; removed at the end."""
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    room = len("/voiced-12345678/engine.sock")
    parents = [
        parent
        for parent in candidates
        if parent
        and len(os.fsencode(parent)) + room < _MAX_SOCKET_PATH
        and os.access(parent, os.W_OK)
    ]
    with tempfile.TemporaryDirectory(prefix="voiced-", dir=next(iter(parents), None)) as path:
        yield Path(path)


class WorkerProcess:
    """A running worker and the socket to it. Belongs to one event loop.

    The socket is a plain one that is never waited for: pyzmq's futures keep the loop busier than
    the messages do.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        socket: zmq.Socket[bytes],
        address: contextlib.ExitStack,
        lifeline_fd: int,
    ) -> None:
        self._process = process
        self._socket = socket
        self._address = address
        self._lifeline_fd = lifeline_fd
        self._inbox: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        """What `receive` waits for, while it does."""
        self._exited = asyncio.ensure_future(process.wait())
        self._has_exited = False
        self._exited.add_done_callback(self._on_exit)
        asyncio.get_running_loop().add_reader(socket.fileno(), self._read)

    @classmethod
    async def start(
        cls, context: zmq.Context[zmq.Socket[bytes]], config: EngineConfig
    ) -> WorkerProcess:
        """Start a worker; it says Hello, then Ready or Failure.

        Raises:
            OSError: No folder can be made for the socket, or no process started.
        """
        with contextlib.ExitStack() as undo:
            address = undo.enter_context(contextlib.ExitStack())
            endpoint = f"ipc://{address.enter_context(runtime_dir())}/engine.sock"
            try:
                socket = context.socket(zmq.DEALER)
                undo.callback(socket.close)
                socket.set(zmq.LINGER, 0)
                socket.set(zmq.MAXMSGSIZE, ipc.MAX_MESSAGE_BYTES)
                socket.set(zmq.SNDHWM, 0)  # bounded by what the host accepts
                socket.set(zmq.RCVHWM, 0)
                socket.bind(endpoint)
            except zmq.ZMQError as error:  # no OSError, though its numbers are those of one
                raise OSError(error.errno, f"engine socket: {error.strerror}") from error
            read_fd, lifeline_fd = os.pipe()
            undo.callback(os.close, lifeline_fd)
            try:
                launch = ipc.Launch(config, endpoint, logging.getLogger().getEffectiveLevel())
                os.write(lifeline_fd, ipc.encode_launch(launch))
                process = await asyncio.create_subprocess_exec(
                    # -P: a folder of the user's that is called like a library must not be imported
                    *(sys.executable, "-P", "-m", "voiced.engine.worker"),
                    stdin=read_fd,
                )
            finally:
                os.close(read_fd)
            undo.pop_all()
        return cls(process, socket, address, lifeline_fd)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def forget_address(self) -> None:
        """Remove the socket's file and folder: the connection stands and needs neither.

        What is not there cannot be left behind by a daemon that is killed.
        """
        self._address.close()

    def send(self, message: ipc.FromHost) -> None:
        """Send without waiting: the queue to the worker is bounded by what the host accepts."""
        with contextlib.suppress(zmq.Again):  # it just died; what it should get goes to the next
            self._socket.send(ipc.encode(message), zmq.NOBLOCK)
        self._read()

    async def receive(self, quiet_s: float) -> ipc.FromWorker | None:
        """Return the next message; None when `quiet_s` passed without one.

        Raises:
            EngineDead: The process has ended, and all that it said was received.
        """
        if not self._inbox and not self._has_exited:
            await self._until_news(quiet_s)
        if not self._inbox and self._has_exited:
            await self._until_news(_LAST_WORDS_S)
            self._read()
        if self._inbox:
            return ipc.decode_from_worker(self._inbox.popleft())
        if self._has_exited:
            status = self._exited.result()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            raise EngineDead(f"engine worker {self.pid} {how}")
        return None

    async def _until_news(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._news
        finally:
            timer.cancel()
            self._news = None

    def _on_exit(self, _exited: object) -> None:
        self._has_exited = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _read(self) -> None:
        """Take in all that has come.

        ZeroMQ's descriptor tells of a change once, to whatever looks at the socket next, a send
        included: so all is read each time, and after each send.
        """
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._inbox.append(self._socket.recv(zmq.NOBLOCK))
        if self._inbox:
            self._wake()

    async def end(self, grace_s: float = 0.0) -> None:
        """Wait up to `grace_s` for the process to end by itself, kill it, free everything."""
        try:
            if grace_s > 0:
                await asyncio.wait((self._exited,), timeout=grace_s)
        finally:
            if not self._exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._address.close()
            os.close(self._lifeline_fd)
            await asyncio.shield(self._exited)
