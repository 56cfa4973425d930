"""What each HTTP path answers, and who gets as far as the WebSocket upgrade."""

from __future__ import annotations

import http
import ipaddress
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from voiced.daemon.access import Access, Denied
from voiced.daemon.connections import Connection, remote_address
from voiced.daemon.disk_writer import StorageStatus
from voiced.daemon.errors import Overloaded, ShuttingDown, TooManyOfClient, TooManyStreams
from voiced.daemon.inside import Inside
from voiced.daemon.limits import Client, Clients
from voiced.daemon.metrics import CONTENT_TYPE
from voiced.daemon.microphone import MicrophoneStatus
from voiced.daemon.streams import Streams
from voiced.daemon.tokens import ANYONE, Grant

STREAM_PATH, EVENTS_PATH, STATUS_PATH = "/v1/stream", "/v1/events", "/v1/status"
ADMIN_PATH = "/v1/admin"
_SCOPES = {
    STREAM_PATH: "stream",
    EVENTS_PATH: "subscribe",
    STATUS_PATH: "admin",
    ADMIN_PATH: "admin",
    "/metrics": "admin",
}
"""Path → scope of the token that it takes; the rest takes none."""


class Routes:
    """Answers plain HTTP, and lets WebSocket upgrades through that may."""

    def __init__(
        self,
        streams: Streams,
        *,
        access: Access,
        clients: Clients,
        allowed_origins: tuple[str, ...] = (),
        is_full: Callable[[], bool] = lambda: False,
        may_resume: Callable[[], bool] = lambda: False,
        microphone: Callable[[], MicrophoneStatus] | None = None,
        inside: Inside | None = None,
        journal: Callable[[], StorageStatus | None] = lambda: None,
    ) -> None:
        """Keep what is asked about.

        Args:
            is_full: Whether as many WebSockets have a stream, or listen, as there may be streams.
            may_resume: Whether a stream waits for a client to come back: it must get in then,
                however full the daemon is and whatever the engine does.
            microphone: How that is doing, for `/readyz`.
            inside: What `/v1/status` shows.
            journal: The same.
        """
        self._streams, self._access, self._clients = streams, access, clients
        self._allowed_origins, self._is_full = allowed_origins, is_full
        self._may_resume, self._inside = may_resume, inside
        self._microphone, self._journal = microphone, journal
        self._metrics = streams.metrics

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request; None lets a WebSocket upgrade go on."""
        method = getattr(request, "method", "GET")  # older library versions know GET alone
        if method != "GET":
            response = _json(
                connection,
                http.HTTPStatus.METHOD_NOT_ALLOWED,
                {"code": "method", "message": f"found {method}, expected GET"},
            )
            response.headers["Allow"] = "GET"
            return response
        path = request.path.partition("?")[0]
        address = remote_address(connection.transport.get_extra_info("peername"))
        if path == "/healthz":
            return _json(connection, http.HTTPStatus.OK, {"status": "ok"})
        # Before the token is looked at: guessing costs requests, too.
        client = self._clients.of(address, time.monotonic()) if address else None
        if client is not None and not client.may_request(time.monotonic()):
            return self._too_many_requests(connection)
        if path == "/readyz":
            return self._readyz(connection, request)
        if path not in _SCOPES:
            known = f"{', '.join(_SCOPES)}, /healthz or /readyz"
            return _json(
                connection,
                http.HTTPStatus.NOT_FOUND,
                {"code": "not_found", "message": f"found {path!r}, expected {known}"},
            )
        grant = self._access.check(request, _SCOPES[path])
        if isinstance(grant, Denied):
            return self._denied(connection, grant)
        if path == STATUS_PATH:
            facts = {} if self._inside is None else self._inside.facts()
            return _json(connection, http.HTTPStatus.OK, facts)
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._metrics.render().decode())
            return _with_type(response, CONTENT_TYPE)
        if grant is not ANYONE:
            client = self._clients.of(f"token {grant.name}", time.monotonic())
        return self._on_upgrade(connection, request, path, grant, client)

    # ---- WebSocket upgrades ----------------------------------------------------------------

    def _on_upgrade(
        self,
        connection: ServerConnection,
        request: Request,
        path: str,
        grant: Grant,
        client: Client | None,
    ) -> Response | None:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            response = _json(
                connection,
                http.HTTPStatus.UPGRADE_REQUIRED,
                {"code": "upgrade_required", "message": f"{path} is a WebSocket"},
            )
            response.headers["Upgrade"] = "websocket"
            return response
        origins = request.headers.get_all("Origin")
        if not all(is_allowed_origin(origin, self._allowed_origins) for origin in origins):
            return _json(
                connection,
                http.HTTPStatus.FORBIDDEN,
                {
                    "code": "origin",
                    "message": f"origin {origins[0]!r} may not connect; "
                    "add it to `server.allowed_origins`",
                },
            )
        if isinstance(connection, Connection):
            connection.grant, connection.client = grant, client
        if path == ADMIN_PATH:  # an admin gets in however full it is
            return None
        refusal = self._streams.refusal() if path == STREAM_PATH else None
        if refusal is None and self._is_full():
            refusal = TooManyStreams(self._streams.max_streams)
        if refusal is not None and self._may_resume() and not isinstance(refusal, ShuttingDown):
            refusal = None  # `start` is refused all the same
        if client is not None and client.streams >= client.max_streams + client.resumable:
            refusal = refusal or TooManyOfClient(client.max_streams)
        if refusal is None:
            return None
        self._metrics.streams_refused.labels(code=refusal.code).inc()
        body: dict[str, Any] = {"code": refusal.code, "message": str(refusal)}
        if refusal.retry_after_ms is not None:
            body["retry_after_ms"] = refusal.retry_after_ms
        status = http.HTTPStatus.SERVICE_UNAVAILABLE
        if isinstance(refusal, TooManyOfClient):
            status = http.HTTPStatus.TOO_MANY_REQUESTS
        response = _json(connection, status, body)
        if refusal.retry_after_ms is not None:
            response.headers["Retry-After"] = str(-(-refusal.retry_after_ms // 1000))
        return response

    def _denied(self, connection: ServerConnection, denied: Denied) -> Response:
        self._metrics.access_denied.labels(code=denied.code).inc()
        response = _json(
            connection, denied.status, {"code": denied.code, "message": denied.message}
        )
        if denied.status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = 'Bearer realm="voiced"'
        return response

    def _too_many_requests(self, connection: ServerConnection) -> Response:
        self._metrics.limited.labels(limit="requests").inc()
        message = "more requests than `limits.client.requests_per_minute`; try again in a moment"
        body = {"code": "too_many_requests", "message": message, "retry_after_ms": 1_000}
        response = _json(connection, http.HTTPStatus.TOO_MANY_REQUESTS, body)
        response.headers["Retry-After"] = "1"
        return response

    # ---- readiness -------------------------------------------------------------------------

    def _readyz(self, connection: ServerConnection, request: Request) -> Response:
        """Ready means: the engine is; a full daemon is ready and answers `busy`.

        How microphone and journal are doing is told, and changes nothing: streams are served. Where
        tokens are asked for, those without an admin's learn that it is ready, and no more.
        """
        refusal = self._streams.refusal()
        info = self._streams.engine.info
        is_admin = not isinstance(self._access.check(request, "admin"), Denied)
        body: dict[str, Any]
        if refusal is None or isinstance(refusal, TooManyStreams | Overloaded):
            status = http.HTTPStatus.OK
            body = {"ready": True}
            if is_admin:
                body["bundle"] = info.bundle if info else ""
        else:
            status = http.HTTPStatus.SERVICE_UNAVAILABLE
            body = {"ready": False, "code": refusal.code}
            if is_admin:
                body["reason"] = str(refusal)
        if self._microphone is not None and is_admin:
            body["microphone"] = self._microphone().facts()
        if is_admin and (journal := self._journal()) is not None:
            body["journal"] = journal.facts()
        return _json(connection, status, body)


def is_allowed_origin(origin: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a page of this origin may connect: loopback pages and those in `allowed`.

    Any web page can open a WebSocket to loopback; the browser sends the page's origin, and the
    check is the server's (RFC 6455 section 10.2).
    """
    if "*" in allowed or origin in allowed:
        return True
    try:
        host = urlsplit(origin).hostname
        return host == "localhost" or (host is not None and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


def _json(connection: ServerConnection, status: http.HTTPStatus, body: dict[str, Any]) -> Response:
    text = msgspec.json.encode(body).decode() + "\n"
    return _with_type(connection.respond(status, text), "application/json")


def _with_type(response: Response, content_type: str) -> Response:
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response
