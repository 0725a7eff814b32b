"""`streamorch migrate` under the load of the release before, behind a lock, twice at once, and killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streamorch import local
from streamorch.repositories import migrate
from tests.faults.crowd import SECONDS, Crowd, assert_few, hold_log, wait_until
from tests.running import ROOT, Service

pytestmark = pytest.mark.slow

# What the last release added: indexes, of which one may have to wait for whoever holds the table, and functions.
NEW = [migration.name for migration in migrate.available()[-2:]]
SAID = "".join(f"{name}\n" for name in NEW)


class OldService(Service):
    """The service on a schema without the last files of sql/.

    They add: what the release before asks for is what we ask for where its schema has it, and what is new is asked for
    only with HISTORY_DAYS, which is not set, or a media server. `serve` alone would refuse, and is left out.
    """

    command = tuple(local.service_command())
    sign_of_life = "/livez"

    def migrate(self) -> "subprocess.Popen[str]":
        """The command of the new release."""
        return subprocess.Popen(
            [sys.executable, "-m", "streamorch", "migrate"],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def applied(self) -> list[str]:
        with psycopg.connect(self.database_url) as conn:
            rows = conn.execute("SELECT name FROM streamorch_migrations ORDER BY name").fetchall()
        return [name for (name,) in rows]


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Iterator[OldService]:
    with monkeypatch.context() as patch:
        older = migrate.available()[: -len(NEW)]
        patch.setattr(migrate, "available", lambda: older)
        service = OldService(Path(tempfile.mkdtemp(prefix="streamorch-fault-")))
    yield service
    service.close()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and what it said."""
    said, complaints = process.communicate(timeout=120)
    return process.returncode, said + complaints


def waits_for_a_lock(conn: psycopg.Connection[Any]) -> list[int]:
    """The backend of a migration that waits for a lock on a table, or for those who hold one to be gone."""
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = 'streamorch migrate' AND wait_event IN ('relation', 'virtualxid')"
    ).fetchall()
    return [pid for (pid,) in rows]


def test_a_migration_under_load_is_not_noticed(old: OldService) -> None:
    """Also by two at once: one waits for the other, and finds nothing to do."""
    assert not {*NEW} & {*old.applied()}
    with Crowd(old) as crowd:
        time.sleep(0.5)
        begun = time.monotonic()
        both = [ended(process) for process in (old.migrate(), old.migrate())]
        over = time.monotonic()
        time.sleep(SECONDS)
    crowd.report("migrated, twice at once", begun, over)
    assert sorted(both) == [(0, SAID), (0, "schema is current\n")]
    crowd.hold()
    # An old schema is told by /readyz alone.
    assert_few([answer for answer in crowd.answers if answer.question != "readyz"], 0.01)
    assert_few(crowd.between(over, over + SECONDS))
    hold_log(old)


def test_a_migration_that_cannot_have_its_lock_stops_nobody_and_is_killed_without_a_trace(old: OldService) -> None:
    """A transaction that is open for long (a dump, a forgotten psql) has a table that the migration must change."""
    before = old.applied()
    with (
        Crowd(old) as crowd,
        psycopg.connect(old.database_url) as holder,
        psycopg.connect(old.database_url, autocommit=True) as conn,
    ):
        wait_until(lambda: crowd.done["claim"])
        holder.execute("LOCK TABLE streams IN ROW EXCLUSIVE MODE")
        begun = time.monotonic()
        killed = old.migrate()
        wait_until(lambda: waits_for_a_lock(conn))
        os.kill(killed.pid, signal.SIGKILL)
        ended(killed)
        # PostgreSQL goes on with an index, and ends with the transaction it waits for; the next builds it anew.
        assert old.applied() == before
        waiting = old.migrate()
        wait_until(lambda: waits_for_a_lock(conn))
        time.sleep(0.5 + SECONDS)
        assert waiting.poll() is None
        holder.rollback()
        assert ended(waiting) == (0, SAID)
        over = time.monotonic()
        time.sleep(0.5)
    crowd.report("migrated behind a lock", begun, over)
    crowd.hold()
    assert_few([answer for answer in crowd.answers if answer.question != "readyz"], 0.01)
    assert old.applied() == [*before, *NEW]
    hold_log(old)
