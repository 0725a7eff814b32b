"""How long the history is kept: what goes, what stays, who waits, and what is still known afterwards."""

import uuid
from datetime import timedelta

import psycopg
import pytest

from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect, streams
from tests.blueprints import only, rows


@pytest.fixture
def led(conn):
    """The epoch of a lead that is had."""
    return only(conn, "SELECT epoch FROM lead_v1('test', 60, true)")["epoch"]


@pytest.fixture
def make_stream(conn, make_key):
    """A stream that was claimed so many days ago and went on for a minute, unless the columns say otherwise."""

    def make(days, key=None, **columns):
        claimed_at = only(conn, "SELECT clock_timestamp() AS now")["now"] - timedelta(days=days)
        row = {
            "id": uuid.uuid4(),
            "stream_key_id": (key or make_key()).id,
            "node": "default",
            "path": f"live/{uuid.uuid4()}",
            "protocol": "rtmp",
            "auth_id": str(uuid.uuid4()),
            "claimed_at": claimed_at,
            "lease_expires_at": claimed_at,
            "started_at": claimed_at,
            "ended_at": claimed_at + timedelta(minutes=1),
            "end_reason": "disconnected",
        } | columns
        conn.execute(
            psycopg.sql.SQL("INSERT INTO streams ({}) VALUES ({})").format(
                psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row)),
                psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, row)),
            ),
            row,
        )
        return row["id"]

    return make


OPEN = {"ended_at": None, "end_reason": None}


def left(conn):
    return {row["id"] for row in rows(conn, "SELECT id FROM streams")}


def trim(conn, epoch, *, days=9, batch=100):
    return streams.trim(conn, epoch, days=days, batch=batch)


def test_old_streams_go_in_batches_with_what_hangs_on_them_and_the_newest_stay(conn, led, make_stream):
    first, _, third, young = (make_stream(days) for days in (40, 30, 20, 1))
    for stream_id in (first, young):
        conn.execute("INSERT INTO stream_stats (stream_id, bytes) VALUES (%s, 1)", [stream_id])
    assert trim(conn, led, batch=2) == 2
    assert left(conn) == {third, young}
    assert [trim(conn, led, batch=2) for _ in range(2)] == [1, 0]
    assert left(conn) == {young}
    assert [row["stream_id"] for row in rows(conn, "SELECT stream_id FROM stream_stats")] == [young]


def test_it_is_the_end_that_counts(conn, led, make_stream):
    make_stream(40)
    ended = only(conn, "SELECT clock_timestamp() - interval '8 days' AS at")["at"]
    long_one, live = make_stream(40, ended_at=ended), make_stream(40, **OPEN)
    young = make_stream(1)
    assert trim(conn, led) == 1
    assert left(conn) == {long_one, live, young}


def test_only_the_leader_lets_go(conn, led, make_stream):
    old = make_stream(40)
    make_stream(1)
    assert trim(conn, led - 1) is None
    assert old in left(conn)


def test_the_newest_of_all_stays_however_old(conn, led, make_stream):
    make_stream(41)
    newest = make_stream(40)
    assert trim(conn, led) == 1
    assert left(conn) == {newest}


def test_what_cannot_go_keeps_nothing_else(conn, led, make_stream):
    """A batch is not filled with those that stay."""
    for _ in range(3):
        make_stream(50, **OPEN)
    make_stream(40)
    make_stream(1)
    assert trim(conn, led, batch=1) == 1


def test_a_stream_whose_connection_is_still_to_be_closed_stays_until_it_is(conn, led, make_stream):
    asked = only(conn, "SELECT clock_timestamp() - interval '30 days' AS at")["at"]
    old = make_stream(40, end_reason="revoked", kick_requested_at=asked)
    make_stream(1)
    assert trim(conn, led) == 0
    conn.execute("UPDATE streams SET kicked_at = clock_timestamp() WHERE id = %s", [old])
    assert trim(conn, led) == 1


