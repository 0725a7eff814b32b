"""`streamorch import-rescuestream`: what the database of rescuestream-api becomes here."""

import json
import os
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from streamorch import keys, rescuestream
from streamorch.repositories import connect
from streamorch.repositories import rescuestream as rows_there
from tests.blueprints import only, rows

# What its first migration makes, as far as rows and columns go, and the ledger of golang-migrate.
OLD_TABLES = """
    CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);
    INSERT INTO schema_migrations VALUES (1, false);
    CREATE TABLE broadcasters (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), display_name varchar(255) NOT NULL,
        metadata jsonb NOT NULL DEFAULT '{}', created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE stream_keys (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), key_value varchar(64) NOT NULL CONSTRAINT key_value_once UNIQUE,
        broadcaster_id uuid NOT NULL REFERENCES broadcasters (id) ON DELETE CASCADE,
        status varchar(20) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'revoked', 'expired')),
        created_at timestamptz NOT NULL DEFAULT now(), expires_at timestamptz, revoked_at timestamptz,
        last_used_at timestamptz);
    CREATE TABLE streams (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        stream_key_id uuid NOT NULL REFERENCES stream_keys (id) ON DELETE CASCADE, path varchar(255) NOT NULL,
        status varchar(20) NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'ended')),
        started_at timestamptz NOT NULL DEFAULT now(), ended_at timestamptz, source_type varchar(50),
        source_id varchar(255), metadata jsonb NOT NULL DEFAULT '{}', recording_ref varchar(512));
    CREATE UNIQUE INDEX one_live_stream_a_key ON streams (stream_key_id) WHERE status = 'active';
"""
A_KEY = "sk_Zm9vYmFyYmF6LXF1eF9xdXV4-Y29yZ2UtZ3JhdWx0LTA"
DAY = "2026-03-01 08:00:00.5+02"


class Old:
    """The old database. Each method inserts a row, of which the columns given are told, and returns its id."""

    def __init__(self, url: str, conn: psycopg.Connection[Any]):
        self.url = url
        self.conn = conn

    def insert(self, table: str, **columns: Any) -> uuid.UUID:
        statement = psycopg.sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            psycopg.sql.Identifier(table),
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns)),
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, columns)),
        )
        row = self.conn.execute(statement, columns).fetchone()
        assert row
        made: uuid.UUID = row[0]
        return made

    def broadcaster(self, **columns: Any) -> uuid.UUID:
        return self.insert("broadcasters", **{"display_name": "Team 7"} | columns)

    def key(self, value: str | None = None, **columns: Any) -> uuid.UUID:
        owner = columns.pop("broadcaster_id", None) or self.broadcaster()
        return self.insert(
            "stream_keys", key_value=value or "sk_" + os.urandom(16).hex(), broadcaster_id=owner, **columns
        )

    def stream(self, key_id: uuid.UUID, path: str = "live/a", **columns: Any) -> uuid.UUID:
        given = {"status": "ended", "started_at": DAY, "ended_at": "2026-03-01 09:00:00+02"} | columns
        return self.insert("streams", stream_key_id=key_id, path=path, **given)

    def content(self) -> list[Any]:
        return [
            self.conn.execute(psycopg.sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(table)).fetchall()
            for table in map(psycopg.sql.Identifier, ("schema_migrations", "broadcasters", "stream_keys", "streams"))
        ]


@pytest.fixture
def old(conn, shared_url):
    """An old database beside that of the test, on the same server."""
    name = psycopg.sql.Identifier("old_rescuestream")
    conn.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))
    url = shared_url.replace("/streamorch_shared?", "/old_rescuestream?")
    try:
        with psycopg.connect(url, autocommit=True) as there:
            there.execute(OLD_TABLES)
            yield Old(url, there)
    finally:
        conn.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def run(shell, old) -> Callable[..., dict[str, Any]]:
    """The report of a run."""
    return lambda *options: shell.json("import-rescuestream", *options, old.url)


def content(conn):
    return [rows(conn, f"SELECT * FROM {table} ORDER BY id") for table in ("broadcasters", "stream_keys", "streams")]  # noqa: S608


