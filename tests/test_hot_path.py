"""What the hot path may cost: refusals, replays and reads leave no trace in the database, a publish is one round trip.

A media server waits for each answer with the loop that serves all its paths, and OBS asks again every second.
"""

import re
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.pq import Trace
from werkzeug.test import TestResponse

from streamorch import keys
from streamorch.repositories import (
    Connection,
    api_clients,
    audit,
    broadcasters,
    decisions,
    diagnosis,
    gauges,
    migrate,
    nodes,
    only,
    ping,
    reconciliation,
    stream_keys,
    streams,
    tail,
    timeline,
)
from tests.conftest import API_SECRET, MediaServer

CALLS = 1000
WARM_UP = 50

AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)

Ask = Callable[[Connection], object]


class Scene(NamedTuple):
    """What it takes to prepare a question."""

    conn: Connection
    make_key: Callable[..., Any]
    make_broadcaster: Callable[..., uuid.UUID]


@pytest.fixture
def scene(conn, make_key, make_broadcaster):
    return Scene(conn, make_key, make_broadcaster)


@pytest.fixture
def observer(database_url) -> Iterator[psycopg.Connection]:
    """A connection beside the one that is observed."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn


# --- the questions -------------------------------------------------------------------------------------------


def claim_of(key, *, path: str = "live/cam7", connection_id: str | None = None) -> Ask:
    """A claim, by a new connection each time unless one is given; returns the outcome."""

    def ask(conn):
        return streams.claim(
            conn,
            key_hash=keys.digest(key if isinstance(key, str) else key.value),
            node="default",
            path=path,
            connection_id=connection_id or str(uuid.uuid4()),
            protocol="rtmp",
            remote_address="192.0.2.7",
            user_agent="FMLE/3.0",
            lease_seconds=600,
        ).outcome

    return ask


def start_of(connection_id: str) -> Ask:
    return lambda conn: streams.start(
        conn, node="default", path="live/cam7", source_type="rtmpConn", source_id=connection_id
    )[0]


def pending(scene: Scene, **columns: Any):
    """A key with a pending stream by the connection `first`."""
    key = scene.make_key(**columns)
    assert claim_of(key, connection_id="first")(scene.conn) == "claimed"
    return key


def active(scene: Scene, **columns: Any):
    """A key with an active stream by the connection `first`."""
    key = pending(scene, **columns)
    assert start_of("first")(scene.conn) == "active"
    return key


def bound_by_another(scene: Scene):
    scene.make_key(path="live/cam7")
    return claim_of(scene.make_key())


def taken_by_another(scene: Scene):
    pending(scene)
    return claim_of(scene.make_key())


REFUSALS: dict[str, tuple[str, Callable[[Scene], Ask]]] = {
    "unknown": ("invalid-stream-key", lambda scene: claim_of("sk_unknown")),
    "revoked": ("stream-key-revoked", lambda scene: claim_of(scene.make_key(revoked_at=AN_HOUR_AGO))),
    "expired": ("stream-key-expired", lambda scene: claim_of(scene.make_key(expires_at=AN_HOUR_AGO))),
    "disabled": ("stream-key-disabled", lambda scene: claim_of(scene.make_key(disabled_at=AN_HOUR_AGO))),
    "broadcaster disabled": (
        "broadcaster-disabled",
        lambda scene: claim_of(scene.make_key(broadcaster_id=scene.make_broadcaster(disabled_at=AN_HOUR_AGO))),
    ),
    "on hold": ("stream-stopped", lambda scene: claim_of(scene.make_key(hold_until=IN_AN_HOUR))),
    "bound elsewhere": ("path-not-allowed", lambda scene: claim_of(scene.make_key(path="live/other"))),
    "path bound": ("path-in-use", bound_by_another),
    "path taken": ("path-in-use", taken_by_another),
    "pending": ("stream-key-in-use", lambda scene: claim_of(pending(scene))),
    "active": ("stream-key-in-use", lambda scene: claim_of(active(scene, takeover="never"))),
    "active on another path": ("stream-key-in-use", lambda scene: claim_of(active(scene), path="live/other")),
}
REPLAYS: dict[str, tuple[str, Callable[[Scene], Ask]]] = {
    "pending again": ("replay", lambda scene: claim_of(pending(scene), connection_id="first")),
    "active again": ("replay", lambda scene: claim_of(active(scene), connection_id="first")),
    "ready again": ("replay", lambda scene: active(scene) and start_of("first")),
    "ready unclaimed": ("not-found", lambda scene: start_of("nobody")),
}


def reading(read: Callable[[Connection, uuid.UUID], object]) -> Callable[[Scene], Ask]:
    """A read while a stream is live; it is given the id of the broadcaster, the key and the stream, which are one."""

    def prepare(scene: Scene) -> Ask:
        one = uuid.uuid4()
        active(scene, id=one, broadcaster_id=scene.make_broadcaster(id=one))
        scene.conn.execute("UPDATE streams SET id = %s", [one])
        assert read(scene.conn, one)
        return lambda conn: read(conn, one) and "read"

    return prepare


def a_secret_of(**columns: Any) -> Callable[[Scene], Ask]:
    """The question whose secret it is, of a client that is there, or that may not call."""

    def prepare(scene: Scene) -> Ask:
        one = create_client(scene.conn, "x", **columns)
        for ask in (
            lambda: api_clients.by_secret(scene.conn, keys.digest("x")),
            lambda: api_clients.by_id(scene.conn, one),
        ):
            assert (ask() is None) == bool(columns)
        return lambda conn: (api_clients.by_secret(conn, keys.digest("x")), api_clients.by_id(conn, one)) and "read"

    return prepare


READS: dict[str, tuple[str, Callable[[Scene], Ask]]] = {
    "secret of a client": ("read", a_secret_of()),
    "secret of a client that expired": ("read", a_secret_of(expires_at=AN_HOUR_AGO)),
} | {
    name: ("read", reading(read))
    for name, read in {
        "check": lambda conn, one: streams.check(conn, key_hash=bytes(32), node="default", path="live/cam7"),
        "stream": lambda conn, one: streams.get(conn, one),
        "facts": lambda conn, one: streams.facts(conn, one),
        "version": lambda conn, one: streams.version(conn),
        "live": lambda conn, one: streams.live(conn, {}).items,
        "live filtered": lambda conn, one: streams.live_filtered(conn, {"path": "live/cam7"}),
        "history": lambda conn, one: streams.page(conn, status="all", filters={}, limit=9, after=None),
        "key": lambda conn, one: stream_keys.get(conn, one),
        "keys": lambda conn, one: stream_keys.page(conn, broadcaster_id=one, status="active", limit=9, after=None),
        "broadcaster": lambda conn, one: broadcasters.get(conn, one),
        "broadcasters": lambda conn, one: broadcasters.page(conn, limit=9, after=None),
        "schema": lambda conn, one: migrate.is_current(conn),
    }.items()
}
TRACELESS = REFUSALS | REPLAYS | READS

traceless = pytest.mark.parametrize(("outcome", "prepare"), TRACELESS.values(), ids=TRACELESS)


# --- no trace ------------------------------------------------------------------------------------------------

TABLES = (
    "broadcasters",
    "stream_keys",
    "streams",
    "departures",
    "nodes",
    "live_list",
    "api_clients",
    "streamorch_migrations",
)


def rows(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Where each row is, which transaction wrote it, and which one has locked it or made another of it."""
    return [
        row
        for table in TABLES
        for row in conn.execute(f"SELECT tableoid::regclass::text, ctid, xmin, xmax FROM {table} ORDER BY ctid")  # noqa: S608
    ]


