"""Migrations: once each, in order, and never on a database that is not ours."""

import multiprocessing
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.rows import dict_row

from streamorch.repositories import migrate

pytestmark = pytest.mark.own_database

NAMES = [migration.name for migration in migrate.available()]
LAST = int(NAMES[-1][:4])
LEDGER = "SELECT name, checksum, applied_at FROM streamorch_migrations ORDER BY name"
SCHEMA = """
    SELECT c.relkind::text AS kind, c.relname AS name, a.attname AS part, format_type(a.atttypid, a.atttypmod) AS type
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, NULL, NULL
    FROM pg_proc AS p
    WHERE p.pronamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def empty_url(database_url, postgresql):
    """The URL of a database without any table."""
    postgresql.autocommit = True
    postgresql.execute("DROP SCHEMA public CASCADE")
    postgresql.execute("CREATE SCHEMA public")
    return database_url


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of sql/ that the migrations are taken from."""
    copy = tmp_path / "sql"
    shutil.copytree(migrate._FOLDER, copy)
    monkeypatch.setattr(migrate, "_FOLDER", copy)
    return copy


def read(url, query):
    with psycopg.connect(url, row_factory=dict_row) as conn:
        return conn.execute(query).fetchall()


def run(url, statement):
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)


def test_names_are_numbered_in_order():
    assert sorted(NAMES) == NAMES
    assert len({name[:4] for name in NAMES}) == len(NAMES)
    assert all(re.fullmatch(r"\d{4}_[a-z_]+", name) for name in NAMES)
    assert len({migration.checksum for migration in migrate.available()}) == len(NAMES)


def test_an_empty_database_gets_all_of_them(empty_url, conn):
    assert migrate.apply(empty_url) == NAMES
    ledger = read(empty_url, LEDGER)
    assert [row["name"] for row in ledger] == NAMES
    assert [row["checksum"] for row in ledger] == [migration.checksum for migration in migrate.available()]
    assert all(row["applied_at"] for row in ledger)
    migrate.check(empty_url)
    assert migrate.is_current(conn)


def test_twice_is_once(database_url):
    before = read(database_url, LEDGER), read(database_url, SCHEMA), read(database_url, "SELECT * FROM live_list")
    assert migrate.apply(database_url) == []
    assert (
        read(database_url, LEDGER),
        read(database_url, SCHEMA),
        read(database_url, "SELECT * FROM live_list"),
    ) == before


def _apply(url, barrier, results):
    barrier.wait()
    results.put(migrate.apply(url))


