"""The engine worker of a daemon from outside: found by the kernel's list, killed for good."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from voiced.daemon.commands.child import descendants

_DEATH_S = 60.0
"""Longest wait for a killed process to be gone."""


def worker_of(daemon: int) -> int | None:
    """Return the pid of a daemon's engine worker: the process that runs its module."""
    return next((pid for pid in descendants(daemon) if is_worker(pid)), None)


def kill_worker(pid: int) -> bool:
    """Kill an engine worker, which is no child of ours, and see it gone; blocks.

    False when it was ending already: a process can be killed, and counted, once.

    Raises:
        TimeoutError: It is there after a minute.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        is_gone = select.poll()
        is_gone.register(handle, select.POLLIN)
        if is_gone.poll(0) or not is_worker(pid):  # it is ending, or the number is another's now
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not is_gone.poll(1000 * _DEATH_S):
            raise TimeoutError(f"killed worker {pid} is not gone after {_DEATH_S:g} s")
        return True
    finally:
        os.close(handle)


def is_worker(pid: int) -> bool:
    """Whether it runs the worker's module; a process that has ended runs nothing."""
    try:
        return b"voiced.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
