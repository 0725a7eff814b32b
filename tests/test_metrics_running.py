"""The metrics of the service as it really runs: right across workers, after one was killed, and about who leads."""

import http.client
import json
import os
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
import requests

from streamorch import keys
from tests.conftest import API_SECRET
from tests.running import Service, free_port
from tests.scraping import Series, read, series

pytestmark = pytest.mark.slow

BEARER = {"Authorization": f"Bearer {API_SECRET}"}
REQUESTS = 10_000
CLIENTS = 8
PATIENCE = 60


class Question(NamedTuple):
    """Something that is asked, its right answer, and the series in which each is counted."""

    method: str
    path: str
    body: bytes | None
    status: int
    counted: tuple[Series, ...]


def question(method: str, target: str, status: int, *counted: Series, **body: Any) -> Question:
    return Question(method, target, json.dumps(body).encode() if body else None, status, counted)


def http_series(method: str, route: str, status: int) -> Series:
    return series("streamorch_http_requests_total", method=method, route=route, status=status)


def decision(action: str, outcome: str, protocol: str) -> Series:
    return series("streamorch_auth_decisions_total", action=action, outcome=outcome, protocol=protocol)


@pytest.fixture
def service() -> Iterator[Service]:
    # All of the load comes from one address.
    running = Service(Path(tempfile.mkdtemp(prefix="streamorch-metrics-")), REFUSALS_PER_MINUTE="0")
    yield running
    running.close()


def scraped(service: Service) -> Mapping[Series, float]:
    answer = requests.get(f"{service.url}/metrics", headers=BEARER, timeout=10)
    assert answer.status_code == 200
    return read(answer.text)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def live_stream(service: Service) -> tuple[str, str]:
    """A key with a stream that is claimed: the same question again is a replay."""
    value, connection_id = keys.mint(), str(uuid.uuid4())
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        broadcaster = uuid.uuid4()
        conn.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Team 7')", [broadcaster])
        conn.execute(
            "INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint) VALUES (%s, %s, %s, %s)",
            [uuid.uuid4(), broadcaster, keys.digest(value), keys.hint(value)],
        )
    return value, connection_id


def mixture(service: Service) -> list[Question]:
    value, connection_id = live_stream(service)
    claim = {"action": "publish", "path": "live/a", "protocol": "rtmp", "id": connection_id, "password": value}
    assert requests.post(f"{service.url}/auth", json=claim, timeout=10).status_code == 200
    stranger = {"path": "live/b", "source_type": "rtmpConn", "source_id": str(uuid.uuid4())}
    auth = ("POST", "/auth")
    return [
        question(*auth, 200, http_series(*auth, 200), decision("publish", "replay", "rtmp"), **claim),
        question(
            *auth,
            401,
            http_series(*auth, 401),
            decision("publish", "invalid-stream-key", "srt"),
            **claim | {"password": keys.mint(), "protocol": "srt"},
        ),
        question(
            *auth, 200, http_series(*auth, 200), decision("read", "granted", "hls"), action="read", protocol="hls"
        ),
        question(
            *auth,
            401,
            http_series(*auth, 401),
            decision("other", "unauthorized", "other"),
            action="dance",
            protocol="pigeon",
        ),
        question("GET", "/streams", 200, http_series("GET", "/streams", 200)),
        question("GET", "/stream-keys?limit=2", 200, http_series("GET", "/stream-keys", 200)),
        question("GET", "/nowhere", 404, http_series("GET", "other", 404)),
        question(
            "POST",
            "/webhook/ready",
            404,
            http_series("POST", "/webhook/ready", 404),
            series("streamorch_hooks_total", kind="ready", outcome="not-found"),
            **stranger,
        ),
    ]


class Crowd:
    """Clients that ask so many of these questions in all, on connections that they keep; `kill` in the midst of it."""

    def __init__(self, service: Service, questions: list[Question]):
        self.host = urlsplit(service.url).netloc
        self.questions = questions
        self.lock = threading.Lock()
        self.answered: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.wrong: list[tuple[str, int]] = []
        self.left: list[int] = []

    def ask(self, count: int, kill: Callable[[], None] | None = None) -> None:
        self.left = [number % len(self.questions) for number in range(count)]
        half = count // 2
        clients = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        if kill:
            wait_for(lambda: len(self.left) < half)
            kill()
        for client in clients:
            client.join(PATIENCE * 5)
        assert not self.left

    def _client(self) -> None:
        conn = http.client.HTTPConnection(self.host, timeout=10)
        while True:
            with self.lock:
                if not self.left:
                    break
                number = self.left.pop()
            asked = self.questions[number]
            try:
                conn.request(asked.method, asked.path, asked.body, BEARER)
                answer = conn.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                conn.close()
                with self.lock:
                    self.failed[number] += 1
                continue
            with self.lock:
                self.answered[number] += 1
                if answer.status != asked.status:
                    self.wrong.append((asked.path, answer.status))
        conn.close()

    def expected(self, of: Counter[int]) -> Counter[Series]:
        found: Counter[Series] = Counter()
        for number, count in of.items():
            for counted in self.questions[number].counted:
                found[counted] += count
        return found