def test_a_key_keeps_its_id_and_works_and_its_value_is_nowhere(run, old, api, media_server, conn):
    owner = old.broadcaster(display_name="Küste", metadata='{"boat": 3}', created_at=DAY, updated_at=DAY)
    key_id = old.key(A_KEY, broadcaster_id=owner, created_at=DAY, last_used_at=DAY)
    run()
    assert api.get(f"/broadcasters/{owner}").json == {
        "id": str(owner),
        "display_name": "Küste",
        "metadata": {"boat": 3},
        "disabled": False,
        "created_at": "2026-03-01T06:00:00.500000Z",
        "updated_at": "2026-03-01T06:00:00.500000Z",
    }
    shown = api.get(f"/stream-keys/{key_id}").json
    assert (shown["status"], shown["hint"], shown["path"], shown["broadcaster_id"]) == (
        "active",
        A_KEY[-4:],
        None,
        str(owner),
    )
    assert shown["created_at"] == shown["last_used_at"] == "2026-03-01T06:00:00.500000Z"
    assert media_server.ask(A_KEY).status_code == 200
    assert A_KEY not in str(content(conn))


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({}, "active"),
        ({"expires_at": "2199-01-01Z"}, "active"),
        ({"expires_at": "infinity"}, "active"),
        ({"expires_at": "2026-01-01Z"}, "expired"),
        ({"status": "expired"}, "expired"),
        ({"status": "expired", "expires_at": "2199-01-01Z"}, "expired"),
        ({"status": "revoked", "revoked_at": DAY}, "revoked"),
        ({"status": "revoked"}, "revoked"),
        ({"status": "revoked", "revoked_at": "2199-01-01Z"}, "revoked"),
        ({"status": "active", "revoked_at": DAY}, "revoked"),
        ({"status": "revoked", "expires_at": "2026-01-01Z"}, "revoked"),
    ],
)
def test_the_status_of_a_key(columns, status, run, old, api, media_server):
    key_id = old.key(A_KEY, **columns)
    run()
    shown = api.get(f"/stream-keys/{key_id}").json
    assert shown["status"] == status
    if columns.get("revoked_at") == DAY:
        assert shown["revoked_at"] == "2026-03-01T06:00:00.500000Z"
    answer = media_server.ask(A_KEY)
    assert answer.status_code == (200 if status == "active" else 401)
    assert status == "active" or answer.json["type"] == f"/errors/stream-key-{status}"


def test_what_comes_is_told_as_the_work_of_a_command(run, old, conn):
    old.stream(old.key())
    run()
    assert rows(conn, "SELECT who, action, kind FROM audit ORDER BY number") == [
        {"who": "CLI", "action": "create", "kind": "broadcaster"},
        {"who": "CLI", "action": "create", "kind": "stream_key"},
    ]


def test_a_stream_that_has_ended_is_history(run, old, api):
    key_id = old.key()
    stream_id = old.stream(
        key_id, source_type="rtmpsConn", source_id="c1", metadata='{"take": [1, null]}', recording_ref="s3://r/1"
    )
    run()
    shown = api.get(f"/streams/{stream_id}").json
    assert api.get("/streams?status=ended").json["count"] == 1
    assert api.get("/streams").json["count"] == 0
    assert {name: shown[name] for name in ("stream_key_id", "path", "status", "end_reason", "source_type")} == {
        "stream_key_id": str(key_id),
        "path": "live/a",
        "status": "ended",
        "end_reason": "disconnected",
        "source_type": "rtmpsConn",
    }
    assert (shown["source_id"], shown["protocol"], shown["node"]) == ("c1", "rtmp", "rescuestream")
    assert (shown["metadata"], shown["recording_ref"]) == ({"take": [1, None]}, "s3://r/1")
    assert (shown["started_at"], shown["duration_seconds"]) == ("2026-03-01T06:00:00.500000Z", 3599)


@pytest.mark.parametrize(
    ("source_type", "protocol"),
    [("rtmpConn", "rtmp"), ("rtspSession", "rtsp"), ("srtConn", "srt"), ("webRTCSession", "webrtc"), ("x", "unknown")],
)
def test_the_protocol_follows_from_the_source(source_type, protocol, run, old, conn):
    old.stream(old.key(), source_type=source_type)
    run()
    assert only(conn, "SELECT protocol FROM streams") == {"protocol": protocol}


