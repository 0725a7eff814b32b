"""The last line of defence of streams: constraints and partial unique indexes; and what no route reaches."""

import json
import uuid
from typing import get_args

import msgspec
import psycopg
import pytest

from streamorch import keys, repositories
from streamorch.repositories import broadcasters, streams
from tests.blueprints import NOW, PAST, only, rows, text_of

COLUMNS = (
    "id",
    "stream_key_id",
    "node",
    "path",
    "protocol",
    "auth_id",
    "source_id",
    "claimed_at",
    "lease_expires_at",
    "started_at",
    "ended_at",
    "end_reason",
    "replaces",
    "replaced_by",
    "metadata",
    "recording_ref",
)
INSERT = psycopg.sql.SQL("INSERT INTO streams ({}) VALUES ({})").format(
    psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, COLUMNS)),
    psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, COLUMNS)),
)
PENDING = {"started_at": None, "ended_at": None, "end_reason": None}
ACTIVE = {"started_at": PAST, "ended_at": None, "end_reason": None}
ENDED = {"started_at": PAST, "ended_at": NOW, "end_reason": "disconnected"}
ONE = uuid.uuid4()


@pytest.fixture
def insert(conn, make_key):
    """Insert a stream that is right, but for the columns given."""
    owner = make_key()

    def do(key=owner, **columns):
        row = dict.fromkeys(COLUMNS) | {
            "id": uuid.uuid4(),
            "stream_key_id": key.id,
            "node": "default",
            "path": "live/cam7",
            "protocol": "rtmp",
            "auth_id": "c1",
            "claimed_at": PAST,
            "lease_expires_at": PAST,
            "metadata": "{}",
            **ENDED,
        }
        conn.execute(INSERT, row | columns)
        return (row | columns)["id"]

    return do


END_REASONS = get_args(streams.EndReason)
REASONS = (None, *END_REASONS)


@pytest.mark.parametrize("state", [PENDING, ACTIVE, ENDED])
def test_each_state_can_be_stored(state, insert, conn):
    insert(**state)
    assert len(rows(conn, "SELECT id FROM streams")) == 1


def test_each_end_reason_can_be_stored_where_the_table_of_states_has_it(insert):
    of_pending = {"never_started", "revoked", "expired", "disabled", "stopped"}
    for reason in END_REASONS:
        started = [None] * (reason in of_pending) + [PAST] * (reason != "never_started")
        for started_at in started:
            insert(started_at=started_at, end_reason=reason)


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"ended_at": NOW, "end_reason": None}, "streams_end_has_reason"),
        ({"ended_at": None, "end_reason": "stopped"}, "streams_end_has_reason"),
        ({"end_reason": "bored"}, "streams_end_reason_known"),
        ({"end_reason": "never_started"}, "streams_never_started_is_unstarted"),
        ({"started_at": None, "end_reason": "disconnected"}, "streams_live_end_was_started"),
        ({"started_at": None, "end_reason": "superseded"}, "streams_live_end_was_started"),
        ({"started_at": None, "end_reason": "server_restarted"}, "streams_live_end_was_started"),
        ({"started_at": None, "end_reason": "server_lost"}, "streams_live_end_was_started"),
        ({"id": ONE, "replaces": ONE}, "streams_replaces_another"),
        ({"id": ONE, "replaced_by": ONE}, "streams_replaces_another"),
        ({"auth_id": ""}, "streams_connection_length"),
        ({"auth_id": "x" * 256}, "streams_connection_length"),
        ({"source_id": ""}, "streams_connection_length"),
        ({"source_id": "x" * 256}, "streams_connection_length"),
        ({"recording_ref": "x" * 513}, "streams_recording_ref_length"),
        ({"metadata": "[]"}, "streams_metadata_is_object"),
        ({"metadata": "null"}, "streams_metadata_is_object"),
    ],
)
def test_a_row_that_cannot_be_is_refused(columns, constraint, insert):
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        insert(**columns)
    assert caught.value.diag.constraint_name == constraint


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"stream_key_id": ONE}, "streams_stream_key"),
        ({"replaces": ONE}, "streams_replaces"),
        ({"replaced_by": ONE}, "streams_replaced_by"),
    ],
)
def test_a_stream_refers_to_what_exists(columns, constraint, insert):
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        insert(**columns)
    assert caught.value.diag.constraint_name == constraint


