"""`make bench`: start the service and the floor, ask both in turns, print one table.

Callbacks come as MediaMTX sends them from v1.17.1 on: a new TCP connection for each. Everything is on loopback, bounded
in count, and stopped at the end. Machines are noisy: read the ratios, not the milliseconds.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import psycopg

from bench import reconcile
from streamorch import keys
from streamorch.postgres import Postgres
from streamorch.repositories import migrate

_ROOT = Path(__file__).resolve().parent.parent
_SECRET = "bench"  # noqa: S105  # of a service that lives for the length of this run
_SERIAL = 500
_BURST = 100
_BURSTS = 10
_LIVE = 200


class Question(NamedTuple):
    """One request: method, target, headers and body."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Case(NamedTuple):
    """What is asked: the n-th question of it, and the status that each answer must have."""

    name: str
    question: Callable[[int], Question]
    status: int


@click.command()
@click.option("--case", "wanted", help="Only the cases with this in their name.")
def main(wanted: str | None) -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory(prefix="streamorch-bench-") as folder:
        Path(folder).chmod(0o711)  # the database server runs as a user of its own when root starts it
        if (wanted or "") in reconcile.NAME:
            with _database(Path(folder) / "reconcile") as url:
                reconcile.measure(url)
        if wanted != reconcile.NAME:
            with _database(Path(folder) / "postgres") as url:
                _measure_answers(url, wanted or "")


@contextmanager
def _database(folder: Path) -> Iterator[str]:
    postgres = Postgres(folder)
    postgres.start()
    try:
        migrate.apply(postgres.url)
        yield postgres.url
    finally:
        postgres.stop()


def _measure_answers(database_url: str, wanted: str) -> None:
    own = ("--config", str(_ROOT / "gunicorn.conf.py"))
    # devnull: gunicorn would read the service's own configuration from this folder.
    bare = ("--config", os.devnull, "--worker-class", "gthread", "--workers", "2", "--threads", "4", "bench.floor:app")
    with _gunicorn(*own, database_url=database_url) as service, _gunicorn(*bare) as floor:
        _measure(service, floor, _cases(database_url), wanted)
        click.echo(f"resident memory of each worker: {_worker_megabytes(service)} MB")


class Server(NamedTuple):
    """A running gunicorn."""

    port: int
    pid: int
    is_floor: bool