@traceless
def test_a_refusal_a_replay_and_a_read_leave_each_row_as_it_was(scene, observer, outcome, prepare):
    ask = prepare(scene)
    before = rows(observer)
    assert [ask(scene.conn) for _ in range(3)] == [outcome] * 3
    assert rows(observer) == before


def test_the_rows_would_show_a_lock_of_one_of_them(conn, make_key, observer):
    make_key()
    before = rows(observer)
    conn.execute("SELECT 1 FROM stream_keys FOR KEY SHARE")
    assert rows(observer) != before


def footprint(conn: Connection, ask: Ask) -> tuple[bool, set[str]]:
    """Did it take a transaction id, and which modes of lock does it hold until the end of its transaction?

    One that locks rows holds RowShareLock of their table; one that writes, RowExclusiveLock.
    """
    with conn.transaction():
        ask(conn)
        took_id = only(conn, "SELECT pg_current_xact_id_if_assigned() IS NOT NULL")[0]
        modes = conn.execute(
            "SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'"
        ).fetchall()
    return took_id, {mode for (mode,) in modes}


# (The live list has a transaction of its own: see the next test.)
@pytest.mark.parametrize("name", sorted(TRACELESS.keys() - {"live"}))
def test_a_refusal_a_replay_and_a_read_take_no_transaction_id_and_no_lock_but_for_reading(scene, name):
    _, prepare = TRACELESS[name]
    ask = prepare(scene)
    assert footprint(scene.conn, ask) == (False, {"AccessShareLock"})


