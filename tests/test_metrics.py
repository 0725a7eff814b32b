"""What is counted, and under which names: every reason of a refusal, bounded labels, a scrape without a database."""

import math
import platform
import re
import time
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from streamorch import keys, tally
from streamorch.kicks import carry_out
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect
from streamorch.repositories.streams import Kick
from tests.conftest import API_SECRET, Api, MediaServer
from tests.scraping import names, read, series

ROOT = Path(__file__).resolve().parent.parent
BEARER = {"Authorization": f"Bearer {API_SECRET}"}


@pytest.fixture
def scrape(client):
    """Ask for the metrics; a mapping of series to numbers."""
    return lambda: read(client.get("/metrics", headers=BEARER).text)


def decided(found):
    return {
        tuple(dict(labels)[name] for name in ("action", "outcome", "protocol")): value
        for (name, labels), value in found.items()
        if name == "streamorch_auth_decisions_total"
    }


# --- /auth -----------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(lane, app, make_key, conn):
    """A media server in front of an application of each lane, and keys of every state."""
    past, hold = "2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
    found = {
        "invalid-stream-key": keys.mint(),
        "stream-key-revoked": make_key(revoked_at=past).value,
        "stream-key-expired": make_key(expires_at=past).value,
        "stream-key-disabled": make_key(disabled_at=past).value,
        "stream-stopped": make_key(hold_until=hold).value,
        "path-not-allowed": make_key(path="live/other").value,
        "unauthorized": "",
    }
    return MediaServer(app.test_client()), found


def test_every_refusal_is_counted_by_its_reason(crowd, scrape):
    media_server, refused = crowd
    for number, (reason, value) in enumerate(refused.items(), 1):
        for _ in range(number):
            answer = media_server.ask(value, protocol="srt")
            assert answer.json["type"] == f"/errors/{reason}"
    found = decided(scrape())
    assert found == {("publish", reason, "srt"): number for number, reason in enumerate(refused, 1)}


def test_what_is_granted_is_counted_by_what_it_is(crowd, scrape, make_key):
    media_server, _ = crowd
    key, connection_id = make_key(), str(uuid.uuid4())
    for _ in range(3):
        assert media_server.ask(key, id=connection_id).status_code == 200
    assert media_server.ask(make_key(), path="live/page", protocol="webrtc", id=None).status_code == 200
    assert media_server.ask(action="read", protocol="hls").status_code == 200
    found = scrape()
    assert decided(found) == {
        ("publish", "claimed", "rtmp"): 1,
        ("publish", "replay", "rtmp"): 2,
        ("publish", "valid", "webrtc"): 1,
        ("read", "granted", "hls"): 1,
    }
    assert found[series("streamorch_http_requests_total", method="POST", route="/auth", status=200)] == 5
    assert found[series("streamorch_auth_seconds_count", action="publish")] == 4
    assert 0 < found[series("streamorch_auth_seconds_sum", action="publish")] < 60


def test_what_a_client_makes_up_is_other(crowd, client, scrape):
    media_server, _ = crowd
    for made_up in ("dance", keys.mint(), "x" * 30, 'a"b\n'):
        media_server.ask(action=made_up, protocol=made_up)
        client.open(f"/{made_up[:50].strip()}", method="BREW")
        client.open("/streams", method="PUT")
    client.post("/auth", data=b"no JSON")
    found = scrape()
    assert decided(found) == {("other", "unauthorized", "other"): 4, ("other", "invalid-request", "other"): 1}
    assert found[series("streamorch_http_requests_total", method="other", route="other", status=404)] == 4
    assert found[series("streamorch_http_requests_total", method="other", route="other", status=405)] == 4
    text = "".join(value for _, labels in found for _, value in labels)
    assert "dance" not in text
    assert "sk_" not in text


