"""What is asked most is answered without Flask: by the same functions, and to the letter as Flask's views answer it."""

import http
import io
import uuid
from typing import Any

import flask
import pytest
from werkzeug.exceptions import RequestEntityTooLarge

from streamorch import app as application
from streamorch import keys
from streamorch.exchange import MAX_BODY_BYTES, BrokenBody, Reply, Request
from tests.blueprints import FUTURE, PAST
from tests.conftest import API_SECRET

BEARER = {"Authorization": f"Bearer {API_SECRET}"}
ORIGIN = "https://viewer.example.org"


@pytest.fixture
def lanes(make_app, monkeypatch):
    """The same application twice: with the fast lane, and with Flask's views alone."""

    def make(**environ):
        fast = make_app(**environ)
        with monkeypatch.context() as without:
            without.setattr(application, "FAST", {})
            slow = make_app(**environ)
        return fast.test_client(), slow.test_client()

    return make


def told(answer):
    """All that means something to a client: not the order of headers, the request id or the reason phrase."""
    headers = sorted((name, value) for name, value in answer.headers if name != "X-Request-ID")
    return answer.status_code, headers, answer.data


def question(secret="", **members):
    known = {"action": "publish", "path": "live/cam7", "protocol": "rtmp", "id": str(uuid.uuid4()), "password": secret}
    return {"json": known | members}