def test_the_live_list_is_read_in_one_snapshot_by_a_transaction_that_cannot_write(scene):
    assert claim_of(scene.make_key(), connection_id="c1")(scene.conn) == "claimed"
    streams.start(scene.conn, node="default", path="live/cam7", source_type="rtmpConn", source_id="c1")
    seen = []

    class Nothing:
        def __contains__(self, mark):
            for name in ("transaction_isolation", "transaction_read_only"):
                seen.append(only(scene.conn, f"SELECT current_setting('{name}')")[0])
            return False

    assert len(streams.live(scene.conn, Nothing()).items) == 1
    assert seen == ["repeatable read", "on"]


def test_a_granted_claim_takes_a_transaction_id_and_locks(conn, make_key):
    took_id, modes = footprint(conn, claim_of(make_key()))
    assert took_id
    assert modes >= {"RowShareLock", "RowExclusiveLock", "ExclusiveLock"}


def wal_bytes(conn: Connection, ask: Ask) -> int:
    """How much WAL was written meanwhile, by whomever."""
    before = only(conn, "SELECT pg_current_wal_insert_lsn()")[0]
    ask(conn)
    return int(
        only(conn, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %(before)s::pg_lsn)", {"before": before})[0]
    )


@traceless
def test_a_thousand_refusals_replays_or_reads_write_no_wal(scene, outcome, prepare):
    ask = prepare(scene)
    for _ in range(WARM_UP):
        ask(scene.conn)
    assert median(wal_bytes(scene.conn, ask) for _ in range(CALLS)) == 0


def test_a_granted_claim_writes_wal(conn, make_key):
    assert min(wal_bytes(conn, claim_of(make_key(), path=f"live/{number}")) for number in range(20)) > 0


# --- prepared once -------------------------------------------------------------------------------------------

NAME = re.compile(r"/\* ([a-z_.]+) \*/")


def prepared(conn: Connection) -> list[str]:
    """The texts of the statements that this connection has prepared."""
    return [text for (text,) in conn.execute("SELECT statement FROM pg_prepared_statements", prepare=False)]


def use_everything(conn: Connection) -> None:
    """Each function of the repositories, with values that are absent, short, long, small and large."""
    for text in ("x", "y" * 200):
        use_broadcasters(conn, text)
        use_keys(conn, text)
        use_streams(conn, text)
        use_reconciliation(conn, text)
        use_decisions(conn, text)
        use_clients(conn, text)
    ping(conn)
    migrate.is_current(conn)
    diagnosis.state(conn)
    tail.pulse(conn)
    reconciliation.leader(conn)
    for stream_ids in ([], [uuid.uuid4()] * 3):
        streams.several(conn, stream_ids)
        stream_keys.several(conn, stream_ids)
        tail.states(conn, since="2026-01-31T12:00:00.000000Z")
        tail.states_of(conn, stream_ids, since="2026-01-31T12:00:00.000000Z")


