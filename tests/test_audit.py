"""Who changed what: a row for each change, in its own transaction, whichever way it came."""

import json
import uuid
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from streamorch import keys
from streamorch.__main__ import main
from streamorch.repositories import Actor, audit, broadcasters, stream_keys, streams
from tests.blueprints import FUTURE, fields, only, problem, rows, text_of
from tests.conftest import API_SECRET
from tests.test_decisions import eventually

ROWS = "SELECT * FROM audit ORDER BY number"


def changes(api, **filters) -> list[dict[str, Any]]:
    """GET /audit, oldest first."""
    answer = api.get("/audit", query_string=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.get_json()["changes"]
    return found[::-1]


def facts(change):
    return change["kind"], change["action"], change["before"], change["after"]


@pytest.fixture
def owner(api):
    """A broadcaster made through the API."""
    return api.post("/broadcasters", json={"display_name": "Team 7"}).get_json()["id"]


def test_each_change_through_the_api_is_told_with_who_and_where_and_what_differs(api, owner, media_server, capsys):
    key = api.post("/stream-keys", json={"broadcaster_id": owner, "label": "cam", "metadata": {"a": 1}}).get_json()
    api.patch(f"/broadcasters/{owner}", json={"display_name": "Team 8"}, headers={"X-Request-ID": "change-1"})
    api.patch(f"/stream-keys/{key['id']}", json={"label": None, "path": "live/x", "metadata": {"a": 2}})
    connection_id = str(uuid.uuid4())
    media_server.ask(key["key_value"], "live/x", id=connection_id)
    media_server.ready(connection_id, "live/x")
    (stream,) = api.get("/streams").get_json()["streams"]
    api.patch(f"/streams/{stream['id']}", json={"recording_ref": "s3://x"})
    api.delete(f"/streams/{stream['id']}?hold_seconds=0")
    api.patch(f"/stream-keys/{key['id']}", json={"expires_at": text_of(FUTURE), "disabled": True})
    api.delete(f"/stream-keys/{key['id']}")
    api.delete(f"/broadcasters/{owner}")
    found = changes(api)
    revoked = api.get(f"/stream-keys/{key['id']}").get_json()
    assert [facts(change) for change in found] == [
        ("broadcaster", "create", {}, {"display_name": "Team 7", "metadata": {}, "disabled": False}),
        (
            "stream_key",
            "create",
            {},
            {
                "broadcaster_id": owner,
                "hint": key["hint"],
                "label": "cam",
                "path": None,
                "takeover": "stalled",
                "metadata": {"a": 1},
                "disabled": False,
                "expires_at": None,
                "hold_until": None,
                "revoked_at": None,
                "previous_hint": None,
                "previous_works_until": None,
                "rotated_at": None,
            },
        ),
        ("broadcaster", "update", {"display_name": "Team 7"}, {"display_name": "Team 8"}),
        (
            "stream_key",
            "update",
            {"label": "cam", "path": None, "metadata": {"a": 1}},
            {"label": None, "path": "live/x", "metadata": {"a": 2}},
        ),
        ("stream", "update", {"recording_ref": None}, {"recording_ref": "s3://x"}),
        ("stream", "stop", {"end_reason": None}, {"end_reason": "stopped"}),
        (
            "stream_key",
            "update",
            {"expires_at": None, "disabled": False},
            {"expires_at": text_of(FUTURE), "disabled": True},
        ),
        ("stream_key", "revoke", {"revoked_at": None}, {"revoked_at": found[7]["after"]["revoked_at"]}),
        ("broadcaster", "delete", {}, {}),
    ]
    assert revoked["status"] == 404  # with its broadcaster
    assert {(change["who"], change["address"]) for change in found} == {("API_SECRET", "127.0.0.1")}
    assert found[2]["request_id"] == "change-1"
    assert [change["subject_id"] for change in found[:2]] == [owner, key["id"]]
    assert len({change["request_id"] for change in found}) == 9


def test_a_stop_with_a_hold_tells_of_both(api, media_server, make_key):
    key = make_key()
    media_server.go_live(key)
    (stream,) = api.get("/streams").get_json()["streams"]
    api.delete(f"/streams/{stream['id']}")
    stop, hold = changes(api, who="API_SECRET")
    assert (stop["subject_id"], stop["action"]) == (stream["id"], "stop")
    assert (hold["subject_id"], hold["action"], hold["before"]) == (str(key.id), "update", {"hold_until": None})
    assert stop["request_id"] == hold["request_id"]


def test_what_changes_nothing_is_no_change(api, owner, make_key):
    key = make_key()
    before = len(changes(api))
    api.patch(f"/broadcasters/{owner}", json={"display_name": "Team 7"})
    api.patch(f"/stream-keys/{key.id}", json={})
    assert api.post("/broadcasters", json={"id": owner, "display_name": "Other"}).status_code == 409
    api.delete(f"/stream-keys/{key.id}")
    api.delete(f"/stream-keys/{key.id}")
    assert [change["action"] for change in changes(api)[before:]] == ["revoke"]


def test_claims_starts_and_ends_are_no_change_of_an_operator(api, media_server, make_key, conn):
    key = make_key()
    conn.execute("DELETE FROM audit")
    connection_id = media_server.go_live(key)
    media_server.not_ready(connection_id)
    assert rows(conn, ROWS) == []


def test_the_change_and_its_row_are_one_transaction(conn, make_broadcaster):
    one = make_broadcaster()
    conn.execute("DELETE FROM audit")
    with conn.transaction(force_rollback=True):
        broadcasters.update(conn, one, {"display_name": "Other"})
        assert only(conn, ROWS)["action"] == "update"
    assert rows(conn, ROWS) == []
    # In autocommit: by the transaction that wrote the one and the other.
    broadcasters.update(conn, one, {"display_name": "Other"})
    found = only(conn, "SELECT b.xmin = a.xmin AS same FROM broadcasters AS b, audit AS a WHERE b.id = a.subject_id")
    assert found == {"same": True}


def test_what_cannot_be_told_is_not_changed(conn, make_broadcaster):
    one = make_broadcaster()
    conn.execute("ALTER TABLE audit ADD CONSTRAINT nothing CHECK (false) NOT VALID")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            broadcasters.update(conn, one, {"display_name": "Other"})
    finally:
        conn.execute("ALTER TABLE audit DROP CONSTRAINT nothing")
    assert only(conn, "SELECT display_name FROM broadcasters") == {"display_name": "Team 7"}


def test_every_function_that_changes_says_for_whom_and_the_next_one_does_not(conn):
    owner, key = uuid.uuid4(), uuid.uuid4()
    asked: list[Any] = [
        lambda: broadcasters.create(conn, broadcaster_id=owner, display_name="x", metadata={}, disabled=False),
        lambda: broadcasters.update(conn, owner, {"display_name": "y"}),
        lambda: stream_keys.create(
            conn,
            stream_key_id=key,
            broadcaster_id=owner,
            key_hash=keys.digest("x"),
            hint="x",
            label=None,
            path=None,
            takeover="never",
            expires_at=None,
            disabled=False,
            metadata={},
        ),
        lambda: stream_keys.update(conn, key, {"label": "z"}),
        lambda: stream_keys.rotate(conn, key, key_hash=keys.digest("y"), hint="y", overlap_seconds=60),
        lambda: claim(conn),
        lambda: streams.update(conn, only(conn, "SELECT id FROM streams")["id"], {"recording_ref": "r"}),
        lambda: streams.stop(conn, only(conn, "SELECT id FROM streams")["id"], hold_seconds=9),
        lambda: stream_keys.revoke(conn, key),
        lambda: broadcasters.delete(conn, owner),
    ]
    for number, ask in enumerate(asked):
        conn.actor = Actor(f"n{number}", "192.0.2.1", "r")
        ask()
        conn.actor = None
        conn.execute("UPDATE broadcasters SET display_name = display_name || 'x'")
    who = [row["who"] for row in rows(conn, ROWS) if row["who"] != "database"]
    assert who == ["n0", "n1", "n2", "n3", "n4", "n6", "n7", "n7", "n8", "n9"]
    assert len(rows(conn, "SELECT 1 FROM audit WHERE who = 'database'")) == 10


def claim(conn):
    return streams.claim(
        conn,
        key_hash=keys.digest("x"),
        node="default",
        path="live/x",
        connection_id="c",
        protocol="rtmp",
        remote_address="",
        user_agent="",
        lease_seconds=60,
    )


def test_a_connection_goes_back_to_the_pool_without_its_actor(app):
    database = app.extensions["streamorch"].database
    with database.connection(actor=Actor("me")) as conn:
        assert conn.acting() == '{"who":"me","address":null,"request_id":null}'
    assert conn.acting() == ""


def test_a_command_is_told_as_one(database_url, monkeypatch, conn):
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert CliRunner().invoke(main, ["broadcasters", "create", "Team 9"]).exit_code == 0
    row = only(conn, ROWS)
    assert (row["who"], row["address"], json.loads(bytes(row["after"]))["display_name"]) == ("CLI", None, "Team 9")


def test_behind_a_trusted_proxy_the_address_is_the_client_s(make_app, conn):
    client = make_app(TRUSTED_PROXIES="127.0.0.1").test_client()
    headers = {"Authorization": f"Bearer {API_SECRET}", "X-Forwarded-For": "198.51.100.4"}
    client.post("/broadcasters", json={"display_name": "x"}, headers=headers)
    assert only(conn, ROWS)["address"] == "198.51.100.4"


def test_no_secret_is_kept(api, owner, conn):
    planted = [keys.mint() for _ in range(4)]
    key = api.post("/stream-keys", json={"broadcaster_id": owner, "metadata": {planted[0]: [planted[1]]}}).get_json()
    api.patch(f"/stream-keys/{key['id']}", json={"label": planted[2], "metadata": {"a": f"?pass={planted[3]}"}})
    kept = json.dumps(rows(conn, ROWS), default=str) + api.get("/audit").text
    planted += [key["key_value"], API_SECRET, keys.digest(key["key_value"]).hex()]
    assert [secret for secret in planted if secret in kept] == []
    assert "sk_[redacted]" in kept


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"who": "API_SECRET"}, 3),
        ({"who": "CLI"}, 0),
        ({"kind": "stream_key"}, 1),
        ({"action": "create"}, 2),
        ({"action": "update", "kind": "broadcaster"}, 1),
        ({"request_id": "r1"}, 1),
        ({"address": "127.0.0.1"}, 3),
        ({"address": "127.0.0.2"}, 0),
        ({"since": text_of(FUTURE)}, 0),
        ({"until": text_of(FUTURE)}, 3),
    ],
    ids=str,
)
def test_filters(filters, count, api, owner):
    api.patch(f"/broadcasters/{owner}", json={"disabled": True}, headers={"X-Request-ID": "r1"})
    api.post("/stream-keys", json={"broadcaster_id": owner})
    assert len(changes(api, **filters)) == count


