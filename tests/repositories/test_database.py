"""The pool and its deadlines: a caller has its connection or an OperationalError, soon."""

import os
import select
import socket
import threading
import time

import psycopg
import pytest
from psycopg_pool import PoolClosed

from streamorch import repositories
from streamorch.repositories import Database, Unavailable, ping

PID = "SELECT pg_backend_pid()"


@pytest.fixture
def make_database(database_url):
    """A Database on the database of this test, its first connection open."""
    made = []

    def make(url=database_url, *, min_size=1, max_size=1):
        database = Database(url, min_size=min_size, max_size=max_size)
        made.append(database)
        database.open()
        if url == database_url:
            database._pool.wait(10)
        return database

    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(make_database):
    return make_database()


def pid_of(database):
    with database.connection() as conn:
        return repositories.only(conn, PID)[0]


def test_a_connection_is_in_autocommit_utc_and_named(database):
    with database.connection() as conn:
        assert conn.autocommit
        assert repositories.only(conn, "SHOW TimeZone")[0] == "UTC"
        assert repositories.only(conn, "SHOW application_name")[0] == "streamorch"
        ping(conn)


def test_a_statement_is_prepared_at_once(database):
    with database.connection() as conn:
        ping(conn)
        names = conn.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    assert any("ping" in statement for (statement,) in names)


def test_a_dead_idle_connection_is_replaced_without_an_error(database, postgresql):
    before = pid_of(database)
    postgresql.autocommit = True
    postgresql.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
    assert pid_of(database) != before
    assert database._refuse_until == 0


def test_a_connection_that_was_cut_while_idle_is_replaced_without_an_error(database):
    with database.connection() as conn, socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
    with database.connection() as another:
        ping(another)
    assert another is not conn


def test_news_on_an_idle_connection_do_not_end_it(database, postgresql):
    with database.connection() as conn:
        conn.execute("LISTEN here")
        before = repositories.only(conn, PID)[0]
    postgresql.autocommit = True
    postgresql.execute("NOTIFY here")
    deadline = time.monotonic() + 5
    while not select.select([conn.pgconn.socket], [], [], 0.1)[0] and time.monotonic() < deadline:
        pass
    assert pid_of(database) == before


def test_a_statement_has_a_deadline_and_the_connection_is_discarded(database):
    before = pid_of(database)
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError), database.connection() as conn:
        conn.execute("SELECT pg_sleep(5)")
    assert 0.7 < time.monotonic() - started < 1.5
    assert conn.closed
    database._refuse_until = 0
    assert pid_of(database) != before


def test_after_a_missed_deadline_nobody_is_asked_for_a_moment(database):
    with pytest.raises(Unavailable), database.connection() as conn:
        conn.execute("SELECT pg_sleep(5)")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="not asked"), database.connection():
        pass
    assert time.monotonic() - started < 0.1
    assert 0 < database._refuse_until - started <= 0.25
    database._refuse_until = time.monotonic()
    with database.connection() as conn:
        ping(conn)


def test_an_answer_to_one_who_asked_all_the_same_is_an_answer_to_all(database):
    database._trip("for a test")
    with database.connection(despite_breaker=True) as conn:
        ping(conn)
    with database.connection() as conn:
        ping(conn)


def lose(postgresql, conn):
    postgresql.autocommit = True
    postgresql.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
    ping(conn)


def test_a_connection_lost_in_work_is_an_error_and_the_next_one_is_tried(database, postgresql):
    with pytest.raises(psycopg.OperationalError), database.connection() as conn:
        lose(postgresql, conn)
    with database.connection() as another:
        ping(another)
    assert another is not conn


