"""PostgreSQL stopped, killed, frozen, full, locked, read-only, and away when the service starts."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from streamorch import keys
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
    p95,
    question,
    wait_until,
)
from tests.running import ROOT, Service, free_port

pytestmark = pytest.mark.slow


@contextmanager
def admin(service: Service) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(service.database_url, autocommit=True, application_name="admin") as conn:
        yield conn


def end_sessions(conn: psycopg.Connection[Any]) -> None:
    """End every session of the service."""
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'streamorch'")


def ask(service: Service, body: dict[str, Any]) -> requests.Response:
    return requests.post(f"{service.url}/auth", json=body, timeout=10)


@contextmanager
def frozen(service: Service) -> Iterator[None]:
    """Every process of PostgreSQL stands still meanwhile."""
    stopped: list[int] = []
    try:
        for pid in service.backends():  # the postmaster first: nobody comes after it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):  # one that had just ended is reaped by the first to go on
                os.kill(pid, signal.SIGCONT)


# --- away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["killed", "frozen", "stopped", "restarted"])
def test_while_the_database_is_away_all_are_answered_and_when_it_is_back_all_is_well(
    service: Service, way: str
) -> None:
    postmaster = service.postmaster()
    with Crowd(service, publishers=30, others=20) as crowd:
        crowd.warm_up()
        away_at = time.monotonic()
        if way == "frozen":
            with frozen(service):
                time.sleep(0.8 + SECONDS)
        else:
            os.kill(postmaster, signal.SIGKILL if way == "killed" else signal.SIGINT)
            if way == "restarted":
                wait_until(lambda: is_gone(postmaster))
            else:
                time.sleep(0.8 + SECONDS)
            service.start_database()
        back_at = time.monotonic()
        time.sleep(2)
    crowd.report(way, away_at, back_at)
    crowd.hold()
    away = crowd.between(away_at, back_at)
    assert any(answer.status == 503 for answer in away)
    # Who polls the list has the last one, and is told so.
    assert any(answer.is_stale for answer in away)
    crowd.hold_well(back_at)
    assert any(answer.question == "claim" and answer.status == 200 for answer in crowd.between(back_at, back_at + 2))


def was_stored_before_it_was_asked_again(service: Service, conn: psycopg.Connection[Any], path: str) -> bool:
    """One claim is answered 503 by a frozen server, and 200 when it is asked again; had the first been stored?"""
    (key,) = make_keys(service.database_url, 1)
    body = question(key, path)

    def is_stored() -> bool:
        return conn.execute("SELECT count(*) FROM streams WHERE path = %s", [path]).fetchone() == (1,)

    with requests.Session() as client:  # a kept connection, and so one worker
        for _ in range(5):
            assert client.post(f"{service.url}/auth", json=body | {"password": keys.mint()}).status_code == 401
        with frozen(service):
            refused = client.post(f"{service.url}/auth", json=body, timeout=10)
        assert (refused.status_code, refused.json()["type"]) == (503, "/errors/database-unavailable")
        was_stored = True
        try:
            wait_until(is_stored, 2)
        except AssertionError:
            was_stored = False
        wait_until(lambda: client.get(f"{service.url}/readyz", timeout=5).status_code == 200)
        assert client.post(f"{service.url}/auth", json=body, timeout=10).status_code == 200
        assert is_stored()
    return was_stored


def test_a_claim_that_was_answered_503_may_be_stored_and_asked_again_is_granted(service: Service) -> None:
    """What a frozen server has been sent it does when it is thawed: who was told 503 may hold the key for a lease.

    Of a session's first claim it has been sent the statement only, to be prepared. So the worker that is asked has
    just answered others; and where another of its threads had their session at that moment, there is another try.
    """
    with admin(service) as conn:
        assert any(was_stored_before_it_was_asked_again(service, conn, f"live/late-{number}") for number in range(5))


def test_terminated_sessions_cost_no_publisher_its_answer(service: Service) -> None:
    with Crowd(service) as crowd, admin(service) as conn:
        begun = time.monotonic()
        for _ in range(5):
            time.sleep(0.2 + SECONDS / 15)
            end_sessions(conn)
        over = time.monotonic()
        time.sleep(1)
    crowd.report("terminated five times", begun, over)
    crowd.hold()
    # A claim is asked again on another connection; only who finds the second one dead as well gets a 503.
    assert_few([answer for answer in crowd.answers if answer.question != "list"], 0.1)


def test_sessions_that_died_while_nobody_used_them_cost_nobody_his_answer(service: Service) -> None:
    keys = make_keys(service.database_url, 8)
    statuses = []
    with admin(service) as conn:
        for number, key in enumerate(keys):
            end_sessions(conn)
            time.sleep(0.1)
            statuses.append(ask(service, question(key, f"live/idle{number}")).status_code)
    # Where the machine was too busy to connect anew in time there may be another.
    assert statuses.count(200) >= 6, statuses


def test_a_claim_whose_session_is_terminated_is_asked_again_on_another(service: Service) -> None:
    statuses = []
    for number in range(5):
        (key,) = make_keys(service.database_url, 1)
        body = question(key, f"live/again{number}")
        with (
            admin(service) as conn,
            psycopg.connect(service.database_url) as holder,
            Asking(service.url, body) as asking,
        ):
            holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
            asking.begin()
            for pid in wait_for_waiting(conn):
                conn.execute("SELECT pg_terminate_backend(%s)", [pid])
            holder.rollback()
        statuses.append(asking.status)
    # A lock is waited for 0.3 s, which a busy machine may have needed for the rest.
    assert statuses.count(200) >= 2, statuses
    with admin(service) as conn:
        counted = conn.execute("SELECT count(*), count(DISTINCT auth_id) FROM streams").fetchone() or (0, 0)
    assert counted[0] == counted[1] >= statuses.count(200)


def test_a_backend_that_is_killed_in_a_claim_takes_all_sessions_with_it_and_all_come_back(service: Service) -> None:
    """PostgreSQL ends every session when one backend dies without a word, and recovers."""
    with Crowd(service) as crowd:
        crowd.warm_up()
        with held(service, KEY_ROW, crowd) as holder, admin(service) as conn:
            victims = wait_for_waiting(conn)
            killed_at = time.monotonic()
            os.kill(victims[0], signal.SIGKILL)
            wait_until(lambda: is_lost(holder))
        wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 200)
        back_at = time.monotonic()
        time.sleep(1 + SECONDS)
    crowd.report("a backend killed in a claim", killed_at, back_at)
    crowd.hold()
    assert any(answer.status == 503 for answer in crowd.answers)
    crowd.hold_well(back_at)


# --- locked -------------------------------------------------------------------------------------------------

KEY_ROW = "SELECT 1 FROM stream_keys ORDER BY key_hash LIMIT 1 FOR UPDATE"
LOCKS = {
    "key row": KEY_ROW,
    "every key row": "SELECT 1 FROM stream_keys FOR UPDATE",
    "path": "SELECT lock_path_v1((SELECT path FROM streams ORDER BY claimed_at DESC LIMIT 1))",
    "row of the list": "SELECT 1 FROM live_list FOR UPDATE",
    "row of the leader": "SELECT 1 FROM leaders FOR UPDATE",
    "row of the node": "SELECT 1 FROM nodes FOR UPDATE",
    "broadcaster": "SELECT 1 FROM broadcasters FOR UPDATE",
}
# Who needs what is held; everybody else is answered as on any other day.
WAITS_FOR = {
    "key row": {"claim", "ready"},
    "every key row": {"claim", "ready"},
    "path": {"claim", "ready"},
    "row of the list": {"ready", "not-ready"},
}


@contextmanager
def held(service: Service, lock: str, crowd: Crowd) -> Iterator[psycopg.Connection[Any]]:
    """A session that has this lock, and gives it back at the end."""
    wait_until(lambda: crowd.done["not-ready"])
    holder = psycopg.connect(service.database_url, application_name="holder")
    try:
        holder.execute(lock.encode())
        yield holder
    finally:
        holder.close()


def wait_for_waiting(conn: psycopg.Connection[Any]) -> list[int]:
    """The backends of the service that wait for a lock, as soon as there are any."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            pid
            for (pid,) in conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'streamorch' AND wait_event_type = 'Lock'"
            )
        ]
        return bool(found)

    wait_until(look)
    return found