@pytest.mark.parametrize("member", ["replaces", "replaced_by"])
def test_an_ended_stream_forgets_the_one_that_goes(member, conn, led, make_stream):
    old = make_stream(40)
    young = make_stream(1, **{member: old})
    assert trim(conn, led) == 1
    (row,) = rows(conn, "SELECT id, replaces, replaced_by FROM streams")
    assert (row["id"], row["replaces"], row["replaced_by"]) == (young, None, None)


@pytest.mark.parametrize(("goes", "stays"), [("replaces", "replaced_by"), ("replaced_by", "replaces")])
def test_a_reference_to_one_that_stays_is_kept(goes, stays, conn, led, make_stream):
    old, kept = make_stream(40), make_stream(2)
    young = make_stream(1, **{goes: old, stays: kept})
    assert trim(conn, led) == 1
    row = only(conn, "SELECT replaces, replaced_by FROM streams WHERE id = %s", young)
    assert (row[goes], row[stays]) == (None, kept)


@pytest.mark.parametrize("member", ["replaces", "replaced_by"])
def test_an_open_stream_keeps_the_one_it_refers_to(member, conn, led, make_stream):
    """Its row, and with it the live list, changes for no other reason than before."""
    old, _ = make_stream(41), make_stream(40)
    live = make_stream(30, **{member: old}, **OPEN)
    young = make_stream(1)
    version = only(conn, "SELECT version FROM live_list")
    assert [trim(conn, led, batch=1) for _ in range(2)] == [1, 0]
    assert left(conn) == {old, live, young}
    assert only(conn, "SELECT version FROM live_list") == version


def test_old_ones_that_refer_to_each_other_go_together(conn, led, make_stream):
    old = make_stream(40)
    new = make_stream(39, replaces=old)
    conn.execute("UPDATE streams SET replaced_by = %s WHERE id = %s", [new, old])
    make_stream(1)
    assert trim(conn, led) == 2


def test_and_one_after_the_other_when_a_batch_is_full(conn, led, make_stream):
    old = make_stream(40)
    new = make_stream(39, replaces=old)
    conn.execute("UPDATE streams SET replaced_by = %s WHERE id = %s", [new, old])
    make_stream(1)
    assert [trim(conn, led, batch=1) for _ in range(3)] == [1, 1, 0]


def test_when_a_key_was_last_used_is_known_afterwards(conn, led, make_stream, make_key, api):
    silent, busy, never = make_key(), make_key(), make_key()
    make_stream(50, silent)
    make_stream(40, silent)
    make_stream(40, busy)
    make_stream(1, busy)
    make_stream(0.5)

    def used():
        return [api.get(f"/stream-keys/{key.id}").get_json()["last_used_at"] for key in (silent, busy, never)]

    before = used()
    assert trim(conn, led, batch=1) == 1
    assert used() == before
    assert trim(conn, led) == 2
    assert used() == before
    written = rows(conn, "SELECT id FROM stream_keys WHERE last_used_at IS NOT NULL")
    assert [row["id"] for row in written] == [silent.id]


def test_what_was_known_of_a_key_before_is_no_earlier_afterwards(conn, led, make_stream, make_key):
    key = make_key()
    make_stream(40, key)
    make_stream(1)
    conn.execute("UPDATE stream_keys SET last_used_at = clock_timestamp() WHERE id = %s", [key.id])
    before = only(conn, "SELECT last_used_at FROM stream_keys WHERE id = %s", key.id)
    assert trim(conn, led) == 1
    assert only(conn, "SELECT last_used_at FROM stream_keys WHERE id = %s", key.id) == before


def test_it_is_nobodys_change(conn, led, make_stream):
    make_stream(40)
    make_stream(1)
    before = only(conn, "SELECT count(*) FROM audit")
    assert trim(conn, led) == 1
    assert only(conn, "SELECT count(*) FROM audit") == before


