"""Who may call: the API's secret or signature for the REST part, the callback secret for MediaMTX."""

import base64
import json
import re
import time

import pytest

from streamorch import keys, openapi, signing
from streamorch.app import FAST
from streamorch.blueprints import require_api_caller
from tests.blueprints import FUTURE, PAST, logged, only, problem, rows
from tests.conftest import API_SECRET, Api, MediaServer

ID = "00000000-0000-4000-8000-000000000000"

pytestmark = pytest.mark.usefixtures("lane")
GUARDED = [
    ("GET", "/broadcasters"),
    ("POST", "/broadcasters"),
    ("GET", f"/broadcasters/{ID}"),
    ("PATCH", f"/broadcasters/{ID}"),
    ("DELETE", f"/broadcasters/{ID}"),
    ("GET", "/stream-keys"),
    ("POST", "/stream-keys"),
    ("GET", f"/stream-keys/{ID}"),
    ("PATCH", f"/stream-keys/{ID}"),
    ("DELETE", f"/stream-keys/{ID}"),
    ("POST", f"/stream-keys/{ID}/rotate"),
    ("GET", "/streams"),
    ("GET", "/nodes"),
    ("GET", "/metrics"),
    ("HEAD", "/streams"),
    ("GET", f"/streams/{ID}"),
    ("PATCH", f"/streams/{ID}"),
    ("DELETE", f"/streams/{ID}"),
    ("GET", f"/streams/{ID}/events"),
    ("GET", "/decisions"),
    ("GET", "/audit"),
    ("GET", "/api-clients"),
    ("POST", "/api-clients"),
    ("GET", f"/api-clients/{ID}"),
    ("PATCH", f"/api-clients/{ID}"),
    ("DELETE", f"/api-clients/{ID}"),
]
# What an API client needs for each of them; a scraper is none.
NEEDS = {
    (method, path): "admin"
    if path.startswith(("/api-clients", "/audit"))
    else "read"
    if method in ("GET", "HEAD")
    else "operate"
    for method, path in GUARDED
    if path != "/metrics"
}
SCOPES = ["read", "operate", "admin"]
CALLBACKS = ["/auth", "/webhook/ready", "/webhook/not-ready"]


