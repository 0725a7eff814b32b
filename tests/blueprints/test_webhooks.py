"""The hooks are hints: unordered, unretried, lost or doubled. Each is decided by the id of its connection."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from streamorch import keys
from tests.blueprints import PAST, WithAMediaServer, logged, only, problem, rows
from tests.conftest import MediaServer
from tests.test_leader import until

PATH = "live/cam7"
ALL = "SELECT * FROM streams ORDER BY claimed_at"
HOOKS = ["ready", "not-ready"]


@pytest.fixture
def version(conn):
    """The version of the live list, read when called."""
    return lambda: only(conn, "SELECT version FROM live_list")["version"]


@pytest.fixture
def hook(client):
    """POST a hook whose body is exactly this."""
    return lambda name, **body: client.post(f"/webhook/{name}", json=body)


def assert_done(answer):
    assert (answer.status_code, answer.data) == (204, b"")


# --- ready ---


def test_ready_makes_the_claim_of_that_connection_live(media_server, make_key, conn, version):
    before = version()
    media_server.ask(make_key(), id="c1")
    assert version() == before
    assert_done(media_server.ready("c1", source_type="rtmpConn"))
    stream = only(conn, ALL)
    assert (stream["source_id"], stream["source_type"], stream["ended_at"]) == ("c1", "rtmpConn", None)
    assert stream["started_at"] > stream["claimed_at"]
    assert version() == before + 1


def test_ready_again_changes_nothing(media_server, make_key, conn, version):
    connection_id = media_server.go_live(make_key())
    before = rows(conn, "SELECT *, xmin FROM streams"), version()
    assert_done(media_server.ready(connection_id))
    assert (rows(conn, "SELECT *, xmin FROM streams"), version()) == before


def test_ready_is_granted_after_the_lease_lapsed(media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp() - interval '1 hour'")
    assert_done(media_server.ready("c1"))
    assert only(conn, ALL)["started_at"] is not None


def test_ready_that_nobody_claimed_is_not_found(media_server, conn, version):
    before = version()
    problem(media_server.ready("nobody"), "stream-not-found", 404)
    assert (rows(conn, ALL), version()) == ([], before)


def test_ready_on_another_path_than_the_claim_is_not_found(media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    problem(media_server.ready("c1", "live/other"), "stream-not-found", 404)
    assert only(conn, ALL)["started_at"] is None


def test_ready_never_revives_what_has_ended(media_server, make_key, conn, version):
    connection_id = media_server.go_live(make_key())
    media_server.not_ready(connection_id)
    before = rows(conn, ALL), version()
    problem(media_server.ready(connection_id), "stream-not-found", 404)
    assert (rows(conn, ALL), version()) == before


def test_ready_after_the_claim_gave_way_is_not_found(media_server, make_key, conn):
    key = make_key()
    media_server.ask(key, id="slow")
    conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp()")
    media_server.ask(key, id="fast")
    problem(media_server.ready("slow"), "stream-not-found", 404)
    assert_done(media_server.ready("fast"))
    assert [row["end_reason"] for row in rows(conn, ALL)] == ["never_started", None]


@pytest.mark.parametrize("source_id", [{}, {"source_id": ""}, {"source_id": None}])
@pytest.mark.parametrize("source_type", [{}, {"source_type": ""}, {"source_type": "rtspSource"}])
def test_ready_of_a_source_that_is_no_client_makes_no_stream(
    source_id, source_type, hook, media_server, make_key, conn
):
    media_server.ask(make_key(), id="c1")
    assert_done(hook("ready", path=PATH, **source_id, **source_type))
    assert only(conn, ALL)["started_at"] is None


def test_ready_ends_what_it_replaces_in_the_same_moment(media_server, make_key, conn, version):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    before = version()
    assert_done(media_server.ready("new"))
    old, new = rows(conn, ALL)
    assert (old["end_reason"], old["replaced_by"], old["ended_at"]) == ("superseded", new["id"], new["started_at"])
    assert (new["replaces"], new["ended_at"]) == (old["id"], None)
    assert version() == before + 1


def test_a_takeover_by_the_key_on_another_path_ends_the_old_stream(media_server, make_key, conn):
    conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")
    key = make_key(takeover="always")
    media_server.go_live(key, "live/a")
    media_server.go_live(key, "live/b")
    assert [(row["path"], row["end_reason"]) for row in rows(conn, ALL)] == [("live/a", "superseded"), ("live/b", None)]


def test_the_end_of_the_old_may_come_before_the_start_of_the_new(media_server, make_key, conn):
    key = make_key()
    old_id = media_server.go_live(key)
    media_server.ask(key, id="new")
    assert_done(media_server.not_ready(old_id))
    assert_done(media_server.ready("new"))
    old, new = rows(conn, ALL)
    assert (old["end_reason"], old["replaced_by"]) == ("disconnected", new["id"])
    assert (new["replaces"], new["ended_at"]) == (old["id"], None)


def test_the_end_of_the_old_may_come_after_the_start_of_the_new(media_server, make_key, conn):
    key = make_key()
    old_id = media_server.go_live(key)
    media_server.ask(key, id="new")
    assert_done(media_server.ready("new"))
    assert_done(media_server.not_ready(old_id))
    old, new = rows(conn, ALL)
    assert (old["end_reason"], new["ended_at"]) == ("superseded", None)


LOST_RIGHTS = [
    ("UPDATE stream_keys SET revoked_at = clock_timestamp()", "revoked"),
    ("UPDATE stream_keys SET expires_at = clock_timestamp()", "expired"),
    ("UPDATE stream_keys SET disabled_at = clock_timestamp()", "disabled"),
    ("UPDATE broadcasters SET disabled_at = clock_timestamp()", "disabled"),
]


@pytest.mark.parametrize(("statement", "reason"), LOST_RIGHTS)
@pytest.mark.parametrize("name", HOOKS)
def test_a_claim_whose_key_lost_its_right_ends(statement, reason, name, media_server, make_key, conn, hook, version):
    media_server.ask(make_key(), id="c1")
    conn.execute(statement)
    before = version()
    answer = hook(name, path=PATH, source_type="rtmpConn", source_id="c1")
    if name == "ready":
        problem(answer, "stream-not-found", 404)
    else:
        assert_done(answer)
    stream = only(conn, ALL)
    assert (stream["end_reason"], stream["started_at"]) == (reason, None)
    assert version() == before


def test_a_claim_whose_key_lost_its_right_leaves_the_live_stream_alone(media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    conn.execute("UPDATE stream_keys SET expires_at = clock_timestamp()")
    problem(media_server.ready("new"), "stream-not-found", 404)
    assert [row["end_reason"] for row in rows(conn, ALL)] == [None, "expired"]


# --- RTSP before v1.19.3: auth names the connection, the hook the session ---


@pytest.mark.parametrize("source_type", ["rtspSession", "rtspsSession"])
def test_an_rtsp_session_takes_the_one_pending_claim_of_its_path(source_type, media_server, make_key, conn):
    media_server.ask(make_key(), id="the-connection", protocol="rtsp")
    assert_done(media_server.ready("the-session", source_type=source_type))
    stream = only(conn, ALL)
    assert (stream["auth_id"], stream["source_id"]) == ("the-connection", "the-session")
    assert stream["started_at"] is not None
    assert_done(media_server.ready("the-session", source_type=source_type))
    assert_done(media_server.not_ready("the-session", source_type=source_type))
    assert only(conn, ALL)["end_reason"] == "disconnected"


@pytest.mark.parametrize(
    ("protocol", "source_type", "path"),
    [
        ("rtmp", "rtspSession", PATH),
        ("rtsp", "rtmpConn", PATH),
        ("rtsp", "rtspSession", "live/other"),
    ],
)
def test_an_rtsp_session_takes_no_other_claim(protocol, source_type, path, media_server, make_key, conn):
    media_server.ask(make_key(), id="the-connection", protocol=protocol)
    problem(media_server.ready("the-session", path, source_type), "stream-not-found", 404)
    assert only(conn, ALL)["started_at"] is None


def test_the_end_of_an_unmapped_rtsp_session_waits_for_its_start(media_server, make_key, conn):
    media_server.ask(make_key(), id="the-connection", protocol="rtsp")
    assert_done(media_server.not_ready("the-session", source_type="rtspSession"))
    assert only(conn, ALL)["ended_at"] is None
    problem(media_server.ready("the-session", source_type="rtspSession"), "stream-not-found", 404)
    stream = only(conn, ALL)
    assert stream["ended_at"] is not None
    assert stream["end_reason"] == "disconnected"


# --- not-ready ---


def test_not_ready_ends_the_stream_of_that_connection(media_server, make_key, conn, version):
    connection_id = media_server.go_live(make_key())
    before = version()
    assert_done(media_server.not_ready(connection_id))
    stream = only(conn, ALL)
    assert stream["end_reason"] == "disconnected"
    assert stream["ended_at"] > stream["started_at"]
    assert version() == before + 1


def test_not_ready_again_changes_nothing(media_server, make_key, conn, version):
    connection_id = media_server.go_live(make_key())
    media_server.not_ready(connection_id)
    before = rows(conn, ALL), version()
    assert_done(media_server.not_ready(connection_id))
    assert (rows(conn, ALL), version()) == before


def test_a_late_not_ready_does_not_end_the_next_stream(media_server, make_key, conn):
    key = make_key()
    first = media_server.go_live(key)
    media_server.not_ready(first)
    media_server.go_live(key)
    assert_done(media_server.not_ready(first))
    assert [row["end_reason"] for row in rows(conn, ALL)] == ["disconnected", None]


def test_not_ready_of_a_pending_claim_tells_that_it_was_live(media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    assert_done(media_server.not_ready("c1"))
    stream = only(conn, ALL)
    assert stream["ended_at"] is not None
    assert stream["end_reason"] == "disconnected"
    problem(media_server.ready("c1"), "stream-not-found", 404)
    assert only(conn, ALL) == stream


def test_not_ready_of_a_pending_newcomer_ends_what_it_replaced_too(media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    assert_done(media_server.not_ready("new"))
    assert [row["end_reason"] for row in rows(conn, ALL)] == ["superseded", "disconnected"]


def test_an_end_that_comes_first_of_all_is_remembered(media_server, make_key, conn):
    assert_done(media_server.not_ready("c1"))
    assert only(conn, "SELECT node, source_id FROM departures") == {"node": "default", "source_id": "c1"}
    media_server.ask(make_key(), id="c1")
    problem(media_server.ready("c1"), "stream-not-found", 404)
    assert only(conn, ALL)["ended_at"] is not None


def test_an_end_is_remembered_for_a_minute(media_server, make_key, conn):
    media_server.not_ready("c1")
    media_server.not_ready("c1")
    assert len(rows(conn, "SELECT source_id FROM departures")) == 1
    conn.execute("UPDATE departures SET departed_at = departed_at - interval '61 seconds'")
    media_server.ask(make_key(), id="c1")
    assert_done(media_server.ready("c1"))
    assert only(conn, ALL)["ended_at"] is None
    media_server.not_ready("c2")
    assert only(conn, "SELECT source_id FROM departures")["source_id"] == "c2"  # the old one is gone


# --- not-ready that names no connection ---

PLAIN = [{}, {"source_type": ""}, {"source_type": "rtmpConn"}, {"source_id": None, "source_type": "webRTCSession"}]


@pytest.mark.parametrize("members", PLAIN)
def test_a_plain_not_ready_ends_a_stream_of_more_than_five_seconds(
    members, media_server, make_key, conn, hook, version
):
    media_server.go_live(make_key())
    media_server.go_live(make_key(), "live/other")
    conn.execute("UPDATE streams SET started_at = started_at - interval '6 seconds'")
    before = version()
    assert_done(hook("not-ready", path=PATH, **members))
    assert [row["end_reason"] for row in rows(conn, ALL)] == ["disconnected", None]
    assert version() == before + 1


@pytest.mark.parametrize("members", PLAIN)
def test_a_plain_not_ready_leaves_a_younger_stream_alone(members, media_server, make_key, conn, hook, version):
    media_server.go_live(make_key())
    before = version()
    assert_done(hook("not-ready", path=PATH, **members))
    assert only(conn, ALL)["ended_at"] is None
    assert version() == before


def test_a_plain_not_ready_leaves_a_pending_claim_alone(media_server, make_key, conn, hook):
    media_server.ask(make_key())
    conn.execute("UPDATE streams SET claimed_at = claimed_at - interval '6 seconds'")
    assert_done(hook("not-ready", path=PATH))
    assert only(conn, ALL)["ended_at"] is None


@pytest.mark.parametrize("members", [{"source_id": ""}, {"source_type": "rtspSource"}, {"source_type": "hlsSource"}])
def test_a_not_ready_of_a_source_that_is_no_client_ends_nothing(members, media_server, make_key, conn, hook):
    media_server.go_live(make_key())
    conn.execute("UPDATE streams SET started_at = started_at - interval '6 seconds'")
    assert_done(hook("not-ready", path=PATH, **members))
    assert only(conn, ALL)["ended_at"] is None


# --- bodies ---


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_a_hook_is_read_as_json_whatever_its_content_type(content_type, client, media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    body = {"path": PATH, "source_type": "rtmpConn", "source_id": "c1"}
    for name, column in (("ready", "started_at"), ("not-ready", "ended_at")):
        assert_done(client.post(f"/webhook/{name}", data=json.dumps(body), content_type=content_type))
        assert only(conn, ALL)[column] is not None


def test_unknown_members_of_a_hook_are_ignored_and_not_logged(capsys, make_app, make_key):
    value = keys.mint()
    client = make_app().test_client()
    MediaServer(client).ask(make_key(), id="c1")
    logged(capsys)
    body = {"path": PATH, "source_type": "rtmpConn", "source_id": "c1", "query": f"a=secret&pass={value}", "x": [1]}
    assert_done(client.post("/webhook/ready", json=body))
    (line,) = logged(capsys)
    assert (line["message"], line["outcome"], line["source_id"]) == ("ready", "active", "c1")
    assert value not in json.dumps(line)
    assert "secret" not in json.dumps(line)


def test_an_unreachable_database_is_503_and_never_204(app, hook, media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    app.extensions["streamorch"].database.close()
    body = {"path": PATH, "source_type": "rtmpConn", "source_id": "c1"}
    problem(hook("ready", **body), "database-unavailable", 503)
    problem(hook("not-ready", **body), "database-unavailable", 503)
    problem(hook("not-ready", path=PATH), "database-unavailable", 503)
    assert only(conn, ALL)["started_at"] is None


def test_a_lock_that_is_not_to_be_had_is_503(media_server, make_key, database_url, conn):
    key = make_key()
    media_server.ask(key, id="c1")
    with conn.transaction():
        conn.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        problem(media_server.ready("c1"), "database-unavailable", 503)
    assert only(conn, ALL)["started_at"] is None
    assert_done(media_server.ready("c1"))


BODIES = {
    "empty": b"",
    "form": b"path=live/cam7",
    "list": b"[]",
    "no path": b'{"source_id":"c1"}',
    "empty path": b'{"path":"","source_id":"c1"}',
    "path is null": b'{"path":null}',
    "path is a number": b'{"path":7}',
    "path is long": json.dumps({"path": "x" * 256}).encode(),
    "path with NUL": b'{"path":"a\\u0000b"}',
    "source_type is null": b'{"path":"x","source_type":null}',
    "source_id is a number": b'{"path":"x","source_id":7}',
    "source_id is long": json.dumps({"path": "x", "source_id": "x" * 256}).encode(),
    "source_id with NUL": b'{"path":"x","source_id":"a\\u0000b"}',
    "no UTF-8": b'{"path":"\xff"}',
    "deep": b'{"path":"x","y":' + b"[" * 30000 + b"]" * 30000 + b"}",
}


class TestFromMemory:
    """What is answered without the database: there is none."""

    @pytest.fixture
    def database_url(self):
        return "postgresql:///none?host=/nowhere"

    @pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
    @pytest.mark.parametrize("name", HOOKS)
    def test_a_body_is_malformed(self, body, name, client):
        assert problem(client.post(f"/webhook/{name}", data=body), "invalid-request", 400)["errors"]

    @pytest.mark.parametrize("name", HOOKS)
    def test_a_malformed_member_is_named_with_its_reason(self, name, hook):
        for field, length in (("path", 256), ("source_id", 256)):
            body = {"path": PATH, "source_id": str(uuid.uuid4())} | {field: "x" * length}
            (error,) = problem(hook(name, **body), "invalid-request", 400)["errors"]
            assert error["field"] == field
            assert "required" not in error["reason"]

    @pytest.mark.parametrize("name", HOOKS)
    def test_a_malformed_hook_is_not_echoed(self, name, hook):
        value = keys.mint()
        for body in ({"path": [value]}, {value: value}, {"path": "x", "source_id": {value: value}}):
            answer = hook(name, **body)
            problem(answer, "invalid-request", 400)
            assert value not in answer.text

    @pytest.mark.parametrize("name", HOOKS)
    def test_a_body_may_have_64_kib(self, name, client):
        head = b'{"path":"x","source_id":"","y":"'
        assert_done(client.post(f"/webhook/{name}", data=head + b"x" * (65536 - len(head) - 2) + b'"}'))
        problem(client.post(f"/webhook/{name}", data=head + b"x" * (65537 - len(head) - 2) + b'"}'), "too-large", 413)


def test_a_revoked_key_keeps_its_publisher_out_from_claim_to_ready(api, media_server, make_key, conn):
    key = make_key()
    media_server.ask(key, id="c1")
    assert api.delete(f"/stream-keys/{key.id}").status_code == 204
    problem(media_server.ready("c1"), "stream-not-found", 404)
    assert only(conn, ALL)["end_reason"] == "revoked"
    problem(media_server.ask(key, id="c1"), "stream-key-revoked", 401)


def test_a_path_with_the_form_of_a_key_is_redacted_in_the_log(capsys, make_app):
    value = keys.mint()
    client = make_app().test_client()
    for name in HOOKS:
        client.post(f"/webhook/{name}", json={"path": f"live/{value}", "source_type": "rtmpConn", "source_id": "c1"})
    log = capsys.readouterr().err
    assert log.count("[redacted]") == 2
    assert value not in log


def test_a_type_or_reason_that_cannot_be_stored_is_malformed(media_server, make_key):
    media_server.ask(make_key(), id="c1")
    problem(media_server.ready("c1", source_type="a\x00b"), "invalid-request", 400)
    assert_done(media_server.ready("c1"))


@pytest.mark.parametrize("column", ["revoked_at", "disabled_at"])
def test_ready_of_a_live_stream_is_204_even_when_its_key_is_gone(column, media_server, make_key, conn):
    connection_id = media_server.go_live(make_key())
    conn.execute(
        "UPDATE stream_keys SET revoked_at = %s"
        if column == "revoked_at"
        else "UPDATE stream_keys SET disabled_at = %s",
        [PAST],
    )
    assert_done(media_server.ready(connection_id))


class TestWithAMediaServer(WithAMediaServer):
    """What a hook has asked or closed there."""

    @pytest.fixture
    def publisher(self, fake, media_server, make_key):
        return fake.publish(PATH, connection_id=media_server.go_live(make_key()))

    def test_a_plain_not_ready_of_who_publishes_changes_nothing(self, fake, publisher, hook, conn, version):
        conn.execute("UPDATE streams SET started_at = started_at - interval '1 hour'")
        before = version()
        assert_done(hook("not-ready", path=PATH))
        assert only(conn, ALL)["ended_at"] is None
        assert version() == before
        assert [call.target for call in fake.calls] == [f"/v3/rtmpconns/get/{publisher.source_id}"]

    @pytest.mark.parametrize("way", ["gone", "not live", "elsewhere"])
    def test_a_plain_not_ready_of_who_publishes_no_more_ends_it_at_once(self, way, fake, publisher, hook, conn):
        fake.leave(publisher)
        if way == "not live":
            fake.publish(PATH, connection_id=publisher.auth_id, live=False)
        elif way == "elsewhere":
            fake.publish("live/elsewhere", connection_id=publisher.auth_id)
        assert_done(hook("not-ready", path=PATH))
        assert only(conn, ALL)["end_reason"] == "disconnected"

    @pytest.mark.parametrize("seconds", [4, 6])
    @pytest.mark.parametrize("how", ["hang", "refuse", "answer"])
    def test_a_plain_not_ready_of_which_nobody_tells_ends_what_is_older(
        self, how, seconds, fake, publisher, hook, conn
    ):
        if how == "answer":
            fake.answer(500)
        else:
            getattr(fake, how)()
        conn.execute("UPDATE streams SET started_at = started_at - make_interval(secs => %s)", [seconds])
        began = time.monotonic()
        assert_done(hook("not-ready", path=PATH))
        assert time.monotonic() - began < 0.8
        assert only(conn, ALL)["end_reason"] == (None if seconds == 4 else "disconnected")

    def test_no_more_than_two_plain_not_readys_ask_at_once(self, app, fake, publisher, conn):
        conn.execute("UPDATE streams SET started_at = started_at - interval '4 seconds'")
        fake.hang()

        def tell(_):
            body = {"path": PATH, "source_type": "rtmpConn"}
            return app.test_client().post("/webhook/not-ready", json=body).status_code

        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(tell, range(6))) == [204] * 6
        assert len(fake.calls) == 2

    @pytest.mark.parametrize(("statement", "reason"), LOST_RIGHTS)
    def test_a_publisher_that_goes_live_without_a_right_is_closed(
        self, statement, reason, fake, media_server, make_key, conn
    ):
        publisher = fake.publish(PATH, live=False)
        media_server.ask(make_key(), id=publisher.auth_id)
        conn.execute(statement)
        fake.go_live(publisher)
        problem(media_server.ready(publisher.source_id), "stream-not-found", 404)
        until(lambda: only(conn, ALL)["kicked_at"], 3)
        assert only(conn, ALL)["end_reason"] == reason
        assert not publisher.is_live

    def test_a_publisher_that_goes_live_after_it_was_stopped_is_closed(self, fake, api, media_server, make_key, conn):
        publisher = fake.publish(PATH, "rtsp", live=False)
        media_server.ask(make_key(), id=publisher.auth_id, protocol="rtsp")
        api.delete(f"/streams/{only(conn, ALL)['id']}")
        fake.go_live(publisher)
        problem(media_server.ready(publisher.source_id, source_type="rtspSession"), "stream-not-found", 404)
        until(lambda: only(conn, ALL)["kicked_at"], 3)
        assert not publisher.is_live

    def test_the_hook_waits_for_no_media_server(self, fake, media_server, make_key, conn):
        media_server.ask(make_key(), id="c1")
        conn.execute(LOST_RIGHTS[0][0])
        fake.hang()
        began = time.monotonic()
        problem(media_server.ready("c1"), "stream-not-found", 404)
        assert time.monotonic() - began < 0.8

    def test_what_comes_to_nothing_asks_nobody(self, fake, publisher, media_server, hook):
        media_server.ready("nobody")
        media_server.not_ready("nobody")
        media_server.not_ready(publisher.source_id)
        hook("not-ready", path="live/nobodys")
        hook("not-ready", path=PATH, source_id="")
        time.sleep(0.1)
        assert fake.calls == []


HEARD = "SELECT last_hook_at FROM nodes"


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("source_id", [{"source_id": "c1"}, {"source_id": "nobody"}])
def test_it_is_noted_that_hooks_come(name, source_id, hook, media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    assert rows(conn, HEARD) == []
    hook(name, path=PATH, source_type="rtmpConn", **source_id)
    first = only(conn, HEARD)["last_hook_at"]
    assert first is not None
    hook(name, path=PATH, source_type="rtmpConn", **source_id)
    assert only(conn, HEARD)["last_hook_at"] == first  # once a second is enough


def test_it_is_noted_once_a_second_that_hooks_come_and_nobody_waited_for(app, hook, conn, database_url):
    ear = app.extensions["streamorch.ear"]
    hook("not-ready", path=PATH)
    first = only(conn, HEARD)["last_hook_at"]
    ear.heard_at -= 1
    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM nodes FOR UPDATE")
        began = time.monotonic()
        assert_done(hook("not-ready", path=PATH))
        assert time.monotonic() - began < 0.25
    ear.heard_at -= 1
    hook("not-ready", path=PATH)
    assert only(conn, HEARD)["last_hook_at"] > first


@pytest.mark.parametrize("body", [{"source_id": ""}, {"source_id": "", "source_type": "rtspSource"}])
def test_a_source_that_is_no_client_is_no_news(body, hook, conn):
    for name in HOOKS:
        assert_done(hook(name, path=PATH, **body))
    assert rows(conn, HEARD) == []
