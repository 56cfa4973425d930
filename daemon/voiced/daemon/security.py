"""Builds what guards the daemon from its settings, and keeps it up to date with its files."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voiced.daemon import exposure, tokens
from voiced.daemon.access import Access
from voiced.daemon.config import ConfigError, Problem
from voiced.daemon.curve import CurveServer, serve_curve
from voiced.daemon.limits import Clients
from voiced.daemon.metrics import Metrics
from voiced.daemon.settings import Settings
from voiced.daemon.tls import ServerTls
from voiced.daemon.watched import Watched

logger = logging.getLogger(__name__)


def problems_of(settings: Settings, passed: Sequence[socket.socket] = ()) -> list[Problem]:
    """Return what keeps a daemon from starting, as far as the settings alone tell.

    Args:
        settings: All of them.
        passed: Listening sockets that are served instead of `server.host`.
    """
    found = exposure.problems(settings, passed)
    server, curve = settings.server, settings.bus.curve
    for key, value, needs, other in (
        ("server.tls.key", server.tls.key, server.tls.certificate, "server.tls.certificate"),
        ("bus.curve.allowed", curve.allowed, curve.key, "bus.curve.key"),
    ):
        if value is not None and needs is None:
            found.append(Problem("settings", key, f"does nothing without `{other}`", value))
    return found


class Security:
    """Tokens, certificate, keys and limits of one daemon."""

    def __init__(
        self, settings: Settings, metrics: Metrics, passed: Sequence[socket.socket] = ()
    ) -> None:
        """Read every file that is set.

        Raises:
            ConfigError: An address would be open to others without protection, or a file is set
                that nothing uses.
            FileRefused: A file cannot be used.
        """
        server, curve = settings.server, settings.bus.curve
        problems = problems_of(settings, passed)
        if problems:
            raise ConfigError(problems)
        for warning in exposure.warnings(settings, passed):
            logger.warning("insecure: %s", warning)
        self._metrics = metrics
        self._watched: list[Watched[Any]] = []
        book: Watched[tokens.TokenBook] | None = None
        if server.tokens is not None:
            path = Path(server.tokens)
            book = Watched((path,), lambda: tokens.read(path))
            self._watched.append(book)
        self.access = Access(book)
        self.tls: ServerTls | None = None
        if server.tls.certificate is not None:
            key_file = None if server.tls.key is None else Path(server.tls.key)
            self.tls = ServerTls(Path(server.tls.certificate), key_file)
            self._watched.append(self.tls.files)
        self.curve: CurveServer | None = None
        if curve.key is not None:
            allowed_file = None if curve.allowed is None else Path(curve.allowed)
            self.curve, allowed = serve_curve(Path(curve.key), allowed_file, metrics=metrics)
            self._watched.append(allowed)
        self.clients = Clients(settings.limits.client, settings.limits.total)

    def refresh(self, *, is_forced: bool = False) -> None:
        """Read the files again that have changed, or all of them."""
        for each in self._watched:
            if each.refresh(is_forced=is_forced):
                self._metrics.reloads.inc()