def is_lost(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_that_somebody_holds_costs_only_those_who_need_it(service: Service, lock: str) -> None:
    with Crowd(service, publishers=8) as crowd:
        with held(service, LOCKS[lock], crowd):
            held_at = time.monotonic()
            time.sleep(0.2 + SECONDS)
            free_at = time.monotonic()
        time.sleep(0.5)
    crowd.report(f"{lock} held", held_at, free_at)
    crowd.hold()
    concerned = WAITS_FOR.get(lock, set())
    assert_few([answer for answer in crowd.answers if answer.question not in concerned])
    if concerned:
        assert any(answer.status == 503 for answer in crowd.answers if answer.question in concerned)
    # A thread waits 0.3 s for a lock, and others may wait for the thread.
    assert p95([a for a in crowd.between(held_at, free_at) if a.question in ("stranger", "list", "readyz")]) < 1
    crowd.hold_well(free_at)


def test_a_held_key_row_is_answered_503_in_time_and_claims_nothing(service: Service) -> None:
    (key,) = make_keys(service.database_url, 1)
    body = question(key, "live/a")
    with psycopg.connect(service.database_url) as holder:
        holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        started = time.monotonic()
        refused = ask(service, body)
        assert time.monotonic() - started < 1
        assert refused.status_code == 503
        assert refused.json()["type"] == "/errors/database-unavailable"
        assert refused.headers["Retry-After"] == "1"
        assert holder.execute("SELECT count(*) FROM streams").fetchone() == (0,)
    assert ask(service, body).status_code == 200


# --- there, and not able or willing -------------------------------------------------------------------------


@contextmanager
def no_connection_left(service: Service) -> Iterator[None]:
    """Others have every connection that PostgreSQL gives, those of the service too."""
    with ExitStack() as others, admin(service) as conn:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                others.enter_context(psycopg.connect(service.database_url, application_name="other"))
            except psycopg.OperationalError:
                ours = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'streamorch'"
                ).fetchone()
                if ours == (0,):
                    break
                end_sessions(conn)
        else:
            raise AssertionError("the service keeps its connections")
        yield


