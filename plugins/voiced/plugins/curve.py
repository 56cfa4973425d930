"""The keys with which a plugin reaches a bus that is closed to others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import zmq


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A client's own key pair and the daemon's public key, in Z85."""

    public: str
    secret: str = field(repr=False)
    server: str

    def apply(self, socket: zmq.Socket[Any]) -> None:
        """Encrypt a socket that will connect; the daemon must have allowed `public`.

        Raises:
            ValueError: One of them is no key.
        """
        try:
            socket.set(zmq.CURVE_SERVERKEY, self.server.encode())
            socket.set(zmq.CURVE_PUBLICKEY, self.public.encode())
            socket.set(zmq.CURVE_SECRETKEY, self.secret.encode())
        except (zmq.ZMQError, UnicodeError) as error:
            raise ValueError(f"a key of the bus cannot be used: {error}") from None
