"""Who a request comes from and whether it may: tokens of the header or of the subprotocol list."""

from __future__ import annotations

import http
import time
from collections.abc import Callable
from dataclasses import dataclass

from websockets.http11 import Request

from voiced.daemon.tokens import ANYONE, Grant, TokenBook, TokenExpired, TokenRefused
from voiced.daemon.watched import Watched

SUBPROTOCOL = "voiced.v1"
"""Chosen where the client offers it; a browser must, to be able to offer its token beside it."""
BEARER = "voiced.bearer."
"""Before the token, in the list of subprotocols: never chosen, so never sent back."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The answer to a request that may not."""

    status: http.HTTPStatus
    code: str
    message: str


class Access:
    """Checks the bearer tokens of requests; without a file of tokens everyone may everything."""

    def __init__(
        self,
        tokens: Watched[TokenBook] | None = None,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._tokens, self._now_s = tokens, now_s

    @property
    def is_open(self) -> bool:
        """No token is asked for."""
        return self._tokens is None

    def check(self, request: Request, scope: str) -> Grant | Denied:
        """Tell what the sender of a request may do, or why it may not."""
        if self._tokens is None:
            return ANYONE
        token = presented(request)
        if token is None:
            return Denied(
                http.HTTPStatus.UNAUTHORIZED,
                TokenRefused.code,
                "found no token, expected `Authorization: Bearer …`",
            )
        try:
            grant = self._tokens.value.check(token, self._now_s())
        except TokenRefused as refused:
            return Denied(http.HTTPStatus.UNAUTHORIZED, refused.code, str(refused))
        if scope not in grant.scopes:
            return Denied(
                http.HTTPStatus.FORBIDDEN,
                "forbidden",
                f"token {grant.name!r} has the scopes {', '.join(sorted(grant.scopes))}, "
                f"expected {scope}",
            )
        return grant

    def objection(self, grant: Grant) -> TokenRefused | None:
        """Say why an open connection must end: its token is over or was taken back."""
        if self._tokens is None or grant is ANYONE:
            return None
        now_s = self._now_s()
        if self._tokens.value.still_grants(grant, now_s):
            return None
        if grant.expires_s is not None and now_s >= grant.expires_s:
            return TokenExpired(f"the token {grant.name!r} has expired; ask for a new one")
        return TokenRefused(f"the token {grant.name!r} was revoked")


def presented(request: Request) -> str | None:
    """Return the token that a request carries; None where it carries none, or several.

    Never from the address: that ends in logs, histories and `Referer` headers.
    """
    found = []
    for value in request.headers.get_all("Authorization"):
        kind, _, token = value.strip().partition(" ")
        if kind.lower() == "bearer":
            found.append(token.strip())
    for line in request.headers.get_all("Sec-WebSocket-Protocol"):
        offered = (part.strip() for part in line.split(","))
        found += [part.removeprefix(BEARER) for part in offered if part.startswith(BEARER)]
    return found[0] if len(found) == 1 else None
