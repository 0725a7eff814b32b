"""Broadcasters: who may publish."""

import datetime
import json
import re
import time
import uuid

import pytest

from tests.blueprints import PAST, TIME, WithAMediaServer, fields, only, problem, rows
from tests.test_leader import until

MEMBERS = {"id", "display_name", "metadata", "disabled", "created_at", "updated_at"}
READ = "SELECT *, metadata::text AS said FROM broadcasters"


def listed(answer):
    assert answer.status_code == 200, answer.text
    assert answer.json["count"] == len(answer.json["broadcasters"])
    return [uuid.UUID(item["id"]) for item in answer.json["broadcasters"]]


# --- POST ---


def test_a_broadcaster_is_made(api, conn):
    answer = api.post("/broadcasters", json={"display_name": "Täm 7 \U0001f3a5", "metadata": {"a": [1, {"b": None}]}})
    assert (answer.status_code, answer.content_type) == (201, "application/json")
    made = answer.json
    assert made.keys() == MEMBERS
    assert (made["display_name"], made["disabled"]) == ("Täm 7 \U0001f3a5", False)
    assert made["metadata"] == {"a": [1, {"b": None}]}
    assert re.fullmatch(TIME, made["created_at"])
    assert re.fullmatch(TIME, made["updated_at"])
    assert answer.headers["Location"] == f"/broadcasters/{made['id']}"
    assert answer.headers["Cache-Control"] == "no-store"
    row = only(conn, READ)
    assert (str(row["id"]), row["display_name"], row["disabled_at"]) == (made["id"], made["display_name"], None)
    shown = api.get(answer.headers["Location"])
    assert (shown.status_code, shown.json) == (200, made)


def test_a_broadcaster_needs_no_more_than_a_name(api, conn):
    assert api.post("/broadcasters", json={"display_name": "x"}).json["metadata"] == {}
    assert only(conn, READ)["said"] == "{}"


def test_a_broadcaster_may_be_made_disabled(api, conn):
    assert api.post("/broadcasters", json={"display_name": "x", "disabled": True}).json["disabled"] is True
    assert only(conn, READ)["disabled_at"] is not None


def test_a_client_may_make_the_id_and_repeat_without_harm(api, conn):
    broadcaster_id = str(uuid.uuid4())
    answer = api.post("/broadcasters", json={"id": broadcaster_id.upper(), "display_name": "first"})
    assert (answer.status_code, answer.json["id"]) == (201, broadcaster_id)
    problem(api.post("/broadcasters", json={"id": broadcaster_id, "display_name": "second"}), "conflict", 409)
    assert only(conn, READ)["display_name"] == "first"


def test_unknown_members_are_ignored(api):
    body = {"display_name": "x", "created_at": "yesterday", "x": {"y": 1}, "deleted_at": 1}
    assert api.post("/broadcasters", json=body).status_code == 201


@pytest.mark.parametrize("metadata", [{}, {"ü": "\U0001f3a5"}, {"n": -1.5e-7, "m": 2**63, "o": True}, {"": ""}])
def test_metadata_comes_back_as_it_was(metadata, api):
    made = api.post("/broadcasters", json={"display_name": "x", "metadata": metadata}).json
    assert made["metadata"] == metadata
    assert api.get(f"/broadcasters/{made['id']}").json["metadata"] == metadata


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


BAD_MEMBERS = [
    ({}, {"display_name"}),
    ({"display_name": None}, {"display_name"}),
    ({"display_name": ""}, {"display_name"}),
    ({"display_name": 7}, {"display_name"}),
    ({"display_name": "x" * 256}, {"display_name"}),
    ({"display_name": "a\x00b"}, {"display_name"}),
    ({"id": "x"}, {"id", "display_name"}),
    ({"id": 7, "metadata": [], "disabled": "yes"}, {"id", "metadata", "disabled", "display_name"}),
    ({"display_name": "x", "disabled": None}, {"disabled"}),
    ({"display_name": "x", "disabled": 1}, {"disabled"}),
    ({"display_name": "x", "metadata": "{}"}, {"metadata"}),
    ({"display_name": "x", "metadata": {"a": {"b": ["\x00"]}}}, {"metadata"}),
    ({"display_name": "x", "metadata": {"\x00": 1}}, {"metadata"}),
    ({"display_name": "x", "metadata": {"a": "x" * 16384}}, {"metadata"}),
    ({"display_name": "x", "metadata": nested(33)}, {"metadata"}),
]


@pytest.mark.parametrize(("body", "named"), BAD_MEMBERS)
def test_each_wrong_member_is_named(body, named, api, conn):
    assert fields(api.post("/broadcasters", json=body)) == named
    assert not rows(conn, READ)


