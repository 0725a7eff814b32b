"""Streams: the live list and its cache, history, one stream, stop."""

import datetime
import json
import re
import time
import uuid
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import blueprints
from streamorch.problems import Problem
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect
from tests.blueprints import FUTURE, NOW, PAST, TIME, WithAMediaServer, fields, only, problem, rows, text_of
from tests.conftest import Api, MediaServer
from tests.fake_mediamtx import recording
from tests.test_leader import until

PATH = "live/cam7"

pytestmark = pytest.mark.usefixtures("lane")
ALL = "SELECT * FROM streams ORDER BY claimed_at"
MEMBERS = {
    "id",
    "stream_key_id",
    "label",
    "broadcaster",
    "node",
    "path",
    "status",
    "end_reason",
    "claimed_at",
    "started_at",
    "ended_at",
    "duration_seconds",
    "interrupted_at",
    "source_type",
    "source_id",
    "protocol",
    "metadata",
    "recording_ref",
    "viewers",
    "media",
    "replaces",
    "replaced_by",
    "urls",
}
BY_ID = MEMBERS | {"bytes", "bitrate", "tracks", "remote_address", "kick"}
URLS = {
    "hls": f"http://localhost:8888/{PATH}/index.m3u8",
    "webrtc": f"http://localhost:8889/{PATH}/whep",
    "rtmp": f"rtmp://localhost/{PATH}",
    "rtsp": f"rtsp://localhost:8554/{PATH}",
    "srt": f"srt://localhost:8890?streamid=read:{PATH}",
    "thumbnail": None,
}


def close_database(app):
    app.extensions["streamorch"].database.close()


@pytest.fixture
def version(conn):
    """The version of the live list, read when called."""
    return lambda: only(conn, "SELECT version FROM live_list")["version"]


@pytest.fixture
def make_stream(conn, make_key):
    """Insert a stream that ended an hour ago; the columns given override the defaults."""

    def make(key=None, **columns):
        row = {
            "id": uuid.uuid4(),
            "stream_key_id": (key or make_key()).id,
            "node": "default",
            "path": PATH,
            "protocol": "rtmp",
            "auth_id": str(uuid.uuid4()),
            "claimed_at": PAST,
            "lease_expires_at": PAST,
            "started_at": PAST,
            "ended_at": PAST,
            "end_reason": "disconnected",
        } | columns
        conn.execute(
            """
            INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at,
                                 started_at, ended_at, end_reason)
            VALUES (%(id)s, %(stream_key_id)s, %(node)s, %(path)s, %(protocol)s, %(auth_id)s, %(claimed_at)s,
                    %(lease_expires_at)s, %(started_at)s, %(ended_at)s, %(end_reason)s)
            """,
            row,
        )
        return row["id"]

    return make


def listed(answer):
    assert answer.status_code == 200, answer.text
    assert answer.json["count"] == len(answer.json["streams"])
    return [uuid.UUID(item["id"]) for item in answer.json["streams"]]


# --- one stream ---


def test_a_live_stream_is_shown_with_all_its_members(api, media_server, make_key, make_broadcaster, conn):
    broadcaster = make_broadcaster(display_name="Tävling")
    key = make_key(label="Cam 7", broadcaster_id=broadcaster, metadata='{"b": [1.5, null], "a": "ü"}')
    connection_id = media_server.go_live(key)
    row = only(conn, ALL)
    expected = {
        "id": str(row["id"]),
        "stream_key_id": str(key.id),
        "label": "Cam 7",
        "broadcaster": {"id": str(broadcaster), "display_name": "Tävling"},
        "node": "default",
        "path": PATH,
        "status": "active",
        "end_reason": None,
        "claimed_at": text_of(row["claimed_at"]),
        "started_at": text_of(row["started_at"]),
        "ended_at": None,
        "duration_seconds": None,
        "interrupted_at": None,
        "source_type": "rtmpConn",
        "source_id": connection_id,
        "protocol": "rtmp",
        "metadata": {"a": "ü", "b": [1.5, None]},
        "recording_ref": None,
        "viewers": None,
        "media": None,
        "replaces": None,
        "replaced_by": None,
        "urls": URLS,
    }
    assert api.get("/streams").json["streams"] == [expected]
    assert api.get("/streams?path=" + PATH).json["streams"] == [expected]
    assert api.get("/streams?status=all").json["streams"] == [expected]
    answer = api.get(f"/streams/{row['id']}")
    more: dict[str, Any] = {"bytes": None, "bitrate": None, "tracks": [], "remote_address": "192.0.2.7", "kick": None}
    assert (answer.status_code, answer.json) == (200, expected | more)
    assert answer.json.keys() == BY_ID
    assert "Tävling" in answer.text  # UTF-8 as it is


def test_a_stream_is_shown_in_every_status(api, media_server, make_key, conn):
    media_server.ask(make_key(), id="c1", protocol="srt")
    row = only(conn, ALL)
    pending = api.get(f"/streams/{row['id']}").json
    assert pending.keys() == BY_ID
    assert (pending["status"], pending["started_at"], pending["duration_seconds"]) == ("pending", None, None)
    assert (pending["source_id"], pending["source_type"], pending["protocol"]) == ("c1", None, "srt")
    assert pending["urls"] == URLS
    media_server.ready("c1", source_type="srtConn")
    conn.execute("UPDATE streams SET started_at = started_at - interval '61.9 seconds'")
    assert api.get(f"/streams/{row['id']}").json["duration_seconds"] is None
    media_server.not_ready("c1", source_type="srtConn")
    ended = api.get(f"/streams/{row['id']}").json
    assert (ended["status"], ended["end_reason"]) == ("ended", "disconnected")
    assert ended["duration_seconds"] in (61, 62)
    assert ended["ended_at"] == text_of(only(conn, ALL)["ended_at"])
    assert ended["urls"] == URLS


