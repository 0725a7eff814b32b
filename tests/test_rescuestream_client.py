"""Clients of rescuestream-api, the Go service before this one, work unchanged: its headers, paths and JSON.

The client here is written as its scripts and its Next.js guide are, and calls over a real socket.
"""

import hashlib
import hmac
import http.client
import json
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import flask
import pytest
from werkzeug.serving import make_server

from tests.conftest import API_SECRET

PORTS = range(18300, 18320)


class Answer(NamedTuple):
    status: int
    content_type: str
    json: Any


class Client:
    """Signs METHOD, PATH, TIMESTAMP and BODY with the shared secret, as hex HMAC-SHA256."""

    def __init__(self, port: int, secret: str = API_SECRET, api_key: str = "admin"):
        self.port = port
        self.secret = secret
        self.api_key = api_key

    def sign(self, method: str, path: str, body: str = "", timestamp: int | None = None) -> dict[str, str]:
        stamp = str(int(time.time()) if timestamp is None else timestamp)
        signed = f"{method}\n{path}\n{stamp}\n{body}".encode()
        signature = hmac.new(self.secret.encode(), signed, hashlib.sha256).hexdigest()
        return {"X-API-Key": self.api_key, "X-Timestamp": stamp, "X-Signature": signature}

    def send(self, method: str, target: str, headers: dict[str, str], body: str = "") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body.encode() or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            return Answer(
                answer.status, answer.headers.get("Content-Type", ""), json.loads(content) if content else None
            )
        finally:
            connection.close()

    def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        text = "" if body is None else json.dumps(body, ensure_ascii=False)
        # The guide's client labels every request as JSON, also those without a body.
        headers = {"Content-Type": "application/json", **self.sign(method, path, text)}
        return self.send(method, path, headers, text)


@contextmanager
def served(app: flask.Flask) -> Iterator[int]:
    """The application on a socket of its own; its port."""
    with listener() as listening:
        server = make_server("127.0.0.1", 0, app, threaded=True, fd=listening.fileno())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            port = listening.getsockname()[1]
            await_database(Client(port))
            yield port
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def await_database(client: Client) -> None:
    """A service that has just started answers 503 until its pool has a connection."""
    deadline = time.monotonic() + 20
    while client.send("GET", "/readyz", {}).status != 200:
        assert time.monotonic() < deadline


def listener() -> socket.socket:
    for port in PORTS:
        try:
            return socket.create_server(("127.0.0.1", port), backlog=16)
        except OSError:
            continue
    raise AssertionError("no port is free")


@pytest.fixture
def port(app: flask.Flask) -> Iterator[int]:
    with served(app) as port:
        yield port


@pytest.fixture
def client(port: int) -> Client:
    return Client(port)


def moment(text: str) -> datetime:
    """An RFC 3339 time, as a client parses it."""
    parsed = datetime.fromisoformat(text)
    assert parsed.tzinfo is not None
    return parsed


def test_the_life_of_a_key_is_as_it_was(client):
    created = client("POST", "/broadcasters", {"display_name": "Bergwacht Süd", "metadata": {"unit": 7}})
    assert (created.status, created.content_type) == (201, "application/json")
    broadcaster = created.json
    assert (broadcaster["display_name"], broadcaster["metadata"]) == ("Bergwacht Süd", {"unit": 7})
    assert moment(broadcaster["created_at"]) <= moment(broadcaster["updated_at"])
    assert client("GET", f"/broadcasters/{broadcaster['id']}").json == broadcaster
    listed = client("GET", "/broadcasters").json
    assert (listed["broadcasters"], listed["count"]) == ([broadcaster], 1)

    expires_at = (datetime.now(UTC) + timedelta(days=30)).replace(microsecond=0)
    wanted = {"broadcaster_id": broadcaster["id"], "expires_at": expires_at.isoformat().replace("+00:00", "Z")}
    created = client("POST", "/stream-keys", wanted)
    assert created.status == 201
    key = created.json
    assert key["key_value"].startswith("sk_")
    assert (key["broadcaster_id"], key["status"]) == (broadcaster["id"], "active")
    assert moment(key["expires_at"]) == expires_at
    assert (key["revoked_at"], key["last_used_at"]) == (None, None)

    shown = client("GET", f"/stream-keys/{key['id']}").json
    assert "key_value" not in shown
    assert shown.items() <= key.items()
    listed = client("GET", "/stream-keys").json
    assert (listed["stream_keys"], listed["count"]) == ([shown], 1)

    revoked = client("DELETE", f"/stream-keys/{key['id']}")
    assert (revoked.status, revoked.json) == (204, None)
    shown = client("GET", f"/stream-keys/{key['id']}").json
    assert shown["status"] == "revoked"
    assert moment(shown["revoked_at"]) >= moment(key["created_at"])
    assert client("DELETE", f"/stream-keys/{key['id']}").status == 204


