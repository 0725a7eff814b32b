"""The world: one service on a real socket, its media server, encoders, hooks on their way, and a clock that jumps.

Nothing here judges; what happened is in `journal`, what there is in `rows`, `shown` and `heard`.
"""

import http.client
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import flask
import msgspec
import pytest
from psycopg.rows import dict_row
from werkzeug.serving import WSGIRequestHandler, make_server

from streamorch import look
from streamorch.look import Looks
from streamorch.mediamtx import ControlAPI, Path
from streamorch.reconciler import LostLead, Reconciler, Report
from streamorch.repositories import Connection, PatientConnection, connect
from tests.conftest import API_SECRET
from tests.fake_mediamtx import CONNECTIONS, LISTS, FakeMediaMTX, Publisher
from tests.passing import pass_time
from tests.world.oracle import Broadcaster, Circumstances, Key, Publishing, Row, Seen

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LEASE_SECONDS = 20
RATE = 1_000_000  # bytes a second of an encoder that sends
# The look, fifty times as fast, all its ratios kept: what an encoder sends shows in every millisecond.
_PACE = 0.02
_LOOK = ("_POLL_SECONDS", "_SILENCE_SECONDS", "_OLD_SAMPLE_SECONDS", "_APART_SECONDS", "_FRESH_SAMPLE_SECONDS")
_HANG_SECONDS = 0.05
_TABLES = ("streams", "stream_keys", "broadcasters", "departures", "nodes")
_ROWS = """
    SELECT s.id, s.stream_key_id, s.path, s.protocol, s.auth_id, s.source_id, s.source_type, s.claimed_at,
           s.lease_expires_at, s.started_at, s.interrupted_at, s.ended_at, s.end_reason, s.replaces, s.replaced_by,
           s.kick_requested_at, s.kicked_at,
           t.viewers, t.media, k.label, k.broadcaster_id, rfc3339_v1(s.started_at) AS started,
           rfc3339_v1(s.interrupted_at) AS interrupted, clock_timestamp() AS now
    FROM streams AS s
    JOIN stream_keys AS k ON k.id = s.stream_key_id
    LEFT JOIN stream_stats AS t ON t.stream_id = s.id
    ORDER BY s.started_at DESC, s.id DESC
"""


_WAITING = """
    SELECT 1
    FROM pg_locks AS l
    JOIN pg_stat_activity AS a USING (pid)
    WHERE NOT l.granted AND a.datname = current_database() AND a.application_name = 'streamorch'
"""
_OPEN_OF = """
    SELECT s.id
    FROM streams AS s
    JOIN stream_keys AS k ON k.id = s.stream_key_id
    WHERE s.ended_at IS NULL
      AND (k.id = %(stream_key_id)s::uuid OR k.broadcaster_id = %(broadcaster_id)s::uuid OR s.id = %(stream_id)s::uuid)
"""
_OPEN = "SELECT 1 FROM streams WHERE ended_at IS NULL AND coalesce(source_id, auth_id) = %(id)s"


class Heard(NamedTuple):
    """An answer of the service, to whoever asked; `slug` of a problem."""

    method: str
    path: str
    status: int
    content_type: str
    slug: str | None


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(eq=False)
class Encoder:
    """A connection to the media server, from its question until it is gone for good."""

    publisher: Publisher
    key: Key | None  # that of its credential; None when there is no such key
    value: str  # what it was given when it was set up, and keeps
    is_granted: bool = False
    is_flowing: bool = True
    was_live: bool = False
    is_foiled: bool = False  # its next kick does nothing
    has_left: bool = False  # it went, or its going was noticed

    def __str__(self) -> str:
        return f"{self.publisher.protocol}:{self.publisher.auth_id[:4]}"


class Hook(NamedTuple):
    """An event of the media server on its way to the service."""

    is_ready: bool
    encoder: Encoder


class Interruptible(ControlAPI):
    """The Control API as a reconciler asks it, and something that happens between two of its questions."""

    meanwhile: Callable[[], None] | None = None

    def paths(self, *, seconds: float) -> list[Path]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return super().paths(seconds=seconds)


