"""Clocks that jump, by an hour and both ways, while there is a load.

The machine's clock is left alone: what is written down is moved, which is the same to the database that compares.
"""

import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from streamorch import signing
from tests.conftest import API_SECRET
from tests.fake_mediamtx import FakeMediaMTX, Publisher
from tests.faults.crowd import BEARER, SECONDS, hold_log, make_keys, wait_until
from tests.passing import TIMES
from tests.running import Service

pytestmark = pytest.mark.slow

HOUR = 3600


class Studio:
    """The service and a media server with publishers that are live."""

    def __init__(self, service: Service, fake: FakeMediaMTX):
        self.service = service
        self.fake = fake
        self.keys = iter(make_keys(service.database_url, 1000))

    def accepted(self) -> Publisher:
        """Let in, not live yet."""
        publisher = self.fake.publish(f"live/{uuid.uuid4().hex}", live=False, bytes_per_second=100_000)
        assert self.fake.ask(publisher, next(self.keys)) == 200
        return publisher

    def live(self) -> Publisher:
        publisher = self.accepted()
        self.fake.go_live(publisher)
        assert self.fake.hook_ready(publisher) == 204
        return publisher

    def listed(self) -> set[str]:
        answer = requests.get(f"{self.service.url}/streams", headers=BEARER, timeout=10)
        assert answer.status_code == 200
        return {stream["source_id"] for stream in answer.json()["streams"]}

    def conn(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.service.database_url)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with FakeMediaMTX() as fake:
        service = Service(
            Path(tempfile.mkdtemp(prefix="streamorch-fault-")), MEDIAMTX_API_URL=fake.url, RECONCILE_SECONDS="1"
        )
        fake.callback_url = service.url
        yield Studio(service, fake)
        service.close()


def move_all_times(conn: psycopg.Connection[Any], seconds: float) -> None:
    """All that is written down becomes so much older, the lease of the leader too: the clock has jumped ahead."""
    with conn.transaction():
        conn.execute("LOCK TABLE leaders, streams IN EXCLUSIVE MODE")
        for table, columns in {**TIMES, "leaders": ("expires_at",)}.items():
            for column in columns:
                name = psycopg.sql.Identifier(column)
                conn.execute(
                    psycopg.sql.SQL("UPDATE {} SET {} = {} - make_interval(secs => {})").format(
                        psycopg.sql.Identifier(table), name, name, psycopg.sql.Literal(seconds)
                    )
                )


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "back"])
def test_the_clock_of_the_database_jumps(studio: Studio, seconds: int) -> None:
    service, fake = studio.service, studio.fake
    rightful = {publisher.source_id: publisher for publisher in (studio.live() for _ in range(5))}
    wait_until(lambda: rightful.keys() <= studio.listed())
    starting = studio.accepted()

    with studio.conn() as conn:
        move_all_times(conn, seconds)
    jumped_at = time.monotonic()
    # Who comes now is let in, seen live, and ends by its hook, as on any other day.
    while time.monotonic() < jumped_at + 3 + SECONDS:
        publisher = studio.live()
        assert publisher.source_id in studio.listed()
        fake.leave(publisher)
        assert fake.hook_not_ready(publisher) == 204
        time.sleep(0.05)
        assert rightful.keys() <= studio.listed()
    assert all(publisher.is_live for publisher in rightful.values())

    # Whose claim fell into the jump is listed as soon as it is live, though its lease had lapsed and its hook is lost.
    fake.go_live(starting)
    took = wait_until(lambda: starting.source_id in studio.listed())
    print(f"\nclock {'ahead' if seconds > 0 else 'back'}: who was starting is listed {took:.1f} s after it was live")
    assert fake.kicks == []
    # Somebody leads, and goes on doing so: who leaves without a word is found out.
    silent = studio.live()
    time.sleep(1)
    fake.leave(silent)
    wait_until(lambda: silent.source_id not in studio.listed())
    for publisher in rightful.values():
        fake.leave(publisher)
        assert fake.hook_not_ready(publisher) == 204
    fake.leave(starting)
    assert fake.hook_not_ready(starting) == 204
    assert studio.listed() == set()
    hold_log(service)


def test_a_signature_is_judged_by_the_clock_of_the_process(studio: Studio) -> None:
    """Not by the database's: an hour between the two costs nobody his access."""

    def status(moment: float) -> int:
        stamp = str(int(moment))
        signed = signing.signature(API_SECRET, method="GET", path="/streams", timestamp=stamp, body=b"")
        headers = {"X-API-Key": "name", "X-Timestamp": stamp, "X-Signature": signed}
        return requests.get(f"{studio.service.url}/streams", headers=headers, timeout=10).status_code

    for seconds in (0, HOUR, -2 * HOUR):
        with studio.conn() as conn:
            move_all_times(conn, seconds)
        assert [status(time.time() + drift) for drift in (-HOUR, -200, 0, 200, HOUR)] == [401, 200, 200, 200, 401]