def test_members_at_their_limits_are_taken(api):
    body = {"display_name": "ü" * 255, "metadata": {"a": "x" * (16384 - 8)}}
    assert api.post("/broadcasters", json=body).status_code == 201
    assert api.post("/broadcasters", json={"display_name": "x", "metadata": nested(32)}).status_code == 201


BAD_BODIES = {
    "empty": b"",
    "list": b"[]",
    "text": b'"x"',
    "cut": b'{"display_name":',
    "no UTF-8": b'{"display_name":"\xff"}',
    "lone surrogate": b'{"display_name":"\\udc00"}',
    "deep": b'{"display_name":"x","y":' + b"[" * 30000 + b"]" * 30000 + b"}",
    "not a number": b'{"display_name":"x","metadata":{"a":NaN}}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_no_json_object_is_refused(body, api, make_broadcaster):
    answer = api.post("/broadcasters", data=body, content_type="application/json")
    assert fields(answer) == {"body"}
    assert fields(api.patch(f"/broadcasters/{make_broadcaster()}", data=body)) == {"body"}


@pytest.mark.parametrize(
    "number", ["123456789012345678901234567890", "-1e-400", "0.1234567890123456789", "1e400", "9" * 400]
)
def test_a_number_of_any_size_is_stored_or_refused(number, api):
    body = f'{{"display_name":"x","metadata":{{"n":{number}}}}}'
    answer = api.post("/broadcasters", data=body, content_type="application/json")
    assert answer.status_code in (201, 400), answer.text
    if answer.status_code == 201:
        stored, sent = api.get(answer.headers["Location"]).json["metadata"]["n"], json.loads(number)
        assert stored == (sent if isinstance(sent, int) else pytest.approx(sent))


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 201),
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("application/merge-patch+json", 201),
        ("Application/JSON", 201),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
    ],
)
def test_a_body_must_not_be_labelled_as_something_else(content_type, status, api, make_broadcaster, conn):
    answer = api.post("/broadcasters", data=b'{"display_name": "x"}', content_type=content_type)
    assert answer.status_code == status
    if status == 415:
        problem(answer, "unsupported-media-type", 415)
        path = f"/broadcasters/{make_broadcaster()}"
        problem(api.patch(path, data=b"{}", content_type=content_type), "unsupported-media-type", 415)
        assert len(rows(conn, READ)) == 1


def test_a_content_type_on_get_and_delete_does_not_matter(api, make_broadcaster):
    path = f"/broadcasters/{make_broadcaster()}"
    for method, at, status in (("GET", path, 200), ("GET", "/broadcasters", 200), ("DELETE", path, 204)):
        assert api(method, at, content_type="text/plain").status_code == status
    problem(api.get(path, content_type="text/plain"), "not-found", 404)


# --- GET ---


def test_broadcasters_are_listed_newest_first(api, make_broadcaster):
    second = datetime.timedelta(seconds=1)
    made = [(PAST + number * second, make_broadcaster(created_at=PAST + number * second)) for number in (1, 3, 2, 2)]
    answer = api.get("/broadcasters")
    assert listed(answer) == [broadcaster_id for _, broadcaster_id in sorted(made, reverse=True)]
    assert answer.json.keys() == {"broadcasters", "count", "next_cursor"}
    assert answer.json["next_cursor"] is None
    assert all(item.keys() == MEMBERS for item in answer.json["broadcasters"])
    head = api("HEAD", "/broadcasters")
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", answer.headers["Content-Length"])


def test_a_list_of_none_is_a_list(api):
    assert api.get("/broadcasters").json == {"broadcasters": [], "count": 0, "next_cursor": None}


