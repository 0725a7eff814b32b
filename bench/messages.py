"""What is asked, as the bytes that go over the wire.

A key, its path and its connection all follow from one number, so that each client can name the n-th key without a
list: Python here, SQL in `data` and `statements`, Lua in `wrk`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple, Self

SECRET = "bench"  # noqa: S105  # of a service that lives for the length of a run

# Stands in a message where the twelve digits of a number belong.
TAG = "@@@@@@@@@@@@"
DIGITS = len(TAG)
# Numbers in a row lie far apart in every index. Up to SCATTER * 100,000,000 a double, which is what Lua has, is exact.
SCATTER = 61_803_399
KEY_PREFIX = "sk_" + "0" * 31
PATH_PREFIX = "bench/"
CONNECTION_PREFIX = "00000000-0000-4000-8000-"

ADDRESS = "192.0.2.7"
AGENT = "FMLE/3.0 (compatible; Lavf60.16.100)"

_HOST = "Host: 127.0.0.1:8080"
_FROM_MEDIAMTX = (_HOST, "User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip")
_FROM_CURL = (_HOST, "User-Agent: curl/8.5.0", "Accept: */*")
_FROM_FRONTEND = (_HOST, "User-Agent: frontend", "Accept: */*", f"Authorization: Bearer {SECRET}")


def tag(number: int) -> str:
    """The twelve digits of a number below 100,000,000: no two have the same."""
    return f"{number * SCATTER % 10**DIGITS:0{DIGITS}}"


@dataclass(frozen=True)
class Numbers:
    """`count` numbers from `first` on, asked for in this order; `again`: from the start when they are used up."""

    first: int
    count: int
    again: bool = False

    def __iter__(self) -> Iterator[int]:
        every = range(self.first, self.first + self.count)
        return cycle(every) if self.again else iter(every)


class Message(NamedTuple):
    """A request, with TAG in the place of the digits of its number, and the status that its answer must have."""

    template: bytes
    status: int

    def of(self, number: int) -> bytes:
        """The request of this number."""
        return self.template.replace(TAG.encode(), tag(number).encode())

    def with_status(self, status: int) -> Self:
        """The same request where another answer is right."""
        return self._replace(status=status)

    def closing(self) -> Self:
        """The same request with `Connection: close`."""
        return self._replace(template=self.template.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))


def claim() -> Message:
    """May the publisher with the key of this number claim the path of this number? As an RTMP encoder's is asked."""
    key = KEY_PREFIX + TAG
    return _question(action="publish", key=key, path=PATH_PREFIX + TAG, connection_id=CONNECTION_PREFIX + TAG)


def keyless() -> Message:
    """The first try of every RTSP publisher, which has no credential yet."""
    asked = _question(action="publish", path=PATH_PREFIX + TAG, connection_id=CONNECTION_PREFIX + TAG, protocol="rtsp")
    return asked.with_status(401)


def read() -> Message:
    """May somebody read? As asked for every HLS segment up to v1.17."""
    return _question(action="read", path=PATH_PREFIX + TAG, protocol="hls")


def ready() -> Message:
    """The hook that tells of the start of the stream of this number."""
    return _hook("ready")


def not_ready() -> Message:
    """The hook that tells of its end."""
    return _hook("not-ready")


def live_list(etag: str | None = None) -> Message:
    """The live list, as a frontend polls it: whole, or 304 when it is still that of `etag`."""
    if etag is None:
        return _request("GET", "/streams", _FROM_FRONTEND, status=200)
    return _request("GET", "/streams", (*_FROM_FRONTEND, f"If-None-Match: {etag}"), status=304)


def get(target: str) -> Message:
    """A frontend's GET of something else, which must be there."""
    return _request("GET", target, _FROM_FRONTEND, status=200)


def filling(count: int) -> Message:
    """What a floor is asked beside a GET that is answered with `count` bytes."""
    return _request("GET", f"/bytes/{count}", _FROM_FRONTEND, status=200)


def send(method: str, target: str, members: dict[str, object], *, status: int) -> Message:
    """A frontend's POST or PATCH of a JSON object."""
    headers = (*_FROM_FRONTEND, "Content-Type: application/json")
    return _request(method, target, headers, json.dumps(members), status=status)


def _question(
    *, action: str, path: str, protocol: str = "rtmp", key: str = "", connection_id: str | None = None
) -> Message:
    members = {
        "ip": ADDRESS,
        "user": "",
        "password": key,
        "token": key,
        "action": action,
        "path": path,
        "protocol": protocol,
        "id": connection_id,
        "query": f"user=&pass={key}" if key else "",
        "userAgent": AGENT,
    }
    body = json.dumps(members, separators=(",", ":")).replace("&", "\\u0026")
    return _request("POST", "/auth", (*_FROM_MEDIAMTX, "Content-Type: application/json"), body, status=200)


def _hook(name: str) -> Message:
    members = {"path": PATH_PREFIX + TAG, "source_type": "rtmpConn", "source_id": CONNECTION_PREFIX + TAG}
    headers = (*_FROM_CURL, "Content-Type: application/json")
    return _request("POST", f"/webhook/{name}", headers, json.dumps(members), status=204)


def _request(method: str, target: str, headers: tuple[str, ...], body: str = "", *, status: int) -> Message:
    length = (f"Content-Length: {len(body)}",) if body else ()
    head = "\r\n".join((f"{method} {target} HTTP/1.1", *headers, *length, "", ""))
    return Message((head + body).encode(), status)
