"""Stream keys: mint, list, show, change, revoke. The value is in the 201 that made it and nowhere else."""

import datetime
import json
import re
import time
import uuid
from typing import Any

import pytest

from streamorch import keys
from tests.blueprints import FUTURE, PAST, TIME, WithAMediaServer, debugging, fields, only, problem, rows, text_of
from tests.conftest import Api, MediaServer
from tests.test_leader import until

PATH = "live/cam7"
READ = "SELECT *, metadata::text AS said FROM stream_keys"
STREAMS = "SELECT * FROM streams ORDER BY claimed_at"
MEMBERS = {
    "id",
    "broadcaster_id",
    "label",
    "path",
    "takeover",
    "status",
    "disabled",
    "hold_until",
    "in_use",
    "hint",
    "previous_hint",
    "previous_works_until",
    "rotated_at",
    "metadata",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
}
MADE = MEMBERS | {"key_value", "publish"}


def listed(answer):
    assert answer.status_code == 200, answer.text
    assert answer.json["count"] == len(answer.json["stream_keys"])
    return [uuid.UUID(item["id"]) for item in answer.json["stream_keys"]]


@pytest.fixture
def mint(api, make_broadcaster):
    """POST a key of a new broadcaster with these members."""

    def post(**members):
        return api.post("/stream-keys", json={"broadcaster_id": str(make_broadcaster())} | members)

    return post


# --- POST ---


def test_a_key_is_made(api, mint, media_server, conn):
    answer = mint(
        label="Cam 7",
        path=PATH,
        takeover="never",
        expires_at="2030-01-31T12:00:00.5+02:00",
        metadata={"event": 4711},
    )
    assert (answer.status_code, answer.content_type) == (201, "application/json")
    made = answer.json
    assert made.keys() == MADE
    value = made["key_value"]
    assert re.fullmatch(r"sk_[A-Za-z0-9]{43}", value)
    assert answer.headers["Location"] == f"/stream-keys/{made['id']}"
    assert answer.headers["Cache-Control"] == "no-store"
    assert (made["label"], made["path"], made["takeover"]) == ("Cam 7", PATH, "never")
    assert (made["status"], made["disabled"], made["in_use"]) == ("active", False, False)
    assert made["expires_at"] == "2030-01-31T10:00:00.500000Z"
    assert (made["hold_until"], made["revoked_at"], made["last_used_at"]) == (None, None, None)
    assert (made["hint"], made["metadata"]) == (value[-4:], {"event": 4711})
    assert re.fullmatch(TIME, made["created_at"])
    row = only(conn, READ)
    assert (row["key_hash"], row["hint"]) == (keys.digest(value), value[-4:])
    assert value not in repr(row)
    shown = api.get(answer.headers["Location"])
    assert shown.json == {name: made[name] for name in MEMBERS}
    assert media_server.ask(value, PATH).status_code == 200


def test_a_key_needs_no_more_than_a_broadcaster(mint):
    made = mint().json
    assert (made["label"], made["path"], made["takeover"], made["expires_at"]) == (None, None, "stalled", None)
    assert (made["metadata"], made["disabled"]) == ({}, False)
    made = mint(label=None, path=None, expires_at=None, metadata=None, id=None).json
    assert (made["label"], made["path"], made["expires_at"], made["metadata"]) == (None, None, None, {})


def test_a_key_may_be_made_disabled_or_expired(mint, media_server, conn):
    made = mint(disabled=True).json
    assert (made["disabled"], made["status"]) == (True, "active")
    problem(media_server.ask(made["key_value"]), "stream-key-disabled", 401)
    made = mint(expires_at="2020-01-01T00:00:00Z").json
    assert made["status"] == "expired"
    problem(media_server.ask(made["key_value"]), "stream-key-expired", 401)


def test_two_keys_have_two_values(mint, conn):
    assert mint().json["key_value"] != mint().json["key_value"]
    assert len(rows(conn, READ)) == 2


def test_a_client_may_make_the_id_and_a_repeat_mints_no_second_secret(mint, conn):
    key_id = str(uuid.uuid4())
    answer = mint(id=key_id, path=PATH)
    assert (answer.status_code, answer.json["id"]) == (201, key_id)
    before = rows(conn, READ)
    again = mint(id=key_id, path=PATH)
    problem(again, "conflict", 409)
    assert "sk_" not in again.text
    assert rows(conn, READ) == before


