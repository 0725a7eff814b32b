"""Spans by OpenTelemetry, for an OTLP collector. Loaded only when tracing is on, and after the fork.

Flask's and psycopg's instrumentations make spans of what they see; what the edge answers before Flask is woken has one
of ours. Nothing leaves the process but what `_clean` lets through: no query, header, bound parameter or message.
"""

import logging
import os
import re
import socket
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import flask
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.propagators.textmap import CarrierT, Getter, default_getter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from streamorch import __version__, keys
from streamorch.exchange import Request
from streamorch.settings import Settings

log = logging.getLogger(__name__)

_OURS = "streamorch."
_LONGEST = 512
# How long the end of a worker may wait for a collector that is away.
_FLUSH_SECONDS = 2.0
# Asked for ever and of no interest. (An expression each, searched for in the URL.)
_EXCLUDED = "/(livez|readyz|health|metrics)$"
# What the instrumentations know of a request or a statement and may tell, by their newer and their older names.
_OF_REQUESTS = frozenset(
    {
        *("http.request.method", "http.response.status_code", "http.route", "url.scheme", "client.address"),
        *("http.method", "http.status_code", "http.scheme", "net.peer.ip", "error.type"),
    }
)
_OF_STATEMENTS = frozenset(
    {
        *("db.system.name", "db.namespace", "db.query.text", "server.address", "server.port"),
        *("db.system", "db.name", "db.statement", "net.peer.name", "net.peer.port", "error.type"),
    }
)
_OF_EVENTS = frozenset({"exception.type"})
# By which name the facts of a media server's question or hook are told.
_TOLD = {
    "action": "action",
    "path": "path",
    "protocol": "protocol",
    "id": "connection_id",
    "source_id": "connection_id",
    "source_type": "source_type",
}
# Each statement of ours begins with where it stands.
_STATEMENT = re.compile(r"\s*/\* ([a-z_.]+) \*/")


class Tracing:
    """The tracer of one process. A collector that is away costs neither a request nor a stop more than a moment."""

    def __init__(self, settings: Settings, app: flask.Flask):
        # The names that have settled, unless somebody wants the others.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
        if settings.log_level != "debug":
            # It tells of each batch that a collector did not take; `_Clean` says it once.
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        by_ratio = ParentBased(TraceIdRatioBased(settings.trace_ratio))
        self._provider = TracerProvider(
            sampler=None if os.environ.get("OTEL_TRACES_SAMPLER") else by_ratio,  # None: as that variable has it
            resource=_resource(settings),
            shutdown_on_exit=False,
        )
        self._provider.sampler = _WithoutOrphans(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(_Clean(OTLPSpanExporter(), _secrets(settings))))
        self._tracer = self._provider.get_tracer("streamorch")
        propagate.set_global_textmap(_Propagator())
        # Before the pool connects: it changes what `Connection.connect` gives.
        PsycopgInstrumentor().instrument(tracer_provider=self._provider)
        FlaskInstrumentor.instrument_app(  # type: ignore[no-untyped-call]  # it tells no types
            app, tracer_provider=self._provider, excluded_urls=_EXCLUDED, enable_commenter=False
        )

    def stop(self) -> None:
        """Send what is left, for two seconds at most; the process ends after it."""
        flush = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)

    # --- what `spans.Tracer` asks for -----------------------------------------------------------------------------

    @contextmanager
    def span(self, name: str, **facts: object) -> Iterator["_Span"]:
        """A span around a block; one inside another is its child."""
        with self._tracer.start_as_current_span(name, record_exception=False) as made:
            told = _Span(made)
            told.tell(**facts)
            yield told

    @contextmanager
    def asked(self, request: Request, route: str) -> Iterator[None]:
        """The span of a request that Flask does not see."""
        with self._tracer.start_as_current_span(
            f"{request.method} {route}",
            context=propagate.extract(request.environ, getter=_HEADERS) if _PARENT in request.environ else None,
            kind=SpanKind.SERVER,
            record_exception=False,
        ) as made:
            if made.is_recording():
                made.set_attribute("http.request.method", request.method)
                made.set_attribute("http.route", route)
                made.set_attribute("url.scheme", request.environ["wsgi.url_scheme"])
                made.set_attribute("client.address", request.environ.get("REMOTE_ADDR", ""))
            yield

    def answered(self, request: Request, status: int) -> None:
        """What came of the request whose span this is in, Flask's or the one above."""
        made = trace.get_current_span()
        if not made.is_recording():
            return
        facts = {name: getattr(request.about, of, None) for of, name in _TOLD.items() if hasattr(request.about, of)}
        _Span(made).tell(
            **facts,
            request_id=request.request_id,
            node=request.node,
            outcome=request.problem or request.outcome,
            stream_id=request.stream_id,
        )
        made.set_attribute("http.response.status_code", status)
        if status >= 500:
            made.set_status(Status(StatusCode.ERROR))