def test_a_player_finds_the_stream_in_the_list(client):
    broadcaster = client("POST", "/broadcasters", {"display_name": "Team 7"}).json
    assert broadcaster["metadata"] == {}
    key = client("POST", "/stream-keys", {"broadcaster_id": broadcaster["id"]}).json
    assert key["expires_at"] is None
    empty = client("GET", "/streams").json
    assert (empty["streams"], empty["count"]) == ([], 0)

    source_id = publish(client, key["key_value"])
    listed = client("GET", "/streams").json
    assert listed["count"] == 1
    (stream,) = listed["streams"]
    wanted = {
        "stream_key_id": key["id"],
        "path": "live/cam7",
        "status": "active",
        "ended_at": None,
        "source_type": "rtmpConn",
        "source_id": source_id,
        "metadata": {},
        "recording_ref": None,
    }
    assert wanted.items() <= stream.items()
    assert moment(stream["started_at"]) >= moment(key["created_at"])
    assert stream["urls"]["hls"] == "http://localhost:8888/live/cam7/index.m3u8"
    assert stream["urls"]["webrtc"] == "http://localhost:8889/live/cam7/whep"
    by_id = client("GET", f"/streams/{stream['id']}").json
    assert by_id["urls"] == stream["urls"]
    assert moment(client("GET", f"/stream-keys/{key['id']}").json["last_used_at"]) <= moment(stream["started_at"])

    assert client("DELETE", f"/stream-keys/{key['id']}").status == 204
    assert client("GET", "/streams").json["streams"] == []
    ended = client("GET", f"/streams/{stream['id']}").json
    assert ended["status"] == "ended"
    assert moment(ended["ended_at"]) >= moment(ended["started_at"])


def test_a_broadcaster_is_changed_and_deleted(client):
    broadcaster = client("POST", "/broadcasters", {"display_name": "Team 7", "metadata": {"unit": 7}}).json
    where = f"/broadcasters/{broadcaster['id']}"
    changed = client("PATCH", where, {"display_name": "Team 8"})
    assert (changed.status, changed.json["display_name"], changed.json["metadata"]) == (200, "Team 8", {"unit": 7})
    assert client("DELETE", where).status == 204
    assert client("GET", where).status == 404
    assert client("GET", "/broadcasters").json["count"] == 0


def test_health_asks_for_no_signature(client):
    answer = client.send("GET", "/health", {})
    assert answer.status == 200
    assert {"status": "ok", "database": "ok"}.items() <= answer.json.items()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/stream-keys/4711", None, 400, "/errors/invalid-request"),
        ("GET", "/streams/6c1f1b3a-3a86-4a3f-8a58-1f2a6a8e8d11", None, 404, "/errors/not-found"),
        ("POST", "/broadcasters", {}, 400, "/errors/invalid-request"),
        ("POST", "/stream-keys", {"broadcaster_id": str(uuid.UUID(int=1))}, 400, "/errors/invalid-request"),
        ("POST", "/stream-keys", {"broadcaster_id": "x", "expires_at": "soon"}, 400, "/errors/invalid-request"),
    ],
)
def test_errors_are_of_the_same_form(method, path, body, status, kind, client):
    answer = client(method, path, body)
    assert (answer.status, answer.content_type) == (status, "application/problem+json")
    assert (answer.json["type"], answer.json["status"], answer.json["instance"]) == (kind, status, path)
    assert answer.json["title"]
    assert answer.json["detail"]


def publish(client: Client, key_value: str) -> str:
    """What MediaMTX asks and tells: its auth call, and the start hook as the Go service had it configured."""
    source_id = str(uuid.uuid4())
    asked = {
        "ip": "192.0.2.7",
        "user": "",
        "password": key_value,
        "action": "publish",
        "path": "live/cam7",
        "protocol": "rtmp",
        "id": source_id,
        "query": "",
    }
    label = {"Content-Type": "application/json"}
    assert client.send("POST", "/auth", label, json.dumps(asked)).status == 200
    told = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": source_id}
    assert client.send("POST", "/webhook/ready", label, json.dumps(told)).status == 204
    return source_id


# --- signatures -------------------------------------------------------------------------------------------


def status_of(answer: Answer) -> int:
    """A refusal is the problem `unauthorized` and asks for no browser's login box."""
    if answer.status == 401:
        assert answer.json["type"] == "/errors/unauthorized"
    return answer.status