def test_a_repeat_while_the_key_is_live_is_a_conflict_too(mint, media_server):
    made = mint(id=str(uuid.uuid4()), path=PATH).json
    media_server.ask(made["key_value"], PATH)
    problem(mint(id=made["id"], path=PATH), "conflict", 409)


BAD_PATHS = [
    "",
    "/x",
    "x/",
    "a//b",
    "a b",
    "ü",
    "x" * 256,
    "a/../b",
    ".",
    "whip",
    "a/whep",
    "publish/a",
    "a.m3u8",
    "a.mp4",
    "a.mp",
    "a/b.ts",
    "all",
    "all_others",
    "a\x00b",
    "a\n",
    f"live/{'sk_' + 'x' * 43}",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_nobody_may_publish_to_is_refused(path, api, mint, make_key, conn):
    key = make_key()
    for answer in (mint(path=path), api.patch(f"/stream-keys/{key.id}", json={"path": path})):
        assert fields(answer) == {"path"}
        assert "sk_x" not in answer.text
    assert only(conn, READ)["path"] is None


BAD_MEMBERS = [
    ({"label": 7}, {"label"}),
    ({"label": "x" * 256}, {"label"}),
    ({"label": "a\x00b"}, {"label"}),
    ({"takeover": "sometimes"}, {"takeover"}),
    ({"takeover": None}, {"takeover"}),
    ({"expires_at": "2030-01-31T12:00:00"}, {"expires_at"}),
    ({"expires_at": "soon"}, {"expires_at"}),
    ({"expires_at": 1900000000}, {"expires_at"}),
    ({"disabled": None}, {"disabled"}),
    ({"metadata": []}, {"metadata"}),
    ({"path": "a b", "label": [], "takeover": "x", "disabled": 1}, {"path", "label", "takeover", "disabled"}),
]


@pytest.mark.parametrize(("body", "named"), BAD_MEMBERS)
def test_each_wrong_member_is_named(body, named, api, mint, make_key, conn):
    key = make_key()
    before = rows(conn, READ)
    assert fields(mint(**body)) == named
    assert fields(api.patch(f"/stream-keys/{key.id}", json={"label": "new"} | body)) == named
    assert rows(conn, READ) == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, {"broadcaster_id"}),
        ({"broadcaster_id": None}, {"broadcaster_id"}),
        ({"broadcaster_id": "x", "id": "y"}, {"broadcaster_id", "id"}),
        ({"broadcaster_id": str(uuid.uuid4())}, {"broadcaster_id"}),
    ],
)
def test_a_key_needs_a_broadcaster_that_exists(body, named, api, conn):
    assert fields(api.post("/stream-keys", json=body)) == named
    assert not rows(conn, READ)


def test_a_wrong_value_is_not_echoed_when_it_may_be_a_key(mint, make_key, api):
    value = keys.mint()
    for members in ({"takeover": value}, {"expires_at": value}, {"path": value}, {"id": value}, {"metadata": value}):
        answer = mint(**members)
        problem(answer, "invalid-request", 400)
        assert value not in answer.text
    answer = api.get(f"/stream-keys/{value}")
    problem(answer, "invalid-request", 400)
    assert value not in answer.text
    for query in ("status", "cursor", "broadcaster_id", "limit"):
        assert value not in api.get(f"/stream-keys?{query}={value}").text


def test_a_label_may_have_255_characters_and_be_anything(mint):
    for label in ("ü" * 255, "", "  ", "<b>\U0001f3a5</b>"):
        assert mint(label=label).json["label"] == label


def test_a_path_on_which_another_key_is_live_is_in_use(api, mint, media_server, make_key, conn):
    owner, other = make_key(), make_key()
    media_server.go_live(owner)
    problem(mint(path=PATH), "path-in-use", 409)
    problem(api.patch(f"/stream-keys/{other.id}", json={"path": PATH}), "path-in-use", 409)
    assert not rows(conn, "SELECT id FROM stream_keys WHERE path IS NOT NULL")
    assert api.patch(f"/stream-keys/{owner.id}", json={"path": PATH}).json["path"] == PATH


