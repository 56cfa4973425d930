"""Two network namespaces with a line between them that tests make bad. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests import needs

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""Addresses of the daemon and of its client."""
_numbers = itertools.count(1)
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def require() -> None:
    """Skip, or fail where these tests must run, without what they need."""
    missing = [name for name in ("ip", "tc", "iptables") if shutil.which(name) is None]
    reason = ""
    if os.geteuid() != 0:
        reason = "network namespaces need root"
    elif missing:
        reason = f"{', '.join(missing)} not found (apt: iproute2 iptables)"
    elif not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        reason = "no /dev/net/tun"
    else:
        probe = subprocess.run(
            ["ip", "netns", "add", f"voiced-probe-{os.getpid()}"], capture_output=True, text=True
        )
        if probe.returncode:
            reason = f"network namespaces cannot be made: {probe.stderr.strip()}"
        else:
            run("ip", "netns", "del", f"voiced-probe-{os.getpid()}")
    if reason:
        needs.missing("NETNS", reason)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Line:
    """A line between two namespaces; `near` has the daemon, `far` the client."""

    def __init__(self) -> None:
        name = f"voiced-{os.getpid()}-{next(_numbers)}"
        self.near, self.far = f"{name}-a", f"{name}-b"

    def inside(self, namespace: str) -> list[str]:
        """The beginning of a command that runs in a namespace."""
        return ["ip", "netns", "exec", namespace]

    def lose(self, share: float) -> None:
        """Drop packets at random, both ways; 0: none any more."""
        for namespace in (self.near, self.far):
            run(*self.inside(namespace), "iptables", "-F", "OUTPUT")
            if share:
                rule = f"-A OUTPUT -o line -m statistic --mode random --probability {share} -j DROP"
                run(*self.inside(namespace), "iptables", *rule.split())

    def narrow(self, rate: str | None) -> None:
        """Let the client send so much and no more, e.g. `200kbit`; None: anything."""
        tc = (*self.inside(self.far), "tc", "qdisc")
        if rate is None:
            run(*tc, "del", "dev", "line", "root")
        else:
            shape = ("tbf", "rate", rate, "burst", "3kb", "latency", "200ms")
            run(*tc, "add", "dev", "line", "root", *shape)

    def set_up(self, *, is_up: bool) -> None:
        """Plug the cable in or pull it out."""
        run("ip", "-n", self.far, "link", "set", "line", "up" if is_up else "down")

    def reset_connections(self, port: int) -> None:
        """Break every connection to a port, as a middlebox does that forgot them."""
        rule = f"-A INPUT -p tcp --dport {port} -j REJECT --reject-with tcp-reset"
        run(*self.inside(self.near), "iptables", *rule.split())

    def forget_resets(self) -> None:
        run(*self.inside(self.near), "iptables", "-F", "INPUT")


@contextlib.contextmanager
def _namespaces() -> Iterator[Line]:
    line = Line()
    try:
        for name in (line.near, line.far):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield line
    finally:
        for name in (line.near, line.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def direct_line() -> Iterator[Line]:
    """Two namespaces on one virtual cable."""
    with _namespaces() as line:
        ends = ("line", "netns", line.near, "type", "veth", "peer", "name", "line", "netns")
        run("ip", "link", "add", *ends, line.far)
        _address(line)
        yield line


@contextlib.contextmanager
def slow_line(delay_s: float, jitter_s: float) -> Iterator[Line]:
    """Two namespaces with a relay between them that delays each packet; order may change."""
    with _namespaces() as line:
        tuns = [_tun(line.near), _tun(line.far)]
        _address(line)
        end_read, end_write = os.pipe()
        relay = threading.Thread(target=_relay, args=(tuns, delay_s, jitter_s, end_read))
        relay.start()
        try:
            yield line
        finally:
            os.write(end_write, b"\0")
            relay.join()
            for number in (*tuns, end_read, end_write):
                os.close(number)


def _address(line: Line) -> None:
    for name, own, other in ((line.near, NEAR, FAR), (line.far, FAR, NEAR)):
        run("ip", "-n", name, "addr", "add", own, "peer", other, "dev", "line")
        run("ip", "-n", name, "link", "set", "line", "up")


def _tun(namespace: str) -> int:
    """Make the device `line` in a namespace; return its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: list[int] = []

    def make() -> None:  # in a thread of its own: setns is for the calling thread
        with Path(f"/run/netns/{namespace}").open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        number = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(number, _TUNSETIFF, struct.pack("16sH22x", b"line", _IFF_TUN | _IFF_NO_PI))
        found.append(number)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found, f"no TUN device in {namespace}"
    return found[0]


def _relay(tuns: list[int], delay_s: float, jitter_s: float, end: int) -> None:
    """Carry packets from each device to the other, late, until `end` can be read."""
    chance = random.Random(7)
    due: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait_s = max(0.0, due[0][0] - time.monotonic()) if due else None
        ready, _, _ = select.select([*tuns, end], [], [], wait_s)
        if end in ready:
            return
        for number in ready:
            with contextlib.suppress(BlockingIOError):
                packet = os.read(number, 65_536)
                late_s = delay_s + chance.uniform(-jitter_s, jitter_s)
                sink = tuns[1 - tuns.index(number)]
                count += 1
                heapq.heappush(due, (time.monotonic() + late_s, count, sink, packet))
        while due and due[0][0] <= time.monotonic():
            _, _, sink, packet = heapq.heappop(due)
            with contextlib.suppress(OSError):  # its queue is full, or the device is down
                os.write(sink, packet)
