"""sd_notify over real datagram sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from voiced.daemon.sdnotify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket and its address as in `NOTIFY_SOCKET`."""
    name = f"voiced-test-{os.getpid()}"
    is_path = request.param == "path"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify") if is_path else f"\0{name}")
        receiver.settimeout(5)
        yield receiver, str(tmp_path / "notify") if is_path else f"@{name}"


def test_states_arrive_as_systemd_expects_them(manager: tuple[socket.socket, str]) -> None:
    receiver, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.status("starting engine")
    notifier.ready("ready\nand well")
    notifier.watchdog()
    notifier.stopping("draining")
    assert [receiver.recv(1000).decode() for _ in range(4)] == [
        "STATUS=starting engine",
        "READY=1\nSTATUS=ready and well",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_a_reload_is_told_with_the_time_of_the_managers_clock(
    manager: tuple[socket.socket, str],
) -> None:
    receiver, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    notifier.reloading("reloading")
    after_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    told = dict(line.split("=", 1) for line in receiver.recv(1000).decode().splitlines())
    assert told.keys() == {"RELOADING", "MONOTONIC_USEC", "STATUS"}
    assert told["RELOADING"] == "1"
    assert before_us <= int(told["MONOTONIC_USEC"]) <= after_us


def test_readiness_waits_for_room_in_the_managers_queue(manager: tuple[socket.socket, str]) -> None:
    receiver, address = manager
    where = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"full", where)
    telling = threading.Thread(
        target=Notifier.from_environment({"NOTIFY_SOCKET": address}).ready, args=("ready",)
    )
    telling.start()
    telling.join(0.1)  # one that does not wait has given up by now
    received = b"full"
    while received == b"full":
        received = receiver.recv(1000)
    telling.join()
    assert received == b"READY=1\nSTATUS=ready"


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({})
    notifier.ready("ready")
    assert notifier.watchdog_s is None
    assert caplog.records == []


def test_a_manager_that_is_gone_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        notifier.ready("ready")
        notifier.watchdog()
    assert len(caplog.records) == 1
    assert "cannot reach the service manager" in caplog.text


def test_the_watchdog_is_only_for_the_process_it_names() -> None:
    ours = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(ours).watchdog_s == 30.0
    assert Notifier.from_environment({"WATCHDOG_USEC": "30000000"}).watchdog_s == 30.0
    assert Notifier.from_environment({**ours, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "soon"}).watchdog_s is None
