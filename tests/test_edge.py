"""The edges of every request: proxies, request id, origins, limits, errors of any kind, log lines."""

import io
import json
import logging
import re

import flask
import pytest

from streamorch import keys
from tests.blueprints import debugging, logged, problem
from tests.conftest import API_SECRET

ORIGIN = "https://viewer.example.org"
BEARER = {"Authorization": f"Bearer {API_SECRET}"}

pytestmark = pytest.mark.usefixtures("lane")


@pytest.fixture
def database_url():
    """None: what stands here never asks a database."""
    return "postgresql:///none?host=/nowhere"


# --- request id ---


@pytest.mark.parametrize("given", ["a", "8f2c-1.2_3:4/5+6=7@x", "x" * 128])
def test_a_sane_request_id_is_taken_and_echoed(given, client):
    assert client.get("/livez", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    assert client.get("/nowhere", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a;b", "<script>", "ü", keys.mint(), f"a/{keys.mint()}"])
def test_another_request_id_is_made(given, client):
    headers = {} if given is None else {"X-Request-ID": given}
    first, second = (client.get("/livez", headers=headers).headers["X-Request-ID"] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


# --- CORS ---


def test_without_origins_no_page_may_read(client):
    answer = client.get("/livez", headers={"Origin": ORIGIN})
    assert not [name for name in dict(answer.headers) if name.startswith("Access-Control")]
    answer = client.options("/streams", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "GET"})
    assert not [name for name in dict(answer.headers) if name.startswith("Access-Control")]


@pytest.mark.parametrize("origins", [ORIGIN, f"http://localhost:3000, {ORIGIN}", "*"])
def test_a_page_of_an_allowed_origin_may_read_every_answer(origins, make_app):
    client = make_app(CORS_ORIGINS=origins).test_client()
    for path, status in (("/livez", 200), ("/nowhere", 404), ("/streams", 401), ("/health", 503)):
        answer = client.get(path, headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= {"ETag", "X-Request-ID", "Retry-After"}
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    "origin", ["https://other.example.org", "http://viewer.example.org", f"{ORIGIN}:8443", "null", None]
)
def test_a_page_of_another_origin_may_not(origin, make_app):
    client = make_app(CORS_ORIGINS=ORIGIN).test_client()
    headers = {"Access-Control-Request-Method": "GET"} | ({"Origin": origin} if origin else {})
    for answer in (client.get("/livez", headers=headers), client.options("/streams", headers=headers)):
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/streams", "/stream-keys/x", "/broadcasters", "/auth"])
def test_a_preflight_needs_no_credential(method, path, make_app):
    client = make_app(CORS_ORIGINS=ORIGIN, MEDIAMTX_CALLBACK_SECRET="x").test_client()
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, if-none-match",
    }
    answer = client.options(path, headers=headers)
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = {name.lower() for name in answer.headers["Access-Control-Allow-Headers"].split(", ")}
    assert allowed >= {"authorization", "x-api-key", "x-signature", "x-timestamp", "content-type", "if-none-match"}
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "X-Request-ID" in answer.headers


def test_a_preflight_of_no_route_is_not_found(make_app):
    client = make_app(CORS_ORIGINS=ORIGIN).test_client()
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    problem(client.options("/nowhere", headers=headers), "not-found", 404)


def test_options_without_a_question_is_no_preflight(make_app):
    client = make_app(CORS_ORIGINS=ORIGIN).test_client()
    problem(client.options("/streams", headers={"Origin": ORIGIN}), "unauthorized", 401)
    assert "GET" in client.options("/streams", headers=BEARER).headers["Allow"]


@pytest.mark.parametrize("path", ["/console", "/console/live", "/console/sign-in", "/console/nowhere"])
def test_no_other_origin_has_the_console(path, make_app):
    client = make_app(CORS_ORIGINS="*").test_client()
    asked = client.get(path, headers={"Origin": ORIGIN})
    before = client.options(path, headers={"Origin": ORIGIN, "Access-Control-Request-Method": "GET"})
    for answer in (asked, before):
        assert not [name for name in answer.headers.keys() if name.startswith("Access-Control-")]  # noqa: SIM118
    assert "Access-Control-Allow-Origin" in client.get("/consoles", headers={"Origin": ORIGIN}).headers


# --- proxies ---

FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "api.example.org",
    "X-Forwarded-Prefix": "/video",
}


