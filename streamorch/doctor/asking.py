"""How the doctor learns its facts: everybody is asked at once, and nobody is waited for longer than a few seconds.

It changes nothing anywhere. Our credentials go to DATABASE_URL, CALLBACK_URL and MEDIAMTX_API_URL alone: who is named
by a configuration of MediaMTX is asked without.
"""

import base64
import http.client
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psycopg

from streamorch import local
from streamorch.doctor.facts import Absent, Answer, Database, Facts, Instance, MediaServer
from streamorch.doctor.verdicts import OLDEST_POSTGRES, PORTS, place
from streamorch.mediamtx import ControlAPI, NoAnswer, Refused, Unauthorized
from streamorch.repositories import NODE, Connection, connect, diagnosis, migrate, nodes, ping
from streamorch.settings import SettingError, Settings

# All of it takes no longer, whoever hangs.
_WHOLE_SECONDS = 9.0
# MediaMTX lets who comes with a wrong credential wait for up to 4 s; once we are in, it is quick.
_API_SECONDS = 4.5
_NEXT_SECONDS = 1.0
_HTTP_SECONDS = 3.0
_PUBLIC_SECONDS = 2.0
_ROUND_TRIPS = 5
_READ_BYTES = 1 << 16


def facts(environ: Mapping[str, str]) -> Facts:
    """What there is to know with these settings; those of a `streamorch run` from here go without saying."""
    environ = local.completed(environ)
    has_database = any(environ.get(name, "").strip() for name in ("DATABASE_URL", "DATABASE_URL_FILE"))
    try:
        settings = Settings.from_env(environ if has_database else {**environ, "DATABASE_URL": "postgresql:///unknown"})
    except SettingError as error:
        return Facts(settings=Absent(str(error)))
    return facts_of(settings, has_database=has_database)


def facts_of(settings: Settings, *, has_database: bool = True) -> Facts:
    """What there is to know with these settings, without a look at the environment."""
    bases = {name: base for name, base in asdict(settings.media_urls).items() if base}
    answers = at_once(
        {
            "database": partial(_database, settings.database_url) if has_database else _no_database,
            "service": partial(_instance, local.own_url(settings)),
            "callback": partial(_instance, settings.callback_url),
            "question": partial(_question, settings),
            "media_server": partial(_media_server, settings),
            **{f"public {name}": partial(_public, base) for name, base in bases.items()},
        },
        seconds=_WHOLE_SECONDS,
    )
    public = {name: answers.pop(f"public {name}") for name in bases}
    return Facts(settings=settings, public=public, **answers)


def at_once(questions: Mapping[str, Callable[[], Any]], *, seconds: float) -> dict[str, Any]:
    """The answer to each question, or why there is none: Absent also when it did not come in time."""
    answers: dict[str, Any] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except Exception as error:  # a fault of one question must not take the others along
            answers[name] = Absent(f"asking failed: {type(error).__name__}")

    deadline = time.monotonic() + seconds
    # Daemons: a name that is looked up for a minute must not hold the end of the process.
    threads = [threading.Thread(target=ask, args=each, daemon=True) for each in questions.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = Absent(f"no answer within {seconds:g} s", "silent")
    return {name: answers.get(name, late) for name in questions}


def skew(reading: float, *, before: float, after: float, resolution: float = 0.0) -> float:
    """How far a clock that was read between two moments of ours is ahead: 0.0 when it may be right.

    `resolution` is how much later than `reading` it may have been, cut off by the one who told it.
    """
    if reading > after:
        return reading - after
    return min(0.0, reading + resolution - before)


# --- the database --------------------------------------------------------------------------------------------


def _no_database() -> Absent:
    return Absent("DATABASE_URL is not set, and no `streamorch run` is going on here", "unasked")


def _database(url: str) -> Database | Absent:
    try:
        with connect(url) as conn:
            return _asked_of_database(conn)
    except psycopg.OperationalError as error:
        return Absent(" ".join(str(error).split()), "silent")
    except psycopg.ProgrammingError as error:
        # Without a code of the server's it is libpq that cannot read the URL; it quotes it, password and all.
        reason = error.diag.message_primary if error.sqlstate else "DATABASE_URL is not a URL that PostgreSQL can read"
        return Absent(str(reason))


def _asked_of_database(conn: Connection) -> Database:
    version = conn.info.server_version
    if version < OLDEST_POSTGRES:
        return Database(version)
    trips = []
    for _ in range(_ROUND_TRIPS):
        before = time.perf_counter()
        ping(conn)
        trips.append(time.perf_counter() - before)
    sent = time.time()
    state = diagnosis.state(conn)
    found = Database(
        version,
        round_trip=statistics.median(trips),
        skew=skew(state.clock, before=sent, after=time.time()),
        state=state,
    )
    try:
        found = replace(found, not_applied=tuple(migrate.not_applied(conn)))
    except migrate.SchemaError as error:
        return replace(found, schema_error=str(error))
    if found.not_applied:
        return found
    return replace(found, node=next(node for node in nodes.every(conn, default=NODE) if node.name == NODE))


# --- the service ---------------------------------------------------------------------------------------------


class _Readiness(msgspec.Struct):
    """The body of /readyz."""

    version: str | None = None
    database: str | None = None
    schema: str | None = None
    media_server: str | None = None


def _instance(url: str) -> Instance | Absent:
    """Who answers at a place where streamorch should."""
    reply = _http("GET", f"{url}/readyz")
    if isinstance(reply, Absent):
        return reply
    try:
        told = msgspec.json.decode(reply.body, type=_Readiness)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = _Readiness()
    return Instance(reply.status, told.version, told.database, told.schema, told.media_server, reply.location)


def _question(settings: Settings) -> Answer | Absent:
    """As MediaMTX asks whether we may use its Control API; of all questions the one that changes nothing."""
    question = {
        "ip": "127.0.0.1",
        "user": settings.mediamtx_api_user,
        "password": settings.mediamtx_api_passwords[0],
        "token": "",
        "action": "api",
        "path": "",
        "protocol": "",
        "id": None,
        "query": "",
    }
    credential = base64.b64encode(f"mediamtx:{settings.callback_secret or ''}".encode()).decode()
    headers = {"Content-Type": "application/json"}
    if settings.callback_secret:
        headers["Authorization"] = f"Basic {credential}"
    return _http("POST", f"{settings.callback_url}/auth", msgspec.json.encode(question), headers)


# --- the media server ----------------------------------------------------------------------------------------


def _media_server(settings: Settings) -> MediaServer | Absent:
    api = ControlAPI(
        settings.mediamtx_api_url, user=settings.mediamtx_api_user, password=settings.mediamtx_api_passwords[0]
    )
    try:
        options = api.options(seconds=_API_SECONDS)
        defaults = api.path_defaults(seconds=_NEXT_SECONDS)
        entries = api.path_entries(seconds=_NEXT_SECONDS)
        version = api.info(seconds=_NEXT_SECONDS).version
        sent = time.time()
        clock = api.clock(seconds=_NEXT_SECONDS)
        received = time.time()
    except Refused:
        return Absent("nobody listens there", "refused")
    except Unauthorized:
        return Absent("it does not accept our credential", "unauthorized")
    except NoAnswer as error:
        return Absent(str(error), "silent" if "Timeout" in str(error) else "broken")
    ahead = None if clock is None else skew(clock, before=sent, after=received, resolution=1.0)
    return MediaServer(
        options, defaults, tuple(entries), version, ahead, _who_is_asked(options.authHTTPAddress, settings)
    )


def _who_is_asked(address: str, settings: Settings) -> Instance | Absent | None:
    """Who answers where this media server asks, if that is not CALLBACK_URL. Without a credential of ours."""
    try:
        parts = urlsplit(address)
        if not parts.hostname or place(address) == place(settings.callback_url):
            return None
    except ValueError:
        return None
    return _instance(urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0], "", "")))


