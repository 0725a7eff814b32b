"""The service that faults are made to: one for the tests of a file that leave it as well as they found it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults.crowd import hold_log
from tests.running import Service


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    running = Service(Path(tempfile.mkdtemp(prefix="streamorch-fault-")))
    yield running
    running.close()


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The file's service with an empty table. Whatever is done to it: no worker is lost, and nothing odd logged."""
    shared.start_database()
    with psycopg.connect(shared.database_url, autocommit=True) as conn:
        for table in ("streams", "stream_keys", "broadcasters", "departures"):
            conn.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
    shared.log.write_text("")
    workers = shared.workers()
    yield shared
    assert shared.workers() == workers
    hold_log(shared)


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """Services of a test's own, with these settings."""
    started: list[Service] = []

    def make(data: Path | None = None, /, **settings: str) -> Service:
        running = Service(Path(tempfile.mkdtemp(prefix="streamorch-fault-")), data, **settings)
        started.append(running)
        return running

    yield make
    for running in started:
        running.close()
