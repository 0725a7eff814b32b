"""The media server of the cases that need one: the fake of the tests, in a process of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

from bench.children import Child, child

_BYTES_PER_SECOND = 100_000

# Path and connection of each.
Publishers = Sequence[tuple[str, str]]


class MediaServer:
    """Where it is, and who published there first."""

    def __init__(self, process: Child) -> None:
        self._process = process
        self.url, self.live = process.hear()

    def turn(self, count: int) -> Publishers:
        """So many of the publishers leave, the oldest first, and as many others come: those."""
        self._process.tell(count)
        _, begun = self._process.hear()
        publishers: Publishers = begun
        return publishers


@contextmanager
def media_server(paths: int) -> Iterator[MediaServer]:
    """One with so many live paths, whose counters move."""
    with child(_serve, paths) as process:
        yield MediaServer(process)


def _serve(pipe: Connection, paths: int) -> None:
    from tests.fake_mediamtx import FakeMediaMTX

    with FakeMediaMTX() as fake:
        live = begun = fake.publish_many(paths, bytes_per_second=_BYTES_PER_SECOND)
        turn = 0
        while True:
            pipe.send((fake.url, [(publisher.path, publisher.source_id) for publisher in begun]))
            count = pipe.recv()
            for publisher in live[:count]:
                fake.leave(publisher)
            begun = fake.publish_many(count, prefix=f"live/turn{turn}-", bytes_per_second=_BYTES_PER_SECOND)
            live = live[count:] + begun
            turn += 1