# --- what viewers and encoders reach -------------------------------------------------------------------------


def _public(base: str) -> Answer | Absent:
    """Does anybody answer at a public URL? Nothing is published or read."""
    scheme = urlsplit(base).scheme
    if scheme in ("http", "https"):
        return _http("GET", base, seconds=_PUBLIC_SECONDS)
    host, port = urlsplit(base).hostname or "", urlsplit(base).port or PORTS[scheme]
    return _reached(partial(_srt if scheme == "srt" else _tcp, host, port))


def _tcp(host: str, port: int) -> Answer:
    socket.create_connection((host, port), timeout=_PUBLIC_SECONDS).close()
    return Answer()


def _srt(host: str, port: int) -> Answer:
    """The first packet of SRT's handshake, which its listener answers without keeping anything of it."""
    control, induction = 0x80000000, 1
    packet = struct.pack(">16I", control, 0, 0, 0, 4, 2, 1, 1500, 8192, induction, 0x5EED, 0, 0x7F000001, 0, 0, 0)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as client:
        client.settimeout(_PUBLIC_SECONDS / 2)
        client.connect(address)
        for is_last in (False, True):  # a datagram may be lost
            client.send(packet)
            try:
                client.recv(1500)
            except TimeoutError:
                if is_last:
                    raise
            else:
                break
    return Answer()


# --- one request ---------------------------------------------------------------------------------------------


def _http(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    seconds: float = _HTTP_SECONDS,
) -> Answer | Absent:
    """One exchange, as MediaMTX would have it: no proxy of the environment, the authorities that the system trusts.

    Redirects are told, not followed; a credential in the URL is not sent.
    """

    def ask() -> Answer:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        connection = (
            http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=seconds)
        )
        try:
            target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
            connection.request(method, target, body, dict(headers or {}))
            reply = connection.getresponse()
            return Answer(reply.status, reply.headers.get("Location"), reply.read(_READ_BYTES))
        finally:
            connection.close()

    return _reached(ask)


def _reached(ask: Callable[[], Answer]) -> Answer | Absent:
    """The answer, or in words why there is none."""
    try:
        return ask()
    except ConnectionRefusedError:
        return Absent("nobody listens there", "refused")
    except socket.gaierror:
        return Absent("its host name is not known to this machine", "unknown-host")
    except TimeoutError:
        return Absent("no answer in time", "silent")
    except ssl.SSLCertVerificationError as error:
        return Absent(f"its certificate is not accepted: {error.verify_message}", "certificate")
    except ssl.SSLError:
        return Absent("it does not speak TLS", "broken")
    except http.client.HTTPException:
        return Absent("it does not speak HTTP", "broken")
    except OSError as error:
        return Absent(error.strerror or "it breaks off", "broken")
