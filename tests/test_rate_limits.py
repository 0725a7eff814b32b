"""Who guesses on and on, or writes on and on, is told to wait; whoever has the right credential never is."""

import time
import uuid

import pytest

from streamorch import keys, limits
from streamorch.limits import Allowance, source
from tests.blueprints import PAST, logged, problem, rows
from tests.conftest import Api, MediaServer
from tests.test_decisions import Clock, eventually


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


# --- the limit itself -----------------------------------------------------------------------------------------


def test_a_minute_s_worth_at_once_and_then_as_time_brings_it(clock):
    limit = Allowance(60)
    assert [limit.take("a") for _ in range(61)] == [0] * 60 + [1]
    assert limit.take("b") == 0
    clock.now += 1
    assert [limit.take("a") for _ in range(2)] == [0, 1]
    clock.now += 3600
    assert [limit.take("a") for _ in range(61)] == [0] * 60 + [1]


def test_it_tells_how_long_to_wait(clock):
    limit = Allowance(2)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 30]
    clock.now += 29.5
    assert limit.take("a") == 1


def test_of_very_many_callers_only_some_are_remembered(clock):
    limit = Allowance(1, callers=100)
    for number in range(10_000):
        assert limit.take(number) == 0
    assert len(limit._buckets) == 100
    assert limit.take(9_999) == 60  # the last ones are


def test_who_comes_on_and_on_is_not_forgotten_for_a_crowd(clock):
    limit = Allowance(1, callers=100)
    limit.take("me")
    for number in range(10_000):
        limit.take(number)
        assert limit.take("me") == 60


def test_nought_is_no_limit(clock):
    limit = Allowance(0)
    assert {limit.take("a") for _ in range(10_000)} == {0}


@pytest.mark.parametrize(
    ("address", "stands_for"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("x" * 100, "x" * 64),
        ("", ""),
    ],
)
def test_the_source_of_an_address(address, stands_for):
    assert source(address) == stands_for


# --- /auth ----------------------------------------------------------------------------------------------------


@pytest.fixture
def media_server(lane, make_app):
    return MediaServer(make_app(REFUSALS_PER_MINUTE="5").test_client())


def guess(media_server, times, **members):
    return [media_server.ask(keys.mint(), **members).status_code for _ in range(times)]


def test_wrong_keys_of_an_address_are_told_to_wait(media_server):
    assert guess(media_server, 7) == [401] * 5 + [429] * 2
    answer = media_server.ask(keys.mint())
    assert problem(answer, "rate-limited", 429)["detail"] == "too many wrong credentials from this address"
    assert 1 <= int(answer.headers["Retry-After"]) <= 12
    assert guess(media_server, 1, ip="192.0.2.8") == [401]


def test_a_right_key_gets_in_at_once_from_the_same_address(media_server, make_key, conn):
    key = make_key(disabled_at=PAST)
    guess(media_server, 20)
    for _ in range(20):
        problem(media_server.ask(key), "stream-key-disabled", 401)  # a key that is there is told why
    conn.execute("UPDATE stream_keys SET disabled_at = NULL")
    assert media_server.ask(key).status_code == 200
    assert guess(media_server, 1) == [429]


@pytest.mark.parametrize("protocol", ["rtsp", "webrtc"])
def test_the_first_try_without_a_key_does_not_count(protocol, media_server, make_key):
    for _ in range(20):
        problem(media_server.ask(None, protocol=protocol), "unauthorized", 401)
    assert guess(media_server, 1) == [401]


def test_paths_do_not_count_and_an_address_that_is_not_told_does_not_either(media_server):
    for _ in range(20):
        problem(media_server.ask(keys.mint(), "live/whip"), "path-not-allowed", 401)
    assert guess(media_server, 20, ip="") == [401] * 20
    assert guess(media_server, 1) == [401]


def test_the_media_server_itself_is_never_limited(make_app, make_key):
    # Its own credential may be wrong for a while: then it is told so each time.
    client = make_app(REFUSALS_PER_MINUTE="5", MEDIAMTX_CALLBACK_SECRET="right").test_client()
    key = make_key()
    body = {"action": "publish", "path": "live/x", "password": key.value, "id": "c1", "protocol": "srt", "ip": "::1"}
    wrong = [client.post("/auth", json=body, auth=("mediamtx", "wrong")).status_code for _ in range(20)]
    assert set(wrong) == {401}
    for number in range(20):  # guesses of twenty encoders, all by way of one media server
        guess = body | {"password": keys.mint(), "ip": f"192.0.2.{number}"}
        assert client.post("/auth", json=guess, auth=("mediamtx", "right")).status_code == 401
    assert client.post("/auth", json=body, auth=("mediamtx", "right")).status_code == 200


