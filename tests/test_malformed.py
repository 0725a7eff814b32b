"""What is no request of HTTP, or a strange one, as the whole service answers it: by a problem that quotes nothing.

Raw bytes to the service under gunicorn. What the worker does with its threads and connections is in test_worker.py.
"""

import http.client
import json
import re
import select
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from streamorch.exchange import MAX_BODY_BYTES
from tests.conftest import API_SECRET
from tests.running import Service

if not hasattr(select, "epoll"):
    pytest.skip("the worker needs epoll", allow_module_level=True)

PATIENCE = 12
# Stands wherever a client can put it, and nowhere in what comes back.
PLANTED = "planted-4711"
BEARER = f"Authorization: Bearer {API_SECRET}"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="streamorch-malformed-"))
    running = Service(folder, WEB_CONCURRENCY="1", API_THREADS="2", LOG_LEVEL="debug")
    yield running
    running.close()
    shutil.rmtree(folder, ignore_errors=True)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem that it must be."""
        assert self.headers["content-type"] == "application/problem+json", self
        assert self.headers["cache-control"] == "no-store"
        assert re.fullmatch(r"[A-Za-z0-9-]{32,}", self.headers["x-request-id"])
        body: dict[str, Any] = json.loads(self.body)
        assert body.keys() - {"errors"} == {"type", "title", "status", "detail", "instance"}
        assert body["status"] == self.status
        assert ("errors" in body) == (self.status == 400)
        return body


def ask(service: Service, sent: bytes, method: str = "GET", *, closes: bool = False) -> Answer:
    """What comes back; nothing may come behind it where the connection is to close."""
    parts = urlsplit(service.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as client:
        client.sendall(sent)
        reply = http.client.HTTPResponse(client, method=method)
        reply.begin()
        answer = Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        if closes or answer.headers["connection"] == "close":
            assert client.recv(1) == b""
        return answer


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode("latin-1") + body


CHUNKED = (BEARER, "Transfer-Encoding: chunked", "Content-Type: application/json")
POST = "POST /broadcasters HTTP/1.1"
NAMED = b'{"display_name": "x"}'
MALFORMED = {
    # name: (what is sent, status, where the fault is)
    "no version": (request(f"GET /{PLANTED}"), 400, "request line"),
    "three words too many": (request(f"GET / {PLANTED} HTTP/1.1"), 400, "request line"),
    "no word at all": (b"\r\n\r\n", 400, "request line"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400, "request line"),
    "a method in small letters": (request("get / HTTP/1.1"), 400, "request line"),
    "a method too long": (request(f"{'G' * 21} / HTTP/1.1"), 400, "request line"),
    "a method of other letters": (request("G\xdcT / HTTP/1.1"), 400, "request line"),
    "another protocol": (request("GET / SPDY/1.1"), 400, "request line"),
    "a space in the target": (request("GET /a b HTTP/1.1"), 400, "request line"),
    "a NUL in the target": (request("GET /a\x00b HTTP/1.1"), 400, "request line"),
    "no ASCII in the target": (request("GET /\xff HTTP/1.1"), 400, "request line"),
    "an asterisk to GET": (request("GET * HTTP/1.1"), 400, "request line"),
    "an authority to GET": (request(f"GET {PLANTED}.example:80 HTTP/1.1"), 400, "request line"),
    "a host with half a bracket": (request("GET http://[::1/ HTTP/1.1"), 400, "request line"),
    "HTTP/2": (request("GET / HTTP/2.0"), 505, None),
    "HTTP/0.9": (request("GET / HTTP/0.9"), 505, None),
    "HTTP/3.1": (request("GET / HTTP/3.1"), 505, None),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request line"),
    "a line too long": (request(f"GET /{PLANTED}{'x' * 5000} HTTP/1.1"), 414, None),
    "a query too long": (request(f"GET /streams?{PLANTED}={'x' * 5000} HTTP/1.1"), 414, None),
    "a line without an end": (b"GET /" + b"x" * (MAX_BODY_BYTES + 1000), 414, None),
    "a header too long": (request("GET / HTTP/1.1", f"X: {PLANTED}{'x' * 9000}"), 431, None),
    "too many headers": (request("GET / HTTP/1.1", *["X: y"] * 101), 431, None),
    "a head without an end": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 15_000, 431, None),
    "a header without a colon": (request("GET / HTTP/1.1", f"Authorization {PLANTED}"), 400, "head"),
    "a header without a name": (request("GET / HTTP/1.1", f": {PLANTED}"), 400, "head"),
    "a space before the colon": (request("GET / HTTP/1.1", f"Authorization : {PLANTED}"), 400, "head"),
    "a space in a name": (request("GET / HTTP/1.1", f"Bearer {PLANTED}: x"), 400, "head"),
    "a folded header": (request("GET / HTTP/1.1", "X: 1", f" {PLANTED}"), 400, "head"),
    "a NUL in a header": (request("GET / HTTP/1.1", f"Authorization: {PLANTED}\x00"), 400, "head"),
    "a bell in a header": (request("GET / HTTP/1.1", f"X-Request-ID: {PLANTED}\x07"), 400, "head"),
    "a bare return in a header": (request("GET / HTTP/1.1", f"X: {PLANTED}\rY: z"), 400, "head"),
    "two hosts": (request("GET / HTTP/1.1", "Host: y"), 400, "head"),
    "lines without a return": (f"GET /{PLANTED} HTTP/1.1\nHost: x\n\n".encode(), 400, "request line"),
    "one line without a return": (request("GET / HTTP/1.1", f"X: {PLANTED}\nY: z"), 400, "head"),
    "a length in words": (request(POST, BEARER, f"Content-Length: {PLANTED}"), 400, "head"),
    "a length below zero": (request(POST, BEARER, "Content-Length: -5", body=b"hello"), 400, "head"),
    "a length of another script": (request(POST, BEARER, "Content-Length: \xb2", body=b"hello"), 400, "head"),
    "two lengths": (request(POST, BEARER, "Content-Length: 5", "Content-Length: 5", body=b"hello"), 400, "head"),
    "a list of lengths": (request(POST, BEARER, "Content-Length: 5, 5", body=b"hello"), 400, "head"),
    "a length and chunks": (request(POST, *CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"), 400, "head"),
    "chunks twice": (request(POST, *CHUNKED, "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400, "head"),
    "chunks in HTTP/1.0": (request(POST.replace("1.1", "1.0"), *CHUNKED, body=b"0\r\n\r\n"), 400, "head"),
    "a coding without chunks": (request(POST, BEARER, "Transfer-Encoding: gzip"), 400, "head"),
    "a coding behind chunks": (request(POST, BEARER, "Transfer-Encoding: chunked, gzip"), 400, "head"),
    "an unknown coding": (request(POST, BEARER, f"Transfer-Encoding: {PLANTED}"), 501, None),
    "another expectation": (request(POST, BEARER, f"Expect: {PLANTED}", "Content-Length: 0"), 417, None),
    "a chunk of nonsense": (request(POST, *CHUNKED, body=b"zz\r\nhello\r\n0\r\n\r\n"), 400, "body"),
    "a chunk below zero": (request(POST, *CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"), 400, "body"),
    "a chunk without a size": (request(POST, *CHUNKED, body=b"\r\nhello\r\n0\r\n\r\n"), 400, "body"),
    "a longer chunk than it says": (request(POST, *CHUNKED, body=b"2\r\nhello\r\n0\r\n\r\n"), 400, "body"),
    "an extension that is none": (request(POST, *CHUNKED, body=b"5;=\r\nhello\r\n0\r\n\r\n"), 400, "body"),
    "a trailer that frames": (request(POST, *CHUNKED, body=b"0\r\nContent-Length: 5\r\n\r\n"), 400, "body"),
    "a trailer without a colon": (request(POST, *CHUNKED, body=f"0\r\n{PLANTED}\r\n\r\n".encode()), 400, "body"),
    "a body too large": (request(POST, BEARER, f"Content-Length: {MAX_BODY_BYTES + 1}"), 413, None),
    "a body of 20 digits": (request(POST, BEARER, f"Content-Length: {'9' * 20}"), 413, None),
    "a body of 5,000 digits": (request(POST, BEARER, f"Content-Length: {'9' * 5000}"), 400, "head"),
    "chunks too large": (request(POST, *CHUNKED, body=b"%x\r\n" % (MAX_BODY_BYTES * 3) + b"x" * 300_000), 413, None),
    "one chunk too large": (request(POST, *CHUNKED, body=b"ffffffffffffffffff\r\nx"), 413, None),
}
SLUGS = {400: "invalid-request", 413: "too-large", 414: "too-large", 417: "invalid-request", 431: "too-large"}
SLUGS |= {501: "invalid-request", 505: "invalid-request"}


@pytest.mark.parametrize(("sent", "status", "field"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_malformed_is_a_problem(sent, status, field, service):
    answer = ask(service, sent, closes=True)
    assert answer.status == status
    assert answer.problem["type"] == f"/errors/{SLUGS[status]}"
    if field:
        assert {error["field"] for error in answer.problem["errors"]} == {field}
    assert PLANTED.encode() not in answer.body


@pytest.mark.parametrize("path", ["/auth", "/webhook/ready", "/webhook/not-ready"])
@pytest.mark.parametrize("name", [name for name, (_, _, field) in MALFORMED.items() if field == "body"])
def test_a_malformed_body_is_a_problem_wherever_it_is_read(name, path, service):
    answer = ask(service, MALFORMED[name][0].replace(b"/broadcasters", path.encode()))
    assert answer.status == 400
    assert {error["field"] for error in answer.problem["errors"]} == {"body"}


# Strange, and yet right: status, and what `instance` says.
STRANGE = {
    "no path": (request("GET http://x HTTP/1.1", BEARER), 404, "/"),
    "an absolute target": (request("GET http://x/livez HTTP/1.1"), 200, None),
    "an absolute target of another host": (request("GET https://user:pass@y:1/livez?a HTTP/1.1"), 200, None),
    "an absolute target of another scheme": (request("GET ftp://y/livez HTTP/1.1"), 200, None),
    "an asterisk": (request("OPTIONS * HTTP/1.1"), 404, "/*"),
    "CONNECT": (request("CONNECT example.org:443 HTTP/1.1"), (404, 405), None),
    "TRACE": (request("TRACE /streams HTTP/1.1", BEARER), 405, "/streams"),
    "PUT": (request("PUT /streams HTTP/1.1", BEARER, "Content-Length: 0"), 405, "/streams"),
    "an unknown method": (request("BREW /streams HTTP/1.1", BEARER), 405, "/streams"),
    "an unknown method with a body": (request("BREW /auth HTTP/1.1", "Content-Length: 2", body=b"{}"), 405, "/auth"),
    "GET with a body": (request("GET /streams HTTP/1.1", BEARER, "Content-Length: 2", body=b"{}"), 200, None),
    "two slashes": (request("GET //streams HTTP/1.1", BEARER), 200, None),
    "two slashes inside": (request("GET /streams//x HTTP/1.1", BEARER), 404, "/streams//x"),
    "a host in the path": (request("GET //evil.example/streams HTTP/1.1", BEARER), 404, "/evil.example/streams"),
    "a slash behind": (request("GET /streams/ HTTP/1.1", BEARER), 404, "/streams/"),
    "a coded slash": (request("GET /streams%2Fx HTTP/1.1", BEARER), 400, "/streams/x"),
    "dots": (request("GET /streams/../livez HTTP/1.1", BEARER), 404, "/streams/../livez"),
    "coded dots": (request("GET /streams/%2e%2e HTTP/1.1", BEARER), 400, "/streams/.."),
    "a coded NUL": (request("GET /%00 HTTP/1.1", BEARER), 404, "/\x00"),
    "a coded line": (request("GET /%0d%0aX:%20y HTTP/1.1", BEARER), 404, "/\r\nX: y"),
    "a coded surrogate": (request("GET /%ED%A0%80 HTTP/1.1", BEARER), 404, "/\ufffd\ufffd\ufffd"),
    "no UTF-8": (request("GET /%FF HTTP/1.1", BEARER), 404, "/\ufffd"),
    "half an escape": (request("GET /%zz%a HTTP/1.1", BEARER), 404, "/%zz%a"),
    "a fragment": (request("GET /livez#x HTTP/1.1"), 200, None),
    "a question mark alone": (request("GET /livez? HTTP/1.1"), 200, None),
    "a query of the list": (request("GET /streams?status=%ED%A0%80 HTTP/1.1", BEARER), 400, "/streams"),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", 200, None),
    "an empty host": (b"GET /broadcasters HTTP/1.1\r\nHost:\r\n" + BEARER.encode() + b"\r\n\r\n", 200, None),
    "a host that is none": (b"GET /livez HTTP/1.1\r\nHost: a b/c@d\r\n\r\n", (200, 400), None),
    "a host of other letters": (b"GET /livez HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", (200, 400), None),
    "a host too long": (b"GET /livez HTTP/1.1\r\nHost: " + b"x" * 4000 + b"\r\n\r\n", (200, 400, 404), None),
    "headers of all bytes": (
        request(
            "GET /streams HTTP/1.1", BEARER, "X: " + bytes([9, *range(32, 127), *range(128, 256)]).decode("latin-1")
        ),
        200,
        None,
    ),
    "a forwarded nonsense": (
        request("GET /livez HTTP/1.1", "X-Forwarded-For: \xff", "X-Forwarded-Host: [", "X-Forwarded-Prefix: \xff//"),
        200,
        None,
    ),
    "a name with an underscore": (request("GET /livez HTTP/1.1", "SCRIPT_NAME: /x", "X_Y: z"), 200, None),
    "upgrades": (request("GET /livez HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: x"), 200, None),
    "100 headers": (request("GET /livez HTTP/1.1", *[f"X-{number}: y" for number in range(99)]), 200, None),
    "a line of 4094": (request(f"GET /livez?{'x' * (4094 - 20)} HTTP/1.1"), 200, None),
    "a header of 8190": (request("GET /livez HTTP/1.1", "X: " + "y" * (8190 - 5)), 200, None),
    "chunks": (request(POST, *CHUNKED, body=b"%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(NAMED), NAMED)), 201, None),
    "HTTP/1.0": (b"GET /streams HTTP/1.0\r\n" + BEARER.encode() + b"\r\n\r\n", 200, None),
}


@pytest.mark.parametrize(("sent", "status", "instance"), STRANGE.values(), ids=STRANGE.keys())
def test_what_is_strange_is_answered(sent, status, instance, service):
    answer = ask(service, sent)
    assert answer.status in ((status,) if isinstance(status, int) else status)
    if answer.status >= 400:
        told = answer.problem["instance"]
        assert instance is None or told == instance


@pytest.mark.parametrize("path", ["/streams", "/broadcasters", "/nowhere", "/auth", "/livez"])
def test_head_is_get_without_its_body(path, service):
    got = ask(service, request(f"GET {path} HTTP/1.1", BEARER))
    head = ask(service, request(f"HEAD {path} HTTP/1.1", BEARER), method="HEAD")
    assert (head.status, head.body) == (got.status, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("line", ["GET /broadcasters?limit=x HTTP/1.1", "GET / HTTP/2.0", "GET /nowhere HTTP/1.1"])
def test_each_refusal_has_an_id_of_its_own(line, service):
    first, second = (ask(service, request(line, BEARER)).headers["x-request-id"] for _ in range(2))
    assert first != second


def test_nothing_of_it_was_unforeseen(service):
    """All of the above again, and then the log: no traceback, no word of what was sent, one line for each refusal."""
    before = len(service.log.read_text())
    for sent, *_ in (*MALFORMED.values(), *STRANGE.values()):
        ask(service, sent)
    said = service.log.read_text()[before:]
    assert "unforeseen" not in said
    assert "Traceback" not in said
    assert "was not stored" not in said
    assert PLANTED not in said.replace(f"/{PLANTED}", "")  # a path is told: it is no secret
    lines = [json.loads(line) for line in said.splitlines()]
    refused = [line for line in lines if line["message"] == "no request of HTTP"]
    assert len(refused) == sum(field != "body" and status != 413 for _, status, field in MALFORMED.values())
    assert all(line["level"] == "info" and line["request_id"] for line in refused)