@dataclass
class World:
    """All of it, within `run`; `begin` makes it empty."""

    app: flask.Flask
    fake: FakeMediaMTX
    conn: PatientConnection
    url: tuple[str, int]
    watcher: PatientConnection  # sees what is committed while others are at work
    patch: pytest.MonkeyPatch
    heard: list[Heard] = field(default_factory=list)
    cuts: list["Future[None]"] = field(default_factory=list)
    early: list[str] = field(default_factory=list)  # connections that were closed while their stream was open
    not_ended_yet: set[uuid.UUID] = field(default_factory=set)  # streams, when the closing of theirs was asked for

    def begin(self) -> None:
        """Nobody is there, nothing was ever published, and all is well."""
        self.heal()
        self.fake.restart()
        self.fake.forget_calls()
        for table in _TABLES:
            self.conn.execute(f"DELETE FROM {table}")  # noqa: S608  # names of this file
        self.conn.execute("UPDATE leaders SET holder = '', expires_at = '-infinity'")
        self.conn.execute("SELECT bump_live_list_v1()")
        self.looks._alive_until.clear()
        settings = self.app.extensions["streamorch"].settings
        self.reconcilers = [
            Reconciler(settings, Interruptible(self.fake.url, user="streamorch", password="secret")) for _ in range(2)
        ]
        self.heard.clear()
        self.journal: list[str] = []
        self.passed = timedelta()
        self.broadcasters: list[Broadcaster] = []
        self.keys: list[Key] = []
        self.encoders: list[Encoder] = []
        self.hooks: list[Hook] = []
        self.fault: str | None = None
        self.failing_ticks = 0
        self.failing_since: datetime | None = None
        self.is_api_known = False
        self.unclaimed: set[str] = set()
        self.is_restart_news = False
        self.was_refused = False
        self.viewers: dict[uuid.UUID, int | None] = {}
        self.early.clear()
        self.not_ended_yet.clear()
        self.rows: dict[uuid.UUID, Row] = {}
        self.listed: list[dict[str, Any]] = []

    def note(self, line: str) -> None:
        self.journal.append(line)

    @property
    def looks(self) -> Looks:
        looks: Looks = self.app.extensions["streamorch"].looks
        return looks

    # --- time ---

    def now(self) -> datetime:
        """The clock of the database, and what was made to pass."""
        row = self.conn.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment + self.passed

    def hold_until(self, key: Key) -> datetime:
        """Until when a key is held that was just put on hold."""
        row = self.conn.execute("SELECT hold_until FROM stream_keys WHERE id = %s", [key.id]).fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment + self.passed

    def pass_time(self, seconds: int) -> None:
        """All that is written down becomes so much older; the list shows it, which no writer of the service told."""
        pass_time(self.conn, seconds)
        self.conn.execute("SELECT bump_live_list_v1()")
        self.passed += timedelta(seconds=seconds)
        self.note(f"{seconds} s pass")

    # --- whoever calls the API ---

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """One request with the API secret."""
        connection = http.client.HTTPConnection(*self.url, timeout=20)
        sent = {"Authorization": f"Bearer {API_SECRET}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body), sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return Reply(answer.status, dict(answer.headers), msgspec.json.decode(content) if content else None)

    def new_broadcaster(self) -> None:
        made = self.call("POST", "/broadcasters", {"display_name": f"Team {len(self.broadcasters)}"})
        assert made.status == 201, made
        self.broadcasters.append(Broadcaster(uuid.UUID(made.body["id"])))

    def new_key(self, of: Broadcaster, path: str | None, takeover: str, lasts: int | None) -> None:
        """A key; refused where another key's stream is on its path, or the broadcaster is deleted."""
        expires_at = None if lasts is None else self.now() + timedelta(seconds=lasts)
        wanted = {"broadcaster_id": of.id, "path": path, "takeover": takeover, "expires_at": self._written(expires_at)}
        made = self.call("POST", "/stream-keys", wanted)
        self.note(f"a key on {path}, takeover {takeover}, for {lasts} s: {made.status}")
        if made.status != 201:
            assert made.status == (400 if of.is_deleted else 409), made
            return
        self.keys.append(Key(uuid.UUID(made.body["id"]), made.body["key_value"], of, path, takeover, expires_at))

    def _written(self, moment: datetime | None) -> datetime | None:
        """As it must be written down, for it to come when the world's clock says so."""
        return moment and moment - self.passed

    def change_key(self, key: Key, **changes: Any) -> int:
        """PATCH, times by the world's clock; the status."""
        sent = {name: self._written(value) if isinstance(value, datetime) else value for name, value in changes.items()}
        status = self.call("PATCH", f"/stream-keys/{key.id}", sent).status
        self.note(f"key {self.keys.index(key)}: {changes}: {status}")
        return status

    def rotate_key(self, key: Key, overlap_seconds: int) -> int:
        """Another value for the key; the status."""
        made = self.call("POST", f"/stream-keys/{key.id}/rotate", {"overlap_seconds": overlap_seconds})
        self.note(f"key {self.keys.index(key)} is rotated, overlap {overlap_seconds} s: {made.status}")
        if made.status == 201:
            until = made.body["previous_works_until"]
            key.previous_value, key.value = key.value, made.body["key_value"]
            key.previous_works_until = datetime.fromisoformat(until) + self.passed if until else None
        return made.status

    # --- encoders ---

    def connect(self, key: Key | None, path: str, protocol: str, *, value: str | None = None) -> Encoder:
        """An encoder connects, with the newest value of its key or with this; it has not been asked for yet."""
        publisher = self.fake.publish(path, protocol, live=False, bytes_per_second=RATE)
        encoder = Encoder(publisher, key, value or (key.value if key else "sk_unknownunknownunknownunknownunknown00"))
        self.encoders.append(encoder)
        return encoder

    def ask(self, encoder: Encoder) -> tuple[int, str | None]:
        """The media server asks for it; the status, and the slug of a refusal. "Alive" of a look before has run out."""
        self._await_looks()
        count = len(self.heard)
        status = self.fake.ask(encoder.publisher, encoder.value)
        slug = next((heard.slug for heard in self.heard[count:] if heard.path == "/auth"), None)
        number = self.keys.index(encoder.key) if encoder.key else None
        self.note(f"{encoder} asks with key {number} on {encoder.publisher.path}: {status} {slug or ''}")
        return status, slug

    def ask_too_late(self, encoder: Encoder) -> tuple[int, str | None]:
        """The same, and while the claim waits for its key, that is revoked. 503 when the wait was too long."""
        assert encoder.key is not None
        with ThreadPoolExecutor(1) as thread:
            with self.conn.transaction():
                self.conn.execute("SELECT revoke_stream_key_v1(%s)", [encoder.key.id])
                asked = thread.submit(self.ask, encoder)
                pause = threading.Event()
                while not asked.done() and not self.watcher.execute(_WAITING).fetchone():
                    pause.wait(0.001)
            encoder.key.is_revoked = True
            return asked.result()

    def _await_looks(self) -> None:
        pause = threading.Event()
        while self.looks._alive_until:
            pause.wait(_PACE / 2)
            with self.looks._lock:
                last = max(self.looks._alive_until.values(), default=0.0)
                if last <= time.monotonic():
                    self.looks._alive_until.clear()

    def go_live(self, encoder: Encoder) -> None:
        """Its media comes; who was live on its path is thrown out. Hooks of both are on their way, in this order."""
        publisher = encoder.publisher
        occupant = next((e for e in self.encoders if e.publisher.is_live and e.publisher.path == publisher.path), None)
        self.fake.go_live(publisher)
        encoder.was_live = True
        self.note(f"{encoder} is live on {publisher.path}" + (f", {occupant} is thrown out" if occupant else ""))
        if occupant:
            occupant.has_left = True
            self.hooks.append(Hook(False, occupant))
        self.hooks.append(Hook(True, encoder))

    def leave(self, encoder: Encoder) -> None:
        """It goes; when it was live its hook is on its way."""
        was_live = encoder.publisher.is_live
        encoder.has_left = True
        self.fake.leave(encoder.publisher)
        self.note(f"{encoder} leaves")
        if was_live:
            self.hooks.append(Hook(False, encoder))

    def deliver(self, hook: Hook, *, is_named: bool = True) -> int:
        """The hook arrives."""
        publisher = hook.encoder.publisher
        if hook.is_ready:
            status = self.fake.hook_ready(publisher)
        else:
            status = self.fake.hook_not_ready(publisher, is_named=is_named)
        kind = "ready" if hook.is_ready else "not ready" if is_named else "not ready, unnamed"
        self.note(f"hook of {hook.encoder}: {kind}: {status}")
        return status

    def is_connected(self, encoder: Encoder) -> bool:
        return self.fake.is_connected(encoder.publisher)

    def live(self) -> list[Encoder]:
        return [encoder for encoder in self.encoders if encoder.publisher.is_live]

    def waiting(self) -> list[Encoder]:
        """Let in, and not live yet."""
        return [e for e in self.encoders if e.is_granted and not e.publisher.is_live and self.is_connected(e)]

    # --- the media server ---

    def restart(self, *, hooks: bool) -> None:
        """Another run of it; a server that is killed tells nothing."""
        gone = self.live()
        for encoder in self.encoders:
            encoder.has_left = True
        self.fake.restart()
        self.is_restart_news = True
        self.note("the media server restarts")
        if hooks:
            self.hooks += [Hook(False, encoder) for encoder in gone]
        if self.fault == "refused":
            self.fake.refuse()

    def fail(self, kind: str, protocol: str) -> None:
        """From now on the Control API, or the lists of a protocol, answer so: one of FAULTS."""
        self.heal()
        self.fault = kind if kind in ("refused", "500", "silent", "paths 500") else f"{kind} {protocol}"
        self.note(f"fault: {self.fault}")
        lists = [LISTS[protocol], *([CONNECTIONS[protocol]] if protocol in CONNECTIONS else [])]
        match kind:
            case "refused":
                self.fake.refuse()
            case "500":
                self.fake.answer(500)
            case "paths 500":
                self.fake.answer(500, route="/v3/paths")
            case "silent":
                self._be_impatient()
                self.fake.hang()
            case "off":  # which ends its connections
                for encoder in self.encoders:
                    if encoder.publisher.protocol == protocol and self.is_connected(encoder):
                        self.leave(encoder)
                self.fake.switch_off(*lists)
            case _:
                for name in lists:
                    if kind == "list 500":
                        self.fake.answer(500, route=f"/v3/{name}")
                    elif kind == "list half":
                        self.fake.break_off(f"/v3/{name}")
                    else:
                        self._be_impatient()
                        self.fake.hang(f"/v3/{name}")

    def heal(self) -> None:
        """The media server answers everything again."""
        self.fake.heal()
        self.fake.switch_on("rtmpconns", "srtconns", "rtspsessions", "rtspconns", "webrtcsessions")
        self.fault = None
        self._be_patient()

    def _be_impatient(self) -> None:
        """Where nothing is said, there is nothing to wait for."""
        for name in ("_INFO_SECONDS", "_LISTS_SECONDS", "_PATHS_SECONDS"):
            self.patch.setattr(f"streamorch.reconciler.{name}", _HANG_SECONDS)
        self.patch.setattr("streamorch.look._REQUEST_SECONDS", _HANG_SECONDS)
        self.patch.setattr("streamorch.kicks._REQUEST_SECONDS", _HANG_SECONDS)
        self.patch.setattr("streamorch.blueprints.webhooks._ASK_SECONDS", _HANG_SECONDS)

    def _be_patient(self) -> None:
        """On a busy machine slow is not wrong."""
        for name in ("_INFO_SECONDS", "_LISTS_SECONDS", "_PATHS_SECONDS"):
            self.patch.setattr(f"streamorch.reconciler.{name}", 10.0)
        self.patch.setattr("streamorch.look._REQUEST_SECONDS", 5.0)
        self.patch.setattr("streamorch.kicks._REQUEST_SECONDS", 5.0)
        self.patch.setattr("streamorch.blueprints.webhooks._ASK_SECONDS", 5.0)

    def is_silent_about(self, protocol: str) -> bool:
        """Does nobody say who is connected over it?"""
        return self.fault in ("refused", "500", "silent") or (self.fault or "").endswith(f" {protocol}")

    def is_nameless(self, encoder: Encoder) -> bool:
        """Does the server tell nobody which connection the session of this publisher belongs to? (Before v1.11.)"""
        return self.fake.version == "v1.9.3" and encoder.publisher.protocol == "rtsp"

    @property
    def is_away(self) -> bool:
        """Is there no sign of life of it?"""
        return self.fault in ("refused", "500", "silent")

    # --- the reconciler ---

    def tick(self, number: int, meanwhile: Callable[[], None] | None = None) -> Report | None:
        """One of the two takes the lead and ticks; `meanwhile` happens while it does. None when it lost the lead."""
        reconciler = self.reconcilers[number]
        assert isinstance(reconciler._api, Interruptible)
        reconciler._api.meanwhile = meanwhile
        self.note(f"reconciler {number} ticks")
        began_at = self.now()
        try:
            report = reconciler.tick(self.conn, force=True)
        except LostLead:
            report = None
        reconciler._api.meanwhile = None
        if report is None:
            self.note("it lost the lead")
            return None
        self.note(f"it changed {[f'{c.what} {c.path}' for c in report.changes]}, api {report.api}")
        self.was_refused = report.api == "refused"
        self.unclaimed = {entry["source_id"] for entry in report.unclaimed}
        if report.api == "ok" and not report.unknown:
            self.is_restart_news = False
        if report.api == "ok":
            self.is_api_known = True
            self.failing_ticks, self.failing_since = 0, None
        elif self.is_away:
            self.failing_ticks += 1
            self.failing_since = self.failing_since or began_at
        return report

    # --- what there is ---

    def circumstances(self) -> Circumstances:
        return Circumstances(self.keys, self.rows.values(), self.is_api_known, self.look)

    def encoder_of(self, row: Row) -> Encoder | None:
        """Whose stream this is: by the connection that it is known to have, else by the one that was asked for."""
        for encoder in self.encoders:
            if (
                row.source_id == encoder.publisher.source_id
                if row.source_id
                else row.auth_id == encoder.publisher.auth_id
            ):
                return encoder
        return None

    def row_of(self, encoder: Encoder, rows: Iterable[Row] | None = None) -> Row | None:
        """The stream of this connection: the active one, or the pending one, or the last."""
        found = [row for row in rows or self.rows.values() if row.auth_id == encoder.publisher.auth_id]
        return max(found, key=lambda row: (row.is_active, row.is_open, row.claimed_at), default=None)

    def look(self, row: Row) -> Seen:
        """What a look at its connection will find."""
        encoder = self.encoder_of(row)
        if self.is_silent_about(row.protocol):
            return Seen.UNKNOWN
        if encoder is None or not self.is_connected(encoder):
            return Seen.GONE
        return Seen.FLOWING if encoder.is_flowing else Seen.STILL

    def truth(self, row: Row) -> Publishing:
        encoder = self.encoder_of(row)
        if encoder is None:
            return Publishing(False, False, True)
        return Publishing(self.is_connected(encoder), encoder.publisher.is_live, encoder.was_live)

    def read(self) -> None:
        """The table as it is now, after all that a request set in motion."""
        for cut in self.cuts:
            cut.result(20)
        self.cuts.clear()
        with self.conn.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_ROWS).fetchall()
        self.rows = {}
        self.listed = []
        self.viewers = {columns["id"]: columns["viewers"] for columns in found}
        for columns in found:
            if columns["started_at"] is not None and columns["ended_at"] is None:
                self.listed.append(_as_listed(columns))
            values = (columns[name] for name in Row._fields)
            moved: Any = (value + self.passed if isinstance(value, datetime) else value for value in values)
            self.rows[columns["id"]] = Row(*moved)


