"""`make bench`: start the service and the floors, ask them in turns, print one table and save it as JSON.

Callbacks come as MediaMTX sends them from v1.17.1 on: a new TCP connection for each. Everything is on loopback, bounded
in count and time, and stopped at the end. Machines are noisy: read the ratios, not the milliseconds.
"""

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import click
import psycopg

from bench import cases, data, servers, table, wrk
from bench.children import ChildError
from bench.stage import FULL, QUICK, Stage
from bench.statements import StatementError
from streamorch.postgres import StartError

_RESULTS = Path(__file__).resolve().parent / "results"


@click.command()
@click.option("--case", "wanted", default="", metavar="TEXT,…", help="Only the cases with one of these in their name.")
@click.option("--quick", is_flag=True, help="Ask less and in fewer turns: for a first look.")
@click.option("--full", is_flag=True, help="The cases that take minutes to prepare, too: scale.")
@click.option("--list", "shows_names", is_flag=True, help="Print the names of the cases.")
@click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the results go, if not into bench/results.",
)
@click.option(
    "--database-url",
    envvar="DATABASE_URL",
    metavar="URL",
    help="A PostgreSQL server, as somebody who may create databases there; else one of its own.",
)
def main(wanted: str, quick: bool, full: bool, shows_names: bool, file: Path | None, database_url: str | None) -> None:
    """Measure, and print the table."""
    chosen = cases.selected(wanted, full=full)
    if not chosen:
        raise click.ClickException(f"no case has {wanted!r} in its name; --list shows them")
    if shows_names:
        click.echo("\n".join(name for _, names in chosen for name in names))
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        report = _measured(chosen, database_url, is_quick=quick)
    except (
        servers.ServerError,
        StatementError,
        StartError,
        wrk.WrkError,
        ChildError,
        psycopg.OperationalError,
    ) as error:
        raise click.ClickException(str(error)) from error
    saved = file or _RESULTS / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    report.save(saved)
    click.echo(f"saved: {saved}")
    if report.wrong:
        raise click.ClickException(f"wrong answers in: {', '.join(report.wrong)}")


def _measured(chosen: list[tuple[cases.Group, list[str]]], database_url: str | None, *, is_quick: bool) -> table.Report:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamorch-bench-")))
        folder.chmod(0o711)  # the database server runs as a user of its own when root starts it
        server = stack.enter_context(data.server(database_url, folder))
        report = table.Report(
            table.about(server.version(), workers=servers.workers(), threads=servers.threads())
            | {"is_quick": is_quick, "cases": [name for _, names in chosen for name in names]}
        )
        stage = Stage(server, folder, QUICK if is_quick else FULL, report, stack)
        click.echo(f"{table.described(report.about)}\n\n{table.LEGEND}\n")
        click.echo("\n".join(table.heading()))
        for group, names in chosen:
            group.measure(stage, names)
        report.notes["resident_megabytes"] = stage.resident_megabytes()
        for name, megabytes in report.notes["resident_megabytes"].items():
            click.echo(f"resident memory of each worker at the end, {name}: {', '.join(map(str, megabytes))} MB")
        return report


def leave(*_: object) -> NoReturn:
    """SIGTERM ends as Ctrl-C does: with everything stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="python -m bench")