def test_an_outage_is_told_in_one_line_and_its_end_in_another(database, caplog):
    caplog.set_level("INFO", "streamorch")
    database._trip("for a test")
    database._trip("for a test")
    with database.connection(despite_breaker=True) as conn:
        ping(conn)
    pid_of(database)
    told = [
        (record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("streamorch")
    ]
    assert told == [("ERROR", "the database is away"), ("INFO", "the database answers again")]


def test_an_error_of_a_statement_is_no_reason_to_trip(database):
    with pytest.raises(psycopg.errors.DivisionByZero), database.connection() as conn:
        conn.execute("SELECT 1/0")
    assert pid_of(database) == conn.info.backend_pid


def test_a_pool_that_is_empty_is_told_within_its_deadline(database):
    with database.connection():
        started = time.monotonic()
        with pytest.raises(Unavailable, match="deadline of the pool"), database.connection():
            pass
        assert 0.15 < time.monotonic() - started < 0.6
        with pytest.raises(Unavailable, match="not asked"):
            pid_of(database)


def test_a_server_that_was_never_there_is_told_and_opening_does_not_fail(make_database, tmp_path):
    database = make_database(f"postgresql:///none?host={tmp_path}")
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable):
            pid_of(database)
    assert time.monotonic() - started < 1


def test_a_closed_database_is_told(database):
    database.close()
    with pytest.raises(PoolClosed):
        pid_of(database)
    database.close()  # again is no error


def test_closing_ends_the_thread_that_checks_idle_connections(make_database, monkeypatch):
    monkeypatch.setattr(repositories, "_IDLE_CHECK_SECONDS", 0.01)
    database = make_database()
    checked = threading.Event()
    monkeypatch.setattr(database._pool, "check", checked.set)
    assert checked.wait(5)
    threads = {thread for thread in threading.enumerate() if thread.name == "idle-connections"}
    assert threads
    database.close()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


# --- run ---


class Counted:
    """Work that notes the connections it was given."""

    def __init__(self, work):
        self.work = work
        self.given = []

    def __call__(self, conn):
        self.given.append(conn)
        return self.work(conn, len(self.given))


def test_work_is_done_once(database):
    work = Counted(lambda conn, _: repositories.only(conn, "SELECT 7")[0])
    assert database.run(work) == 7
    assert len(work.given) == 1


def test_work_is_done_again_when_its_connection_was_lost(database, postgresql):
    def once_lost(conn, attempt):
        if attempt == 1:
            lose(postgresql, conn)
        return repositories.only(conn, "SELECT 7")[0]

    work = Counted(once_lost)
    assert database.run(work) == 7
    first, second = work.given
    assert first is not second


def test_work_is_done_twice_at_most(database, postgresql):
    work = Counted(lambda conn, _: lose(postgresql, conn))
    with pytest.raises(psycopg.OperationalError):
        database.run(work)
    assert len(work.given) == 2


def test_work_is_not_done_again_after_a_missed_deadline(database):
    work = Counted(lambda conn, _: conn.execute("SELECT pg_sleep(5)"))
    started = time.monotonic()
    with pytest.raises(Unavailable):
        database.run(work)
    assert time.monotonic() - started < 1.5
    assert len(work.given) == 1


def test_work_is_not_done_again_after_an_error_of_its_own(database):
    work = Counted(lambda conn, _: conn.execute("SELECT 1/0"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        database.run(work)
    assert len(work.given) == 1

    def locked(conn, _):
        raise psycopg.errors.LockNotAvailable("busy")

    work = Counted(locked)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.run(work)
    assert len(work.given) == 1


def test_work_is_not_tried_while_the_breaker_refuses(database):
    database._trip("for a test")
    work = Counted(lambda conn, _: ping(conn))
    with pytest.raises(Unavailable):
        database.run(work)
    assert work.given == []


def test_a_row_that_must_be_there_and_is_not_is_a_bug(conn):
    with pytest.raises(psycopg.InternalError):
        repositories.only(conn, "SELECT 1 WHERE false")


def test_json_comes_as_it_is_and_goes_without_spaces(conn):
    (value,) = repositories.only(conn, """SELECT '{"b": [1.50, "ü"], "a": null}'::jsonb""")
    assert bytes(value).decode() == '{"a": null, "b": [1.50, "ü"]}'
    (text,) = repositories.only(conn, "SELECT %(x)s::json::text", {"x": psycopg.types.json.Json({"ü": 1})})
    assert text == '{"ü":1}'
