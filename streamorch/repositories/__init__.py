"""SQL lives in this room and nowhere else; it knows nothing of HTTP.

`Database` is the pool with its deadlines: whatever PostgreSQL does (away, killed, frozen), a caller has its
connection or an OperationalError within about a second.
"""

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any, LiteralString, NamedTuple, TypeVar

import msgspec
import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout

T = TypeVar("T")

log = logging.getLogger(__name__)

NODE = "default"  # the media server that the environment configures

# What rows are made of, as the API shows it: PostgreSQL writes both, and nobody reads them on the way.
Moment = Annotated[
    str, msgspec.Meta(description="RFC 3339, UTC, microseconds.", extra_json_schema={"format": "date-time"})
]
Object = Annotated[
    msgspec.Raw, msgspec.Meta(description="Any members, yours alone.", extra_json_schema={"type": "object"})
]
Members = Annotated[
    msgspec.Raw, msgspec.Meta(description="Members of what was changed.", extra_json_schema={"type": "object"})
]

_POOL_WAIT_SECONDS = 0.2
_STATEMENT_SECONDS = 0.8
_BREAKER_SECONDS = 0.25
_REPORT_TIMEOUT = "SET LOCAL statement_timeout = '600ms'"
_FIRST_CONNECTION_SECONDS = 1.0
_IDLE_CHECK_SECONDS = 30.0
_MAX_LIFETIME_SECONDS = 3600.0
# All there are, and filters in many combinations. At psycopg's 100 those of a claim would make room for lists.
_MOST_PREPARED = 500
_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": 0,
    "application_name": "streamorch",
    "connect_timeout": 2,
}


class Unavailable(psycopg.OperationalError):
    """The database did not answer in time, or is not asked because it did not a moment ago."""


class ReadOnly(psycopg.OperationalError):
    """The server at the other end may only be read: a standby, or one that an operator has locked."""

    sqlstate = "25006"


class Actor(msgspec.Struct, frozen=True):
    """For whom something is changed, as the audit trail tells it: the credential, from where, in which request."""

    who: str
    address: str | None = None
    request_id: str | None = None


class Connection(psycopg.Connection[TupleRow]):
    """A connection on which no statement lasts longer than 0.8 s of the client's clock.

    `statement_timeout` runs in the server, which may be frozen, and `tcp_user_timeout` trusts a kernel that
    still acknowledges for it.
    """

    statement_seconds = _STATEMENT_SECONDS
    actor: Actor | None = None

    def acting(self) -> str:
        """What a statement that changes something says to acting_v1; "" when nobody is named."""
        return msgspec.json.encode(self.actor).decode() if self.actor else ""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(gen, interval, timeout or self.statement_seconds)
        except psycopg.errors._WaitTimeout as error:  # private in 3.3.8, and the only sign of a missed timeout
            # Closed here and now, so that nobody waits again for a ROLLBACK.
            self.pgconn.finish()
            raise Unavailable("no answer within the deadline of a statement") from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            # After a failover the server that was the primary may still answer: the next connection may reach the new
            # one, this one never will. (psycopg calls it an InternalError, a fault of the program.)
            self.pgconn.finish()
            raise ReadOnly("the server may only be read") from error
        except (psycopg.errors.TransactionTimeout, psycopg.errors.IdleInTransactionSessionTimeout) as error:
            # Limits that an operator has set; they end the session, and are called InternalError, too.
            raise psycopg.OperationalError("the server ended the session") from error


class PatientConnection(Connection):
    """One for statements about ten thousand streams, on which nobody waits for an answer."""

    statement_seconds = 5.0


class PoolState(NamedTuple):
    """How the pool of one process is, and what it has been asked since its start."""

    size: int
    max_size: int
    available: int
    waiting: int
    requests: int
    waits: int
    wait_seconds: float
    errors: int


class _LastFirst(deque[Connection]):
    """The idle connections of a pool, which takes from the left and puts back on the right: the last one used first.

    Its backend has all in its caches still, and its processor is awake: of a claim a fifth of the time.
    """

    def popleft(self) -> Connection:
        return self.pop()


