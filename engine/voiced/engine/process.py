"""One worker process as the host sees it: started, spoken to, ended. Knows nothing of requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zmq
import zmq.asyncio

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
    """A running worker and the socket to it. Belongs to one event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        socket: zmq.asyncio.Socket,
        address: contextlib.ExitStack,
        lifeline_fd: int,
    ) -> None:
        self._process = process
        self._socket = socket
        self._address = address
        self._lifeline_fd = lifeline_fd
        self._exited = asyncio.ensure_future(process.wait())
        self._receiving: asyncio.Future[bytes] | None = None

    @classmethod
    async def start(cls, context: zmq.asyncio.Context, config: EngineConfig) -> WorkerProcess:
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
        sent = asyncio.ensure_future(self._socket.send(ipc.encode(message)))
        if not sent.done():  # the worker just died; what it should have got is sent to the next
            sent.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def receive(self, quiet_s: float) -> ipc.FromWorker | None:
        """Return the next message; None when `quiet_s` passed without one.

        Raises:
            EngineDead: The process has ended, and all that it said was received.
        """
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self._socket.recv())
        await asyncio.wait(
            (self._receiving, self._exited),
            timeout=quiet_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self._exited.done() and not self._receiving.done():
            await asyncio.wait((self._receiving,), timeout=_LAST_WORDS_S)
        if self._receiving.done():
            data = self._receiving.result()
            self._receiving = None
            return ipc.decode_from_worker(data)
        if self._exited.done():
            status = self._exited.result()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            raise EngineDead(f"engine worker {self.pid} {how}")
        return None

    async def end(self, grace_s: float = 0.0) -> None:
        """Wait up to `grace_s` for the process to end by itself, kill it, free everything."""
        try:
            if grace_s > 0:
                await asyncio.wait((self._exited,), timeout=grace_s)
        finally:
            if not self._exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            if self._receiving is not None:
                self._receiving.cancel()
            self._socket.close()
            self._address.close()
            os.close(self._lifeline_fd)
            await asyncio.shield(self._exited)
