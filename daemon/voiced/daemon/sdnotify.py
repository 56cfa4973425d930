"""Tells systemd how the service is: sd_notify(3) over `NOTIFY_SOCKET`, without a library."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_READY_WAIT_S = 2.0
"""Without READY the manager ends the service: worth a pause of the loop, before any stream."""


class Notifier:
    """Sends state to the service manager; does nothing where there is none.

    A manager that cannot be reached is logged once and never harms the daemon.
    """

    def __init__(self, address: str | None, *, watchdog_s: float | None = None) -> None:
        """Take the socket's address; a leading `@` means the abstract namespace."""
        self.watchdog_s = watchdog_s
        """The manager wants `watchdog` at least this often; None: never."""
        self._address = "\0" + address[1:] if address and address[0] == "@" else address
        self._has_failed = False

    @property
    def is_active(self) -> bool:
        """Whether there is a manager to talk to."""
        return self._address is not None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = None
        if microseconds.isdecimal() and int(microseconds) and is_for_us:
            watchdog_s = int(microseconds) / 1_000_000
        return cls(environment.get("NOTIFY_SOCKET") or None, watchdog_s=watchdog_s)

    def ready(self, status: str) -> None:
        """Start-up is finished."""
        self._send(f"READY=1\nSTATUS={_line(status)}", wait_s=_READY_WAIT_S)

    def reloading(self, status: str) -> None:
        """A reload has begun; `ready` must follow, whatever comes of it."""
        # CLOCK_MONOTONIC, of which the manager wants to know that it is after its signal.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        state = f"RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS={_line(status)}"
        self._send(state, wait_s=_READY_WAIT_S)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def stopping(self, status: str) -> None:
        """Shutdown has begun."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def _send(self, state: str, *, wait_s: float = 0.0) -> None:
        """Send, waiting so long for room in the manager's queue."""
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(wait_s)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                logger.warning("cannot reach the service manager reason=%s", error)
            self._has_failed = True


def _line(text: str) -> str:
    return " ".join(text.split())
