"""TLS of the HTTP and WebSocket port, whose certificate may be replaced while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path

from voiced.daemon.guarded import FileRefused, read_guarded
from voiced.daemon.watched import Watched

_MAX_FILE_BYTES = 1 << 20


class ServerTls:
    """One context for the life of the daemon; connections made after a reload see the new chain."""

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        """Read both files.

        Raises:
            FileRefused: They cannot be read or do not fit, or others may read the key.
        """
        self._certificate, self._key = certificate, key or certificate
        self.context = _empty_context()
        self.files = Watched({certificate: None, self._key: None}, self._load)
        """Refreshed by whoever watches; keeps the old chain when the new one cannot be used."""

    def _load(self) -> None:
        """Take the chain if it is whole: it is tried on another context first."""
        read_guarded(self._key, max_bytes=_MAX_FILE_BYTES, is_secret=True)
        try:
            for context in (_empty_context(), self.context):
                context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise FileRefused(
                self._certificate, f"certificate and key {self._key} cannot be used: {reason}"
            ) from error
        except (OSError, ValueError) as error:
            raise FileRefused(self._certificate, f"cannot be used: {error}") from error


def _empty_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _no_password() -> str:
    """An encrypted key cannot be used: the library would ask on the terminal for its password."""
    raise ValueError("the key is encrypted; a daemon needs one without a password")