@pytest.mark.parametrize("state", [PENDING, ACTIVE])
def test_a_key_has_one_pending_and_one_active_stream(state, insert):
    insert(**PENDING)
    insert(**ACTIVE)
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        insert(**state, path="live/other", node="other")
    assert caught.value.diag.constraint_name == "streams_one_pending_one_active_per_key"
    insert()
    insert()


@pytest.mark.parametrize("state", [PENDING, ACTIVE])
def test_a_path_of_a_node_has_one_pending_and_one_active_stream(state, insert, make_key):
    insert(**PENDING)
    insert(**ACTIVE)
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        insert(make_key(), **state)
    assert caught.value.diag.constraint_name == "streams_one_pending_one_active_per_path"
    insert(make_key(), **state, node="other")
    insert(make_key(), **state, path="live/other")


def test_the_live_list_has_one_version(conn):
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("INSERT INTO live_list (version, changed_at, epoch) VALUES (1, now(), '')")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        conn.execute("INSERT INTO live_list (only_row, version, changed_at, epoch) VALUES (false, 1, now(), '')")
    assert caught.value.diag.constraint_name == "live_list_has_one_row"


@pytest.mark.own_database
def test_each_database_has_an_epoch_of_its_own(conn):
    epoch = only(conn, "SELECT epoch FROM live_list")["epoch"]
    assert len(epoch) == 8
    assert streams.version(conn).startswith(f"{epoch}-1-")


# --- functions ---


def claim(conn, key, path="live/cam7", connection_id="c1"):
    return streams.claim(
        conn,
        key_hash=keys.digest(key.value),
        node="default",
        path=path,
        connection_id=connection_id,
        protocol="rtmp",
        remote_address="",
        user_agent="",
        lease_seconds=20,
    )


def test_a_claim_tells_whose_it_is_and_who_stands_in_its_way(conn, make_key):
    key, other = make_key(), make_key()
    first = claim(conn, key)
    assert (first.outcome, first.stream_key_id, first.rival_id, first.is_granted) == ("claimed", key.id, None, True)
    again = claim(conn, key)
    assert (again.outcome, again.stream_id, again.is_granted) == ("replay", first.stream_id, True)
    own = claim(conn, key, connection_id="c2")
    assert (own.outcome, own.rival_id, own.stream_id) == ("stream-key-in-use", first.stream_id, None)
    foreign = claim(conn, other)
    assert (foreign.outcome, foreign.rival_id, foreign.is_granted) == ("path-in-use", first.stream_id, False)
    checked = streams.check(conn, key_hash=keys.digest(key.value), node="default", path="live/cam7")
    assert (checked.outcome, checked.stream_key_id, checked.is_granted) == ("valid", key.id, True)
    unknown = streams.check(conn, key_hash=keys.digest("x"), node="default", path="live/cam7")
    assert unknown == streams.Claim("invalid-stream-key", None)


JUDGED = "SELECT outcome FROM claim_v1(%s, 'default', 'live/cam7', 'c2', 'rtmp', '', '', 20, %s)"


@pytest.mark.parametrize("takeover", ["stalled", "never"])
@pytest.mark.parametrize("is_live", [False, True])
def test_a_rival_of_the_own_key_that_was_judged_gone_gives_way(takeover, is_live, conn, make_key):
    conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")
    key = make_key(takeover=takeover)
    old = claim(conn, key).stream_id
    if is_live:
        streams.start(conn, node="default", path="live/cam7", source_type="rtmpConn", source_id="c1")
    assert only(conn, JUDGED, keys.digest(key.value), old)["outcome"] == "claimed"
    stream = only(conn, "SELECT end_reason, replaces FROM streams WHERE auth_id = 'c2'")
    ended = only(conn, "SELECT end_reason FROM streams WHERE id = %s", old)["end_reason"]
    if is_live:
        assert (stream["replaces"], ended) == (old, None)
    else:
        assert (stream["replaces"], ended) == (None, "never_started")


def test_a_rival_of_another_key_never_gives_way_to_a_judgement(conn, make_key):
    old = claim(conn, make_key()).stream_id
    assert only(conn, JUDGED, keys.digest(make_key().value), old)["outcome"] == "path-in-use"


def test_a_refusal_and_a_replay_take_no_lock_and_write_nothing(conn, make_key, database_url):
    key, revoked = make_key(), make_key(revoked_at=PAST)
    claim(conn, key)
    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        before = only(conn, "SELECT pg_current_wal_insert_lsn() AS lsn")
        assert claim(conn, key).outcome == "replay"
        assert claim(conn, key, connection_id="c2").outcome == "stream-key-in-use"
        assert claim(conn, revoked).outcome == "stream-key-revoked"
        assert only(conn, "SELECT pg_current_wal_insert_lsn() AS lsn") == before


