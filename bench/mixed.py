"""Many kinds of questions: 200 a second by the clock, as a busy media server asks, and enough for memory to show."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

from bench import data, load, messages
from bench.figures import Sample, joined, percentile, pooled
from bench.load import Planned
from bench.messages import Message, Numbers
from bench.servers import Gunicorn, ServerError
from bench.stage import FLASK, NO_OP, WARMING, Stage, busy, warm, watched
from bench.table import Floor, Result

_ALL = "all"
_GROUPS = ("accept", "refuse", "read", "hooks", _ALL)
OPEN_LOOP = tuple(f"200 a second {group}" for group in _GROUPS)
MEMORY = ("memory over very many requests",)

_PER_SECOND = 200
# How many claims later the start of a stream is told, and how many starts later its end: half a second, five seconds.
_START_LAG = 10
_END_LAG = 100
_SEED = 5
_LIVE = 200
_MARKS = 10  # of memory
_MOST_CLAIMS = 20_000  # in a second


class _Kind(NamedTuple):
    """One of the callbacks: the group it is counted in, and how many of twenty it is."""

    group: str
    message: Message
    of_twenty: int


# What a media server asks. Most are reads: up to v1.17 there is one for every HLS segment. For each publisher there
# are a claim, a start and an end, and for half of them a first try without a key; and some come with a wrong one.
_KINDS = {
    "claim": _Kind("accept", messages.claim(), 2),
    "start": _Kind("hooks", messages.ready(), 2),
    "end": _Kind("hooks", messages.not_ready(), 2),
    "no key": _Kind("refuse", messages.keyless(), 1),
    "wrong key": _Kind("refuse", messages.claim().with_status(401), 1),
    "read": _Kind("read", messages.read(), 12),
}


def open_loop(stage: Stage, wanted: Sequence[str]) -> None:
    """Questions at random moments, whether those before were answered or not; latencies from the moment planned."""
    service, database = stage.service(), stage.database
    seconds = stage.effort.open_seconds
    claims = _PER_SECOND * seconds * _KINDS["claim"].of_twenty // 20
    found: dict[str, list[dict[str, Sample]]] = {"service": [], FLASK: [], NO_OP: []}
    late: list[float] = []
    for turn in range(stage.effort.open_turns):
        database.make_live(_LIVE)
        warm(service, database)
        numbers = database.take(_END_LAG + _START_LAG + claims)
        _begin(service, numbers)
        plan = _plan(numbers, seconds, seed=_SEED + turn)
        found["service"].append(_asked(service, database, plan, late))
        same = [planned._replace(status=200) for planned in plan]
        for name in (FLASK, NO_OP):
            found[name].append(_asked(stage.floor(name), None, same, []))
    delays = [round(percentile(sorted(late), percent) * 1000, 3) for percent in (50, 99)]
    for case, group in zip(OPEN_LOOP, _GROUPS, strict=True):
        if case not in wanted:
            continue
        figures, flask, no_op = (pooled([turn[group] for turn in turns]) for turns in found.values())
        floors = {f"{FLASK}, {group}": flask, f"{NO_OP}, {group}": no_op}
        floor, floor_no_op = (Floor.of(latency=[part]) for part in floors.items())
        notes = {"the client's own delay, p50 and p99 in ms": delays} if group == _ALL else {}
        stage.report.add(Result(case, figures, floors, floor, floor_no_op, notes))


def memory(stage: Stage, wanted: Sequence[str]) -> None:
    """What each worker holds after its start and after every tenth of very many requests of all kinds."""
    total = stage.effort.memory
    with stage.apart() as (database, start):
        live = database.make_live(_LIVE)
        service = start(0)
        held = {0: service.resident_megabytes()}
        warm(service, database, WARMING)
        etag = load.ask(service.port, messages.live_list().of(0)).header("ETag")
        kinds: list[tuple[Message, Callable[[], Numbers]]] = [
            (messages.claim(), lambda: database.take(_MOST_CLAIMS)),
            (messages.claim().with_status(401), lambda: data.UNKNOWN),
            (messages.claim(), lambda: live),
            (messages.read(), lambda: live),
            (messages.live_list(), lambda: live),
            (messages.live_list(etag), lambda: live),
        ]
        samples: list[Sample] = []
        count = 0
        for message, numbers in cycle(kinds):
            samples.append(
                watched(
                    service, database, partial(busy, service, message, numbers(), connections=32, seconds=1, kept=False)
                )
            )
            count += samples[-1].count
            if count >= (len(held) * total) // _MARKS:
                held[count] = service.resident_megabytes()
            if count >= total or samples[-1].wrong:
                break
        notes = {f"MB after {count} requests": _rounded(megabytes) for count, megabytes in held.items()}
        stage.report.add(Result(MEMORY[0], pooled(samples), notes=notes))


def _begin(service: Gunicorn, numbers: Numbers) -> None:
    """What has happened before the first question: claims whose start, and starts whose end, is told in the plan."""
    claimed, started = _END_LAG + _START_LAG, _END_LAG
    for message, count in ((messages.claim(), claimed), (messages.ready(), started)):
        sample = load.one_by_one(service.port, message, islice(numbers, count))
        if sample.wrong:
            raise ServerError(f"{service.name} did not take what comes before: {dict(sample.wrong)}")


def _plan(numbers: Numbers, seconds: int, *, seed: int) -> list[Planned]:
    """200 a second for so many seconds, in an order and at moments that follow from the seed."""
    next_of = {
        "claim": numbers.first + _END_LAG + _START_LAG,
        "start": numbers.first + _END_LAG,
        "end": numbers.first,
        "no key": data.UNKNOWN.first,
        "wrong key": data.UNKNOWN.first,
        "read": numbers.first,
    }
    # Shuffled by twenties: a start is never far ahead of its claim.
    twenty = [name for name, kind in _KINDS.items() for _ in range(kind.of_twenty)]
    order = random.Random(seed)  # noqa: S311  # the same for the service and for its floors
    plan = []
    for number, due in enumerate(load.random_times(_PER_SECOND * seconds, seconds, seed)):
        if number % len(twenty) == 0:
            order.shuffle(twenty)
        name = twenty[number % len(twenty)]
        group, message, _ = _KINDS[name]
        plan.append(Planned(due, group, message.of(next_of[name]), message.status))
        next_of[name] += 1
    return plan


def _asked(
    server: Gunicorn, database: data.Database | None, plan: Sequence[Planned], late: list[float]
) -> dict[str, Sample]:
    """The samples of each group, and that of all with the CPU time they took; `late` is given the client's delays."""
    groups: dict[str, Sample] = {}

    def ask() -> Sample:
        clocked = load.by_the_clock(server.port, plan)
        groups.update(clocked.groups)
        late.extend(clocked.late)
        every = joined(list(groups.values()))
        every.seconds = max(sample.seconds for sample in groups.values())
        return every

    every = watched(server, database, ask)
    return groups | {_ALL: every}


def _rounded(megabytes: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in megabytes]