@pytest.mark.parametrize("limit", [1, 7, 24, 25, 1000])
def test_broadcasters_come_in_pages_with_ties_in_time(limit, api, make_broadcaster):
    made = []
    for number in range(25):
        created_at = PAST + datetime.timedelta(microseconds=number // 4)
        made.append((created_at, make_broadcaster(created_at=created_at)))
    found, cursor = [], ""
    while cursor is not None:
        answer = api.get(f"/broadcasters?limit={limit}&cursor={cursor}")
        assert len(listed(answer)) <= limit
        found += listed(answer)
        cursor = answer.json["next_cursor"]
    assert found == [broadcaster_id for _, broadcaster_id in sorted(made, reverse=True)]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=e30"])
def test_a_bad_parameter_is_named(query, api):
    assert fields(api.get(f"/broadcasters?{query}")) == {query.partition("=")[0]}


def test_a_cursor_of_another_list_is_refused(api, make_key):
    for _ in range(2):
        make_key()
    cursor = api.get("/stream-keys?limit=1&status=active").json["next_cursor"]
    assert fields(api.get(f"/broadcasters?cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_unknown_broadcaster_is_not_found(method, api):
    problem(api(method, f"/broadcasters/{uuid.uuid4()}", json={}), "not-found", 404)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("text", ["x", uuid.uuid4().hex, f"{{{uuid.uuid4()}}}"])
def test_a_malformed_id_is_named(method, text, api):
    assert fields(api(method, f"/broadcasters/{text}", json={})) == {"id"}


# --- PATCH ---


def test_a_member_given_replaces_the_whole_value(api, make_broadcaster, conn):
    broadcaster = make_broadcaster(metadata='{"a": 1, "b": 2}', updated_at=PAST)
    path = f"/broadcasters/{broadcaster}"
    before = api.get(path).json
    answer = api.patch(path, json={"metadata": {"b": {"c": None}}})
    assert (answer.status_code, answer.json.keys()) == (200, MEMBERS)
    assert answer.json["metadata"] == {"b": {"c": None}}
    assert (answer.json["display_name"], answer.json["created_at"]) == (before["display_name"], before["created_at"])
    assert answer.json["updated_at"] > before["updated_at"]
    assert api.patch(path, json={"display_name": "new"}).json["display_name"] == "new"
    assert api.get(path).json["metadata"] == {"b": {"c": None}}


def test_unknown_members_and_an_empty_change_change_nothing(api, make_broadcaster):
    broadcaster = make_broadcaster(metadata='{"a": 1}')
    path = f"/broadcasters/{broadcaster}"
    before = api.get(path).json
    for body in ({}, {"id": str(uuid.uuid4()), "created_at": 1, "x": []}):
        answer = api.patch(path, json=body)
        assert answer.status_code == 200
        assert {**answer.json, "updated_at": ""} == {**before, "updated_at": ""}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"display_name": None}, {"display_name"}),
        ({"display_name": ""}, {"display_name"}),
        ({"display_name": "x" * 256, "metadata": None}, {"display_name", "metadata"}),
        ({"disabled": None, "metadata": 7}, {"disabled", "metadata"}),
        ({"metadata": nested(33), "disabled": "true"}, {"disabled", "metadata"}),
    ],
)
def test_a_wrong_change_is_named_and_nothing_changed(body, named, api, make_broadcaster, conn):
    path = f"/broadcasters/{make_broadcaster()}"
    before = rows(conn, READ)
    assert fields(api.patch(path, json={"display_name": "new"} | body)) == named
    assert rows(conn, READ) == before


def test_disabling_ends_its_streams_and_keeps_its_keys_out(api, make_broadcaster, make_key, media_server, conn):
    broadcaster = make_broadcaster()
    live, waiting = make_key(broadcaster_id=broadcaster), make_key(broadcaster_id=broadcaster)
    other = make_key()
    media_server.go_live(live)
    media_server.ask(waiting, "live/waiting", id="c2")
    media_server.go_live(other, "live/other")
    answer = api.patch(f"/broadcasters/{broadcaster}", json={"disabled": True})
    assert answer.json["disabled"] is True
    ends = {row["path"]: row["end_reason"] for row in rows(conn, "SELECT path, end_reason FROM streams")}
    assert ends == {"live/cam7": "disabled", "live/waiting": "disabled", "live/other": None}
    problem(media_server.ask(live), "broadcaster-disabled", 401)
    problem(media_server.ready("c2", "live/waiting"), "stream-not-found", 404)
    assert api.get(f"/stream-keys/{live.id}").json["status"] == "active"
    assert len(listed(api.get("/broadcasters"))) == 2


def test_disabling_again_keeps_the_moment_and_enabling_opens_again(api, make_broadcaster, make_key, media_server, conn):
    broadcaster = make_broadcaster(disabled_at=PAST)
    path = f"/broadcasters/{broadcaster}"
    assert api.patch(path, json={"disabled": True}).status_code == 200
    assert only(conn, READ)["disabled_at"] == PAST
    assert api.patch(path, json={"display_name": "x"}).json["disabled"] is True
    assert api.patch(path, json={"disabled": False}).json["disabled"] is False
    assert only(conn, READ)["disabled_at"] is None
    assert media_server.ask(make_key(broadcaster_id=broadcaster)).status_code == 200


# --- DELETE ---