def _as_listed(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Of an active stream what the live list must show."""
    plain = ("viewers", "media", "label", "path", "protocol", "source_type", "source_id")
    ids = ("id", "stream_key_id", "replaces", "replaced_by")
    return (
        {name: columns[name] for name in plain}
        | {name: columns[name] and str(columns[name]) for name in ids}
        | {"status": "active", "started_at": columns["started"], "interrupted_at": columns["interrupted"]}
        | {"broadcaster": str(columns["broadcaster_id"])}
    )


def told(stream: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stream in the live list what `listed` has."""
    names = ("viewers", "media", "label", "path", "protocol", "source_type", "source_id", "id", "stream_key_id")
    more = ("replaces", "replaced_by", "status", "started_at", "interrupted_at")
    return {name: stream[name] for name in names + more} | {"broadcaster": stream["broadcaster"]["id"]}


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def run(app: flask.Flask, fake: FakeMediaMTX, database_url: str) -> Iterator[World]:
    """The world of this application, whose media server is `fake`."""
    heard: list[Heard] = []
    server = make_server("127.0.0.1", 0, _recorded(app, heard), threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    watching = threading.Lock()
    with pytest.MonkeyPatch.context() as patch, connect(database_url) as conn, connect(database_url) as watcher:
        for name in (*_LOOK, "_ALIVE_SECONDS"):
            patch.setattr(look, name, getattr(look, name) * _PACE)
        patch.setattr("streamorch.kicks._VERIFY_SECONDS", 0.05)
        patch.setattr("streamorch.repositories._POOL_WAIT_SECONDS", 10.0)
        patch.setattr(Connection, "statement_seconds", 10.0)
        world = World(app, fake, conn, ("127.0.0.1", server.port), watcher, patch, heard)
        kicker = app.extensions["streamorch"].kicker
        cut_off = kicker.cut_off

        def noted(**whose: uuid.UUID) -> "Future[None] | None":
            nobody: dict[str, uuid.UUID | None] = {"stream_id": None, "stream_key_id": None, "broadcaster_id": None}
            with watching:
                world.not_ended_yet.update(row[0] for row in watcher.execute(_OPEN_OF, nobody | whose).fetchall())
            under_way: Future[None] | None = cut_off(**whose)
            if under_way:
                world.cuts.append(under_way)
            return under_way

        patch.setattr(kicker, "cut_off", noted)
        close = ControlAPI.close

        def watched(api: ControlAPI, protocol: str, connection_id: str, path: str, *, seconds: float) -> bool:
            with watching:
                open_still = watcher.execute(_OPEN, {"id": connection_id}).fetchone()
            if open_still:
                world.early.append(connection_id)
            return close(api, protocol, connection_id, path, seconds=seconds)

        patch.setattr(ControlAPI, "close", watched)
        fake.callback_url = f"http://127.0.0.1:{server.port}"
        thread.start()
        try:
            yield world
        finally:
            fake.heal()
            server.shutdown()
            thread.join()
            server.server_close()


def _recorded(app: flask.Flask, heard: list[Heard]) -> Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]]:
    """The application, and a note of each answer before it goes out."""

    def record(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        said: deque[tuple[str, list[tuple[str, str]]]] = deque(maxlen=1)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            said.append((status, headers))
            return start_response(status, headers, exc_info)

        body = list(app(environ, start))
        status, headers = said[0]
        kind = dict(headers).get("Content-Type", "")
        slug = None
        if kind == "application/problem+json":
            slug = msgspec.json.decode(b"".join(body))["type"].removeprefix("/errors/")
        heard.append(Heard(environ["REQUEST_METHOD"], environ["PATH_INFO"], int(status[:3]), kind, slug))
        return body

    return record
