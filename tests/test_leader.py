"""One reconciler of many leads. When it stops, dies or freezes another does soon, and the old one does nothing more."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from streamorch import local
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import Connection, reconciliation, streams
from tests.blueprints import only, rows
from tests.conftest import API_SECRET, MediaServer
from tests.fake_mediamtx import FakeMediaMTX, Publisher
from tests.running import ROOT, free_port

PATH = "live/cam7"
# One that ticks until its standard input ends.
TICKER = """
import os, sys
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.settings import Settings
settings = Settings.from_env(os.environ)
reconciler = Reconciler(settings, ControlAPI(settings.mediamtx_api_url, user="streamorch", password="secret"))
reconciler.start()
sys.stdin.read()
reconciler.stop()
"""


@pytest.fixture(autouse=True)
def forget_leader(conn) -> Iterator[None]:
    """Nobody leads, before and after."""
    forget = "UPDATE leaders SET holder = '', expires_at = '-infinity'"
    conn.execute(forget)
    yield
    conn.execute("DELETE FROM streams")
    conn.execute(forget)


@pytest.fixture
def make_reconciler(make_settings, fake) -> Iterator[Callable[..., Reconciler]]:
    """One that was started in this process."""
    made: list[Reconciler] = []

    def make(**settings: str) -> Reconciler:
        of = make_settings(**{"MEDIAMTX_API_URL": fake.url, "RECONCILE_SECONDS": "0.2", **settings})
        reconciler = Reconciler(of, ControlAPI(fake.url, user="streamorch", password="secret"))
        made.append(reconciler)
        reconciler.start()
        return reconciler

    yield make
    fake.heal()
    for reconciler in made:
        reconciler.stop()
        assert not is_running(reconciler)


@pytest.fixture
def environ(database_url, fake) -> dict[str, str]:
    """What a process needs to know."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "API_SECRET": API_SECRET,
        "MEDIAMTX_API_URL": fake.url,
        "RECONCILE_SECONDS": "0.2",
    }


@pytest.fixture
def start_process(environ) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A process that runs a reconciler and nothing else."""
    made: list[subprocess.Popen[str]] = []

    def start(**settings: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", TICKER], cwd=ROOT, env=environ | settings, stdin=subprocess.PIPE, text=True
        )
        made.append(process)
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


def is_running(reconciler: Reconciler) -> bool:
    return reconciler._thread.is_alive()


def until(condition: Callable[[], Any], seconds: float) -> float:
    """Wait for it; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to that in time"
        time.sleep(0.02)
    return time.monotonic() - began


def leader(conn: Connection) -> str | None:
    """Who leads now."""
    found = rows(conn, "SELECT holder FROM leaders WHERE expires_at > clock_timestamp()")
    return found[0]["holder"] if found else None


def epoch(conn: Connection) -> int:
    found: int = only(conn, "SELECT epoch FROM leaders")["epoch"]
    return found


def last_tick(conn: Connection) -> Any:
    found = rows(conn, "SELECT last_tick_at FROM nodes")
    return found[0]["last_tick_at"] if found else None


def ticks(conn: Connection, *, seconds: float = 2) -> float:
    """Wait for the next tick that saw everything."""
    before = last_tick(conn)
    return until(lambda: last_tick(conn) != before, seconds)


# --- one leads ----------------------------------------------------------------------------------------------------


def test_of_two_one_leads_and_when_it_stops_the_other(make_reconciler, conn):
    reconcilers = [make_reconciler() for _ in range(2)]
    until(lambda: leader(conn), 2)
    first, first_epoch = leader(conn), epoch(conn)
    for _ in range(3):
        ticks(conn)
        assert (leader(conn), epoch(conn)) == (first, first_epoch)
    (leading,) = (reconciler for reconciler in reconcilers if reconciler._holder == first)
    began = time.monotonic()
    leading.stop()
    assert time.monotonic() - began < 1
    assert not is_running(leading)
    until(lambda: leader(conn) not in (None, first), 1.5)
    assert epoch(conn) == first_epoch + 1
    ticks(conn)


def test_the_last_one_that_stops_gives_the_lead_away(make_reconciler, conn):
    reconciler = make_reconciler()
    until(lambda: leader(conn), 2)
    reconciler.stop()
    assert leader(conn) is None


def test_a_stop_does_not_wait_for_the_next_tick(make_reconciler, conn):
    reconciler = make_reconciler(RECONCILE_SECONDS="60")
    until(lambda: leader(conn), 2)
    began = time.monotonic()
    reconciler.stop()
    assert time.monotonic() - began < 1
    assert leader(conn) is None


