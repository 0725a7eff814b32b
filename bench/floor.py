"""The floors: a WSGI application that does nothing, and a Flask view that does nothing, for gunicorn to serve.

Both answer 200 with an empty body to every path that the service is asked for, and with N bytes to GET /bytes/N.
"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_BYTES = "/bytes/"

app = flask.Flask("floor", static_folder=None)


@cache
def _filled(count: int) -> bytes:
    return b"x" * count


@app.post("/auth")
@app.post("/webhook/ready")
@app.post("/webhook/not-ready")
@app.get("/streams")
def nothing() -> flask.Response:
    """200, empty."""
    return flask.Response(status=200)


@app.get(f"{_BYTES}<int:count>")
def filled(count: int) -> flask.Response:
    """200 with so many bytes, always the same."""
    return flask.Response(_filled(count), content_type="application/json")


def no_op(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """The same without Flask."""
    path = environ["PATH_INFO"]
    body = _filled(int(path[len(_BYTES) :])) if path.startswith(_BYTES) else b""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body] if body else []
