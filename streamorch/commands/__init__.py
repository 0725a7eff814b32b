"""The commands, a file for each, with `command` in it: they know the repositories and no SQL, and nothing of Flask.

Here is what they share. What goes wrong is one line on standard error, never a traceback.
"""

import os
import shutil
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any
from uuid import UUID

import click
import msgspec
import psycopg
from click.shell_completion import CompletionItem

from streamorch import local, tables
from streamorch.repositories import Actor, Connection, connect
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
    """A connection to a database whose schema is that of this release, for CLI; what goes wrong is a Failure."""
    with one_line():
        url = settings().database_url
        migrations.check(url)
        with connect(url) as conn:
            conn.actor = Actor("CLI")
            yield conn


# --- what is asked for ------------------------------------------------------------------------------------


class Listing(click.Group):
    """A group whose commands may be left out: with an id it shows that one, else it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if _is_id(first):
            args = ["show", *args]
        # (While the shell completes, no word is not the end of it.)
        elif not args and not ctx.resilient_parsing:
            args = ["list"]
        elif first.startswith("-") and first not in self.get_help_option_names(ctx):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("Without a command it lists, as `list` does; with an id it shows that one.")


class Id(click.types.UUIDParameterType):
    """The id of a row; the shell completes it by `known` (ids and what they are), if the database answers."""

    def __init__(self, known: Callable[[Connection], Iterable[tuple[UUID, str]]]):
        self.known = known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            with database() as conn:
                found = [(str(row_id), name) for row_id, name in self.known(conn)]
        except click.ClickException:
            return []
        return [
            CompletionItem(row_id, help=tables.clean(name)) for row_id, name in found if row_id.startswith(incomplete)
        ]


class Text(click.types.StringParamType):
    """Text of at least one and at most so many characters."""

    def __init__(self, longest: int):
        self.longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(super().convert(value, param, ctx))
        if not 1 <= len(text) <= self.longest:
            self.fail(f"must have from 1 to {self.longest} characters, not {len(text)}", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("is not UTF-8", param, ctx)
        return text


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


# --- what is shown ----------------------------------------------------------------------------------------


as_json = click.option("--json", "as_json", is_flag=True, help="As JSON, the objects of the HTTP API.")


def show_json(value: object) -> None:
    """The value as JSON, for people and programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, elastic: Container[str] = ()) -> None:
    """The rows below their headings, as wide as the terminal; into a file or a pipe as wide as they are."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in tables.lines(headings, rows, width=width, elastic=elastic):
        click.echo(line)


def show_members(members: dict[str, object]) -> None:
    """A name and a value a line."""
    widest = max(map(len, members))
    for name, value in members.items():
        click.echo(f"{name:{widest}}  {'-' if value is None or value == '' else tables.clean(str(value))}")