def test_what_was_never_written_down(run, old, api):
    key_id = old.key(broadcaster_id=old.broadcaster(display_name="", metadata="null"))
    stream_id = old.stream(key_id, ended_at=None, metadata="[1]", source_id="")
    run()
    shown = api.get(f"/streams/{stream_id}").json
    assert shown["broadcaster"]["display_name"] == "(no name)"
    assert api.get(f"/broadcasters/{shown['broadcaster']['id']}").json["metadata"] == {}
    assert (shown["protocol"], shown["source_type"], shown["source_id"]) == ("unknown", None, str(stream_id))
    assert (shown["metadata"], shown["recording_ref"]) == ({"metadata": [1]}, None)
    assert (shown["ended_at"], shown["duration_seconds"]) == (shown["started_at"], 0)


def test_a_key_is_blotted_out_wherever_it_stands(run, old, conn):
    short = "gate5"
    strange, own = old.key(short), old.key(A_KEY)
    old.stream(own, A_KEY)
    old.stream(own, f"live/{A_KEY}", metadata=json.dumps({"url": f"rtmp://h/{A_KEY}"}), recording_ref=f"r/{A_KEY}.mp4")
    old.stream(strange, short)
    old.stream(strange, f"live/{short}/x", recording_ref=f"/rec/{short}/1.mp4")
    old.stream(strange, "live/gate55")
    report = run()
    assert report["redacted"] == 4
    found = rows(conn, "SELECT path, metadata::text, recording_ref FROM streams ORDER BY path")
    assert [row["path"] for row in found] == [
        "live/gate55",
        "live/sk_[redacted]",
        "live/sk_[redacted]/x",
        "sk_[redacted]",
        "sk_[redacted]",
    ]
    assert {row["recording_ref"] for row in found} == {None, "r/sk_[redacted].mp4", "/rec/sk_[redacted]/1.mp4"}
    assert A_KEY not in str(content(conn))
    assert only(conn, "SELECT hint FROM stream_keys WHERE id = %s", strange) == {"hint": ""}


def test_what_is_live_there_is_left_out_until_it_has_ended(run, old, conn):
    key_id = old.key()
    stream_id = old.stream(key_id, status="active", ended_at=None)
    report = run()
    assert (report["streams"], report["live_streams"]) == (0, 1)
    assert rows(conn, "SELECT id FROM streams") == []
    old.conn.execute("UPDATE streams SET status = 'ended', ended_at = now()")
    report = run()
    assert (report["streams"], report["live_streams"]) == (1, 0)
    assert only(conn, "SELECT id FROM streams") == {"id": stream_id}


def test_a_second_run_adds_nothing_and_changes_nothing(run, old, api, conn):
    owner = old.broadcaster()
    for value in (A_KEY, None, None):
        key_id = old.key(value, broadcaster_id=owner)
        old.stream(key_id)
    run()
    api.patch(f"/broadcasters/{owner}", json={"display_name": "Renamed"})
    api.patch(f"/stream-keys/{key_id}", json={"label": "mast", "path": "live/mast"})
    before, there = content(conn), old.content()
    report = run()
    assert (report["broadcasters"], report["stream_keys"], report["streams"]) == (0, 0, 0)
    assert (report["broadcasters_known"], report["stream_keys_known"], report["streams_known"]) == (1, 3, 3)
    assert content(conn) == before
    assert old.content() == there


def test_a_dry_run_says_the_same_and_writes_nothing(run, old, conn):
    key_id = old.key(A_KEY)
    old.stream(key_id, A_KEY)
    old.key(status="revoked")
    said = run("--dry-run")
    assert content(conn) == [[], [], []]
    told = run()
    assert told | {"dry_run": True} == said
    assert (told["stream_keys"], told["streams"], told["redacted"]) == (2, 1, 1)
    assert run("--dry-run")["streams_known"] == 1


