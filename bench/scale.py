"""Does a claim cost the same however much is in the database? Two databases on one server, two services, in turns."""

import time
from collections.abc import Sequence
from functools import partial

import click

from bench import load, messages
from bench.data import Database
from bench.figures import Sample, pooled
from bench.servers import Gunicorn
from bench.stage import Stage, Subject, in_turns, watched
from bench.table import Floor, Result

NAMES = ("scale claim in a small database", "scale claim in a large database")

# Keys of the small one: each is used once.
_SMALL = 1_000
_LIVE = 100
_WARMING = 100


def measure(stage: Stage, wanted: Sequence[str]) -> None:
    """One by one, as in the serial cases. The small database has 1,000 keys and no ended stream; both have 100 live."""
    keys, ended = stage.effort.scale_keys, stage.effort.history
    turns = stage.effort.serial_turns
    each = (_SMALL - _LIVE - _WARMING) // turns
    small, large = NAMES
    with stage.apart() as (database, start), stage.apart() as (large_database, start_large):
        database.make_keys(_SMALL)
        database.make_live(_LIVE)
        began = time.monotonic()
        click.echo(f"(making {keys} keys and {ended} ended streams: minutes)")
        large_database.make_keys(keys)
        large_database.make_ended(ended)
        large_database.make_live(_LIVE)
        seconds = round(time.monotonic() - began)
        servers = {small: (start(_WARMING), database), large: (start_large(_WARMING), large_database)}
        subjects = [
            Subject(name, partial(watched, service, rows, partial(_claims, service, rows, each)))
            for name, (service, rows) in servers.items()
        ]
        figures = {name: pooled(samples) for name, samples in in_turns(subjects, turns).items()}
    stage.report.add(Result(small, figures[small], notes={"keys": _SMALL, "ended streams": 0}))
    notes = {"keys": keys, "ended streams": ended, "seconds to make them": seconds}
    stage.report.add(Result(large, figures[large], floor=Floor.of(latency=[(small, figures[small])]), notes=notes))


def _claims(service: Gunicorn, database: Database, count: int) -> Sample:
    return load.one_by_one(service.port, messages.claim(), database.take(count))
