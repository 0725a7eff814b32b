"""A MediaMTX without media, of one of five versions: its Control API on a loopback socket, its questions and hooks.

What it answers was recorded from real servers (tests/recorded_api). A test says who publishes, and what goes wrong.
"""

import base64
import bisect
import email.utils
import http.client
import json
import math
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

VERSIONS = ("v1.9.3", "v1.12.3", "v1.15.6", "v1.18.0", "v1.20.1")
RECORDED = Path(__file__).parent / "recorded_api"

LISTS = {
    "rtmp": "rtmpconns",
    "rtmps": "rtmpsconns",
    "rtsp": "rtspsessions",
    "rtsps": "rtspssessions",
    "srt": "srtconns",
    "webrtc": "webrtcsessions",
    "moq": "moqsessions",
}
# An RTSP publisher has a connection beside its session, in a list without kick.
CONNECTIONS = {"rtsp": "rtspconns", "rtsps": "rtspsconns"}
_WITHOUT_KICK = (*CONNECTIONS.values(), "hlsmuxers")
# Off until the server is told to encrypt; what waits in them has the form of what waits in the others.
_ENCRYPTED = {"rtmpsconns": "rtmpconns", "rtspsconns": "rtspconns", "rtspssessions": "rtspsessions"}
_READER_LISTS = {
    "rtmpConn": "rtmpconns",
    "rtmpsConn": "rtmpsconns",
    "rtspSession": "rtspsessions",
    "rtspsSession": "rtspssessions",
    "srtConn": "srtconns",
    "webRTCSession": "webrtcsessions",
    "hlsSession": "hlssessions",
    "moqSession": "moqsessions",
}

# What a real v1.20.1 told of its configuration outside of the paths, as far as streamorch looks at it; api is on there.
_OPTIONS: dict[str, object] = {
    "readTimeout": "10s",
    "authMethod": "internal",
    "authHTTPAddress": "",
    "authHTTPExclude": [],
    "authJWTClaimKey": "mediamtx_permissions",
    "api": False,
    "apiAddress": ":9997",
    "apiEncryption": False,
    "metrics": False,
    "metricsAddress": ":9998",
    "pprof": False,
    "pprofAddress": ":9999",
    "rtsp": True,
    "rtspEncryption": "no",
    "rtspAddress": ":8554",
    "rtspsAddress": ":8322",
    "rtmp": True,
    "rtmpEncryption": "no",
    "rtmpAddress": ":1935",
    "rtmpsAddress": ":1936",
    "hls": True,
    "hlsAddress": ":8888",
    "hlsEncryption": False,
    "webrtc": True,
    "webrtcAddress": ":8889",
    "webrtcEncryption": False,
    "srt": True,
    "srtAddress": ":8890",
}

JSON = "application/json; charset=utf-8"
_CALLBACK_SECONDS = 10  # readTimeout


@cache
def recording(version: str) -> dict[str, Any]:
    """What was recorded of a version; its form is told in tests/recorded_api/README.md."""
    found: dict[str, Any] = json.loads((RECORDED / f"{version}.json").read_text())
    return found


class Call(NamedTuple):
    """A request as it came: `target` with its query, `time` by time.monotonic."""

    method: str
    target: str
    time: float


class Answer(NamedTuple):
    status: int
    content_type: str | None = None
    body: bytes = b""
    www_authenticate: str | None = None
    location: str | None = None


@dataclass(eq=False)
class Publisher:
    """A client that publishes or is about to. Before v1.19.3 auth names an RTSP publisher by its connection."""

    path: str
    protocol: str
    source_type: str
    source_id: str  # in hooks, paths and session lists
    connection_id: str  # the same, but for RTSP
    auth_id: str
    query: str = ""
    is_live: bool = False
    conf_name: str = ""  # while live: the entry of the configuration that made its path
    _flow: tuple[float, float, float] = (0, 0, 0)  # bytes at a time, and how many a second since

    def received(self, now: float) -> int:
        """The counter of its connection; that of its path is another (and smaller)."""
        sent, rate, since = self._flow
        return int(sent + rate * (now - since))

    def count(self, *, more: int = 0, rate: float | None = None) -> None:
        """Add bytes, and from now on so many a second."""
        now = time.monotonic()
        sent, old, since = self._flow
        self._flow = (sent + old * (now - since) + more, old if rate is None else rate, now)


class _Entry(NamedTuple):
    """An entry of the configuration: what its path is without a publisher, and what was set."""

    template: str
    settings: dict[str, object]
    source_type: str | None = None