def test_a_key_that_was_taken_back_there_since_is_taken_back_here(run, old, media_server, conn):
    key_id = old.key(A_KEY)
    run()
    media_server.go_live(A_KEY)
    old.conn.execute("UPDATE stream_keys SET status = 'revoked', revoked_at = now()")
    assert run("--dry-run")["stream_keys_revoked"] == 1
    assert only(conn, "SELECT ended_at FROM streams") == {"ended_at": None}
    assert run()["stream_keys_revoked"] == 1
    assert only(conn, "SELECT stream_key_id, end_reason, kick_requested_at IS NOT NULL AS kick FROM streams") == {
        "stream_key_id": key_id,
        "end_reason": "revoked",
        "kick": True,
    }
    assert media_server.ask(A_KEY).json["type"] == "/errors/stream-key-revoked"
    assert run()["stream_keys_revoked"] == 0


def test_a_key_of_a_broadcaster_that_was_deleted_here_lets_nobody_in(run, old, api, media_server):
    owner = old.broadcaster()
    run()
    api.delete(f"/broadcasters/{owner}")
    old.key(A_KEY, broadcaster_id=owner)
    assert run()["stream_keys"] == 1
    assert media_server.ask(A_KEY).json["type"] == "/errors/stream-key-revoked"


def test_a_value_that_was_replaced_here_is_still_that_of_its_key(run, old, api, media_server, conn):
    key_id = old.key(A_KEY)
    run()
    new = api.post(f"/stream-keys/{key_id}/rotate", json={"overlap_seconds": 0}).json["key_value"]
    old.stream(key_id)
    old.conn.execute("ALTER TABLE stream_keys DROP CONSTRAINT key_value_once")
    other_id = old.key(A_KEY)
    report = run()
    assert (report["stream_keys"], report["stream_keys_known"], report["other_value"]) == (0, 1, [])
    assert (report["same_value"], report["streams"]) == ({str(other_id): str(key_id)}, 1)
    assert media_server.ask(A_KEY).json["type"] == "/errors/stream-key-revoked"
    assert media_server.ask(new).status_code == 200


@pytest.mark.parametrize("revoked_first", [True, False])
def test_of_two_keys_with_one_value_the_one_taken_back_stands(revoked_first, run, old, conn):
    old.conn.execute("ALTER TABLE stream_keys DROP CONSTRAINT key_value_once")
    states = ["revoked", "active"] if revoked_first else ["active", "revoked"]
    ids = {state: old.key(A_KEY, status=state, created_at=f"2026-01-0{day}") for day, state in enumerate(states, 1)}
    for key_id in ids.values():
        old.stream(key_id)
    report = run()
    assert report["same_value"] == {str(ids["active"]): str(ids["revoked"])}
    assert only(conn, "SELECT id, revoked_at IS NOT NULL AS revoked FROM stream_keys") == {
        "id": ids["revoked"],
        "revoked": True,
    }
    assert rows(conn, "SELECT DISTINCT stream_key_id FROM streams") == [{"stream_key_id": ids["revoked"]}]


def test_an_id_that_is_taken_here_is_left_alone(run, old, make_key, conn):
    mine = make_key()
    old.stream(old.key(id=mine.id))
    report = run()
    assert (report["other_value"], report["streams_orphaned"], report["streams"]) == ([str(mine.id)], 1, 0)
    assert only(conn, "SELECT key_hash FROM stream_keys WHERE id = %s", mine.id) == {
        "key_hash": keys.digest(mine.value)
    }


def test_neither_a_hook_nor_the_reconciler_takes_history_for_what_it_sees(run, old, media_server, conn):
    old.stream(old.key(), source_id="c1", source_type="rtmpConn")
    run()
    before = content(conn)
    assert media_server.ready("c1", "live/a").status_code == 404
    assert media_server.not_ready("c1", "live/a").status_code == 204
    assert content(conn) == before
    assert only(conn, "SELECT count(*) FROM departures WHERE source_id = 'c1'") == {"count": 1}


def test_the_old_database_is_only_read(run, old):
    old.stream(old.key())
    before = old.content()
    old.conn.execute("ALTER DATABASE old_rescuestream SET default_transaction_read_only = on")
    run()
    assert old.content() == before


def test_reading_is_all_that_is_allowed_there(old):
    there = rows_there.open_old(old.url)
    with there, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        there.execute("DELETE FROM streams")


