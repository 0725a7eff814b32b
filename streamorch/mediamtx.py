"""The Control API of one MediaMTX server (v1.9 to v1.20): what it sees, and how a publisher is cut off.

Differences between versions begin and end in this file. Never call `paths` from inside POST /auth: it waits for the
loop that waits for us (mediamtx.md 2).
"""

import email.utils
import http.client
import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
import requests
import requests.adapters
import requests.auth
import urllib3
import urllib3.connection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T", bound=msgspec.Struct)

# In which lists a publisher of a protocol may stand: auth says `rtmp` for RTMP and RTMPS alike.
LISTS = {
    "rtmp": ("rtmpconns", "rtmpsconns"),
    "rtsp": ("rtspsessions", "rtspssessions"),
    "srt": ("srtconns",),
    "webrtc": ("webrtcsessions",),
    "moq": ("moqsessions",),
}
# Before v1.19.3 auth named the connection of an RTSP publisher, and everything else its session.
RTSP_CONNECTIONS = ("rtspconns", "rtspsconns")
_RTSP_SESSION_IN_AUTH = (1, 19, 3)
# What a path or a hook calls a source, and the list of it. Every other source has no connection.
SOURCE_LISTS = {
    "rtmpConn": "rtmpconns",
    "rtmpsConn": "rtmpsconns",
    "rtspSession": "rtspsessions",
    "rtspsSession": "rtspssessions",
    "srtConn": "srtconns",
    "webRTCSession": "webrtcsessions",
    "webrtcSession": "webrtcsessions",  # v1.9
    "moqSession": "moqsessions",
}
# The server's own reader for HLS, before each viewer had a session (v1.18).
_INTERNAL_READERS = ("hlsMuxer",)

# One request for everything: pages are made of different moments. The default is 100, a limit there is not.
_ALL = "?itemsPerPage=1000000"
# maxReaders of the entry by which an RTSP publisher is cut off: no limit in practice, and no other entry has it.
_MARK = 2147480047
# How long a server takes at most to close a path whose entry was changed.
_ENTRY_SECONDS = 0.2


class NoAnswer(Exception):
    """No usable answer: refused, silent, 5xx, or broken off. `is_refused`: nobody listens there."""

    is_refused = False


class Refused(NoAnswer):
    """The port is closed: the server or its Control API is not running."""

    is_refused = True


class Unauthorized(NoAnswer):
    """The server does not accept our credential for its Control API."""


class _NoRoute(Exception):
    """404 in plain text: this version does not know the call, or that protocol is switched off."""


class Info(msgspec.Struct, frozen=True):
    """Version and start of the server; both None before v1.15.2, which had no such call."""

    version: str | None = None
    started: str | None = None

    @property
    def names_rtsp_sessions(self) -> bool:
        """Does auth name RTSP publishers by the id that the lists have (v1.19.3)? Unknown is no."""
        numbers = (self.version or "").removeprefix("v").split("-")[0].split(".")
        are_known = all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers)
        return are_known and tuple(map(int, numbers)) >= _RTSP_SESSION_IN_AUTH


class Connection(msgspec.Struct, frozen=True, gc=False):
    """One item of a connection or session list."""

    id: str
    path: str = ""
    state: str = ""
    session: str | None = None  # of rtspconns, from v1.11 on
    inboundBytes: int | None = None  # the name since v1.17
    bytesReceived: int = 0

    @property
    def received(self) -> int:
        """Bytes that came in over this connection; the counter of its path is another."""
        return self.bytesReceived if self.inboundBytes is None else self.inboundBytes


