"""The commands, a file for each, with `command` in it: they know the repositories and no SQL, and nothing of Flask.

Here is what they share. What goes wrong is one line on standard error, never a traceback.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
import psycopg

from streamorch import local
from streamorch.repositories import Actor, Connection, Database
from streamorch.repositories import migrate as migrations
from streamorch.settings import SettingError, Settings


class Failure(click.ClickException):
    """Ends the command with exit code 1 and its message as one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"streamorch: {self.message}", file=file or sys.stderr)


@contextmanager
def one_line() -> Iterator[None]:
    """Raise what an operator can mend as a Failure; everything else is a bug and keeps its traceback."""
    try:
        yield
    except (SettingError, local.StartError, migrations.SchemaError) as error:
        raise Failure(str(error)) from None
    except psycopg.OperationalError as error:
        raise Failure(f"the database does not answer: {' '.join(str(error).split())}") from None
    except psycopg.ProgrammingError as error:
        # Without a code of the server's it is libpq that cannot read the URL. It quotes it, password and all.
        reason = error.diag.message_primary if error.sqlstate else "DATABASE_URL is not a URL that PostgreSQL can read"
        raise Failure(f"the database refuses: {reason}" if error.sqlstate else str(reason)) from None


def settings() -> Settings:
    """The settings of a command that serves nobody; without a DATABASE_URL, the database of a running `run`."""
    environ = {"API_SECRET": "unused", **environ_without("API_SECRET")}
    if not any(environ.get(name) for name in ("DATABASE_URL", "DATABASE_URL_FILE")):
        environ["DATABASE_URL"] = local.running_database_url(environ)
    return Settings.from_env(environ)


def environ_without(*names: str) -> dict[str, str]:
    """The environment without these variables and those that name a file for them."""
    return {name: value for name, value in os.environ.items() if not any(left_out in name for left_out in names)}


@contextmanager
def database() -> Iterator[Connection]:
    """A connection to a database whose schema is that of this release; what goes wrong is a Failure."""
    with one_line():
        url = settings().database_url
        migrations.check(url)
        pool = Database(url, min_size=1, max_size=1)
        pool.open()
        try:
            with pool.connection(actor=Actor("CLI")) as conn:
                yield conn
        finally:
            pool.close()
