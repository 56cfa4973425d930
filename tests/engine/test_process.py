"""The socket to a worker: what is read when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import zmq

from voiced.engine import ipc
from voiced.engine.errors import EngineDead
from voiced.engine.process import WorkerProcess

HELLO = ipc.encode(ipc.Hello(pid=1))


@dataclass
class Rig:
    """A process that waits for its input to end, and a socket in place of what it would send."""

    worker: WorkerProcess
    ours: zmq.Socket[bytes]
    theirs: zmq.Socket[bytes]

    def say(self, data: bytes) -> None:
        """Send, and return when it has arrived: seen by us, and not by the worker's reader."""
        self.theirs.send(data)
        assert self.ours.poll(5_000)


@contextlib.asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as theirs:
        ours = context.socket(zmq.DEALER)
        ours.set(zmq.LINGER, 0)
        port = ours.bind_to_random_port("tcp://127.0.0.1")
        theirs.set(zmq.LINGER, 0)
        theirs.connect(f"tcp://127.0.0.1:{port}")
        read_fd, lifeline_fd = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; sys.stdin.read()", stdin=read_fd
        )
        os.close(read_fd)
        worker = WorkerProcess(process, ours, contextlib.ExitStack(), lifeline_fd)
        try:
            yield Rig(worker, ours, theirs)
        finally:
            await worker.end()


def test_what_came_while_something_was_sent_is_not_overlooked() -> None:
    async def scenario() -> None:
        async with rig() as it:
            it.say(HELLO)
            # The look at the socket took the descriptor's one sign, as a send may.
            assert not select.select([it.ours.fileno()], [], [], 0)[0]
            it.worker.send(ipc.Stop())
            assert await it.worker.receive(5.0) == ipc.Hello(pid=1)

    asyncio.run(scenario())


def test_messages_are_received_in_order_and_then_nothing() -> None:
    async def scenario() -> None:
        async with rig() as it:
            for number in range(3):
                it.theirs.send(ipc.encode(ipc.Progress(str(number))))
            assert [await it.worker.receive(5.0) for _ in range(3)] == [
                ipc.Progress("0"),
                ipc.Progress("1"),
                ipc.Progress("2"),
            ]
            assert await it.worker.receive(0.0) is None

    asyncio.run(scenario())


def test_a_worker_without_a_connection_can_be_spoken_to() -> None:
    async def scenario() -> None:
        async with rig() as it:
            it.theirs.close()
            assert any(not it.ours.poll(1, zmq.POLLOUT) for _ in range(5_000))
            it.worker.send(ipc.Stop())

    asyncio.run(scenario())


def test_the_last_words_of_a_dead_worker_come_before_its_death() -> None:
    async def scenario() -> None:
        async with rig() as it:
            it.worker._process.kill()
            await it.worker._process.wait()
            it.say(HELLO)
            assert await it.worker.receive(5.0) == ipc.Hello(pid=1)
            with pytest.raises(EngineDead, match="killed by signal 9"):
                await it.worker.receive(5.0)

    asyncio.run(scenario())