@pytest.mark.parametrize(
    ("trusted", "peer", "client_address", "url"),
    [
        ("", "127.0.0.1", "127.0.0.1", "http://localhost/where"),
        ("10.0.0.0/8", "127.0.0.1", "127.0.0.1", "http://localhost/where"),
        ("10.0.0.0/8", "not an address", "not an address", "http://localhost/where"),
        ("10.0.0.0/8, 127.0.0.1", "127.0.0.1", "203.0.113.9", "https://api.example.org/video/where"),
        ("127.0.0.0/8", "127.0.0.1", "203.0.113.9", "https://api.example.org/video/where"),
        ("::1", "::1", "203.0.113.9", "https://api.example.org/video/where"),
        ("fd00::/8", "fd12::1", "203.0.113.9", "https://api.example.org/video/where"),
        ("fd00::/8", "10.0.0.1", "10.0.0.1", "http://localhost/where"),
    ],
)
def test_forwarded_headers_count_only_from_trusted_proxies(trusted, peer, client_address, url, capsys, make_app):
    app = make_app(TRUSTED_PROXIES=trusted)
    app.add_url_rule("/where", view_func=lambda: flask.request.base_url)
    answer = app.test_client().get("/where", headers=FORWARDED, environ_overrides={"REMOTE_ADDR": peer})
    assert answer.text == url
    (line,) = logged(capsys)
    assert line["client"] == client_address