def test_a_stop_waits_for_no_more_than_the_request_under_way(make_reconciler, conn, fake):
    reconciler = make_reconciler()
    ticks(conn)
    fake.hang()
    fake.forget_calls()
    until(lambda: fake.calls, 2)
    began = time.monotonic()
    reconciler.stop()
    assert time.monotonic() - began < 1.5
    assert not is_running(reconciler)
    assert leader(conn) is None


def test_a_leader_that_was_killed_is_succeeded(start_process, conn):
    first = start_process()
    until(lambda: last_tick(conn), 15)
    held = leader(conn)
    start_process()
    time.sleep(1.5)  # until it asks for the lead
    assert leader(conn) == held
    first.kill()
    until(lambda: leader(conn) not in (None, held), 6)
    ticks(conn)


def take_lead(conn: Connection) -> Callable[[], reconciliation.Lead | None]:
    """Ask for the lead as another process would."""
    return lambda: reconciliation.lead(conn, holder="another", seconds=600)


def was_kicked(fake: FakeMediaMTX) -> bool:
    """Was it asked to close anything?"""
    return any("/kick/" in call.target for call in fake.calls)


def go_live(fake: FakeMediaMTX, media_server: MediaServer, key: Any, path: str) -> Publisher:
    return fake.publish(path, connection_id=media_server.go_live(key, path))


def test_a_leader_that_was_frozen_is_succeeded_and_does_nothing_more(start_process, conn, fake, media_server, make_key):
    """Frozen in the middle of a tick, while it asks for the end of a stranger."""
    process = start_process(UNKNOWN_PUBLISHERS="kick")
    until(lambda: last_tick(conn), 15)
    publishers = [go_live(fake, media_server, make_key(), f"live/{number}") for number in range(3)]
    for _ in range(3):  # so that a stranger is known to be a newcomer
        ticks(conn)
    fake.hang("/v3/rtmpconns/kick")
    fake.publish("open/door")
    until(lambda: was_kicked(fake), 3)
    process.send_signal(signal.SIGSTOP)
    until(take_lead(conn), 6)

    # What it would kick, end and write down, if it thought that it still led.
    stopped, gone, _ = publishers
    stream_id = only(conn, "SELECT id FROM streams WHERE source_id = %s", stopped.source_id)["id"]
    streams.stop(conn, stream_id, hold_seconds=0)
    fake.leave(gone)
    tables = ("streams", "stream_stats", "nodes", "leaders", "live_list")
    read = [psycopg.sql.SQL("SELECT *, xmin FROM {}").format(psycopg.sql.Identifier(table)) for table in tables]
    before = [conn.execute(query).fetchall() for query in read]
    fake.heal()
    fake.forget_calls()
    process.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    assert [conn.execute(query).fetchall() for query in read] == before
    assert not was_kicked(fake)

    reconciliation.resign(conn, epoch(conn))
    until(lambda: stopped.source_id in fake.kicks, 3)
    ticks(conn)
    reasons = {row["end_reason"] for row in rows(conn, "SELECT end_reason FROM streams")}
    assert reasons == {"stopped", "disconnected", None}


# --- the database goes and comes ------------------------------------------------------------------------------------


def test_a_leader_whose_connection_was_terminated_goes_on(make_reconciler, conn, fake):
    make_reconciler()
    ticks(conn)
    fake.slow(0.3, "/v3/paths")
    fake.forget_calls()
    until(lambda: any("/v3/paths" in call.target for call in fake.calls), 2)
    ended = conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%reconciliation.%' AND pid <> pg_backend_pid()"
    ).fetchall()
    assert ended == [(True,)]
    fake.heal()
    ticks(conn, seconds=4)
    assert leader(conn)


@pytest.mark.own_database
def test_it_waits_for_a_database_that_is_away(make_reconciler, conn, embedded, caplog):
    caplog.set_level(logging.INFO, "streamorch.reconciler")
    make_reconciler()
    ticks(conn)
    name = psycopg.sql.Identifier(conn.info.dbname)
    with psycopg.connect(
        host=embedded.host, port=embedded.port, user=embedded.user, dbname="postgres", autocommit=True
    ) as admin:
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
            [conn.info.dbname, conn.info.backend_pid],
        )
        told = "the reconciler waits for the database"
        until(lambda: told in caplog.messages, 3)
        time.sleep(0.7)
        assert caplog.messages.count(told) == 1
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    ticks(conn, seconds=4)


