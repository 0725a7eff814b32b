"""Tracing of the service as it really runs: one publish from its question to its kick, and no secret in any byte."""

import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from streamorch import keys, signing
from tests.conftest import API_SECRET, NO_MEDIA_SERVER
from tests.fake_mediamtx import FakeMediaMTX
from tests.otlp import Collector, Span
from tests.running import Service

pytestmark = pytest.mark.slow

PATH = "live/cam7"
BEARER = {"Authorization": f"Bearer {API_SECRET}"}
CALLBACK_SECRET, METRICS_SECRET, READ_SECRET = "planted-callback", "planted-scrape", "planted-read"
OLDER_CALLBACK_SECRET = "planted-before-it"
ALL = {"OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_BSP_SCHEDULE_DELAY": "200"}


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """A service with these settings, ended with the test."""
    started: list[Service] = []

    def one(**settings: str) -> Service:
        started.append(Service(Path(tempfile.mkdtemp(prefix="streamorch-tracing-")), **settings))
        return started[-1]

    yield one
    for service in started:
        service.close()


class Caller:
    """Asks the service, each time with an X-Request-ID of its own."""

    def __init__(self, service: Service):
        self.service = service
        self.asked: list[str] = []

    def __call__(self, method: str, path: str, headers: dict[str, str], **options: Any) -> requests.Response:
        self.asked.append(uuid.uuid4().hex)
        headers = headers | {"X-Request-ID": self.asked[-1]}
        return requests.request(method, f"{self.service.url}{path}", headers=headers, timeout=10, **options)


def make_key(service: Service) -> tuple[uuid.UUID, str]:
    key_id, value = uuid.uuid4(), keys.mint()
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Team 7')", [key_id])
        conn.execute(
            "INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint) VALUES (%s, %s, %s, %s)",
            [key_id, key_id, keys.digest(value), keys.hint(value)],
        )
    return key_id, value


def of_connection(spans: list[Span], connection_id: str) -> dict[str, Span]:
    """The spans of one publish by their names: they are joined by the id of its connection."""
    return {span.name: span for span in spans if span.facts.get("streamorch.connection_id") == connection_id}


