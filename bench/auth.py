"""POST /auth: one by one as a media server asks, a hundred at once, and without a pause."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

from bench import data, load, messages
from bench.figures import Figures, Sample, joined, middle, pooled
from bench.messages import Message, Numbers
from bench.servers import Gunicorn
from bench.stage import FLASK, FLOORS, NO_OP, Stage, Subject, busy, in_turns, warm, watched
from bench.statements import UNCOUNTED
from bench.table import Floor, Result

SERIAL = (
    "serial claim",
    "serial claim at LOG_LEVEL=info",
    "serial refuse unknown key",
    "serial refuse wrong path",
    "serial replay",
    "serial read",
)
SERIAL_KEPT = ("serial claim on a kept connection", "serial read on a kept connection")
BURST = ("burst of 100 claim", "burst of 100 refuse")
THROUGHPUT = ("throughput claim", "throughput refuse", "throughput read")
THROUGHPUT_KEPT = tuple(f"{name} on kept connections" for name in THROUGHPUT)
PAUSELESS = ("100 clients that never pause claim",)

AT_ONCE = 100
PAUSE_SECONDS = 0.1
BUSY = 32
_LIVE = 200
# How many a second there may be at most in the second that tells how many there are.
_MOST = 20_000


@dataclass
class Question:
    """What is asked; `take` gives numbers to ask it for: as many as it is told, or some that may be asked again."""

    message: Message
    take: Callable[[int], Numbers]
    asks_database: bool = True


class Way(NamedTuple):
    """How the questions of a group are put to a server, and to the database alone; and what their floor is made of."""

    ask: Callable[[Gunicorn, Question], Sample]
    state: Callable[[Question], Sample] | None
    turns: int
    combined: Callable[[Sequence[Sample]], Figures]
    floor: Callable[[list[tuple[str, Figures]]], Floor]


def serial(stage: Stage, wanted: Sequence[str], *, kept: bool = False) -> None:
    """One question after another, each on a new connection, or all of a turn on one that is `kept`."""
    count = stage.effort.serial

    def ask(server: Gunicorn, question: Question) -> Sample:
        numbers = islice(question.take(count), count)
        return load.one_by_one(server.port, question.message, numbers, kept=kept)

    def state(question: Question) -> Sample:
        return stage.asker.ask(question.take(count + UNCOUNTED), count, sessions=1)

    way = Way(ask, state, stage.effort.serial_turns, pooled, lambda parts: Floor.of(latency=parts))
    _measure(stage, wanted, way)


def burst(stage: Stage, wanted: Sequence[str]) -> None:
    """A hundred at once. Their floor is the Flask view alone: all but a few of them wait for their turn."""

    def ask(server: Gunicorn, question: Question) -> Sample:
        return bursts(server, question, stage.effort.bursts)

    way = Way(ask, None, stage.effort.burst_turns, middle, lambda parts: Floor.of(latency=parts))
    _measure(stage, wanted, way)


def throughput(stage: Stage, wanted: Sequence[str], *, kept: bool = False) -> None:
    """As many as they can take, from 32 clients."""
    way = _pauseless(stage, BUSY, kept=kept, floor=lambda parts: Floor.of(rate=parts))
    _measure(stage, wanted, way)


def pauseless(stage: Stage, wanted: Sequence[str]) -> None:
    """A hundred clients that never pause, each on a new connection for each question."""
    way = _pauseless(stage, AT_ONCE, kept=False, floor=lambda parts: Floor.of(latency=parts[:1], rate=parts))
    _measure(stage, wanted, way)


def bursts(server: Gunicorn, question: Question, count: int) -> Sample:
    """So many bursts of a hundred with a pause after each, as one sample."""
    samples = []
    for _ in range(count):
        samples.append(load.burst(server.port, question.message, islice(question.take(AT_ONCE), AT_ONCE)))
        time.sleep(PAUSE_SECONDS)
    return joined(samples)


def _pauseless(
    stage: Stage, connections: int, *, kept: bool, floor: Callable[[list[tuple[str, Figures]]], Floor]
) -> Way:
    """Clients that never pause; the statement in as many sessions as the service has threads."""
    seconds = stage.effort.busy_seconds
    sessions = stage.threads
    rates: dict[int, float] = {}  # of a question, or of its statement, in the last turn

    def ask(server: Gunicorn, question: Question) -> Sample:
        run = partial(busy, server, question.message, connections=connections, kept=kept)
        if id(question) not in rates:
            rates[id(question)] = run(question.take(_MOST), seconds=1).count
        sample = run(question.take(int(2 * seconds * rates[id(question)]) + 1000), seconds=seconds)
        rates[id(question)] = sample.count / sample.seconds
        return sample

    def state(question: Question) -> Sample:
        def run(count: int) -> Sample:
            return stage.asker.ask(question.take((count // sessions + UNCOUNTED) * sessions), count, sessions=sessions)

        if -id(question) not in rates:
            first = run(1000)
            rates[-id(question)] = first.count / first.seconds
        return run(int(seconds * rates[-id(question)]))

    return Way(ask, state, stage.effort.busy_turns, middle, floor)


def _measure(stage: Stage, wanted: Sequence[str], way: Way) -> None:
    """Measure the service, the statement and every floor in turns, and report each case beside its floors."""
    services = {case: stage.service("info" if "LOG_LEVEL=info" in case else "warning") for case in wanted}
    live = stage.database.make_live(_LIVE)
    questions = {case: _question(stage.database, case, live) for case in wanted}
    for service in set(services.values()):
        warm(service, stage.database)
    subjects: dict[str, Subject] = {}
    for case, question in questions.items():
        run = partial(way.ask, services[case], question)
        subjects[case] = Subject(case, partial(watched, services[case], stage.database, run))
        for name in FLOORS:
            floor = _beside(name, question)
            subjects.setdefault(floor, _on_floor(stage, name, floor, question, way))
        if way.state is not None and question.asks_database:
            name = f"{stage.asker.name}: {case}"
            subjects[name] = Subject(name, partial(way.state, question))
    figures = {name: way.combined(found) for name, found in in_turns(list(subjects.values()), way.turns).items()}
    for case, question in questions.items():
        floors = {name: figures[_beside(name, question)] for name in FLOORS}
        parts = [(FLASK, floors[FLASK])]
        if way.state is not None and question.asks_database:
            parts.append((stage.asker.name, figures[f"{stage.asker.name}: {case}"]))
        no_op = way.floor([(NO_OP, floors[NO_OP])])
        stage.report.add(Result(case, figures[case], dict(parts) | floors, way.floor(parts), no_op))


def _beside(floor: str, question: Question) -> str:
    """The name of a floor as it is asked for a question: with the same body."""
    return f"{floor}, {len(question.message.template)} bytes"


def _on_floor(stage: Stage, floor: str, name: str, question: Question, way: Way) -> Subject:
    """A floor that is asked the same, about nobody's keys."""
    server = stage.floor(floor)
    same = Question(question.message.with_status(200), lambda count: data.UNKNOWN)
    return Subject(name, partial(watched, server, None, partial(way.ask, server, same)))


def _question(database: data.Database, case: str, live: Numbers) -> Question:
    """The question that the name of a case tells of, with the live streams for replays."""
    refused = messages.claim().with_status(401)
    if "wrong path" in case:
        bound = database.take_bound(_LIVE)
        return Question(refused, lambda count: bound)
    if "refuse" in case:
        return Question(refused, lambda count: data.UNKNOWN)
    if "replay" in case:
        return Question(messages.claim(), lambda count: live)
    if "read" in case:
        return Question(messages.read(), lambda count: data.UNKNOWN, asks_database=False)
    return Question(messages.claim(), database.take)
