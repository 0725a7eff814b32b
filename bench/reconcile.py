"""The reconciler on ten thousand live paths: every counter moves, and a thousand streams change in each tick.

The media server is the fake of the tests, in a process of its own; what a tick waits for it counts as well.
"""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import click
import psycopg

from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import connect
from streamorch.settings import Settings

NAME = "reconcile"
_ROOT = Path(__file__).resolve().parent.parent
_PATHS = 10_000
_TURNS = 500
_TICKS = 10


def measure(database_url: str) -> None:
    """Print how long a tick takes: the first, with nothing changed, and with a thousand changes."""
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.reconcile"], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        url, live = _told(server)
        settings = Settings.from_env({"DATABASE_URL": database_url, "API_SECRET": "bench", "MEDIAMTX_API_URL": url})
        reconciler = Reconciler(settings, ControlAPI(url, user="bench", password="bench"))  # noqa: S106  # not asked for
        with psycopg.connect(database_url, autocommit=True) as rows, connect(database_url) as conn:
            _claim(rows, live)
            _tick("first: all start", reconciler, conn, 1)
            _tick("all counters move", reconciler, conn, _TICKS)
            seconds = []
            for _ in range(_TICKS):
                print("turn", file=server.stdin, flush=True)
                _, begun = _told(server)
                _claim(rows, begun)
                seconds += _ticks(reconciler, conn, 1, changes=2 * _TURNS)
            _say(f"and {2 * _TURNS} changes", seconds)
            reconciler.resign(conn)
    finally:
        server.kill()
        server.wait()


def _tick(name: str, reconciler: Reconciler, conn: psycopg.Connection, count: int) -> None:
    _say(name, _ticks(reconciler, conn, count))


def _ticks(reconciler: Reconciler, conn: object, count: int, changes: int | None = None) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.monotonic()
        report = reconciler.tick(conn)  # type: ignore[arg-type]
        seconds.append(time.monotonic() - began)
        if report is None or report.live != _PATHS or report.unclaimed or changes not in (None, report.change_count):
            raise click.ClickException(f"the tick went wrong: {report}")
    return seconds


def _say(name: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    middle, last = ordered[len(ordered) // 2], ordered[-1]
    click.echo(f"reconcile {_PATHS} paths, {name:28} p50 {middle * 1000:6.0f} ms   max {last * 1000:6.0f} ms")


def _told(server: "subprocess.Popen[str]") -> tuple[str, list[tuple[str, str]]]:
    if server.stdout is None:
        raise click.ClickException("the fake media server has no output")
    told = json.loads(server.stdout.readline())
    return told["url"], [(path, source_id) for path, source_id in told["live"]]


def _claim(conn: psycopg.Connection, publishers: Sequence[tuple[str, str]]) -> None:
    """A key and a pending claim for each, as POST /auth leaves them."""
    with conn.cursor() as cursor:
        owner = uuid.uuid4()
        cursor.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Bench')", [owner])
        cursor.execute(
            """
            WITH claims AS (
                SELECT gen_random_uuid() AS key_id, path, id FROM unnest(%s::text[], %s::text[]) AS u (path, id)
            ), made AS (
                INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
                SELECT key_id, %s, sha256(key_id::text::bytea), 'xxxx' FROM claims
            )
            INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at)
            SELECT gen_random_uuid(), key_id, 'default', path, 'rtmp', id, clock_timestamp(),
                   clock_timestamp() + interval '1 hour'
            FROM claims
            """,
            [[path for path, _ in publishers], [source_id for _, source_id in publishers], owner],
        )


def _serve() -> None:
    """The media server: says where it is and who is live; after each line of input 500 have left and 500 come."""
    from tests.fake_mediamtx import FakeMediaMTX

    with FakeMediaMTX() as fake:
        live = fake.publish_many(_PATHS, bytes_per_second=100_000)
        begun = live
        for turn in range(1_000_000):
            print(json.dumps({"url": fake.url, "live": [(p.path, p.source_id) for p in begun]}), flush=True)
            if not sys.stdin.readline():
                return
            for publisher in live[:_TURNS]:
                fake.leave(publisher)
            begun = fake.publish_many(_TURNS, prefix=f"live/turn{turn}-", bytes_per_second=100_000)
            live = live[_TURNS:] + begun


if __name__ == "__main__":
    _serve()