def test_a_duration_is_whole_seconds_and_null_without_a_start(api, make_stream):
    second = datetime.timedelta(seconds=1)
    for started_at, ended_at, reason, duration in (
        (PAST, PAST + 2.999 * second, "disconnected", 2),
        (PAST, PAST, "disconnected", 0),
        (PAST, PAST - second, "disconnected", 0),  # a clock that was set back
        (None, PAST, "never_started", None),
    ):
        stream_id = make_stream(started_at=started_at, ended_at=ended_at, end_reason=reason)
        assert api.get(f"/streams/{stream_id}").json["duration_seconds"] == duration


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_unknown_stream_is_not_found(method, api):
    problem(api(method, f"/streams/{uuid.uuid4()}", json={}), "not-found", 404)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("text", ["x", "123", uuid.uuid4().hex, "{" + str(uuid.uuid4()) + "}", "a" * 36, "0%00"])
def test_a_malformed_id_is_named(method, text, api):
    assert fields(api(method, f"/streams/{text}", json={})) == {"id"}


def test_an_id_may_be_upper_case_and_is_answered_in_lower(api, make_stream):
    stream_id = make_stream()
    assert api.get(f"/streams/{str(stream_id).upper()}").json["id"] == str(stream_id)


# --- PATCH ---


def test_metadata_and_recording_ref_can_be_replaced(api, make_stream, conn):
    stream_id = make_stream()
    read = "SELECT metadata::text, recording_ref FROM streams"
    answer = api.patch(f"/streams/{stream_id}", json={"metadata": {"a": {"b": 1}}, "recording_ref": "s3://x/1.mp4"})
    assert answer.status_code == 200
    assert answer.json.keys() == BY_ID
    assert (answer.json["metadata"], answer.json["recording_ref"]) == ({"a": {"b": 1}}, "s3://x/1.mp4")
    assert api.patch(f"/streams/{stream_id}", json={"metadata": {"c": None}}).json["metadata"] == {"c": None}
    assert only(conn, read) == {"metadata": '{"c": null}', "recording_ref": "s3://x/1.mp4"}
    assert api.patch(f"/streams/{stream_id}", json={"recording_ref": None}).json["recording_ref"] is None
    assert api.patch(f"/streams/{stream_id}", json={"metadata": {}}).json["metadata"] == {}
    assert only(conn, read) == {"metadata": "{}", "recording_ref": None}


def test_unknown_members_change_nothing(api, make_stream, conn):
    stream_id = make_stream()
    before = rows(conn, ALL)
    answer = api.patch(f"/streams/{stream_id}", json={"path": "x", "status": "active", "end_reason": 1, "new": []})
    assert answer.status_code == 200
    assert api.patch(f"/streams/{stream_id}", json={}).status_code == 200
    assert rows(conn, ALL) == before


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"metadata": None}, {"metadata"}),
        ({"metadata": []}, {"metadata"}),
        ({"metadata": "x"}, {"metadata"}),
        ({"recording_ref": 7}, {"recording_ref"}),
        ({"recording_ref": "x" * 513}, {"recording_ref"}),
        ({"recording_ref": "a\x00b"}, {"recording_ref"}),
        ({"metadata": {"a": "\x00"}, "recording_ref": []}, {"metadata", "recording_ref"}),
        ({"metadata": {"a": "x" * 17000}}, {"metadata"}),
    ],
)
def test_a_wrong_member_is_named_and_nothing_changed(body, named, api, make_stream, conn):
    stream_id = make_stream()
    before = rows(conn, ALL)
    assert fields(api.patch(f"/streams/{stream_id}", json=body)) == named
    assert (
        fields(api.patch(f"/streams/{stream_id}", json={"metadata": {"new": 1}, "recording_ref": "y"} | body)) == named
    )
    assert rows(conn, ALL) == before


def test_a_recording_ref_may_have_512_characters(api, make_stream):
    reference = "ü" * 512
    assert api.patch(f"/streams/{make_stream()}", json={"recording_ref": reference}).json["recording_ref"] == reference


# --- DELETE: stop and hold ---


def test_stop_ends_the_stream_and_holds_its_key(api, media_server, make_key, conn, version):
    key = make_key()
    connection_id = media_server.go_live(key)
    stream_id = only(conn, ALL)["id"]
    before = version()
    answer = api.delete(f"/streams/{stream_id}")
    assert (answer.status_code, answer.data) == (204, b"")
    stream = only(conn, ALL)
    assert stream["end_reason"] == "stopped"
    hold = only(conn, "SELECT hold_until, hold_until - clock_timestamp() AS left FROM stream_keys")
    assert 25 < hold["left"].total_seconds() <= 30
    assert hold["hold_until"] - stream["ended_at"] == datetime.timedelta(seconds=30)
    assert version() == before + 1
    assert api.get("/streams").json["count"] == 0
    problem(media_server.ask(key), "stream-stopped", 401)
    problem(media_server.ready(connection_id), "stream-not-found", 404)
    assert api.get(f"/stream-keys/{key.id}").json["hold_until"] == text_of(hold["hold_until"])


def test_stop_again_changes_nothing(api, media_server, make_key, conn, version):
    media_server.go_live(make_key())
    stream_id = only(conn, ALL)["id"]
    api.delete(f"/streams/{stream_id}")
    read = "SELECT s.*, k.hold_until FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id"
    before = rows(conn, read), version()
    assert api.delete(f"/streams/{stream_id}?hold_seconds=300").status_code == 204
    assert (rows(conn, read), version()) == before