class _Span:
    def __init__(self, made: trace.Span):
        self._made = made

    def tell(self, **facts: object) -> None:
        """Add what has come up meanwhile; None is nothing."""
        if self._made.is_recording():
            for name, value in facts.items():
                if value is not None:
                    self._made.set_attribute(_OURS + name, value if isinstance(value, int | float) else str(value))


def _resource(settings: Settings) -> Resource:
    """Who we are, unless the standard variables say it."""
    own: dict[str, AttributeValue] = {
        SERVICE_NAME: settings.trace_service,
        SERVICE_VERSION: settings.trace_version or __version__,
        SERVICE_INSTANCE_ID: f"{socket.gethostname()}:{os.getpid()}",
    }
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if os.environ.get("OTEL_SERVICE_NAME"):
        given += f",{SERVICE_NAME}="
    return Resource.create({name: value for name, value in own.items() if f"{name}=" not in given})


# --- which spans there are ----------------------------------------------------------------------------------------


class _WithoutOrphans(Sampler):
    """A statement outside of a request, a kick or a round (a pool's own, the question for the lead) is no trace."""

    def __init__(self, others: Sampler):
        self._others = others

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """DROP for these, else what the others say."""
        if kind is SpanKind.CLIENT and not trace.get_current_span(parent_context).get_span_context().is_valid:
            return SamplingResult(Decision.DROP)
        return self._others.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """That of the others."""
        return self._others.get_description()


class _Propagator(TraceContextTextMapPropagator):
    """`traceparent` of a caller, and nothing else: `tracestate` is text of his, and would leave with every span."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """The context of the caller's span, if he named one."""
        found = trace.get_current_span(super().extract(carrier, Context(), getter)).get_span_context()
        if not found.is_valid:
            return context or Context()
        bare = SpanContext(found.trace_id, found.span_id, is_remote=True, trace_flags=found.trace_flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(bare), context)


class _Headers(Getter[dict[str, object]]):
    """The headers of a request as WSGI has them."""

    def get(self, carrier: dict[str, object], key: str) -> list[str] | None:
        """The header, or None."""
        value = carrier.get(f"HTTP_{key.upper().replace('-', '_')}")
        return None if value is None else [str(value)]

    def keys(self, carrier: dict[str, object]) -> list[str]:
        """Nobody asks."""
        return []


_HEADERS = _Headers()
_PARENT = "HTTP_TRACEPARENT"


# --- what leaves the process ----------------------------------------------------------------------------------------


def _secrets(settings: Settings) -> list[str]:
    """What must not stand in a span, wherever a client has written it."""
    lists = (settings.api_secrets, settings.callback_secrets, settings.mediamtx_api_passwords)
    found = {*chain(*lists), *filter(None, (settings.metrics_secret, settings.read_secret))}
    return sorted(found, key=len, reverse=True)


class _Clean(SpanExporter):
    """Hands spans on without what may hold a secret, and says once when nobody takes them."""

    def __init__(self, exporter: SpanExporter, secrets: Iterable[str]):
        self._exporter = exporter
        self._secrets = tuple(secrets)
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter within."""
        result = self._exporter.export([_clean(span, self._secrets) for span in spans])
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            log.error("the collector of traces is away: spans are lost")
        elif self._is_away and not is_away:
            log.info("the collector of traces answers again")
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        """End the exporter within."""
        self._exporter.shutdown()


def _clean(span: ReadableSpan, secrets: Sequence[str]) -> ReadableSpan:
    """The same span with known attributes alone, and in these no key and no secret of ours."""
    # A request's server.address is what its client wrote as Host.
    known = _OF_STATEMENTS if span.kind is SpanKind.CLIENT else _OF_REQUESTS
    attributes = _kept(span.attributes, known, secrets)
    return ReadableSpan(
        name=_name(span, attributes),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        # That something was raised, and of which class: its text may quote a value.
        events=[
            Event(event.name, _kept(event.attributes, _OF_EVENTS, secrets), event.timestamp) for event in span.events
        ],
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kept(attributes: Attributes, known: Container[str], secrets: Sequence[str]) -> dict[str, AttributeValue]:
    return {
        name: _redacted(value, secrets) if isinstance(value, str) else value
        for name, value in (attributes or {}).items()
        if name in known or name.startswith(_OURS)
    }


def _redacted(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return keys.redact(text)[:_LONGEST]


def _name(span: ReadableSpan, attributes: dict[str, AttributeValue]) -> str:
    """By route or by statement; never the path of a request, which anybody may have written."""
    if span.kind is SpanKind.SERVER:
        method = attributes.get("http.request.method") or attributes.get("http.method") or "HTTP"
        return f"{method} {attributes.get('http.route', '')}".rstrip()
    statement = str(attributes.get("db.query.text") or attributes.get("db.statement") or "")
    found = _STATEMENT.match(statement)
    return found[1] if found else span.name
