"""Who calls: looked up once in a while, remembered for moments, and out within seconds of being taken back."""

import uuid

import psycopg
import pytest

from streamorch import callers, keys
from streamorch.callers import Caller, Callers
from streamorch.repositories import ReadOnly, api_clients
from tests.blueprints import FUTURE, PAST, only, problem, rows
from tests.conftest import API_SECRET, Api
from tests.test_decisions import Clock, eventually


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(callers, "time", clock)
    return clock


@pytest.fixture
def known(app, clock) -> Callers:
    """The callers of the application."""
    found: Callers = app.extensions["streamorch"].callers
    return found


@pytest.fixture
def asked(monkeypatch):
    """What the database is asked, by secret or by id."""
    questions: list[object] = []
    for name in ("by_secret", "by_id"):
        ask = getattr(api_clients, name)

        def noted(conn, ask=ask, **whose):
            questions.append(whose)
            return ask(conn, **whose)

        monkeypatch.setattr(api_clients, name, noted)
    return questions


def test_each_scope_includes_those_before_it():
    may = {
        scope: [asked for asked in callers.SCOPES if Caller("x", scope, None).may(asked)] for scope in callers.SCOPES
    }
    assert may == {
        "read": ["read"],
        "operate": ["read", "operate"],
        "admin": ["read", "operate", "admin"],
    }


def test_a_client_is_known_by_its_secret_and_by_its_id(known, make_client):
    one = make_client("operate", name="Stage", expires_at=FUTURE)
    make_client("admin")
    assert known.by_secret(one.secret) == Caller("client:Stage", "operate", one.id)
    assert known.by_id(one.id) == Caller("client:Stage", "operate", one.id)


@pytest.mark.parametrize("columns", [{"revoked_at": PAST}, {"expires_at": PAST}], ids=["revoked", "expired"])
def test_who_may_not_call_is_unknown(columns, known, make_client):
    one = make_client(**columns)
    assert (known.by_secret(one.secret), known.by_id(one.id)) == (None, None)
    assert (known.by_secret(keys.mint_client_secret()), known.by_id(uuid.uuid4())) == (None, None)


def test_the_api_secret_and_what_has_not_the_form_of_a_secret_cost_no_statement(known, asked):
    assert known.by_secret(API_SECRET) == Caller("API_SECRET", "admin", None)
    for guess in ("guess", keys.mint(), "sc_guess", keys.mint_client_secret() + "x", "\udcff"):
        assert known.by_secret(guess) is None
    assert asked == []


def test_whoever_polls_costs_a_statement_every_two_seconds(known, clock, asked, make_client):
    one = make_client()
    for _ in range(50):
        assert known.by_secret(one.secret) is not None
        clock.now += 0.1
    assert len(asked) == 3
    assert callers.FRESH_SECONDS == 2


def test_a_client_is_out_two_seconds_after_it_was_revoked(known, clock, conn, make_client):
    one = make_client()
    ways = [lambda: known.by_secret(one.secret), lambda: known.by_id(one.id)]
    assert all(way() is not None for way in ways)
    assert api_clients.revoke(conn, one.id) == "revoked"
    clock.now += 1.9
    assert all(way() is not None for way in ways)
    clock.now += 0.2
    assert [way() for way in ways] == [None, None]
    clock.now -= 0.2  # it is forgotten, and not remembered again
    assert [way() for way in ways] == [None, None]


def test_another_scope_and_name_hold_after_two_seconds(known, clock, conn, make_client):
    one = make_client("admin")
    known.by_secret(one.secret)
    api_clients.update(conn, one.id, {"scope": "read", "name": "Less"})
    clock.now += 2.1
    assert known.by_secret(one.secret) == Caller("client:Less", "read", one.id)


def test_a_client_expires_to_the_moment_whatever_is_remembered(known, clock, conn, make_client):
    one = make_client()
    conn.execute("UPDATE api_clients SET expires_at = clock_timestamp() + interval '1 second'")
    assert known.by_secret(one.secret) is not None
    conn.execute("UPDATE api_clients SET expires_at = clock_timestamp()")
    clock.now += 0.5
    assert known.by_secret(one.secret) is not None
    clock.now += 0.6
    assert known.by_secret(one.secret) is None


def test_without_a_database_who_was_seen_lately_is_let_in_and_nobody_else(app, known, clock, make_client):
    one, expiring, never_seen = make_client(), make_client(), make_client()
    assert known.by_secret(one.secret) is not None
    known._known[keys.digest(expiring.secret)] = callers._Known(Caller("x", "read", None), clock.now, clock.now + 5)
    app.extensions["streamorch"].database.close()
    clock.now += 29
    assert known.by_secret(one.secret) == Caller(f"client:{one.name}", "read", one.id)
    for secret in (expiring.secret, never_seen.secret):
        with pytest.raises(psycopg.OperationalError):
            known.by_secret(secret)
    clock.now += 2
    with pytest.raises(psycopg.OperationalError):
        known.by_secret(one.secret)
    assert known.by_secret(API_SECRET) is not None
    assert known.by_secret("guess") is None


@pytest.mark.usefixtures("lane")
def test_without_a_database_a_client_has_a_503_and_never_a_401(make_app, make_client):
    one = make_client()
    app = make_app()
    app.extensions["streamorch"].database.close()
    for path in ("/streams", "/nodes"):
        problem(app.test_client().get(path, headers=one.headers), "database-unavailable", 503)