def test_two_at_once_apply_once(empty_url):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=_apply, args=(empty_url, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    applied = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        process.close()
    results.close()
    results.join_thread()
    assert sorted(applied) == [[], NAMES]
    assert len(read(empty_url, LEDGER)) == len(NAMES)


def test_no_session_keeps_the_lock(database_url, conn, monkeypatch):
    """Behind a pooler the session goes on, and whoever has it next would have the lock."""
    left_open: list[psycopg.Connection[object]] = []
    monkeypatch.setattr(psycopg.Connection, "close", lambda session: left_open.append(session))
    migrate.apply(database_url)
    monkeypatch.undo()
    held = conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT fastpath").fetchone()
    for session in left_open:
        session.close()
    assert left_open
    assert held == (0,)


def test_a_limit_of_idle_transactions_is_not_for_the_lock(folder, database_url):
    (folder / f"{LAST + 1:04}_slow.sql").write_text("SELECT pg_sleep(1)")
    limited = f"{database_url}{'&' if '?' in database_url else '?'}options=-cidle_in_transaction_session_timeout%3D100"
    assert len(migrate.apply(limited)) == 1


def test_a_new_file_is_applied_alone(folder, database_url):
    name = f"{LAST + 1:04}_more"
    (folder / f"{name}.sql").write_text("CREATE TABLE more (id uuid)")
    with pytest.raises(migrate.SchemaError, match=f"{name} not applied yet"):
        migrate.check(database_url)
    assert migrate.apply(database_url) == [name]
    migrate.check(database_url)


def test_files_of_other_names_are_no_migrations(folder):
    (folder / "README.md").write_text("x")
    (folder / "schema.sql").write_text("x")
    (folder / "12_short.sql").write_text("x")
    assert [migration.name for migration in migrate.available()] == NAMES


def test_a_table_that_somebody_holds_for_long_is_told(folder, database_url, monkeypatch):
    monkeypatch.setattr(migrate, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.1)
    name = f"{LAST + 1:04}_more"
    (folder / f"{name}.sql").write_text("CREATE TABLE more (id uuid); ALTER TABLE streams ADD COLUMN more integer")
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT 1 FROM streams")
        with pytest.raises(migrate.SchemaError, match=f"{name} was not applied: another transaction holds a table"):
            migrate.apply(database_url)
        assert not read(database_url, "SELECT 1 FROM pg_class WHERE relname = 'more'")
        holder.rollback()
    assert migrate.apply(database_url) == [name]


def test_a_file_that_waits_for_a_table_keeps_nobody_from_it(folder, database_url, conn):
    """Whoever asks for a table waits behind those who wait for it: a claim for 300 ms at most."""
    name = f"{LAST + 1:04}_more"
    (folder / f"{name}.sql").write_text("ALTER TABLE streams ADD COLUMN more integer")
    conn.execute("SET lock_timeout = '300ms'")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as holder:
        holder.execute("SELECT 1 FROM streams")
        applied = pool.submit(migrate.apply, database_url)
        try:
            for _ in range(3):
                while not read(database_url, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'relation'"):
                    assert not applied.done()
                conn.execute("UPDATE streams SET recording_ref = recording_ref")
        finally:
            holder.rollback()
        assert applied.result() == [name]


def test_a_file_that_fails_leaves_nothing_of_itself(folder, database_url):
    good = f"{LAST + 1:04}_good"
    (folder / f"{good}.sql").write_text("CREATE TABLE good (id uuid)")
    (folder / f"{LAST + 2:04}_bad.sql").write_text("CREATE TABLE bad (id uuid); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate.apply(database_url)
    assert [row["name"] for row in read(database_url, LEDGER)] == [*NAMES, good]
    assert not read(database_url, "SELECT 1 FROM pg_class WHERE relname = 'bad'")


INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS more ON streams (recording_ref);\nSELECT 1;\n"
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'more'::regclass"


def test_an_index_is_built_beside_those_who_write(folder, database_url, conn):
    """It waits for who has written, without end, and who writes does not wait for it."""
    name = f"{LAST + 1:04}_more"
    (folder / f"{name}.sql").write_text(INDEX)
    with ThreadPoolExecutor() as pool, psycopg.connect(database_url) as writer:
        writer.execute("UPDATE streams SET recording_ref = recording_ref")
        applied = pool.submit(migrate.apply, database_url)
        while not read(database_url, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'virtualxid'"):
            assert not applied.done()
        conn.execute("SET lock_timeout = '50ms'")
        conn.execute("UPDATE streams SET recording_ref = recording_ref")
        writer.rollback()
        assert applied.result() == [name]
    assert read(database_url, IS_VALID) == [{"indisvalid": True}]


def test_an_index_that_was_left_half_built_is_built_anew(folder, database_url):
    (folder / f"{LAST + 1:04}_more.sql").write_text(INDEX)
    run(database_url, "CREATE INDEX more ON streams (path)")
    run(database_url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'more'::regclass")
    assert len(migrate.apply(database_url)) == 1
    assert read(database_url, IS_VALID) == [{"indisvalid": True}]
    assert (
        "recording_ref" in read(database_url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'more'")[0]["indexdef"]
    )


def test_the_checksum_of_an_edited_file_is_refused(folder, database_url):
    before = read(database_url, LEDGER), read(database_url, SCHEMA)
    with (folder / f"{NAMES[0]}.sql").open("a") as file:
        file.write("-- a word more\n")
    for refused in (migrate.apply, migrate.check):
        with pytest.raises(migrate.SchemaError, match=f"{NAMES[0]} was edited"):
            refused(database_url)
    assert (read(database_url, LEDGER), read(database_url, SCHEMA)) == before


def test_a_schema_newer_than_this_release_is_served_and_left_alone(database_url, conn):
    """While a newer release takes over the older goes on, and comes back where the newer is no good."""
    run(database_url, "INSERT INTO streamorch_migrations (name, checksum) VALUES ('9999_future', 'x')")
    before = read(database_url, LEDGER)
    with pytest.raises(migrate.SchemaError, match="newer than this release: it has 9999_future"):
        migrate.apply(database_url)
    migrate.check(database_url)
    assert migrate.is_current(conn)
    assert read(database_url, LEDGER) == before


def test_a_newer_schema_without_one_of_ours_is_not_served(database_url):
    run(database_url, "INSERT INTO streamorch_migrations (name, checksum) VALUES ('9999_future', 'x')")
    run(database_url, "DELETE FROM streamorch_migrations WHERE starts_with(name, '0001')")
    with pytest.raises(migrate.SchemaError, match="0001_tables not applied yet"):
        migrate.check(database_url)


def test_an_old_schema_is_told_with_the_command_that_mends_it(empty_url):
    with pytest.raises(migrate.SchemaError, match="run: streamorch migrate"):
        migrate.check(empty_url)
    assert read(empty_url, SCHEMA) == []


GO = """
    CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);
    CREATE TABLE broadcasters (id uuid PRIMARY KEY, display_name text);
    CREATE TABLE stream_keys (id uuid PRIMARY KEY, key_value text);
    CREATE TABLE streams (id uuid PRIMARY KEY);
"""


def test_the_tables_of_the_go_service_are_refused_untouched(empty_url):
    run(empty_url, GO)
    before = read(empty_url, SCHEMA)
    for refused in (migrate.apply, migrate.check):
        with pytest.raises(migrate.SchemaError, match=r"left untouched.*streamorch import-rescuestream") as caught:
            refused(empty_url)
        assert "\n" not in str(caught.value)
    assert read(empty_url, SCHEMA) == before


@pytest.mark.parametrize("table", ["schema_migrations", "broadcasters", "stream_keys", "streams"])
def test_the_tables_of_another_program_are_refused_untouched(table, empty_url):
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute(psycopg.sql.SQL("CREATE TABLE {} (id integer)").format(psycopg.sql.Identifier(table)))
    before = read(empty_url, SCHEMA)
    with pytest.raises(migrate.SchemaError, match=rf"tables of another program \({table}\).*empty database"):
        migrate.apply(empty_url)
    assert read(empty_url, SCHEMA) == before


def test_tables_of_no_matter_are_left_beside_ours(empty_url):
    run(empty_url, "CREATE TABLE notes (id integer)")
    assert migrate.apply(empty_url) == NAMES


def test_a_database_that_is_away_is_an_operational_error(tmp_path):
    with pytest.raises(psycopg.OperationalError):
        migrate.apply(f"postgresql:///none?host={tmp_path}")


def test_all_functions_are_of_a_version(conn):
    names = conn.execute("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace").fetchall()
    assert names
    assert [name for (name,) in names if not re.fullmatch(r"[a-z0-9_]+_v\d+", name)] == []