def serve(service: Service, **environ: str) -> subprocess.CompletedProcess[str]:
    """Another `streamorch serve`, which is not expected to come up."""
    return subprocess.run(
        [sys.executable, "-m", "streamorch", "serve"],
        cwd=ROOT,
        env=service.environ | {"API_PORT": str(free_port())} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def hold_one_line(ended: subprocess.CompletedProcess[str], *, unlike: str = API_SECRET) -> None:
    assert ended.returncode == 1
    assert ended.stderr.startswith("streamorch: the database does not answer: ")
    assert ended.stderr.count("\n") == 1
    assert unlike not in ended.stderr


def test_out_of_connections(start: Callable[..., Service]) -> None:
    """Also a worker that starts meanwhile comes up; a service that starts says why it does not."""
    service = start()
    with Crowd(service) as crowd:
        crowd.warm_up()
        with no_connection_left(service):
            full_at = time.monotonic()
            hold_one_line(serve(service))
            killed = min(service.workers())
            os.kill(killed, signal.SIGKILL)
            time.sleep(0.5 + SECONDS)
            free_at = time.monotonic()
        time.sleep(2)
    crowd.report("out of connections", full_at, free_at)
    crowd.hold(may_be_lost=CLIENTS_OF_A_WORKER)
    assert any(answer.status == 503 for answer in crowd.between(full_at, free_at))
    crowd.hold_well(free_at)
    assert len(service.workers() - {killed}) == 2
    with admin(service) as conn:  # it reconciles again
        wait_until(lambda: conn.execute("SELECT expires_at > clock_timestamp() FROM leaders").fetchone() == (True,))
    hold_log(service)


@pytest.mark.parametrize("where", ["server", "sessions"])
def test_a_database_that_may_only_be_read(service: Service, where: str) -> None:
    """As a primary that has become a standby. `sessions`: those that were made meanwhile stay so, as after a failover.

    Who only asks is answered as ever; who would write is told to come again, and no session that refuses is kept.
    """
    lock, unlock = {
        "server": ("ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET ALL"),
        "sessions": (
            "ALTER ROLE postgres SET default_transaction_read_only = on",
            "ALTER ROLE postgres RESET default_transaction_read_only",
        ),
    }[where]
    with admin(service) as conn, Crowd(service) as crowd:
        crowd.warm_up()
        conn.execute("SET default_transaction_read_only = off")
        locked_at = time.monotonic()
        try:
            conn.execute(lock.encode())
            conn.execute("SELECT pg_reload_conf()")
            if where == "sessions":
                end_sessions(conn)
            wait_until(lambda: any(answer.status == 503 for answer in crowd.answers))
            time.sleep(0.3)
            refused_at = time.monotonic()
            time.sleep(0.3 + SECONDS)
        finally:
            conn.execute(unlock.encode())
            conn.execute("SELECT pg_reload_conf()")
            unlocked_at = time.monotonic()
        time.sleep(1)
    crowd.report(f"read-only: {where}", locked_at, unlocked_at)
    crowd.hold()
    during = [answer for answer in crowd.between(refused_at, unlocked_at) if answer.answered_at < unlocked_at]
    writes = [answer.status for answer in during if answer.question in ("claim", "ready", "not-ready")]
    assert set(writes) == {503}
    assert_few([answer for answer in during if answer.question in ("stranger", "list")])
    crowd.hold_well(unlocked_at)
    assert "25006" in service.log.read_text()


@pytest.mark.parametrize("limit", ["statement_timeout", "transaction_timeout"])
def test_a_limit_that_an_operator_has_set_is_a_503(service: Service, limit: str) -> None:
    (key,) = make_keys(service.database_url, 1)
    body = question(key, "live/a")
    with admin(service) as conn:
        try:
            conn.execute(f"ALTER ROLE postgres SET {limit} = '100ms'".encode())
        except psycopg.errors.UndefinedObject:
            pytest.skip(f"this PostgreSQL has no {limit}")
        try:
            end_sessions(conn)
            wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 200)
            with psycopg.connect(service.database_url) as holder:
                holder.execute("SET transaction_timeout = 0")
                holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
                refused = ask(service, body)
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert ask(service, body).status_code == 200
        finally:
            conn.execute(f"ALTER ROLE postgres RESET {limit}".encode())
            end_sessions(conn)
    wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 200)