def test_what_it_prints(shell, old):
    key_id = old.key(A_KEY)
    old.stream(key_id, A_KEY)
    old.stream(key_id, status="active")
    assert (
        shell.text("import-rescuestream", old.url, "--dry-run").splitlines()[0] == "Nothing was written. It would be:"
    )
    assert shell.text("import-rescuestream", RESCUESTREAM_DATABASE_URL=old.url).splitlines() == [
        "broadcasters  1 added, 0 were here",
        "stream keys   1 added, 0 were here",
        "streams       1 added, 0 were here",
        "1 streams are live there and were left out: run this again when they have ended",
        "in 1 streams a stream key stood in the path or beside it: it is sk_[redacted] now",
    ]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        ("DROP TABLE streams CASCADE", "it has no table streams"),
        ("ALTER TABLE stream_keys RENAME key_value TO key", "its table stream_keys has no column key_value"),
        ("CREATE TABLE streamorch_migrations (name text)", "it is a database of streamorch"),
    ],
)
def test_another_database_is_refused(break_it, said, shell, old, conn):
    old.conn.execute(break_it)
    line = shell.failure("import-rescuestream", old.url)
    assert line.startswith("streamorch: OLD_URL is no database of rescuestream-api: ")
    assert said in line
    assert content(conn) == [[], [], []]


def test_its_own_database_is_refused(shell, database_url):
    assert "it is a database of streamorch" in shell.failure("import-rescuestream", database_url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:hunter2@127.0.0.1:9/none", "the old database does not answer: "),
        ("postgresql://u:hunter2@[h/none", "OLD_URL is not a URL that PostgreSQL can read"),
    ],
)
def test_an_old_database_that_is_away_is_one_line_without_its_password(url, said, shell):
    line = shell.failure("import-rescuestream", url)
    assert line.startswith(f"streamorch: {said}")
    assert "hunter2" not in line


def test_an_old_database_that_goes_away_meanwhile_is_told(shell, old, monkeypatch):
    old.stream(old.key())

    def go_away(there):
        old.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '% import-rescuestream'"
        )
        return real(there)

    real = rows_there.count_streams
    monkeypatch.setattr(rows_there, "count_streams", go_away)
    assert shell.failure("import-rescuestream", old.url).startswith("streamorch: the old database gave up: ")


def test_a_run_that_was_broken_off_goes_on(run, old, conn, monkeypatch):
    monkeypatch.setattr(rescuestream, "_BATCH", 3)
    key_id = old.key()
    for _ in range(8):
        old.stream(key_id)
    real = rows_there.add_streams
    batches = iter([real, real])
    monkeypatch.setattr(rows_there, "add_streams", lambda *given: next(batches)(*given))
    with pytest.raises(StopIteration):
        run()
    assert only(conn, "SELECT count(*) FROM streams") == {"count": 6}
    monkeypatch.setattr(rows_there, "add_streams", real)
    report = run()
    assert (report["streams"], report["streams_known"]) == (2, 6)


@pytest.mark.slow
def test_a_hundred_thousand_streams(old, conn, database_url):
    key_id = old.key()
    old.conn.execute(
        """
        INSERT INTO streams (stream_key_id, path, status, started_at, ended_at)
        SELECT %s, 'live/' || n, 'ended', now() - interval '1 day', now() FROM generate_series(1, 100000) AS n
        """,
        [key_id],
    )
    told: list[tuple[int, int]] = []
    try:
        with rows_there.open_old(old.url) as there, connect(database_url) as here:
            report = rescuestream.copy(there, here, dry_run=False, progress=lambda *now: told.append(now))
            assert report.streams == 100_000
            assert told == [(1000 * n, 100_000) for n in range(1, 101)]
            assert rescuestream.copy(there, here, dry_run=False).streams == 0
        assert only(conn, "SELECT count(*) FROM streams WHERE ended_at IS NOT NULL") == {"count": 100_000}
    finally:
        # DELETE, as after every test, would look for each stream in the `replaces` of all others.
        with psycopg.connect(database_url, autocommit=True) as patient:
            patient.execute("TRUNCATE streams CASCADE")