def test_guesses_of_the_read_secret_are_limited_and_the_right_one_is_not(make_app):
    client = make_app(REFUSALS_PER_MINUTE="5", READ_POLICY="secret", READ_SECRET="right").test_client()
    body = {"action": "read", "path": "live/x", "protocol": "hls", "ip": "192.0.2.7"}
    assert [client.post("/auth", json=body | {"password": "w"}).status_code for _ in range(7)] == [401] * 5 + [429] * 2
    assert client.post("/auth", json=body | {"password": "right"}).status_code == 200
    assert client.post("/auth", json=body).status_code == 401  # the first try of a browser


def test_the_decision_and_the_log_line_tell_what_was_answered(capsys, make_app, conn):
    media_server = MediaServer(make_app(REFUSALS_PER_MINUTE="2").test_client())
    guess(media_server, 3)
    assert [line["outcome"] for line in logged(capsys) if "outcome" in line] == [
        "invalid-stream-key",
        "invalid-stream-key",
        "rate-limited",
    ]
    found = eventually(lambda: len(kept := rows(conn, "SELECT outcome FROM decisions ORDER BY number")) == 3 and kept)
    assert [row["outcome"] for row in found] == ["invalid-stream-key", "invalid-stream-key", "rate-limited"]


# --- the REST part --------------------------------------------------------------------------------------------


def test_wrong_secrets_of_an_address_are_told_to_wait_and_the_right_one_never(capsys, make_app):
    client = make_app(REFUSALS_PER_MINUTE="5").test_client()
    wrong = Api(client, {"Authorization": "Bearer wrong"})
    assert [wrong.get("/streams").status_code for _ in range(7)] == [401] * 5 + [429] * 2
    problem(wrong.get("/broadcasters"), "rate-limited", 429)
    assert Api(client).get("/streams").status_code == 200
    assert Api(client).get("/broadcasters").status_code == 200
    signed = {"X-API-Key": "me", "X-Timestamp": str(int(time.time())), "X-Signature": "0" * 64}
    assert Api(client, signed).get("/streams").status_code == 429
    # What is answered so often would fill the log.
    assert [line["status"] for line in logged(capsys) if line.get("problem") == "rate-limited"] == []


def test_behind_a_trusted_proxy_each_client_counts_for_itself(make_app):
    client = make_app(REFUSALS_PER_MINUTE="5", TRUSTED_PROXIES="127.0.0.1").test_client()
    statuses = {}
    for address in ("198.51.100.1", "198.51.100.2"):
        wrong = Api(client, {"X-API-Key": "wrong", "X-Forwarded-For": address})
        statuses[address] = [wrong.get("/streams").status_code for _ in range(6)]
    assert list(statuses.values()) == [[401] * 5 + [429]] * 2


def test_guesses_of_the_api_and_of_keys_do_not_count_for_one_another(media_server):
    guess(media_server, 20, ip="127.0.0.1")
    assert Api(media_server.client, {"X-API-Key": "wrong"}).get("/streams").status_code == 401


def test_writes_with_one_credential_are_limited_and_reads_are_not(make_app, conn):
    api = Api(make_app(API_WRITES_PER_MINUTE="3").test_client())
    made = [api.post("/broadcasters", json={"display_name": "x"}) for _ in range(4)]
    assert [answer.status_code for answer in made] == [201] * 3 + [429]
    assert problem(made[3], "rate-limited", 429)["detail"] == "too many writes with this credential"
    assert int(made[3].headers["Retry-After"]) == 20
    for ask in (api.patch, api.delete):
        problem(ask(f"/broadcasters/{uuid.uuid4()}"), "rate-limited", 429)
    assert len(api.get("/broadcasters").get_json()["broadcasters"]) == 3
    assert len(rows(conn, "SELECT 1 FROM broadcasters")) == 3


def test_who_has_no_right_to_write_uses_up_nothing(make_app):
    client = make_app(API_WRITES_PER_MINUTE="1").test_client()
    for _ in range(5):
        assert Api(client, {"X-API-Key": "wrong"}).post("/broadcasters", json={}).status_code == 401
    assert Api(client).post("/broadcasters", json={"display_name": "x"}).status_code == 201


def test_the_defaults_are_beyond_what_an_honest_operator_does(make_settings):
    settings = make_settings()
    # Twenty encoders behind one address that come back every two seconds with an old key.
    assert settings.refusals_per_minute >= 20 * 30
    # A script that makes a thousand keys, and each a broadcaster.
    assert settings.api_writes_per_minute >= 2 * 1000