def test_it_stops_without_a_database(make_reconciler, caplog):
    reconciler = make_reconciler(DATABASE_URL="postgresql:///none?host=/nowhere")
    until(lambda: "the reconciler waits for the database" in caplog.messages, 2)
    began = time.monotonic()
    reconciler.stop()
    assert time.monotonic() - began < 1
    assert not is_running(reconciler)


def test_a_tick_that_goes_wrong_is_told_and_is_not_the_last(make_reconciler, conn, caplog, monkeypatch):
    make_reconciler()
    ticks(conn)
    with monkeypatch.context() as broken:
        broken.setattr("streamorch.reconciler._moment", lambda text: 1 / 0)
        until(lambda: "a tick of the reconciler failed" in caplog.messages, 2)
    ticks(conn)


def test_a_media_server_that_talks_nonsense_is_as_good_as_silent(make_reconciler, conn, fake, caplog):
    make_reconciler()
    ticks(conn)
    path = {"name": "a\nb", "ready": True, "source": {"type": "rtmpConn", "id": "a\nb"}}
    fake.answer(200, json.dumps({"items": [path]}).encode(), route="/v3/paths/list")
    until(lambda: only(conn, "SELECT api_state FROM nodes")["api_state"] == "silent", 5)
    assert "a tick of the reconciler failed" not in caplog.messages
    fake.heal()
    ticks(conn)


# --- processes as they are started ----------------------------------------------------------------------------------


def reconcile_once(environ: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "streamorch", "reconcile", "--once"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_one_tick_by_hand_takes_the_lead_and_gives_it_back(
    make_reconciler, environ, conn, fake, media_server, make_key
):
    make_reconciler(RECONCILE_SECONDS="60")
    until(lambda: last_tick(conn), 2)
    before = epoch(conn)
    key = make_key()
    lost_hook = fake.publish(PATH, live=False)
    assert media_server.ask(key, PATH, id=lost_hook.auth_id).status_code == 200
    fake.go_live(lost_hook)
    fake.publish("open/door")
    report = reconcile_once(environ)
    assert (report["node"], report["api"], report["version"]) == ("default", "ok", "v1.20.1")
    assert (report["paths"], report["live"], report["change_count"], report["kicked"]) == (2, 2, 1, 0)
    assert [(change["what"], change["path"]) for change in report["changes"]] == [("active", PATH)]
    assert [entry["path"] for entry in report["unclaimed"]] == ["open/door"]
    assert (epoch(conn), leader(conn)) == (before + 1, None)


def test_after_a_tick_by_hand_the_leader_leads_again(make_reconciler, environ, conn):
    make_reconciler()
    ticks(conn)
    before, held = epoch(conn), leader(conn)
    assert reconcile_once(environ)["changes"] == []
    until(lambda: leader(conn) == held, 2)
    assert epoch(conn) == before + 2
    ticks(conn)


def test_one_tick_by_hand_has_the_secret_of_the_run_beside_it(environ, tmp_path):
    local.api_secret_file(tmp_path)
    mine = {name: value for name, value in environ.items() if name != "API_SECRET"}
    assert reconcile_once(mine | {"STREAMORCH_HOME": str(tmp_path)})["node"] == "default"


def test_one_tick_by_hand_tells_that_nobody_answers(environ, fake, conn):
    fake.refuse()
    report = reconcile_once(environ)
    assert (report["api"], report["paths"], report["changes"]) == ("refused", None, [])
    assert leader(conn) is None


def test_a_service_that_stops_leaves_no_thread_and_no_lead(environ, fake, conn, tmp_path):
    """Also while the media server hangs, and with two workers of which one leads."""
    log = tmp_path / "log"
    settings = {"API_PORT": str(free_port()), "WEB_CONCURRENCY": "2", "LOG_LEVEL": "info"}
    with log.open("w") as stderr:
        service = subprocess.Popen(
            [sys.executable, "-m", "streamorch", "serve"], cwd=ROOT, env=environ | settings, stderr=stderr
        )
    try:
        until(lambda: last_tick(conn), 20)
        fake.hang()
        fake.forget_calls()
        until(lambda: fake.calls, 3)
        began = time.monotonic()
        service.terminate()
        assert service.wait(15) == 0
        assert time.monotonic() - began < 5
    finally:
        service.kill()
        service.wait()
    assert leader(conn) is None
    assert "Traceback" not in log.read_text()
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'reconciliation[.]'"
    until(lambda: not rows(conn, others + " AND pid <> pg_backend_pid()"), 2)
