"""Processes of the bench's own, so that what they do takes no time of the client that measures."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_SECONDS = 60

_spawning = multiprocessing.get_context("spawn")


class ChildError(Exception):
    """A process of ours says nothing more."""


class Child:
    """The other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def tell(self, what: object) -> None:
        """Send it something."""
        self._pipe.send(what)

    def hear(self) -> Any:
        """What it says next. ChildError."""
        try:
            if self._pipe.poll(_SECONDS):
                return self._pipe.recv()
        except EOFError:
            pass
        raise ChildError("a process of the bench ended or hangs")


@contextmanager
def child(work: Callable[..., None], *arguments: object) -> Iterator[Child]:
    """A process that does `work(pipe, *arguments)`, and is ended with the context."""
    ours, its = _spawning.Pipe()
    process = _spawning.Process(target=_work, args=(work, its, *arguments), daemon=True)
    process.start()
    its.close()
    try:
        yield Child(ours)
    finally:
        process.terminate()
        process.join()


def _work(work: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the bench, which ends this process
    work(pipe, *arguments)