REQUESTS = {
    "a read": ("POST", "/auth", question(action="read")),
    "a node by its name": ("POST", "/auth?node=default", question(action="read")),
    "another node": ("POST", "/auth?node=other", question(action="read")),
    "no key": ("POST", "/auth", question()),
    "an unknown key": ("POST", "/auth", question(keys.mint())),
    "an operation": ("POST", "/auth", question(action="metrics")),
    "an empty id": ("POST", "/auth", question(keys.mint(), id="")),
    "no JSON": ("POST", "/auth", {"data": b"{"}),
    "no body": ("POST", "/auth", {}),
    "a large body": ("POST", "/auth", {"data": b"x" * (MAX_BODY_BYTES + 1)}),
    "another method": ("GET", "/auth", {}),
    "another path": ("POST", "/auth/", question(action="read")),
    "the list": ("GET", "/streams", {"headers": BEARER}),
    "the list with a parameter": ("GET", "/streams?status=active", {"headers": BEARER}),
    "the list unchanged": ("GET", "/streams", {"headers": BEARER | {"If-None-Match": "*"}}),
    "the list without a credential": ("GET", "/streams", {}),
    "the list of a page": ("GET", "/streams", {"headers": BEARER | {"Origin": ORIGIN}}),
    "the head of the list": ("HEAD", "/streams", {"headers": BEARER}),
    "a preflight": ("OPTIONS", "/streams", {"headers": {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}}),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("environ", [{}, {"CORS_ORIGINS": ORIGIN, "MEDIAMTX_CALLBACK_SECRET": "x"}], ids=["", "strict"])
def test_both_lanes_say_the_same(name, environ, lanes):
    method, path, more = REQUESTS[name]
    fast, slow = (told(client.open(path, method=method, **more)) for client in lanes(**environ))
    assert fast == slow


@pytest.mark.parametrize("columns", [{}, {"scope": "admin"}, {"revoked_at": PAST}, {"expires_at": FUTURE}], ids=str)
def test_both_lanes_say_the_same_to_an_api_client(columns, lanes, make_client):
    one = make_client(**columns)
    clients = lanes()
    for more in ({}, {"If-None-Match": "*"}):
        fast, slow = (told(client.get("/streams", headers=one.headers | more)) for client in clients)
        assert fast == slow
        assert (fast[0] == 401) == ("revoked_at" in columns)


def test_both_lanes_say_the_same_without_a_database(lanes):
    for client in (clients := lanes()):
        client.application.extensions["streamorch"].database.close()
    for method, path, more in (REQUESTS["an unknown key"], REQUESTS["the list"]):
        fast, slow = (told(client.open(path, method=method, **more)) for client in clients)
        assert fast == slow
        assert fast[0] == 503


def test_what_is_asked_most_wakes_no_flask(lanes, monkeypatch):
    fast, slow = lanes()
    monkeypatch.setattr(flask.Flask, "full_dispatch_request", lambda app: pytest.fail("Flask was asked"))
    for name in ("a read", "a node by its name", "an unknown key", "the list", "the list unchanged"):
        method, path, more = REQUESTS[name]
        assert fast.open(path, method=method, **more).status_code in (200, 304, 401)
    with pytest.raises(pytest.fail.Exception):
        slow.open("/auth", method="POST", **question(action="read"))


def test_what_is_unforeseen_is_a_logged_problem(make_app, monkeypatch, capsys):
    def fail(request, of):
        raise ZeroDivisionError("planted")

    broken = application.FAST["POST /auth"]._replace(answer=fail)
    monkeypatch.setitem(application.FAST, "POST /auth", broken)
    answer = make_app().test_client().post("/auth", **question(action="read"))
    assert answer.status_code == 500
    assert answer.json["type"] == "/errors/internal-error"
    told = capsys.readouterr().err
    assert "planted" in told
    assert answer.headers["X-Request-ID"] in told


# --- the request and the reply themselves ---


def environ_of(body=b"", **more):
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/auth", "wsgi.input": io.BytesIO(body)}
    return environ | {"CONTENT_LENGTH": str(len(body))} | more


def test_a_body_is_read_once_and_kept():
    request = Request(environ_of(b"abc"))
    assert [request.body(), request.body()] == [b"abc", b"abc"]


def test_a_body_of_the_whole_length_is_read_and_one_byte_more_is_not():
    assert len(Request(environ_of(b"x" * MAX_BODY_BYTES)).body()) == MAX_BODY_BYTES
    chunked = {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    assert len(Request(environ_of(b"x" * MAX_BODY_BYTES, **chunked)).body()) == MAX_BODY_BYTES
    for more in ({}, chunked):
        with pytest.raises(RequestEntityTooLarge):
            Request(environ_of(b"x" * (MAX_BODY_BYTES + 1), **more)).body()


def test_a_body_that_ends_early_is_no_body():
    with pytest.raises(BrokenBody):
        Request(environ_of(b"abc", CONTENT_LENGTH="4")).body()


def test_a_body_without_a_length_is_read_only_where_its_end_is_marked():
    assert Request(environ_of(b"abc", CONTENT_LENGTH="")).body() == b""
    assert Request(environ_of(b"abc", CONTENT_LENGTH="", **{"wsgi.input_terminated": True})).body() == b"abc"


def test_the_path_is_decoded_as_utf_8():
    assert Request({"PATH_INFO": "/str\xc3\xb6me"}).path == "/ströme"
    assert Request({"PATH_INFO": "//a\xff"}).path == "/a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("query", "value"),
    [("", ""), ("a=1", ""), ("node=x&node=y", "x"), ("node=a%20b", "a b"), ("node=", ""), ("node", "")],
)
def test_a_parameter_is_the_first_of_its_name(query, value):
    assert Request({"QUERY_STRING": query}).parameter("node") == value


@pytest.mark.parametrize("status", [200, 204, 304, 401, 503])
def test_a_reply_tells_its_length_where_a_body_may_be(status):
    said = []

    def start_response(*args: Any) -> Any:
        said.append(args)

    body = Reply(status, b"abc", (("A", "b"),)).send(start_response, [("C", "d")])
    line, headers = said[0]
    assert line == f"{status} {http.HTTPStatus(status).phrase}"
    empty = status in (204, 304)
    assert b"".join(body) == (b"" if empty else b"abc")
    assert headers == [("A", "b"), ("C", "d")] + ([] if empty else [("Content-Length", "3")])