def test_delete_is_soft(api, make_broadcaster, make_key, media_server, conn):
    broadcaster = make_broadcaster(display_name="Gone")
    live, waiting, idle = (make_key(broadcaster_id=broadcaster) for _ in range(3))
    revoked = make_key(broadcaster_id=broadcaster, revoked_at=PAST)
    other = make_key()
    media_server.go_live(live)
    media_server.ask(waiting, "live/waiting", id="c2")
    media_server.go_live(other, "live/other")
    path = f"/broadcasters/{broadcaster}"
    answer = api.delete(path)
    assert (answer.status_code, answer.data) == (204, b"")

    # It and its keys leave the lists, ...
    assert listed(api.get("/broadcasters")) == [other.broadcaster_id]
    assert [item["id"] for item in api.get("/stream-keys").json["stream_keys"]] == [str(other.id)]
    assert api.get(f"/stream-keys?broadcaster_id={broadcaster}").json["stream_keys"] == []
    problem(api.get(path), "not-found", 404)
    problem(api.patch(path, json={"display_name": "back"}), "not-found", 404)
    for key in (live, waiting, idle, revoked):
        problem(api.get(f"/stream-keys/{key.id}"), "not-found", 404)
        problem(api.patch(f"/stream-keys/{key.id}", json={"label": "back"}), "not-found", 404)
        problem(media_server.ask(key), "stream-key-revoked", 401)
    # ... its streams end, ...
    ends = {row["path"]: row["end_reason"] for row in rows(conn, "SELECT path, end_reason FROM streams")}
    assert ends == {"live/cam7": "revoked", "live/waiting": "revoked", "live/other": None}
    # ... and nothing is lost.
    assert len(rows(conn, "SELECT id FROM stream_keys WHERE revoked_at IS NOT NULL")) == 4
    assert only(conn, "SELECT revoked_at FROM stream_keys WHERE id = %s", revoked.id)["revoked_at"] == PAST
    (ended,) = api.get("/streams?status=ended&path=live/cam7").json["streams"]
    assert ended["broadcaster"] == {"id": str(broadcaster), "display_name": "Gone"}


def test_delete_again_changes_nothing(api, make_broadcaster, conn):
    path = f"/broadcasters/{make_broadcaster()}"
    assert api.delete(path).status_code == 204
    before = rows(conn, READ)
    assert api.delete(path).status_code == 204
    assert rows(conn, READ) == before


def test_the_id_of_a_deleted_broadcaster_is_taken(api, make_broadcaster):
    broadcaster = make_broadcaster()
    api.delete(f"/broadcasters/{broadcaster}")
    problem(api.post("/broadcasters", json={"id": str(broadcaster), "display_name": "x"}), "conflict", 409)


def test_a_deleted_broadcaster_gets_no_new_key(api, make_broadcaster):
    broadcaster = make_broadcaster()
    api.delete(f"/broadcasters/{broadcaster}")
    assert fields(api.post("/stream-keys", json={"broadcaster_id": str(broadcaster)})) == {"broadcaster_id"}


class TestWithAMediaServer(WithAMediaServer):
    """What becomes of those who publish for a broadcaster."""

    @pytest.mark.parametrize("way", ["disabled", "deleted"])
    def test_all_that_it_publishes_is_closed(self, way, api, fake, make_broadcaster, make_key, media_server, conn):
        broadcaster = make_broadcaster()
        live, waiting = make_key(broadcaster_id=broadcaster), make_key(broadcaster_id=broadcaster)
        publisher = fake.publish("live/a", connection_id=media_server.go_live(live, "live/a"))
        newcomer = fake.publish("live/b", live=False)
        assert media_server.ask(waiting, "live/b", id=newcomer.auth_id).status_code == 200
        other = fake.publish("live/c", connection_id=media_server.go_live(make_key(), "live/c"))
        if way == "disabled":
            api.patch(f"/broadcasters/{broadcaster}", json={"disabled": True})
        else:
            api.delete(f"/broadcasters/{broadcaster}")
        until(lambda: len(rows(conn, "SELECT 1 AS x FROM streams WHERE kicked_at IS NOT NULL")) == 2, 3)
        assert sorted(fake.kicks) == sorted([publisher.source_id, newcomer.source_id])
        assert other.is_live

    def test_the_answer_waits_for_no_media_server(self, api, fake, make_broadcaster, make_key, media_server):
        broadcaster = make_broadcaster()
        for number in range(5):
            media_server.go_live(make_key(broadcaster_id=broadcaster), f"live/{number}")
        fake.hang()
        began = time.monotonic()
        assert api.delete(f"/broadcasters/{broadcaster}").status_code == 204
        assert time.monotonic() - began < 1
