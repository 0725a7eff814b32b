"""Why was this encoder refused? What the answer, the log line and GET /decisions say is the same, and bounded."""

import json
import re
import signal
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from streamorch import decisions, keys
from streamorch.decisions import Refusals
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect
from streamorch.repositories import decisions as decision_rows
from streamorch.repositories.decisions import Refusal
from tests.blueprints import FUTURE, PAST, fields, logged, only, problem, rows
from tests.conftest import API_SECRET, Api, MediaServer
from tests.running import Service

AWAY = "postgresql://nobody@127.0.0.1:9/nowhere"
MEMBERS = {
    "id",
    "decided_at",
    "node",
    "action",
    "outcome",
    "stream_key_id",
    "hint",
    "stream_id",
    "rival_id",
    "path",
    "protocol",
    "remote_address",
    "user_agent",
    "connection_id",
    "left_out",
}


def eventually(look: Callable[[], Any], seconds: float = 20) -> Any:
    """What `look` finds, when it finds something within so long."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found
    return found


def decided(api, **filters) -> list[dict[str, Any]]:
    answer = api.get("/decisions", query_string=filters)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.get_json()["decisions"]
    return found


# --- every reason ---------------------------------------------------------------------------------------------


def live_elsewhere(make_key, media_server):
    media_server.go_live(make_key())
    return make_key()


def claimed_before(make_key, media_server):
    key = make_key()
    assert media_server.ask(key).status_code == 200
    return key


REASONS: dict[str, Callable[..., Any]] = {
    "invalid-stream-key": lambda make_key, **_: keys.mint(),
    "stream-key-revoked": lambda make_key, **_: make_key(revoked_at=PAST),
    "stream-key-expired": lambda make_key, **_: make_key(expires_at=PAST),
    "stream-key-disabled": lambda make_key, **_: make_key(disabled_at=PAST),
    "broadcaster-disabled": lambda make_key, make_broadcaster, **_: make_key(
        broadcaster_id=make_broadcaster(disabled_at=PAST)
    ),
    "stream-stopped": lambda make_key, **_: make_key(hold_until=FUTURE),
    "path-not-allowed": lambda make_key, **_: make_key(path="live/other"),
    "path-in-use": lambda make_key, media_server, **_: live_elsewhere(make_key, media_server),
    "stream-key-in-use": lambda make_key, media_server, **_: claimed_before(make_key, media_server),
    "unauthorized": lambda make_key, **_: None,
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_answer_the_log_line_and_the_decision_tell_the_same_reason(
    reason, lane, capsys, make_app, make_key, make_broadcaster
):
    client = make_app().test_client()
    media_server, api = MediaServer(client), Api(client)
    key = REASONS[reason](make_key=make_key, make_broadcaster=make_broadcaster, media_server=media_server)
    asked = {"id": str(uuid.uuid4()), "ip": "198.51.100.7", "userAgent": "OBS/31"}
    answer = media_server.ask(key, **asked)
    problem(answer, reason, 401)
    line = next(line for line in logged(capsys) if line["message"] == "publish refused")
    found = eventually(lambda: decided(api, connection_id=asked["id"]))[0]
    assert line["outcome"] == found["outcome"] == reason
    for told in (line, found):
        assert (told["connection_id"], told["remote_address"]) == (asked["id"], asked["ip"])
        assert (told["action"], told["path"], told["protocol"]) == ("publish", "live/cam7", "rtmp")
        assert told["stream_key_id"] == (str(key.id) if hasattr(key, "id") else None)
    secret = getattr(key, "value", key)
    assert found["hint"] == (secret[-4:] if secret else None)
    assert (found["node"], found["user_agent"], found["left_out"], found["stream_id"]) == ("default", "OBS/31", 0, None)
    assert found["rival_id"] == line["rival_id"]
    assert (found["rival_id"] is None) == (reason not in ("path-in-use", "stream-key-in-use"))
    assert found.keys() == MEMBERS


def test_those_are_all_the_reasons_that_a_claim_may_have(conn):
    text = only(conn, "SELECT string_agg(prosrc, ' ') AS text FROM pg_proc WHERE proname ~ '^claim.*_v[0-9]+$'")["text"]
    assert set(re.findall(r"'([a-z]+(?:-[a-z]+)+)'", text)) == REASONS.keys() - {"unauthorized"}


def test_a_claim_is_told_by_its_stream_and_by_nothing_else(media_server, make_key, api, conn):
    key = make_key()
    connection_id = media_server.go_live(key)
    media_server.ask(key, id=connection_id)  # again: the same claim
    stream = api.get("/streams").get_json()["streams"][0]
    (found,) = decided(api)
    assert found.keys() == MEMBERS
    assert (found["outcome"], found["connection_id"], found["left_out"]) == ("claimed", connection_id, 0)
    assert (found["id"], found["stream_id"], found["decided_at"]) == (stream["id"], stream["id"], stream["claimed_at"])
    assert (found["stream_key_id"], found["hint"]) == (str(key.id), key.value[-4:])
    assert rows(conn, "SELECT 1 FROM decisions") == []


@pytest.mark.parametrize("protocol", ["rtsp", "webrtc"])
def test_the_first_try_without_a_key_is_no_refusal_where_it_is_routine(protocol, media_server, api):
    assert media_server.ask(None, protocol=protocol).status_code == 401
    assert media_server.ask(keys.mint(), protocol=protocol).status_code == 401
    assert [found["outcome"] for found in eventually(lambda: decided(api))] == ["invalid-stream-key"]


def test_readers_and_operators_are_told_when_they_sent_something(make_app, conn):
    client = make_app(READ_POLICY="secret", READ_SECRET="right").test_client()
    for action in ("read", "api", "rename"):
        for password in ("", "wrong"):
            body = {"action": action, "path": "live/cam7", "password": password, "ip": "192.0.2.1", "protocol": "hls"}
            assert client.post("/auth", json=body).status_code == 401
    found = eventually(
        lambda: len(rows(conn, "SELECT 1 FROM decisions")) >= 2 and rows(conn, "SELECT * FROM decisions")
    )
    assert Counter((row["action"], row["outcome"]) for row in found) == Counter(
        {("read", "unauthorized"): 1, ("api", "unauthorized"): 1, ("rename", "unauthorized"): 1}
    )


def test_no_secret_is_kept_wherever_it_was_put(conn, capsys, make_app, make_key):
    client = make_app().test_client()
    media_server, api = MediaServer(client), Api(client)
    planted = [keys.mint() for _ in range(7)] + ["a-password-of-another-kind"]
    revoked = make_key(value=planted[0], revoked_at=PAST)
    media_server.ask(revoked, user=planted[1], query=f"key={planted[2]}&x={planted[3]}")
    media_server.ask("wrong", f"live/{planted[4]}", userAgent=f"x {planted[5]} y")
    media_server.ask("wrong", "live/cam7", userAgent=f"x {planted[5]} y\x00", query=planted[6])
    media_server.ask(planted[7], "live/cam7")
    eventually(lambda: len(decided(api)) == 4)
    kept = json.dumps(rows(conn, "SELECT * FROM decisions"), default=str) + api.get("/decisions").text
    kept += capsys.readouterr().err
    assert [secret for secret in planted if secret in kept] == []
    assert [secret for secret in planted if keys.digest(secret).hex() in kept] == []
    assert planted[7][-4:] not in [found["hint"] for found in decided(api)]


# --- looking up -----------------------------------------------------------------------------------------------


@pytest.fixture
def some(conn, make_key, media_server, api):
    """Refusals and claims, in turn, of known times: 8 seconds, newest first."""
    key = make_key()
    refused = Refusal(
        "invalid-stream-key",
        node="default",
        action="publish",
        path="live/b",
        protocol="srt",
        remote_address="192.0.2.9",
    )
    for age in (1, 3, 5, 7):
        decision_rows.note(conn, [Refusal(**{**_members(refused), "age": float(age), "connection_id": f"c{age}"})])
    for age in (2, 4, 6, 8):
        assert media_server.ask(key, id=f"c{age}").status_code == 200
        conn.execute(
            "UPDATE streams SET claimed_at = clock_timestamp() - make_interval(secs => %s),"
            " ended_at = clock_timestamp(), end_reason = 'never_started' WHERE auth_id = %s",
            [age, f"c{age}"],
        )
    return key


def _members(refusal):
    return {name: getattr(refusal, name) for name in refusal.__struct_fields__}


def test_pages_hold_all_of_both_kinds_newest_first_once(some, api):
    seen, cursor = [], None
    for _ in range(10):
        page = api.get("/decisions", query_string={"limit": 3} | ({"cursor": cursor} if cursor else {})).get_json()
        assert page["count"] == len(page["decisions"]) <= 3
        seen += [found["connection_id"] for found in page["decisions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"c{age}" for age in range(1, 9)]


FILTERS: dict[str, tuple[Callable[[Any], dict[str, Any]], list[int]]] = {
    "granted": (lambda key: {"outcome": "claimed"}, [2, 4, 6, 8]),
    "refused": (lambda key: {"outcome": "refused"}, [1, 3, 5, 7]),
    "one reason": (lambda key: {"outcome": "invalid-stream-key"}, [1, 3, 5, 7]),
    "another reason": (lambda key: {"outcome": "path-in-use"}, []),
    "path": (lambda key: {"path": "live/cam7"}, [2, 4, 6, 8]),
    "address": (lambda key: {"address": "192.0.2.9"}, [1, 3, 5, 7]),
    "protocol": (lambda key: {"protocol": "srt"}, [1, 3, 5, 7]),
    "key": (lambda key: {"stream_key_id": key.id}, [2, 4, 6, 8]),
    "connection": (lambda key: {"connection_id": "c5"}, [5]),
    "node": (lambda key: {"node": "default"}, [1, 2, 3, 4, 5, 6, 7, 8]),
    "no such node": (lambda key: {"node": "other"}, []),
    "both": (lambda key: {"outcome": "refused", "path": "live/cam7"}, []),
    "until": (lambda key: {"until": PAST.isoformat()}, []),
    "since": (lambda key: {"since": PAST.isoformat()}, [1, 2, 3, 4, 5, 6, 7, 8]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(name, some, api):
    given, ages = FILTERS[name]
    assert [found["connection_id"] for found in decided(api, **given(some))] == [f"c{age}" for age in ages]


def test_a_stream_finds_whom_it_was_in_the_way_of(media_server, make_key, api):
    media_server.go_live(make_key())
    (stream,) = api.get("/streams").get_json()["streams"]
    media_server.ask(make_key())
    found = eventually(lambda: len(decided(api)) == 2 and decided(api, stream_id=stream["id"]))
    assert [(one["outcome"], one["stream_id"], one["rival_id"]) for one in found] == [
        ("path-in-use", None, stream["id"]),
        ("claimed", stream["id"], None),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [("outcome", "no"), ("stream_key_id", "x"), ("stream_id", "x"), ("since", "x"), ("limit", "0"), ("cursor", "x")],
)
def test_a_bad_parameter_is_named(name, value, api):
    assert fields(api.get("/decisions", query_string={name: value})) == {name}


def test_decisions_are_for_callers_with_the_secret(client):
    problem(client.get("/decisions"), "unauthorized", 401)


def test_a_cursor_of_other_filters_is_refused(some, api):
    cursor = api.get("/decisions?limit=1").get_json()["next_cursor"]
    assert fields(api.get("/decisions", query_string={"cursor": cursor, "path": "live/b"})) == {"cursor"}


# --- very many ------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time`: it stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(decisions, "time", clock)
    return clock


@pytest.fixture
def kept(clock, monkeypatch):
    """Refusals whose thread is this one: what it would write, by `written()`."""
    monkeypatch.setattr(decisions.Refusals, "_run", lambda self: None)
    return Refusals(AWAY)


def written(refusals: Refusals) -> list[Refusal]:
    """What waits to be written, taken."""
    taken = [refusal for _, refusal in refusals._queue]
    refusals._queue.clear()
    return taken


def of_scanner(address: str = "203.0.113.9", **members: Any) -> Refusal:
    return Refusal("invalid-stream-key", remote_address=address, **members)


def test_a_scanner_of_one_address_leaves_few_rows_and_the_number_of_the_rest(kept, clock):
    noted = [kept.note(of_scanner()) for _ in range(100_000)]
    assert noted[:10] == [0] * 10
    assert set(noted[10:]) == {None}
    assert [one.left_out for one in written(kept)] == [0] * 10
    clock.now += 30
    assert kept.note(of_scanner()) == 99_990
    assert [one.left_out for one in written(kept)] == [99_990]
    assert kept.note(of_scanner()) is None
    clock.now += 5
    kept._sweep(clock.now)
    assert written(kept) == []
    clock.now += 6
    kept._sweep(clock.now)  # it is silent now: the last one is told all the same
    assert [(one.outcome, one.left_out) for one in written(kept)] == [("invalid-stream-key", 0)]


def test_the_refusals_of_ten_thousand_addresses_are_bounded_and_counted(kept, clock):
    addresses = [f"203.{number // 250}.{number % 250}.1" for number in range(10_000)]
    for _ in range(10):
        for address in addresses:
            kept.note(of_scanner(address))
    assert len(kept._sources) == 4096
    assert len(kept._queue) == 2000
    clock.now += 30
    kept._sweep(clock.now)
    rows = written(kept)
    assert len(rows) <= 2000 + 31
    assert (
        sum(1 + one.left_out for one in rows if one.outcome != "refused")
        + sum(one.left_out for one in rows if one.outcome == "refused")
        == 100_000
    )


def test_a_scanner_does_not_hide_the_refusals_of_others(kept, clock):
    for number in range(100_000):
        kept.note(of_scanner(f"203.{number // 250 % 40}.{number % 250}.1"))
    mine = uuid.uuid4()
    # Also from an address that the scanner has used up.
    assert [kept.note(Refusal("stream-key-revoked", remote_address="203.0.1.1", stream_key_id=mine)) for _ in "12"] == [
        0,
        0,
    ]
    assert [one.outcome for one in written(kept) if one.stream_key_id == mine] == ["stream-key-revoked"] * 2
    for number in range(9):
        kept.note(of_scanner("203.0.113.200", path=f"live/{number}"))
    clock.now += 1
    assert kept.note(of_scanner("198.51.100.1")) == 0


def test_all_addresses_of_a_network_of_ipv6_are_one_source(kept):
    for number in range(1000):
        kept.note(of_scanner(f"2001:db8:0:1::{number:x}"))
    assert len(kept._queue) == 10
    assert kept.note(of_scanner("2001:db8:0:2::1")) == 0


def test_a_refusal_costs_its_request_no_wait_when_the_database_is_away():
    refusals = Refusals(AWAY)
    began = time.monotonic()
    for number in range(50_000):
        refusals.note(of_scanner(f"203.{number // 250}.{number % 250}.1", stream_key_id=uuid.uuid4()))
    assert time.monotonic() - began < 20
    assert len(refusals._queue) <= 8000
    began = time.monotonic()
    refusals.close()
    assert time.monotonic() - began < 10


def test_what_waits_for_the_database_is_bounded_and_the_rest_is_counted(kept, clock, monkeypatch):
    monkeypatch.setattr(decisions, "_QUEUE", 100)
    for number in range(1000):
        kept.note(of_scanner(f"203.0.{number // 250}.{number % 250}", stream_key_id=uuid.uuid4()))
    assert len(kept._queue) == 100
    clock.now += 60
    kept._sweep(clock.now)
    assert len(kept._queue) == 100
    assert [one.outcome for one in written(kept)] == ["invalid-stream-key"] * 100
    clock.now += 60
    kept._sweep(clock.now)
    assert [(one.outcome, one.left_out) for one in written(kept)] == [("refused", 900)]


def test_what_came_while_the_database_was_away_is_written_when_it_is_back(database_url, conn, api):
    refusals = Refusals(AWAY)
    refusals.note(of_scanner(connection_id="early"))
    time.sleep(0.5)
    assert rows(conn, "SELECT 1 FROM decisions") == []
    refusals._database_url = database_url
    eventually(lambda: decided(api, connection_id="early"))
    (found,) = rows(conn, "SELECT clock_timestamp() - decided_at AS age FROM decisions")
    assert found["age"].total_seconds() > 0.5
    refusals.close()


def test_what_cannot_be_stored_is_counted_and_stops_nothing(database_url, conn, api):
    refusals = Refusals(database_url)
    refusals.note(of_scanner(path="live/\x00"))
    eventually(lambda: refusals._others == 1)
    refusals.note(of_scanner(connection_id="after"))
    eventually(lambda: decided(api, connection_id="after"))
    refusals.close()
    (found,) = [one for one in decided(api) if one["outcome"] == "refused"]
    assert (found["left_out"], found["remote_address"]) == (1, None)


def test_a_worker_that_ends_writes_what_it_has():
    service = Service(Path(tempfile.mkdtemp(prefix="streamorch-refusals-")), WEB_CONCURRENCY="1")
    try:
        body = {
            "action": "publish",
            "path": "live/x",
            "password": keys.mint(),
            "id": "c1",
            "protocol": "srt",
            "ip": "::1",
        }
        for _ in range(12):
            assert requests.post(f"{service.url}/auth", json=body, timeout=5).status_code == 401
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(20)
        with psycopg.connect(service.database_url) as conn:
            found = conn.execute("SELECT outcome, left_out FROM decisions ORDER BY number").fetchall()
        assert Counter(outcome for outcome, _ in found) == {"invalid-stream-key": 10, "refused": 1}
        assert sum(left_out for _, left_out in found) == 2
    finally:
        service.close()


# --- retention ------------------------------------------------------------------------------------------------


@pytest.fixture
def led(conn):
    """The epoch of a lead that is had."""
    return conn.execute("SELECT epoch FROM lead_v1('test', 60, true)").fetchone()[0]


def test_old_rows_go_in_batches_and_the_oldest_of_too_many(conn, led):
    day = 86400.0
    decision_rows.note(conn, [of_scanner(age=age * day) for age in (5, 4, 3, 2, 1, 0)])
    assert decision_rows.trim(conn, led, days=3, rows=1000, batch=2) == 2
    assert decision_rows.trim(conn, led, days=3, rows=1000, batch=2) == 1
    assert decision_rows.trim(conn, led, days=3, rows=1000, batch=2) == 0
    assert decision_rows.trim(conn, led, days=3, rows=1, batch=10) == 2
    assert only(conn, "SELECT count(*) FROM decisions") == {"count": 1}


def test_only_the_leader_lets_go(conn, led):
    decision_rows.note(conn, [of_scanner(age=1e7)])
    assert decision_rows.trim(conn, led - 1, days=1, rows=1000, batch=10) is None
    assert only(conn, "SELECT count(*) FROM decisions") == {"count": 1}


def test_the_reconciler_lets_go_of_what_is_too_much(database_url, conn, make_settings, fake):
    decision_rows.note(conn, [of_scanner()] * 2600)
    api = ControlAPI(fake.url, user="streamorch", password="secret")
    reconciler = Reconciler(make_settings(DECISION_ROWS="1000"), api)
    with connect(database_url) as own:
        for _ in range(3):
            reconciler.tick(own, force=True)
    assert only(conn, "SELECT count(*) FROM decisions") == {"count": 1000}


def test_what_is_older_than_the_days_that_are_kept_is_not_shown(conn, make_app, some):
    conn.execute("UPDATE decisions SET decided_at = decided_at - interval '2 days'")
    client = make_app(DECISION_DAYS="1").test_client()
    answer = client.get("/decisions", headers={"Authorization": f"Bearer {API_SECRET}"}).get_json()
    assert {found["outcome"] for found in answer["decisions"]} == {"claimed"}