def test_a_claim_waits_for_a_lock_no_longer_than_its_caller_can(conn, make_key, database_url):
    key, free = make_key(), make_key()
    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM stream_keys WHERE id = %s FOR UPDATE", [key.id])
        other.execute("SELECT lock_path_v1('live/taken')")
        for locked in ((key, "live/free"), (free, "live/taken")):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                claim(conn, *locked)
        assert claim(conn, free, "live/free").outcome == "claimed"
    assert claim(conn, key, "live/taken").outcome == "claimed"


def test_stop_tells_what_it_found(conn, make_key):
    stream_id = claim(conn, make_key()).stream_id
    assert streams.stop(conn, stream_id, hold_seconds=30) == "stopped"
    assert streams.stop(conn, stream_id, hold_seconds=30) == "already"
    assert streams.stop(conn, uuid.uuid4(), hold_seconds=30) == "not-found"


def test_outcomes_of_hooks_are_told(conn, make_key):
    hook = {"node": "default", "path": "live/cam7", "source_type": "rtmpConn", "source_id": "c1"}
    assert streams.start(conn, **hook)[:2] == ("not-found", None)
    stream_id = claim(conn, make_key()).stream_id
    assert streams.start(conn, **hook)[:2] == ("active", stream_id)
    assert streams.start(conn, **hook)[:2] == ("replay", stream_id)
    assert streams.end_on_path(conn, node="default", path="live/cam7", grace_seconds=5) == ("late", None)
    assert streams.end_on_path(conn, node="default", path="live/cam7", grace_seconds=0) == ("ended", stream_id)
    assert streams.end(conn, **hook) == ("late", stream_id)
    assert streams.end(conn, **hook | {"source_id": "c2"}) == ("unknown", None)
    assert streams.end(conn, **hook | {"node": "other"}) == ("unknown", None)


def test_hooks_of_another_node_do_not_touch_a_stream(conn, make_key):
    stream_id = claim(conn, make_key()).stream_id
    hook = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": "c1"}
    assert streams.start(conn, node="other", **hook)[:2] == ("not-found", None)
    assert streams.start(conn, node="default", **hook)[:2] == ("active", stream_id)
    assert streams.end(conn, node="other", **hook) == ("unknown", None)
    assert streams.end_on_path(conn, node="other", path="live/cam7", grace_seconds=0) == ("late", None)
    assert only(conn, "SELECT ended_at FROM streams")["ended_at"] is None


def test_live_tells_version_and_list_of_one_moment(conn, make_key):
    empty = streams.live(conn, {})
    assert (empty.version, empty.marks, empty.items) == (streams.version(conn), [], [])
    stream_id = claim(conn, make_key()).stream_id
    streams.start(conn, node="default", path="live/cam7", source_type="rtmpConn", source_id="c1")
    live = streams.live(conn, {})
    assert live.version == streams.version(conn) != empty.version
    (mark,) = live.marks
    (item,) = live.items
    assert (item.mark, item.path) == (mark, "live/cam7")
    assert mark.startswith(str(stream_id))
    alone = ("remote_address", "bytes", "bitrate", "tracks", "kick")
    stream = streams.get(conn, stream_id)
    shown = json.loads(msgspec.json.encode(stream))
    assert json.loads(item.encoded) == {name: value for name, value in shown.items() if name not in alone}


def test_live_tells_only_what_is_not_known_newest_first(conn, make_key):
    made = []
    for number in range(3):
        made.append(claim(conn, make_key(), path=f"live/{number}", connection_id=f"c{number}").stream_id)
        hook = {"path": f"live/{number}", "source_type": "rtmpConn", "source_id": f"c{number}"}
        streams.start(conn, node="default", **hook)
    live = streams.live(conn, {})
    assert [mark[:36] for mark in live.marks] == [str(stream_id) for stream_id in reversed(made)]
    assert {item.mark for item in live.items} == set(live.marks)
    assert streams.live(conn, live.marks) == live._replace(items=[])
    assert [item.mark for item in streams.live(conn, live.marks[1:]).items] == live.marks[:1]