def test_a_path_is_free_when_the_claim_on_it_has_lapsed(api, mint, media_server, make_key, conn):
    media_server.ask(make_key())
    problem(mint(path=PATH), "path-in-use", 409)
    conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp()")
    assert mint(path=PATH).status_code == 201
    assert api.patch(f"/stream-keys/{make_key().id}", json={"path": PATH}).status_code == 200


def test_two_keys_may_be_bound_to_one_path(mint):
    assert [mint(path=PATH).status_code for _ in range(2)] == [201, 201]


# --- how to publish ---

KEY = "KEY"


def expected_publish(path, server, last):
    return {
        "path": path,
        "obs": {"server": server, "stream_key": f"{last}?pass={KEY}"},
        "rtmp": f"rtmp://localhost:1935/{path}?pass={KEY}",
        "srt": f"srt://localhost:8890?streamid=publish:{path}:key:{KEY}&pkt_size=1316",
        "rtsp": f"rtsp://key:{KEY}@localhost:8554/{path}",
        "whip": {"url": f"http://localhost:8889/{path}/whip", "bearer_token": KEY},
    }


@pytest.mark.parametrize(
    ("path", "server", "last"),
    [
        ("cam7", "rtmp://localhost:1935", "cam7"),
        ("live/cam7", "rtmp://localhost:1935/live", "cam7"),
        ("a/b/c.d", "rtmp://localhost:1935/a/b", "c.d"),
    ],
)
def test_a_key_is_told_how_to_publish_to_its_path(path, server, last, mint):
    made = mint(path=path).json
    expected = expected_publish(path, server, last)
    assert str(made["publish"]).replace(made["key_value"], KEY) == str(expected)


def test_an_unbound_key_is_told_a_path(mint, media_server):
    made = mint().json
    path = f"live/{made['id'][:8]}"
    expected = expected_publish(path, "rtmp://localhost:1935/live", made["id"][:8])
    assert str(made["publish"]).replace(made["key_value"], KEY) == str(expected)
    assert made["path"] is None
    assert media_server.ask(made["key_value"], path).status_code == 200


def test_what_is_off_cannot_be_published_to(make_app, make_broadcaster):
    api = Api(make_app(**{f"MEDIAMTX_{name}_URL": "off" for name in ("RTMP", "SRT", "RTSP", "WEBRTC")}).test_client())
    made = api.post("/stream-keys", json={"broadcaster_id": str(make_broadcaster()), "path": PATH})
    assert json.loads(made.data)["publish"] == {
        "path": PATH,
        "obs": None,
        "rtmp": None,
        "srt": None,
        "rtsp": None,
        "whip": None,
    }


# --- GET ---


def test_keys_are_listed_newest_first(api, make_key):
    second = datetime.timedelta(seconds=1)
    made = [(PAST + number * second, make_key(created_at=PAST + number * second).id) for number in (1, 3, 2, 2)]
    answer = api.get("/stream-keys")
    assert listed(answer) == [key_id for _, key_id in sorted(made, reverse=True)]
    assert answer.json.keys() == {"stream_keys", "count", "next_cursor"}
    assert answer.json["next_cursor"] is None
    assert all(item.keys() == MEMBERS for item in answer.json["stream_keys"])


STATUSES = {
    "active": {},
    "far": {"expires_at": FUTURE},
    "disabled": {"disabled_at": PAST},
    "held": {"hold_until": FUTURE},
    "expired": {"expires_at": PAST},
    "revoked": {"revoked_at": PAST},
    "revoked and expired": {"revoked_at": PAST, "expires_at": PAST},
}


def test_a_key_has_a_status_and_revoked_wins(api, make_key):
    ids = {name: make_key(**columns).id for name, columns in STATUSES.items()}
    status = {name: api.get(f"/stream-keys/{key_id}").json["status"] for name, key_id in ids.items()}
    assert status == {
        "active": "active",
        "far": "active",
        "disabled": "active",
        "held": "active",
        "expired": "expired",
        "revoked": "revoked",
        "revoked and expired": "revoked",
    }
    for wanted in ("active", "expired", "revoked"):
        found = listed(api.get(f"/stream-keys?status={wanted}"))
        assert set(found) == {ids[name] for name in ids if status[name] == wanted}
    shown = api.get(f"/stream-keys/{ids['revoked and expired']}").json
    assert (shown["revoked_at"], shown["expires_at"]) == (text_of(PAST), text_of(PAST))


