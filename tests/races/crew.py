"""The workers of a race: threads of several processes, all released at once, round after round."""

import multiprocessing
import random
import signal
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import TypeVar

import psycopg
from psycopg.abc import PQGen

from streamorch.repositories import Connection
from tests.races.kinds import KINDS
from tests.races.rounds import Kind, Place

T = TypeVar("T")

THREADS = 2

# The longest that a worker waits for the database, and for the others.
_STATEMENT_SECONDS = 8.0
_BARRIER_SECONDS = 20.0
_START_SECONDS = 60.0
_ROUND_SECONDS = 0.05

# Workers leave the barrier in nearly the same order each time: without this the later ones would hardly ever win.
_JITTER_SECONDS = 100e-6


class CrewError(Exception):
    """A race did not come to its end: a worker died or was too late."""


class Crew:
    """Processes with two threads each, started once for any number of races; none is left after the `with`."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.workers = processes * THREADS
        self._barrier = context.Barrier(self.workers)
        self._pipes: list[Pipe] = []
        self._processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._barrier, number * THREADS), daemon=True)
            self._pipes.append(ours)
            self._processes.append((process, theirs))

    def __enter__(self) -> "Crew":
        for process, theirs in self._processes:
            process.start()
            theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # the end of their work
        for process, _ in self._processes:
            process.join(0 if error else _BARRIER_SECONDS)
            process.kill()
            process.join()
            process.close()

    def race(self, kind_name: str, database_url: str, rounds: int) -> list[list[str]]:
        """Run the rounds; what each worker was told, by worker and then by round. CrewError when it got stuck."""
        for pipe in self._pipes:
            pipe.send((kind_name, database_url, rounds))
        deadline = time.monotonic() + _START_SECONDS + rounds * _ROUND_SECONDS
        told: list[list[str]] = []
        for pipe in self._pipes:
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise CrewError(f"{kind_name}: the workers were not done in time")
                outcomes, failures = pipe.recv()
            except EOFError:
                raise CrewError(f"{kind_name}: a worker died") from None
            if failures:
                raise CrewError(f"{kind_name}: {'; '.join(failures)}")
            told += outcomes
        return told


def _serve(pipe: Pipe, barrier: Barrier, first_worker: int) -> None:
    """A process of the crew: one race after the other, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    while True:
        try:
            kind_name, database_url, rounds = pipe.recv()
        except EOFError:
            return
        told: list[list[str]] = [[] for _ in range(THREADS)]
        failures: list[str] = []

        def work(
            index: int,
            kind: Kind = KINDS[kind_name],
            url: str = database_url,
            rounds: int = rounds,
            told: list[list[str]] = told,
            failures: list[str] = failures,
        ) -> None:
            try:
                _run(kind, url, rounds, first_worker + index, barrier, told[index])
            except Exception as error:  # the others must not wait for this one
                failures.append(f"worker {first_worker + index}: {error!r}")
                barrier.abort()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send((told, failures))


def _run(kind: Kind, database_url: str, rounds: int, worker: int, barrier: Barrier, told: list[str]) -> None:
    """One worker. An error of the database is an outcome; it is for the judge to say that none may be."""
    jitter = random.Random(worker)  # noqa: S311  # no secret
    with ExitStack() as open_connections:
        conn = open_connections.enter_context(_connect(database_url))
        for number in range(rounds):
            role = kind.role(number, worker)
            barrier.wait(_BARRIER_SECONDS)
            start_at = time.perf_counter() + jitter.random() * _JITTER_SECONDS
            while time.perf_counter() < start_at:
                pass
            try:
                told.append(role.act(conn, Place(number, worker)))
            except psycopg.Error as error:
                told.append(f"{type(error).__name__}: {error}".partition("\n")[0])
                if conn.closed:
                    conn = open_connections.enter_context(_connect(database_url))


class _Patient(Connection):
    """The pool's connection without its short deadline: a busy machine is no lost race."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, timeout or _STATEMENT_SECONDS)


def _connect(database_url: str) -> Connection:
    """As the pool gives them: autocommit, and each statement prepared at once."""
    return _Patient.connect(database_url, autocommit=True, prepare_threshold=0)
