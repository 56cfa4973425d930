"""Rubbish on every port of a daemon, and as many connections as it can hold: it serves on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import re
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.running_daemon import (
    DEADLINE_S,
    FAKE,
    Daemon,
    finals,
    launch,
    noise,
    say,
    silence,
)

UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
HEAD = b"GET /healthz HTTP/1.1\r\n"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31)
"""ZMTP 3.0, section 3.1."""
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) +voiced\.\S+: \S")
MOST_MIB = 64


def frame(opcode: int, payload: bytes = b"", *, head: int = 0x80, size: int | None = None) -> bytes:
    """A masked frame (RFC 6455, section 5.2), whose bits and length may lie."""
    length = len(payload) if size is None else size
    begin = bytes([head | opcode])
    if length < 126:
        begin += bytes([0x80 | length])
    else:
        begin += bytes([0x80 | 127]) + struct.pack(">Q", length)
    return begin + bytes(4) + payload


START = frame(1, b'{"type":"start","v":1,"audio":{}}')


def zmtp_ready(kind: bytes) -> bytes:
    """The command with which a peer says of what kind it is."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return GREETING + bytes([4, len(body)]) + body


def rubbish_for_http(chance: random.Random) -> Iterator[bytes]:
    """What is no request, no handshake, no frame."""
    yield from (chance.randbytes(size) for size in (1, 100, 70_000))
    yield b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"
    yield HEAD + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n"
    yield HEAD + b"X: y\r\n" * 20_000 + b"\r\n"
    yield HEAD + b"A\0B: \xff\xfe\r\n\r\n"
    yield HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\n"
    yield b"POST /healthz HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)
    yield bytes.fromhex("16030100fd010000f90303") + chance.randbytes(240)  # TLS
    yield UPGRADE.replace(b"13\r\n", b"99\r\n")
    for frames in (
        frame(1, b"{}").replace(b"\x82", b"\x02"),  # not masked
        frame(1, b"{}", head=0xF0),  # reserved bits
        frame(11, b"x"),
        frame(2, b"x", size=2**63 - 1),
        frame(2, b"x", size=2**64 - 1),
        frame(9, b"x" * 200),
        frame(9, b"x", head=0),  # a ping in pieces
        frame(0, b"x"),  # goes on with nothing
        frame(8, b"\x00\x01"),
        frame(1, b"\xff\xfe"),
        frame(1, b"[" * 16_000),
        START + START,
        START + frame(2, b"", head=0) + frame(0, b"", head=0) * 5_000,
        START + frame(2, b"x") * 2_000,
        START + frame(9, b"x") * 2_000,
        START + frame(1, b'{"type":"flush"}') * 500,
        START + chance.randbytes(5_000),
    ):
        yield UPGRADE + frames


def rubbish_for_zeromq(chance: random.Random, kind: bytes) -> Iterator[bytes]:
    """What is no greeting, no handshake, no message."""
    yield from (chance.randbytes(size) for size in (1, 100, 70_000))
    yield b"GET / HTTP/1.1\r\n\r\n"
    yield GREETING
    yield GREETING + chance.randbytes(2_000)
    yield zmtp_ready(b"REQ") + chance.randbytes(1_000)
    yield zmtp_ready(kind) + b"\x02" + struct.pack(">Q", 2**62) + b"x" * 1_000
    yield zmtp_ready(kind) + b"\x02" + struct.pack(">Q", 10**9) + b"x" * 1_000_000
    yield zmtp_ready(kind) + b"\x00\xff" + b"x" * 255
    yield zmtp_ready(kind) + b"\x01\x01x" * 5_000 + b"\x00\x01x"


def throw(port: int, data: bytes) -> None:
    """Send, read what comes within a moment, and go."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as peer:
        peer.settimeout(0.1)
        peer.sendall(data)
        while peer.recv(1 << 16):
            pass


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def rss_mib(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def check_serves(daemon: Daemon, name: str) -> None:
    said = asyncio.run(say(daemon, noise(0.5) + silence(1.0), stream=name))
    assert len(finals(said)) == 1


def test_rubbish_on_every_port_costs_nothing_and_leaves_a_readable_log(tmp_path: Path) -> None:
    settings = (
        "journal.enabled=true",
        f"journal.folder={tmp_path}",
        "bus.replay=tcp://127.0.0.1:*",
    )
    daemon = launch(tmp_path, *FAKE, *(word for each in settings for word in ("--set", each)))
    chance = random.Random(5)
    try:
        daemon.wait_ready()
        where = daemon.addresses()
        check_serves(daemon, "before")
        memory, files = rss_mib(daemon), descriptors(daemon)
        for data in rubbish_for_http(chance):
            throw(where["port"], data)
        for name, kind in (("bus", b"SUB"), ("ingest", b"PUSH"), ("replay", b"DEALER")):
            for data in rubbish_for_zeromq(chance, kind):
                throw(port_of(where[name]), data)
        check_serves(daemon, "after")
        assert rss_mib(daemon) < memory + MOST_MIB
        daemon.wait_for("the connections' end", lambda: descriptors(daemon) <= files + 2)
        strange = [line for line in daemon.log.splitlines() if not LOG_LINE.match(line)]
        assert strange == []
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        daemon.kill()


def test_more_connections_than_descriptors_are_told_in_a_line_and_survived(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))  # the daemon inherits it
    try:
        daemon = launch(tmp_path, *FAKE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    peers: list[socket.socket] = []
    try:
        daemon.wait_ready()
        where = daemon.addresses()
        bus = ("127.0.0.1", port_of(where["bus"]))
        peers += [socket.create_connection(bus, 5) for _ in range(150)]
        peers.append(socket.create_connection((where["host"], where["port"]), 5))
        daemon.wait_for("the line", lambda: "no connection can be taken" in daemon.log)
        for peer in peers:
            peer.close()
        until_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                check_serves(daemon, "after")
                break
            except (OSError, TimeoutError):
                assert time.monotonic() < until_s
        assert daemon.log.count("no connection can be taken") == 1
        assert "Traceback" not in daemon.log
        daemon.process.terminate()
        assert daemon.wait_exit() == 0
    finally:
        for peer in peers:
            peer.close()
        daemon.kill()