def test_the_spans_of_a_publish_are_joined_and_hold_no_secret(start):
    with Collector() as collector, FakeMediaMTX() as fake:
        service = start(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            MEDIAMTX_API_URL=fake.url,
            RECONCILE_SECONDS="60",
            MEDIAMTX_CALLBACK_SECRET=f"{CALLBACK_SECRET},{OLDER_CALLBACK_SECRET}",
            METRICS_SECRET=METRICS_SECRET,
            READ_POLICY="secret",
            READ_SECRET=READ_SECRET,
            **ALL,
        )
        # One tick at the start, and no other that might be the one that kicks.
        collector.wait_for(lambda spans: any(span.name == "reconcile" for span in spans))
        ask = Caller(service)
        key_id, value = make_key(service)
        callback = {"Authorization": f"Bearer {CALLBACK_SECRET}", "tracestate": f"vendor={value}"}

        connection_id = str(uuid.uuid4())
        claim = {"action": "publish", "path": PATH, "protocol": "rtmp", "id": connection_id}
        answer = ask("POST", "/auth?node=default", callback, json=claim | {"password": value, "query": f"pass={value}"})
        assert answer.status_code == 200
        publisher = fake.publish(PATH, connection_id=connection_id)
        hook = {"path": PATH, "source_type": publisher.source_type, "source_id": connection_id}
        assert ask("POST", "/webhook/ready", callback, json=hook).status_code == 204
        assert ask("DELETE", f"/stream-keys/{key_id}", BEARER).status_code == 204

        # Secrets wherever somebody may write one.
        other = keys.mint()
        traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        ask("POST", "/auth", callback | {"User-Agent": other, "traceparent": traceparent}, json=claim | {"path": other})
        ask("POST", "/auth", callback, json=claim | {"id": other, "password": other, "protocol": other})
        ask(
            "POST",
            "/auth",
            callback,
            json={"action": other, "path": f"a/{CALLBACK_SECRET}/{OLDER_CALLBACK_SECRET}/{API_SECRET}"},
        )
        ask("POST", "/auth", {"Authorization": f"Basic {other}"}, json=claim)
        ask("POST", "/auth", callback, json={"action": "read", "path": PATH, "query": READ_SECRET})
        ask("POST", "/webhook/ready", callback, json=hook | {"path": other, "source_id": other})
        ask("POST", f"/webhook/not-ready?token={other}", callback, json={"path": f"a/{READ_SECRET}"})
        ask("GET", f"/{other}/{API_SECRET}?key={other}", BEARER | {"Host": f"{other}.example.org"})
        ask("GET", f"/streams?path=live/{other}", BEARER | {"X-API-Key": other, "Cookie": f"a={other}"})
        ask("GET", f"/streams?cursor={other}", BEARER)
        made = {"broadcaster_id": str(key_id), "label": other, "metadata": {"note": other}}
        assert ask("POST", "/stream-keys", BEARER, json=made).status_code == 201
        minted = requests.post(f"{service.url}/stream-keys", headers=BEARER, json=made, timeout=10).json()["key_value"]

        found = collector.wait_for(
            lambda spans: (
                {"POST /auth", "POST /webhook/ready", "kick"} <= of_connection(spans, connection_id).keys()
                and set(ask.asked) <= {span.facts.get("streamorch.request_id") for span in spans}
            )
        )
        joined = of_connection(found, connection_id)
        kick, started = joined["kick"], joined["POST /webhook/ready"]
        with psycopg.connect(service.database_url) as conn:
            stored = conn.execute("SELECT id::text FROM streams WHERE auth_id = %s", [connection_id]).fetchall()
            ((stream_id,),) = stored
        (claimed,) = [
            span
            for span in found
            if span.facts.get("streamorch.connection_id") == connection_id
            and span.facts.get("streamorch.outcome") == "claimed"
        ]
        for span, outcome in ((claimed, "claimed"), (started, "active"), (kick, "gone")):
            facts = {name: span.facts.get(f"streamorch.{name}") for name in ("path", "stream_id", "outcome")}
            assert facts == {"path": PATH, "stream_id": stream_id, "outcome": outcome}, span.name
        assert claimed.facts["streamorch.protocol"] == kick.facts["streamorch.protocol"] == "rtmp"
        assert claimed.facts["streamorch.node"] == started.facts["streamorch.node"] == "default"
        statements = {(span.parent, span.name) for span in found}
        assert (claimed.id, "streams.claim") in statements
        assert (started.id, "streams.start") in statements
        (deleted,) = [span for span in found if span.name.startswith("DELETE /stream-keys/<")]
        assert (kick.trace, kick.parent) == (deleted.trace, deleted.id)
        assert [span for span in found if span.name == "reconcile" and span.facts["streamorch.outcome"] == "ok"]

        by_request = Counter(span.facts["streamorch.request_id"] for span in found if span.kind == "SERVER")
        assert {request_id: by_request[request_id] for request_id in ask.asked} == dict.fromkeys(ask.asked, 1)

        service.stop()  # which sends what is left
        sent = b"".join(collector.bodies)
        password = signing.media_server_password(API_SECRET)
        assert PATH.encode() in sent
        assert b"sk_[redacted]" in sent
        ours = (API_SECRET, CALLBACK_SECRET, OLDER_CALLBACK_SECRET, METRICS_SECRET, READ_SECRET)
        for secret in (value, other, minted, *ours, password):
            assert secret.encode() not in sent, secret
        assert re.search(rb"sk_[A-Za-z0-9]{32}", sent) is None
        names = {name for span in collector.spans for name in span.facts}
        assert {name.split(".")[0] for name in names} == {"streamorch", "http", "url", "client", "db", "server"}
        assert not {"url.query", "url.full", "url.path", "http.target", "http.url", "http.host", "db.user"} & names