# Stand in an encoded item where a counter belongs.
_IN, _OUT = 10**17 + 1, 10**17 + 2


class _Item:
    """An item of a list, encoded but for its counters; without a publisher they stand still."""

    __slots__ = ("_counters", "_is_path", "_text", "item", "publisher", "readers")

    def __init__(self, item: dict[str, Any], publisher: Publisher | None = None, readers: int | None = None):
        self.item = item
        self.publisher = publisher
        self.readers = readers or 0
        self._is_path = readers is not None
        names = {"inboundBytes": _IN, "bytesReceived": _IN}
        if self._is_path:
            names |= {"outboundBytes": _OUT, "bytesSent": _OUT}
        moving = {name: mark for name, mark in names.items() if name in item and publisher}
        self._counters = sum(mark == _IN for mark in moving.values())
        text = msgspec.json.encode(item | moving)
        if publisher:
            text = text.replace(b"%", b"%%").replace(b"%d" % _IN, b"%d").replace(b"%d" % _OUT, b"%d")
        self._text = text

    def encoded(self, now: float) -> bytes:
        """Its JSON as of now."""
        if self.publisher is None:
            return self._text
        received = self.publisher.received(now)
        if self._is_path:
            received = received * 15 // 16
            return self._text % ((received, received * self.readers) * self._counters)
        return self._text % ((received,) * self._counters)


@dataclass(eq=False)
class _Fault:
    """What goes wrong on a route: before the server does what it was asked, or with its answer."""

    kind: str
    seconds: float = 0
    answer: Answer | None = None
    left: float = math.inf
    released: threading.Event = field(default_factory=threading.Event)


class _Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.target.partition("?")[2]).items()}

    @property
    def credential(self) -> tuple[str, str]:
        """User and password of a Basic credential; both empty without one."""
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return "", ""
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password


