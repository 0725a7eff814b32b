"""Nodes: what is told of each media server, and to probes."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest

from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import Connection, connect
from tests.blueprints import TIME, problem
from tests.conftest import Api
from tests.fake_mediamtx import FakeMediaMTX

PATH = "live/cam7"
MEMBERS = {
    "name",
    "version",
    "started_at",
    "api",
    "last_tick_at",
    "last_hook_at",
    "active",
    "unclaimed",
    "problem",
}


@pytest.fixture
def app(make_app: Callable[..., flask.Flask], fake: FakeMediaMTX) -> flask.Flask:
    return make_app(MEDIAMTX_API_URL=fake.url)


@pytest.fixture
def tick(app: flask.Flask, conn: Connection) -> Iterator[Callable[[], object]]:
    """One tick of the reconciler of this application."""
    settings = app.extensions["streamorch"].settings
    api = ControlAPI(settings.mediamtx_api_url, user="streamorch", password="secret")
    with connect(settings.database_url) as patient:
        reconciler = Reconciler(settings, api)
        yield lambda: reconciler.tick(patient, force=True)
        reconciler.resign(patient)


def node(api: Api) -> dict[str, Any]:
    """The one there is."""
    answer = api.get("/nodes")
    assert answer.status_code == 200
    assert (answer.json or {}).keys() == {"nodes", "count"}
    (found,) = (answer.json or {})["nodes"]
    assert found.keys() == MEMBERS
    shown: dict[str, Any] = found
    return shown


def test_a_node_of_which_nothing_was_heard_is_shown(api):
    assert api.get("/nodes").json["count"] == 1
    assert node(api) == {
        "name": "default",
        "version": None,
        "started_at": None,
        "api": "never",
        "last_tick_at": None,
        "last_hook_at": None,
        "active": 0,
        "unclaimed": [],
        "problem": None,
    }


def test_a_node_is_shown_as_it_was_seen(api, fake, tick, media_server, make_key):
    source_id = media_server.go_live(make_key())
    fake.publish(PATH, connection_id=source_id)
    stranger = fake.publish("open/door", "srt")
    tick()
    shown = node(api)
    assert (shown["name"], shown["version"], shown["api"], shown["active"]) == ("default", "v1.20.1", "ok", 1)
    assert shown["problem"] is None
    assert shown["started_at"][:19] == fake.started[:19]
    for name in ("started_at", "last_tick_at", "last_hook_at"):
        assert re.fullmatch(TIME, shown[name])
    (entry,) = shown["unclaimed"]
    assert {name: entry[name] for name in ("path", "source_type", "source_id")} == {
        "path": "open/door",
        "source_type": "srtConn",
        "source_id": stranger.source_id,
    }
    assert re.fullmatch(TIME, entry["since"])
    before = shown["last_tick_at"]
    tick()
    assert node(api)["last_tick_at"] > before
    assert node(api)["unclaimed"] == [entry]
    fake.leave(stranger)
    tick()
    assert node(api)["unclaimed"] == []


def test_an_unclaimed_publisher_is_shown_with_what_the_contract_has(api, fake, tick):
    fake.publish("open/door")
    tick()
    assert node(api)["unclaimed"][0].keys() == {"path", "source_type", "source_id", "since"}


STATES: dict[str, Callable[[FakeMediaMTX], None]] = {
    "refused": FakeMediaMTX.refuse,
    "silent": lambda fake: fake.answer(503),
    "unauthorized": lambda fake: fake.answer(401),
}


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_it_is_told_how_the_control_api_answers(api, client, fake, tick, state, was_there):
    if was_there:
        tick()
    STATES[state](fake)
    tick()
    expected = state if was_there or state == "unauthorized" else "never"
    assert node(api)["api"] == expected
    assert (node(api)["last_tick_at"] is not None) == was_there
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json["media_server"]) == (200, expected)
    fake.heal()
    tick()
    assert client.get("/readyz").json["media_server"] == "ok"


def test_a_tick_that_did_not_see_everything_is_not_the_last_one(api, fake, tick):
    tick()
    before = node(api)["last_tick_at"]
    fake.answer(500, route="/v3/srtconns")
    tick()
    shown = node(api)
    assert (shown["last_tick_at"], shown["api"]) == (before, "ok")


def test_nodes_are_for_callers_of_the_api(client, api):
    problem(client.get("/nodes"), "unauthorized", 401)
    answer = api("HEAD", "/nodes")
    assert (answer.status_code, answer.data) == (200, b"")


# --- claims, and nobody tells what became of them -------------------------------------------------------------------


def a_minute_passes(conn: Connection) -> None:
    conn.execute("UPDATE streams SET claimed_at = claimed_at - interval '61 seconds'")
    conn.execute("UPDATE nodes SET last_hook_at = last_hook_at - interval '61 seconds'")


def test_a_node_is_deaf_when_neither_hook_nor_api_tells_of_its_claims(api, fake, tick, media_server, make_key, conn):
    fake.refuse()
    media_server.ask(make_key())
    tick()
    assert node(api)["problem"] is None
    a_minute_passes(conn)
    assert "no stream becomes live" in str(node(api)["problem"])
    media_server.ready("nobody")  # a hook comes
    assert node(api)["problem"] is None


@pytest.mark.parametrize("remedy", ["hook", "api", "no claims"])
def test_a_node_is_not_deaf_with(api, fake, tick, media_server, make_key, conn, remedy):
    if remedy != "api":
        fake.refuse()
    if remedy != "no claims":
        media_server.ask(make_key(), id="c1")
    if remedy == "hook":
        media_server.ready("c1")
    tick()
    a_minute_passes(conn)
    assert node(api)["problem"] is None


def test_a_node_whose_hooks_stopped_before_its_claims_is_deaf(api, fake, media_server, make_key, conn):
    media_server.ready("nobody")
    a_minute_passes(conn)
    media_server.ask(make_key())
    a_minute_passes(conn)
    assert node(api)["problem"]


def test_deafness_is_logged_once_in_a_while(fake, media_server, make_key, conn, tick, caplog):
    fake.refuse()
    media_server.ask(make_key())
    a_minute_passes(conn)
    tick()
    tick()
    told = [record for record in caplog.records if "never become live" in record.message]
    assert [record.levelname for record in told] == ["ERROR"]