def test_every_reason_of_a_refusal_is_the_same_wherever_it_is_told(start):
    with Collector() as collector:
        service = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **ALL)
        _, value = make_key(service)
        claim = {"action": "publish", "path": PATH, "protocol": "srt", "id": "a", "password": value}
        states = {
            "stream-stopped": "UPDATE stream_keys SET hold_until = '2100-01-01'",
            "stream-key-disabled": "UPDATE stream_keys SET disabled_at = now()",
            "stream-key-expired": "UPDATE stream_keys SET expires_at = now()",
            "stream-key-revoked": "UPDATE stream_keys SET revoked_at = now()",
        }
        told = ["invalid-stream-key", "unauthorized", "path-not-allowed", *states]
        asked = [claim | {"password": keys.mint()}, claim | {"password": ""}, claim | {"path": "a//b"}]
        answers = [requests.post(f"{service.url}/auth", json=question, timeout=10) for question in asked]
        with psycopg.connect(service.database_url, autocommit=True) as conn:
            for change in states.values():
                conn.execute(change.encode())
                answers.append(requests.post(f"{service.url}/auth", json=claim, timeout=10))
        assert [answer.json()["type"] for answer in answers] == [f"/errors/{reason}" for reason in told]
        spans = collector.wait_for(lambda spans: sum(span.name == "POST /auth" for span in spans) == len(told))
        found = Counter(span.facts["streamorch.outcome"] for span in spans if span.name == "POST /auth")
        assert found == Counter(told)
        metrics = requests.get(f"{service.url}/metrics", headers=BEARER, timeout=10).text
        counted = re.findall(r'^streamorch_auth_decisions_total\{.*outcome="([^"]+)".*\} 1\.0$', metrics, re.MULTILINE)
        assert Counter(counted) == Counter(told)
        logged = re.findall(r'"message":"publish refused".*?"outcome":"([^"]+)"', service.log.read_text())
        assert Counter(logged) == Counter(told)
        deadline = time.monotonic() + 60
        while Counter(_decided(service)) != Counter(told):
            assert time.monotonic() < deadline, _decided(service)
            time.sleep(0.1)


def _decided(service: Service) -> list[str]:
    """What GET /decisions tells."""
    found = requests.get(f"{service.url}/decisions", headers=BEARER, timeout=10).json()
    return [decision["outcome"] for decision in found["decisions"]]


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_collector_that_is_away_delays_neither_an_answer_nor_a_stop(how, start):
    with Collector(is_silent=True) as silent:
        url = NO_MEDIA_SERVER if how == "refused" else silent.url
        service = start(OTEL_EXPORTER_OTLP_ENDPOINT=url, **ALL)
        for _ in range(200):
            began = time.monotonic()
            answer = requests.post(f"{service.url}/auth", json={"action": "read"}, timeout=10)
            assert answer.status_code == 200
            assert time.monotonic() - began < 5
        deadline = time.monotonic() + 60
        while how == "refused" and "the collector of traces is away" not in service.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        requests.post(f"{service.url}/auth", json={"action": "read"}, timeout=10)
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 9  # an export of its own would take ten, and the master kills after ten
        assert "SIGKILL" not in service.log.read_text()


@pytest.mark.parametrize("is_on", [False, True])
def test_opentelemetry_is_loaded_only_when_tracing_is_on(is_on, start):
    with Collector() as collector:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if is_on else {}
        service = start(PYTHONPROFILEIMPORTTIME="1", **settings)
        requests.post(f"{service.url}/auth", json={"action": "read"}, timeout=10)
        log = service.log.read_text()
        assert "streamorch.edge" in log
        for module in ("opentelemetry", "google.protobuf", "streamorch.tracing"):
            assert (module in log) is is_on
