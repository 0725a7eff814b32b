"""Tracing: one span for each request, whoever answers it, joined to those of its publish, and no secret in any byte."""

import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import flask
import psycopg
import pytest
from opentelemetry import propagate
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from streamorch import keys, local
from streamorch.postgres import StartError
from streamorch.settings import SettingError, Settings
from streamorch.tracing import _Clean
from tests.conftest import API_SECRET, MediaServer
from tests.otlp import Collector

BEARER = {"Authorization": f"Bearer {API_SECRET}"}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def traced(
    collector: Collector, make_app: Callable[..., flask.Flask], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., flask.Flask]]:
    """An application that sends its spans to the collector, soon."""
    made: list[flask.Flask] = []
    levels = logging.getLogger("opentelemetry").level
    textmap = propagate.get_global_textmap()
    connects = [vars(of)["connect"] for of in (psycopg.Connection, psycopg.AsyncConnection)]
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")

    def make(**environ: str) -> flask.Flask:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **environ}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        app = make_app(TRACING_SAMPLERATE="1", **{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **environ})
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["streamorch.tracing"].stop()
    if made:
        PsycopgInstrumentor().uninstrument()
        # Which leaves methods that make no connection of a subclass.
        for of, connect in zip((psycopg.Connection, psycopg.AsyncConnection), connects, strict=True):
            of.connect = connect  # type: ignore[attr-defined]
    propagate.set_global_textmap(textmap)
    logging.getLogger("opentelemetry").setLevel(levels)


def servers(spans):
    return [span for span in spans if span.kind == "SERVER"]


# --- which spans there are ---


@pytest.mark.usefixtures("lane")
def test_each_request_has_one_span_whichever_lane_answers(traced, collector, make_key):
    client = traced().test_client()
    media_server = MediaServer(client)
    key, connection_id = make_key(), str(uuid.uuid4())
    media_server.ask(key, id=connection_id)
    media_server.ask(keys.mint(), path="live/other", protocol="srt")
    media_server.ready(connection_id)
    client.get("/streams", headers=BEARER)
    client.get("/streams?status=all", headers=BEARER)
    client.get(f"/streams/{uuid.uuid4()}", headers=BEARER)
    client.get("/nowhere")
    client.get("/livez")
    client.get("/metrics", headers=BEARER)
    found = servers(collector.wait_for(lambda spans: len(servers(spans)) >= 7))
    time.sleep(0.2)
    assert sorted((span.name, span.facts["http.response.status_code"]) for span in found) == [
        ("GET", 404),
        ("GET /streams", 200),
        ("GET /streams", 200),
        ("GET /streams/<stream_id>", 404),
        ("POST /auth", 200),
        ("POST /auth", 401),
        ("POST /webhook/ready", 204),
    ]
    of_stream = {span.name: span for span in found if span.facts.get("streamorch.connection_id") == connection_id}
    assert {name: span.facts["streamorch.outcome"] for name, span in of_stream.items()} == {
        "POST /auth": "claimed",
        "POST /webhook/ready": "active",
    }
    statements = {
        span.parent: span.name for span in collector.spans if span.kind == "CLIENT" and "nodes" not in span.name
    }
    assert statements[of_stream["POST /auth"].id] == "streams.claim"
    assert statements[of_stream["POST /webhook/ready"].id] == "streams.start"
    (refused,) = [span for span in found if span.facts["http.response.status_code"] == 401]
    assert {name: value for name, value in refused.facts.items() if name.startswith("streamorch.")} | {
        "streamorch.request_id": "",
        "streamorch.connection_id": "",
    } == {
        "streamorch.action": "publish",
        "streamorch.path": "live/other",
        "streamorch.protocol": "srt",
        "streamorch.node": "default",
        "streamorch.outcome": "invalid-stream-key",
        "streamorch.request_id": "",
        "streamorch.connection_id": "",
    }
    assert all(span.parent for span in collector.spans if span.kind == "CLIENT")


def test_statements_of_nobodys_request_are_no_traces(traced, collector):
    app = traced()
    with app.extensions["streamorch"].database.connection() as conn:
        conn.execute("/* ping */ SELECT 1")
    app.test_client().get("/streams", headers=BEARER)
    found = collector.wait_for(lambda spans: bool(servers(spans)))
    assert "ping" not in {span.name for span in found}


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize(
    ("environ", "parent", "is_told"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, None, False),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, SAMPLED, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, SAMPLED, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, NOT_SAMPLED, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, None, True),
    ],
)
def test_the_standard_variables_decide_what_is_sampled(environ, parent, is_told, traced, collector):
    client = traced(**environ).test_client()
    headers = {"traceparent": parent, "tracestate": "vendor=secret-of-theirs"} if parent else {}
    client.post("/auth", json={"action": "read"}, headers=headers)
    if not is_told:
        time.sleep(0.3)
        assert collector.spans == []
        return
    (span,) = collector.wait_for(bool)
    assert (span.trace, span.parent) == (TRACE, SPAN) if parent else not span.parent
    assert span.state == ""


