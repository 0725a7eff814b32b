"""What the cases measure on, and how they take turns: databases, services and floors, started when first asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from bench import data, load, messages, servers, wrk
from bench.figures import Sample
from bench.messages import Message, Numbers
from bench.servers import Gunicorn
from bench.statements import Asker
from bench.table import Report

FLASK = "Flask view"
NO_OP = "WSGI no-op"
STOCK = "Flask view, stock gunicorn"
FLOORS = (FLASK, NO_OP, STOCK)

WARMING = 600
AGAIN = 200
_CONNECTIONS = 32


@dataclass(frozen=True)
class Effort:
    """How much is asked of each subject in each turn, and how many turns there are."""

    serial_turns: int
    serial: int
    burst_turns: int
    bursts: int
    busy_turns: int
    busy_seconds: int
    open_turns: int
    open_seconds: int
    changes: int
    ticks: int
    history: int
    memory: int
    scale_keys: int


FULL = Effort(
    serial_turns=10,
    serial=100,
    burst_turns=5,
    bursts=20,
    busy_turns=7,
    busy_seconds=1,
    open_turns=2,
    open_seconds=20,
    changes=100,
    ticks=10,
    history=1_000_000,
    memory=200_000,
    scale_keys=10_000_000,
)
QUICK = Effort(
    serial_turns=4,
    serial=50,
    burst_turns=3,
    bursts=5,
    busy_turns=2,
    busy_seconds=1,
    open_turns=1,
    open_seconds=5,
    changes=20,
    ticks=2,
    history=50_000,
    memory=10_000,
    scale_keys=100_000,
)


class Subject(NamedTuple):
    """Something to be measured: its name among others, and what measures it for one turn."""

    name: str
    run: Callable[[], Sample]


def in_turns(subjects: Sequence[Subject], turns: int) -> dict[str, list[Sample]]:
    """The samples of each subject by its name: all are measured in each turn, so that a slow moment meets all."""
    found: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
    for turn in range(turns):
        first = turn % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            found[subject.name].append(subject.run())
    return found


class Stage:
    """The servers of one run. What it starts lasts until `stack` closes."""

    def __init__(self, server: data.Server, folder: Path, effort: Effort, report: Report, stack: ExitStack) -> None:
        self.server = server
        self.folder = folder
        self.effort = effort
        self.report = report
        self._stack = stack
        self._services: dict[str, Gunicorn] = {}
        self._floors: dict[str, Gunicorn] = {}

    @cached_property
    def database(self) -> data.Database:
        """The database of most cases."""
        return self._stack.enter_context(self.server.database())

    def service(self, log_level: str = "warning") -> Gunicorn:
        """The service on that database, warmed."""
        if log_level not in self._services:
            context = servers.service(self.folder, self.database.url, log_level=log_level)
            self._services[log_level] = started = self._stack.enter_context(context)
            warm(started, self.database, WARMING)
        return self._services[log_level]

    def floor(self, name: str) -> Gunicorn:
        """FLASK, NO_OP or STOCK, warmed."""
        if name not in self._floors:
            starts = {
                FLASK: lambda: servers.floor(self.folder, "app"),
                NO_OP: lambda: servers.floor(self.folder, "no_op"),
                STOCK: lambda: servers.stock(self.folder),
            }
            self._floors[name] = started = self._stack.enter_context(starts[name]())
            for message in (messages.claim(), messages.filling(1000)):
                _ask_often(started, message, Numbers(data.UNKNOWN.first, WARMING))
        return self._floors[name]

    @cached_property
    def asker(self) -> Asker:
        """Asks the statement of the service's claims, on the same database."""
        return Asker(self.service().port, self.database, self.server.programs)

    @property
    def threads(self) -> int:
        """How many requests the service handles at the same time."""
        return servers.workers() * servers.threads()

    @contextmanager
    def apart(
        self, media_server_url: str = servers.NO_MEDIA_SERVER
    ) -> Iterator[tuple[data.Database, Callable[[int], Gunicorn]]]:
        """A database of its own, and what starts a service on it, when its rows are there, and warms it by so many
        questions of each kind (WARMING).
        """
        with self.server.database() as database, ExitStack() as stack:

            def start(warming: int) -> Gunicorn:
                context = servers.service(self.folder, database.url, media_server_url=media_server_url)
                started = stack.enter_context(context)
                warm(started, database, warming)
                return started

            yield database, start

    def resident_megabytes(self) -> Mapping[str, list[float]]:
        """Resident memory of each worker of each service and floor that runs, as it is now."""
        running = {f"service, LOG_LEVEL={level}": found for level, found in self._services.items()} | self._floors
        return {name: [round(value, 1) for value in found.resident_megabytes()] for name, found in running.items()}


def warm(service: Gunicorn, database: data.Database, count: int = AGAIN) -> None:
    """Ask every kind of question so often that each connection of each worker has prepared its statement, or has
    planned it anew for the rows that are there by now.
    """
    _ask_often(service, messages.claim(), database.take(count))
    for message in (messages.claim().with_status(401), messages.read(), messages.live_list()):
        _ask_often(service, message, Numbers(data.UNKNOWN.first, count))


def _ask_often(server: Gunicorn, message: Message, numbers: Numbers) -> None:
    sample = load.closed_loop(server.port, message, numbers, connections=_CONNECTIONS, seconds=60, kept=False)
    if sample.wrong:
        raise servers.ServerError(f"{server.name} did not take warming: {dict(sample.wrong)}")


def busy(
    server: Gunicorn,
    message: Message,
    numbers: Numbers,
    *,
    connections: int,
    seconds: int,
    kept: bool,
    body_bytes: int | None = None,
) -> Sample:
    """Clients that never pause: wrk, or Python where that is missing. See `wrk.run`."""
    if wrk.is_installed():
        return wrk.run(
            server.port,
            message,
            numbers,
            connections=connections,
            seconds=seconds,
            kept=kept,
            body_bytes=body_bytes,
        )
    return load.closed_loop(
        server.port,
        message if kept else message.closing(),
        numbers,
        connections=connections,
        seconds=seconds,
        kept=kept,
    )


def watched(server: Gunicorn, database: data.Database | None, run: Callable[[], Sample]) -> Sample:
    """The sample of a run, with the CPU time that its workers, and their sessions in the database, take for it."""
    sessions = _sessions(database) if database else []
    workers_before, sessions_before = server.cpu_seconds(), _cpu_seconds(sessions)
    sample = run()
    sample.workers_cpu = server.cpu_seconds() - workers_before
    sessions_after = _cpu_seconds(sessions)
    if sessions and sessions_before is not None and sessions_after is not None:
        sample.database_cpu = sessions_after - sessions_before
    return sample


def _sessions(database: data.Database) -> list[int]:
    """The processes of PostgreSQL that serve the service, if they are here."""
    found = database.conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'streamorch'"
    )
    return [pid for (pid,) in found]


def _cpu_seconds(pids: Sequence[int]) -> float | None:
    try:
        if all(Path(f"/proc/{pid}/comm").read_text() == "postgres\n" for pid in pids):
            return sum(map(servers.process_cpu_seconds, pids))
    except OSError:  # on another machine, or gone since
        pass
    return None
