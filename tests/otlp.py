"""A collector of traces on loopback, which keeps what it gets."""

import gzip
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Told

PATIENCE = 60


class Span(NamedTuple):
    """One span as it arrived. `facts` are its attributes, `parent` is empty of a root."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    facts: dict[str, Any]
    events: list[dict[str, Any]]
    failed: bool


class Collector:
    """OTLP over HTTP, in a thread. With `is_silent` it takes requests and answers none of them."""

    def __init__(self, *, is_silent: bool = False):
        self.bodies: list[bytes] = []
        self.over = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                if is_silent:
                    collector.over.wait(PATIENCE)
                    return
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "Collector":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    @property
    def spans(self) -> list[Span]:
        """Everything that came so far."""
        return [
            Span(
                name=span.name,
                kind=Told.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                state=span.trace_state,
                facts=_facts(span.attributes),
                events=[{"name": event.name} | _facts(event.attributes) for event in span.events],
                failed=span.status.code == 2,
            )
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resources(self) -> list[dict[str, Any]]:
        """Who sent them."""
        return [
            _facts(resource.resource.attributes)
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        ]

    def wait_for(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans, as soon as they are such."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.spans):
            assert time.monotonic() < deadline, [(span.name, span.facts) for span in self.spans]
            time.sleep(0.1)
        return self.spans


def _facts(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