@pytest.mark.parametrize("api_key", ["admin", "any name at all", "sk_looks_like_a_key"])
def test_the_name_of_the_api_key_does_not_matter(api_key, port):
    assert Client(port, api_key=api_key)("GET", "/broadcasters").status == 200


def test_another_secret_is_refused(port):
    assert status_of(Client(port, secret="guessed")("GET", "/broadcasters")) == 401


def test_either_of_two_secrets_signs(make_app):
    with served(make_app(API_SECRET="new-secret,old-secret")) as port:
        answers = [Client(port, secret)("GET", "/broadcasters").status for secret in ("new-secret", "old-secret")]
        assert answers == [200, 200]
        assert status_of(Client(port, "new-secret,old-secret")("GET", "/broadcasters")) == 401


@pytest.mark.parametrize(
    ("drift", "rounded", "status"),
    [
        # Rounded so that the part of a second that is lost, and that the call takes, cannot change the verdict.
        (-299, math.ceil, 200),
        (+299, math.floor, 200),
        (-301, math.floor, 401),
        (+301, math.ceil, 401),
    ],
)
def test_a_timestamp_may_be_five_minutes_off(drift: int, rounded: Callable[[float], int], status: int, client: Client):
    headers = client.sign("GET", "/streams", timestamp=rounded(time.time()) + drift)
    assert status_of(client.send("GET", "/streams", headers)) == status


@pytest.mark.parametrize(
    "timestamp", ["", "now", "1e9", "1700000000.5", pytest.param("9" * 400, id="beyond a float"), "-1"]
)
def test_a_timestamp_that_is_no_time_is_refused(timestamp, client):
    headers = client.sign("GET", "/streams") | {"X-Timestamp": timestamp}
    assert status_of(client.send("GET", "/streams", headers)) == 401


def test_another_timestamp_than_the_signed_one_is_refused(client):
    headers = client.sign("GET", "/streams")
    headers["X-Timestamp"] = str(int(headers["X-Timestamp"]) - 1)
    assert status_of(client.send("GET", "/streams", headers)) == 401


@pytest.mark.parametrize("missing", ["X-API-Key", "X-Timestamp", "X-Signature"])
def test_all_three_headers_are_needed(missing, client):
    headers = client.sign("GET", "/broadcasters")
    del headers[missing]
    assert status_of(client.send("GET", "/broadcasters", headers)) == 401


def test_the_query_is_not_signed(client):
    assert client.send("GET", "/broadcasters?limit=1", client.sign("GET", "/broadcasters")).status == 200
    signed_with_it = client.sign("GET", "/broadcasters?limit=1")
    assert status_of(client.send("GET", "/broadcasters?limit=1", signed_with_it)) == 401


def test_another_body_than_the_signed_one_is_refused_and_changes_nothing(client):
    headers = {"Content-Type": "application/json"} | client.sign("POST", "/broadcasters", '{"display_name":"Team 7"}')
    for body in ('{"display_name":"Team 8"}', '{"display_name":"Team 7"} ', ""):
        assert status_of(client.send("POST", "/broadcasters", headers, body)) == 401
    assert client("GET", "/broadcasters").json["count"] == 0
    assert client.send("POST", "/broadcasters", headers, '{"display_name":"Team 7"}').status == 201


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/broadcasters"), ("GET", "/streams")])
def test_another_method_or_path_than_the_signed_one_is_refused(method, path, client):
    assert status_of(client.send("GET", "/broadcasters", client.sign(method, path))) == 401


def test_the_decoded_path_is_signed(client):
    made = client("POST", "/broadcasters", {"display_name": "Team 7"}).json
    path = f"/broadcasters/{made['id']}"
    encoded = f"/broadcasters/%{ord(made['id'][0]):02x}{made['id'][1:]}"
    assert client.send("GET", encoded, client.sign("GET", path)).json == made
    assert status_of(client.send("GET", encoded, client.sign("GET", encoded))) == 401
    # Also beyond ASCII: let in, and told that this is no id.
    assert client.send("GET", "/broadcasters/%C3%A9", client.sign("GET", "/broadcasters/é")).status == 400


def test_the_path_below_a_proxys_prefix_is_signed(make_app):
    with served(make_app(TRUSTED_PROXIES="127.0.0.1")) as port:
        client = Client(port)
        signed = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Prefix": "/api"}
        assert client.send("GET", "/streams", signed | client.sign("GET", "/streams")).status == 200
        assert status_of(client.send("GET", "/streams", signed | client.sign("GET", "/api/streams"))) == 401
