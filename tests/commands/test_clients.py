"""`streamorch clients`."""

import uuid

import pytest

from streamorch import keys
from tests.blueprints import FUTURE, PAST, only, text_of
from tests.conftest import Api


def test_a_client_is_made_and_told_as_the_api_tells_it(shell, api, conn):
    said = api.post("/api-clients", json={"name": "Page", "scope": "read"}).json
    made = shell.json("clients", "create", "Stage", "--scope", "operate", "--expires-at", text_of(FUTURE))
    assert made.keys() == said.keys()
    assert {name: made[name] for name in made.keys() - {"secret"}} == api.get(f"/api-clients/{made['id']}").json
    assert (made["name"], made["scope"], made["expires_at"]) == ("Stage", "operate", text_of(FUTURE))
    assert only(conn, "SELECT secret_hash FROM api_clients WHERE name = 'Stage'") == {
        "secret_hash": keys.digest(made["secret"])
    }
    assert only(conn, "SELECT who FROM audit WHERE after ->> 'name' = 'Stage'") == {"who": "CLI"}


def test_what_is_printed_opens_the_api_for_reading(shell, client):
    text = shell.text("clients", "create", "Watch page")
    told = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    assert told["scope"].strip() == "read"
    api = Api(client, {"X-API-Key": told["secret"].strip()})
    assert api.get("/streams").status_code == 200
    assert api.post("/broadcasters", json={"display_name": "x"}).status_code == 403


def test_the_objects_are_those_of_the_api(shell, api, make_client):
    made = {"active": make_client(), "revoked": make_client(revoked_at=PAST), "expired": make_client(expires_at=PAST)}
    listed = api.get("/api-clients").json
    assert shell.json("clients") == {"api_clients": listed["api_clients"], "count": 3}
    for status, one in made.items():
        assert shell.json("clients", one.id) == api.get(f"/api-clients/{one.id}").json
        assert [row["id"] for row in shell.json("clients", "--status", status)["api_clients"]] == [str(one.id)]


def test_each_state_is_in_the_table_and_the_secret_is_not(shell, make_client):
    made = {"active": make_client(), "revoked": make_client(revoked_at=PAST), "expired": make_client(expires_at=PAST)}
    text = shell.text("clients")
    assert {line[:36]: line[38:46].strip() for line in text.splitlines()[1:]} == {
        str(one.id): state for state, one in made.items()
    }
    for one in made.values():
        assert one.secret not in text + shell.text("clients", "show", one.id)
        assert f"…{one.secret[-4:]}" in text


def test_all_of_them_are_listed_past_one_page(shell, conn):
    conn.execute(
        """
        INSERT INTO api_clients (id, name, scope, secret_hash, hint)
        SELECT gen_random_uuid(), n::text, 'read', sha256(n::text::bytea), 'abcd' FROM generate_series(1, 1001) n
        """
    )
    assert shell.json("clients")["count"] == 1001


def test_to_revoke_is_for_good_and_to_do_it_twice_is_told(shell, make_client, client):
    one = make_client()
    assert shell.text("clients", "revoke", one.id) == "revoked\n"
    assert shell.text("clients", "revoke", one.id) == "it was revoked before\n"
    assert client.get("/streams", headers=one.headers).status_code == 401


@pytest.mark.parametrize("verb", ["show", "revoke"])
def test_an_unknown_client_is_one_line(shell, verb):
    said = "streamorch: no such API client; list them with: streamorch clients"
    assert shell.failure("clients", verb, uuid.uuid4()) == said


def test_what_a_client_cannot_be_is_one_line(shell, make_client, conn):
    make_client(name="Page")
    assert "an API client has this name" in shell.failure("clients", "create", "Page")
    assert "--expires-at is no RFC 3339 time" in shell.failure("clients", "create", "x", "--expires-at", "tomorrow")
    assert "from 1 to 255 characters" in shell.failure("clients", "create", "x" * 256, code=2)
    assert "is not one of" in shell.failure("clients", "create", "x", "--scope", "root", code=2)
    secret = keys.mint_client_secret()
    refused = shell.failure("clients", "create", f"of {secret}")
    assert "NAME holds a secret" in refused
    assert secret not in refused
    assert only(conn, "SELECT count(*) FROM api_clients") == {"count": 1}
