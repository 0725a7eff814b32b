"""One HTTP request and its reply, in the words of no framework.

What is asked most, /auth and the live list, is written in these. So Flask's views and the express lane before Flask
(`edge.py`) answer with the same functions.
"""

import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

from streamorch import keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from streamorch.callers import Scope

MAX_BODY_BYTES = 64 * 1024

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
# RFC 9110: a reply of these has no body and tells no length.
_WITHOUT_BODY = (204, 304)


class BrokenBody(BadRequest):
    """The body ends early, or its chunks are none."""


class Request:
    """What was asked; and what came of it, for the log line, the metrics and the span.

    `needs` is the scope of what is asked, all there is unless its route says less; `caller` the name of the credential
    that its guard found right. `problem` is the slug of the problem that the reply is. `about` is what a media server
    told, as it came. `outcome`, `stream_id` and `claim_seconds` (since the claim of what went live) are of the stream
    that it was about, if any.
    """

    __slots__ = (
        "_body",
        "about",
        "caller",
        "claim_seconds",
        "environ",
        "needs",
        "node",
        "outcome",
        "problem",
        "request_id",
        "started",
        "stream_id",
    )

    def __init__(self, environ: "WSGIEnvironment"):
        self.environ = environ
        self.started = time.perf_counter()
        self.needs: Scope = "admin"
        self.problem: str | None = None
        self.caller: str | None = None
        self.node: str | None = None
        self.about: object = None
        self.outcome: str | None = None
        self.stream_id: UUID | None = None
        self.claim_seconds: float | None = None
        self._body: bytes | None = None
        asked = environ.get("HTTP_X_REQUEST_ID", "")
        usable = asked and REQUEST_ID.fullmatch(asked) and not keys.has_form(asked)
        self.request_id: str = asked if usable else uuid4().hex

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        return str(self.environ["REQUEST_METHOD"])

    @property
    def path(self) -> str:
        """The path without the query, percent-decoded."""
        # WSGI hands UTF-8 over as if it were Latin-1 (PEP 3333).
        path: str = self.environ.get("PATH_INFO", "")
        return "/" + path.encode("latin-1").decode(errors="replace").lstrip("/")

    def header(self, name: str) -> str:
        """The value of a header, "" when it is absent."""
        return str(self.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))

    def parameter(self, name: str) -> str:
        """The first value of a query parameter, "" when it is absent."""
        query = self.environ.get("QUERY_STRING", "")
        return next((value for given, value in parse_qsl(query) if given == name), "") if query else ""

    def body(self) -> bytes:
        """The body as it came, whatever its Content-Type says; read once, then kept.

        RequestEntityTooLarge over 64 KiB, also without a length; BrokenBody when it ends early or is malformed.
        """
        if self._body is None:
            self._body = self._read()
        return self._body

    def _read(self) -> bytes:
        length = self.environ.get("CONTENT_LENGTH") or ""
        stream: IO[bytes] = self.environ["wsgi.input"]
        if self.environ.get("HTTP_TRANSFER_ENCODING") or not length:
            # Chunked, or no body at all; read to the end only where the server marks it.
            raw = _chunks(stream) if self.environ.get("wsgi.input_terminated") else b""
            if len(raw) > MAX_BODY_BYTES:
                raise RequestEntityTooLarge
            return raw
        if int(length) > MAX_BODY_BYTES:
            raise RequestEntityTooLarge
        raw = stream.read(int(length))
        if len(raw) < int(length):
            raise BrokenBody
        return raw


def _chunks(stream: IO[bytes]) -> bytes:
    """A body without a length; of one that is too large a byte more than may be. BrokenBody when it cannot be read."""
    try:
        return stream.read(MAX_BODY_BYTES + 1)
    except HTTPException:
        raise
    except Exception as error:  # each server has its own for a malformed chunk, and an OSError for an early end
        raise BrokenBody from error


class Reply(NamedTuple):
    """What is answered. Who makes one names a Content-Type if there is a body."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def send(self, start_response: "StartResponse", more: Iterable[tuple[str, str]]) -> list[bytes]:
        """As WSGI has it, with `more` headers."""
        headers = [*self.headers, *more]
        if self.status in _WITHOUT_BODY:
            start_response(STATUS_LINES[self.status], headers)
            return []
        headers.append(("Content-Length", str(len(self.body))))
        start_response(STATUS_LINES[self.status], headers)
        return [self.body]
