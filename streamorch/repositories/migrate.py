"""Migrations: forward only, under an advisory lock, with a ledger of checksums.

Safe to run under the release before: each file adds, none takes away what that release uses.

All of a file is one transaction, but for its statements CREATE INDEX CONCURRENTLY. Those come first, each by itself,
while others go on to write; what was left half built by a run that was killed is built anew.
"""

import hashlib
import re
import time
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg import sql

_PACKAGE = Path(__file__).resolve().parent.parent
# Inside the package when it was installed from a wheel, beside it in a checkout.
_FOLDER = next((folder for folder in (_PACKAGE / "sql", _PACKAGE.parent / "sql") if folder.is_dir()), _PACKAGE / "sql")

# One holder at a time across all instances of one database; "strmorch" in ASCII.
_LOCK = 0x7374726D6F726368

# How long to try for tables that others hold, and to let the others go on in between.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_TURN_SECONDS = 0.1

_INDEX = re.compile(r"^CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+) [^;]+;$", re.MULTILINE)


class SchemaError(Exception):
    """The schema is not what this release needs; its text is the one line for the operator."""


class Migration(NamedTuple):
    """One file of sql/: its name without the ending, its text and the SHA-256 of that."""

    name: str
    text: str
    checksum: str


def available() -> list[Migration]:
    """The migrations of this release, in order."""
    files = sorted(_FOLDER.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    texts = [(file.stem, file.read_text(encoding="utf-8")) for file in files]
    return [Migration(name, text, hashlib.sha256(text.encode()).hexdigest()) for name, text in texts]


def apply(database_url: str) -> list[str]:
    """Bring the schema up to this release; returns the names that were newly applied.

    Raises SchemaError, psycopg.OperationalError when the database is away; what was applied before that stays.
    """
    with _connect(database_url) as holder, holder.transaction():
        # The lock is of a transaction that stays open meanwhile, and not of a session: behind a pooler, the session
        # belongs to somebody else afterwards, with the lock. An operator's limit of such transactions is not for it.
        holder.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # Neither a statement that waits nor one with parameters, whose portal stays: each has a snapshot, and the
        # building of an index waits for the end of it.
        while holder.execute(_TAKE_LOCK).fetchone() != (True,):
            time.sleep(_TURN_SECONDS)
        with _connect(database_url) as conn:
            pending = _pending(conn)
            for migration in pending:
                for index in _INDEX.finditer(migration.text):
                    _build(conn, index[1], index[0])
                _apply(conn, migration)
    return [migration.name for migration in pending]


def _apply(conn: psycopg.Connection[tuple[object, ...]], migration: Migration) -> None:
    """All of it or nothing. SchemaError when somebody holds what it must change for a minute."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            with conn.transaction():
                # Whoever asks for a table that we wait for waits behind us: for less than a claim waits for a lock.
                conn.execute("SET LOCAL lock_timeout = '100ms'")
                conn.execute(_LEDGER)
                conn.execute(_INDEX.sub("", migration.text).encode())
                conn.execute(
                    "INSERT INTO streamorch_migrations (name, checksum) VALUES (%s, %s)",
                    [migration.name, migration.checksum],
                )
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise SchemaError(
                    f"migration {migration.name} was not applied: another transaction holds a table that it changes"
                    " (a dump, an open psql); end that, or try again"
                ) from None
        time.sleep(_PAUSE_SECONDS)


def _build(conn: psycopg.Connection[tuple[object, ...]], name: str, statement: str) -> None:
    """An index, unless it is there. It waits for transactions that are open, however long, and nobody waits for it."""
    while True:
        try:
            if conn.execute(_HALF_BUILT, [name]).fetchone():
                conn.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
            conn.execute(statement.encode())
            return
        except psycopg.errors.DeadlockDetected:
            # With the session of a run that was killed, which goes on until it has to answer.
            time.sleep(_PAUSE_SECONDS)


def check(database_url: str) -> None:
    """Raises SchemaError unless the schema is that of this release, or of a newer one, which has only added to it."""
    with psycopg.connect(database_url, autocommit=True, connect_timeout=5, application_name="streamorch") as conn:
        if pending := _pending(conn, may_be_newer=True):
            names = ", ".join(migration.name for migration in pending)
            raise SchemaError(f"the database schema is old: {names} not applied yet; run: streamorch migrate")


def not_applied(conn: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """The names of the migrations that `apply` would apply; SchemaError when it would refuse this database."""
    return [migration.name for migration in _pending(conn)]


def is_current(conn: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Have all migrations of this release been applied? (A newer schema is fine: migrations only add.)"""
    row = conn.execute(
        "/* migrate.is_current */ SELECT count(*) FROM streamorch_migrations WHERE name = ANY (%(names)s)",
        {"names": _NAMES},
    ).fetchone()
    return row is not None and row[0] == len(_NAMES)


_NAMES = [migration.name for migration in available()]

_TAKE_LOCK = f"SELECT pg_try_advisory_xact_lock({_LOCK})".encode()
_HALF_BUILT = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"

_LEDGER = """
    CREATE TABLE IF NOT EXISTS streamorch_migrations (
        name text PRIMARY KEY,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
"""


def _pending(conn: psycopg.Connection[tuple[object, ...]], *, may_be_newer: bool = False) -> list[Migration]:
    """What is left to apply; SchemaError when this is not a database of ours, or one of another release."""
    ours = _exists(conn, "streamorch_migrations")
    if not ours:
        _refuse_foreign(conn)
    rows = conn.execute("SELECT name, checksum FROM streamorch_migrations").fetchall() if ours else []
    applied = {str(name): checksum for name, checksum in rows}
    known = available()
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise SchemaError(f"migration {migration.name} was edited after it had been applied to this database")
    newer = sorted(applied.keys() - {migration.name for migration in known})
    if newer and not may_be_newer:
        raise SchemaError(f"the database schema is newer than this release: it has {', '.join(newer)}")
    return [migration for migration in known if migration.name not in applied]


def _connect(database_url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(database_url, autocommit=True, connect_timeout=5, application_name="streamorch migrate")


def _exists(conn: psycopg.Connection[tuple[object, ...]], table: str) -> bool:
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone()
    return row is not None and bool(row[0])


def _refuse_foreign(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    row = conn.execute(
        "SELECT EXISTS (SELECT 1 FROM information_schema.columns WHERE table_schema = ANY (current_schemas(false))"
        " AND table_name = 'stream_keys' AND column_name = 'key_value')"
    ).fetchone()
    if row is not None and row[0]:
        raise SchemaError(
            "the database holds rescuestream-api's tables and was left untouched:"
            " give streamorch an empty database, then copy with: streamorch import-rescuestream OLD_URL"
        )
    taken = [name for name in ("schema_migrations", "broadcasters", "stream_keys", "streams") if _exists(conn, name)]
    if taken:
        raise SchemaError(
            f"the database holds tables of another program ({', '.join(taken)}) and was left untouched:"
            " give streamorch an empty database"
        )