def use_broadcasters(conn: Connection, text: str) -> None:
    one = uuid.uuid4()
    for metadata in ({}, {"text": text}):
        broadcasters.create(conn, broadcaster_id=one, display_name=text, metadata=metadata, disabled=bool(metadata))
        broadcasters.update(conn, one, {"display_name": text, "metadata": metadata})
    broadcasters.get(conn, one)
    for several in ([], [one], [one, one]):
        broadcasters.names(conn, several)
        broadcasters.deleted(conn, several)
    for limit in (1, 201):
        broadcasters.page(conn, limit=limit, after=None)
        broadcasters.page(conn, limit=limit, after=("2026-01-31T12:00:00.000000Z", str(one)))
    broadcasters.delete(conn, one)


def create_key(conn: Connection, broadcaster_id: uuid.UUID, **given: Any) -> uuid.UUID:
    one = uuid.uuid4()
    absent: dict[str, Any] = {"label": None, "path": None, "expires_at": None, "disabled": False, "metadata": {}}
    hashed = keys.digest(given.pop("value", str(one)))
    outcome = stream_keys.create(
        conn,
        stream_key_id=one,
        broadcaster_id=broadcaster_id,
        key_hash=hashed,
        hint="xxxx",
        takeover="stalled",
        **absent | given,
    )
    assert outcome == "created"
    return one


def use_keys(conn: Connection, text: str) -> None:
    owner = uuid.uuid4()
    broadcasters.create(conn, broadcaster_id=owner, display_name=text, metadata={}, disabled=False)
    create_key(conn, owner)
    one = create_key(conn, owner, label=text, path=text, expires_at=IN_AN_HOUR, disabled=True, metadata={"a": text})
    stream_keys.get(conn, one)
    for limit in (1, 1001):
        for status in (None, "active"):
            stream_keys.page(conn, broadcaster_id=None, status=status, limit=limit, after=None)
            stream_keys.page(conn, broadcaster_id=one, status=status, limit=limit, after=(str(AN_HOUR_AGO), str(one)))
    stream_keys.update(conn, one, {"label": None, "path": None, "expires_at": None})
    stream_keys.update(conn, one, {"label": text, "disabled": True, "metadata": {"a": text}})
    stream_keys.hold(conn, one, seconds=len(text))
    for overlap_seconds in (0, stream_keys.LONGEST_OVERLAP_SECONDS):
        value = keys.digest(f"{one}{overlap_seconds}")
        stream_keys.rotate(conn, one, key_hash=value, hint=text[:4], overlap_seconds=overlap_seconds)
    stream_keys.revoke(conn, one)


def create_client(conn: Connection, secret: str, **given: Any) -> uuid.UUID:
    one = uuid.uuid4()
    absent: dict[str, Any] = {"name": secret, "scope": "read", "hint": secret[-4:], "expires_at": None}
    made = absent | given
    assert api_clients.create(conn, client_id=one, secret_hash=keys.digest(secret), **made) == "created"
    return one


def use_clients(conn: Connection, text: str) -> None:
    create_client(conn, f"a {text}")
    one = create_client(conn, text, scope="operate", expires_at=IN_AN_HOUR)
    api_clients.by_secret(conn, keys.digest(text))
    api_clients.by_id(conn, one)
    api_clients.used(conn, one)
    api_clients.get(conn, one)
    for limit in (1, 1001):
        for status in (None, "active"):
            api_clients.page(conn, status=status, limit=limit, after=None)
            api_clients.page(conn, status=status, limit=limit, after=(str(AN_HOUR_AGO), str(one)))
    api_clients.update(conn, one, {"expires_at": None})
    api_clients.update(conn, one, {"name": f"b {text}", "scope": "admin"})
    api_clients.revoke(conn, one)