def signed(method="GET", path="/streams", body=b"", *, secret=API_SECRET, seconds=None, **headers):
    timestamp = str(int(time.time()) if seconds is None else seconds)
    made = {
        "X-API-Key": "watch-page",
        "X-Timestamp": timestamp,
        "X-Signature": signing.signature(secret, method=method, path=path, timestamp=timestamp, body=body),
    } | headers
    return {name: value for name, value in made.items() if value is not None}


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class TestFromMemory:
    """A refusal asks no database: there is none."""

    @pytest.fixture
    def database_url(self):
        return "postgresql:///none?host=/nowhere"

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    def test_every_route_of_the_rest_part_needs_a_credential(self, method, path, client):
        answer = client.open(path, method=method)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        if method != "HEAD":
            problem(answer, "unauthorized", 401)

    def test_no_route_is_left_out_of_the_table_above(self, app):
        free = {"health.livez", "health.health", "health.readyz"}
        callbacks = {"auth.ask", "webhooks.ready", "webhooks.not_ready"}
        rest = {
            (method, re.sub("<.+?>", ID, rule.rule))
            for rule in app.url_map.iter_rules()
            if rule.endpoint not in free | callbacks and not rule.endpoint.startswith(("pages.", "console_"))
            for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
        }
        assert rest == {(method, path) for method, path in GUARDED if method != "HEAD"}

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {API_SECRET}x"},
            {"Authorization": f"Bearer {API_SECRET[:-1]}"},
            {"Authorization": API_SECRET},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Token {API_SECRET}"},
            basic("api", API_SECRET),
            {"X-API-Key": "wrong"},
            {"X-API-Key": ""},
            {"Authorization": "Bearer \xfc\xff"},
            {"Authorization": "Bearer sc_short"},
            {"Authorization": f"Bearer sc_{'x' * 44}"},
            {"Authorization": f"Bearer sk_{'x' * 43}"},
            {"Authorization": "Bearer wrong", "X-API-Key": API_SECRET},
        ],
    )
    def test_a_wrong_secret_is_refused_and_not_echoed(self, headers, client):
        answer = client.get("/streams", headers=headers)
        problem(answer, "unauthorized", 401)
        assert API_SECRET not in answer.text
        assert "wrong" not in answer.text

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"X-API-Key": None}, "X-API-Key"),
            ({"X-API-Key": ""}, "X-API-Key"),
            ({"X-Timestamp": None}, "X-Timestamp"),
            ({"X-Timestamp": "soon"}, "X-Timestamp"),
            ({"X-Timestamp": "1.5"}, "X-Timestamp"),
            ({"X-Timestamp": "9" * 400}, "X-Timestamp"),
            ({"X-Timestamp": "9" * 5000}, "X-Timestamp"),
            ({"seconds": -(10**15)}, "X-Timestamp"),
            ({"X-Signature": ""}, "X-Signature"),
            ({"X-Signature": "00"}, "X-Signature"),
            ({"X-Signature": "\xfc"}, "X-Signature"),
            ({"secret": "wrong"}, "X-Signature"),
            ({"method": "POST"}, "X-Signature"),
            ({"path": "/broadcasters"}, "X-Signature"),
            ({"path": "/streams?status=all"}, "X-Signature"),
            ({"body": b"{}"}, "X-Signature"),
        ],
    )
    def test_a_wrong_signature_is_refused(self, wrong, reason, client):
        body = problem(client.get("/streams?status=all", headers=signed(**wrong)), "unauthorized", 401)
        assert reason in body["detail"]

    @pytest.mark.parametrize("seconds", [-310, 310])
    def test_a_signature_of_another_time_is_refused(self, seconds, client):
        headers = signed(seconds=int(time.time()) + seconds)
        assert "300 s" in problem(client.get("/streams", headers=headers), "unauthorized", 401)["detail"]

    def test_a_wrong_signature_beats_a_right_secret(self, client):
        headers = {"Authorization": f"Bearer {API_SECRET}", "X-API-Key": API_SECRET, "X-Signature": "00"}
        problem(client.get("/streams", headers=headers), "unauthorized", 401)

    @pytest.mark.parametrize("path", CALLBACKS)
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            basic("mediamtx", "wrong"),
            basic("call back", ""),
            {"Authorization": "Bearer wrong"},
            {"Authorization": "call back"},
            {"Authorization": "Basic %%%"},
            {"Authorization": "Basic /w=="},
            {"Authorization": "Basic " + base64.b64encode(b"call back").decode()},
            {"X-API-Key": "call back"},
            {"Authorization": f"Bearer {API_SECRET}"},
        ],
    )
    def test_a_callback_without_its_secret_is_refused(self, headers, path, make_app):
        client = make_app(MEDIAMTX_CALLBACK_SECRET="call back").test_client()
        answer = client.post(path, json={"action": "read", "path": "x", "source_id": ""}, headers=headers)
        problem(answer, "unauthorized", 401)
        assert "call back" not in answer.text

    @pytest.mark.parametrize("path", CALLBACKS)
    @pytest.mark.parametrize(
        "headers",
        [
            basic("mediamtx", "call back"),
            basic("", "call back"),
            {"Authorization": "Bearer call back"},
            {"Authorization": "bearer  call back "},
            {"Authorization": "bASIC " + base64.b64encode(b"a:call back").decode()},
        ],
    )
    def test_a_callback_with_its_secret_is_heard(self, headers, path, make_app):
        client = make_app(MEDIAMTX_CALLBACK_SECRET="call back").test_client()
        answer = client.post(path, json={"action": "read", "path": "x", "source_id": ""}, headers=headers)
        assert answer.status_code == (200 if path == "/auth" else 204)

    @pytest.mark.parametrize("path", CALLBACKS)
    def test_each_of_several_callback_secrets_is_heard_while_it_stands_in_the_list(self, path, make_app):
        def ask(client, secret):
            return client.post(
                path, json={"action": "read", "path": "x", "source_id": ""}, headers=basic("mediamtx", secret)
            )

        both, new_alone = (make_app(MEDIAMTX_CALLBACK_SECRET=text).test_client() for text in ("new, old", "new"))
        for secret in ("new", "old"):
            assert ask(both, secret).status_code == (200 if path == "/auth" else 204)
        for client, secret in ((both, "new, old"), (both, ""), (both, ","), (new_alone, "old")):
            problem(ask(client, secret), "unauthorized", 401)
        assert ask(new_alone, "new").status_code == (200 if path == "/auth" else 204)

    def test_a_callback_secret_may_hold_a_colon(self, make_app):
        client = make_app(MEDIAMTX_CALLBACK_SECRET="a:b").test_client()
        assert client.post("/auth", json={"action": "read"}, headers=basic("mediamtx", "a:b")).status_code == 200

    @pytest.mark.parametrize("path", CALLBACKS)
    def test_callbacks_are_open_without_a_callback_secret(self, path, client):
        answer = client.post(path, json={"action": "read", "path": "x", "source_id": ""}, headers=basic("x", "y"))
        assert answer.status_code == (200 if path == "/auth" else 204)

    @pytest.mark.parametrize("path", CALLBACKS)
    def test_a_node_that_is_not_configured_is_refused_with_one_line(self, path, capsys, make_app):
        client = make_app().test_client()
        answer = client.post(f"{path}?node=studio-b&x=hush", json={"action": "read", "path": "x", "source_id": ""})
        problem(answer, "unauthorized", 401)
        (line,) = logged(capsys)
        assert (line["level"], line["node"]) == ("warning", "studio-b")
        assert "hush" not in json.dumps(line)

    @pytest.mark.parametrize("path", CALLBACKS)
    @pytest.mark.parametrize("query", ["?node=default", "?node=", "?x=y"])
    def test_the_node_is_the_default_one(self, path, query, client):
        answer = client.post(path + query, json={"action": "read", "path": "x", "source_id": ""})
        assert answer.status_code in (200, 204)

    @pytest.mark.parametrize("path", ["/livez", "/errors/conflict"])
    def test_routes_without_secrets_need_no_credential(self, path, client):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {API_SECRET}"},
        {"Authorization": f"bearer  {API_SECRET} "},
        {"X-API-Key": API_SECRET},
        {"Authorization": "Basic something-of-a-proxy", "X-API-Key": API_SECRET},
    ],
)
def test_the_secret_opens_the_api(headers, client):
    assert client.get("/streams", headers=headers).status_code == 200


