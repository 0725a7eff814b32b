"""The databases of a run and the rows in them, made in bulk by SQL.

A number n stands for a key with its path and its connection, see `messages`. Keys are made in blocks and each is
claimed once: a second claim would be another case. Within a block, keys of numbers in a row lie far apart in the table.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8

from bench.messages import ADDRESS, AGENT, CONNECTION_PREFIX, DIGITS, KEY_PREFIX, PATH_PREFIX, SCATTER, Numbers
from streamorch.postgres import Postgres
from streamorch.repositories import NODE, migrate

# Nobody's keys: far above every number that is given out.
UNKNOWN = Numbers(50_000_000, 10_000_000, again=True)

_BLOCK = 20_000
_STATEMENT = 100_000  # rows of one
# A prime: n -> n * prime % count visits each of the numbers below count once.
_STRIDE = 7_368_787


def tag_of(number: str) -> str:
    """`messages.tag` as SQL, of a bigint."""
    return f"lpad(mod({number} * {SCATTER}, {10**DIGITS})::text, {DIGITS}, '0')"


def key_hash_of(number: str) -> str:
    """What the database has of the key of a number, as SQL."""
    return f"sha256(('{KEY_PREFIX}' || {tag_of(number)})::bytea)"


def path_of(number: str) -> str:
    """The path of a number, as SQL."""
    return f"'{PATH_PREFIX}' || {tag_of(number)}"


def connection_of(number: str) -> str:
    """The connection of a number, as SQL."""
    return f"'{CONNECTION_PREFIX}' || {tag_of(number)}"


# Of the n of a statement below.
_TAG = tag_of("n")
_KEY_ID = f"md5({_TAG})::uuid"
_KEY_HASH = key_hash_of("n")
_PATH = path_of("n")
_CONNECTION = connection_of("n")
_SERIES = "generate_series(%(first)s::bigint, %(last)s::bigint) AS n"


class Server:
    """A PostgreSQL server: one that was given, or one of our own in a folder."""

    def __init__(self, url: str, programs: Path | None) -> None:
        self.url = url
        self.programs = programs  # where its own pgbench is

    @contextmanager
    def database(self) -> Iterator["Database"]:
        """A new database with the schema of this release, dropped afterwards."""
        name = f"streamorch_bench_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            url = make_conninfo(self.url, dbname=name)
            migrate.apply(url)
            with psycopg.connect(url, autocommit=True) as conn:
                yield Database(url, conn)
        finally:
            with psycopg.connect(self.url, autocommit=True) as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def version(self) -> str:
        """As the server tells it."""
        with psycopg.connect(self.url) as conn:
            return conn.info.parameter_status("server_version") or "unknown"


@contextmanager
def server(url: str | None, folder: Path) -> Iterator[Server]:
    """The server given, or the embedded one, with its data in this folder, as `make run` starts it."""
    if url:
        yield Server(url, None)
        return
    postgres = Postgres(folder / "postgres")
    postgres.start()
    try:
        yield Server(postgres.url, postgres.programs)
    finally:
        postgres.stop()


class Database:
    """One database, its keys and its streams."""

    def __init__(self, url: str, conn: psycopg.Connection[TupleRow]) -> None:
        self.url = url
        self.conn = conn
        self.broadcaster_id = uuid.uuid4()
        self._taken = 0
        self._made = 0
        conn.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Bench')", [self.broadcaster_id])

    def take(self, count: int, *, again: bool = False) -> Numbers:
        """So many numbers that nobody else has; their keys are made when there are too few."""
        if self._made - self._taken < count:
            self.make_keys(max(count, _BLOCK))
        first, self._taken = self._taken, self._taken + count
        return Numbers(first, count, again)

    def make_keys(self, count: int) -> None:
        """So many keys more."""
        for first in range(0, count, _STATEMENT):
            self.conn.execute(
                f"""
                INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
                SELECT {_KEY_ID}, %(owner)s, {_KEY_HASH}, right({_TAG}, 4)
                FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i,
                     LATERAL (SELECT %(made)s + mod(i * {_STRIDE}, %(count)s) AS n) AS made
                """,  # noqa: S608  # put together from constants
                {
                    "owner": self.broadcaster_id,
                    "made": Int8(self._made),
                    "count": Int8(count),
                    "first": first,
                    "last": min(first + _STATEMENT, count) - 1,
                },
            )
        self._made += count

    def take_bound(self, count: int) -> Numbers:
        """So many numbers whose keys are bound to a path that is not theirs, to be asked again and again."""
        return self.take_changed(count, "path = 'bound/' || hint || id")

    def take_changed(self, count: int, change: LiteralString) -> Numbers:
        """So many numbers whose keys have these columns set, to be asked again and again."""
        taken = self.take(count, again=True)
        self.conn.execute(
            f"UPDATE stream_keys SET {change} WHERE id IN (SELECT {_KEY_ID} FROM {_SERIES})",  # noqa: S608
            _bounds(taken),
        )
        return taken

    def make_live(self, count: int) -> Numbers:
        """So many live streams, and no others: their numbers."""
        live = self.take(count, again=True)
        self.conn.execute(
            """
            UPDATE streams SET ended_at = clock_timestamp(), end_reason = 'disconnected'
            WHERE ended_at IS NULL AND started_at IS NOT NULL
            """
        )
        self.conn.execute(
            f"""
            INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, source_id, source_type,
                                 remote_address, user_agent, claimed_at, lease_expires_at, started_at)
            SELECT gen_random_uuid(), {_KEY_ID}, '{NODE}', {_PATH}, 'rtmp', {_CONNECTION}, {_CONNECTION}, 'rtmpConn',
                   '{ADDRESS}', '{AGENT}', clock_timestamp(), clock_timestamp() + interval '20 s', clock_timestamp()
            FROM {_SERIES}
            """,  # noqa: S608
            _bounds(live),
        )
        self.conn.execute("SELECT bump_live_list_v1()")
        self.settle()
        return live

    def live_stream_id(self) -> uuid.UUID:
        """One of the live streams."""
        row = self.conn.execute(
            "SELECT id FROM streams WHERE ended_at IS NULL AND started_at IS NOT NULL LIMIT 1"
        ).fetchone()
        if row is None:
            raise LookupError("no stream is live")
        found: uuid.UUID = row[0]
        return found

    def claim(self, publishers: Sequence[tuple[str, str]]) -> None:
        """A key and a claim for each of these paths and connections, as POST /auth leaves them."""
        self.conn.execute(
            f"""
            WITH claims AS (
                SELECT gen_random_uuid() AS key_id, u.path, u.id
                FROM unnest(%(paths)s::text[], %(ids)s::text[]) AS u (path, id)
            ), made AS (
                INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
                SELECT key_id, %(owner)s, sha256(key_id::text::bytea), 'xxxx' FROM claims
            )
            INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at)
            SELECT gen_random_uuid(), key_id, '{NODE}', path, 'rtmp', id, clock_timestamp(),
                   clock_timestamp() + interval '1 hour'
            FROM claims
            """,  # noqa: S608
            {
                "paths": [path for path, _ in publishers],
                "ids": [connection_id for _, connection_id in publishers],
                "owner": self.broadcaster_id,
            },
        )

    def count_live(self) -> int:
        """How many streams are live."""
        row = self.conn.execute(
            "SELECT count(*) FROM streams WHERE ended_at IS NULL AND started_at IS NOT NULL"
        ).fetchone()
        return row[0] if row else 0

    def make_ended(self, count: int) -> None:
        """So many ended streams, half a minute after each other until now, of the keys that are there in turn."""
        for first in range(0, count, _STATEMENT):
            self.conn.execute(
                f"""
                INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, source_id, source_type,
                                     remote_address, user_agent, claimed_at, lease_expires_at, started_at,
                                     ended_at, end_reason)
                SELECT gen_random_uuid(), {_KEY_ID}, '{NODE}', {_PATH}, 'rtmp', connection, connection, 'rtmpConn',
                       '{ADDRESS}', '{AGENT}', moment, moment + interval '20 s', moment + interval '1 s',
                       moment + interval '20 minutes', 'disconnected'
                FROM (
                    SELECT mod(i, %(keys)s) AS n, md5('ended' || i)::uuid::text AS connection,
                           clock_timestamp() - interval '1 hour' - (%(count)s - i) * interval '30 s' AS moment
                    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
                ) AS made
                """,  # noqa: S608
                {
                    "keys": Int8(self._made),
                    "count": Int8(count),
                    "first": first,
                    "last": min(first + _STATEMENT, count) - 1,
                },
            )

    def settle(self) -> None:
        """End what was claimed, and let no vacuum of it fall into what is measured next."""
        self.conn.execute(
            """
            UPDATE streams SET ended_at = clock_timestamp(), end_reason = 'never_started'
            WHERE ended_at IS NULL AND started_at IS NULL
            """
        )
        self.conn.execute("VACUUM (ANALYZE)")

    def count_claims(self, numbers: Numbers) -> int:
        """How many of these have claimed their path."""
        row = self.conn.execute(
            f"SELECT count(*) FROM {_SERIES} JOIN streams AS s ON s.auth_id = {_CONNECTION}",  # noqa: S608
            _bounds(numbers),
        ).fetchone()
        return row[0] if row else 0


def _bounds(numbers: Numbers) -> dict[str, int]:
    return {"first": numbers.first, "last": numbers.first + numbers.count - 1}