def use_streams(conn: Connection, text: str) -> None:
    owner = uuid.uuid4()
    broadcasters.create(conn, broadcaster_id=owner, display_name=text, metadata={}, disabled=False)
    create_key(conn, owner, value=text)
    for given, lease_seconds in (("", 1), (text, 600)):
        claim = streams.claim(
            conn,
            key_hash=keys.digest(text),
            node="default",
            path=text,
            connection_id=text,
            protocol=given,
            remote_address=given,
            user_agent=given,
            lease_seconds=lease_seconds,
            judged_gone=uuid.uuid4() if given else None,
        )
        assert claim.is_granted
    hook = {"node": "default", "path": text, "source_type": "rtmpConn", "source_id": text}
    streams.start(conn, **hook)
    assert streams.live(conn, {}).items
    streams.measures(conn)
    streams.end(conn, **hook)
    for grace_seconds in (5, 86400):
        streams.end_on_path(conn, node="default", path=text, grace_seconds=grace_seconds)
    one = claim.stream_id or uuid.uuid4()
    for hold_seconds in (0, 30, 86400):
        streams.stop(conn, one, hold_seconds=hold_seconds)
    streams.update(conn, one, {"recording_ref": None})
    streams.update(conn, one, {"recording_ref": text, "metadata": {"a": text}})
    streams.get(conn, one)
    streams.facts(conn, one)
    streams.rival(conn, one)
    streams.abandon(conn, one)
    streams.active_on_path(conn, node="default", path=text)
    for whose in ("stream_id", "stream_key_id", "broadcaster_id"):
        streams.kicks(conn, node="default", limit=20, **{whose: one})
    streams.kicks(conn, node="default", limit=100)
    streams.kicked(conn, one)
    streams.check(conn, key_hash=keys.digest(text), node="default", path=text)
    streams.version(conn)
    for limit in (1, 1001):
        timeline.page(conn, one, limit=limit, after=None)
        timeline.page(conn, one, limit=limit, after=(str(AN_HOUR_AGO), str(owner)))
    nothing = dict.fromkeys(("broadcaster_id", "stream_key_id", "path", "protocol", "node", "end_reason", "since"))
    for filters in (nothing, nothing | {"path": text}, nothing | {"since": AN_HOUR_AGO, "broadcaster_id": owner}):
        streams.live_filtered(conn, filters)
        for limit in (1, 1001):
            streams.page(conn, status="all", filters=filters, limit=limit, after=None)
            streams.page(conn, status="all", filters=filters, limit=limit, after=(str(AN_HOUR_AGO), str(owner)))


def use_decisions(conn: Connection, text: str) -> None:
    one = uuid.uuid4()
    filters: dict[str, Any]
    for filters in ({}, {"who": text}, {"kind": text, "subject_id": one, "since": AN_HOUR_AGO}):
        for limit in (1, 1001):
            audit.page(conn, filters=filters, limit=limit, after=None)
            audit.page(conn, filters=filters, limit=limit, after=(str(AN_HOUR_AGO), str(one)))
    decisions.note(conn, [decisions.Refusal("invalid-stream-key", path=text)])
    decisions.note(conn, [decisions.Refusal(text, stream_key_id=one, left_out=2**40)] * 3)
    for filters in ({}, {"path": text}, {"outcome": "claimed", "since": AN_HOUR_AGO}, {"stream_id": one}):
        for limit in (1, 1001):
            decisions.page(conn, filters=filters, days=limit, limit=limit, after=None)
            decisions.page(conn, filters=filters, days=limit, limit=limit, after=(str(AN_HOUR_AGO), str(one)))


