"""The worker of gunicorn, as clients of every kind meet it: real processes, and raw sockets that speak as they like."""

import errno
import itertools
import json
import logging
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.running import ROOT, free_port

if not hasattr(select, "epoll"):
    pytest.skip("the worker needs epoll", allow_module_level=True)

from gunicorn import http
from gunicorn.config import Config

from streamorch.exchange import MAX_BODY_BYTES
from streamorch.worker import Worker, is_whole
from tests.worker_app import LARGE

PATIENCE = 12
# "At once": far less than any time after which the worker would let go of a client, or a thread would give up.
SOON = 2.0
CROWD = 30
THREADS = 2
CHANCE = random.Random(27)  # noqa: S311  # nobody has to be unable to guess it

GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(path: str, *pieces: bytes, trailer: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]).encode()


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class CutOffError(Exception):
    pass


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers["connection"] == "close"


class Client:
    """One connection."""

    def __init__(self, port: int, host: str = "127.0.0.1"):
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.file = self.socket.makefile("rb")

    def send(self, *data: bytes) -> "Client":
        for each in data:
            self.socket.sendall(each)
        return self

    def line(self) -> bytes:
        return self.file.readline().rstrip(b"\r\n")

    def head(self) -> tuple[int, dict[str, str]]:
        first = self.line()
        if not first:
            raise ConnectionResetError("closed without an answer")
        lines = iter(self.line, b"")
        headers = dict(line.decode().lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers

    def answer(self, *, is_head: bool = False) -> Answer:
        status, headers = self.head()
        if is_head or status in (204, 304):
            body = b""
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body = self.file.read(length)
            if len(body) < length:
                raise CutOffError(f"after {len(body)} of {length} bytes")
        elif "transfer-encoding" in headers:
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.file.read()
        return Answer(status, headers, body)

    def _chunk(self) -> bytes:
        size = int(self.line(), 16)
        data = self.file.read(size)
        assert self.line() == b""
        return data

    def ask(self, *data: bytes) -> Answer:
        return self.send(*data).answer()

    def is_closed(self) -> bool:
        """Nothing more comes, and soon."""
        self.socket.settimeout(SOON)
        try:
            return self.file.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def reset(self) -> None:
        """Away without a word: RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


class Server:
    """gunicorn with one such worker."""

    def __init__(self, folder: Path, *options: str, host: str = "127.0.0.1", listener: socket.socket | None = None):
        self.host, self.port = host, listener.getsockname()[1] if listener else free_port()
        self.log = folder / "log"
        given = ["--threads", str(THREADS), "--keep-alive", "5", "--graceful-timeout", "10", *options]
        bind = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        if listener:
            bind = f"fd://{listener.fileno()}"
        command = [sys.executable, "-m", "gunicorn", "--config", os.devnull, "--no-control-socket", "--bind", bind]
        command += ["--worker-class", "streamorch.worker.Worker", "--workers", "1", *given, "tests.worker_app:app"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                pass_fds=[listener.fileno()] if listener else [],
            )
        try:
            wait_until(self.is_up)
        except AssertionError:
            self.kill()
            pytest.fail(self.log.read_text())

    def is_up(self) -> bool:
        with suppress(OSError):
            client = self.connect()
            try:
                return client.ask(get("/hello", "Connection: close")).status == 200
            finally:
                client.close()
        return False

    def connect(self) -> Client:
        return Client(self.port, self.host)

    def ask(self, *data: bytes) -> Answer:
        """From somebody who comes anew."""
        client = self.connect()
        try:
            return client.ask(*data)
        finally:
            client.close()

    def inside(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.ask(get("/inside", "Connection: close")).body)
        return told

    def quiet(self) -> dict[str, Any]:
        """The same, when nobody but who asks is connected any more."""
        deadline = time.monotonic() + 8
        while (told := self.inside())["connections"] > 1 or told["waiting"]:
            assert time.monotonic() < deadline, f"{told['connections'] - 1} connections are left"
            time.sleep(0.02)
        return told

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]

    def wait_until_gone(self, worker: int) -> None:
        wait_until(lambda: worker not in self.workers())

    def cpu_seconds(self) -> float:
        """Of the worker alone."""
        (worker,) = self.workers()
        ticks = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def seconds_to_end(self, number: int = signal.SIGTERM) -> float:
        begun = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 0
        return time.monotonic() - begun

    def kill(self) -> None:
        """All of its session, if there is something left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Servers that a test may stop."""
    started: list[Server] = []

    def start_one(*options: str, **more: Any) -> Server:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Server(folder, *options, **more))
        return started[-1]

    yield start_one
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("worker"))
    yield server
    server.kill()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """Closed at the end of the test."""
    known: list[Client] = []
    yield known
    for client in known:
        client.close()


@pytest.fixture
def connect(clients: list[Client], shared: Server) -> Callable[..., Client]:
    def connect_to(server: Server = shared) -> Client:
        clients.append(server.connect())
        return clients[-1]

    return connect_to


@pytest.fixture
def server(shared: Server, clients: list[Client]) -> Iterator[Server]:
    """The one that most tests share. It has all its threads afterwards, and nothing of this test's clients."""
    before = shared.quiet()
    yield shared
    for client in clients:
        client.close()
    assert all_threads_serve(shared)
    after = shared.quiet()
    for name in ("pid", "threads", "files"):
        assert after[name] == before[name]


def at_once(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Called in as many threads as the worker has."""
    results: list[Any] = []
    callers = [threading.Thread(target=lambda: results.append(function(*arguments))) for _ in range(THREADS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    return results


def all_threads_serve(server: Server) -> bool:
    """Two requests that are answered only together."""
    return [answer.body for answer in at_once(server.ask, get("/meet", "Connection: close"))] == [b"met"] * THREADS


def assert_answers_soon(server: Server) -> None:
    for _ in range(3):
        begun = time.monotonic()
        assert server.ask(GET).status == 200
        assert time.monotonic() - begun < SOON


# --- one client costs no other anything ---

TINY_CHUNKS = b"1\r\nx\r\n" * (2 * MAX_BODY_BYTES // 6 + 100)
CROWDS = {
    "are silent": b"",
    "sent half a head": GET[:20],
    "sent half a body": post("/echo", b"x" * 1000)[:-500],
    "sent half a chunk": chunked("/echo", b"x" * 1000)[:-500],
    "sent what looks like the last chunk": chunked("/echo", b"\r\n0\r\n\r\n" * 10)[:-20],
    "wait for 100 Continue": post("/echo", b"x" * 10, "Expect: 100-continue")[:-10],
    "sent a head without an end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 15_000,
    "sent a line without an end": b"GET /" + b"x" * (MAX_BODY_BYTES + 100),
    "say HTTP/1.1 very often": b"POST /echo HTTP/1.1\r\n" + b"HTTP/1.1\r\n" * 6000 + b"Content-Length: 5\r\n\r\n",
    "announced a body too large": b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\nx",
    "announced a body of 9 GB": b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\nx",
    "sent chunks without an end": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + TINY_CHUNKS,
    "wait for the rest of an encoding that is none": b"POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nxx",
    "read slowly": get("/large"),
    "read slowly, and ask on": get("/large") * 20,
    "read slowly what comes in pieces": get("/pieces"),
}


@pytest.mark.parametrize("sent", CROWDS.values(), ids=CROWDS.keys())
def test_a_crowd_costs_no_other_client_anything(sent, server, connect):
    # Pieces are made by the worker, one after another: that takes its time, not a thread's patience.
    for _ in range(5 if b"pieces" in sent else CROWD):
        client = connect()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(sent)
    if b"pieces" in sent:
        server.ask(GET)
    assert_answers_soon(server)


def test_one_who_asks_very_often_at_once_keeps_nobody_waiting(server, connect):
    for _ in range(2 * THREADS):
        connect().send(b"GET / HTTP/1.1\r\n\r\n" * 7000)
    assert_answers_soon(server)


def test_more_connections_than_allowed(start, connect):
    server = start("--worker-connections", "8")
    kept = [connect(server) for _ in range(4)]
    for client in kept:
        assert client.ask(GET).status == 200
    for _ in range(CROWD):
        connect(server)
        assert server.ask(GET).status == 200
    assert_answers_soon(server)
    assert server.inside()["connections"] <= 8


def test_more_connections_than_files(start, connect):
    """A crowd under the number of connections, in a process that may open fewer files than that."""
    server = start()
    files = server.inside()["files"]
    kept = connect(server)
    assert kept.ask(GET).status == 200
    (worker,) = server.workers()
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (files + 20, files + 20))
    crowd = [connect(server) for _ in range(40)]
    begun = time.monotonic()
    with suppress(ConnectionResetError):  # it may be let go for one who comes anew
        for _ in range(20):
            assert kept.ask(GET).status == 200
    assert time.monotonic() - begun < SOON
    assert_answers_soon(server)
    before = server.cpu_seconds()
    time.sleep(1)
    assert server.cpu_seconds() - before < 0.5
    for client in crowd:
        client.close()
    wait_until(lambda: server.inside()["connections"] <= 2)


def test_idle_connections_cost_no_time(server, connect):
    for sent in [b""] * CROWD + [GET[:20]] * CROWD + [get("/large")] * 10:
        connect().send(sent)
    server.ask(GET)
    time.sleep(0.2)
    before = server.cpu_seconds()
    time.sleep(2)
    assert server.cpu_seconds() - before < 0.15


@pytest.mark.slow
def test_requests_that_waited_for_a_thread_are_answered(start, connect):
    """All threads are busy for longer than a client may be silent. Those who asked meanwhile were not silent."""
    server = start()
    kept = [connect(server) for _ in range(4)]
    for client in kept:
        assert client.ask(GET).status == 200
    halves = [connect(server).send(GET[:20]), connect(server).send(post("/echo", b"hello")[:-1])]
    server.ask(GET)
    for _ in range(THREADS):
        connect(server).send(get("/sleep?n=7.5"))
    time.sleep(0.3)
    for client, data in zip([*kept, *halves], [GET] * len(kept) + [GET[20:], b"o"], strict=True):
        client.send(data)
    for client in (*kept, *halves):
        assert client.answer().status == 200


# --- what is asked, and what is answered ---


@pytest.mark.parametrize("path", ["/large", "/pieces"])
def test_a_large_answer_that_is_read_slowly_arrives_whole(path, server, connect):
    client = connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    client.send(get(path))
    time.sleep(0.2)
    answer = client.answer()
    assert answer.body == LARGE
    assert client.ask(GET).body == b"GET /hello"


def test_many_requests_over_one_connection(server, connect):
    client = connect()
    for number in range(200):
        answer = client.ask(get(f"/hello?{number}"))
        assert (answer.status, answer.body) == (200, f"GET /hello?{number}".encode())
        assert not answer.closes


MIXED = [
    get("/hello?1"),
    post("/echo", b"with a length"),
    chunked("/echo", b"in ", b"two"),
    post("/echo", b"after chunks, with no line behind it"),
    post("/unread", b"GET /evil HTTP/1.1\r\n\r\n"),
    chunked("/unread", b"GET /evil HTTP/1.1\r\n\r\n"),
    chunked("/echo", b"x\r\n0\r\n\r\n", b"y", trailer=b"X-Trailer: 1\r\n"),
    b"\r\n" + get("/hello?2"),
    post("/echo"),
    chunked("/echo"),
]
ANSWERS = [
    b"GET /hello?1",
    b"with a length",
    b"in two",
    b"after chunks, with no line behind it",
    b"unread",
    b"unread",
    b"x\r\n0\r\n\r\ny",
    b"GET /hello?2",
    b"",
    b"",
]


def test_many_requests_in_one_packet(server, connect):
    client = connect().send(b"".join(get(f"/hello?{number}") for number in range(100)))
    assert [client.answer().body for _ in range(100)] == [f"GET /hello?{number}".encode() for number in range(100)]


def test_requests_of_every_kind_in_one_packet(server, connect):
    client = connect().send(b"".join(MIXED))
    client.socket.settimeout(SOON)
    assert [client.answer().body for _ in ANSWERS] == ANSWERS


@pytest.mark.parametrize(("one", "other"), list(itertools.pairwise(range(len(MIXED)))))
def test_half_a_request_behind_another(one, other, server, connect):
    """The first is answered before the rest of the second comes."""
    client = connect()
    client.socket.settimeout(SOON)
    half = len(MIXED[other]) - 3
    assert client.ask(MIXED[one] + MIXED[other][:half]).body == ANSWERS[one]
    assert client.ask(MIXED[other][half:]).body == ANSWERS[other]


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_a_request_that_comes_byte_by_byte(number, server, connect):
    client = connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in MIXED[number]:
        client.send(bytes([byte]))
        time.sleep(0.001)
    assert client.answer().body == ANSWERS[number]
    assert client.ask(GET).status == 200


def test_many_requests_split_at_odd_places(server, connect):
    data = b"".join(MIXED * 10)
    places = sorted(CHANCE.sample(range(1, len(data)), 60))
    client = connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for begin, end in itertools.pairwise([0, *places, len(data)]):
        client.send(data[begin:end])
        time.sleep(0.002)
    assert [client.answer().body for _ in range(len(ANSWERS) * 10)] == ANSWERS * 10


@pytest.mark.parametrize("size", [MAX_BODY_BYTES - 1, MAX_BODY_BYTES])
@pytest.mark.parametrize("form", [post, chunked])
@pytest.mark.parametrize("path", ["/echo", "/unread"])
def test_the_largest_body(path, form, size, server, connect):
    body = CHANCE.randbytes(size)
    client = connect()
    answer = client.ask(form(path, body))
    assert answer.body == (body if path == "/echo" else b"unread")
    if not answer.closes:
        assert client.ask(GET).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        post("/echo", b"", "Expect: 100-continue"),
        chunked("/echo")[:-5].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
    ],
    ids=["length", "chunked"],
)
def test_100_continue_comes_before_the_body(request_, server, connect):
    body = b"5\r\nhello\r\n0\r\n\r\n" if b"chunked" in request_ else b"hello"
    client = connect().send(request_.replace(b"Content-Length: 0", b"Content-Length: 5"))
    client.socket.settimeout(SOON)
    assert client.head() == (100, {})
    answer = client.ask(body)
    assert (answer.status, answer.body) == (200, b"hello")
    # What is announced is done.
    if answer.closes:
        assert client.is_closed()
    else:
        assert client.ask(GET).status == 200


def test_100_continue_with_a_body_that_is_there(server, connect):
    client = connect().send(post("/echo", b"hello", "Expect: 100-continue"))
    status, _ = client.head()
    answer = client.answer() if status == 100 else pytest.skip("none was needed")
    assert answer.body == b"hello"
    assert client.is_closed() if answer.closes else client.ask(GET).status == 200


def test_http_1_0(server, connect):
    client = connect()
    answer = client.ask(get("/hello", version="1.0"))
    assert (answer.body, answer.closes) == (b"GET /hello", True)
    assert client.is_closed()
    client = connect()
    for _ in range(2):
        assert not client.ask(get("/hello", "Connection: keep-alive", version="1.0")).closes
    answer = client.ask(get("/without-length", "Connection: keep-alive", version="1.0"))
    assert (answer.body, answer.closes) == (b"one two", True)


def test_an_answer_without_a_length(server, connect):
    client = connect()
    answer = client.ask(get("/without-length"))
    assert (answer.body, answer.headers["transfer-encoding"]) == (b"one two", "chunked")
    assert client.ask(GET).status == 200


def test_a_client_that_closes_after_its_request(server, connect):
    client = connect()
    answer = client.ask(get("/hello", "Connection: close"))
    assert answer.closes
    assert client.is_closed()


def test_a_client_that_says_at_once_that_it_has_nothing_more_to_send(server, connect):
    for request in (GET, post("/echo", b"x" * 1000), get("/large")):
        client = connect().send(request)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer().status == 200
        assert client.is_closed()


def test_an_answer_that_ends_the_connection_survives_what_is_sent_behind_it(server, connect):
    for _ in range(20):
        client = connect().send(get("/hello", "Connection: close") + GET * 3)
        with suppress(ConnectionError):
            for _ in range(5):
                client.send(GET)
                time.sleep(0.002)
        assert client.answer().body == b"GET /hello"


def test_answers_without_a_body(server, connect):
    client = connect().send(get("/hello", method="HEAD"))
    assert client.answer(is_head=True).headers["content-length"] == str(len("HEAD /hello"))
    for status in (204, 304):
        answer = client.ask(get(f"/status?n={status}"))
        assert (answer.status, answer.closes) == (status, False)
    assert client.ask(GET).body == b"GET /hello"


def test_a_file(server, connect):
    client = connect()
    assert client.ask(get("/file")).body == (ROOT / "tests" / "worker_app.py").read_bytes()
    assert client.ask(GET).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_asks_whom(host, start):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("no such address here")
    server = start(host=host)
    environ = server.inside()["environ"]
    assert environ["REMOTE_ADDR"] == environ["SERVER_NAME"] == host
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["REMOTE_PORT"] not in ("", environ["SERVER_PORT"])


# --- what is wrong ---

HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
MALFORMED = {
    "no version": b"GET /\r\n\r\n",
    "nothing but an end": b"\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n\r\n",
    "another protocol": b"GET / SPDY/1.1\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "a folded header": HEAD + b"X: 1\r\n Content-Length: 5\r\n\r\n",
    "a length in words": HEAD + b"Content-Length: five\r\n\r\nhello",
    "a length below zero": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length and chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length and no chunk yet": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks of chunks": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunks twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks and then another coding": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "no chunks": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "another coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: morse\r\n\r\n",
    "chunks in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    "a chunk of nonsense": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a chunk of nonsense, and no end": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "a chunk below zero": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than it says": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    "a trailer that frames": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "another expectation": post("/echo", b"", "Expect: much"),
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "a byte that is none": b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "a line too long": b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
    "a line too long, and no end": b"GET /" + b"x" * (MAX_BODY_BYTES + 1000),
    "a header too long": b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
    "too many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "a head too long, and no end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 15_000,
    "lines without a return": b"GET / HTTP/1.1\nHost: x\n\n",
    "one line without a return": b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_malformed_is_refused_at_once(sent, server, connect):
    client = connect().send(sent)
    client.socket.settimeout(SOON)
    answer = client.answer()
    assert answer.status in (400, 414, 417, 431, 501, 505)
    assert answer.closes
    assert client.is_closed()
    assert_answers_soon(server)


@pytest.mark.parametrize("wrong", ["a length in words", "two lengths", "another expectation", "no version"])
def test_one_who_goes_on_sending_can_read_why_he_was_refused(wrong, server, connect):
    client = connect()
    client.send(MALFORMED[wrong])
    for _ in range(30):
        client.send(b"x" * 10_000)
        time.sleep(0.001)
    assert client.answer().status in (400, 417)


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 300_000, 900_000])
def test_a_body_too_large_is_answered_while_it_is_still_sent(size, form, server, connect):
    body = b"x" * size
    client = connect()
    if form == "length":
        data = post("/refuse", body)
    else:
        data = chunked("/refuse", *(body[begin : begin + 10_000] for begin in range(0, size, 10_000)))
    for begin in range(0, len(data), 10_000):
        client.send(data[begin : begin + 10_000])
        if begin % 100_000 == 0:
            time.sleep(0.005)
    answer = client.answer()
    assert (answer.status, answer.body) == (413, b"too large")
    assert client.is_closed() if answer.closes else client.ask(GET).status == 200


def test_a_very_large_body_is_not_taken(server, connect):
    """The answer can be read even if sending fails in the end."""
    client = connect()
    with suppress(ConnectionError):
        client.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n")
        for _ in range(500):
            client.send(b"x" * 1_000_000)
    assert client.answer().status == 413


def test_nothing_is_smuggled(server, connect):
    """What a body holds is never a request, and nothing is answered behind a refusal."""
    evil = b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
    for first in (*MALFORMED.values(), post("/refuse", b"x" * (MAX_BODY_BYTES + 1)), chunked("/fail", evil)):
        client = connect()
        with suppress(ConnectionError):
            client.send(first + evil)
        client.socket.settimeout(SOON)
        answer = client.answer()
        assert answer.closes
        assert b"/evil" not in answer.body
        assert client.is_closed()


@pytest.mark.parametrize("path", ["/unread", "/echo", "/fail", "/refuse"])
@pytest.mark.parametrize(
    "wrong", ["a chunk of nonsense", "a chunk that is longer than it says", "a trailer that frames"]
)
def test_one_answer_to_one_request(wrong, path, server, connect):
    client = connect()
    client.socket.settimeout(SOON)
    answer = client.ask(MALFORMED[wrong].replace(b"/echo", path.encode()))
    assert answer.status in (200, 400, 413, 500)
    assert client.is_closed()


FAILURES = ["/fail", "/fail-after-start", "/fail-after-head", "/fail-in-the-middle", "/fail-of-the-system"]


@pytest.mark.parametrize("path", FAILURES)
@pytest.mark.parametrize("request_", [get, chunked, post])
def test_an_application_that_fails(request_, path, server, connect):
    for _ in range(2 * THREADS):
        client = connect()
        assert client.ask(GET).status == 200
        client.socket.settimeout(SOON)
        with suppress(ConnectionError, CutOffError):
            answer = client.ask(request_(path))
            assert (answer.status, answer.closes) == (500, True)
        assert client.is_closed()


@pytest.mark.parametrize("path", ["/leave", "/interrupt"])
def test_an_application_that_raises_what_is_no_exception(path, start, connect):
    server = start()
    for _ in range(2 * THREADS):
        client = connect(server).send(get(path))
        with suppress(ConnectionError):
            client.answer()
    assert all_threads_serve(server)


@pytest.mark.parametrize("path", ["/fail", "/fail-after-start"])
def test_a_failure_before_the_head_is_a_500(path, server):
    assert server.ask(get(path)).status == 500


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        GET[:10],
        GET,
        GET * 3 + GET[:10],
        post("/echo", b"x" * 1000)[:-10],
        post("/echo", b"x" * 10, "Expect: 100-continue")[:-10],
        post("/refuse", b"x" * (MAX_BODY_BYTES + 1))[:-10],
        get("/large"),
        get("/large") * 5,
        get("/sleep?n=0.1"),
        get("/hello", "Connection: close"),
        b"nonsense\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pause", [0, 0.05])
def test_clients_that_vanish(sent, pause, server):
    """`server` looks whether something of them is left."""
    for _ in range(5):
        client = server.connect().send(sent)
        time.sleep(pause)
        client.reset()
        client = server.connect().send(sent)
        time.sleep(pause)
        client.close()
    assert_answers_soon(server)


def test_garbage_kills_no_thread(server):
    words = [
        b"GET ",
        b"/ HTTP/1.1",
        b"\r\n",
        b"\r\n\r\n",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"0\r\n",
    ]
    words += [
        b"\n",
        b"\0",
        b"Expect: 100-continue",
        b"Connection: keep-alive",
        b"POST /echo",
        b"f" * 100,
        b"\x16\x03\x01",
    ]
    for number in range(300):
        client = server.connect()
        with suppress(ConnectionError):
            if number % 3:
                client.send(b"".join(CHANCE.choices(words, k=CHANCE.randrange(1, 30))))
            else:
                client.send(CHANCE.randbytes(CHANCE.randrange(1, 3000)))
            if number % 2:
                client.send(b"\r\n\r\n")
        client.reset() if number % 5 == 0 else client.close()
    assert all_threads_serve(server)


# --- who is late ---


@pytest.mark.slow
def test_who_sends_nothing_more_is_let_go(start, connect):
    server = start()
    begun = time.monotonic()
    silent = connect(server)
    kept = connect(server)
    assert kept.ask(GET).status == 200
    halves = [connect(server).send(sent) for sent in (GET[:20], post("/echo", b"hello")[:-1], chunked("/echo")[:-1])]
    for client in (silent, kept, *halves):
        client.socket.settimeout(PATIENCE)
        assert client.file.read() == b""
        assert 4.5 < time.monotonic() - begun < 10
    assert server.log.read_text().count("INFO streamorch.worker: a client was too slow") == len(halves)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_byte_now_and_then_is_not_enough(server, connect):
    client = connect()
    begun = time.monotonic()
    with suppress(ConnectionError):
        for byte in GET:
            client.send(bytes([byte]))
            time.sleep(0.4)
            if select.select([client.socket], [], [], 0)[0]:
                break
    assert client.is_closed()
    assert 4.5 < time.monotonic() - begun < 10


# --- the end ---


@pytest.mark.parametrize("options", [(), ("--keep-alive", "30")])
def test_sigterm_ends_it_and_loses_nothing(options, start, connect):
    server = start(*options)
    idle = [connect(server) for _ in range(5)]
    kept = connect(server)
    for client in (*idle, kept):
        assert client.ask(GET).status == 200
    silent = connect(server)
    half = connect(server).send(GET[:-10])
    busy = connect(server).send(get("/sleep?n=1"))
    server.ask(GET)
    begun = time.monotonic()
    server.process.terminate()
    time.sleep(0.2)
    for last in (kept.ask(GET), half.ask(GET[-10:])):
        assert (last.status, last.closes) == (200, True)
    assert kept.is_closed()
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    assert busy.answer().body == b"slept"
    assert server.process.wait(PATIENCE) == 0
    # 1 s of work, and 0.5 s for a last request.
    assert time.monotonic() - begun < 4
    for client in (*idle, silent):
        assert client.is_closed()


def test_sigterm_while_an_answer_is_read_slowly(start, connect):
    server = start()
    client = connect(server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    client.send(get("/large"))
    server.ask(GET)
    server.process.terminate()
    time.sleep(0.5)
    assert client.answer().body == LARGE
    assert server.process.wait(PATIENCE) == 0


def test_sigterm_with_a_client_that_never_reads(start, connect):
    server = start("--graceful-timeout", "3")
    client = connect(server)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(get("/large"))
    server.ask(GET)
    assert server.seconds_to_end() < 6


def test_a_second_signal_changes_nothing(start, connect):
    server = start()
    busy = connect(server).send(get("/sleep?n=1"))
    server.ask(GET)
    for worker in server.workers():
        os.kill(worker, signal.SIGTERM)
    server.process.terminate()
    assert busy.answer().body == b"slept"
    assert server.process.wait(PATIENCE) == 0


class Crowd:
    """Clients that ask without a pause, and come again when they are told to."""

    def __init__(self, server: Server, *, keep: bool, count: int = 4):
        self.server = server
        self.request = GET if keep else get("/hello", "Connection: close")
        self.answered = 0
        self.failures: list[BaseException] = []
        self.is_over = False
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        while not self.is_over:
            client = self.server.connect()
            try:
                while not self.is_over:
                    self.answered += 1
                    if client.ask(self.request).closes:
                        break
            except Exception as error:
                self.failures.append(error)
                time.sleep(0.05)
            finally:
                client.close()

    def end(self) -> list[BaseException]:
        self.is_over = True
        for thread in self.threads:
            thread.join(PATIENCE)
        return self.failures


@pytest.mark.parametrize("keep", [True, False])
def test_a_reload_loses_no_request(keep, start):
    server = start()
    crowd = Crowd(server, keep=keep)
    for _ in range(2):
        (old,) = server.workers()
        server.process.send_signal(signal.SIGHUP)
        server.wait_until_gone(old)
        time.sleep(0.2)
    assert crowd.end() == []
    assert crowd.answered > 20


def test_who_was_announced_to_a_worker_that_is_gone_is_served_by_another(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as gone:
        # Registered before the worker, and so told before it.
        gone.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        server = Server(tmp_path, listener=listener)
        try:
            for _ in range(2):
                gone.poll(0)
                told: list[Any] = []
                waiting = threading.Thread(target=lambda told=told: told.extend(gone.poll(PATIENCE)))
                waiting.start()
                wait_until(partial(sleeps, waiting))
                client = server.connect()
                waiting.join()
                assert told == [(listener.fileno(), select.EPOLLIN)]
                assert client.ask(get("/hello", "Connection: close")).status == 200
                client.close()
        finally:
            server.kill()


def sleeps(thread: threading.Thread) -> bool:
    state = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "S"


@pytest.fixture
def ending() -> Iterator[Worker]:
    """A worker in this process, about to stop: the last one with its listener, and without threads."""
    worker = Worker(0, os.getppid(), [socket.create_server(("127.0.0.1", 0))], None, 1, Config(), logging.getLogger())
    (listener,) = worker.sockets
    listener.setblocking(False)
    worker.epoll, worker.connections, worker.waiting = select.epoll(), set(), {}
    worker.listeners = {listener.fileno(): (listener, listener.getsockname())}
    worker.epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    worker.alive = False
    yield worker
    worker.epoll.close()
    worker.tmp.close()


def test_who_was_announced_to_a_worker_that_ends_is_served_by_it(ending, monkeypatch):
    worker = ending
    (listener,) = worker.sockets
    monkeypatch.setattr(worker, "_serve_until_others_do", lambda now: None)
    client = Client(listener.getsockname()[1])
    client.send(GET)
    monkeypatch.setattr(worker, "_hurry", lambda conn: served.append(conn.client))
    served: list[Any] = []
    stopping = threading.Thread(target=worker._stop)
    stopping.start()
    wait_until(lambda: served)
    assert client.socket.getsockname() in served
    for conn in list(worker.connections):
        worker._close(conn)
    stopping.join()
    client.close()


def test_who_comes_when_the_last_worker_has_accepted_everybody_is_refused_and_not_cut_off(ending, monkeypatch):
    """The kernel connects before anybody accepts: whoever came between the last look and the close would be reset."""
    (listener,) = ending.sockets
    accept, address = ending._accept, listener.getsockname()
    with socket.socket() as late:
        late.setblocking(False)

        def let_one_come_late(*of: Any) -> Any:
            found = accept(*of)
            if found is None:
                with suppress(BlockingIOError):
                    late.connect(address)
            return found

        monkeypatch.setattr(ending, "_accept", let_one_come_late)
        ending._stop()
        coming = select.poll()
        coming.register(late, select.POLLOUT)
        assert coming.poll(PATIENCE * 1000)  # it knocks again after a second
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("keep", [True, False])
def test_a_worker_that_has_served_its_share_is_replaced_without_a_loss(keep, start):
    server = start("--max-requests", "50")
    crowd = Crowd(server, keep=keep)
    wait_until(lambda: crowd.answered > 170)
    assert crowd.end() == []


def test_a_worker_ends_when_its_master_is_gone(start, connect):
    server = start()
    (worker,) = server.workers()
    assert connect(server).ask(GET).status == 200
    server.process.kill()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(is_gone, 10)


# --- is_whole ---


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"", False),
        (b"\r\n", False),
        (GET, True),
        (GET + b"rest", True),
        (GET[:-1], False),
        (GET[:-4] + b"\n\n", True),
        (b"x" * (MAX_BODY_BYTES + 1), None),
        (post("/", b"hello"), True),
        (post("/", b"hello")[:-1], False),
        (post("/", b"hello").replace(b"Content-Length: ", b"CONTENT-LENGTH:\t") + b"GET", True),
        (post("/", b"x" * MAX_BODY_BYTES), True),
        (post("/", b"x" * (MAX_BODY_BYTES + 1))[:100], None),
        (b"GET / HTTP/1.1\r\nX-Content-Length: 5\r\n\r\n", True),
        (chunked("/"), True),
        (chunked("/")[:-1], False),
        (chunked("/").replace(b"HTTP/1.1", b"HTTP/1.2"), True),
        (chunked("/").replace(b"HTTP/1.1", b"HTTP/1.2")[:-1], False),
        (chunked("/", b"hello"), True),
        (chunked("/", b"hello", trailer=b"X: y\r\n"), True),
        (chunked("/", b"hello", trailer=b"X: y\r\n")[:-2], False),
        (chunked("/", b"hello") + b"POST", True),
        (chunked("/", b"a\r\n0\r\n\r\nb")[:-9], False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n00;x=y\r\n\r\n", True),
    ],
)
def test_is_whole(received, expected):
    assert is_whole(received) is expected


NAMES = st.sampled_from(["X-A", "Accept", "X-Content-Length", "X-Transfer-Encoding", "Connection", "TE"])
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
LINES = st.lists(st.builds(lambda name, value: f"{name}: {value}".encode(), NAMES, VALUES), max_size=4)
AWKWARD = st.lists(
    st.sampled_from([b"\r\n", b"0", b"0\r\n\r\n", b"\r\n\r\n", b"GET / HTTP/1.1", b"x", b"a" * 20]), max_size=6
)
BODIES = st.one_of(st.binary(max_size=60), AWKWARD.map(b"".join))
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b'%x ; a="b"'])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request as it should be: the head, and a body with a length, in chunks, or none."""
    lines = draw(LINES)
    form = draw(st.sampled_from(["none", "length", "chunked"]))
    space = draw(st.sampled_from([b"", b" ", b"\t"]))
    if form == "none":
        body = b""
    elif form == "length":
        body = draw(BODIES)
        name = draw(st.sampled_from([b"Content-Length:", b"content-length:", b"CONTENT-LENGTH:"]))
        lines.insert(draw(st.integers(0, len(lines))), name + space + b"%d" % len(body) + space)
    else:
        pieces = [piece for piece in draw(st.lists(BODIES, max_size=4)) if piece]
        sizes = draw(st.lists(SIZES, min_size=len(pieces), max_size=len(pieces)))
        body = b"".join(
            size % len(piece) + b"\r\n" + piece + b"\r\n" for size, piece in zip(sizes, pieces, strict=True)
        )
        body += draw(st.sampled_from([b"0", b"000", b"0;x"])) + b"\r\n"
        body += draw(st.sampled_from([b"", b"X-Trailer: 0\r\n", b"A: b\r\nC: d\r\n"])) + b"\r\n"
        coding = draw(st.sampled_from([b"Transfer-Encoding:", b"transfer-encoding:"]))
        lines.insert(draw(st.integers(0, len(lines))), coding + space + b"chunked" + space)
    method = b"GET" if form == "none" else b"POST"
    before = draw(st.sampled_from([b"", b"", b"\r\n"]))
    return before + b"\r\n".join([method + b" / HTTP/1.1", *lines, b"", b""]) + body


@settings(deadline=None, max_examples=300)
@given(requests(), st.binary(max_size=20) | requests())
def test_whole_is_the_whole_and_nothing_less(request_, behind):
    for end in range(len(request_)):
        assert is_whole(request_[:end]) is False
    assert is_whole(request_) is True
    assert is_whole(request_ + behind) is True


class TooEarlyError(Exception):
    pass


class Arrived:
    """A socket on which nothing more will come."""

    def __init__(self, data: bytes):
        self.data = data

    def recv(self, size: int) -> bytes:
        if not self.data:
            raise TooEarlyError
        data, self.data = self.data, b""
        return data


SOUP = [
    b"GET / HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n",
    b"Host: x\r\n",
    b"X:\r\n",
    b"\r\n",
    b"\n",
]
SOUP += [
    b"Content-Length:" + value + b"\r\n"
    for value in (b"", b"5", b" 5 ", b"0", b"0000000000005", b"5 5", b"99999999999")
]
SOUP += [b"Content-Length: \xb2\r\n", b"Content-Length : 5\r\n", b" Content-Length: 5\r\n", b"Content_Length: 5\r\n"]
SOUP += [b"Transfer-Encoding: " + value + b"\r\n" for value in (b"chunked", b"Chunked", b"identity", b",")]
SOUP += [b"Transfer-Encoding:\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding:chunked\n"]
SOUP += [
    b"5\r\nhello\r\n",
    b"0\r\n",
    b"0\r\n\r\n",
    b"00\r\n",
    b"5;x=y\r\n",
    b"9\r\n\r\n0\r\n\r\n\r\n\r\n",
    b"hello",
    b"1",
    b"f\r\n",
]


@settings(deadline=None, max_examples=1000)
@given(st.lists(st.sampled_from(SOUP), max_size=12).map(b"".join), st.booleans())
@example(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n\r\n0\r\n\r\n", False)
def test_no_thread_waits_for_the_rest_of_what_is_whole(soup, is_headed):
    """gunicorn's parser reads to the end of it, or refuses it, and asks for no more."""
    received = b"POST / HTTP/1.1\r\n" + soup if is_headed else soup
    if is_whole(received) is True:
        parser = http.get_parser(Config(), Arrived(received), ("127.0.0.1", 1))
        with suppress(http.errors.ParseException, http.errors.NoMoreData, StopIteration):
            next(parser).body.read()
