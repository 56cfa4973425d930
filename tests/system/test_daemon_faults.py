"""The real daemon under attack: hostile peers, signals, closed streams, what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.system.running_daemon import (
    DEADLINE_S,
    FAKE,
    Daemon,
    finals,
    launch,
    noise,
    receive_until,
    say,
    silence,
    stream,
    subscribed,
)

WORD = silence(0.3) + noise(0.5) + silence(1.0)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that several tests attack; it has to outlive them all."""
    running = launch(tmp_path_factory.mktemp("daemon"), *FAKE, "--set", "server.max_streams=8")
    try:
        running.wait_ready()
        yield running
        running.process.terminate()
        assert running.wait_exit() == 0
        assert "Traceback" not in running.log
    finally:
        running.kill()


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Where a daemon puts its sockets; short, as a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="v-") as folder:
        yield Path(folder)


def dial(daemon: Daemon) -> socket.socket:
    where = daemon.addresses()
    return socket.create_connection((where["host"], where["port"]), timeout=DEADLINE_S)


def answer(connection: socket.socket) -> bytes:
    """All that the daemon says until it closes."""
    said = bytearray()
    try:
        while block := connection.recv(4096):
            said += block
    except ConnectionResetError:
        pass
    return bytes(said)


def assert_serves(daemon: Daemon) -> None:
    assert daemon.get("/healthz")[0] == 200
    assert len(finals(asyncio.run(say(daemon, WORD)))) == 1