def use_reconciliation(conn: Connection, text: str) -> None:
    lead = reconciliation.lead(conn, holder=text, seconds=4, force=True)
    assert lead is not None
    epoch, now = lead
    nodes.heard(conn, text)
    nodes.every(conn, default=text)
    gauges.read(conn, default=text)
    nodes.api_state(conn, text)
    reconciliation.known(conn, text)
    reconciliation.settle(conn, epoch)
    for ids in ([], [text]):
        reconciliation.reconcile(
            conn,
            epoch,
            node=text,
            snapshot_at=now,
            present=ids,
            known=ids,
            live=reconciliation.Publishers(ids, [*ids], ids, ids),
            missing_before=[uuid.uuid4() for _ in ids],
            restarted=bool(ids),
        )
        reconciliation.observe(
            conn,
            epoch,
            node=text,
            sampled_at=now,
            source_ids=ids,
            viewers=[1 for _ in ids],
            received=[2**40 for _ in ids],
            tracks=[*ids],
        )
        reconciliation.strangers(conn, node=text, snapshot_at=now, source_ids=ids, auth_ids=ids)
        reconciliation.request_kicks(conn, epoch, [uuid.uuid4() for _ in ids])
    for started_at, version in ((None, None), (now, text)):
        reconciliation.answered(
            conn,
            epoch,
            node=text,
            version=version,
            started_at=started_at,
            snapshot_at=now,
            is_complete=True,
        )
    reconciliation.awaiting(conn, node=text)
    reconciliation.resume(conn, epoch, [uuid.uuid4()])
    reconciliation.interrupt(conn, epoch, snapshot_at=now, stream_ids=[uuid.uuid4()])
    reconciliation.note_unclaimed(conn, epoch, node=text, unclaimed=[{"source_id": text}])
    reconciliation.failed(conn, epoch, node=text, state="silent", is_there=False)
    reconciliation.reopen(conn, epoch, uuid.uuid4(), source_type=text, source_id=text)
    reconciliation.name_rtsp_session(conn, epoch, node=text, path=text, source_type=text, source_id=text)
    for number in (1, 2**20):
        decisions.trim(conn, epoch, days=number % 1000, rows=number, batch=number)
        audit.trim(conn, epoch, days=number % 1000, batch=number)
        streams.trim(conn, epoch, days=number % 1000, batch=number)
    reconciliation.resign(conn, epoch)


def test_each_statement_is_prepared_once_whatever_its_values(conn):
    use_everything(conn)
    assert {text: count for text, count in Counter(prepared(conn)).items() if count > 1} == {}


def test_each_statement_of_the_repositories_begins_with_its_name(conn):
    use_everything(conn)
    assert [text for text in prepared(conn) if not NAME.match(text)] == []


def test_no_statement_of_the_repositories_is_left_out_here(conn):
    use_everything(conn)
    folder = Path(streams.__file__).parent
    # An import from another service is done once, and never by who serves.
    files = [file for file in folder.glob("*.py") if file.name != "rescuestream.py"]
    written = {name for file in files for name in NAME.findall(file.read_text(encoding="utf-8"))}
    assert {found.group(1) for text in prepared(conn) if (found := NAME.search(text))} == written


def test_a_claim_is_one_prepared_statement_that_begins_with_its_name(conn):
    use_everything(conn)
    assert sum(text.startswith("/* streams.claim */") for text in prepared(conn)) == 1