def test_the_changes_of_one_subject(api, owner):
    key = api.post("/stream-keys", json={"broadcaster_id": owner}).get_json()
    assert [change["kind"] for change in changes(api, subject_id=key["id"])] == ["stream_key"]


def test_pages(api, owner):
    for number in range(6):
        api.patch(f"/broadcasters/{owner}", json={"display_name": f"n{number}"})
    seen, cursor = [], None
    for _ in range(9):
        page = api.get(
            "/audit", query_string={"limit": 2, "subject_id": owner} | ({"cursor": cursor} if cursor else {})
        )
        seen += [change["after"]["display_name"] for change in page.get_json()["changes"]]
        cursor = page.get_json()["next_cursor"]
        if cursor is None:
            break
    assert seen == ["n5", "n4", "n3", "n2", "n1", "n0", "Team 7"]


@pytest.mark.parametrize("name", ["kind", "action", "subject_id", "since", "until", "limit", "cursor"])
def test_a_bad_parameter_is_named(name, api):
    assert fields(api.get("/audit", query_string={name: "?"})) == {name}


def test_the_trail_is_for_callers_with_the_secret(client):
    problem(client.get("/audit"), "unauthorized", 401)


def test_old_rows_go_in_batches_and_by_the_leader_alone(conn, make_broadcaster):
    for _ in range(3):
        make_broadcaster()
    newest = only(conn, "SELECT max(number) FROM audit")["max"]
    conn.execute("UPDATE audit SET changed_at = changed_at - interval '10 days' WHERE number < %s", [newest])
    epoch = only(conn, "SELECT epoch FROM lead_v1('test', 60, true)")["epoch"]
    assert audit.trim(conn, epoch - 1, days=9, batch=10) is None
    assert [audit.trim(conn, epoch, days=9, batch=1) for _ in range(3)] == [1, 1, 0]
    assert len(rows(conn, ROWS)) == 1


