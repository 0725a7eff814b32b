"""gunicorn's workers and their master killed, frozen, stopped and reloaded, and several instances."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from tests.conftest import API_SECRET
from tests.faults.crowd import (
    CLIENTS_OF_A_WORKER,
    SECONDS,
    Asking,
    Crowd,
    assert_few,
    hold_log,
    is_gone,
    make_keys,
    question,
    wait_until,
)
from tests.running import Service

pytestmark = pytest.mark.slow

# A worker that gunicorn hears nothing of for so long is killed. (30 s in the service.)
TIMEOUT = 3
TURNS = max(2, int(SECONDS))


def test_a_worker_that_is_killed_is_replaced_and_the_other_goes_on(start: Callable[..., Service]) -> None:
    service = start()
    before = service.workers()
    victim = min(before)
    with Crowd(service) as crowd:
        crowd.warm_up()
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(service.workers() - {victim}) == 2)
        replaced_at = time.monotonic()
        time.sleep(1 + SECONDS)
    crowd.report("a worker killed", killed_at, replaced_at)
    # Who was inside the killed worker has no answer; everybody else has one, and the same again is answered.
    crowd.hold(may_be_lost=CLIENTS_OF_A_WORKER)
    crowd.hold_well(replaced_at)
    assert before - {victim} < service.workers()
    hold_log(service)


def test_workers_killed_in_the_middle_of_a_claim(start: Callable[..., Service]) -> None:
    """The claim waits in PostgreSQL for a lock when its worker dies: it is stored whole or not at all, and never twice.

    Who asks again with the same connection id is let in either way.
    """
    service = start()
    values = make_keys(service.database_url, 2 * TURNS)
    stored: list[int] = []
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        for number, key in enumerate(values):
            body = question(key, f"live/a{number}")
            before = service.workers()
            with psycopg.connect(service.database_url) as holder, Asking(service.url, body) as asking:
                holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
                asking.begin()
                wait_until(
                    lambda: (
                        conn.execute(
                            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                            " AND query LIKE '%streams.claim%' AND application_name = 'streamorch'"
                        ).fetchone()
                        == (1,)
                    )
                )
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                if number % 2:  # long enough for the claim to give up
                    time.sleep(0.4)
            assert asking.status == 0
            wait_until(lambda: len(service.workers() - before) == 2)  # noqa: B023
            # PostgreSQL is not told that the client is gone, and goes on until it has to answer.
            wait_until(
                lambda: (
                    conn.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%streams.claim%'"
                        " AND application_name = 'streamorch'"
                    ).fetchone()
                    == (0,)
                )
            )
            stored += [count_of(conn, body)]
            assert answer_to(service, body) == 200
            assert count_of(conn, body) == 1
    print(f"\nkilled in a claim: {sum(stored)} of {len(stored)} were stored all the same")
    assert set(stored[1::2]) == {0}
    assert set(stored) <= {0, 1}
    hold_log(service)


def count_of(conn: psycopg.Connection[Any], body: dict[str, Any]) -> int:
    (count,) = conn.execute("SELECT count(*) FROM streams WHERE auth_id = %s", [body["id"]]).fetchone() or (0,)
    return int(count)


def answer_to(service: Service, body: dict[str, Any]) -> int:
    """The status; asked until there is one other than 503, as long as a worker may take to come up."""
    statuses: list[int] = []

    def is_answered() -> bool:
        with suppress(requests.RequestException):
            statuses.append(requests.post(f"{service.url}/auth", json=body, timeout=10).status_code)
        return statuses[-1:] not in ([], [503])

    wait_until(is_answered)
    return statuses[-1]


def test_sigterm_under_load_loses_no_request(start: Callable[..., Service]) -> None:
    """Who was let in is answered, over new connections and kept ones; who comes later is refused, and told at once."""
    service = start()
    answered = refused = 0
    for _ in range(TURNS):
        with Crowd(service, publishers=16, others=16) as crowd:
            crowd.warm_up()
            stopped_at = time.monotonic()
            service.process.terminate()
            assert service.process.wait(20) == 0
            ended_at = time.monotonic()
        crowd.report("SIGTERM", stopped_at, ended_at)
        assert crowd.lost() == []
        crowd.hold()
        answered += sum(answer.status != 0 for answer in crowd.answers)
        refused += sum(answer.status == 0 for answer in crowd.answers)
        assert ended_at - stopped_at < 10
        service.start()
    print(f"\nSIGTERM {TURNS} times: {answered} answered, 0 lost, {refused} refused")
    hold_log(service)


def test_sighup_under_load_loses_and_refuses_no_request(start: Callable[..., Service]) -> None:
    service = start()
    with Crowd(service, publishers=16, others=16) as crowd:
        crowd.warm_up()
        begun = time.monotonic()
        for _ in range(TURNS):
            before = service.workers()
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: len(service.workers()) == 2 and not service.workers() & before)  # noqa: B023
            time.sleep(0.2)
        over = time.monotonic()
    crowd.report(f"SIGHUP {TURNS} times", begun, over)
    crowd.hold()
    assert [answer for answer in crowd.answers if answer.status == 0] == []
    assert_few(crowd.answers, 0.01)
    hold_log(service)


def test_a_setting_that_is_wrong_at_sighup_leaves_those_from_before_in_force(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    """The file of a secret is away: new workers have the old one, after SIGHUP and in place of one that is killed."""
    secret = tmp_path / "api_secret"
    secret.write_text(API_SECRET)
    service = start(API_SECRET="", API_SECRET_FILE=str(secret))

    def status(of: str) -> int:
        answer = requests.get(f"{service.url}/broadcasters", headers={"Authorization": f"Bearer {of}"}, timeout=10)
        return answer.status_code

    def reload() -> None:
        before = service.workers()
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(service.workers()) == 2 and not service.workers() & before)

    with Crowd(service) as crowd:
        crowd.warm_up()
        secret.unlink()
        reload()
        secret.write_text("")
        reload()
        reloaded_at = time.monotonic()
        time.sleep(0.5 + SECONDS)
    assert [answer for answer in crowd.answers if answer.status == 0] == []
    crowd.hold_well(reloaded_at)
    victim = min(service.workers())
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(service.workers() - {victim}) == 2)
    time.sleep(1)
    assert service.process.poll() is None
    assert [status(API_SECRET) for _ in range(8)] == [200] * 8
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    told = [line["reason"] for line in lines if line["message"].startswith("the settings cannot be reloaded")]
    assert [reason.partition(";")[0] for reason in told] == [
        f"API_SECRET_FILE: {secret}: No such file or directory",
        "API_SECRET is not set",
    ]
    hold_log(service)

    secret.write_text("another-secret-of-the-api")
    reload()
    assert [status(API_SECRET) for _ in range(8)] == [401] * 8
    assert [status("another-secret-of-the-api") for _ in range(8)] == [200] * 8
    hold_log(service)


def test_the_master_is_killed_its_workers_end_and_another_takes_the_port(start: Callable[..., Service]) -> None:
    service = start()
    workers = service.workers()
    with Crowd(service) as crowd:
        crowd.warm_up()
        killed_at = time.monotonic()
        service.process.kill()
        service.process.wait(10)
        took = wait_until(lambda: all(map(is_gone, workers)))
        assert took < 5
        service.start()
        back_at = time.monotonic()
        time.sleep(SECONDS)
    crowd.report(f"master killed, workers gone after {took:.1f} s", killed_at, back_at)
    # Who comes while the last worker ends is taken by nobody, and TCP tries again after 1 and 3 seconds.
    crowd.hold(within=10)
    crowd.hold_well(back_at)
    hold_log(service)


def test_a_worker_that_is_frozen_is_replaced_and_the_other_goes_on(start: Callable[..., Service]) -> None:
    """Who is inside the frozen one waits until gunicorn kills it (30 s; here 3); the other takes whoever comes."""
    service = start(GUNICORN_CMD_ARGS=f"--timeout {TIMEOUT}")
    victim = min(service.workers())
    with Crowd(service) as crowd:
        crowd.warm_up()
        frozen_at = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: len(service.workers() - {victim}) == 2)
        replaced_at = time.monotonic()
        time.sleep(SECONDS)
    crowd.report("a worker frozen", frozen_at, replaced_at)
    crowd.hold(within=TIMEOUT + 5, may_be_lost=CLIENTS_OF_A_WORKER)
    # Nobody who came later has waited for it.
    later = crowd.between(frozen_at + 0.1, replaced_at)
    assert len(later) > 100
    assert max(answer.seconds for answer in later) < 2
    assert replaced_at - frozen_at < TIMEOUT + 10
    assert "Traceback" not in service.log.read_text()


def test_of_several_instances_one_is_killed(start: Callable[..., Service]) -> None:
    """The other answers as ever, and leads soon: nothing of what it needs was in the first."""
    first = start()
    with psycopg.connect(first.database_url, autocommit=True) as conn:

        def leads() -> tuple[str, int] | None:
            return conn.execute("SELECT holder, epoch FROM leaders WHERE expires_at > clock_timestamp()").fetchone()

        wait_until(lambda: leads() is not None)
        second = start(DATABASE_URL=first.database_url)
        with Crowd(first, url=second.url) as crowd:
            time.sleep(0.3)
            before = leads()
            killed_at = time.monotonic()
            for pid in (first.process.pid, *first.workers()):
                os.kill(pid, signal.SIGKILL)
            took = wait_until(lambda: leads() not in (None, before), 20)
        crowd.report(f"an instance killed, another leads after {took:.1f} s", killed_at, killed_at + took)
    crowd.hold()
    assert_few(crowd.answers)
    assert took < 15
    hold_log(second)