@pytest.mark.parametrize(("outcome", "prepare"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_leaves_the_prepared_statements_in_place(scene, outcome, prepare):
    ask = prepare(scene)
    streams.version(scene.conn)
    ask(scene.conn)
    before = scene.conn.execute("SELECT name, prepare_time FROM pg_prepared_statements ORDER BY 1").fetchall()
    assert ask(scene.conn) == outcome
    after = scene.conn.execute("SELECT name, prepare_time FROM pg_prepared_statements ORDER BY 1").fetchall()
    assert set(before) <= set(after)
    assert len(before) >= 2


# --- one round trip ------------------------------------------------------------------------------------------


class Wire:
    """A media server before an application with a single connection, and libpq's own record of that connection."""

    def __init__(self, media_server: MediaServer, record: Path):
        self.media_server = media_server
        self.record = record

    def round_trips(self, ask: Callable[[], TestResponse]) -> tuple[int, int]:
        """The status of the answer, and how often the database was waited for."""
        before = self.waits()
        return ask().status_code, self.waits() - before

    def waits(self) -> int:
        """The messages after which a client waits for the server to be ready again: Sync, and Query in older ways."""
        return len(re.findall(r"^F\t\d+\t(Sync|Query)\b", self.record.read_text(), re.MULTILINE))


@pytest.fixture
def wire(make_app, tmp_path) -> Iterator[Wire]:
    if sys.platform != "linux":
        pytest.skip("psycopg offers libpq's trace on Linux alone")
    app = make_app(WEB_CONCURRENCY="25")
    media_server = MediaServer(app.test_client())
    # The first time, each statement is prepared: one more round trip of each connection.
    media_server.ask(keys.mint())
    media_server.ask(keys.mint(), id=None)
    with (tmp_path / "wire").open("wb") as record:
        with app.extensions["streamorch"].database.connection() as conn:
            conn.pgconn.trace(record.fileno())
            conn.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        yield Wire(media_server, tmp_path / "wire")
        conn.pgconn.untrace()


def test_a_publish_is_one_round_trip_whether_granted_repeated_or_refused(wire, make_key):
    key, other, warm = make_key(), make_key(), make_key()
    for connection_id in ("a", "b"):  # who is in the way of the second is a statement of its own
        wire.media_server.ask(warm, "live/warm", id=connection_id)
    publishes = {
        "granted": (key, {"id": "one"}),
        "repeated": (key, {"id": "one"}),
        "in use": (key, {"id": "two"}),
        "path in use": (other, {"id": "three"}),
        "unknown": (keys.mint(), {"id": "four"}),
        "page": (other, {"id": None, "path": "live/other"}),
    }
    costs = {
        name: wire.round_trips(lambda asked=asked: wire.media_server.ask(asked[0], **asked[1]))
        for name, asked in publishes.items()
    }
    assert costs == {
        "granted": (200, 1),
        "repeated": (200, 1),
        "in use": (401, 2),
        "path in use": (401, 1),
        "unknown": (401, 1),
        "page": (200, 1),
    }


def test_a_publish_without_a_key_and_whatever_else_is_asked_need_no_database(wire):
    questions = {
        "no key": ("", {}),
        "read": ("", {"action": "read"}),
        "playback": ("", {"action": "playback"}),
        "api": ("guess", {"action": "api"}),
        "metrics": ("", {"action": "metrics"}),
    }
    costs = {
        name: wire.round_trips(lambda asked=asked: wire.media_server.ask(asked[0], **asked[1]))
        for name, asked in questions.items()
    }
    assert costs == {
        "no key": (401, 0),
        "read": (200, 0),
        "playback": (200, 0),
        "api": (401, 0),
        "metrics": (401, 0),
    }


def test_a_client_that_polls_the_list_costs_what_the_api_secret_does(wire, make_client):
    # (That it was used has been noted.)
    one, other = (make_client(last_used_at=datetime.now(UTC)) for _ in range(2))
    revoked = make_client(revoked_at=AN_HOUR_AGO)
    client = wire.media_server.client
    poll = {
        name: lambda secret=secret: client.get("/streams", headers={"Authorization": f"Bearer {secret}"})
        for name, secret in (("warm", other.secret), ("client", one.secret), ("API_SECRET", API_SECRET))
    }
    for _ in range(2):
        poll["warm"]()
        poll["API_SECRET"]()
    costs = [wire.round_trips(poll[name]) for name in ("API_SECRET", "client", "client", "client")]
    assert costs == [(200, 1), (200, 2), (200, 1), (200, 1)]
    assert wire.round_trips(lambda: client.get("/streams", headers=revoked.headers)) == (401, 1)
