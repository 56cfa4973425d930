"""A collector of OpenTelemetry traces: OTLP over HTTP on loopback, protobuf."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """What came in; how it answers."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        """`opentelemetry.proto.trace.v1.Span`."""
        self.services: set[str] = set()
        self.status = 200
        self.requests = 0
        self.answers = threading.Event()
        """While clear, requests are held without an answer."""
        self.answers.set()
        self.held: list[socket.socket] = []
        self.came = threading.Condition()
        self.endpoint = ""

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def note(self, connection: socket.socket) -> None:
        with self.came:
            self.requests += 1
            self.held.append(connection)
            self.came.notify_all()

    def wait(self, requests: int) -> None:
        """Wait until so many requests came."""
        with self.came:
            assert self.came.wait_for(lambda: self.requests >= requests, 60), self.requests

    def is_asked_still(self) -> bool:
        """Whether the client of a held request has not given up."""
        try:
            return bool(self.held[0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True


def attributes(span: Any) -> dict[str, Any]:
    """Attributes of a span, as plain values."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@contextmanager
def collecting() -> Iterator[Collector]:
    """Serve on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            collector.note(self.connection)
            collector.answers.wait()
            if collector.status == 200:
                collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            with contextlib.suppress(ConnectionError):  # whoever asked has given up
                self.send_response(collector.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield collector
        finally:
            collector.answers.set()
            server.shutdown()
            thread.join()
