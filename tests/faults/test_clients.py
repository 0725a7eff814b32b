"""Clients in crowds, and of bad manners, while a media server asks the whole service.

tests/test_worker.py has their manners one by one, against a small application.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.faults.crowd import SECONDS, Caller, Crowd, make_keys, question, wait_until
from tests.running import Service

pytestmark = pytest.mark.slow

CROWD = 300
HEAD = b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LARGE = 10 * 1024 * 1024


def connect(service: Service, *, timeout: float = 10.0, receives: int = 0) -> socket.socket:
    """`receives`: how many bytes the client's system takes that the client does not read."""
    address = urlsplit(service.url)
    client = socket.socket()
    client.settimeout(timeout)
    if receives:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    try:
        client.connect((address.hostname or "", address.port or 0))
    except OSError:
        client.close()
        raise
    return client


def read_all(client: socket.socket) -> bytes:
    """What is answered until the connection is closed or reset."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


@contextmanager
def crowd_of(
    service: Service, first: bytes, *, drips: bytes = b"", count: int = CROWD, receives: int = 0
) -> Iterator[list[socket.socket]]:
    """So many connections that send this, and then `drips` byte by byte."""
    over = threading.Event()
    with ExitStack() as all_of_them:
        clients = [all_of_them.enter_context(connect(service, receives=receives)) for _ in range(count)]
        for client in clients:
            client.sendall(first)

        def drip() -> None:
            position = 0
            while not over.wait(0.2):
                for client in clients:
                    with suppress(OSError):
                        client.send(drips[position % len(drips) : position % len(drips) + 1])
                position += 1

        thread = threading.Thread(target=drip)
        if drips:
            thread.start()
        try:
            yield clients
        finally:
            over.set()
            if drips:
                thread.join()


def report(name: str, answers: list[float]) -> float:
    """The 95th percentile."""
    ordered = sorted(answers)
    middle, most = ordered[len(ordered) // 2], ordered[int(0.95 * len(ordered))]
    print(f"\n{name}: {len(ordered)} publishes, p50 {middle:.4f} s, p95 {most:.4f} s, max {ordered[-1]:.4f} s")
    return most


def publishes(service: Service, seconds: float) -> list[float]:
    """How long each of many claims took, asked one by one as MediaMTX does."""
    keys = iter(make_keys(service.database_url, 2000))
    until = time.monotonic() + seconds
    answers: list[float] = []
    with closing(Caller(service.url)) as caller:
        while time.monotonic() < until or len(answers) < 20:
            begun = time.monotonic()
            status, _, _ = caller.ask("POST", "/auth", question(next(keys), f"live/{uuid.uuid4().hex}"))
            answers.append(time.monotonic() - begun)
            assert status == 200
    return answers


CROWDS = {
    "silent": (b"", b""),
    "a header byte by byte": (HEAD + b"X-Slow: ", b"a"),
    "a body byte by byte": (HEAD + b"Content-Length: 60000\r\n\r\n", b"x"),
    "a chunk byte by byte": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", b"x"),
}


@pytest.mark.parametrize("manner", CROWDS)
def test_a_crowd_of_slow_clients_keeps_no_media_server_waiting(service: Service, manner: str) -> None:
    alone = report("alone", publishes(service, SECONDS / 2))
    first, drips = CROWDS[manner]
    with crowd_of(service, first, drips=drips):
        beside = report(f"beside {CROWD} clients: {manner}", publishes(service, 0.5 + SECONDS))
    # It is a few milliseconds with and without; a machine that is busy with other things takes what it takes.
    assert beside < 0.25 + 10 * alone
    with psycopg.connect(service.database_url) as conn:
        assert conn.execute("SELECT count(*) = count(DISTINCT auth_id) FROM streams").fetchone() == (True,)


def test_clients_that_never_read_their_answers(service: Service) -> None:
    """They ask and ask, until no more of what is due to them can be sent."""
    many = b"GET /errors/conflict HTTP/1.1\r\nHost: a\r\n\r\n" * 200
    with crowd_of(service, many, count=30, receives=4096):
        beside = report("beside 30 clients that do not read", publishes(service, 0.5 + SECONDS))
    assert beside < 5


def test_clients_that_close_their_half(service: Service) -> None:
    """They have said all that they have to say, and read on: each has its answer."""
    keys = make_keys(service.database_url, CROWD)
    with ExitStack() as all_of_them:
        clients = [all_of_them.enter_context(connect(service)) for _ in keys]
        for number, (client, key) in enumerate(zip(clients, keys, strict=True)):
            body = json.dumps(question(key, f"live/half{number}")).encode()
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            client.shutdown(socket.SHUT_WR)
        answers = [read_all(client).split(b"\r\n")[0] for client in clients]
    assert answers == [b"HTTP/1.1 200 OK"] * CROWD


TOO_LARGE = {
    "with a length": HEAD + b"Content-Length: %d\r\n\r\n" % LARGE + b" " * LARGE,
    "in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b" " * 65536 + b"\r\n" + b"10000\r\n",
    "without an end": HEAD + b"X: " + b"a" * LARGE,
    "told before it is sent": HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % LARGE,
    "a length that lies upwards": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
}


@pytest.mark.parametrize("body", TOO_LARGE)
def test_a_crowd_with_bodies_that_are_too_large(service: Service, body: str) -> None:
    """Each has its refusal, though it goes on sending, and publishers are let in meanwhile."""
    answers: list[bytes] = []
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            with connect(service) as client:
                with suppress(ConnectionResetError, BrokenPipeError):
                    client.sendall(TOO_LARGE[body])
                answers.append(read_all(client).split(b"\r\n")[0])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        report(f"beside bodies too large, {body}", publishes(service, 0.3 + SECONDS / 2))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    statuses = {answer[9:12] for answer in answers}
    print(f"{len(answers)} refused: {statuses}")
    assert len(answers) >= len(threads)
    # Who floods without reading may find the connection reset before the answer ("").
    assert statuses <= {b"413", b"431", b"400", b""}
    assert statuses & {b"413", b"431", b"400"}


def test_a_body_shorter_than_its_length_is_nobodys_request(service: Service) -> None:
    (key,) = make_keys(service.database_url, 1)
    body = json.dumps(question(key, "live/short")).encode()
    with connect(service) as client:
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        client.shutdown(socket.SHUT_WR)
        assert not read_all(client).startswith(b"HTTP/1.1 200")
    with psycopg.connect(service.database_url) as conn:
        assert conn.execute("SELECT count(*) FROM streams").fetchone() == (0,)


def test_more_connections_than_the_queue_holds(start: Callable[..., Service]) -> None:
    """Both workers stand still: who finds room in the queue is answered later, who does not tries again, nobody twice.

    (The queue of the service holds 1024; here 64.)
    """
    service = start(GUNICORN_CMD_ARGS="--backlog 64 --timeout 30")
    workers = service.workers()
    with Crowd(service, publishers=20, others=20) as crowd:
        time.sleep(0.5)
        frozen_at = time.monotonic()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        with ExitStack() as others:
            with suppress(TimeoutError):
                while True:
                    others.enter_context(connect(service, timeout=0.5))
            time.sleep(SECONDS)
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            free_at = time.monotonic()
            wait_until(lambda: any(answer.asked_at > free_at for answer in crowd.answers))
        time.sleep(1)
    crowd.report("a queue that is full", frozen_at, free_at)
    # A SYN that found no room is sent again after 1, 3 and 7 seconds.
    crowd.hold(within=free_at - frozen_at + 8)
    assert service.workers() == workers