class Database:
    """The connection pool of one process, opened after the fork."""

    def __init__(self, url: str, *, min_size: int, max_size: int):
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url,
            connection_class=Connection,
            kwargs=_OPTIONS,
            min_size=min_size,
            max_size=max_size,
            max_lifetime=_MAX_LIFETIME_SECONDS,
            # Short, so that the pool's back-off never grows: a database that returns is used within half a second.
            reconnect_timeout=0.5,
            configure=_configure,
            open=False,
        )
        self._pool._pool = _LastFirst()  # psycopg_pool 3.3 has no setting for it
        self._refuse_until = 0.0
        self._away = False
        self._closing = threading.Event()

    def open(self) -> None:
        """Start connecting in the background; a database that is away does not stop the start."""
        self._pool.open()
        threading.Thread(target=self._check_idle_connections, name="idle-connections", daemon=True).start()

    def await_connection(self, seconds: float = _FIRST_CONNECTION_SECONDS) -> None:
        """Return when the first connection is there, or after so long without one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(Unavailable), self.connection(despite_breaker=True):
                return

    def close(self) -> None:
        """Close every connection and stop the pool's threads."""
        self._closing.set()
        self._pool.close()

    @contextmanager
    def connection(self, *, despite_breaker: bool = False, actor: Actor | None = None) -> Iterator[Connection]:
        """A connection in autocommit; Unavailable or another OperationalError when there is none to be had.

        `actor` is for whom it changes something.

        After a missed deadline the next 250 ms are refused without trying: fifty callers must not queue for a
        database that is away. (A connection that is merely lost does not count: the next one may be well.)
        """
        if time.monotonic() < self._refuse_until and not despite_breaker:
            raise Unavailable("not asked: it did not answer a moment ago")
        conn = self._take()
        conn.actor = actor
        try:
            yield conn
        except Unavailable:
            self._trip("no answer to a statement")
            raise
        finally:
            if self._away and not conn.closed:
                self._away = False
                self._refuse_until = 0.0
                log.info("the database answers again")
            conn.actor = None
            self._pool.putconn(conn)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do idempotent work; once more, on another connection, when the first was lost under it."""
        conn: Connection | None = None
        try:
            with self.connection() as conn:
                return work(conn)
        except psycopg.OperationalError as error:
            if conn is None or not conn.closed or isinstance(error, Unavailable):
                raise
        with self.connection(despite_breaker=True) as conn:
            return work(conn)

    def pool_state(self) -> PoolState:
        """How the pool is at this moment; asks nobody."""
        told = self._pool.get_stats()
        return PoolState(
            size=told.get("pool_size", 0),
            max_size=told.get("pool_max", 0),
            available=told.get("pool_available", 0),
            waiting=told.get("requests_waiting", 0),
            requests=told.get("requests_num", 0),
            waits=told.get("requests_queued", 0),
            wait_seconds=told.get("requests_wait_ms", 0) / 1000,
            errors=told.get("requests_errors", 0),
        )

    def _take(self) -> Connection:
        """A connection that is alive, within 0.2 s.

        Not the pool's own `check`: at the second dead connection that sleeps until the deadline, and a restarted
        database leaves many.
        """
        deadline = time.monotonic() + _POOL_WAIT_SECONDS
        while True:
            try:
                conn = self._pool.getconn(deadline - time.monotonic())
            except PoolTimeout as error:
                self._trip("no connection to be had")
                raise Unavailable("no connection within the deadline of the pool") from error
            if _is_alive(conn):
                return conn
            conn.close()
            self._pool.putconn(conn)  # which replaces it

    def _trip(self, reason: str) -> None:
        if not self._away:  # one line for an outage, not one for each caller
            self._away = True
            log.error("the database is away", extra={"reason": reason})
        self._refuse_until = time.monotonic() + _BREAKER_SECONDS

    def _check_idle_connections(self) -> None:
        while not self._closing.wait(_IDLE_CHECK_SECONDS):
            self._pool.check()


def connect(url: str) -> PatientConnection:
    """A connection outside of the pool, as alike as can be to one inside; OperationalError when there is none."""
    conn = PatientConnection.connect(url, **_OPTIONS)
    _configure(conn)
    return conn


@contextmanager
def bounded(conn: Connection) -> Iterator[None]:
    """A transaction for a report that may be long: the server gives it up before the deadline of a statement.

    Psycopg's QueryCanceled then, an OperationalError. (A deadline that is missed counts as a database that is away:
    claims are refused for a moment, and the server works on for nobody.)
    """
    with conn.transaction():
        conn.execute(_REPORT_TIMEOUT, prepare=False)
        yield


def only(
    conn: psycopg.Connection[TupleRow], query: LiteralString, params: Mapping[str, object] | None = None
) -> TupleRow:
    """The one row that a call of a function, or a question for an aggregate, always returns."""
    row = conn.execute(query, params).fetchone()
    if row is None:
        raise psycopg.InternalError("a statement that always returns a row returned none")
    return row


def ping(conn: Connection) -> None:
    """One round trip; an OperationalError when the database is away."""
    conn.execute("/* ping */ SELECT 1")


def _configure(conn: Connection) -> None:
    conn.prepared_max = _MOST_PREPARED
    # TimeZone is reported by the server, so a pooler that keeps track of parameters keeps this one.
    conn.execute("SET TimeZone TO 'UTC'", prepare=False)
    # A jsonb goes from PostgreSQL to the client as it is.
    set_json_loads(lambda text: msgspec.Raw(text.encode() if isinstance(text, str) else bytes(text)), conn)
    set_json_dumps(msgspec.json.encode, conn)


def _is_alive(conn: Connection) -> bool:
    """Did this connection outlive its idle time? Seen by polling its socket, without a round trip."""
    poll = select.poll()
    poll.register(conn.pgconn.socket, select.POLLIN)
    if not poll.poll(0):
        return True
    # Something arrived unasked: a notice, or the news that the server is going away.
    try:
        conn.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return not poll.poll(0) and conn.pgconn.status == psycopg.pq.ConnStatus.OK