def test_a_refusal_of_the_callback_itself_is_counted(make_app, lane):
    client = make_app(MEDIAMTX_CALLBACK_SECRET="secret").test_client()
    assert client.post("/auth", json={"action": "publish"}).status_code == 401
    assert client.post("/webhook/ready", json={"path": "live/cam7"}).status_code == 401
    found = read(client.get("/metrics", headers=BEARER).text)
    assert decided(found) == {("other", "unauthorized", "other"): 1}
    assert found[series("streamorch_hooks_total", kind="ready", outcome="unauthorized")] == 1


# --- everything else that is counted -----------------------------------------------------------------------------


def test_hooks_are_counted_by_what_they_came_to_and_starts_are_timed(media_server, make_key, scrape, conn):
    connection_id = str(uuid.uuid4())
    media_server.ask(make_key(), id=connection_id)
    conn.execute("UPDATE streams SET claimed_at = claimed_at - interval '1.8 seconds'")
    media_server.ready(connection_id)
    media_server.ready(connection_id)
    media_server.ready("")
    media_server.ready(str(uuid.uuid4()))
    media_server.not_ready(connection_id)
    media_server.not_ready(connection_id)
    found = scrape()
    hooks = {
        (dict(labels)["kind"], dict(labels)["outcome"]): value
        for (name, labels), value in found.items()
        if name == "streamorch_hooks_total" and value
    }
    assert hooks == {
        ("ready", "active"): 1,
        ("ready", "replay"): 1,
        ("ready", "ignored"): 1,
        ("ready", "not-found"): 1,
        ("not-ready", "ended"): 1,
        ("not-ready", "late"): 1,
    }
    assert found[series("streamorch_start_seconds_count")] == 1
    assert found[series("streamorch_start_seconds_bucket", le="1.5")] == 0
    assert 1.8 <= found[series("streamorch_start_seconds_sum")] < 60


def test_requests_are_counted_by_route_and_not_by_path(api, scrape):
    for number in range(3):
        assert api.get(f"/streams/{uuid.UUID(int=number)}").status_code == 404
    api.get("/streams")
    etag = api.get("/streams").headers["ETag"]
    api.get("/streams", headers={"If-None-Match": etag})
    found = scrape()
    assert found[series("streamorch_http_requests_total", method="GET", route="/streams/<stream_id>", status=404)] == 3
    assert found[series("streamorch_http_requests_total", method="GET", route="/streams", status=200)] == 2
    assert found[series("streamorch_http_requests_total", method="GET", route="/streams", status=304)] == 1
    assert found[series("streamorch_http_request_seconds_count", route="/streams")] == 3


def test_what_is_open_is_told_from_the_database(media_server, make_key, scrape, conn, fake):
    media_server.go_live(make_key(), "live/a")
    media_server.go_live(make_key(), "live/b")
    media_server.ask(make_key(), "live/c")
    conn.execute(
        """INSERT INTO stream_stats (stream_id, viewers, media)
        SELECT id, 4, CASE path WHEN 'live/a' THEN 'flowing' ELSE 'stalled' END FROM streams WHERE path <> 'live/c'"""
    )
    found = scrape()
    assert found[series("streamorch_streams", node="default", state="active")] == 2
    assert found[series("streamorch_streams", node="default", state="pending")] == 1
    assert found[series("streamorch_viewers", node="default")] == 8
    assert found[series("streamorch_stalled_streams", node="default")] == 1
    assert found[series("streamorch_media_server_up", node="default")] == 0
    assert 0 <= found[series("streamorch_hook_age_seconds", node="default")] < 60
    assert found[series("streamorch_database_up")] == 1