# --- who waits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held",
    [
        "SELECT 1 FROM streams WHERE id = %(old)s FOR UPDATE",
        "SELECT 1 FROM streams WHERE id = %(young)s FOR UPDATE",
        "SELECT 1 FROM stream_keys WHERE id = (SELECT stream_key_id FROM streams WHERE id = %(old)s) FOR UPDATE",
    ],
    ids=["the stream", "one that refers to it", "its key"],
)
def test_it_waits_for_nobody(held, database_url, conn, led, make_stream):
    """What somebody holds goes another time, and the rest now."""
    old, _ = make_stream(40), make_stream(39)
    young = make_stream(1, replaces=old)
    with connect(database_url) as holder, holder.transaction():
        holder.execute(held, {"old": old, "young": young})
        assert trim(conn, led) == 1
        assert left(conn) == {old, young}
    assert trim(conn, led) == 1
    assert left(conn) == {young}


def test_a_claim_does_not_wait_for_a_batch(database_url, conn, led, make_stream, make_key, media_server):
    """The batch holds what it deletes and does not end; the key has a younger stream, so it is not written to."""
    key = make_key()
    make_stream(40, key)
    make_stream(1, key, path="live/cam7")
    with connect(database_url) as holder, holder.transaction():
        assert trim(holder, led) == 1
        assert media_server.ask(key).status_code == 200
        assert media_server.ask(make_key(), "live/other").status_code == 200
    assert only(conn, "SELECT count(*) FROM streams")["count"] == 3


def test_a_batch_reads_no_table_from_end_to_end(database_url, conn, led, make_stream, make_key):
    """Among many, each look for who refers to a stream is asked of an index; without one, it is not."""
    key = make_key()
    newest = make_stream(1, key)
    with psycopg.connect(database_url, autocommit=True) as patient:  # however long a busy machine takes
        patient.execute(
            """
            INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at,
                                 started_at, ended_at, end_reason, replaces)
            SELECT gen_random_uuid(), %s, 'default', 'live/' || n, 'rtmp', n, o.at, o.at, o.at, o.at, 'disconnected',
                   CASE WHEN n %% 100 = 0 THEN %s::uuid END
            FROM generate_series(1, 20000) AS n,
                 LATERAL (SELECT now() - interval '40 days' - n * interval '1 minute') AS o (at)
            """,
            [key.id, newest],
        )
        patient.execute("INSERT INTO stream_stats (stream_id) SELECT id FROM streams")
        patient.execute("ANALYZE streams")
        patient.execute("ANALYZE stream_stats")

    def scans():
        with connect(database_url) as own, own.transaction():
            assert trim(own, led, batch=50) == 50
            found = own.execute(
                "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname IN ('streams', 'stream_stats')"
            ).fetchall()
            return dict(found)

    assert scans() == {"streams": 0, "stream_stats": 0}
    with conn.transaction(force_rollback=True):
        conn.execute("DROP INDEX streams_by_replaced_by")
        assert trim(conn, led, batch=50) == 50
        table = only(conn, "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'streams'")
        assert table["seq_scan"] >= 50


# --- the leader -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "goes"), [({}, False), ({"HISTORY_DAYS": "9"}, True)])
def test_the_reconciler_lets_go_of_what_is_too_old_if_it_is_told_to(
    settings, goes, database_url, conn, make_settings, make_stream, fake, monkeypatch
):
    """At each tick a batch while there is more; a leader that comes after goes on."""
    monkeypatch.setattr("streamorch.reconciler._TRIM_STREAMS", 2)
    for _ in range(5):
        make_stream(40)
    make_stream(1)
    api = ControlAPI(fake.url, user="streamorch", password="secret")
    counts = []
    first, second = (Reconciler(make_settings(**settings), api) for _ in range(2))
    for reconciler in (first, second, second, second):
        with connect(database_url) as own:
            reconciler.tick(own, force=True)
        counts.append(only(conn, "SELECT count(*) FROM streams")["count"])
    assert counts == ([4, 2, 1, 1] if goes else [6, 6, 6, 6])