def test_a_password_that_is_no_longer_right(start: Callable[..., Service]) -> None:
    """Sessions go on, new ones are refused; the password is in no line of the log."""
    service = start()
    service.stop()
    hba = service.folder / "data" / "pg_hba.conf"
    with admin(service) as conn:
        conn.execute("CREATE ROLE streamorch LOGIN SUPERUSER PASSWORD 'right-and-secret'")
        hba.write_text("local all streamorch scram-sha-256\n" + hba.read_text())
        conn.execute("SELECT pg_reload_conf()")
    service.environ["DATABASE_URL"] = service.database_url.replace(
        "postgresql://postgres:@", "postgresql://streamorch:right-and-secret@"
    )
    service.start()
    with Crowd(service) as crowd, admin(service) as conn:
        crowd.warm_up()
        changed_at = time.monotonic()
        conn.execute("ALTER ROLE streamorch PASSWORD 'another-one'")
        time.sleep(0.5)
        ended_at = time.monotonic()
        end_sessions(conn)
        time.sleep(0.5 + SECONDS)
        hold_one_line(serve(service), unlike="right-and-secret")
        conn.execute("ALTER ROLE streamorch PASSWORD 'right-and-secret'")
        back_at = time.monotonic()
        time.sleep(2)
    crowd.report("password refused", ended_at, back_at)
    crowd.hold()
    assert_few(crowd.between(changed_at, ended_at - 0.2))
    assert any(answer.status == 503 for answer in crowd.between(ended_at, back_at))
    crowd.hold_well(back_at)
    hold_log(service)
    assert "right-and-secret" not in service.log.read_text()


def test_the_service_is_started_while_the_database_is_away(start: Callable[..., Service]) -> None:
    """It says so in one line and ends; who starts it again (a supervisor) has it as soon as the database is there.

    A worker that gunicorn starts anew meanwhile comes up, answers 503, and is well when the database is.
    """
    service = start()
    os.kill(service.postmaster(), signal.SIGINT)
    wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 503)
    hold_one_line(serve(service))
    before = service.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(service.workers() - before) == 2)

    def refuses() -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{service.url}/readyz", timeout=5).status_code == 503
        return False

    wait_until(refuses)
    new = service.workers()
    service.start_database()
    took = wait_until(lambda: requests.get(f"{service.url}/readyz", timeout=5).status_code == 200)
    print(f"\nworkers started without a database: well {took:.2f} s after its start")
    with Crowd(service) as crowd:
        crowd.warm_up()
    crowd.hold()
    assert service.workers() == new
    hold_log(service)


# --- a disk that is full ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a file system of its own, of 112 MB in memory."""
    folder = Path(tempfile.mkdtemp(prefix="streamorch-disk-"))
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=112m", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("mount")
        else None
    )
    if mounted is None or mounted.returncode:
        folder.rmdir()
        pytest.skip("a disk that is full: mounting a small tmpfs needs a privilege that is lacking here")
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], check=False).returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def test_the_disk_of_the_database_is_full(small_disk: Path, start: Callable[..., Service]) -> None:
    """Without room for its log PostgreSQL panics and goes down, and is started again when there is room."""
    service = start(small_disk / "data")
    postmaster = service.postmaster()
    ballast = small_disk / "ballast"
    with Crowd(service) as crowd:
        crowd.warm_up()
        with admin(service) as conn, suppress(psycopg.OperationalError):
            full_at = time.monotonic()
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 65536):
                    pass
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                # What was laid out beforehand is used up, as by hours of streams.
                conn.execute("SELECT pg_switch_wal()")
                time.sleep(0.05)
        time.sleep(SECONDS)
        assert os.statvfs(small_disk).f_bavail < 256
        wait_until(lambda: is_gone(postmaster))
        ballast.unlink()
        service.start_database()
        free_at = time.monotonic()
        time.sleep(2)
    crowd.report("disk full", full_at, free_at)
    crowd.hold()
    assert any(answer.status == 503 for answer in crowd.between(full_at, free_at))
    crowd.hold_well(free_at)
    hold_log(service)