def test_a_tick_tells_its_result_its_length_and_what_it_found(app, make_settings, database_url, fake, make_key):
    service = app.extensions["streamorch"]
    media_server = MediaServer(app.test_client())
    lost, late = str(uuid.uuid4()), str(uuid.uuid4())
    media_server.ask(make_key(), "live/a", id=lost)
    fake.publish("live/a", connection_id=lost)  # its hook is lost
    fake.publish("live/b", connection_id=late)  # nobody claimed it
    api = ControlAPI(fake.url, user="streamorch", password="secret")
    reconciler = Reconciler(make_settings(MEDIAMTX_API_URL=fake.url), api, service.metrics)
    reconciler.start()
    deadline = time.monotonic() + 30
    ticks = series("streamorch_reconcile_ticks_total", result="ok")
    while (found := read(app.test_client().get("/metrics", headers=BEARER).text))[ticks] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[series("streamorch_drift_total", kind="active")] == 1
    assert found[series("streamorch_drift_total", kind="unclaimed")] == 1
    assert found[series("streamorch_unclaimed_publishers", node="default")] == 1
    assert found[series("streamorch_reconcile_seconds_count")] >= found[ticks]
    assert found[series("streamorch_leader")] == 1
    assert found[series("streamorch_media_server_up", node="default")] == 1
    assert found[series("streamorch_reconcile_age_seconds", node="default")] < 30
    assert found[series("streamorch_pool_size")] > 0
    assert found[series("streamorch_pool_requests_total")] > 0
    fake.refuse()
    refused = series("streamorch_reconcile_ticks_total", result="refused")
    while not (found := read(app.test_client().get("/metrics", headers=BEARER).text))[refused]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reconciler.stop()
    with connect(database_url) as conn:
        reconciler.resign(conn)
    found = read(app.test_client().get("/metrics", headers=BEARER).text)
    assert found[series("streamorch_media_server_up", node="default")] == 0
    assert found[series("streamorch_leader")] == 0


def test_a_leader_that_stands_still_is_no_leader_when_its_lease_is_over(app, scrape):
    metrics = app.extensions["streamorch"].metrics
    metrics.leads(time.monotonic() + 0.2)
    assert scrape()[series("streamorch_leader")] == 1
    time.sleep(0.25)
    assert scrape()[series("streamorch_leader")] == 0


@pytest.mark.parametrize("result", ["gone", "no-answer"])
def test_kicks_are_counted_by_protocol_and_result(result, app, fake, scrape):
    publisher = fake.publish("live/a", "srt")
    if result == "no-answer":
        fake.refuse()
    kick = Kick(uuid.uuid4(), "live/a", "srt", publisher.connection_id)
    api = ControlAPI(fake.url, user="streamorch", password="secret")
    list(carry_out(api, [kick], app.extensions["streamorch"].metrics))
    found = scrape()
    assert {key: value for key, value in found.items() if key[0] == "streamorch_kicks_total" and value} == {
        series("streamorch_kicks_total", protocol="srt", result=result): 1
    }


# --- the scrape ------------------------------------------------------------------------------------------------