CHANGES = {
    "its stream": "UPDATE streams SET recording_ref = 'x'",
    "an interruption": "UPDATE streams SET interrupted_at = now()",
    "its key": "UPDATE stream_keys SET label = 'x'",
    "its broadcaster": "UPDATE broadcasters SET display_name = 'x'",
    "its viewers": "UPDATE stream_stats SET viewers = 8",
    "its media": "UPDATE stream_stats SET media = 'stalled'",
    "its first viewers": "DELETE FROM stream_stats",
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_mark_is_another_when_the_list_shows_something_else(changed, conn, make_key):
    stream_id = claim(conn, make_key()).stream_id
    streams.start(conn, node="default", path="live/cam7", source_type="rtmpConn", source_id="c1")
    conn.execute(
        "INSERT INTO stream_stats (stream_id, viewers, media, bytes) VALUES (%s, 7, 'flowing', 1)", [stream_id]
    )
    before = streams.live(conn, {})
    conn.execute("UPDATE stream_stats SET bytes = bytes + 1, sampled_at = now()")
    assert streams.live(conn, {}) == before
    conn.execute(CHANGES[changed])
    after = streams.live(conn, before.marks)
    assert [item.mark for item in after.items] == after.marks
    assert after.marks != before.marks


def test_update_tells_what_it_found(conn, make_key):
    stream_id = claim(conn, make_key()).stream_id
    assert streams.update(conn, stream_id, {"recording_ref": "x"}) == "updated"
    assert streams.update(conn, uuid.uuid4(), {}) == "not-found"
    assert streams.get(conn, uuid.uuid4()) is None


def measured(conn, stream_id, **columns):
    """What the reconciler has written of a stream."""
    row = {"media": "flowing", "bitrate": 4_200_000, "tracks": '["H264"]', "moved_at": NOW} | columns
    conn.execute(
        """INSERT INTO stream_stats (stream_id, media, bitrate, tracks, moved_at)
        VALUES (%(id)s, %(media)s, %(bitrate)s, %(tracks)s, %(moved_at)s)""",
        row | {"id": stream_id},
    )


def test_measures_are_of_what_is_live_and_measured(insert, make_key, conn):
    live, unseen = (insert(make_key(), path=path, auth_id=path, **ACTIVE) for path in ("live/a", "live/b"))
    ended, pending = (
        insert(make_key(), path=path, auth_id=path, **state) for path, state in (("live/c", ENDED), ("live/d", PENDING))
    )
    insert(make_key(), path="live/e", auth_id="e", **ACTIVE)  # no row of its own yet
    for one in (live, ended, pending):
        measured(conn, one)
    measured(conn, unseen, media=None)  # its media server does not answer
    assert streams.measures(conn) == [streams.Measure(str(live), 4_200_000, '["H264"]')]


def test_history_that_takes_too_long_is_given_up_by_the_server_and_is_no_outage(database_url, conn):
    database = repositories.Database(database_url, min_size=1, max_size=1)
    database.open()
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE streams IN ACCESS EXCLUSIVE MODE")  # as good as a million rows
        with pytest.raises(psycopg.errors.QueryCanceled), database.connection() as reader:
            streams.page(reader, status="ended", filters={}, limit=9, after=None)
        with database.connection() as same:  # no deadline was missed, so nobody is refused
            assert (same, same.info.transaction_status) == (reader, psycopg.pq.TransactionStatus.IDLE)
            repositories.ping(same)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'relation' AND query ~ 'streams.page'"
        assert conn.execute(waiting).fetchall() == []
    database.close()


def test_facts_are_of_any_stream(insert, make_key, conn):
    key = make_key()
    one, other = insert(key, auth_id="a"), insert(make_key(), auth_id="b", path="live/b", **PENDING)
    conn.execute("UPDATE streams SET user_agent = 'OBS' WHERE id = %s", [one])
    measured(conn, one)
    hint = key.value[-4:]
    assert streams.facts(conn, one) == streams.Facts("OBS", hint, hint, text_of(NOW), False)
    found = streams.facts(conn, other)
    assert found is not None
    assert (found.user_agent, found.moved_at) == (None, None)
    conn.execute("UPDATE streams SET hint = 'olde' WHERE id = %s", [one])  # and since then its key has another value
    broadcasters.delete(conn, key.broadcaster_id)
    assert streams.facts(conn, one) == streams.Facts("OBS", hint, "olde", text_of(NOW), True)
    assert streams.facts(conn, uuid.uuid4()) is None