def test_of_several_forwarders_the_nearest_counts(capsys, make_app):
    app = make_app(TRUSTED_PROXIES="127.0.0.1")
    app.test_client().get("/nowhere", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.9"})
    assert logged(capsys)[0]["client"] == "203.0.113.9"


# --- every error is a problem ---


@pytest.mark.parametrize("path", ["/", "/nowhere", "/webhook", "/streams/a/b", "/error", "/errors/", "/auth/x", "/%00"])
def test_an_unknown_route_is_not_found(path, client):
    body = problem(client.get(path), "not-found", 404)
    assert body["instance"].startswith("/")


SLASHES = [
    "/auth/",
    "//auth",
    "/webhook/ready/",
    "/webhook//ready",
    "/streams/",
    "//streams",
    "/streams//",
    "/streams/00000000-0000-4000-8000-000000000000/",
    "/stream-keys/",
    "/broadcasters/",
    "/livez/",
    "/health/",
    "/readyz/",
]


@pytest.mark.parametrize("path", SLASHES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_redirects(path, method, client):
    answer = client.open(base_url="http://localhost", path=path, method=method, headers=BEARER, json={})
    problem(answer, "not-found", 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/auth", {"POST", "OPTIONS"}),
        ("PUT", "/auth", {"POST", "OPTIONS"}),
        ("GET", "/webhook/ready", {"POST", "OPTIONS"}),
        ("POST", "/streams", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/streams/x", {"GET", "HEAD", "OPTIONS", "PATCH", "DELETE"}),
        ("DELETE", "/broadcasters", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("POST", "/livez", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_method_that_a_route_does_not_know_is_told_those_it_knows(method, path, allowed, client):
    answer = client.open(path, method=method, headers=BEARER)
    problem(answer, "method-not-allowed", 405)
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_a_body_that_is_too_large_is_refused_wherever_it_goes(client):
    body = b" " * 65537
    for method, path in (
        ("POST", "/auth"),
        ("POST", "/webhook/ready"),
        ("POST", "/broadcasters"),
        ("PATCH", "/streams/x"),
    ):
        path = path.replace("x", "00000000-0000-4000-8000-000000000000") if path == "/streams/x" else path
        problem(client.open(path, method=method, data=body, headers=BEARER), "too-large", 413)
    signed = {"X-Signature": "00", "X-API-Key": "x", "X-Timestamp": "1"}
    problem(client.post("/broadcasters", data=body, headers=signed), "too-large", 413)


def test_a_body_of_unknown_length_is_too_large_as_well(client):
    answer = client.post(
        "/auth",
        input_stream=io.BytesIO(b" " * 65537),
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    problem(answer, "too-large", 413)


def test_the_instance_is_the_path_without_its_query_and_without_a_key(client):
    value = keys.mint()
    answer = client.get(f"/x/{value}?pass={value}&secret=hush")
    assert problem(answer, "not-found", 404)["instance"] == "/x/sk_[redacted]"
    assert value not in answer.text
    assert "hush" not in answer.text


def test_a_problem_is_stored_by_no_cache(client):
    assert client.get("/nowhere").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("raised", "slug", "status"),
    [
        (400, "invalid-request", 400),
        (401, "unauthorized", 401),
        (403, "forbidden", 403),
        (409, "conflict", 409),
        (415, "unsupported-media-type", 415),
        (418, "invalid-request", 400),
        (429, "rate-limited", 429),
        (501, "internal-error", 500),
        (503, "internal-error", 500),
    ],
)
def test_what_the_framework_raises_is_a_problem(raised, slug, status, app):
    app.add_url_rule("/raise", view_func=lambda: flask.abort(raised))
    problem(app.test_client().get("/raise"), slug, status)


def test_an_answer_that_somebody_raised_is_given(app):
    app.add_url_rule("/raise", view_func=lambda: flask.abort(flask.redirect("/elsewhere")))
    assert app.test_client().get("/raise").headers["Location"] == "/elsewhere"


@pytest.mark.parametrize("level", ["info", "error"])
def test_an_unforeseen_error_is_told_without_details_and_logged_once(level, capsys, make_app):
    app = make_app(LOG_LEVEL=level)
    value = keys.mint()

    def crash():
        raise RuntimeError(f"the details: {value}")

    app.add_url_rule("/crash", view_func=crash)
    answer = app.test_client().get("/crash?secret=hush", headers={"X-Request-ID": "request-7"})
    problem(answer, "internal-error", 500)
    assert "details" not in answer.text
    assert answer.headers["X-Request-ID"] == "request-7"
    log = capsys.readouterr().err
    assert value not in log
    assert "hush" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    (told,) = [line for line in lines if "traceback" in line]
    assert (told["level"], told["request_id"]) == ("error", "request-7")
    assert "RuntimeError: the details: sk_[redacted]" in told["traceback"]
    assert len(lines) == (2 if level == "info" else 1)  # and the access line


# --- the access line ---


def test_a_request_is_one_line(capsys, make_app):
    client = make_app().test_client()
    client.get("/nowhere?pass=hush", headers={"X-Request-ID": "request-7", "Authorization": "Bearer hush"})
    (line,) = logged(capsys)
    assert line.keys() == {
        "time",
        "level",
        "logger",
        "message",
        "request_id",
        "status",
        "milliseconds",
        "client",
        "problem",
    }
    assert (line["message"], line["status"], line["problem"]) == ("GET /nowhere 404", 404, "not-found")
    assert (line["level"], line["logger"], line["request_id"]) == ("info", "streamorch.access", "request-7")
    assert (line["client"], line["milliseconds"] >= 0) == ("127.0.0.1", True)
    assert "hush" not in json.dumps(line)


@pytest.mark.parametrize("shape", ["/{}", "/x/{}/y", "/" + "x" * 495 + "/{}", "/" + "x" * 511 + "/{}"])
def test_a_key_in_a_path_is_redacted_and_a_long_path_cut(shape, capsys, make_app):
    value = keys.mint()
    make_app().test_client().get(shape.format(value))
    (line,) = logged(capsys)
    assert value[:10] not in json.dumps(line)
    assert len(line["message"]) < 550


def test_a_path_with_a_line_break_stays_one_line(capsys, make_app):
    make_app().test_client().get('/a%0A{"level":"error"}%0Ab%1B[31m')
    assert len(logged(capsys)) == 1


@pytest.mark.parametrize(
    "path",
    ["/livez", "/health", "/readyz", "/streams", "/auth", "/console/live", "/console/now/x", "/console/system/state"],
)
def test_what_is_asked_often_is_told_to_who_debugs(path, capsys, make_app):
    def told(app):
        capsys.readouterr()
        app.test_client().open(path, method="POST" if path == "/auth" else "GET")
        return [line["level"] for line in logged(capsys) if line["logger"] == "streamorch.access"]

    is_failure = path in ("/health", "/readyz")  # 503: there is no database
    assert told(make_app()) == (["info"] if is_failure else [])
    assert told(debugging(make_app)) == (["info"] if is_failure else ["debug"])


def test_a_log_level_without_access_lines_costs_none(capsys, make_app):
    make_app(LOG_LEVEL="warning").test_client().get("/nowhere")
    assert logged(capsys) == []
    assert logging.getLogger("streamorch.access").isEnabledFor(logging.INFO) is False