@pytest.mark.usefixtures("lane")
def test_without_a_database_the_live_list_goes_on_for_a_client(make_app, make_client):
    one = make_client()
    app = make_app()
    client = app.test_client()
    assert client.get("/streams", headers=one.headers).json["stale"] is False
    app.extensions["streamorch"].database.close()
    app.extensions["streamorch"].callers._known.update(
        {
            by: known._replace(seen_at=known.seen_at - 10)
            for by, known in app.extensions["streamorch"].callers._known.items()
        }
    )
    assert client.get("/streams", headers=one.headers).json["stale"] is True


def test_of_very_many_clients_only_some_are_remembered(known, make_client, monkeypatch):
    monkeypatch.setattr(callers, "_MOST", 10)
    made = [make_client() for _ in range(15)]
    for one in made:
        known.by_secret(one.secret)
    assert list(known._known) == [keys.digest(one.secret) for one in made[5:]]


def test_guesses_push_nobody_out(known, make_client, monkeypatch):
    monkeypatch.setattr(callers, "_MOST", 10)
    one = make_client()
    known.by_secret(one.secret)
    for _ in range(20):
        known.by_secret(keys.mint_client_secret())
    assert list(known._known) == [keys.digest(one.secret)]


# --- when it was last used ------------------------------------------------------------------------------------


def last_used(conn, one):
    return only(conn, "SELECT last_used_at FROM api_clients WHERE id = %s", one.id)["last_used_at"]


def test_the_use_of_a_client_is_noted_once_a_minute(known, clock, conn, make_client):
    one = make_client()
    assert last_used(conn, one) is None
    known.by_secret(one.secret)
    first = eventually(lambda: last_used(conn, one))
    for _ in range(5):
        clock.now += 10
        known.by_secret(one.secret)
    api_clients.used(conn, one.id)  # also when several workers find it due at once
    known.close()
    assert last_used(conn, one) == first
    conn.execute("UPDATE api_clients SET last_used_at = last_used_at - interval '61 seconds'")
    api_clients.used(conn, one.id)
    assert last_used(conn, one) > first
    assert rows(conn, "SELECT 1 FROM audit WHERE action = 'update'") == []


def test_nobody_waits_until_the_use_is_noted_nor_does_that_wait(app, known, clock, conn, database_url, make_client):
    one = make_client()
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT 1 FROM api_clients FOR UPDATE")
        for _ in range(3):
            assert known.by_secret(one.secret) is not None
            eventually(lambda: not known._due)
            clock.now += 3
        assert last_used(conn, one) is None
    # It was no outage either.
    with app.extensions["streamorch"].database.connection():
        pass
    known.by_secret(one.secret)
    eventually(lambda: last_used(conn, one))


def test_where_nothing_can_be_written_that_is_tried_once_a_minute(known, clock, make_client, monkeypatch):
    tries = []

    def refuse(conn, client_id):
        tries.append(client_id)
        raise ReadOnly("the server may only be read")

    monkeypatch.setattr(api_clients, "used", refuse)
    one, other = make_client(), make_client()
    for _ in range(30):
        for each in (one, other):
            assert known.by_secret(each.secret) is not None
            eventually(lambda: not known._due)
        clock.now += 2.5
    assert tries == [one.id, one.id]


def test_a_worker_that_ends_notes_nothing_more_and_lets_in(known, conn, make_client):
    one = make_client()
    known.close()
    assert known.by_secret(one.secret) is not None
    assert last_used(conn, one) is None


# --- in the trail and the limits ------------------------------------------------------------------------------


def test_a_client_is_told_in_the_trail_by_its_name_whatever_that_is(client, conn, make_client):
    for name in ("API_SECRET", "CLI", "database", "client:x"):
        one = make_client("operate", name=name)
        client.post("/broadcasters", json={"display_name": "x"}, headers=one.headers)
    found = rows(conn, "SELECT who FROM audit WHERE kind = 'broadcaster' ORDER BY number")
    assert [row["who"] for row in found] == ["client:API_SECRET", "client:CLI", "client:database", "client:client:x"]


def test_each_client_has_writes_of_its_own(make_app, make_client):
    client = make_app(API_WRITES_PER_MINUTE="2").test_client()
    callers_of_it = [Api(client, make_client("operate").headers) for _ in range(2)] + [Api(client)]
    for api in callers_of_it:
        assert [api.post("/broadcasters", json={"display_name": "x"}).status_code for _ in range(3)] == [201, 201, 429]


def test_who_may_not_write_uses_up_nothing(make_app, make_client, conn):
    client = make_app(API_WRITES_PER_MINUTE="1").test_client()
    api = Api(client, (one := make_client("read")).headers)
    assert [api.post("/broadcasters", json={}).status_code for _ in range(3)] == [403] * 3
    assert client.application.extensions["streamorch"].writes.take(f"client:{one.name}") == 0


def test_secrets_of_clients_are_not_guessed_on_and_on_and_the_right_one_is_let_in(make_app, make_client):
    client = make_app(REFUSALS_PER_MINUTE="3").test_client()
    guesses = [client.get("/nodes", headers={"X-API-Key": keys.mint_client_secret()}).status_code for _ in range(5)]
    assert guesses == [401] * 3 + [429] * 2
    revoked = make_client(revoked_at=PAST)
    problem(client.get("/nodes", headers=revoked.headers), "rate-limited", 429)
    assert client.get("/nodes", headers=make_client().headers).status_code == 200