class FakeMediaMTX:
    """One server; all of it may be called from any thread while it serves. A context manager: it listens within.

    With `user` and `password` the Control API asks for them. With `nested_auth` it asks the service at `callback_url`
    instead, once for every request, as a server does that excludes nothing from auth.
    """

    def __init__(
        self,
        version: str = "v1.20.1",
        callback_url: str | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        node: str | None = None,
        nested_auth: bool = False,
        paths_wait: bool = True,
    ):
        self.version = version
        self.callback_url = callback_url  # user info in it becomes a Basic credential
        self.user, self.password = user, password
        self.node = node  # for `?node=` of every callback
        self.nested_auth = nested_auth
        self.paths_wait = paths_wait  # /v3/paths, and kicks of RTSP publishers, wait while `ask` does
        self.options = _options(version)  # of its configuration; a test may change them
        self.path_defaults: dict[str, object] = recording(version)["entry"] | {"name": "", "maxReaders": 0}
        self.all_others: dict[str, object] | None = {}  # what is set in that entry; None: there is none
        self.clock_ahead = 0.0  # seconds
        self.crash_on_rtsp_kick = False
        self.apply_seconds = 0.0  # how long after its answer a change of the configuration takes effect
        self.calls: list[Call] = []
        self.kicks: list[str] = []  # ids whose kick was answered ok
        self._recorded = recording(version)
        self._lock = threading.RLock()
        self._loop = threading.Lock()  # the one loop that asks /auth and serves the paths
        self._faults: dict[str, _Fault] = {}
        self._off = set(_ENCRYPTED)
        self._listener: socket.socket | None = None
        self._is_listening = False
        self._threads: set[threading.Thread] = set()
        self._clients: set[socket.socket] = set()
        self._forget()

    # --- its life ---

    def __enter__(self) -> Self:
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self.refuse()
        assert self._listener is not None
        self._listener.close()
        for thread in list(self._threads):
            thread.join(5)

    @property
    def url(self) -> str:
        """The address of its Control API."""
        return f"http://127.0.0.1:{self.port}"

    def restart(self) -> None:
        """Another process on the same port: no connections, no paths, no entries, another start."""
        self.refuse()
        with self._lock:
            for publisher in self._live.values():
                publisher.is_live = False
            self._forget()
        self._listen()

    def _forget(self) -> None:
        self.started = _now()
        self._lists: dict[str, dict[str, _Item]] = {name: {} for name in self._recorded["lists"]}
        self._entries: dict[str, _Entry] = {}
        self._live: dict[str, Publisher] = {}
        self._readers: dict[str, list[dict[str, str]]] = {}
        self._paths: dict[str, _Item] = {}
        self._names: list[str] = []
        self._vanishing: set[Publisher] = set()
        self._immortal: dict[Publisher, float] = {}

    # --- who publishes, who reads ---

    def publish(
        self,
        path: str,
        protocol: str = "rtmp",
        connection_id: str | None = None,
        *,
        live: bool = True,
        bytes_per_second: float = 0,
        query: str = "",
    ) -> Publisher:
        """A publisher; with `live=False` it waits for the answer of auth or for its media: connected, on no path.

        `connection_id` is what auth names it by. Who is live on that path is thrown out. `query` is what its list
        shows once it is live (`ask` puts the key there, where the real one does).
        """
        with self._lock:
            publisher = self._connect(path, protocol, connection_id or str(uuid.uuid4()))
            publisher.query = query
            publisher.count(rate=bytes_per_second)
            if live:
                self.go_live(publisher)
            else:
                self._list(publisher, "waiting")
        return publisher

    def publish_many(
        self, count: int, protocol: str = "rtmp", *, prefix: str = "live/cam", bytes_per_second: float = 0
    ) -> list[Publisher]:
        """So many live publishers, on `live/cam00000` and so on."""
        with self._lock:
            return [
                self.publish(f"{prefix}{number:05}", protocol, bytes_per_second=bytes_per_second)
                for number in range(count)
            ]

    def go_live(self, publisher: Publisher) -> None:
        """Its media has come: it is on its path."""
        with self._lock:
            occupant = self._live.get(publisher.path)
            if occupant is not None and occupant is not publisher:
                self.leave(occupant)
            publisher.is_live = True
            publisher.conf_name = publisher.path if publisher.path in self._entries else "all_others"
            self._list(publisher, "publish")
            self._live[publisher.path] = publisher
            self._show(publisher.path)

    def leave(self, publisher: Publisher) -> None:
        """It is gone from all lists, and so are the readers of its path."""
        with self._lock:
            self._lists[LISTS[publisher.protocol]].pop(publisher.source_id, None)
            if publisher.protocol in CONNECTIONS:
                self._lists[CONNECTIONS[publisher.protocol]].pop(publisher.connection_id, None)
            publisher.is_live = False
            if self._live.get(publisher.path) is publisher:
                del self._live[publisher.path]
                self._drop_readers(publisher.path)

    def is_connected(self, publisher: Publisher) -> bool:
        """Is it in its list, live or not?"""
        with self._lock:
            return publisher.source_id in self._lists[LISTS[publisher.protocol]]

    def send(self, publisher: Publisher, n_bytes: int) -> None:
        """Its counters grow by as much."""
        publisher.count(more=n_bytes)

    def flow(self, publisher: Publisher, bytes_per_second: float) -> None:
        """Its counters grow by the clock from now on."""
        publisher.count(rate=bytes_per_second)

    def freeze(self, publisher: Publisher) -> None:
        """Its counters stand still; it stays connected and live."""
        publisher.count(rate=0)

    def read(self, path: str, reader_type: str = "webRTCSession", n: int = 1) -> list[str]:
        """More readers of a path; returns their ids. Types have today's names; HLS before v1.18 is one `hlsMuxer`."""
        with self._lock:
            if reader_type == "hlsMuxer":
                ids = [""] * n
            else:
                ids = [str(uuid.uuid4()) for _ in range(n)]
                name = self._known(_READER_LISTS[reader_type])
                for reader_id in ids:
                    self._lists[name][reader_id] = _Item(self._reading(name, reader_id, path))
            if reader_type in ("hlsMuxer", "hlsSession"):
                self._lists["hlsmuxers"][path] = _Item(self._recorded["lists"]["hlsmuxers"]["read"] | {"path": path})
            named = self._named(reader_type)
            self._readers.setdefault(path, []).extend({"type": named, "id": reader_id} for reader_id in ids)
            self._show(path)
        return ids

    def readers(self, path: str) -> int:
        """How many read this path."""
        with self._lock:
            return len(self._readers.get(path, ()))

    def unread(self, path: str) -> None:
        """All readers of a path leave."""
        with self._lock:
            self._drop_readers(path)

    def _connect(self, path: str, protocol: str, auth_id: str) -> Publisher:
        self._known(LISTS[protocol])
        source_id = connection_id = auth_id
        if protocol in CONNECTIONS:
            other = str(uuid.uuid4())
            source_id, connection_id = (auth_id, other) if self.names_rtsp_sessions else (other, auth_id)
        source_type = self._recorded["paths"][protocol]["source"]["type"]
        return Publisher(path, protocol, source_type, source_id, connection_id, auth_id)

    @property
    def names_rtsp_sessions(self) -> bool:
        """Does auth name RTSP publishers by their session?"""
        return self.version == "v1.20.1"

    def _list(self, publisher: Publisher, state: str) -> None:
        """Put it into its lists, or put its item there anew."""
        name = LISTS[publisher.protocol]
        template = self._template(name, state)
        ids = {"id": publisher.source_id, "conns": [publisher.connection_id]}
        place = {"path": publisher.path, "query": publisher.query} if template["path"] else {}
        self._add(name, publisher, _filled(template, ids | place))
        if publisher.protocol in CONNECTIONS:
            name = CONNECTIONS[publisher.protocol]
            ids = {"id": publisher.connection_id, "session": publisher.source_id}
            self._add(name, publisher, _filled(self._template(name, state), ids))

    def _add(self, name: str, publisher: Publisher, item: dict[str, Any]) -> None:
        known = self._lists[name].get(item["id"])
        created = known.item["created"] if known else _now()
        self._lists[name][item["id"]] = _Item(item | {"created": created}, publisher)

    def _template(self, name: str, state: str) -> dict[str, Any]:
        recorded = self._recorded["lists"][_ENCRYPTED.get(name, name) if state == "waiting" else name]
        template: dict[str, Any] = recorded[state]
        return template

    def _reading(self, name: str, reader_id: str, path: str) -> dict[str, Any]:
        templates = self._recorded["lists"][name]
        template = templates.get("read") or templates["publish"] | {"state": "read"}
        return _filled(template, {"id": reader_id, "path": path, "query": "", "created": _now()})

    def _named(self, source_type: str) -> str:
        """What this version calls a type."""
        if source_type != "webRTCSession":
            return source_type
        name: str = self._recorded["paths"]["webrtc"]["source"]["type"]
        return name

    def _known(self, name: str) -> str:
        """The name of a list that there is."""
        if name not in self._lists:
            raise ValueError(f"MediaMTX {self.version} has no {name}")
        if name in self._off:
            raise ValueError(f"{name} is off: switch_on({name!r}) first")
        return name

    def _drop_readers(self, path: str) -> None:
        for reader in self._readers.pop(path, []):
            for name in _READER_LISTS.values():
                self._lists.get(name, {}).pop(reader["id"], None)
        self._lists["hlsmuxers"].pop(path, None)
        self._show(path)

    # --- paths ---

    def idle_path(self, name: str) -> None:
        """An entry of the configuration by that name: its path is listed without a publisher."""
        self._configure(name, _Entry("idle", {}))

    def static(self, path: str, source_type: str = "rtspSource", *, available: bool = True) -> None:
        """A path that the server fills itself; without a source yet when it is not available."""
        template = "static" if available else "static, waiting"
        self._configure(path, _Entry(template, {"source": "rtsp://192.0.2.1/camera"}, source_type))

    def always_available(self, path: str) -> None:
        """A path that is available without a publisher (v1.16 and newer)."""
        if "always available" not in self._recorded["paths"]:
            raise ValueError(f"MediaMTX {self.version} has no path that is always available")
        self._configure(path, _Entry("always available", {"alwaysAvailable": True}))

    def load(self, yml: str) -> None:
        """Be configured by what `streamorch mediamtx-config` prints. ValueError: this version does not know a key."""
        self.options = _options(self.version)
        self.path_defaults = self._recorded["entry"] | {"name": "", "maxReaders": 0}
        for found in re.finditer(
            r"(?m)^(?P<indent> *)(?P<key>\w+):(?: >-\n(?P<folded>(?: {4}.*\n)+)| (?P<plain>.+)\n)", yml
        ):
            where = self.path_defaults if found["indent"] else self.options
            if found["key"] not in where:
                raise ValueError(f"MediaMTX {self.version} does not know {found['key']}")
            text = found["plain"] or " ".join(line.strip() for line in found["folded"].splitlines())
            where[found["key"]] = {"yes": True, "no": False, "[]": []}.get(text, text.strip("'"))

    @property
    def config_paths(self) -> set[str]:
        """The names of the configuration's entries, all_others apart."""
        with self._lock:
            return set(self._entries)

    def settings(self, name: str) -> dict[str, object]:
        """What was set in an entry."""
        with self._lock:
            return dict(self._entries[name].settings)

    def _configure(self, name: str, entry: _Entry) -> None:
        with self._lock:
            self._entries[name] = entry
            self._show(name)

    def _show(self, name: str) -> None:
        """List the path as it is now, or no longer."""
        publisher, entry = self._live.get(name), self._entries.get(name)
        readers = self._readers.get(name, [])
        templates, now = self._recorded["paths"], _now()
        if publisher:
            source: object = {"type": publisher.source_type, "id": publisher.source_id}
            conf_name = publisher.conf_name
            template = templates[publisher.protocol]
        elif entry or readers:
            template = templates[entry.template if entry else "idle"]
            source = {"type": entry.source_type, "id": ""} if entry and entry.source_type else None
            conf_name = name if entry else "all_others"
        else:
            if self._paths.pop(name, None):
                del self._names[bisect.bisect_left(self._names, name)]
            return
        times = {key: now for key in ("readyTime", "availableTime", "onlineTime") if publisher and key in template}
        item = template | {"name": name, "confName": conf_name, "source": source, "readers": readers} | times
        if name not in self._paths:
            bisect.insort(self._names, name)
        self._paths[name] = _Item(item, publisher, len(readers))

    # --- which calls there are ---

    def switch_off(self, *names: str) -> None:
        """From now on nothing is known of these lists (`rtmpconns`), as when their protocol is off."""
        self._off.update(names)

    def switch_on(self, *names: str) -> None:
        """The reverse. Off at first, as in a real server: the lists of encrypted RTMP and RTSP."""
        self._off.difference_update(names)

    # --- what goes wrong ---
    #
    # On all calls, or those that start with `route`; the longest one counts. `times` is how often, then it is over.

    def slow(self, seconds: float, route: str = "/", *, times: float = math.inf) -> None:
        """Wait before doing what was asked."""
        self._break(route, _Fault("slow", seconds=seconds, left=times))

    def hang(self, route: str = "/", *, times: float = math.inf) -> None:
        """Do nothing and say nothing until `heal`."""
        self._break(route, _Fault("hang", left=times))

    def answer(
        self,
        status: int,
        body: bytes = b"",
        content_type: str | None = JSON,
        route: str = "/",
        *,
        location: str | None = None,
        times: float = math.inf,
    ) -> None:
        """Do nothing, and say this."""
        self._break(route, _Fault("answer", answer=Answer(status, content_type, body, None, location), left=times))

    def break_off(self, route: str = "/", *, times: float = math.inf) -> None:
        """Do it, and close the connection after half of the body."""
        self._break(route, _Fault("break off", left=times))

    def reset(self, route: str = "/", *, times: float = math.inf) -> None:
        """Do it, and reset the connection after half of the body."""
        self._break(route, _Fault("reset", left=times))

    def drip(self, seconds: float, route: str = "/", *, head: bool = False, times: float = math.inf) -> None:
        """Do it, and send the body (with `head`: all of the answer) byte for byte, one each so many seconds."""
        self._break(route, _Fault("drip all" if head else "drip", seconds=seconds, left=times))

    def refuse(self) -> None:
        """Nobody listens, open connections are closed. What is published stays, for `heal`."""
        with self._lock:
            if not self._is_listening or self._listener is None:
                return
            self._is_listening = False
            self._listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join()
            self._listener.close()
            # Bound again at once, so that nobody else gets the port; without listening it refuses.
            self._listener = _bound(self.port)
            for client in list(self._clients):
                _shut(client)

    def heal(self, route: str | None = None) -> None:
        """No fault any more on this route; without one: on none, and it listens. Who hangs gets his answer."""
        with self._lock:
            for broken in list(self._faults):
                if route in (None, broken):
                    self._faults.pop(broken).released.set()
            if route is None:
                self._listen()

    def vanish_before_kick(self, publisher: Publisher) -> None:
        """It leaves just before the next kick of it."""
        self._vanishing.add(publisher)

    def ignore_kicks(self, publisher: Publisher, *, times: float = math.inf) -> None:
        """Kicks of it are answered ok, and it stays."""
        self._immortal[publisher] = times

    def forget_calls(self) -> None:
        """Start `calls` and `kicks` anew."""
        self.calls.clear()
        self.kicks.clear()

    def _break(self, route: str, fault: _Fault) -> None:
        with self._lock:
            if old := self._faults.get(route):
                old.released.set()
            self._faults[route] = fault

    def _fault(self, path: str) -> _Fault | None:
        with self._lock:
            routes = [route for route, fault in self._faults.items() if path.startswith(route) and fault.left > 0]
            if not routes:
                return None
            fault = self._faults[max(routes, key=len)]
            fault.left -= 1
            return fault

    # --- its part of auth and hooks ---

    def ask(self, publisher: Publisher, key: str) -> int:
        """Ask the service whether it may publish with this key; the status of the answer, 0 without one in 10 s.

        Questions wait for each other.
        """
        recorded = self._recorded["auth"]
        plain = {"rtmps": "rtmp", "rtsps": "rtsp"}.get(publisher.protocol, publisher.protocol)
        template = recorded[plain] if plain in recorded else recorded["webrtc"] | {"protocol": plain}
        question = {
            name: value.replace("KEY", key) if isinstance(value, str) else value for name, value in template.items()
        }
        publisher.query = question["query"]
        question |= {"path": publisher.path, "id": publisher.auth_id}
        with self._loop:
            return self._call_back("/auth", question)

    def hook_ready(self, publisher: Publisher) -> int:
        """Tell the service that it is live, as the hook line of mediamtx.yml does; the status of the answer."""
        return self._call_back("/webhook/ready", _told(publisher))

    def hook_not_ready(self, publisher: Publisher, *, is_named: bool = True) -> int:
        """Tell the service that it is over; the status of the answer. Unnamed: of the path alone, as the plain hook."""
        return self._call_back("/webhook/not-ready", _told(publisher) if is_named else {"path": publisher.path})

    def _call_back(self, path: str, body: dict[str, Any]) -> int:
        assert self.callback_url, "this FakeMediaMTX has no callback_url"
        url = urlsplit(self.callback_url)
        headers = {"Content-Type": "application/json"}
        if url.username is not None:
            credential = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(credential).decode()}"
        target = path if self.node is None else f"{path}?node={self.node}"
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_CALLBACK_SECONDS)
        try:
            connection.request("POST", url.path.rstrip("/") + target, msgspec.json.encode(body), headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    # --- the socket ---

    def _listen(self) -> None:
        with self._lock:
            if self._is_listening or self._listener is None:
                return
            self._is_listening = True
            self._listener.listen(128)
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.add(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.add(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        """One connection, kept open between its requests."""
        try:
            with client, client.makefile("rb") as stream:
                while (request := _next_request(stream)) and self._exchange(client, request):
                    pass
        except OSError:
            pass
        finally:
            self._clients.discard(client)
            self._threads.discard(threading.current_thread())

    def _exchange(self, client: socket.socket, request: _Request) -> bool:
        """Answer one request; may the connection be used again?"""
        self.calls.append(Call(request.method, request.target, time.monotonic()))
        fault = self._fault(request.path)
        if fault and fault.kind in ("slow", "hang"):
            fault.released.wait(fault.seconds if fault.kind == "slow" else None)
        answer = (fault and fault.answer) or self._answer(request)
        if answer is None:
            return False
        head, body = _head(answer, time.time() + self.clock_ahead), answer.body if request.method != "HEAD" else b""
        if fault is None or fault.kind in ("slow", "hang", "answer"):
            _send(client, head, body)
            return request.headers.get("connection", "").lower() != "close"
        if fault.kind in ("drip", "drip all"):
            whole, slowly = (head, body) if fault.kind == "drip" else (b"", head + body)
            client.sendall(whole)
            for byte in slowly:
                if fault.released.wait(fault.seconds):
                    return False
                client.sendall(bytes((byte,)))
            return True
        client.sendall(head + body[: len(body) // 2])
        if fault.kind == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    # --- the Control API ---

    def _answer(self, request: _Request) -> Answer | None:
        """What this server says; None when it is dead now."""
        if request.method == "OPTIONS":
            return Answer(204)
        if refusal := self._refusal(request):
            return refusal
        parts = request.path.split("/", 4)
        match (request.method, *parts):
            case ("GET", "", "v3", "info") if self._recorded["info"]:
                return _found(msgspec.json.encode({"version": self.version, "started": self.started}))
            case ("GET", "", "v3", "config", "global", "get"):
                return _found(msgspec.json.encode(self.options))
            case ("GET", "", "v3", "config", "pathdefaults", "get"):
                return _found(msgspec.json.encode(self.path_defaults))
            case (method, "", "v3", "config", "paths", rest):
                action, _, name = rest.partition("/")
                with self._lock:
                    return self._config(method, action, name, request)
            case ("GET", "", "v3", "paths", "list"):
                with self._turn(), self._lock:
                    return self._page(request, self._names, self._paths.__getitem__)
            case ("GET", "", "v3", "paths", "get", *rest):
                with self._turn(), self._lock:
                    return self._one(self._paths, rest, "path not found")
            case (method, "", "v3", name, action, *rest) if name in self._lists and name not in self._off:
                return self._in_list(method, name, action, rest, request)
        return self._say("no route")

    def _refusal(self, request: _Request) -> Answer | None:
        user, password = request.credential
        if self.nested_auth:
            given = {"USER": user, "PASSWORD": password}
            template = self._recorded["auth"]["api"]
            question = {name: given.get(value, value) for name, value in template.items()}
            if 200 <= self._call_back("/auth", question) < 300:
                return None
        elif self.user is None or (user, password) == (self.user, self.password):
            return None
        return self._say("wrong credentials" if user or password else "no credentials")

    def _turn(self) -> AbstractContextManager[object]:
        """Held while the loop of the paths works, which an unanswered question holds as well."""
        return self._loop if self.paths_wait else nullcontext()

    def _in_list(self, method: str, name: str, action: str, rest: list[str], request: _Request) -> Answer | None:
        listed = self._lists[name]
        if (method, action, rest) == ("GET", "list", []):
            with self._lock:
                return self._page(request, list(listed.values()))
        is_kick = (method, action) == ("POST", "kick") and name not in _WITHOUT_KICK
        if not (is_kick or (method, action) == ("GET", "get")) or rest in ([], [""]):
            return self._say("no route")
        if name == "hlsmuxers":
            with self._lock:
                return self._one(listed, rest, "muxer not found")
        found = _canonical(rest[0])
        if found is None:
            wrong = "invalid format" if len(rest[0]) in (32, 36, 38, 45) else "invalid length"
            return self._say(wrong, " 10", f" {len(rest[0])}")
        unknown = "connection not found" if name.endswith("conns") else "session not found"
        if is_kick:
            return self._kick(name, found, unknown)
        with self._lock:
            return self._one(listed, [found], unknown)

    def _kick(self, name: str, item_id: str, unknown: str) -> Answer | None:
        item = self._lists[name].get(item_id)
        if item is None:
            return self._say(unknown)
        publisher = item.publisher
        if publisher is None:
            self._kick_reader(name, item_id, item.item["path"])
        elif publisher in self._vanishing:
            self._vanishing.discard(publisher)
            self.leave(publisher)
            return self._say(unknown)
        elif publisher.is_live and publisher.protocol in CONNECTIONS and self.crash_on_rtsp_kick:
            self.refuse()
            return None
        elif self._immortal.get(publisher, 0) > 0:
            self._immortal[publisher] -= 1
        else:
            with self._turn() if publisher.is_live and publisher.protocol in CONNECTIONS else nullcontext():
                self.leave(publisher)
        self.kicks.append(item_id)
        return self._say("kicked")

    def _kick_reader(self, name: str, reader_id: str, path: str) -> None:
        with self._lock:
            self._lists[name].pop(reader_id, None)
            self._readers[path] = [reader for reader in self._readers.get(path, []) if reader["id"] != reader_id]
            self._show(path)

    def _config(self, method: str, action: str, name: str, request: _Request) -> Answer:
        if (method, action) == ("GET", "list"):
            entries = {**self._entries}
            if self.all_others is not None:
                entries = {"all_others": _Entry("", self.all_others), **entries}
            return self._page(request, [_Item(self._entry(entry, named)) for entry, named in entries.items()])
        writes = {("POST", "add"), ("POST", "replace"), ("PATCH", "patch"), ("DELETE", "delete")}
        if (method, action) not in writes | {("GET", "get")}:
            return self._say("no route")
        if not name:
            return self._say("invalid name")
        if action == "get":
            if name not in self._entries:
                return self._say("entry not found")
            return _found(msgspec.json.encode(self._entry(name, self._entries[name])))
        if action == "delete":
            if name not in self._entries:
                return self._say("no such entry")
            del self._entries[name]
        else:
            try:
                settings: dict[str, object] = msgspec.json.decode(request.body, type=dict)
            except msgspec.DecodeError:
                return self._say("no body")
            if unknown := settings.keys() - self._recorded["entry"].keys():
                return self._say("unknown field", "noSuchField", min(unknown))
            if action == "add" and name in self._entries:
                return self._say("entry exists")
            if action == "patch" and name not in self._entries:
                return self._say("no such entry")
            known = self._entries.get(name, _Entry("idle", {}))
            self._entries[name] = known._replace(settings=known.settings | settings if action == "patch" else settings)
        if self.apply_seconds:
            timer = threading.Timer(self.apply_seconds, self._apply, (action, name))
            self._threads.add(timer)
            timer.start()
        else:
            self._apply(action, name)
        return self._say("written")

    def _apply(self, action: str, name: str) -> None:
        """A path whose entry comes, changes or goes is made anew: who publishes there is cut off.

        But v1.9.3 leaves a path alone that was there before its entry.
        """
        with self._lock:
            publisher = self._live.get(name)
            is_new = action in ("add", "replace")
            if publisher and (publisher.conf_name == name or (is_new and self.version != "v1.9.3")):
                self.leave(publisher)
            self._show(name)

    def _entry(self, name: str, entry: _Entry) -> dict[str, Any]:
        found = self.path_defaults | entry.settings | {"name": name}
        # From v1.19.3 on the old name of a hook counts when it is set.
        for old, new in (("runOnReady", "runOnAvailable"), ("runOnNotReady", "runOnUnavailable")):
            if new in found and old in found:
                found[new] = found[old]
        return found

    def _page(self, request: _Request, found: list[Any], item: Callable[[Any], _Item] = lambda found: found) -> Answer:
        """A page of a list; 100 items unless the request says otherwise."""
        numbers = {"itemsPerPage": 100, "page": 0}
        for name, value in request.query.items():
            if name not in numbers:
                continue
            if not (value.isascii() and value.isdigit()):
                return self._say("invalid number", "abc", value)
            if int(value) >= 1 << 31:
                return self._say("out of range", "2147483648", value)
            numbers[name] = int(value)
        size = numbers["itemsPerPage"]
        if size == 0:
            return self._say("invalid page")
        first = numbers["page"] * size
        now = time.monotonic()
        items = b",".join([item(each).encoded(now) for each in found[first : first + size]])
        counts = (len(found), math.ceil(len(found) / size))
        return _found(b'{"itemCount":%d,"pageCount":%d,"items":[' % counts + items + b"]}")

    def _one(self, items: dict[str, _Item], rest: list[str], unknown: str) -> Answer:
        if rest in ([], [""]):
            return self._say("invalid name" if rest else "no route")
        item = items.get(rest[0])
        return self._say(unknown) if item is None else _found(item.encoded(time.monotonic()))

    def _say(self, name: str, recorded: str = "", instead: str = "") -> Answer:
        """A recorded answer, with something else in the place of what the recorded request named."""
        found = self._recorded["answers"][name]
        body = found["body"].replace(recorded, instead) if recorded else found["body"]
        return Answer(found["status"], found["content_type"], body.encode(), found.get("www_authenticate"))


def _options(version: str) -> dict[str, object]:
    """The configuration outside of the paths, with the names and defaults that a real server of this version told."""
    found = dict(_OPTIONS)
    if version != "v1.20.1":
        found["authHTTPExclude"] = [{"action": action, "path": ""} for action in ("api", "metrics", "pprof")]
    if version == "v1.9.3":
        found["encryption"] = found.pop("rtspEncryption")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _filled(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The item with these values, as far as this version has them."""
    return template | {name: value for name, value in values.items() if name in template}


def _told(publisher: Publisher) -> dict[str, Any]:
    return {"path": publisher.path, "source_type": publisher.source_type, "source_id": publisher.source_id}


def _canonical(text: str) -> str | None:
    """The UUID in one of the forms that the server reads; None when it is none."""
    bare = text
    if len(text) == 45 and text[:9].lower() == "urn:uuid:":
        bare = text[9:]
    elif len(text) == 38 and text[0] + text[-1] == "{}":
        bare = text[1:-1]
    if not re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", bare):
        return None
    return str(uuid.UUID(bare))


def _found(body: bytes) -> Answer:
    return Answer(200, JSON, body)


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _shut(client: socket.socket) -> None:
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _next_request(stream: BinaryIO) -> _Request | None:
    """The next request of a connection; None when there is none."""
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3 or not line[2].startswith("HTTP/"):  # the noise of TLS may be three words as well
        return None
    headers = {}
    while (header := stream.readline().decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    return _Request(line[0], line[1], headers, stream.read(int(headers.get("content-length", 0))))


def _head(answer: Answer, now: float) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        "Access-Control-Allow-Credentials: true",
        "Access-Control-Allow-Origin: *",
        "Server: mediamtx",
        f"Date: {email.utils.formatdate(now, usegmt=True)}",
    ]
    if answer.content_type:
        lines.append(f"Content-Type: {answer.content_type}")
    if answer.www_authenticate:
        lines.append(f"WWW-Authenticate: {answer.www_authenticate}")
    if answer.location:
        lines.append(f"Location: {answer.location}")
    if answer.status != HTTPStatus.NO_CONTENT:
        lines.append(f"Content-Length: {len(answer.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _send(client: socket.socket, head: bytes, body: bytes) -> None:
    """Head and body in one packet where they fit, without a copy where they do not."""
    if len(body) < 1 << 16:
        client.sendall(head + body)
    else:
        client.sendall(head)
        client.sendall(body)
