"""The reconciler on ten thousand live paths: every counter moves, and a thousand streams change in each tick.

What a tick waits for the media server counts as well.
"""

import time
from collections.abc import Sequence

from bench import messages
from bench.figures import Sample, pooled
from bench.media_server import media_server
from bench.servers import ServerError
from bench.stage import Stage
from bench.table import Result
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import PatientConnection, connect
from streamorch.settings import Settings

NAMES = (
    "reconcile 10000 paths when all start",
    "reconcile 10000 paths when all counters move",
    "reconcile 10000 paths when 1000 change",
)
_PATHS = 10_000
_TURNS = 500


def measure(stage: Stage, wanted: Sequence[str]) -> None:
    """How long a tick takes: the first, those that see nothing but counters move, and those with a thousand changes."""
    ticks = stage.effort.ticks
    with stage.server.database() as database, media_server(_PATHS) as media:
        environ = {"DATABASE_URL": database.url, "API_SECRET": messages.SECRET, "MEDIAMTX_API_URL": media.url}
        settings = Settings.from_env(environ)
        api = ControlAPI(settings.mediamtx_api_url, user="", password="")  # nobody asks for them
        reconciler = Reconciler(settings, api)
        database.claim(media.live)
        with connect(database.url) as conn:
            found = [[_tick(reconciler, conn, changes=_PATHS)], [_tick(reconciler, conn, 0) for _ in range(ticks)], []]
            for _ in range(ticks):
                database.claim(media.turn(_TURNS))
                found[2].append(_tick(reconciler, conn, changes=2 * _TURNS))
            reconciler.resign(conn)
    for name, seconds in zip(NAMES, found, strict=True):
        if name in wanted:
            stage.report.add(Result(name, pooled([Sample(len(seconds), sum(seconds), latencies=seconds)])))


def _tick(reconciler: Reconciler, conn: PatientConnection, changes: int) -> float:
    """How many seconds a tick takes that must find so many changes. ServerError."""
    began = time.perf_counter()
    report = reconciler.tick(conn)
    seconds = time.perf_counter() - began
    if report is None or report.live != _PATHS or report.unclaimed or report.change_count != changes:
        raise ServerError(f"the tick went wrong: {report}")
    return seconds