def test_a_hold_can_be_lifted(api, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    api.delete(f"/streams/{only(conn, ALL)['id']}?hold_seconds=3600")
    problem(media_server.ask(key), "stream-stopped", 401)
    assert api.patch(f"/stream-keys/{key.id}", json={"hold_until": None}).json["hold_until"] is None
    assert media_server.ask(key).status_code == 200


def test_a_hold_ends_by_itself(api, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    api.delete(f"/streams/{only(conn, ALL)['id']}?hold_seconds=1")
    conn.execute("UPDATE stream_keys SET hold_until = hold_until - interval '1 second'")
    assert api.get(f"/stream-keys/{key.id}").json["hold_until"] is None
    assert media_server.ask(key).status_code == 200


def test_without_a_hold_the_key_may_publish_at_once(api, media_server, make_key, conn):
    key = make_key(takeover="never")
    media_server.go_live(key)
    assert api.delete(f"/streams/{only(conn, ALL)['id']}?hold_seconds=0").status_code == 204
    assert only(conn, "SELECT hold_until FROM stream_keys")["hold_until"] is None
    assert media_server.ask(key, "live/elsewhere").status_code == 200


@pytest.mark.parametrize("seconds", [1, 30, 86400])
def test_a_hold_lasts_as_asked(seconds, api, media_server, make_key, conn):
    media_server.go_live(make_key())
    assert api.delete(f"/streams/{only(conn, ALL)['id']}?hold_seconds={seconds}").status_code == 204
    read = "SELECT k.hold_until - s.ended_at AS hold FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id"
    assert only(conn, read)["hold"].total_seconds() == seconds


@pytest.mark.parametrize("text", ["-1", "86401", "x", "1.5", "+1", "%C2%B2", "1e3", "99999999999999999999"])
def test_a_hold_out_of_bounds_is_named_and_stops_nothing(text, api, media_server, make_key, conn):
    media_server.go_live(make_key())
    stream_id = only(conn, ALL)["id"]
    assert fields(api.delete(f"/streams/{stream_id}?hold_seconds={text}")) == {"hold_seconds"}
    assert only(conn, ALL)["ended_at"] is None


def test_a_longer_hold_is_not_shortened_by_a_stop(api, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    conn.execute("UPDATE stream_keys SET hold_until = %s", [FUTURE])
    api.delete(f"/streams/{only(conn, ALL)['id']}")
    assert only(conn, "SELECT hold_until FROM stream_keys")["hold_until"] == FUTURE


def test_a_pending_stream_can_be_stopped(api, media_server, make_key, conn):
    media_server.ask(make_key(), id="c1")
    assert api.delete(f"/streams/{only(conn, ALL)['id']}").status_code == 204
    stream = only(conn, ALL)
    assert (stream["end_reason"], stream["started_at"]) == ("stopped", None)
    problem(media_server.ready("c1"), "stream-not-found", 404)


@pytest.mark.parametrize(("seconds", "newcomer_ends_as"), [(30, "stopped"), (0, None)])
def test_a_newcomer_that_waits_is_stopped_too_when_there_is_a_hold(
    seconds, newcomer_ends_as, api, media_server, make_key, conn
):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    old = rows(conn, ALL)[0]
    api.delete(f"/streams/{old['id']}?hold_seconds={seconds}")
    assert [row["end_reason"] for row in rows(conn, ALL)] == ["stopped", newcomer_ends_as]


def test_stopping_a_newcomer_leaves_the_live_stream_alone(api, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    newcomer = rows(conn, ALL)[1]
    api.delete(f"/streams/{newcomer['id']}")
    assert [row["end_reason"] for row in rows(conn, ALL)] == [None, "stopped"]
    problem(media_server.ask(key), "stream-stopped", 401)


@pytest.mark.parametrize("reason", ["revoked", "stopped"])
def test_what_was_never_live_is_no_history_unless_its_reason_is_asked_for(reason, api, media_server, make_key, conn):
    key = make_key()
    media_server.ask(key)
    if reason == "revoked":
        api.delete(f"/stream-keys/{key.id}")
    else:
        api.delete(f"/streams/{only(conn, ALL)['id']}")
    assert api.get("/streams?status=ended").json["count"] == 0
    assert api.get(f"/streams?status=ended&end_reason={reason}").json["count"] == 1


def test_a_stopped_stream_does_not_hold_other_keys(api, media_server, make_key, make_broadcaster, conn):
    broadcaster = make_broadcaster()
    media_server.go_live(make_key(broadcaster_id=broadcaster))
    api.delete(f"/streams/{only(conn, ALL)['id']}")
    media_server.go_live(make_key(broadcaster_id=broadcaster))


# --- who came after whom ---


def test_a_takeover_is_told_by_both_streams(api, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    media_server.ask(key, id="new")
    old, new = (row["id"] for row in rows(conn, ALL))
    assert api.get(f"/streams/{new}").json["replaces"] == str(old)
    assert api.get(f"/streams/{old}").json["replaced_by"] is None  # nothing is certain yet
    media_server.ready("new")
    shown = api.get(f"/streams/{old}").json
    assert (shown["replaced_by"], shown["end_reason"]) == (str(new), "superseded")
    assert [uuid.UUID(item["id"]) for item in api.get("/streams").json["streams"]] == [new]


@pytest.mark.parametrize(
    ("seconds", "path", "is_same_key", "reason", "follows"),
    [
        (59, PATH, True, "disconnected", True),
        (61, PATH, True, "disconnected", False),
        (5, "live/other", True, "disconnected", False),
        (5, PATH, False, "disconnected", False),
        (5, PATH, True, "stopped", False),
        (5, PATH, True, "server_lost", False),
    ],
)
def test_a_watch_page_can_follow_a_publisher_that_returns(
    seconds, path, is_same_key, reason, follows, api, media_server, make_key, make_stream, conn
):
    key = make_key()
    ended_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    old = make_stream(key, ended_at=ended_at, started_at=PAST, end_reason=reason)
    media_server.go_live(key if is_same_key else make_key(), path)
    new = only(conn, "SELECT id FROM streams WHERE ended_at IS NULL")["id"]
    assert api.get(f"/streams/{old}").json["replaced_by"] == (str(new) if follows else None)


def test_only_the_last_of_several_is_replaced(api, media_server, make_key, conn):
    key = make_key()
    for _ in range(3):
        media_server.not_ready(media_server.go_live(key))
    first, second, third = rows(conn, ALL)
    assert [row["replaced_by"] for row in (first, second, third)] == [second["id"], third["id"], None]


# --- the live list ---


def test_the_live_list_of_nobody_is_empty(api):
    answer = api.get("/streams")
    assert answer.json.keys() == {"streams", "count", "stale", "as_of"}
    assert (answer.json["streams"], answer.json["count"], answer.json["stale"]) == ([], 0, False)
    assert re.fullmatch(TIME, answer.json["as_of"])
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["ETag"].startswith('"')  # a strong one


def test_the_live_list_holds_all_active_streams_newest_first(api, make_stream, make_key):
    live = []
    for number in range(120):
        started_at = PAST + datetime.timedelta(seconds=number // 2)  # two of each moment
        stream_id = make_stream(path=f"live/{number}", started_at=started_at, ended_at=None, end_reason=None)
        live.append((started_at, stream_id))
    make_stream()
    make_stream(path="p", started_at=None, ended_at=None, end_reason=None)
    answer = api.get("/streams")
    assert listed(answer) == [stream_id for _, stream_id in sorted(live, reverse=True)]
    assert listed(api.get("/streams?node=default")) == listed(answer)
    assert listed(api.get("/streams?status=active")) == listed(answer)
    assert all(item.keys() == MEMBERS for item in answer.json["streams"])


def test_the_live_list_follows_each_event(api, media_server, make_key):
    key = make_key()
    assert api.get("/streams").json["count"] == 0
    media_server.ask(key, id="c1")
    assert api.get("/streams").json["count"] == 0
    media_server.ready("c1")
    assert api.get("/streams").json["count"] == 1
    media_server.not_ready("c1")
    assert api.get("/streams").json["count"] == 0


def test_head_of_the_live_list_has_its_headers_and_no_body(api, media_server, make_key):
    media_server.go_live(make_key())
    full, head = api.get("/streams"), api("HEAD", "/streams")
    assert (head.status_code, head.data) == (200, b"")
    for name in ("ETag", "Cache-Control", "Content-Type", "Content-Length"):
        assert head.headers[name] == full.headers[name]


def test_an_unchanged_live_list_is_304(api, media_server, make_key):
    media_server.go_live(make_key())
    full = api.get("/streams")
    answer = api.get("/streams", headers={"If-None-Match": full.headers["ETag"]})
    assert (answer.status_code, answer.data) == (304, b"")
    assert answer.headers["ETag"] == full.headers["ETag"]
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert api("HEAD", "/streams", headers={"If-None-Match": full.headers["ETag"]}).status_code == 304
    assert api.get("/streams").data == full.data


@pytest.mark.parametrize(
    ("template", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"other", W/{}, "more"', 304),
        ('"other",{}', 304),
        ("*", 304),
        ('"other"', 200),
        ('W/"other"', 200),
        ("", 200),
        ("nonsense", 200),
    ],
)
def test_if_none_match_is_compared_weakly_in_lists_and_with_a_star(template, status, api):
    full = api.get("/streams")
    answer = api.get("/streams", headers={"If-None-Match": template.format(full.headers["ETag"])})
    assert answer.status_code == status


def test_the_etag_changes_with_the_list_and_only_with_it(api, media_server, make_key):
    key = make_key()
    etags = []

    def look():
        etags.append(api.get("/streams").headers["ETag"])

    look()
    media_server.ask(key, id="c1")
    look()
    media_server.ready("c1")
    look()
    media_server.ready("c1")
    look()
    media_server.not_ready("c1")
    look()
    assert etags[0] == etags[1] != etags[2] == etags[3] != etags[4] != etags[0]
    assert api.get("/streams", headers={"If-None-Match": etags[2]}).status_code == 200


def test_two_workers_give_the_same_bytes_for_one_etag(make_app, media_server, api, make_key):
    other = Api(make_app().test_client())
    for number in range(3):
        media_server.go_live(make_key(metadata='{"a": 1.0, "b": {"z": [], "y": null}}'), f"live/{number}")
        mine, theirs = api.get("/streams"), other.get("/streams")
        assert mine.headers["ETag"] == theirs.headers["ETag"]
        assert mine.data == theirs.data


HAVE_READ_THE_VERSION = """
    SELECT count(*) AS workers FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'idle' AND query LIKE '%%streams.version%%'
"""


def test_of_several_who_see_a_change_one_builds_and_the_others_wait(app, api, media_server, make_key, conn):
    api.get("/streams")
    media_server.go_live(make_key())
    with ThreadPoolExecutor(2) as threads:
        with app.extensions["streamorch"].live.building:
            answers = [threads.submit(Api(app.test_client()).get, "/streams") for _ in range(2)]
            deadline = time.monotonic() + 5
            while only(conn, HAVE_READ_THE_VERSION)["workers"] < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        first, second = (answer.result(10) for answer in answers)
    assert len(listed(first)) == 1
    assert first.data == second.data


def test_other_urls_make_another_etag(make_app, media_server, api, make_key):
    media_server.go_live(make_key())
    other = Api(make_app(MEDIAMTX_PUBLIC_URL="https://media.example.org").test_client())
    mine, theirs = api.get("/streams"), other.get("/streams")
    assert mine.data != theirs.data
    assert mine.headers["ETag"] != theirs.headers["ETag"]


@pytest.mark.own_database
def test_another_database_makes_another_etag(api, conn):
    before = api.get("/streams").headers["ETag"]
    conn.execute("UPDATE live_list SET epoch = 'other'")
    assert api.get("/streams").headers["ETag"] != before


@pytest.mark.own_database
def test_an_unchanged_list_is_read_with_one_statement(api, conn, app):
    api.get("/streams")
    conn.execute("DROP TABLE departures, streams CASCADE")  # nothing of them is read
    assert api.get("/streams").status_code == 200


FILTERS = ["broadcaster_id", "stream_key_id", "path", "protocol", "node"]


@pytest.mark.parametrize("name", FILTERS)
def test_the_live_list_can_be_filtered(name, api, media_server, make_key, conn):
    one, other = make_key(), make_key()
    media_server.ask(one, "live/one", id="c1", protocol="srt")
    media_server.ready("c1", "live/one", "srtConn")
    media_server.go_live(other, "live/other")
    conn.execute("UPDATE streams SET node = 'second' WHERE path = 'live/other'")
    value = {
        "broadcaster_id": one.broadcaster_id,
        "stream_key_id": one.id,
        "path": "live/one",
        "protocol": "srt",
        "node": "default",
    }[name]
    answer = api.get(f"/streams?{name}={value}")
    assert [item["path"] for item in answer.json["streams"]] == ["live/one"]
    assert answer.json.keys() == {"streams", "count", "stale", "as_of"}
    assert (answer.json["stale"], answer.json["count"]) == (False, 1)
    assert re.fullmatch(TIME, answer.json["as_of"])
    assert "ETag" not in answer.headers
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert api.get(f"/streams?{name}={value}", headers={"If-None-Match": "*"}).status_code == 200


@pytest.mark.parametrize("query", ["", "status=active", "unknown=1", "path=", "status=&since="])
def test_a_query_that_filters_nothing_gives_the_list_with_its_etag(query, api):
    assert "ETag" in api.get(f"/streams?{query}").headers


# --- the version ---


def test_what_the_list_shows_bumps_the_version_once(api, media_server, make_key, version, conn):
    key, stopped, revoked, disabled, expired, deleted = (make_key() for _ in range(6))
    for number, other in enumerate((stopped, revoked, disabled, expired, deleted)):
        media_server.go_live(other, f"live/{number}")
    media_server.go_live(key)
    stream_id = only(conn, "SELECT id FROM streams WHERE path = %s", PATH)["id"]
    stopped_id = only(conn, "SELECT id FROM streams WHERE path = 'live/0'")["id"]
    for method, path, body in (
        ("PATCH", f"/streams/{stream_id}", {"metadata": {"a": 1}}),
        ("PATCH", f"/streams/{stream_id}", {"recording_ref": "x"}),
        ("PATCH", f"/stream-keys/{key.id}", {"label": "new"}),
        ("PATCH", f"/broadcasters/{key.broadcaster_id}", {"display_name": "new"}),
        ("DELETE", f"/streams/{stopped_id}", None),
        ("DELETE", f"/stream-keys/{revoked.id}", None),
        ("PATCH", f"/stream-keys/{disabled.id}", {"disabled": True}),
        ("PATCH", f"/stream-keys/{expired.id}", {"expires_at": "2020-01-01T00:00:00Z"}),
        ("DELETE", f"/broadcasters/{deleted.broadcaster_id}", None),
        ("PATCH", f"/broadcasters/{key.broadcaster_id}", {"disabled": True}),
    ):
        before = version(), api.get("/streams").json["streams"]
        assert api(method, path, json=body).status_code in (200, 204)
        after = version(), api.get("/streams").json["streams"]
        assert after[0] == before[0] + 1, (method, path, body)
        assert after[1] != before[1]


QUIET = {
    "a claim": lambda ids: ("POST", "/auth", None),
    "a broadcaster's metadata": lambda ids: ("PATCH", f"/broadcasters/{ids['broadcaster']}", {"metadata": {"a": 1}}),
    "a broadcaster without a live stream": lambda ids: ("PATCH", f"/broadcasters/{ids['idle']}", {"display_name": "x"}),
    "disabling one without a live stream": lambda ids: ("PATCH", f"/broadcasters/{ids['idle']}", {"disabled": True}),
    "deleting one without a live stream": lambda ids: ("DELETE", f"/broadcasters/{ids['idle']}", None),
    "a new broadcaster": lambda ids: ("POST", "/broadcasters", {"display_name": "x"}),
    "a new key": lambda ids: ("POST", "/stream-keys", {"broadcaster_id": str(ids["broadcaster"])}),
    "a key's metadata": lambda ids: ("PATCH", f"/stream-keys/{ids['key']}", {"metadata": {"a": 1}}),
    "a key's path": lambda ids: ("PATCH", f"/stream-keys/{ids['key']}", {"path": PATH}),
    "a key's hold": lambda ids: ("PATCH", f"/stream-keys/{ids['key']}", {"hold_until": None}),
    "an idle key's label": lambda ids: ("PATCH", f"/stream-keys/{ids['idle_key']}", {"label": "x"}),
    "an idle key's end": lambda ids: ("DELETE", f"/stream-keys/{ids['idle_key']}", None),
    "an ended stream's metadata": lambda ids: ("PATCH", f"/streams/{ids['ended']}", {"metadata": {"a": 1}}),
    "stopping an ended stream": lambda ids: ("DELETE", f"/streams/{ids['ended']}", None),
    "stopping a pending stream": lambda ids: ("DELETE", f"/streams/{ids['pending']}", None),
    "an empty change of a live stream": lambda ids: ("PATCH", f"/streams/{ids['live']}", {}),
}


@pytest.mark.parametrize("request_of", QUIET.values(), ids=QUIET)
def test_what_the_list_does_not_show_bumps_no_version(
    request_of, api, media_server, make_key, make_broadcaster, make_stream, conn, version
):
    key = make_key()
    media_server.go_live(key)
    live = only(conn, ALL)["id"]
    media_server.ask(make_key(), "live/pending")
    pending = only(conn, "SELECT id FROM streams WHERE started_at IS NULL")["id"]
    idle = make_broadcaster()
    ids = {"key": key.id, "broadcaster": key.broadcaster_id, "live": live, "pending": pending, "idle": idle}
    ids |= {"idle_key": make_key(broadcaster_id=idle).id, "ended": make_stream()}
    before = version(), api.get("/streams").json["streams"]
    method, path, body = request_of(ids)
    answer = api(method, path, json=body) if path != "/auth" else media_server.ask(make_key(), "live/new")
    assert answer.status_code < 300, answer.text
    assert (version(), api.get("/streams").json["streams"]) == before


# --- the database away ---


def test_a_list_without_the_database_is_the_last_one_told_as_such(app, api, media_server, make_key):
    media_server.go_live(make_key())
    full = api.get("/streams")
    seen = api.get("/streams")
    close_database(app)
    for headers in ({}, {"If-None-Match": full.headers["ETag"]}, {"If-None-Match": "*"}):
        answer = api.get("/streams", headers=headers)
        assert answer.status_code == 200
        assert answer.json["streams"] == full.json["streams"]
        assert (answer.json["stale"], answer.json["count"]) == (True, 1)
        assert seen.json["as_of"] < answer.json["as_of"] <= text_of(datetime.datetime.now(datetime.UTC))
        assert re.fullmatch(TIME, answer.json["as_of"])
        assert "ETag" not in answer.headers
        assert answer.headers["Cache-Control"] == "private, no-cache"


def test_after_thirty_seconds_without_the_database_the_list_is_503(app, api):
    api.get("/streams")
    close_database(app)
    live = app.extensions["streamorch"].live
    live.seen = (live.seen[0] - 25, live.seen[1])
    assert api.get("/streams").json["stale"] is True
    live.seen = (live.seen[0] - 6, live.seen[1])
    problem(api.get("/streams"), "database-unavailable", 503)


def test_without_the_database_from_the_start_the_list_is_503(app, api):
    close_database(app)
    problem(api.get("/streams"), "database-unavailable", 503)


def test_only_the_unfiltered_live_list_goes_on_without_the_database(app, api):
    api.get("/streams")
    close_database(app)
    for path in ("/streams?path=x", "/streams?status=all", f"/streams/{uuid.uuid4()}"):
        problem(api.get(path), "database-unavailable", 503)


# --- history ---


@pytest.fixture
def one_of_each(make_stream, make_key):
    """One stream of each status and reason, by name."""
    ids = {
        reason: make_stream(end_reason=reason)
        for reason in ("disconnected", "superseded", "revoked", "expired", "disabled", "stopped")
    }
    ids["server_restarted"] = make_stream(end_reason="server_restarted")
    ids["server_lost"] = make_stream(end_reason="server_lost")
    ids["never_started"] = make_stream(end_reason="never_started", started_at=None)
    ids["active"] = make_stream(path="live/active", ended_at=None, end_reason=None)
    ids["pending"] = make_stream(path="live/pending", started_at=None, ended_at=None, end_reason=None)
    return ids


def test_history_is_of_a_status(api, one_of_each):
    everything = set(one_of_each.values())
    unasked = {one_of_each["active"], one_of_each["pending"], one_of_each["never_started"]}
    assert set(listed(api.get("/streams?status=ended"))) == everything - unasked
    assert listed(api.get("/streams?status=pending")) == [one_of_each["pending"]]
    assert set(listed(api.get("/streams?status=all"))) == everything
    answer = api.get("/streams?status=ended")
    assert answer.json.keys() == {"streams", "count", "next_cursor"}
    assert answer.json["next_cursor"] is None
    assert all(item.keys() == MEMBERS for item in answer.json["streams"])
    assert "ETag" not in answer.headers


REASONS = ["never_started", "disconnected", "superseded", "revoked", "expired", "disabled", "stopped"]


@pytest.mark.parametrize("reason", [*REASONS, "server_restarted", "server_lost"])
def test_history_is_of_an_end_reason(reason, api, one_of_each):
    for query in (f"end_reason={reason}", f"status=ended&end_reason={reason}", f"status=all&end_reason={reason}"):
        assert listed(api.get(f"/streams?{query}")) == [one_of_each[reason]]
    assert listed(api.get(f"/streams?status=pending&end_reason={reason}")) == []


def test_history_is_last_claimed_first(api, make_stream):
    second = datetime.timedelta(seconds=1)
    made = [(PAST + number * second, make_stream(claimed_at=PAST + number * second)) for number in (3, 1, 2, 2, 0)]
    assert listed(api.get("/streams?status=ended")) == [stream_id for _, stream_id in sorted(made, reverse=True)]


@pytest.mark.parametrize("name", FILTERS)
def test_history_can_be_filtered(name, api, make_stream, make_key):
    key = make_key()
    wanted = make_stream(key, path="live/a", protocol="srt", node="a")
    make_stream(path="live/b", protocol="rtmp", node="b")
    values = {"broadcaster_id": key.broadcaster_id, "stream_key_id": key.id}
    value = values | {"path": "live/a", "protocol": "srt", "node": "a"}
    assert listed(api.get(f"/streams?status=ended&{name}={value[name]}")) == [wanted]
    assert listed(api.get(f"/streams?status=all&{name}={value[name]}&until=2020-01-01T00:00:00Z")) == []
    unknown = uuid.uuid4() if name.endswith("_id") else "unknown"
    assert listed(api.get(f"/streams?status=ended&{name}={unknown}")) == []


def test_history_is_since_and_until(api, make_stream):
    second = datetime.timedelta(seconds=1)
    first, middle, last = (make_stream(claimed_at=PAST + number * second) for number in range(3))
    moment = text_of(PAST + second)
    assert listed(api.get(f"/streams?status=ended&since={moment}")) == [last, middle]
    assert listed(api.get(f"/streams?status=ended&until={moment}")) == [first]
    end = text_of(PAST + 2 * second)
    assert listed(api.get(f"/streams?status=ended&since={moment}&until={end}")) == [middle]


@pytest.mark.parametrize("shape", ["%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%dT%H:%M:%S.%f"])
def test_a_time_may_have_any_offset(shape, api, make_stream):
    before, after = make_stream(claimed_at=PAST - datetime.timedelta(seconds=1)), make_stream(claimed_at=PAST)
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    text = PAST.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S.%f") + "+05:30"
    assert listed(api.get("/streams", query_string={"status": "ended", "since": text})) == [after]
    assert listed(api.get(f"/streams?status=ended&until={text}")) == [before]  # a + that was not encoded


def test_history_keeps_the_streams_of_a_deleted_broadcaster(api, make_stream, make_key):
    key = make_key()
    stream_id = make_stream(key)
    assert api.delete(f"/broadcasters/{key.broadcaster_id}").status_code == 204
    (shown,) = api.get(f"/streams?status=ended&broadcaster_id={key.broadcaster_id}").json["streams"]
    assert shown["broadcaster"] == {"id": str(key.broadcaster_id), "display_name": "Team 7"}
    assert api.get(f"/streams/{stream_id}").json["broadcaster"] == shown["broadcaster"]


# --- pages of history ---


def walk(api, path, limit):
    """All items page by page, each page's size checked."""
    found, cursor, sizes = [], None, []
    while True:
        answer = api.get(f"{path}&limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        items = listed(answer)
        found += items
        sizes.append(len(items))
        cursor = answer.json["next_cursor"]
        if cursor is None:
            return found, sizes


@pytest.mark.parametrize(("limit", "sizes"), [(10, [10, 10, 5]), (25, [25]), (24, [24, 1]), (1, [1] * 25)])
def test_history_comes_in_pages_with_ties_in_time(limit, sizes, api, make_stream, make_key):
    key = make_key()
    made = []
    for number in range(25):
        claimed_at = PAST + datetime.timedelta(microseconds=number // 4)
        made.append((claimed_at, make_stream(key, claimed_at=claimed_at)))
    expected = [stream_id for _, stream_id in sorted(made, reverse=True)]
    assert walk(api, "/streams?status=ended", limit) == (expected, sizes)


def test_a_page_holds_a_hundred_by_default_and_a_thousand_at_most(api, make_stream, make_key):
    key = make_key()
    for _ in range(101):
        make_stream(key)
    assert len(listed(api.get("/streams?status=ended"))) == 100
    assert len(listed(api.get("/streams?status=ended&limit=1000"))) == 101


def test_what_is_new_does_not_shift_the_pages(api, make_stream, make_key):
    key = make_key()
    old = {make_stream(key) for _ in range(6)}
    first = api.get("/streams?status=ended&limit=3")
    make_stream(key, claimed_at=NOW)
    second = api.get(f"/streams?status=ended&limit=4&cursor={first.json['next_cursor']}")
    assert {*listed(first), *listed(second)} == old


def test_a_cursor_is_bound_to_its_filters(api, make_stream, make_key):
    key = make_key()
    for _ in range(3):
        make_stream(key)
    cursor = api.get("/streams?status=ended&limit=1").json["next_cursor"]
    assert api.get(f"/streams?status=ended&limit=2&cursor={cursor}").status_code == 200  # the limit may change
    assert api.get(f"/streams?status=ended&cursor={cursor}&unknown=1").status_code == 200
    for query in (
        "status=all",
        f"status=ended&path={PATH}",
        f"status=ended&stream_key_id={key.id}",
        "end_reason=stopped",
    ):
        assert fields(api.get(f"/streams?{query}&cursor={cursor}")) == {"cursor"}


BAD_CURSORS = ["x", "%C3%BC", "e30", "W10", "====", "null", "WyJhIiwiYiIsImMiXQ", "-" * 1000]


@pytest.mark.parametrize("cursor", BAD_CURSORS)
def test_a_cursor_that_we_did_not_give_is_refused(cursor, api):
    assert fields(api.get(f"/streams?status=ended&cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=live", "status"),
        ("status=ACTIVE", "status"),
        ("end_reason=bored", "end_reason"),
        ("broadcaster_id=7", "broadcaster_id"),
        ("stream_key_id=x", "stream_key_id"),
        ("since=yesterday", "since"),
        ("since=2026-01-31", "since"),
        ("since=2026-01-31T12:00:00", "since"),
        ("until=2026-13-31T12:00:00Z", "until"),
        ("until=1700000000", "until"),
        ("cursor=x", "cursor"),
        ("path=a%00b", "path"),
        ("protocol=%00", "protocol"),
        ("node=a%00", "node"),
        ("status=ended&limit=0", "limit"),
        ("status=ended&limit=1001", "limit"),
        ("status=ended&limit=-1", "limit"),
        ("status=ended&limit=x", "limit"),
        ("status=ended&limit=1.0", "limit"),
        ("status=ended&limit=%D9%A1", "limit"),
    ],
)
def test_a_bad_parameter_is_named(query, field, api):
    assert fields(api.get(f"/streams?{query}")) == {field}


def test_unknown_parameters_are_ignored(api, make_stream):
    stream_id = make_stream()
    assert listed(api.get("/streams?status=ended&sort=asc&foo")) == [stream_id]
    assert listed(api.get("/streams?status=ended&path=&limit=&cursor=&since=")) == [stream_id]


FILTER_VALUES = st.dictionaries(st.sampled_from(FILTERS), st.none() | st.text(max_size=20) | st.uuids(), max_size=5)


@given(
    st.datetimes(datetime.datetime(2000, 1, 1), timezones=st.just(datetime.UTC)),
    st.uuids(),
    FILTER_VALUES,
    FILTER_VALUES,
)
def test_any_cursor_comes_back_to_its_own_filters_alone(moment, an_id, filters, others):
    cursor = blueprints.next_cursor(text_of(moment), an_id, filters)
    assert blueprints.after(cursor, filters) == (text_of(moment), str(an_id))
    if {name: value for name, value in filters.items() if value is not None} != {
        name: value for name, value in others.items() if value is not None
    }:
        with pytest.raises(Problem):
            blueprints.after(cursor, others)


@given(st.text(min_size=1, max_size=60) | st.binary(min_size=1, max_size=60).map(lambda raw: b64encode(raw).decode()))
def test_any_text_that_is_no_cursor_is_refused(text):
    with pytest.raises(Problem):
        blueprints.after(text, {})


# --- playback URLs as the settings say ---


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"MEDIAMTX_PUBLIC_URL": "https://media.example.org"},
            {
                "hls": f"https://media.example.org/{PATH}/index.m3u8",
                "webrtc": f"https://media.example.org/{PATH}/whep",
                "rtmp": f"rtmp://media.example.org/{PATH}",
                "rtsp": f"rtsp://media.example.org:8554/{PATH}",
                "srt": f"srt://media.example.org:8890?streamid=read:{PATH}",
                "thumbnail": None,
            },
        ),
        (
            {f"MEDIAMTX_{name}_URL": "off" for name in ("HLS", "WEBRTC", "RTMP", "RTSP", "SRT")},
            {"hls": "", "webrtc": "", "rtmp": None, "rtsp": None, "srt": None, "thumbnail": None},
        ),
    ],
)
def test_playback_urls_follow_the_settings(settings, expected, make_app, make_key):
    client = make_app(**settings).test_client()
    MediaServer(client).go_live(make_key())
    (shown,) = json.loads(Api(client).get("/streams").data)["streams"]
    assert shown["urls"] == expected


def test_no_list_holds_a_key(api, media_server, make_key, conn):
    key = make_key()
    media_server.ask(key, id="c1", query=f"pass={key.value}", user="u")
    media_server.ready("c1")
    for path in ("/streams", "/streams?status=all", f"/streams/{only(conn, ALL)['id']}", "/stream-keys"):
        assert key.value not in api.get(path).text
    dump = json.dumps(rows(conn, ALL) + rows(conn, "SELECT * FROM stream_keys"), default=repr)
    assert key.value not in dump


class TestWithAMediaServer(WithAMediaServer):
    """What is known of a stream from the media server, and what stopping it does there."""

    @pytest.fixture
    def publisher(self, fake, media_server, make_key):
        return fake.publish(PATH, connection_id=media_server.go_live(make_key()))

    @pytest.fixture
    def tick(self, app, conn):
        """One tick of the reconciler, so many seconds after the last."""
        of = app.extensions["streamorch"]
        with connect(of.settings.database_url) as patient:
            reconciler = Reconciler(of.settings, of.api)

            def do(*, after=0):
                conn.execute("UPDATE nodes SET api_seen_at = api_seen_at - make_interval(secs => %s)", [after])
                conn.execute(
                    "UPDATE stream_stats SET sampled_at = sampled_at - make_interval(secs => %(seconds)s),"
                    " moved_at = moved_at - make_interval(secs => %(seconds)s)",
                    {"seconds": after},
                )
                reconciler.tick(patient, force=True)

            yield do
            reconciler.resign(patient)

    def shown(self, api):
        (listed,) = api.get("/streams").json["streams"]
        one = api.get(f"/streams/{listed['id']}").json
        assert {name: one[name] for name in MEMBERS} == listed
        return one

    def test_viewers_media_bytes_bitrate_and_tracks_are_told(self, api, fake, publisher, tick):
        fake.read(PATH, n=3)
        fake.send(publisher, 1_000_000)
        tick()
        one = self.shown(api)
        assert (one["viewers"], one["media"], one["bytes"], one["bitrate"]) == (3, "flowing", 1_000_000, None)
        assert [track["codec"] for track in one["tracks"]] == recording("v1.20.1")["paths"]["rtmp"]["tracks"]
        assert one["tracks"][0]["properties"]
        fake.send(publisher, 1_000_000)
        tick(after=4)
        one = self.shown(api)
        assert (one["bytes"], one["media"]) == (2_000_000, "flowing")
        assert 1_800_000 < one["bitrate"] < 2_000_001
        tick(after=4)
        one = self.shown(api)
        assert (one["media"], one["bitrate"], one["bytes"]) == ("stalled", 0, 2_000_000)

    def test_the_list_follows_viewers_and_media(self, api, fake, publisher, tick):
        tick()
        etags = [api.get("/streams").headers["ETag"]]
        for step in (lambda: fake.read(PATH), lambda: None, lambda: fake.send(publisher, 1)):
            step()
            tick(after=2)
            etags.append(api.get("/streams").headers["ETag"])
        assert len(set(etags)) == 3 + 1 - 1  # viewers and stalled at once; nothing; flowing again
        assert etags[1] == etags[2]
        fake.send(publisher, 1000)
        tick(after=2)
        assert api.get("/streams").headers["ETag"] == etags[-1]

    def test_without_news_viewers_and_media_are_null(self, api, fake, publisher, tick, conn):
        fake.send(publisher, 100)
        tick()
        fake.answer(401)
        tick(after=60)
        one = self.shown(api)
        assert (one["viewers"], one["media"], one["bitrate"], one["bytes"]) == (None, None, None, 100)

    def test_a_stopped_stream_is_closed(self, api, fake, publisher, conn):
        stream_id = only(conn, ALL)["id"]
        assert api.get(f"/streams/{stream_id}").json["kick"] is None
        fake.hang("/v3/rtmpconns/kick")
        began = time.monotonic()
        assert api.delete(f"/streams/{stream_id}").status_code == 204
        assert time.monotonic() - began < 1
        assert api.get(f"/streams/{stream_id}").json["kick"] == "pending"
        assert publisher.is_live
        fake.heal()
        assert api.delete(f"/streams/{stream_id}").status_code == 204
        until(lambda: api.get(f"/streams/{stream_id}").json["kick"] == "done", 3)
        assert not publisher.is_live

    def test_a_hold_closes_the_newcomer_of_the_key_too(self, api, fake, media_server, make_key, conn):
        conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")
        key = make_key(takeover="always")
        old = fake.publish(PATH, connection_id=media_server.go_live(key))
        new = fake.publish(PATH, live=False)
        assert media_server.ask(key, id=new.auth_id).status_code == 200
        stream_id = rows(conn, ALL)[0]["id"]
        api.delete(f"/streams/{stream_id}")
        until(lambda: all(row["kicked_at"] for row in rows(conn, ALL)), 3)
        assert sorted(fake.kicks) == sorted([old.source_id, new.source_id])

    def test_stopping_a_newcomer_closes_it_alone(self, api, fake, media_server, make_key, conn):
        conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")
        key = make_key(takeover="always")
        old = fake.publish(PATH, connection_id=media_server.go_live(key))
        new = fake.publish(PATH, live=False)
        assert media_server.ask(key, id=new.auth_id).status_code == 200
        api.delete(f"/streams/{rows(conn, ALL)[1]['id']}")
        until(lambda: rows(conn, ALL)[1]["kicked_at"], 3)
        assert fake.kicks == [new.source_id]
        assert old.is_live
