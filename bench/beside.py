"""A claim while everything else goes on: the reconciler, the bulk creation of keys, and fifty frontends that poll."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

from bench import data, load, messages
from bench.children import child
from bench.figures import Sample, joined, pooled
from bench.media_server import media_server
from bench.messages import Numbers
from bench.servers import ServerError
from bench.stage import FLASK, NO_OP, WARMING, Stage, Subject, in_turns, watched
from bench.statements import UNCOUNTED, Asker
from bench.table import Floor, Result

NAMES = ("beside the reconciler claim", "beside everything claim")

_PATHS = 1_000
_FRONTENDS = 50
_LIVE_SECONDS = 30
_FIRST_SECONDS = 0.5


def measure(stage: Stage, wanted: Sequence[str]) -> None:
    """One by one, as in the serial cases: beside the reconciler alone, which sees 1,000 live paths, and beside all."""
    count = 5 * stage.effort.serial
    alone, among_all = NAMES
    others: dict[str, list[Sample]] = {"fifty frontends, once a second each": [], "keys made one by one": []}
    with (
        media_server(_PATHS) as media,
        stage.apart(media_server_url=media.url) as (database, start),
        child(_poll) as frontends,
        child(_make_keys) as maker,
    ):
        service = start(WARMING)
        database.claim(media.live)
        _await_live(database)
        asker = Asker(service.port, database, stage.server.programs)
        claim = partial(watched, service, database, lambda: _claims(service.port, database.take(count)))

        def claim_among_all() -> Sample:
            processes = (frontends, maker)
            for process in processes:
                process.tell((service.port, str(database.broadcaster_id)))
            time.sleep(_FIRST_SECONDS)
            sample = claim()
            for process, samples in zip(processes, others.values(), strict=True):
                process.tell(None)
                samples.append(process.hear())
            return sample

        measured: dict[str, Callable[[], Sample]] = {
            alone: claim,
            among_all: claim_among_all,
            asker.name: lambda: asker.ask(database.take(count + UNCOUNTED), count, sessions=1),
            FLASK: lambda: _claims(stage.floor(FLASK).port, Numbers(data.UNKNOWN.first, count)),
            NO_OP: lambda: _claims(stage.floor(NO_OP).port, Numbers(data.UNKNOWN.first, count)),
        }
        subjects = [Subject(name, run) for name, run in measured.items() if name not in NAMES or name in wanted]
        figures = {name: pooled(found) for name, found in in_turns(subjects, stage.effort.busy_turns).items()}
    floors = {name: figures[name] for name in (FLASK, asker.name, NO_OP)}
    floor = Floor.of(latency=[(name, floors[name]) for name in (FLASK, asker.name)])
    no_op = Floor.of(latency=[(NO_OP, floors[NO_OP])])
    for name in wanted:
        beside = {other: pooled(found) for other, found in others.items()} if name == among_all else {}
        stage.report.add(Result(name, figures[name], beside | floors, floor, no_op))


def _claims(port: int, numbers: Numbers) -> Sample:
    return load.one_by_one(port, messages.claim().with_status(200), numbers)


def _await_live(database: data.Database) -> None:
    """Return when the reconciler has seen every path of the media server and started its stream. ServerError."""
    deadline = time.monotonic() + _LIVE_SECONDS
    while database.count_live() < _PATHS:
        if time.monotonic() > deadline:
            raise ServerError(f"the reconciler started {database.count_live()} of {_PATHS} streams")
        time.sleep(0.1)


def _poll(pipe: Connection) -> None:
    """Fifty frontends, each of which asks for the list once a second with the tag of the one that it has."""
    while True:
        port, _ = pipe.recv()
        latencies: list[float] = []
        wrong: Counter[str] = Counter()
        tags: dict[int, str | None] = {}
        began = time.perf_counter()
        asked = 0
        while not pipe.poll(max(0.0, began + asked / _FRONTENDS - time.perf_counter())):
            due = began + asked / _FRONTENDS
            answer = load.ask(port, messages.live_list(tags.get(asked % _FRONTENDS)).of(0))
            latencies.append(time.perf_counter() - due)
            if answer.status not in (200, 304):
                wrong[f"{answer.status} instead of 200 or 304"] += 1
            tags[asked % _FRONTENDS] = answer.header("ETag")
            asked += 1
        pipe.recv()
        pipe.send(Sample(asked, time.perf_counter() - began, wrong, latencies))


def _make_keys(pipe: Connection) -> None:
    """A script that makes one key after another."""
    while True:
        port, broadcaster_id = pipe.recv()
        message = messages.send("POST", "/stream-keys", {"broadcaster_id": broadcaster_id}, status=201)
        samples = []
        while not pipe.poll():
            samples.append(load.one_by_one(port, message, range(10)))
        pipe.recv()
        pipe.send(joined(samples))