def test_what_went_wrong_is_told_by_its_class_and_not_by_its_words(traced, collector):
    service = traced().extensions["streamorch"]

    def work() -> None:
        with service.tracer.span("work"), service.database.connection() as conn:
            conn.execute("SELECT %(number)s::integer", {"number": "hunter2"})

    with pytest.raises(psycopg.errors.InvalidTextRepresentation, match="hunter2"):
        work()
    found = collector.wait_for(lambda spans: len(spans) == 2)
    assert all(span.failed for span in found)
    assert [event for span in found for event in span.events] == [
        {"name": "exception", "exception.type": "psycopg.errors.InvalidTextRepresentation"}
    ]
    assert not any(b"hunter2" in body for body in collector.bodies)


# --- what leaves the process ---


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.result = SpanExportResult.SUCCESS

    def export(self, spans):
        self.spans += spans
        return self.result

    def shutdown(self) -> None:
        pass


def test_attributes_that_are_not_known_to_be_harmless_stay_here():
    kept = Kept()
    secret = keys.mint()
    harmful: dict[str, AttributeValue] = {
        "url.query": f"token={secret}",
        "url.full": f"http://a:b@c/auth?token={secret}",
        "http.target": f"/auth?token={secret}",
        "http.url": f"http://c/auth?token={secret}",
        "http.request.header.authorization": ("Basic eDp5",),
        "user_agent.original": secret,
        "db.user": "admin",
        "db.statement.parameters": f"('{secret}',)",
        "server.address": secret,
    }
    harmless: dict[str, AttributeValue] = {
        "http.route": "/auth",
        "streamorch.path": f"live/{secret}",
        "streamorch.note": "a top-secret b",
    }
    span = ReadableSpan(
        name=f"GET /{secret}",
        kind=SpanKind.SERVER,
        attributes=harmful | harmless,
        events=[Event("exception", {"exception.type": "ValueError", "exception.message": secret})],
        status=Status(StatusCode.ERROR, f"ValueError: {secret}"),
    )
    assert _Clean(kept, ["top-secret"]).export([span]) is SpanExportResult.SUCCESS
    (clean,) = kept.spans
    assert clean.name == "HTTP /auth"
    assert dict(clean.attributes or {}) == {
        "http.route": "/auth",
        "streamorch.path": "live/sk_[redacted]",
        "streamorch.note": "a [redacted] b",
    }
    assert [dict(event.attributes or {}) for event in clean.events] == [{"exception.type": "ValueError"}]
    assert clean.status.description is None
    assert secret not in clean.to_json()


def test_a_collector_that_is_away_is_told_once(caplog):
    kept = Kept()
    exporter = _Clean(kept, [])
    with caplog.at_level("INFO"):
        for result in (SpanExportResult.FAILURE, SpanExportResult.FAILURE, *[SpanExportResult.SUCCESS] * 2):
            kept.result = result
            exporter.export([])
    assert caplog.messages == [
        "the collector of traces is away: spans are lost",
        "the collector of traces answers again",
    ]


# --- when it is on ---


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318/v1/metrics"}, False),
        ({"TRACING_ENABLED": "true"}, True),
        ({"TRACING_ENABLED": "1"}, True),
        ({"TRACING_ENABLED": "false", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"TRACING_ENABLED": "true", "OTEL_SDK_DISABLED": "true"}, False),
        ({"TRACING_ENABLED": "true", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_it_is_on_when_a_collector_is_named_or_when_it_is_enabled(environ, is_on):
    assert Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x"} | environ).tracing is is_on


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"TRACING_ENABLED": "maybe"}, "TRACING_ENABLED must be true or false, not 'maybe'"),
        ({"TRACING_SAMPLERATE": "2"}, "TRACING_SAMPLERATE must be from 0.0 to 1.0, not 2"),
        (
            {"TRACING_ENABLED": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, which collectors take on port 4318",
        ),
        (
            {"TRACING_ENABLED": "true", "OTEL_TRACES_EXPORTER": "zipkin"},
            "OTEL_TRACES_EXPORTER must be otlp or none, not 'zipkin'",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(environ, line):
    with pytest.raises(SettingError) as error:
        Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x"} | environ)
    assert str(error.value) == line


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.instrumentation.psycopg"])
def test_without_its_packages_one_line_says_what_to_install(missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    environ = {"DATABASE_URL": "postgresql:///x", "API_SECRET": "x"}
    local.check_tracing(Settings.from_env(environ))
    with pytest.raises(StartError, match=r"pip install 'streamorch\[tracing\]'"):
        local.check_tracing(Settings.from_env(environ | {"TRACING_ENABLED": "true"}))


def test_who_sends_them_is_told(traced, collector):
    traced(TRACING_SERVICE="gate", TRACING_VERSION="7").test_client().post("/auth", json={"action": "read"})
    collector.wait_for(bool)
    (resource,) = collector.resources()
    assert (resource["service.name"], resource["service.version"]) == ("gate", "7")
    assert resource["service.instance.id"].endswith(f":{os.getpid()}")


def test_the_standard_name_of_the_service_counts_more(traced, collector):
    traced(TRACING_SERVICE="gate", OTEL_SERVICE_NAME="standard").test_client().post("/auth", json={"action": "read"})
    collector.wait_for(bool)
    assert collector.resources()[0]["service.name"] == "standard"
