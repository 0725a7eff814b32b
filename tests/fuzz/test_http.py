"""Where one request ends and the next begins: never elsewhere than gunicorn's parser says of the whole connection.

The worker looks for the end of a request before it hands it to that parser (`worker.is_whole`). Were the two of other
minds, a body could become a request of its own, which no proxy in front has seen.
"""

import itertools
import select
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

if not hasattr(select, "epoll"):
    pytest.skip("the worker needs epoll", allow_module_level=True)

from gunicorn import http
from gunicorn.config import Config

from streamorch.exchange import MAX_BODY_BYTES
from tests.fuzz import budget
from tests.test_worker import SOUP, Client, CutOffError, Server, chunked, get, post

EVIL = b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
RIGHT = [
    get("/hello"),
    post("/echo", b"hello"),
    post("/echo", EVIL),
    post("/unread", EVIL),
    chunked("/echo", b"hello", EVIL),
    chunked("/unread", EVIL, trailer=b"X: y\r\n"),
    post("/echo", b"0\r\n\r\n" + EVIL, "Expect: 100-continue"),
    get("/hello", "Connection: close"),
    get("/hello", version="1.0"),
]
INTO_HEADS = [each for each in SOUP if each.endswith(b"\n") and b":" in each] + [
    b"Content-Length: 5\nX: y\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5,5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length:\x0b5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: chunked;q=1\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding\t: chunked\r\n",
    b"transfer_encoding: chunked\r\n",
    b"X: y\r\n Transfer-Encoding: chunked\r\n",
    b"X: y\rTransfer-Encoding: chunked\r\n",
    b"Connection: close, keep-alive\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"\n",
    b"\n\r\n",
]
INTO_BODIES = [
    b"0\r\n\r\n",
    b"5\r\n",
    b"-1\r\n",
    b"0x5\r\n",
    b"5;a\nb\r\n",
    b"\r\n",
    b"\n",
    b"00000000000000000005\r\n",
    EVIL,
    b"0",
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One that is right, or wrong in a place or two."""
    request: bytes = draw(st.sampled_from(RIGHT))
    for _ in range(draw(st.integers(0, 2))):
        head, end, body = request.partition(b"\r\n\r\n")
        what = draw(st.sampled_from(["head", "head", "body", "cut", "lf", "repeat", "version"]))
        if what == "head":
            lines = head.split(b"\r\n")
            at = draw(st.integers(1, len(lines)))
            put = draw(st.sampled_from(INTO_HEADS))
            rest = b"\r\n".join(lines[at:])
            request = b"\r\n".join(lines[:at]) + b"\r\n" + put + rest + (end if rest else b"\r\n") + body
        elif what == "body":
            at = draw(st.integers(0, len(body)))
            request = head + end + body[:at] + draw(st.sampled_from(INTO_BODIES)) + body[at:]
        elif what == "cut":
            at = draw(st.integers(0, len(request)))
            request = request[:at] + request[at + draw(st.integers(1, 4)) :]
        elif what == "lf":
            request = request.replace(b"\r\n", b"\n", draw(st.integers(1, 3)))
        elif what == "repeat":
            lines = head.split(b"\r\n")
            request = b"\r\n".join([*lines, draw(st.sampled_from(lines))]) + end + body
        else:
            request = request.replace(
                b"HTTP/1.1", draw(st.sampled_from([b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.1 ", b"http/1.1"])), 1
            )
    return request


def understood(sent: bytes) -> tuple[list[bytes], bool]:
    """What the application answers to each request that gunicorn's parser finds, and whether it found all right."""
    answers: list[bytes] = []
    parser = http.get_parser(Config(), iter([sent]), ("127.0.0.1", 1))
    try:
        for request in parser:
            if request.path == "/echo":
                answers.append(request.body.read())
            else:  # answered without a look at its body, and then that may be wrong
                answers.append(b"unread" if request.path == "/unread" else f"{request.method} {request.uri}".encode())
                request.body.read()
            if request.should_close():
                return answers, True
    except (http.errors.ParseException, http.errors.NoMoreData, StopIteration):
        return answers, False
    return answers, True


def answered(server: Server, pieces: list[bytes]) -> list[bytes]:
    """The bodies of all answers that let something in."""
    bodies: list[bytes] = []
    client = server.connect()
    try:
        with suppress(ConnectionError):
            for piece in pieces:
                client.send(piece)
            client.socket.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError, CutOffError):
            while True:
                answer = next_answer(client)
                if answer is not None:
                    bodies.append(answer)
    finally:
        client.close()
    return bodies


def next_answer(client: Client) -> bytes | None:
    """None of one that is no 200: a 100, or a refusal."""
    if client.file.peek(12)[9:12] == b"100":
        client.head()
        return None
    answer = client.answer()
    return answer.body if answer.status == 200 else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("fuzzed"))
    yield started
    started.kill()


@budget(400)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(1, 400), max_size=3))
def test_no_request_is_seen_that_the_parser_does_not_see(server, each, places):
    sent = b"".join(each)
    assert len(sent) < MAX_BODY_BYTES
    cuts = sorted({0, len(sent), *(place for place in places if place < len(sent))})
    pieces = [sent[begin:end] for begin, end in itertools.pairwise(cuts)]
    expected, is_right = understood(sent)
    found = answered(server, pieces)
    assert found == expected[: len(found)]
    assert not is_right or found == expected


def test_what_was_fuzzed_was_not_only_refused(server):
    """The comparison sees both: what is right, and a request behind it."""
    sent = b"".join(RIGHT[:6])
    expected, is_right = understood(sent)
    assert is_right
    assert len(expected) == 6
    assert answered(server, [sent[:50], sent[50:]]) == expected