class TestWithoutADatabase:
    @pytest.fixture
    def database_url(self):
        return "postgresql:///none?host=/nowhere"

    def test_the_rest_is_told_and_that_it_is_away(self, client, media_server):
        media_server.ask(keys.mint())
        answer = client.get("/metrics", headers=BEARER)
        assert answer.status_code == 200
        found = read(answer.text)
        assert found[series("streamorch_database_up")] == 0
        assert decided(found) == {("publish", "database-unavailable", "rtmp"): 1}
        assert "streamorch_streams" not in names(answer.text)
        assert found[series("streamorch_build_info", version="0.1.0", python=platform.python_version())] == 1

    def test_nobody_scrapes_without_a_credential(self, make_app):
        client = make_app(METRICS_SECRET="scrape-me").test_client()
        for authorization in ("", "Bearer wrong", f"Basic {API_SECRET}", "Bearer "):
            answer = client.get("/metrics", headers={"Authorization": authorization})
            assert answer.status_code == 401
            assert answer.json["type"] == "/errors/unauthorized"
        for secret in ("scrape-me", API_SECRET):
            assert client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert client.get("/streams", headers={"Authorization": "Bearer scrape-me"}).status_code == 401

    def test_a_scraper_that_wants_openmetrics_has_it(self, client):
        answer = client.get("/metrics", headers=BEARER | {"Accept": "application/openmetrics-text; version=1.0.0"})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")

    @pytest.mark.parametrize("accept", ["version=abc;escaping=zzz", "version=1.0.0;escaping=", "version=;q=x", ",;="])
    def test_who_asks_for_a_form_that_is_none_has_one_all_the_same(self, client, accept):
        answer = client.get("/metrics", headers=BEARER | {"Accept": f"application/openmetrics-text;{accept}"})
        assert answer.status_code == 200
        assert "streamorch_build_info" in answer.text

    def test_they_can_be_switched_off(self, make_app):
        app = make_app(METRICS_ENABLED="false")
        client = app.test_client()
        assert client.get("/metrics", headers=BEARER).status_code == 404
        assert client.get("/livez").status_code == 200
        assert app.extensions["streamorch"].metrics is None

    @pytest.mark.parametrize("secret", [None, "scrape-me"])
    def test_on_a_port_of_their_own_nothing_else_is_served(self, secret, make_app):
        own = {"METRICS_SECRET": secret} if secret else {}
        client = make_app(METRICS_PORT="9464", TRUSTED_PROXIES="127.0.0.1", **own).test_client()
        there = {"base_url": "http://127.0.0.1:9464"}
        right = {"Authorization": f"Bearer {secret or ''}"}
        assert client.get("/metrics", headers=right, **there).status_code == 200
        assert client.get("/metrics", **there).status_code == (401 if secret else 200)
        for path in ("/streams", "/livez", "/auth"):
            answer = client.get(path, headers=BEARER, **there)
            assert answer.status_code == 404
            assert answer.json["type"] == "/errors/not-found"
        assert client.get("/metrics", headers=BEARER).status_code == 404
        assert client.get("/livez").status_code == 200
        # What a proxy's client says of the port opens nothing.
        forged = {"X-Forwarded-Host": "a:9464", "X-Forwarded-For": "192.0.2.7"}
        assert client.get("/metrics", headers=forged).status_code == (401 if secret else 404)


def test_every_series_has_its_own_place(app):
    metrics = app.extensions["streamorch"].metrics
    slot = tally.Memory(1).take()
    places = [place for each in metrics._all for place in each._places.values()]
    spans = sorted((place, each.size) for each in metrics._all for place in each._places.values())
    assert len(places) == len(set(places))
    assert all(here + size == there for (here, size), (there, _) in pairwise(spans))
    assert sum(spans[-1]) <= len(slot.counts)


def test_what_took_longer_than_every_bucket_is_in_the_last(app, scrape):
    metrics = app.extensions["streamorch"].metrics
    for seconds in (0.0005, 5.0, 5.1, 3600.0):
        metrics.ticked("ok", seconds)
    found = scrape()
    told = {le: found[series("streamorch_reconcile_seconds_bucket", le=le)] for le in ("0.0005", "2.5", "5.0", "+Inf")}
    assert told == {"0.0005": 1, "2.5": 1, "5.0": 2, "+Inf": 4}
    assert math.isclose(found[series("streamorch_reconcile_seconds_sum")], 3610.1005)


def test_the_readme_has_the_table_of_them(app):
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    section = text.partition("\nMetrics\n=======\n")[2].partition("\n\n\n")[0]
    told = {}
    for line in section.splitlines():
        if found := re.match(r"``(streamorch_\w+)``(?:  +((?:``\w+`` ?)+|-))?  ", line):
            told[found[1]] = set(re.findall(r"``(\w+)``", found[2] or ""))
    assert told == {family.name: set(family.labels) for family in app.extensions["streamorch"].metrics.families}


def test_api_callers_see_the_metrics(app):
    assert "streamorch_build_info" in Api(app.test_client()).get("/metrics").text
