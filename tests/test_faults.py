"""Faults, made for real: PostgreSQL killed, frozen and gone while fifty clients ask the real service.

Each answer is a 200, 401 or 503, soon; no worker is lost; and when PostgreSQL is back, so is everything.
"""

import os
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
import requests

from streamorch import keys
from tests.conftest import API_SECRET
from tests.running import Service

pytestmark = pytest.mark.slow

CLIENTS = 50


class Answer(NamedTuple):
    """One answer, as a client saw it: moments of the monotonic clock, status 0 when there was none."""

    asked_at: float
    answered_at: float
    status: int
    problem: str

    @property
    def seconds(self) -> float:
        return self.answered_at - self.asked_at


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service(Path(tempfile.mkdtemp(prefix="streamorch-fault-")))
    yield running
    running.close()


class Crowd:
    """Fifty clients that ask and ask: publishes with good keys (new and known connections) and bad ones, readiness."""

    def __init__(self, service: Service):
        self.service = service
        self.keys = make_keys(service, CLIENTS)
        self.connection_ids = [str(uuid.uuid4()) for _ in range(CLIENTS)]
        self.answers: list[Answer] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> "Crowd":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def ask(self, number: int) -> None:
        while not self.over.is_set():
            asked_at = time.monotonic()
            try:
                answer = self.question(number)
                problem = answer.json().get("type", "") if answer.status_code >= 400 else ""
                status = answer.status_code
                if status == 503:
                    assert answer.headers["Retry-After"]
            except requests.RequestException as error:
                status, problem = 0, type(error).__name__
            self.answers.append(Answer(asked_at, time.monotonic(), status, problem))
            self.over.wait(0.02)

    def question(self, number: int) -> requests.Response:
        if number % 5 == 0:
            headers = {"Authorization": f"Bearer {API_SECRET}"}
            return requests.get(f"{self.service.url}/readyz", headers=headers, timeout=10)
        body = {
            "action": "publish",
            "path": f"live/crowd{number}",
            "protocol": "rtmp",
            "id": self.connection_ids[number] if number % 5 == 1 else str(uuid.uuid4()),
            "password": self.keys[number] if number % 5 < 4 else "sk_" + "0" * 43,
        }
        return requests.post(f"{self.service.url}/auth", json=body, timeout=10)

    def between(self, start: float, end: float) -> list[Answer]:
        return [answer for answer in self.answers if start <= answer.asked_at < end]


def make_keys(service: Service, count: int) -> list[str]:
    """So many keys, by SQL."""
    values = [keys.mint() for _ in range(count)]
    with psycopg.connect(service.database_url, autocommit=True) as conn, conn.cursor() as cursor:
        broadcaster_id = uuid.uuid4()
        cursor.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Team 7')", [broadcaster_id])
        cursor.executemany(
            "INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint) VALUES (%s, %s, %s, %s)",
            [(uuid.uuid4(), broadcaster_id, keys.digest(value), keys.hint(value)) for value in values],
        )
    return values


def seconds_until_well(crowd: Crowd, since: float) -> float:
    """How long after `since` the last 503 was asked for."""
    return max((answer.asked_at - since for answer in crowd.answers if answer.status == 503), default=0.0)


def report(name: str, crowd: Crowd, away: tuple[float, float]) -> None:
    during = sorted(answer.seconds for answer in crowd.between(*away))
    print(
        f"{name}: {len(during)} answers while away, {dict(Counter(a.status for a in crowd.between(*away)))},"
        f" p50 {during[len(during) // 2]:.3f} s, max {during[-1]:.3f} s;"
        f" last 503 {seconds_until_well(crowd, away[1]):+.3f} s after its return"
    )


@pytest.mark.parametrize("way", ["killed", "frozen", "stopped"])
def test_fifty_clients_are_answered_while_the_database_is_away_and_all_is_well_after(
    service: Service, way: str
) -> None:
    workers = service.workers()
    with Crowd(service) as crowd:
        time.sleep(1)
        away_at = time.monotonic()
        if way == "frozen":
            frozen = service.backends()
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
        else:
            os.kill(service.postmaster(), signal.SIGKILL if way == "killed" else signal.SIGINT)
        time.sleep(4)
        back_at = time.monotonic()
        if way == "frozen":
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        else:
            service.start_database()
            back_at = time.monotonic()
        time.sleep(3)
    report(way, crowd, (away_at, back_at))

    assert {answer.status for answer in crowd.answers} <= {200, 401, 503}, Counter(crowd.answers)
    assert {a.problem for a in crowd.answers if a.status == 503} == {"/errors/database-unavailable", ""}  # "": /readyz
    assert max(answer.seconds for answer in crowd.answers) < 2
    assert any(answer.status == 503 for answer in crowd.between(away_at, back_at))
    assert seconds_until_well(crowd, back_at) < 1
    assert any(answer.status == 200 for answer in crowd.between(back_at + 1, back_at + 3))
    assert service.workers() == workers
    assert "Traceback" not in service.log.read_text()
    assert "sk_" not in service.log.read_text()


def test_a_held_key_row_is_answered_503_in_time_and_claims_nothing(service: Service) -> None:
    (key,) = make_keys(service, 1)
    body = {"action": "publish", "path": "live/a", "protocol": "rtmp", "id": str(uuid.uuid4()), "password": key}
    with psycopg.connect(service.database_url) as holder:
        holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        started = time.monotonic()
        refused = requests.post(f"{service.url}/auth", json=body, timeout=10)
        assert time.monotonic() - started < 1
        assert refused.status_code == 503
        assert refused.json()["type"] == "/errors/database-unavailable"
        assert refused.headers["Retry-After"] == "1"
        assert holder.execute("SELECT count(*) FROM streams").fetchone() == (0,)
    assert requests.post(f"{service.url}/auth", json=body, timeout=10).status_code == 200


def test_terminated_backends_cost_no_publisher_its_answer(service: Service) -> None:
    with Crowd(service) as crowd, psycopg.connect(service.database_url, autocommit=True) as admin:
        for _ in range(5):
            time.sleep(0.3)
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'streamorch' AND pid <> pg_backend_pid()"
            )
        time.sleep(1)
    statuses = Counter(answer.status for answer in crowd.answers)
    print(f"terminated five times: {dict(statuses)}")
    assert statuses.keys() <= {200, 401, 503}
    # A claim is asked again on another connection; only who finds the second one dead as well gets a 503.
    assert statuses[503] < 0.02 * len(crowd.answers)
    assert "Traceback" not in service.log.read_text()


def test_a_killed_worker_is_replaced_and_the_other_goes_on(service: Service) -> None:
    before = service.workers()
    victim = min(before)
    with Crowd(service) as crowd:
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        time.sleep(2)
    after = service.workers()
    assert len(after) == 2
    assert victim not in after
    assert {answer.status for answer in crowd.answers[-50:]} <= {200, 401}
    # A request that was inside the killed worker has no answer; everybody else has one.
    assert sum(answer.status == 0 for answer in crowd.answers) <= CLIENTS
