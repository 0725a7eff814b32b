"""POST /auth: every row of the table of refusals, every way in which a key arrives, and what is written."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import werkzeug.serving

from streamorch import keys, signing
from streamorch.repositories import stream_keys
from tests.blueprints import FUTURE, PAST, WithAMediaServer, debugging, fields, logged, only, problem, rows, text_of
from tests.conftest import API_SECRET, MediaServer
from tests.fake_mediamtx import FakeMediaMTX

OPEN = "SELECT * FROM streams WHERE ended_at IS NULL ORDER BY claimed_at"
PATH = "live/cam7"

pytestmark = pytest.mark.usefixtures("lane")


@pytest.fixture
def let_lapse(conn):
    """End the lease of every pending stream, as time would."""

    def lapse():
        conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp() WHERE started_at IS NULL")

    return lapse


@pytest.fixture
def no_database(app):
    """The application, its database out of reach."""
    app.extensions["streamorch"].database.close()


def last_use(key, conn):
    found = stream_keys.get(conn, key.id)
    return found and found.last_used_at


def reachable(conn):
    conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")


# --- granted ---


def test_a_key_claims_its_path(media_server, make_key, conn):
    key = make_key(metadata='{"event": 4711}')
    connection_id = str(uuid.uuid4())
    answer = media_server.ask(key, id=connection_id, userAgent="FMLE/3.0", ip="192.0.2.7")
    assert (answer.status_code, answer.data) == (200, b"")
    stream = only(conn, "SELECT *, lease_expires_at - claimed_at AS lease, metadata::text AS said FROM streams")
    assert stream["stream_key_id"] == key.id
    assert (stream["node"], stream["path"], stream["protocol"]) == ("default", PATH, "rtmp")
    assert (stream["auth_id"], stream["source_id"], stream["source_type"]) == (connection_id, None, None)
    assert (stream["remote_address"], stream["user_agent"]) == ("192.0.2.7", "FMLE/3.0")
    assert (stream["started_at"], stream["ended_at"], stream["replaces"]) == (None, None, None)
    assert stream["lease"].total_seconds() == 20
    assert json.loads(stream["said"]) == {"event": 4711}
    assert last_use(key, conn) == text_of(stream["claimed_at"])


def test_the_lease_lasts_as_the_settings_say(make_app, make_key, conn):
    assert MediaServer(make_app(LEASE_SECONDS="7").test_client()).ask(make_key()).status_code == 200
    lease = only(conn, "SELECT lease_expires_at - claimed_at AS lease FROM streams")["lease"]
    assert lease.total_seconds() == 7


def test_a_deadline_or_hold_that_is_over_or_still_far_is_no_obstacle(media_server, make_key):
    assert media_server.ask(make_key(expires_at=FUTURE, hold_until=PAST, path=PATH)).status_code == 200


WAYS = {
    "password": {"password": "KEY", "token": "KEY"},  # RTMP ?user=&pass=, Basic, SRT with four parts
    "password before anything": {"password": "KEY", "token": "wrong", "query": "key=wrong"},
    "token": {"token": "KEY"},  # RTMP ?token=, Bearer
    "token before the query": {"token": "KEY", "query": "key=wrong"},
    "key in the query": {"query": "key=KEY"},
    "pass in the query": {"query": "user=cam7&pass=KEY"},
    "token in the query": {"query": "token=KEY"},
    "jwt in the query": {"query": "jwt=KEY"},  # up to v1.12.2 a Bearer arrived so
    "key before pass": {"query": "pass=wrong&key=KEY"},
    "pass before token": {"query": "token=wrong&pass=KEY"},
    "token before jwt": {"query": "jwt=wrong&token=KEY"},
    "the first of a name": {"query": "key=KEY&key=wrong"},
    "an empty one is none": {"query": "key=&pass=KEY"},
    "percent-encoded": {"query": "key=%KEY"},
    "the whole query": {"query": "KEY"},  # SRT publish:PATH:KEY
}


@pytest.mark.parametrize("members", WAYS.values(), ids=WAYS)
def test_a_key_may_arrive_as(members, media_server, make_key, conn):
    key = make_key()
    encoded = "".join(f"%{ord(character):02X}" for character in key.value)
    sent = {name: text.replace("%KEY", encoded).replace("KEY", key.value) for name, text in members.items()}
    assert media_server.ask(**{"password": "", "token": "", **sent}).status_code == 200
    assert only(conn, OPEN)["stream_key_id"] == key.id


def test_a_key_of_another_form_is_a_key_all_the_same(media_server, make_key):
    key = make_key("kurz und bündig")
    assert media_server.ask(key).status_code == 200


def test_without_a_connection_the_key_is_checked_and_nothing_claimed(media_server, make_key, conn):
    key = make_key()
    assert media_server.ask(key, id=None, protocol="webrtc").status_code == 200
    assert not rows(conn, OPEN)
    assert last_use(key, conn) is None
    media_server.go_live(key)
    assert media_server.ask(key, id=None).status_code == 200  # its own stream does not stand in its way
    assert len(rows(conn, OPEN)) == 1


def test_without_a_connection_a_key_is_refused_as_ever(media_server, make_key):
    problem(media_server.ask(make_key(revoked_at=PAST), id=None), "stream-key-revoked", 401)
    problem(media_server.ask("no-such-key", id=None), "invalid-stream-key", 401)
    make_key(path=PATH)
    problem(media_server.ask(make_key(), id=None), "path-in-use", 401)


def test_an_empty_connection_id_lets_nobody_in_unclaimed(media_server, make_key, conn):
    assert fields(media_server.ask(make_key(), id="")) == {"id"}
    assert not rows(conn, OPEN)


def test_a_question_without_the_members_of_later_versions_is_understood(client, make_key, conn):
    body = {"ip": "", "user": "", "password": make_key().value, "action": "publish", "path": PATH, "protocol": "rtsp"}
    answer = client.post("/auth", json=body | {"id": "a-connection", "query": ""})
    assert answer.status_code == 200
    assert only(conn, OPEN)["auth_id"] == "a-connection"


def test_unknown_members_are_ignored(media_server, make_key):
    assert media_server.ask(make_key(), invented=[1, {"a": None}], node="other").status_code == 200


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "text/plain", "application/x-www-form-urlencoded", "?"]
)
def test_the_content_type_does_not_matter(content_type, client, make_key, conn):
    body = {"action": "publish", "path": PATH, "password": make_key().value, "id": "c1", "protocol": "rtmp"}
    assert client.post("/auth", data=json.dumps(body), content_type=content_type).status_code == 200
    assert only(conn, OPEN)["auth_id"] == "c1"


@pytest.mark.parametrize(
    "user_agent", ["", "Ünï/1.0 \U0001f3a5", "a\x00b\r\n\x1b[31m", "x" * 5000, "%s {} \\", "<nil>"]
)
def test_a_user_agent_may_be_anything(user_agent, media_server, make_key, conn):
    assert media_server.ask(make_key(), userAgent=user_agent, ip="<nil>").status_code == 200
    assert only(conn, OPEN)["user_agent"] == user_agent.replace("\x00", "")[:512]


# --- the table of refusals, in its order ---

REFUSALS: list[tuple[str, dict[str, Any]]] = [
    ("stream-key-revoked", {"revoked_at": PAST}),
    ("stream-key-expired", {"expires_at": PAST}),
    ("stream-key-disabled", {"disabled_at": PAST}),
    ("broadcaster-disabled", {"broadcaster": {"disabled_at": PAST}}),
    ("stream-stopped", {"hold_until": FUTURE}),
    ("path-not-allowed", {"path": "live/elsewhere"}),
]
SLUGS = [slug for slug, _ in REFUSALS]


def make_refused(make_key, make_broadcaster, columns):
    columns = dict(columns)
    return make_key(broadcaster_id=make_broadcaster(**columns.pop("broadcaster", {})), **columns)


def assert_refused(answer, slug, key, conn):
    body = problem(answer, slug, 401)
    assert key.value not in answer.text
    assert body["instance"] == "/auth"
    assert not rows(conn, "SELECT id FROM streams WHERE stream_key_id = %s AND ended_at IS NULL", key.id)
    assert last_use(key, conn) is None


def test_an_unknown_key_is_refused(media_server, conn):
    value = keys.mint()
    answer = media_server.ask(value, user=value, query=f"user={value}&pass={value}")
    problem(answer, "invalid-stream-key", 401)
    assert value not in answer.text
    assert not rows(conn, OPEN)


@pytest.mark.parametrize(("slug", "columns"), REFUSALS, ids=SLUGS)
def test_a_key_is_refused(slug, columns, media_server, make_key, make_broadcaster, conn):
    key = make_refused(make_key, make_broadcaster, columns)
    assert_refused(media_server.ask(key), slug, key, conn)


@pytest.mark.parametrize("first", range(len(REFUSALS)), ids=SLUGS)
def test_the_first_reason_of_the_table_is_told(first, media_server, make_key, make_broadcaster, conn):
    media_server.go_live(make_key())  # the path is in use as well
    key = make_refused(make_key, make_broadcaster, {name: v for _, row in REFUSALS[first:] for name, v in row.items()})
    assert_refused(media_server.ask(key), REFUSALS[first][0], key, conn)


def test_the_end_of_a_key_is_told_before_its_own_open_stream(media_server, make_key, conn):
    key = make_key()
    connection_id = media_server.go_live(key)
    conn.execute("UPDATE stream_keys SET disabled_at = clock_timestamp()")
    problem(media_server.ask(key, id=connection_id), "stream-key-disabled", 401)


def test_a_key_publishes_to_the_path_it_is_bound_to(media_server, make_key):
    key = make_key(path=PATH)
    problem(media_server.ask(key, "live/cam8"), "path-not-allowed", 401)
    assert media_server.ask(key, PATH).status_code == 200


def test_the_same_question_again_is_granted_and_writes_nothing(media_server, make_key, conn):
    key = make_key()
    connection_id = str(uuid.uuid4())
    read = "SELECT s.xmin, k.xmin AS of_key FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id"
    assert media_server.ask(key, id=connection_id).status_code == 200
    before = rows(conn, read)
    assert media_server.ask(key, id=connection_id).status_code == 200
    assert rows(conn, read) == before
    assert media_server.ready(connection_id).status_code == 204
    before = rows(conn, read)
    assert media_server.ask(key, id=connection_id).status_code == 200
    assert rows(conn, read) == before
    assert len(before) == 1


def test_the_same_question_is_granted_while_its_lease_has_lapsed(media_server, make_key, conn, let_lapse):
    key = make_key()
    assert media_server.ask(key, id="c1").status_code == 200
    let_lapse()
    assert media_server.ask(key, id="c1").status_code == 200
    assert len(rows(conn, "SELECT id FROM streams")) == 1


def test_a_connection_whose_stream_ended_may_claim_again(media_server, make_key, conn):
    key = make_key()
    connection_id = media_server.go_live(key)
    media_server.not_ready(connection_id)
    assert media_server.ask(key, id=connection_id).status_code == 200
    assert len(rows(conn, "SELECT id FROM streams")) == 2
    assert len(rows(conn, OPEN)) == 1


def test_the_connection_id_of_another_key_is_no_replay(media_server, make_key, conn):
    mine, other = make_key(), make_key()
    assert media_server.ask(mine, "live/a", id="c1").status_code == 200
    problem(media_server.ask(other, "live/a", id="c1"), "path-in-use", 401)
    assert media_server.ask(other, "live/b", id="c1").status_code == 200
    problem(media_server.ask(mine, "live/c", id="c1"), "stream-key-in-use", 401)
    assert len(rows(conn, OPEN)) == 2


# --- who holds a path ---


def test_a_path_bound_to_another_key_is_in_use(media_server, make_key, conn):
    make_key(path=PATH)
    key = make_key()
    assert_refused(media_server.ask(key), "path-in-use", key, conn)
    assert media_server.ask(key, "live/free").status_code == 200


BROKEN = {slug: columns for slug, columns in REFUSALS if slug not in ("path-not-allowed", "stream-stopped")}


@pytest.mark.parametrize("columns", BROKEN.values(), ids=BROKEN)
def test_a_path_is_not_held_by_the_binding_of_a_key_refused_as(columns, media_server, make_key, make_broadcaster):
    make_refused(make_key, make_broadcaster, columns | {"path": PATH})
    assert media_server.ask(make_key()).status_code == 200


def test_a_path_is_held_by_the_binding_of_a_key_on_hold(media_server, make_key):
    make_key(path=PATH, hold_until=FUTURE)
    problem(media_server.ask(make_key()), "path-in-use", 401)


def test_two_keys_bound_to_one_path_use_it_in_turn(media_server, make_key, conn):
    first, second = make_key(path=PATH), make_key(path=PATH)
    connection_id = media_server.go_live(first)
    problem(media_server.ask(second), "path-in-use", 401)
    media_server.not_ready(connection_id)
    connection_id = media_server.go_live(second)
    problem(media_server.ask(first), "path-in-use", 401)
    media_server.not_ready(connection_id)
    media_server.go_live(first)
    assert only(conn, OPEN)["stream_key_id"] == first.id


@pytest.mark.parametrize("is_live", [False, True], ids=["pending", "live"])
def test_a_path_with_an_open_stream_of_another_key_is_in_use(is_live, media_server, make_key, conn):
    owner, key = make_key(), make_key()
    if is_live:
        media_server.go_live(owner)
    else:
        media_server.ask(owner)
    assert_refused(media_server.ask(key), "path-in-use", key, conn)
    assert only(conn, OPEN)["stream_key_id"] == owner.id


def test_a_live_stream_of_another_key_stays_when_its_lease_is_over(media_server, make_key, conn):
    media_server.go_live(make_key())
    conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp() - interval '1 hour'")
    problem(media_server.ask(make_key()), "path-in-use", 401)


def test_keys_on_different_paths_do_not_meet(media_server, make_key, conn):
    for number in range(3):
        media_server.go_live(make_key(), f"live/{number}")
    assert len(rows(conn, OPEN)) == 3


@pytest.mark.parametrize("whose", ["own", "another's"])
def test_a_lapsed_claim_ends_never_started_and_gives_way(whose, media_server, make_key, conn, let_lapse):
    owner = make_key()
    assert media_server.ask(owner, id="gone").status_code == 200
    let_lapse()
    newcomer = owner if whose == "own" else make_key()
    assert media_server.ask(newcomer, id="new").status_code == 200
    old, new = rows(conn, "SELECT * FROM streams ORDER BY claimed_at")
    assert (old["auth_id"], old["end_reason"], old["started_at"]) == ("gone", "never_started", None)
    assert old["ended_at"] is not None
    assert (new["auth_id"], new["ended_at"], new["replaces"]) == ("new", None, None)


def test_lapsed_claims_of_both_kinds_give_way_at_once(media_server, make_key, conn, let_lapse):
    mine, other = make_key(), make_key()
    assert media_server.ask(mine, "live/a").status_code == 200
    assert media_server.ask(other, "live/b").status_code == 200
    let_lapse()
    assert media_server.ask(mine, "live/b").status_code == 200
    assert [row["end_reason"] for row in rows(conn, "SELECT end_reason FROM streams ORDER BY claimed_at")] == [
        "never_started",
        "never_started",
        None,
    ]


def test_a_lapsed_claim_stays_when_the_newcomer_is_refused(media_server, make_key, conn, let_lapse):
    media_server.ask(make_key(), id="gone")
    let_lapse()
    problem(media_server.ask(make_key(disabled_at=PAST)), "stream-key-disabled", 401)
    assert only(conn, OPEN)["auth_id"] == "gone"


# --- the same key again: takeover ---


@pytest.mark.parametrize("takeover", ["stalled", "always", "never"])
@pytest.mark.parametrize("path", [PATH, "live/other"])
def test_a_pending_stream_of_the_key_is_not_taken_over(takeover, path, media_server, make_key, conn):
    key = make_key(takeover=takeover)
    media_server.ask(key, id="first")
    problem(media_server.ask(key, path, id="second"), "stream-key-in-use", 401)
    assert only(conn, OPEN)["auth_id"] == "first"


# What becomes of a newcomer while a stream of its key is live: by takeover, by whether the Control API was ever
# reached, and by whether it wants the same path. (It does not answer here, and no sample tells of growth: what once
# could be asked and gives no sign of life gives way.)
TAKEOVERS = [
    ("stalled", False, True, 200),
    ("stalled", False, False, 401),
    ("stalled", True, True, 200),
    ("stalled", True, False, 200),
    ("always", False, True, 200),
    ("always", False, False, 401),
    ("always", True, True, 200),
    ("always", True, False, 200),
    ("never", False, True, 401),
    ("never", False, False, 401),
    ("never", True, True, 401),
    ("never", True, False, 401),
]


@pytest.mark.parametrize(("takeover", "is_reachable", "is_same_path", "status"), TAKEOVERS)
def test_a_live_stream_of_the_key(takeover, is_reachable, is_same_path, status, media_server, make_key, conn):
    if is_reachable:
        reachable(conn)
    key = make_key(takeover=takeover)
    media_server.go_live(key)
    old = only(conn, OPEN)
    version = only(conn, "SELECT version FROM live_list")
    answer = media_server.ask(key, PATH if is_same_path else "live/other", id="new")
    assert answer.status_code == status
    assert rows(conn, "SELECT * FROM streams WHERE id = %s", old["id"]) == [old]  # a claim never touches it
    assert only(conn, "SELECT version FROM live_list") == version
    if status == 401:
        problem(answer, "stream-key-in-use", 401)
        assert len(rows(conn, OPEN)) == 1
    else:
        new = only(conn, "SELECT * FROM streams WHERE auth_id = 'new'")
        assert (new["replaces"], new["started_at"], new["ended_at"]) == (old["id"], None, None)


def test_a_node_that_never_answered_counts_as_never_reached(media_server, make_key, conn):
    conn.execute("INSERT INTO nodes (node) VALUES ('default')")
    key = make_key()
    media_server.go_live(key)
    assert media_server.ask(key).status_code == 200


def test_of_two_newcomers_the_first_waits_to_take_over(media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    assert media_server.ask(key, id="second").status_code == 200
    problem(media_server.ask(key, id="third"), "stream-key-in-use", 401)
    assert [row["auth_id"] for row in rows(conn, OPEN)][1:] == ["second"]


# --- paths, parameters ---


@pytest.mark.parametrize(
    "path", ["a", "x" * 255, "live/cam_7-b.1/C", "a.ts/b", "all/x", "whipped", "...", "live/.hidden", "a.TS"]
)
def test_a_path_is_taken(path, media_server, make_key):
    assert media_server.ask(make_key(), path).status_code == 200


def test_a_key_is_found_behind_many_other_parameters(media_server, make_key):
    query = "&".join(f"x{n}=1" for n in range(150))
    assert media_server.ask(query=f"pass={make_key().value}&{query}").status_code == 200


@pytest.mark.parametrize("members", [{"id": "x" * 256}, {"id": "a\x00b"}, {"protocol": "a\x00b"}, {"ip": "a\x00b"}])
def test_what_cannot_be_stored_is_malformed(members, media_server, make_key, conn):
    problem(media_server.ask(make_key(), **members), "invalid-request", 400)
    assert not rows(conn, OPEN)


# --- the log ---


def test_a_grant_and_a_refusal_are_each_one_line_without_secrets(capsys, make_app, make_key):
    key = make_key()
    server = MediaServer(make_app().test_client())
    server.ask(key, id="c1", query=f"user=u&pass={key.value}")
    server.ask(key, "live/other", id="c2", user="somebody-secret", query="secret=1")
    granted, refused = logged(capsys)
    assert (granted["message"], granted["outcome"]) == ("publish granted", "claimed")
    assert (refused["message"], refused["outcome"]) == ("publish refused", "stream-key-in-use")
    for line in (granted, refused):
        assert line["stream_key_id"] == str(key.id)
        assert "secret" not in json.dumps(line)
        assert key.value not in json.dumps(line)
    assert refused["rival_id"] == granted["stream_id"]
    assert refused["connection_id"] == "c2"


def test_an_unreachable_database_is_503(media_server, make_key, no_database, conn):
    problem(media_server.ask(make_key()), "database-unavailable", 503)
    assert not rows(conn, OPEN)


# --- from memory ---

REFUSED_PATHS = [
    "",
    "/live",
    "live/",
    "live//cam",
    "a b",
    "kamera-ü",
    "live/cam?x=1",
    "live/cam\n",
    "~all",
    "%2e",
    "live\\cam",
    "live/cam\x00",
    "x" * 256,
    ".",
    "..",
    "live/../cam",
    "./live",
    "whip",
    "live/whip",
    "whep/live",
    "live/cam/whep",
    "publish",
    "live/publish/cam",
    "live/index.m3u8",
    "a.mp4",
    "live/a.mp",
    "live/0.ts",
    "all",
    "all_others",
]


MALFORMED = (
    {
        "empty": b"",
        "no JSON": b"action=publish",
        "list": b"[]",
        "null": b"null",
        "text": b'"publish"',
        "number": b"1",
        "cut": b'{"action":"publish"',
        "trailing": b'{"action":"read"} x',
        "no UTF-8": b'{"action":"\xff"}',
        "lone surrogate": b'{"action":"publish","path":"\\ud800"}',
        "no action": b"{}",
        "deep": b'{"action":"read","x":' + b"[" * 30000 + b"]" * 30000 + b"}",
        "deep objects": b'{"action":"read","x":' + b'{"a":' * 10000 + b"1" + b"}" * 10000 + b"}",
    }
    | {
        f"{name} is {value!r}": json.dumps({"action": "publish", "path": "x", name: value}).encode()
        for name in ("action", "user", "password", "token", "ip", "path", "protocol", "query", "userAgent")
        for value in (None, 1, ["x"])
    }
    | {f"id is {wrong!r}": json.dumps({"action": "publish", "id": wrong}).encode() for wrong in (1, ["x"], True)}
)


READS = ("read", "playback")


OWN = signing.media_server_password(API_SECRET)
OPERATIONS = ("api", "metrics", "pprof")


def operate(app, action, user, password, token=None):
    server = MediaServer(app.test_client())
    members = {"user": user, "password": password, "token": password if token is None else token}
    return server.ask(None, "", action=action, id=None, protocol="", **members)


class TestFromMemory:
    """What is answered without the database: there is none."""

    @pytest.fixture
    def database_url(self):
        return "postgresql:///none?host=/nowhere"

    @pytest.mark.parametrize("path", REFUSED_PATHS)
    def test_a_path_is_refused(self, path, media_server):
        problem(media_server.ask("any-key", path), "path-not-allowed", 401)

    @pytest.mark.parametrize("shape", ["{}", "live/{}", "{}/live", "live/x{}y", "not a path/{}", "x" * 240 + "/{}"])
    @pytest.mark.parametrize("credential", ["none", "same", "another"])
    def test_a_key_in_the_path_is_refused_told_and_not_logged(self, shape, credential, capsys, make_app):
        value = keys.mint()
        path = shape.format(value)
        server = MediaServer(debugging(make_app).test_client())
        answer = server.ask({"none": None, "same": value, "another": keys.mint()}[credential], path)
        body = problem(answer, "path-not-allowed", 401)
        assert "?pass=KEY" in body["detail"]  # where the key belongs
        log = capsys.readouterr().err
        assert "path-not-allowed" in log
        for text in (answer.text, log):
            assert value[:10] not in text

    def test_no_key_is_unauthorized_at_once_and_no_attack(self, capsys, make_app):
        server = MediaServer(make_app().test_client())
        problem(server.ask(protocol="rtsp"), "unauthorized", 401)
        problem(server.ask(protocol="rtsp", query="x=1&key="), "unauthorized", 401)
        assert logged(capsys) == []

    @pytest.mark.parametrize("query", ["&".join(f"x{n}=1" for n in range(150)), "&" * 500, "%", "=", "a=%ff%fe", "é=ü"])
    def test_an_odd_query_holds_no_key(self, query, media_server):
        problem(media_server.ask(query=query), "unauthorized", 401)

    @pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
    def test_a_body_is_malformed(self, body, client):
        answer = client.post("/auth", data=body, content_type="application/json")
        assert problem(answer, "invalid-request", 400)["errors"]

    def test_a_malformed_body_is_not_echoed(self, client):
        value = keys.mint()
        for body in ({"action": "publish", "password": [value]}, {value: 1}, {"action": {value: value}}, value):
            answer = client.post("/auth", json=body)
            problem(answer, "invalid-request", 400)
            assert value not in answer.text

    def test_a_body_may_have_64_kib(self, client):
        head = b'{"action":"read","x":"'
        assert client.post("/auth", data=head + b"x" * (65536 - len(head) - 2) + b'"}').status_code == 200
        answer = client.post("/auth", data=head + b"x" * (65537 - len(head) - 2) + b'"}')
        problem(answer, "too-large", 413)

    @pytest.mark.parametrize("action", READS)
    @pytest.mark.parametrize("path", [PATH, "", "not a path"])
    def test_reading_is_public_by_default(self, action, path, media_server):
        answer = media_server.ask(None, path, action=action, id=None)
        assert (answer.status_code, answer.data) == (200, b"")

    @pytest.mark.parametrize("action", READS)
    def test_reading_may_be_switched_off(self, action, make_app):
        problem(
            MediaServer(make_app(READ_POLICY="deny", READ_SECRET="hush").test_client()).ask("hush", action=action),
            "unauthorized",
            401,
        )

    @pytest.mark.parametrize("action", READS)
    def test_reading_may_need_a_secret(self, action, make_app):
        server = MediaServer(make_app(READ_POLICY="secret", READ_SECRET="hush").test_client())

        def ask(**members):
            return server.ask(**{"action": action, "password": "", "token": "", **members})

        for right in (
            {"password": "hush", "token": "hush"},
            {"token": "hush"},
            {"query": "token=hush"},
            {"query": "path=x&key=hush"},
            {"query": "pass=hush"},
            {"query": "jwt=hush"},
        ):
            assert ask(**right).status_code == 200, right
        for wrong in ({}, {"password": "wrong"}, {"query": "token=wrong"}, {"user": "hush"}, {"password": "hush "}):
            answer = ask(**wrong)
            problem(answer, "unauthorized", 401)
            assert "hush" not in answer.text

    def test_a_stream_key_does_not_open_what_the_read_secret_closes(self, make_app):
        server = MediaServer(make_app(READ_POLICY="secret", READ_SECRET="hush").test_client())
        problem(server.ask(keys.mint(), action="read"), "unauthorized", 401)

    @pytest.mark.parametrize("action", OPERATIONS)
    @pytest.mark.parametrize(
        ("user", "password", "status"),
        [
            ("streamorch", OWN, 200),
            ("", OWN, 401),
            ("somebody", OWN, 401),
            ("streamorch", "", 401),
            ("streamorch", "wrong", 401),
            ("streamorch", API_SECRET, 401),
            ("", "", 401),
        ],
    )
    def test_an_operation_needs_our_own_credential(self, action, user, password, status, app):
        answer = operate(app, action, user, password)
        assert answer.status_code == status
        if status == 401:
            problem(answer, "unauthorized", 401)

    @pytest.mark.parametrize("action", OPERATIONS)
    def test_our_own_credential_may_be_set(self, action, make_app):
        settings = {"MEDIAMTX_API_USER": "boss", "MEDIAMTX_API_PASSWORD": "pw"}
        assert operate(make_app(**settings), action, "boss", "pw").status_code == 200
        problem(operate(make_app(**settings), action, "boss", OWN), "unauthorized", 401)
        problem(operate(make_app(**settings), action, "streamorch", "pw"), "unauthorized", 401)

    @pytest.mark.parametrize("action", OPERATIONS)
    def test_the_credentials_of_all_api_secrets_are_taken(self, action, make_app):
        for secret in ("old", "new"):
            password = signing.media_server_password(secret)
            assert operate(make_app(API_SECRET="new, old"), action, "streamorch", password).status_code == 200
        password = signing.media_server_password("older")
        problem(operate(make_app(API_SECRET="new, old"), action, "streamorch", password), "unauthorized", 401)

    @pytest.mark.parametrize(
        ("action", "status"), [("api", 401), ("metrics", 200), ("pprof", 200), ("read", 401), ("publish", 401)]
    )
    def test_the_metrics_secret_is_good_for_metrics_alone(self, action, status, make_app):
        settings = {"METRICS_SECRET": "scrape", "READ_POLICY": "deny"}
        assert operate(make_app(**settings), action, "prometheus", "scrape").status_code == status
        if action in OPERATIONS:
            assert operate(make_app(**settings), action, "", "", token="scrape").status_code == status
            problem(operate(make_app(**settings), action, "", "wrong"), "unauthorized", 401)
            problem(operate(make_app(**settings), action, "", ""), "unauthorized", 401)

    @pytest.mark.parametrize("action", ["", "Publish", "describe", "x" * 1000, "\x00"])
    def test_an_unknown_action_is_refused(self, action, media_server):
        problem(media_server.ask("any-key", action=action), "unauthorized", 401)


class TestALook(WithAMediaServer):
    """Another stream of the key is in the way: is it alive? Asked of the media server while it waits for us."""

    @pytest.fixture(autouse=True)
    def was_seen(self, conn):
        reachable(conn)

    def publish(self, fake, media_server, key, *, live=True, bytes_per_second=0):
        """The first publisher of the key: live, or let in and waiting."""
        publisher = fake.publish(PATH, live=live, bytes_per_second=bytes_per_second)
        assert media_server.ask(key, id=publisher.auth_id).status_code == 200
        if live:
            assert media_server.ready(publisher.source_id).status_code == 204
        return publisher

    def ask(self, media_server, key, *, most, **members):
        """A newcomer; its answer, which must come within so many seconds."""
        began = time.monotonic()
        answer = media_server.ask(key, **{"id": "new", **members})
        assert time.monotonic() - began < most
        return answer

    def assert_refused(self, answer, conn):
        problem(answer, "stream-key-in-use", 401)
        assert [row["auth_id"] for row in rows(conn, OPEN)] != ["new"]

    def sample(self, conn, seconds_ago, moved_ago):
        """What the reconciler saw."""
        conn.execute(
            """
            INSERT INTO stream_stats (stream_id, bytes, sampled_at, moved_at)
            SELECT s.id, 1000, moment - make_interval(secs => %s), moment - make_interval(secs => %s)
            FROM streams AS s, clock_timestamp() AS moment
            """,
            [seconds_ago, moved_ago],
        )

    def assert_no_path_was_asked_for(self, fake):
        """The list of paths waits for the loop that waits for us."""
        assert fake.calls
        assert all(call.target.startswith("/v3/rtmp") and "/get/" in call.target for call in fake.calls)

    def test_a_stream_that_is_alive_is_in_use(self, fake, media_server, make_key, conn):
        key = make_key()
        self.publish(fake, media_server, key, bytes_per_second=100_000)
        self.assert_refused(self.ask(media_server, key, most=2.0), conn)
        self.assert_no_path_was_asked_for(fake)
        # Asked again within a second, nobody looks again.
        fake.forget_calls()
        self.assert_refused(self.ask(media_server, key, most=0.3, id="newer"), conn)
        assert fake.calls == []

    @pytest.mark.parametrize("path", [PATH, "live/elsewhere"])
    def test_a_stream_that_is_stalled_gives_way(self, path, fake, media_server, make_key, conn):
        key = make_key()
        publisher = self.publish(fake, media_server, key)
        fake.send(publisher, 1000)
        self.sample(conn, 2, 2)
        assert self.ask(media_server, key, most=0.5, path=path).status_code == 200
        old, new = rows(conn, OPEN)
        assert (new["auth_id"], new["replaces"], old["ended_at"]) == ("new", old["id"], None)

    def test_a_stream_of_which_nothing_was_sampled_is_watched_until_it_is_stalled(self, fake, media_server, make_key):
        key = make_key()
        self.publish(fake, media_server, key)
        assert self.ask(media_server, key, most=2.0).status_code == 200
        self.assert_no_path_was_asked_for(fake)

    def test_a_stream_that_is_gone_gives_way_at_once(self, fake, media_server, make_key, conn):
        key = make_key()
        fake.leave(self.publish(fake, media_server, key))
        assert self.ask(media_server, key, most=0.5).status_code == 200
        assert [row["auth_id"] == "new" for row in rows(conn, OPEN)] == [False, True]

    def test_a_claim_that_is_connected_is_in_use(self, fake, media_server, make_key, conn):
        key = make_key()
        self.publish(fake, media_server, key, live=False)
        self.assert_refused(self.ask(media_server, key, most=0.5), conn)

    @pytest.mark.parametrize("takeover", ["stalled", "always", "never"])
    def test_a_claim_that_is_gone_gives_way_at_once(self, takeover, fake, media_server, make_key, conn):
        key = make_key(takeover=takeover)
        fake.leave(self.publish(fake, media_server, key, live=False))
        assert self.ask(media_server, key, most=0.5).status_code == 200
        old, new = rows(conn, "SELECT * FROM streams ORDER BY claimed_at")
        assert (old["end_reason"], new["replaces"], new["ended_at"]) == ("never_started", None, None)

    def test_a_claim_that_is_gone_and_the_stalled_stream_behind_it_give_way(self, fake, media_server, make_key, conn):
        key = make_key()
        stalled = self.publish(fake, media_server, key)
        fake.send(stalled, 1000)
        self.sample(conn, 2, 2)
        newcomer = fake.publish(PATH, live=False)
        assert media_server.ask(key, id=newcomer.auth_id).status_code == 200
        fake.leave(newcomer)
        assert self.ask(media_server, key, most=1.0).status_code == 200
        old, new = rows(conn, OPEN)
        assert (new["auth_id"], new["replaces"]) == ("new", old["id"])

    def test_a_claim_that_is_gone_makes_no_way_past_a_stream_that_is_alive(self, fake, media_server, make_key, conn):
        key = make_key(takeover="always")
        self.publish(fake, media_server, key, bytes_per_second=100_000)
        newcomer = fake.publish(PATH, live=False)
        assert media_server.ask(key, id=newcomer.auth_id).status_code == 200
        fake.leave(newcomer)
        conn.execute("UPDATE stream_keys SET takeover = 'stalled'")
        self.assert_refused(self.ask(media_server, key, most=2.8), conn)

    @pytest.mark.parametrize("how", ["refuse", "hang"])
    @pytest.mark.parametrize("grew_lately", [False, True])
    def test_without_an_answer_who_grew_lately_is_in_use(self, how, grew_lately, fake, media_server, make_key, conn):
        key = make_key()
        self.publish(fake, media_server, key)
        self.sample(conn, 2, 2 if grew_lately else 4)
        getattr(fake, how)()
        answer = self.ask(media_server, key, most=0.9)
        if grew_lately:
            self.assert_refused(answer, conn)
        else:
            assert answer.status_code == 200

    def test_who_takes_over_always_does_not_look(self, fake, media_server, make_key):
        key = make_key(takeover="always")
        self.publish(fake, media_server, key, bytes_per_second=100_000)
        assert self.ask(media_server, key, most=0.3).status_code == 200
        assert fake.calls == []

    @pytest.mark.parametrize("state", ["alive", "stalled", "gone", "silent"])
    def test_who_takes_over_never_gives_way_when_gone_alone(self, state, fake, media_server, make_key, conn):
        key = make_key(takeover="never")
        publisher = self.publish(fake, media_server, key, bytes_per_second=100_000 if state == "alive" else 0)
        self.sample(conn, 60, 60)
        if state == "gone":
            fake.leave(publisher)
        elif state == "silent":
            fake.refuse()
        answer = self.ask(media_server, key, most=0.5)
        if state == "gone":
            assert answer.status_code == 200
        else:
            self.assert_refused(answer, conn)

    def test_a_stream_of_another_key_is_not_looked_at(self, fake, media_server, make_key):
        self.publish(fake, media_server, make_key())
        problem(self.ask(media_server, make_key(), most=0.3), "path-in-use", 401)
        assert fake.calls == []

    def test_two_who_ask_at_once_share_one_look_and_one_is_let_in(self, app, fake, media_server, make_key, conn):
        key = make_key()
        old = self.publish(fake, media_server, key)
        newcomers = [fake.publish(PATH, live=False) for _ in range(2)]

        def ask(newcomer):
            return MediaServer(app.test_client()).ask(key, id=newcomer.auth_id).status_code

        began = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(ask, newcomers)) == [200, 401]
        assert time.monotonic() - began < 2.8
        watched = [call for call in fake.calls if old.source_id in call.target]
        assert len(watched) < 10  # one look reads every 200 ms for 1.2 s
        assert len(rows(conn, OPEN)) == 2

    def test_a_server_that_asks_us_for_every_call_of_ours_is_answered(self, make_app, make_key, conn):
        """As v1.20.1 does it by default: its own question waits for the look, and each call of the look asks again."""
        with FakeMediaMTX(nested_auth=True) as fake:
            app = make_app(MEDIAMTX_API_URL=fake.url)
            server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
            with ThreadPoolExecutor(1) as threads:
                threads.submit(server.serve_forever)
                try:
                    fake.callback_url = f"http://127.0.0.1:{server.port}"
                    key = make_key()
                    first = fake.publish(PATH, live=False, bytes_per_second=100_000)
                    assert fake.ask(first, key.value) == 200
                    fake.go_live(first)
                    assert fake.hook_ready(first) == 204
                    began = time.monotonic()
                    assert fake.ask(fake.publish(PATH, live=False), key.value) == 401
                    assert 0.4 < time.monotonic() - began < 2.8
                finally:
                    server.shutdown()
                    server.server_close()
        assert [row["auth_id"] for row in rows(conn, OPEN)] == [first.auth_id]