def test_any_of_several_secrets_opens_the_api(make_app):
    client = make_app(API_SECRET="new, old").test_client()
    for secret, status in (("new", 200), ("old", 200), ("new, old", 401), ("older", 401)):
        assert client.get("/streams", headers={"X-API-Key": secret}).status_code == status
        assert client.get("/streams", headers=signed(secret=secret)).status_code == status


def test_a_signature_opens_the_api(client, conn):
    assert client.get("/streams", headers=signed()).status_code == 200
    assert client.get("/streams?status=all", headers=signed()).status_code == 200  # the query is not signed
    body = b'{"display_name": "T\xc3\xa4m"}'
    headers = signed("POST", "/broadcasters", body)
    assert client.post("/broadcasters", data=body, headers=headers).status_code == 201
    assert only(conn, "SELECT display_name FROM broadcasters")["display_name"] == "Täm"
    problem(client.post("/broadcasters", data=body + b" ", headers=headers), "unauthorized", 401)
    assert len(rows(conn, "SELECT id FROM broadcasters")) == 1


def test_a_signature_may_be_of_any_name_and_case_and_a_few_minutes_old(client):
    now = int(time.time())
    for headers in (
        signed(**{"X-API-Key": "anything at all"}),
        signed(**{"X-Signature": signed()["X-Signature"].upper()}),
        signed(seconds=now - 290),
        signed(seconds=now + 290),
        signed(seconds=now) | {"X-Timestamp": f" +{now}"},
    ):
        assert client.get("/streams", headers=headers).status_code == 200, headers


def test_a_signature_is_of_the_decoded_path(client):
    headers = signed(path="/streams/a b")
    problem(client.get("/streams/a%20b", headers=headers), "invalid-request", 400)


def test_a_signature_is_of_the_path_below_the_prefix_of_a_proxy(make_app):
    client = make_app(TRUSTED_PROXIES="127.0.0.1").test_client()
    headers = signed() | {"X-Forwarded-Prefix": "/video"}
    assert client.get("/streams", headers=headers).status_code == 200