def test_counters_are_what_was_answered_across_workers_and_after_one_was_killed(service):
    crowd = Crowd(service, mixture(service))
    before = scraped(service)
    every = {counted for asked in crowd.questions for counted in asked.counted}

    def counted() -> dict[Series, float]:
        found = scraped(service)
        return {of: found.get(of, 0) - before.get(of, 0) for of in every}

    crowd.ask(REQUESTS // 2)
    assert crowd.wrong == []
    assert not crowd.failed
    assert counted() == crowd.expected(crowd.answered)

    # One that is idle: nothing may be missing afterwards, whoever is asked.
    victim = min(service.workers())
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(service.workers() - {victim}) == 2)
    for _ in range(10):
        assert counted() == crowd.expected(crowd.answered)

    # One that is in the midst of it: what it answered is counted, what it did not may be.
    victim = min(service.workers())
    crowd.ask(REQUESTS // 2, kill=lambda: os.kill(victim, signal.SIGKILL))
    assert crowd.wrong == []
    assert sum(crowd.answered.values()) + sum(crowd.failed.values()) == REQUESTS
    assert sum(crowd.failed.values()) <= 4 * CLIENTS
    answered, maybe = crowd.expected(crowd.answered), crowd.expected(crowd.failed)
    for of, count in counted().items():
        assert answered[of] <= count <= answered[of] + maybe[of], of
    wait_for(lambda: scraped(service)[series("streamorch_workers")] == 2)
    found = scraped(service)
    assert found[series("streamorch_worker_starts_total")] == 4
    assert found[series("streamorch_auth_seconds_count", action="publish")] == sum(
        found[of] for of in found if of[0] == "streamorch_auth_decisions_total" and ("action", "publish") in of[1]
    )


def test_who_leads_is_told_right_after_the_leader_died(service):
    service.stop()
    service.environ["RECONCILE_SECONDS"] = "60"  # and so a lease of two minutes
    service.start()
    leader = series("streamorch_leader")
    wait_for(lambda: scraped(service)[leader] == 1)
    victims = service.workers()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: service.workers().isdisjoint(victims) and len(service.workers()) == 2)
    service.wait_until_up()
    # The lease of the dead one still runs, and nobody of this instance holds it.
    assert scraped(service)[leader] == 0
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        conn.execute("UPDATE leaders SET expires_at = clock_timestamp()")
    wait_for(lambda: scraped(service)[leader] == 1)


def test_a_worker_that_nobody_replaces_is_kept_in_the_counts_alone(service):
    wait_for(lambda: scraped(service)[series("streamorch_pool_max_size")] == 10)
    before = scraped(service)[series("streamorch_worker_starts_total")]
    service.process.send_signal(signal.SIGTTOU)  # one less
    wait_for(lambda: len(service.workers()) == 1)
    wait_for(lambda: scraped(service)[series("streamorch_workers")] == 1)
    found = scraped(service)
    assert found[series("streamorch_pool_max_size")] == 5
    assert found[series("streamorch_worker_starts_total")] == before == 2


def test_a_dead_database_is_told_and_a_scrape_does_not_hang(service):
    wait_for(lambda: scraped(service)[series("streamorch_database_up")] == 1)
    os.kill(service.postmaster(), signal.SIGQUIT)
    wait_for(lambda: scraped(service)[series("streamorch_database_up")] == 0)
    assert series("streamorch_streams", node="default", state="active") not in scraped(service)
    service.start_database()
    wait_for(lambda: scraped(service)[series("streamorch_database_up")] == 1)


def test_the_metrics_have_a_port_of_their_own():
    port = free_port()
    running = Service(Path(tempfile.mkdtemp(prefix="streamorch-metrics-")), METRICS_PORT=str(port))
    own = f"http://127.0.0.1:{port}"
    try:
        answer = requests.get(f"{own}/metrics", timeout=10)
        assert answer.status_code == 200
        assert read(answer.text)[series("streamorch_workers")] == 2
        assert requests.get(f"{own}/streams", headers=BEARER, timeout=10).status_code == 404
        assert requests.get(f"{running.url}/metrics", headers=BEARER, timeout=10).status_code == 404
        assert requests.get(f"{running.url}/streams", headers=BEARER, timeout=10).status_code == 200
        assert "METRICS_SECRET is not set" in running.log.read_text()
        # A reload keeps the port, and counts anew.
        before = running.workers()
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: running.workers().isdisjoint(before) and len(running.workers()) == 2)
        running.wait_until_up()
        found = read(requests.get(f"{own}/metrics", timeout=10).text)
        assert found[series("streamorch_worker_starts_total")] == 2
    finally:
        running.close()