@contextmanager
def _gunicorn(*arguments: str, database_url: str = "") -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {
        **os.environ,
        "API_PORT": str(port),
        "DATABASE_URL": database_url,
        "API_SECRET": _SECRET,
        "LOG_LEVEL": "warning",
    }
    bind = [] if database_url else ["--bind", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *bind, *arguments]
    process = subprocess.Popen(command, cwd=_ROOT, env=environ, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Server(port, process.pid, is_floor=not database_url)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _cases(database_url: str) -> list[Case]:
    """The cases, on a database with keys for every claim and 200 live streams."""
    values = [keys.mint() for _ in range(3 * _SERIAL + 3 * _BURST * _BURSTS)]
    live = [keys.mint() for _ in range(_LIVE)]
    with psycopg.connect(database_url, autocommit=True) as conn, conn.cursor() as cursor:
        broadcaster_id = uuid.uuid4()
        cursor.execute("INSERT INTO broadcasters (id, display_name) VALUES (%s, 'Bench')", [broadcaster_id])
        cursor.executemany(
            "INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint) VALUES (gen_random_uuid(), %s, %s, %s)",
            [(broadcaster_id, keys.digest(value), keys.hint(value)) for value in values + live],
        )
        for number, value in enumerate(live):
            connection_id = f"live-{number}"
            cursor.execute(
                "SELECT claim_v1(%s, 'default', %s, %s, 'rtmp', '', '', 20, NULL)",
                [keys.digest(value), f"bench/live{number}", connection_id],
            )
            cursor.execute("SELECT ready_v1('default', %s, 'rtmpConn', %s)", [f"bench/live{number}", connection_id])
    unused = iter(values)
    return [
        Case("auth claim", lambda n: _publish(next(unused), f"bench/{n}-{uuid.uuid4().hex[:8]}"), 200),
        Case("auth refuse (unknown key)", lambda n: _publish("sk_" + "0" * 43, "bench/refused"), 401),
        Case("auth replay", lambda n: _publish(live[n % _LIVE], f"bench/live{n % _LIVE}", f"live-{n % _LIVE}"), 200),
        Case("auth read", lambda n: _publish("", "bench/live0", action="read"), 200),
        Case(f"list of {_LIVE}", lambda n: _list({}), 200),
        Case(f"list of {_LIVE}, unchanged", lambda n: _list({"If-None-Match": "*"}), 304),
    ]


def _publish(key: str, path: str, connection_id: str | None = None, action: str = "publish") -> Question:
    body = {
        "ip": "192.0.2.7",
        "user": "",
        "password": key,
        "token": key,
        "action": action,
        "path": path,
        "protocol": "rtmp",
        "id": connection_id or str(uuid.uuid4()),
        "query": "",
        "userAgent": "bench",
    }
    return Question("POST", "/auth", {"Content-Type": "application/json"}, json.dumps(body).encode())


def _list(headers: dict[str, str]) -> Question:
    return Question("GET", "/streams", {"Authorization": f"Bearer {_SECRET}", **headers}, b"")


def _measure(service: Server, floor: Server, cases: list[Case], wanted: str) -> None:
    click.echo(f"{'case':36} {'p50':>8} {'p95':>8} {'p99':>8} {'max':>8}   p50 and p95 against an empty Flask view")
    for case in cases:
        if wanted not in case.name:
            continue
        for name, ask, rounds in (("one by one", _one_by_one, 1), (f"{_BURST} at once", _at_once, _BURSTS)):
            ask(service, case, 1)
            ask(floor, case, 1)
            own: list[float] = []
            least: list[float] = []
            for _ in range(rounds):  # in turns, so that a slow moment of the machine meets both
                own += ask(service, case, 0)
                least += ask(floor, case, 0)
            mine, bare = _percentiles(own), _percentiles(least)
            figures = " ".join(f"{value * 1000:8.2f}" for value in mine)
            click.echo(f"{case.name + ', ' + name:36} {figures}   {mine[0] / bare[0]:.2f} {mine[1] / bare[1]:.2f}")


def _percentiles(seconds: list[float]) -> tuple[float, float, float, float]:
    seconds.sort()
    last = len(seconds) - 1
    return seconds[last // 2], seconds[last * 95 // 100], seconds[last * 99 // 100], seconds[last]


def _one_by_one(server: Server, case: Case, warming: int) -> list[float]:
    """As one media server asks: a question, its answer, the next."""
    return [_seconds(server, case, number) for number in range(50 if warming else _SERIAL)]


def _at_once(server: Server, case: Case, warming: int) -> list[float]:
    """A hundred clients that ask in the same moment."""
    together = threading.Barrier(_BURST)
    seconds: list[float] = []

    def ask(number: int) -> None:
        together.wait()
        seconds.append(_seconds(server, case, number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(_BURST)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def _seconds(server: Server, case: Case, number: int) -> float:
    """From connecting to the last byte of the answer; RuntimeError when the service answers something else."""
    question = case.question(number)
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(question.method, question.target, body=question.body, headers=question.headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    seconds = time.perf_counter() - started
    if answer.status != (200 if server.is_floor else case.status):
        raise RuntimeError(f"{case.name}: {answer.status}")
    return seconds


def _worker_megabytes(server: Server) -> list[int]:
    """Resident memory of gunicorn's workers, in MB; empty where /proc is not."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    if not children.exists():
        return []
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in children.read_text().split()]
    return [count * os.sysconf("SC_PAGE_SIZE") // 1_000_000 for count in pages]


if __name__ == "__main__":
    main()