def test_the_callback_secret_does_not_open_the_api_nor_the_api_secret_a_callback(make_app, make_key, conn):
    client = make_app(MEDIAMTX_CALLBACK_SECRET="call back").test_client()
    problem(Api(client, {"Authorization": "Bearer call back"}).get("/streams"), "unauthorized", 401)
    problem(MediaServer(client).ask(make_key()), "unauthorized", 401)
    assert not rows(conn, "SELECT id FROM streams")


# --- API clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("method", "path"), NEEDS)
def test_a_client_may_what_its_scope_includes_and_no_more(method, path, scope, client, make_client):
    needed = NEEDS[method, path]
    answer = client.open(path, method=method, headers=make_client(scope).headers, json={})
    if SCOPES.index(scope) >= SCOPES.index(needed):
        assert answer.status_code in (200, 204, 400, 404)
        return
    assert answer.status_code == 403
    if method != "HEAD":
        detail = problem(answer, "forbidden", 403)["detail"]
        assert detail == f"this needs the scope {needed}, and the credential has {scope}"


def test_the_document_says_which_scope_each_route_needs(app):
    said = {}
    for path, of_path in openapi.document(app)["paths"].items():
        for method, operation in of_path.items():
            if method in ("parameters", "head") or not any("apiKey" in one for one in operation["security"]):
                continue
            bearer, api_key, _signed = operation["security"]
            assert bearer["bearer"] == api_key["apiKey"]
            (scope,) = bearer["bearer"]
            assert operation["description"].endswith(f"Scope: `{scope}`.")
            said[method.upper(), re.sub("{.+?}", ID, path)] = scope
    assert said == {(method, path): scope for (method, path), scope in NEEDS.items() if method != "HEAD"}


def test_what_is_answered_without_flask_needs_the_scope_of_its_view(app):
    for asked, fast in FAST.items():
        if fast.guard is require_api_caller:
            method, _, path = asked.partition(" ")
            assert fast.needs == NEEDS[method, path]


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_the_secret_of_a_client_is_sent_like_the_other(header, client, make_client):
    secret = make_client().secret
    headers = {header: f"bearer {secret} " if header == "Authorization" else secret}
    assert client.get("/streams", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/streams", "/nodes"])
@pytest.mark.parametrize(
    "columns", [{"revoked_at": PAST}, {"expires_at": PAST}, None], ids=["revoked", "expired", "unknown"]
)
def test_a_client_that_may_not_call_is_as_unknown_as_any(columns, path, client, make_client):
    secret = keys.mint_client_secret() if columns is None else make_client("admin", **columns).secret
    refused = problem(client.get(path, headers={"X-API-Key": secret}), "unauthorized", 401)
    assert refused == problem(client.get(path, headers={"X-API-Key": "guess"}), "unauthorized", 401)


def test_a_client_that_has_not_expired_yet_may_call(client, make_client):
    assert client.get("/streams", headers=make_client(expires_at=FUTURE).headers).status_code == 200


def test_a_client_signs_nothing(client, make_client):
    """Its secret is not kept, so nobody could check it."""
    secret = make_client("admin").secret
    problem(client.get("/streams", headers=signed(secret=secret)), "unauthorized", 401)
    problem(client.get("/streams", headers=signed(secret=secret) | {"X-API-Key": secret}), "unauthorized", 401)


def test_a_client_is_no_media_server_and_no_scraper(make_app, make_client):
    client = make_app(MEDIAMTX_CALLBACK_SECRET="call back").test_client()
    headers = make_client("admin").headers
    assert client.get("/streams", headers=headers).status_code == 200
    problem(client.get("/metrics", headers=headers), "unauthorized", 401)
    for path in CALLBACKS:
        problem(client.post(path, json={"action": "read"}, headers=headers), "unauthorized", 401)


def test_an_api_secret_of_that_form_is_the_api_secret_all_the_same(make_app):
    secret = keys.mint_client_secret()
    client = make_app(API_SECRET=secret).test_client()
    assert client.get("/api-clients", headers={"X-API-Key": secret}).status_code == 200
