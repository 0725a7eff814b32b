"""`streamorch import-rescuestream`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg

from streamorch import rescuestream
from streamorch.commands import Failure, as_json, database, show_json
from streamorch.repositories.rescuestream import Old, open_old, refusal
from streamorch.rescuestream import Report

_NOT_ONE = "OLD_URL is no database of rescuestream-api: {}"


@click.command("import-rescuestream")
@click.argument("old_url", envvar="RESCUESTREAM_DATABASE_URL")
@click.option("--dry-run", is_flag=True, help="Write nothing, say what it would be.")
@as_json
def command(old_url: str, dry_run: bool, as_json: bool) -> None:
    """Copy broadcasters, stream keys and ended streams from the database of rescuestream-api, which is only read.

    Keys keep their ids and work as before, but for the path: no path is a key any more. What is live there is not
    copied; run it again when that has ended. A second run adds what is new, and takes back what was taken back there.

    OLD_URL may stand in RESCUESTREAM_DATABASE_URL, where no list of processes shows its password.

    \b
    Examples:
      streamorch import-rescuestream --dry-run postgresql://localhost/rescuestream
      streamorch import-rescuestream postgresql://localhost/rescuestream
    """
    with database() as conn, _old(old_url) as old:
        if reason := refusal(old):
            raise Failure(_NOT_ONE.format(reason))
        report = rescuestream.copy(old, conn, dry_run=dry_run, progress=_progress)
    if as_json:
        show_json(report)
        return
    for line in _lines(report):
        click.echo(line)


@contextmanager
def _old(url: str) -> Iterator[Old]:
    """The old database; when that one fails, the Failure says so."""
    try:
        old = open_old(url)
    except psycopg.OperationalError as error:
        raise Failure(f"the old database does not answer: {' '.join(str(error).split())}") from None
    except psycopg.ProgrammingError:
        # libpq's own words quote the URL, password and all.
        raise Failure("OLD_URL is not a URL that PostgreSQL can read") from None
    with old:
        try:
            yield old
        except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege) as error:
            if old.broken or old.info.transaction_status is psycopg.pq.TransactionStatus.INERROR:
                raise Failure(f"the old database gave up: {' '.join(str(error).split())}") from None
            raise


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done:,} of {total:,} streams", nl=done >= total, err=True)


def _lines(report: Report) -> Iterator[str]:
    if report.dry_run:
        yield "Nothing was written. It would be:"
    yield f"broadcasters  {report.broadcasters:,} added, {report.broadcasters_known:,} were here"
    yield f"stream keys   {report.stream_keys:,} added, {report.stream_keys_known:,} were here"
    yield f"streams       {report.streams:,} added, {report.streams_known:,} were here"
    if report.live_streams:
        yield f"{report.live_streams:,} streams are live there and were left out: run this again when they have ended"
    if report.stream_keys_revoked:
        yield f"{report.stream_keys_revoked:,} keys were revoked there since, and are revoked here now"
    if report.redacted:
        yield f"in {report.redacted:,} streams a stream key stood in the path or beside it: it is sk_[redacted] now"
    for key_id, same in report.same_value.items():
        yield f"stream key {key_id} has the value of {same}, which stands for both"
    for key_id in report.other_value:
        yield f"stream key {key_id} was left out: here its id is that of another key"
    if report.streams_orphaned:
        yield f"{report.streams_orphaned:,} streams of keys that were left out were left out, too"