@pytest.mark.parametrize(
    ("attack", "status"),
    [
        (bytes(range(256)) * 20, b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b""),
        (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgr\r\n\r\n", b""),
        (b"GET /healthz HTTP/9.9\r\n\r\n", b""),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"POST /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 405"),
        (b"POST /v1/stream HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b""),
        (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 426"),
        (
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n",
            b"HTTP/1.1 400",
        ),
    ],
    ids=["bytes", "tls", "header", "version", "huge", "post", "body", "plain", "key"],
)
def test_what_is_no_request_of_ours_is_answered_or_cut(
    daemon: Daemon, attack: bytes, status: bytes
) -> None:
    with closing(dial(daemon)) as connection:
        connection.sendall(attack)
        if not status:
            connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[: len(status) or None] == status
    assert_serves(daemon)


def test_three_hundred_idle_connections_keep_neither_streams_nor_checks_out(
    daemon: Daemon,
) -> None:
    crowd = [dial(daemon) for _ in range(300)]
    try:
        assert_serves(daemon)
    finally:
        for connection in crowd:
            connection.close()


def test_a_flood_of_pings_costs_the_others_nothing(daemon: Daemon) -> None:
    async def talk() -> None:
        async with stream(daemon) as flooder:
            for number in range(5_000):
                await flooder.ping(str(number))
            assert len(finals(await say(daemon, WORD))) == 1
            await flooder.send('{"type":"stop"}')
            await receive_until(flooder, "ended")

    asyncio.run(talk())


def test_streams_that_come_and_go_leave_nothing_behind(daemon: Daemon) -> None:
    async def come_and_go(times: int) -> None:
        for number in range(times):
            async with stream(daemon) as connection:
                await connection.send(WORD)
                match number % 3:
                    case 0:
                        await connection.send('{"type":"stop"}')
                        await receive_until(connection, "ended")
                    case 1:
                        connection.transport.abort()

    def is_quiet() -> bool:
        return "voiced_streams_open 0.0" in daemon.get("/metrics")[1]

    def held() -> tuple[int, int]:
        process = Path(f"/proc/{daemon.process.pid}")
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    def resident_kb() -> int:
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    asyncio.run(come_and_go(50))
    daemon.wait_for("the end of the streams", is_quiet)
    before, before_kb = held(), resident_kb()
    asyncio.run(come_and_go(150))
    daemon.wait_for("the end of the streams", is_quiet)
    daemon.wait_for("the end of the connections", lambda: held() <= before)
    assert resident_kb() - before_kb < 4_096  # measured: 0.6 MB


def test_a_connection_dropped_in_mid_word_is_finalised_on_the_bus(daemon: Daemon) -> None:
    async def drop() -> None:
        async with stream(daemon, stream="dropped") as connection:
            await connection.send(silence(0.3) + noise(1.0))
            await receive_until(connection, "speech_started")
            connection.transport.abort()

    with subscribed(daemon) as bus:
        asyncio.run(drop())
        bus.until_ended("dropped")
        types = [message["type"] for message in bus.of("dropped") if message["type"] != "partial"]
    assert types == ["ready", "speech_started", "speech_ended", "final", "ended"]


def test_a_hangup_reads_keys_again_and_ends_nothing(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("a word on it", lambda: "signal=SIGHUP: certificates" in daemon.log)
    assert_serves(daemon)


def test_a_client_that_leaves_during_the_drain_holds_nothing_up(tmp_path: Path) -> None:
    daemon = launch(tmp_path, *FAKE)
    try:
        daemon.wait_ready()
        (worker,) = daemon.worker_pids()

        async def talk() -> None:
            async with stream(daemon) as connection:
                await connection.send(silence(0.3) + noise(1.0))
                await receive_until(connection, "speech_started")
                os.kill(worker, signal.SIGSTOP)
                daemon.process.terminate()
                await asyncio.to_thread(daemon.wait_for, "drain", lambda: "stopping" in daemon.log)
                connection.transport.abort()
            os.kill(worker, signal.SIGCONT)

        asyncio.run(talk())
        assert daemon.wait_exit() == 0
        assert "segments=1 finals=1 failed=0" in daemon.log
    finally:
        daemon.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_by_a_daemon_that_is_gone(
    tmp_path: Path, runtime_dir: Path, number: signal.Signals
) -> None:
    where = {"XDG_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(runtime_dir)}
    daemon = launch(tmp_path, *FAKE, **where)
    try:
        daemon.wait_ready()
        (worker,) = daemon.worker_pids()
        worker_fd = os.pidfd_open(worker)  # readable once the process has ended, zombie or not
        try:
            daemon.process.send_signal(number)
            assert daemon.wait_exit() == (0 if number is signal.SIGTERM else -number)
            assert select.select([worker_fd], [], [], DEADLINE_S)[0], "the worker is still there"
        finally:
            os.close(worker_fd)
        assert list(runtime_dir.iterdir()) == []
    finally:
        daemon.kill()


def test_a_signal_before_anything_is_open_ends_the_start_at_once(tmp_path: Path) -> None:
    daemon = launch(tmp_path, *FAKE)
    try:
        daemon.wait_for("first line", lambda: "starting config" in daemon.log)
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
        assert "Traceback" not in daemon.log
    finally:
        daemon.kill()


def test_closed_standard_streams_are_no_reason_to_fail(tmp_path: Path) -> None:
    address_file = tmp_path / "addresses"
    command = [
        *("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "voiced.daemon.cli"),
        *("run", "--port", "0", "--bus", "tcp://127.0.0.1:*", "--ingest", "tcp://127.0.0.1:0"),
        *("--address-file", str(address_file), *FAKE),
    ]
    process = subprocess.Popen(command, env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)})
    daemon = Daemon(process, address_file, Path(os.devnull))
    try:
        daemon.wait_ready()
        standard = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        assert standard == [os.devnull] * 3
        assert_serves(daemon)
        process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()


def test_a_worker_that_is_killed_again_and_again_is_replaced_each_time(tmp_path: Path) -> None:
    daemon = launch(tmp_path, *FAKE)
    try:
        daemon.wait_ready()
        for _ in range(2):
            (worker,) = daemon.worker_pids()
            os.kill(worker, signal.SIGKILL)
            daemon.wait_for("another worker", lambda old=worker: old not in daemon.worker_pids())
            daemon.wait_for("readiness", daemon.worker_pids)
            daemon.wait_ready()
        body = json.loads(daemon.get("/readyz")[1])
        assert body["ready"] is True
        assert daemon.log.count("engine worker is replaced") == 2
        assert_serves(daemon)
    finally:
        daemon.kill()