def test_keys_can_be_filtered_by_broadcaster_and_status(api, make_key, make_broadcaster):
    broadcaster = make_broadcaster()
    first, second = make_key(broadcaster_id=broadcaster), make_key(broadcaster_id=broadcaster, revoked_at=PAST)
    make_key()
    assert set(listed(api.get(f"/stream-keys?broadcaster_id={broadcaster}"))) == {first.id, second.id}
    assert listed(api.get(f"/stream-keys?broadcaster_id={broadcaster}&status=revoked")) == [second.id]
    assert listed(api.get(f"/stream-keys?broadcaster_id={uuid.uuid4()}")) == []


@pytest.mark.parametrize(
    "query", ["status=live", "status=Active", "broadcaster_id=x", "limit=0", "limit=1001", "limit=x", "cursor=x"]
)
def test_a_bad_parameter_is_named(query, api):
    assert fields(api.get(f"/stream-keys?{query}")) == {query.partition("=")[0]}


@pytest.mark.parametrize("query", ["", "status=active", "broadcaster_id={}", "status=active&broadcaster_id={}"])
def test_keys_come_in_pages_with_ties_in_time(query, api, make_key, make_broadcaster):
    broadcaster = make_broadcaster()
    made = []
    for number in range(25):
        created_at = PAST + datetime.timedelta(microseconds=number // 4)
        made.append((created_at, make_key(broadcaster_id=broadcaster, created_at=created_at).id))
    found, cursor = [], ""
    while cursor is not None:
        answer = api.get(f"/stream-keys?{query.format(broadcaster)}&limit=7&cursor={cursor}")
        found += listed(answer)
        cursor = answer.json["next_cursor"]
    assert found == [key_id for _, key_id in sorted(made, reverse=True)]


def test_a_cursor_is_bound_to_its_filters(api, make_key):
    for _ in range(3):
        make_key()
    cursor = api.get("/stream-keys?limit=1").json["next_cursor"]
    assert len(listed(api.get(f"/stream-keys?limit=2&cursor={cursor}"))) == 2
    for query in ("status=active", f"broadcaster_id={uuid.uuid4()}"):
        assert fields(api.get(f"/stream-keys?{query}&cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_unknown_key_is_not_found(method, api):
    problem(api(method, f"/stream-keys/{uuid.uuid4()}", json={}), "not-found", 404)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_malformed_id_is_named(method, api):
    assert fields(api(method, "/stream-keys/x", json={})) == {"id"}


def test_a_key_is_in_use_while_a_stream_of_it_is_open(api, media_server, make_key, conn):
    key = make_key()

    def shown():
        return api.get(f"/stream-keys/{key.id}").json

    assert (shown()["in_use"], shown()["last_used_at"]) == (False, None)
    media_server.ask(key, id="c1")
    assert shown()["in_use"] is True
    first_use = shown()["last_used_at"]
    assert first_use == text_of(only(conn, STREAMS)["claimed_at"])
    conn.execute("UPDATE streams SET lease_expires_at = clock_timestamp()")
    assert shown()["in_use"] is False
    media_server.ready("c1")
    assert shown()["in_use"] is True
    media_server.not_ready("c1")
    assert (shown()["in_use"], shown()["last_used_at"]) == (False, first_use)
    media_server.ask(key)
    assert shown()["last_used_at"] > first_use


# --- PATCH ---


def test_each_member_can_be_replaced(api, make_key, conn):
    key = make_key(metadata='{"a": 1}')
    path = f"/stream-keys/{key.id}"
    for member, value in (
        ("label", "new"),
        ("path", "live/new"),
        ("takeover", "always"),
        ("expires_at", "2030-01-31T12:00:00.000001Z"),
        ("disabled", True),
        ("hold_until", "2030-01-31T12:00:00.000000Z"),
        ("metadata", {"b": {"c": None}}),
    ):
        before = api.get(path).json
        answer = api.patch(path, json={member: value})
        assert (answer.status_code, answer.json.keys()) == (200, MEMBERS)
        assert answer.json == before | {member: value}
        assert api.get(path).json == answer.json


def test_null_clears_what_may_be_null(api, make_key, conn):
    key = make_key(label="x", path=PATH, expires_at=FUTURE, hold_until=FUTURE)
    path = f"/stream-keys/{key.id}"
    for member in ("label", "path", "expires_at", "hold_until"):
        before = api.get(path).json
        assert before[member] is not None
        assert api.patch(path, json={member: None}).json == before | {member: None}
    row = only(conn, READ)
    assert (row["label"], row["path"], row["expires_at"], row["hold_until"]) == (None, None, None, None)


def test_null_is_refused_where_there_is_no_null(api, make_key):
    body = {"takeover": None, "disabled": None, "metadata": None}
    assert fields(api.patch(f"/stream-keys/{make_key().id}", json=body)) == body.keys()


def test_unknown_members_change_nothing(api, make_key, conn):
    path = f"/stream-keys/{make_key(label='x').id}"
    before = rows(conn, READ)
    body = {"status": "revoked", "revoked_at": "2020-01-01T00:00:00Z", "key_value": "x", "broadcaster_id": 1, "hint": 1}
    for changes in ({}, body):
        assert api.patch(path, json=changes).status_code == 200
        assert rows(conn, READ) == before


def test_a_hold_may_be_set_by_hand(api, make_key, media_server):
    key = make_key()
    answer = api.patch(f"/stream-keys/{key.id}", json={"hold_until": "2100-01-01T01:00:00+01:00"})
    assert answer.json["hold_until"] == "2100-01-01T00:00:00.000000Z"
    problem(media_server.ask(key), "stream-stopped", 401)
    assert fields(api.patch(f"/stream-keys/{key.id}", json={"hold_until": "2100-01-01T01:00:00"})) == {"hold_until"}


def test_a_revoked_key_stays_as_it_is(api, make_key, conn):
    path = f"/stream-keys/{make_key(revoked_at=PAST).id}"
    before = rows(conn, READ)
    for body in ({"label": "new"}, {"expires_at": None}, {}):
        problem(api.patch(path, json=body), "conflict", 409)
    assert rows(conn, READ) == before


ENDS = [
    ({"disabled": True}, "disabled", "stream-key-disabled"),
    ({"expires_at": "2020-01-01T00:00:00Z"}, "expired", "stream-key-expired"),
    ({"disabled": True, "expires_at": "2020-01-01T00:00:00Z"}, "expired", "stream-key-expired"),
]


@pytest.mark.parametrize(("body", "reason", "slug"), ENDS)
def test_a_change_that_takes_the_right_ends_the_streams(body, reason, slug, api, media_server, make_key, conn):
    key, other = make_key(), make_key()
    media_server.go_live(key)
    media_server.ask(key, id="newcomer")
    media_server.go_live(other, "live/other")
    assert api.patch(f"/stream-keys/{key.id}", json=body).status_code == 200
    ends = rows(conn, "SELECT end_reason FROM streams WHERE stream_key_id = %s", key.id)
    assert [row["end_reason"] for row in ends] == [reason, reason]
    assert not rows(conn, "SELECT id FROM streams WHERE stream_key_id = %s AND ended_at IS NOT NULL", other.id)
    problem(media_server.ask(key), slug, 401)
    problem(media_server.ready("newcomer"), "stream-not-found", 404)


def test_disabling_again_keeps_the_moment(api, make_key, conn):
    path = f"/stream-keys/{make_key(disabled_at=PAST).id}"
    api.patch(path, json={"disabled": True})
    assert only(conn, READ)["disabled_at"] == PAST
    assert api.patch(path, json={"disabled": False}).json["disabled"] is False
    assert only(conn, READ)["disabled_at"] is None


@pytest.mark.parametrize("expires_at", [None, "2100-01-01T00:00:00.000000Z"])
def test_extending_an_expired_key_makes_it_active(expires_at, api, media_server, make_key):
    key = make_key(expires_at=PAST)
    problem(media_server.ask(key), "stream-key-expired", 401)
    answer = api.patch(f"/stream-keys/{key.id}", json={"expires_at": expires_at})
    assert (answer.json["status"], answer.json["expires_at"]) == ("active", expires_at)
    assert media_server.ask(key).status_code == 200


def test_a_live_stream_goes_on_under_changes_that_leave_its_right(api, media_server, make_key, conn):
    key = make_key(metadata='{"a": 1}')
    media_server.go_live(key)
    body = {
        "label": "new",
        "path": PATH,
        "takeover": "never",
        "metadata": {"a": 2},
        "expires_at": "2100-01-01T00:00:00Z",
    }
    assert api.patch(f"/stream-keys/{key.id}", json=body).status_code == 200
    assert only(conn, STREAMS)["ended_at"] is None
    shown = api.get("/streams").json["streams"][0]
    assert (shown["label"], shown["metadata"]) == ("new", {"a": 1})  # metadata is copied at the claim


@pytest.mark.parametrize("is_live", [True, False])
def test_a_key_cannot_be_bound_away_from_its_own_open_stream(is_live, api, media_server, make_key, conn):
    key = make_key()
    media_server.ask(key, id="c1")
    if is_live:
        media_server.ready("c1")
    path = f"/stream-keys/{key.id}"
    problem(api.patch(path, json={"path": "live/other"}), "stream-key-in-use", 409)
    assert only(conn, READ)["path"] is None
    assert api.patch(path, json={"path": PATH}).status_code == 200
    assert api.patch(path, json={"path": None}).status_code == 200


def test_a_key_bound_anew_publishes_to_its_new_path(api, media_server, make_key):
    key = make_key(path=PATH)
    api.patch(f"/stream-keys/{key.id}", json={"path": "live/new"})
    problem(media_server.ask(key), "path-not-allowed", 401)
    assert media_server.ask(key, "live/new").status_code == 200
    assert media_server.ask(make_key()).status_code == 200  # the old path is free


# --- DELETE: revoke ---


def test_a_revoked_key_is_out_from_the_answer_on(api, media_server, make_key, conn):
    key, other = make_key(), make_key()
    media_server.go_live(key)
    media_server.ask(key, id="newcomer")
    media_server.go_live(other, "live/other")
    answer = api.delete(f"/stream-keys/{key.id}")
    assert (answer.status_code, answer.data) == (204, b"")
    problem(media_server.ask(key), "stream-key-revoked", 401)
    ends = rows(conn, "SELECT end_reason FROM streams WHERE stream_key_id = %s", key.id)
    assert [row["end_reason"] for row in ends] == ["revoked", "revoked"]
    assert len(api.get("/streams").json["streams"]) == 1
    shown = api.get(f"/stream-keys/{key.id}").json
    assert (shown["status"], shown["in_use"]) == ("revoked", False)
    assert re.fullmatch(TIME, shown["revoked_at"])
    assert key.id in listed(api.get("/stream-keys"))


def test_revoke_again_changes_nothing(api, make_key, conn):
    path = f"/stream-keys/{make_key().id}"
    assert api.delete(path).status_code == 204
    before = rows(conn, READ)
    assert api.delete(path).status_code == 204
    assert rows(conn, READ) == before


def test_a_key_of_a_deleted_broadcaster_can_be_revoked_again(api, make_key):
    key = make_key()
    api.delete(f"/broadcasters/{key.broadcaster_id}")
    assert api.delete(f"/stream-keys/{key.id}").status_code == 204


def test_a_revoked_key_holds_its_path_no_longer(api, media_server, make_key):
    key, other = make_key(path=PATH), make_key()
    problem(media_server.ask(other), "path-in-use", 401)
    api.delete(f"/stream-keys/{key.id}")
    assert media_server.ask(other).status_code == 200


def test_the_value_of_a_key_is_told_once_and_logged_never(capsys, make_app, make_broadcaster):
    client = debugging(make_app).test_client()
    api, server = Api(client), MediaServer(client)
    made = json.loads(api.post("/stream-keys", json={"broadcaster_id": str(make_broadcaster())}).data)
    value = made["key_value"]
    path = f"/stream-keys/{made['id']}"
    server.ask(value, query=f"pass={value}")
    answers = [api.get(path), api.get("/stream-keys"), api.patch(path, json={"label": "x"}), api.delete(path)]
    answers += [server.ask(value), api.get(f"/{value}"), api.get(f"/stream-keys?broadcaster_id={value}")]
    assert not [answer for answer in answers if value in answer.text]
    assert value not in capsys.readouterr().err


TAKEN_AWAY = {
    "revoked": lambda api, key: api.delete(f"/stream-keys/{key.id}"),
    "disabled": lambda api, key: api.patch(f"/stream-keys/{key.id}", json={"disabled": True}),
    "expired": lambda api, key: api.patch(f"/stream-keys/{key.id}", json={"expires_at": "2020-01-01T00:00:00Z"}),
}


class TestWithAMediaServer(WithAMediaServer):
    """What a change of a key does to who publishes with it."""

    @pytest.fixture
    def publish(self, media_server, fake):
        """A publisher that was let in and is live, or waits."""

        def do(key, path=PATH, *, live=True):
            publisher = fake.publish(path, live=live)
            assert media_server.ask(key, path, id=publisher.auth_id).status_code == 200
            if live:
                assert media_server.ready(publisher.source_id, path).status_code == 204
            return publisher

        return do

    @pytest.mark.parametrize("reason", TAKEN_AWAY)
    def test_who_publishes_with_it_is_closed_and_nobody_else(self, reason, api, make_key, publish, fake, conn):
        key = make_key()
        publisher, other = publish(key), publish(make_key(), "live/other")
        assert TAKEN_AWAY[reason](api, key).status_code in (200, 204)
        until(lambda: rows(conn, STREAMS)[0]["kicked_at"], 3)
        assert fake.kicks == [publisher.source_id]
        assert [row["end_reason"] for row in rows(conn, STREAMS)] == [reason, None]
        assert other.is_live

    def test_who_is_about_to_publish_is_closed_as_well(self, api, make_key, publish, fake, conn):
        key = make_key()
        waiting = publish(key, live=False)
        api.delete(f"/stream-keys/{key.id}")
        until(lambda: only(conn, STREAMS)["kicked_at"], 3)
        assert fake.kicks == [waiting.source_id]

    def test_the_key_is_refused_then_its_publisher_closed_and_that_is_verified(
        self, api, media_server, make_key, publish, fake, conn
    ):
        key = make_key()
        publisher = publish(key)
        fake.slow(0.25, "/v3/rtmpconns/kick")
        api.delete(f"/stream-keys/{key.id}")
        until(lambda: fake.calls, 3)
        problem(media_server.ask(key), "stream-key-revoked", 401)
        assert publisher.is_live  # still: who is closed would come back at once
        until(lambda: only(conn, STREAMS)["kicked_at"], 3)
        kick, *verified = fake.calls
        assert (kick.method, kick.target) == ("POST", f"/v3/rtmpconns/kick/{publisher.source_id}")
        assert f"/v3/rtmpconns/get/{publisher.source_id}" in [call.target for call in verified]

    @pytest.mark.parametrize("how", ["hang", "refuse"])
    def test_the_answer_waits_for_no_media_server(self, how, api, make_key, publish, fake, conn):
        key = make_key()
        publisher = publish(key)
        getattr(fake, how)()
        began = time.monotonic()
        assert api.delete(f"/stream-keys/{key.id}").status_code == 204
        assert time.monotonic() - began < 1
        path = f"/streams/{only(conn, STREAMS)['id']}"
        time.sleep(0.5)
        assert api.get(path).json["kick"] == "pending"
        fake.heal()
        assert api.delete(f"/stream-keys/{key.id}").status_code == 204  # again, and now it works
        until(lambda: api.get(path).json["kick"] == "done", 3)
        assert publisher.source_id in fake.kicks

    def test_a_change_that_leaves_its_right_closes_nobody(self, api, make_key, publish, fake):
        key = make_key()
        publisher = publish(key)
        changes: list[dict[str, Any]] = [{"label": "x"}, {"metadata": {}}, {"takeover": "never"}, {"disabled": False}]
        for change in changes:
            assert api.patch(f"/stream-keys/{key.id}", json=change).status_code == 200
        time.sleep(0.2)
        assert fake.calls == []
        assert publisher.is_live