# --- the timeline of a stream ---------------------------------------------------------------------------------


def events(api, stream_id, **query):
    return api.get(f"/streams/{stream_id}/events", query_string=query)


def told(api, stream_id):
    return [event["event"] for event in events(api, stream_id).get_json()["events"]]


def test_what_became_of_a_stream_is_told_in_order(api, media_server, make_key, make_broadcaster):
    key = make_key(takeover="always", broadcaster_id=make_broadcaster())
    media_server.go_live(key)
    (first,) = api.get("/streams").get_json()["streams"]
    api.patch(f"/streams/{first['id']}", json={"metadata": {"a": 1}})
    assert media_server.ask(make_key()).status_code == 401  # another key on its path
    media_server.go_live(key)  # takes over
    (second,) = api.get("/streams").get_json()["streams"]
    api.delete(f"/stream-keys/{key.id}")
    eventually(lambda: "refused" in told(api, first["id"]))
    found = events(api, first["id"]).get_json()
    assert found["count"] == 6
    assert [event["event"] for event in found["events"]] == [
        "claimed",
        "live",
        "stream.update",
        "refused",
        "ended",
        "replaced",
    ]
    claimed, live, update, refused, ended, replaced = found["events"]
    shown = api.get(f"/streams/{first['id']}").get_json()
    assert (claimed["at"], live["at"], ended["at"]) == (shown["claimed_at"], shown["started_at"], shown["ended_at"])
    assert (claimed["address"], claimed["connection_id"]) == ("192.0.2.7", shown["source_id"])
    assert (update["who"], update["after"]) == ("API_SECRET", {"metadata": {"a": 1}})
    assert (refused["reason"], refused["address"], refused["left_out"]) == ("path-in-use", "192.0.2.7", 0)
    assert (ended["reason"], replaced["stream_id"]) == ("superseded", second["id"])

    last = events(api, second["id"]).get_json()["events"]
    assert [event["event"] for event in last] == ["claimed", "live", "stream_key.revoke", "ended", "kick"]
    assert (last[0]["stream_id"], last[2]["who"], last[3]["reason"]) == (first["id"], "API_SECRET", "revoked")


def test_the_timeline_has_pages(api, media_server, make_key):
    connection_id = media_server.go_live(make_key())
    media_server.not_ready(connection_id)
    (stream,) = api.get("/streams?status=ended").get_json()["streams"]
    seen, cursor = [], None
    for _ in range(5):
        page = events(api, stream["id"], limit=1, **({"cursor": cursor} if cursor else {})).get_json()
        seen += [event["event"] for event in page["events"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["claimed", "live", "ended"]


def test_a_stream_that_is_not_has_no_timeline(api, client):
    problem(events(api, uuid.uuid4()), "not-found", 404)
    assert fields(events(api, "x")) == {"id"}
    problem(client.get(f"/streams/{uuid.uuid4()}/events"), "unauthorized", 401)
