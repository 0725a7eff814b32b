"""API clients: made, listed, changed and revoked; their secrets are told once."""

import json
import re
import threading
import uuid
from typing import Any

import pytest

from streamorch import callers, keys
from streamorch.repositories import Actor, api_clients, connect
from tests.blueprints import FUTURE, PAST, TIME, fields, only, problem, rows, text_of
from tests.conftest import Api
from tests.test_audit import changes, facts

MEMBERS = {
    "id",
    "name",
    "scope",
    "status",
    "hint",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
}


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is remembered."""
    monkeypatch.setattr(callers, "FRESH_SECONDS", 0)


def test_a_client_is_made_and_its_secret_told_this_once(api, client, conn):
    answer = api.post("/api-clients", json={"name": "Watch page", "scope": "read"})
    made = answer.json
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api-clients/{made['id']}"
    assert answer.headers["Cache-Control"] == "no-store"
    assert made.keys() == MEMBERS | {"secret"}
    assert re.fullmatch(r"sc_[A-Za-z0-9]{43}", made["secret"])
    assert re.fullmatch(TIME, made["created_at"])
    assert made | {"name": "Watch page", "scope": "read", "status": "active", "hint": made["secret"][-4:]} == made
    assert {made[name] for name in ("expires_at", "revoked_at", "last_used_at")} == {None}
    shown = api.get(f"/api-clients/{made['id']}")
    assert shown.json == {name: made[name] for name in MEMBERS}
    assert api.get("/api-clients").json == {"api_clients": [shown.json], "count": 1, "next_cursor": None}
    row = only(conn, "SELECT secret_hash, hint FROM api_clients")
    assert row == {"secret_hash": keys.digest(made["secret"]), "hint": made["secret"][-4:]}
    assert Api(client, {"X-API-Key": made["secret"]}).get("/streams").status_code == 200


def test_an_id_of_ones_own_is_taken_once(api):
    one = str(uuid.uuid4())
    assert api.post("/api-clients", json={"id": one, "name": "a", "scope": "read"}).json["id"] == one
    again = api.post("/api-clients", json={"id": one, "name": "b", "scope": "read"})
    assert problem(again, "conflict", 409)["detail"] == "an API client with this id exists"
    assert "sc_" not in again.text


def test_a_name_is_of_one_client_until_that_is_revoked(api, conn):
    first = api.post("/api-clients", json={"name": "a", "scope": "read"}).json
    other = api.post("/api-clients", json={"name": "b", "scope": "read"}).json
    for taken in (
        api.post("/api-clients", json={"name": "a", "scope": "admin"}),
        api.patch(f"/api-clients/{other['id']}", json={"name": "a", "scope": "admin"}),
    ):
        assert problem(taken, "conflict", 409)["detail"] == "an API client with this name exists"
    assert api.get(f"/api-clients/{other['id']}").json["scope"] == "read"
    assert api.patch(f"/api-clients/{first['id']}", json={"name": "a"}).status_code == 200
    api.delete(f"/api-clients/{first['id']}")
    assert api.post("/api-clients", json={"name": "a", "scope": "read"}).status_code == 201
    assert len(rows(conn, "SELECT 1 FROM api_clients WHERE name = 'a'")) == 2


def test_of_many_that_take_one_name_at_once_one_has_it(database_url, conn):
    outcomes, ready = [], threading.Barrier(8)

    def take(number):
        with connect(database_url) as own:
            mine = uuid.uuid4()
            kept: dict[str, Any] = {"scope": "read", "hint": "x", "expires_at": None}
            api_clients.create(own, client_id=mine, name=f"n{number}", secret_hash=keys.digest(str(mine)), **kept)
            ready.wait()
            if number % 2:
                outcomes.append(api_clients.update(own, mine, {"name": "same"}))
            else:
                another: dict[str, Any] = {"client_id": uuid.uuid4(), "secret_hash": keys.digest(f"{mine}x")}
                outcomes.append(api_clients.create(own, name="same", **another, **kept))

    threads = [threading.Thread(target=take, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("name-taken") == 7
    assert len(rows(conn, "SELECT 1 FROM api_clients WHERE name = 'same'")) == 1


def test_a_client_is_changed(api, make_client):
    one = make_client(expires_at=PAST)
    assert api.get(f"/api-clients/{one.id}").json["status"] == "expired"
    changed = api.patch(f"/api-clients/{one.id}", json={"name": "New", "scope": "admin", "expires_at": text_of(FUTURE)})
    assert changed.json == api.get(f"/api-clients/{one.id}").json
    assert changed.json | {"name": "New", "scope": "admin", "expires_at": text_of(FUTURE)} == changed.json
    assert changed.json["status"] == "active"
    assert api.patch(f"/api-clients/{one.id}", json={"expires_at": None}).json["expires_at"] is None
    assert api.patch(f"/api-clients/{one.id}", json={"other": 1}).json["name"] == "New"


@pytest.mark.usefixtures("at_once")
def test_a_revoked_client_is_out_and_stays_as_it_is(api, client, make_client):
    one = make_client("admin")
    assert client.get("/streams", headers=one.headers).status_code == 200
    assert [api.delete(f"/api-clients/{one.id}").status_code for _ in range(2)] == [204, 204]
    problem(client.get("/streams", headers=one.headers), "unauthorized", 401)
    shown = api.get(f"/api-clients/{one.id}").json
    assert (shown["status"], re.fullmatch(TIME, shown["revoked_at"]) is not None) == ("revoked", True)
    problem(api.patch(f"/api-clients/{one.id}", json={"scope": "read"}), "conflict", 409)
    assert api.get(f"/api-clients/{one.id}").json == shown


@pytest.mark.usefixtures("at_once")
def test_an_admin_may_take_its_own_right_away(client, make_client):
    api = Api(client, (one := make_client("admin")).headers)
    assert api.patch(f"/api-clients/{one.id}", json={"scope": "read"}).status_code == 200
    problem(api.patch(f"/api-clients/{one.id}", json={"scope": "admin"}), "forbidden", 403)


def test_what_is_not_is_not_found(api):
    for method in ("GET", "PATCH", "DELETE"):
        problem(api(method, f"/api-clients/{uuid.uuid4()}", json={}), "not-found", 404)
        assert fields(api(method, "/api-clients/x", json={})) == {"id"}


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, {"name", "scope"}),
        ({"name": "", "scope": "root"}, {"name", "scope"}),
        ({"name": "x" * 256, "scope": None}, {"name", "scope"}),
        ({"name": None, "scope": "read"}, {"name"}),
        ({"name": "a\0", "scope": "read"}, {"name"}),
        ({"name": f"of {keys.mint_client_secret()}", "scope": "read"}, {"name"}),
        ({"name": keys.mint(), "scope": "read"}, {"name"}),
        ({"name": "x", "scope": "read", "id": "x", "expires_at": "2026-01-31"}, {"id", "expires_at"}),
    ],
    ids=str,
)
def test_each_wrong_field_is_named_and_nothing_is_made(body, wrong, api, conn, make_client):
    answer = api.post("/api-clients", json=body)
    assert fields(answer) == wrong
    assert not re.search("s[ck]_[A-Za-z0-9]{9}", answer.text)
    assert rows(conn, "SELECT 1 FROM api_clients") == []
    given = {name: value for name, value in body.items() if name != "id"}
    one = make_client()
    if given:
        assert fields(api.patch(f"/api-clients/{one.id}", json=given)) == wrong - {"id"}
    assert api.get(f"/api-clients/{one.id}").json["name"] == one.name


def test_pages_and_filters(api, make_client):
    made = [make_client(created_at=PAST.replace(microsecond=number)) for number in range(5)]
    revoked, expired = make_client(revoked_at=PAST), make_client(expires_at=PAST)
    seen, cursor = [], None
    for _ in range(9):
        asked = {"limit": 2, "status": "active"} | ({"cursor": cursor} if cursor else {})
        page = api.get("/api-clients", query_string=asked).json
        seen += [item["id"] for item in page["api_clients"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [str(one.id) for one in reversed(made)]
    for status, one in (("revoked", revoked), ("expired", expired)):
        (item,) = api.get("/api-clients", query_string={"status": status}).json["api_clients"]
        assert (item["id"], item["status"]) == (str(one.id), status)
    for name in ("status", "limit", "cursor"):
        assert fields(api.get("/api-clients", query_string={name: "?"})) == {name}


# --- in the audit trail ---------------------------------------------------------------------------------------


def test_each_change_is_told_with_what_differs(api, conn):
    made = api.post("/api-clients", json={"name": "a", "scope": "read"}).json
    api.patch(f"/api-clients/{made['id']}", json={"name": "b", "scope": "operate"})
    api.patch(f"/api-clients/{made['id']}", json={"expires_at": text_of(FUTURE)})
    api.patch(f"/api-clients/{made['id']}", json={"name": "b"})  # no change
    for _ in range(2):
        api.delete(f"/api-clients/{made['id']}")
    found = changes(api, kind="api_client", subject_id=made["id"])
    revoked_at = api.get(f"/api-clients/{made['id']}").json["revoked_at"]
    assert [facts(change)[1:] for change in found] == [
        (
            "create",
            {},
            {"name": "a", "scope": "read", "hint": made["hint"], "expires_at": None, "revoked_at": None},
        ),
        ("update", {"name": "a", "scope": "read"}, {"name": "b", "scope": "operate"}),
        ("update", {"expires_at": None}, {"expires_at": text_of(FUTURE)}),
        ("revoke", {"revoked_at": None}, {"revoked_at": revoked_at}),
    ]
    assert {change["who"] for change in found} == {"API_SECRET"}


def test_no_secret_and_no_hash_is_in_the_trail(api, conn):
    made = api.post("/api-clients", json={"name": "a", "scope": "read"}).json
    stray = keys.mint_client_secret()
    api.post("/broadcasters", json={"display_name": "x", "metadata": {stray: [stray]}})
    conn.execute("UPDATE api_clients SET secret_hash = sha256('x'), name = %s", [stray])
    kept = json.dumps(rows(conn, "SELECT * FROM audit"), default=str) + api.get("/audit").text
    assert [one for one in (made["secret"], keys.digest(made["secret"]).hex(), stray) if one in kept] == []
    assert kept.count("sc_[redacted]") > 2


def test_every_function_that_changes_says_for_whom(conn):
    one = uuid.uuid4()
    made: dict[str, Any] = {"name": "a", "scope": "read", "hint": "x", "expires_at": None, "secret_hash": bytes(32)}
    conn.actor = Actor("me", "192.0.2.1", "r")
    assert api_clients.create(conn, client_id=one, **made) == "created"
    assert api_clients.update(conn, one, {"scope": "admin"}) == "updated"
    assert api_clients.revoke(conn, one) == "revoked"
    assert [row["who"] for row in rows(conn, "SELECT who FROM audit")] == ["me"] * 3
