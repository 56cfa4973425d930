"""A daemon of our own as a child process, for the demo and the benchmarks: start, watch, stop."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiced.daemon.errors import DaemonError

READY_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 20.0
_SHOWN_LOG_LINES = 15

FREE_PORTS = """\
[server]
port = 0
[bus]
endpoint = "tcp://127.0.0.1:*"
ingest = "tcp://127.0.0.1:0"
"""


class ChildFailed(DaemonError):
    """The daemon did not start, or did not end as it should."""

    code = "child_daemon"


@dataclass(frozen=True, slots=True)
class ChildDaemon:
    """A daemon that is ready, and what the kernel knows of it (proc(5))."""

    pid: int
    url: str
    """Of its streams."""
    bus: str
    ready_s: float
    """From the start of the process to READY."""
    log: Path | None = None
    """What it writes; gone after its end."""

    def family(self) -> tuple[int, ...]:
        """The daemon and all processes below it, the daemon first."""
        return (self.pid, *descendants(self.pid))


@contextlib.contextmanager
def child_daemon(*arguments: str) -> Iterator[ChildDaemon]:
    """Start `voiced run` on free ports with default settings; at the end see it exit with 0.

    Args:
        arguments: Further arguments of `voiced run`.

    Raises:
        ChildFailed: It did not become ready, or did not end cleanly; with its last log lines.
    """
    with tempfile.TemporaryDirectory(prefix="voiced-child-") as folder:
        addresses, log = Path(folder, "addresses.json"), Path(folder, "log")
        config = Path(folder, "voiced.toml")
        config.write_text(FREE_PORTS, encoding="utf-8")
        command = (sys.executable, "-m", "voiced.daemon.cli", "run", "--config", str(config))
        began_s = time.monotonic()
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, "--address-file", str(addresses), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=without_settings(),
            )
        try:
            where = _wait_ready(process, addresses, log)
            url = f"ws://{where['host']}:{where['port']}/v1/stream"
            yield ChildDaemon(process.pid, url, where["bus"], time.monotonic() - began_s, log)
            _end(process, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def child_failures() -> Iterator[None]:
    """Say in one line what went wrong between us and the daemon, in the tasks of a group too.

    Raises:
        ChildFailed: It closed a connection, or did not answer in time.
        BaseException: The first error of an exception group, in its place.
    """
    from websockets.exceptions import ConnectionClosed

    try:
        yield
    except (BaseExceptionGroup, ConnectionClosed, TimeoutError) as found:
        error: BaseException = found
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ConnectionClosed):
            raise ChildFailed(f"daemon closed the connection: {error}") from found
        if isinstance(error, TimeoutError):
            raise ChildFailed("daemon did not answer in time") from found
        raise error from None


def cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used so far, user and system, in seconds.

    From the kernel's own clock of a process, in nanoseconds; proc(5) has ticks of 10 ms.
    """
    return sum(time.clock_gettime_ns(_cpu_clock(pid)) for pid in pids) / 1e9


def _cpu_clock(pid: int) -> int:
    """Return what clock_getcpuclockid(3) does: Linux's number of a process's CPU clock."""
    return (~pid << 3) | 2  # CPUCLOCK_SCHED, include/linux/posix-timers_types.h


def peak_bytes(pids: Sequence[int]) -> int:
    """Return the sum of the processes' largest resident sizes."""
    lines = (
        line
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return sum(int(line.split()[1]) * 1024 for line in lines)


def descendants(pid: int) -> list[int]:
    """Return the processes below one, parents before their children; empty once it has ended.

    By each thread's list in proc(5). A thread or a process that ends between being listed and
    being read started nothing that still hangs on it: its children have moved to another parent.
    """
    found = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _wait_ready(process: subprocess.Popen[bytes], addresses: Path, log: Path) -> dict[str, Any]:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise ChildFailed(f"daemon exited with {process.returncode} at start\n{_tail(log)}")
        if addresses.exists():
            where: dict[str, Any] = json.loads(addresses.read_text(encoding="utf-8"))
            if _is_ready(f"http://{where['host']}:{where['port']}/readyz"):
                return where
        time.sleep(0.05)
    raise ChildFailed(f"daemon was not ready within {READY_TIMEOUT_S:.0f} s\n{_tail(log)}")


def _is_ready(url: str) -> bool:
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    try:  # our own daemon on loopback: never through a proxy
        with build_opener(ProxyHandler({})).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, ConnectionError):  # 503 while the engine is being warmed
        return False


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    process.terminate()
    try:
        status = process.wait(EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ChildFailed(
            f"daemon did not end within {EXIT_TIMEOUT_S:.0f} s after SIGTERM\n{_tail(log)}"
        ) from None
    if status != 0:
        raise ChildFailed(f"daemon exited with {status}, expected 0\n{_tail(log)}")


def without_settings() -> dict[str, str]:
    """Return our environment without settings: a child runs with the defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("VOICED_") or name == "VOICED_MODEL_DIR"
    }


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  | {line}" for line in lines[-_SHOWN_LOG_LINES:])
