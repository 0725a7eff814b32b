"""The application behind the worker in test_worker.py: one route for each thing that a worker may meet."""

import gc
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from streamorch.worker import Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

# No byte of it stands where it would stand if a piece before it were missing.
LARGE = b"".join(b"%07d\n" % number for number in range(5 * 1024 * 1024 // 8))
PIECE = 1000

_meeting = threading.Barrier(2)
_worker: list[Worker] = []


class Interruption(BaseException):
    """What `except Exception` does not catch."""


def _plain(start: "StartResponse", body: bytes = b"", status: str = "200 OK", **headers: str) -> list[bytes]:
    start(status, [("Content-Length", str(len(body))), *headers.items()])
    return [body]


def _number(environ: "WSGIEnvironment") -> str:
    return str(parse_qs(environ["QUERY_STRING"])["n"][0])


def hello(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Some of what was asked."""
    return _plain(start, f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}".encode())


def echo(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """The body."""
    return _plain(start, environ["wsgi.input"].read())


def unread(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Answered without a look at the body."""
    return _plain(start, b"unread")


def refuse(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """413, without a look at the body."""
    return _plain(start, b"too large", "413 Content Too Large")


def large(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """5 MB in one piece."""
    return _plain(start, LARGE)


def pieces(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """The same in thousands of pieces, chunked, some of them empty."""
    start("200 OK", [])
    for begin in range(0, len(LARGE), PIECE):
        yield LARGE[begin : begin + PIECE]
        yield b""


def status(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """A status without a body."""
    start(f"{_number(environ)} Whatever", [])
    return []


def without_length(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """The end is told by a chunk, or to HTTP/1.0 by the end of the connection."""
    start("200 OK", [])
    return [b"one ", b"two"]


def sleep(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Takes its time."""
    time.sleep(float(_number(environ)))
    return _plain(start, b"slept")


def meet(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Answered when two threads are here at once."""
    try:
        _meeting.wait(10)
    except threading.BrokenBarrierError:
        _meeting.reset()
        raise
    return _plain(start, b"met")


def file(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """A file, as frameworks send it."""
    start("200 OK", [("Content-Length", str(os.path.getsize(__file__)))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](open(__file__, "rb"))  # noqa: SIM115  # the server closes it
    return wrapped


def fail(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Before anything."""
    raise RuntimeError("before start_response")


def fail_after_start(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Nothing is sent by start_response alone."""
    start("200 OK", [("Content-Length", "5")])
    raise RuntimeError("after start_response")


def fail_after_head(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """With the head on its way."""
    start("200 OK", [("Content-Length", "5")])(b"")
    raise RuntimeError("after the head")


def fail_in_the_middle(environ: "WSGIEnvironment", start: "StartResponse") -> Iterator[bytes]:
    """With half of the body on its way."""
    start("200 OK", [("Content-Length", "10")])
    yield b"begun"
    raise RuntimeError("in the middle")


def fail_of_the_system(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """gunicorn takes this for an error of the client's socket."""
    raise FileNotFoundError(2, "no such file")


def leave(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """SystemExit."""
    sys.exit(1)


def interrupt(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """Neither an Exception nor a SystemExit."""
    raise Interruption


def inside(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """What the worker has, and what it tells of this request."""
    if not _worker:
        _worker.extend(found for found in gc.get_objects() if isinstance(found, Worker))
    told: dict[str, Any] = {
        "pid": os.getpid(),
        "connections": len(_worker[0].connections),
        "waiting": len(_worker[0].waiting),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "environ": {name: value for name, value in environ.items() if isinstance(value, str)},
    }
    return _plain(start, json.dumps(told).encode())


_ROUTES: dict[str, Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]]] = {
    f"/{route.__name__.replace('_', '-')}": route
    for route in (
        echo,
        fail,
        fail_after_head,
        fail_after_start,
        fail_in_the_middle,
        fail_of_the_system,
        file,
        inside,
        interrupt,
        large,
        leave,
        meet,
        pieces,
        refuse,
        sleep,
        status,
        unread,
        without_length,
    )
}


def app(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """What gunicorn is given."""
    return _ROUTES.get(environ["PATH_INFO"], hello)(environ, start)