class _Named(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    id: str = ""


class Path(msgspec.Struct, frozen=True, gc=False):
    """One item of the list of paths."""

    name: str
    source: _Named | None = None
    ready: bool = False
    available: bool | None = None  # the name since v1.16, when a path may be available without a publisher
    online: bool = True
    readers: list[_Named] = []
    tracks: msgspec.Raw = msgspec.Raw(b"[]")
    tracks2: msgspec.Raw = msgspec.Raw(b"")

    @property
    def publisher_id(self) -> str | None:
        """The connection that publishes here now; None when there is none, or the source is no client."""
        is_live = self.online and (self.ready if self.available is None else self.available)
        if not is_live or self.source is None or self.source.type not in SOURCE_LISTS:
            return None
        return self.source.id or None

    @property
    def source_type(self) -> str:
        """What the source is called in hooks and lists."""
        return self.source.type if self.source else ""

    @property
    def viewers(self) -> int:
        """Readers that are clients."""
        return sum(reader.type not in _INTERNAL_READERS for reader in self.readers)

    @property
    def described_tracks(self) -> bytes:
        """The tracks as JSON as this version has them: names alone, or (v1.17) objects."""
        return bytes(self.tracks2 or self.tracks)


class Exclusion(msgspec.Struct, frozen=True):
    """What is allowed to everybody without asking; an empty path stands for every path."""

    action: str
    path: str = ""


class Options(msgspec.Struct, frozen=True):
    """The configuration outside of the paths, as far as streamorch has an opinion on it."""

    authMethod: str = "internal"
    authHTTPAddress: str = ""
    authHTTPExclude: list[Exclusion] | None = None
    authJWTClaimKey: str | None = None  # None before v1.9
    readTimeout: str = ""
    apiAddress: str = ""
    metrics: bool = False
    metricsAddress: str = ""
    pprof: bool = False
    pprofAddress: str = ""
    hls: bool = False
    hlsAddress: str = ""
    hlsEncryption: bool = False
    webrtc: bool = False
    webrtcAddress: str = ""
    webrtcEncryption: bool = False
    rtmp: bool = False
    rtmpAddress: str = ""
    rtmpsAddress: str = ""
    rtmpEncryption: str = "no"
    rtsp: bool = False
    rtspAddress: str = ""
    rtspsAddress: str = ""
    rtspEncryption: str | None = None
    encryption: str | None = None  # what v1.9 called the one above
    srt: bool = False
    srtAddress: str = ""


class PathOptions(msgspec.Struct, frozen=True):
    """The configuration of a path, or that which all paths inherit; a hook is None where the version has none so."""

    name: str = ""
    source: str = "publisher"
    overridePublisher: bool = True
    runOnOnline: str | None = None  # from v1.19.3 on
    runOnOffline: str | None = None
    runOnAvailable: str | None = None
    runOnUnavailable: str | None = None
    runOnReady: str | None = None  # what the two above were called; later versions tell it only where it is set
    runOnNotReady: str | None = None


class _Connections(msgspec.Struct):
    items: list[Connection]


class _Paths(msgspec.Struct):
    items: list[Path]


class _Entry(msgspec.Struct):
    maxReaders: int = 0
    sourceOnDemandCloseAfter: str = ""


class _PathEntries(msgspec.Struct):
    items: list[PathOptions]


_connections = msgspec.json.Decoder(_Connections)
_connection = msgspec.json.Decoder(Connection)
_paths = msgspec.json.Decoder(_Paths)
_info = msgspec.json.Decoder(Info)
_entry = msgspec.json.Decoder(_Entry)
_options = msgspec.json.Decoder(Options)
_path_options = msgspec.json.Decoder(PathOptions)
_path_entries = msgspec.json.Decoder(_PathEntries)


class ControlAPI:
    """The Control API at one address. Threads may share it: each has connections of its own.

    Every method raises NoAnswer (Refused, Unauthorized) when the server cannot be asked; `seconds` bounds the wait.
    """

    def __init__(self, url: str, *, user: str, password: str):
        self._url = url
        # As bytes: of a text, requests takes what is Latin-1 alone.
        self._credential = requests.auth.HTTPBasicAuth(user.encode(), password.encode())
        self._sessions = threading.local()

    def info(self, *, seconds: float) -> Info:
        """What the server says of itself."""
        try:
            found = _decoded(_info, self._call("GET", "/v3/info", seconds))
        except _NoRoute:
            return Info()
        # A server that somebody built tells its version as the file has it, with the end of the line.
        return Info(found.version and found.version.strip(), found.started)

    def options(self, *, seconds: float) -> Options:
        """The configuration outside of the paths; it may hold secrets, like the next two."""
        return _decoded(_options, self._configuration("global/get", seconds))

    def path_defaults(self, *, seconds: float) -> PathOptions:
        """What every path inherits."""
        return _decoded(_path_options, self._configuration("pathdefaults/get", seconds))

    def path_entries(self, *, seconds: float) -> list[PathOptions]:
        """The entries of the configuration with all that they inherit; live paths are another thing."""
        return _decoded(_path_entries, self._configuration(f"paths/list{_ALL}", seconds)).items

    def clock(self, *, seconds: float) -> float | None:
        """The server's clock as Unix time, in whole seconds; None when it does not tell."""
        reply = self._exchange("GET", "/v3/config/global/get", seconds)
        try:
            return email.utils.parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
        except ValueError:
            return None

    def paths(self, *, seconds: float) -> list[Path]:
        """All paths, live or not. Waits while the server waits for an answer of POST /auth."""
        try:
            return _decoded(_paths, self._call("GET", f"/v3/paths/list{_ALL}", seconds)).items
        except _NoRoute as error:
            raise NoAnswer("no list of paths: this is no Control API v3") from error

    def connections(self, name: str, *, seconds: float) -> list[Connection]:
        """A whole connection or session list; empty when that protocol is switched off or unknown to this version."""
        try:
            return _decoded(_connections, self._call("GET", f"/v3/{name}/list{_ALL}", seconds)).items
        except _NoRoute:
            return []

    def connection(self, protocol: str, connection_id: str, *, seconds: float) -> Connection | None:
        """The publisher of a protocol by the id that auth, hook or list gave; None when no list of it has that id.

        NoAnswer also when the server has no list of that protocol at all: then nobody knows.
        """
        exists = False
        for name in LISTS.get(protocol, ()) + (RTSP_CONNECTIONS if protocol == "rtsp" else ()):
            try:
                found = self._call("GET", f"/v3/{name}/get/{quote(connection_id, safe='')}", seconds)
            except _NoRoute:
                continue
            exists = True
            if found is not None:
                return _decoded(_connection, found)
        if not exists:
            raise NoAnswer("the server has no list of this protocol")
        return None

    def close(self, protocol: str, connection_id: str, path: str, *, seconds: float) -> bool:
        """Have the connection of a publisher closed; `connection` tells when it is gone. It may have been gone before.

        False when it can only be waited for: an RTSP publisher that is not live yet. (`seconds` bounds each of up to
        six requests.)
        """
        if protocol == "rtsp":
            return self._close_rtsp(connection_id, path, seconds)
        self.kick(protocol, connection_id, seconds=seconds)
        return True

    def kick(self, protocol: str, connection_id: str, *, seconds: float) -> None:
        """Close a connection by its id, in whatever list of its protocol it stands."""
        for name in LISTS.get(protocol, ()):
            try:
                done = self._call("POST", f"/v3/{name}/kick/{quote(connection_id, safe='')}", seconds)
            except _NoRoute:
                continue
            if done is not None:
                return

    def _close_rtsp(self, connection_id: str, path: str, seconds: float) -> bool:
        """Cut an RTSP publisher off by a configuration entry for its path that comes and goes.

        Kicking it is no way: from v1.15 to v1.20.1 the server takes the stream from a session whose callback still
        writes to it, and crashes (100 of 100 kicks of a fast sender); all versions delete from a map that their lists
        read. A publisher that is not live yet is left alone: an entry does nothing to it, and a kick in the moment of
        its start leaves a path that is live for ever. When it is live, its hook or the reconciler asks again.
        """
        name = quote(path)
        entry = self._call("GET", f"/v3/config/paths/get/{name}", seconds)
        settled = None if entry is None else _decoded(_entry, entry)
        if settled is not None and settled.maxReaders == _MARK:  # ours, left behind half done
            self._call("DELETE", f"/v3/config/paths/delete/{name}", seconds)
        found = self.connection("rtsp", connection_id, seconds=seconds)
        if found is not None and found.session is not None:  # by the id of its connection, before v1.19.3
            connection_id = found.session
            found = self.connection("rtsp", connection_id, seconds=seconds)
        if found is None:
            return True
        if found.state != "publish":
            return False
        if settled is None:
            self._call("POST", f"/v3/config/paths/add/{name}", seconds, {"maxReaders": _MARK})
            self._call("DELETE", f"/v3/config/paths/delete/{name}", seconds)
        elif settled.maxReaders != _MARK:
            # The operator's: any change closes the path, and this one matters only to paths that pull their source.
            other = "11s" if settled.sourceOnDemandCloseAfter == "10s" else "10s"
            self._call("PATCH", f"/v3/config/paths/patch/{name}", seconds, {"sourceOnDemandCloseAfter": other})
        if self.info(seconds=seconds).version is None:
            self._kick_rtsp_of_old(connection_id, seconds)
        return True

    def _kick_rtsp_of_old(self, connection_id: str, seconds: float) -> None:
        """Up to v1.12.2 an entry leaves live paths alone, and a kick is safe. (No version is told before v1.15.2.)"""
        deadline = time.monotonic() + _ENTRY_SECONDS
        while self.connection("rtsp", connection_id, seconds=seconds) is not None:
            if time.monotonic() > deadline:
                self.kick("rtsp", connection_id, seconds=seconds)
                return
            time.sleep(_ENTRY_SECONDS / 10)

    def _configuration(self, part: str, seconds: float) -> bytes | None:
        try:
            return self._call("GET", f"/v3/config/{part}", seconds)
        except _NoRoute as error:
            raise NoAnswer("no configuration: this is no Control API v3") from error

    def _call(self, method: str, path: str, seconds: float, body: object = None) -> bytes | None:
        """The body of a 2xx; None for a JSON 404 (or the 400 of an id that cannot exist). _NoRoute, NoAnswer."""
        reply = self._exchange(method, path, seconds, body)
        if 200 <= reply.status_code < 300:
            return reply.content
        if reply.status_code in (401, 403):
            raise Unauthorized("the server does not accept our credential")
        is_json = reply.headers.get("Content-Type", "").startswith("application/json")
        if reply.status_code == 404 and not is_json:
            raise _NoRoute
        if reply.status_code == 404 or (reply.status_code == 400 and body is None):
            return None
        raise NoAnswer(f"status {reply.status_code}")

    def _exchange(self, method: str, path: str, seconds: float, body: object = None) -> requests.Response:
        """The answer, whatever it says, all of it read. NoAnswer."""
        try:
            reply = self._session().request(
                method,
                self._url + path,
                data=None if body is None else msgspec.json.encode(body),
                timeout=seconds,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # Without the URL, which may hold a credential.
            raise (Refused("refused") if _is_refused(error) else NoAnswer(type(error).__name__)) from None
        return reply

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            session.auth = self._credential
            # Neither a proxy nor a .netrc of the environment has a say in where our credential goes.
            session.trust_env = False
            for scheme in ("http://", "https://"):
                session.mount(scheme, _PromptAdapter())
        return session


def _decoded(decoder: msgspec.json.Decoder[T], content: bytes | None) -> T:
    try:
        return decoder.decode(content or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswer(f"an answer of another form: {error}") from error


def _is_refused(error: BaseException | None) -> bool:
    """Was it ECONNREFUSED, somewhere down the chain of requests, urllib3 and http.client?"""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ConnectionRefusedError):
            return True
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        reason = getattr(error, "reason", None)
        error = inner or (reason if isinstance(reason, BaseException) else None) or error.__cause__ or error.__context__
        seen += 1
    return False


# --- one deadline for all of an answer --------------------------------------------------------------------
#
# A timeout of requests holds for each piece that arrives: a server that drips its answer, or its head alone, would be
# waited for without end, by POST /auth too.


class _UntilDeadline(io.RawIOBase):
    """What arrives on a socket until its timeout, counted from now, has passed; TimeoutError then."""

    def __init__(self, arriving: io.RawIOBase, sock: socket.socket):
        self._arriving = arriving
        self._socket = sock
        seconds = sock.gettimeout()
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("an answer that takes too long")
            self._socket.settimeout(left)
        return self._arriving.readinto(buffer)

    def close(self) -> None:
        self._arriving.close()
        super().close()


class _PromptResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock))


class _PromptConnection(urllib3.connection.HTTPConnection):
    response_class = _PromptResponse


class _PromptSecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _PromptResponse


class _PromptPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PromptConnection


class _PromptSecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PromptSecureConnection


class _PromptAdapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PromptPool, "https": _PromptSecurePool}
