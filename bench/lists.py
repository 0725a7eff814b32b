"""GET /streams: the live list whole and unchanged, the first one after a change, and pages of history."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import click
import msgspec

from bench import auth, data, load, messages
from bench.figures import Figures, Sample, joined, middle, pooled
from bench.messages import Message, Numbers
from bench.servers import Gunicorn, ServerError
from bench.stage import FLASK, NO_OP, WARMING, Stage, Subject, busy, in_turns, warm, watched
from bench.table import Floor, Result

COUNTS = (0, 200, 2000)
BURST = ("burst of 100 list of 200",)
PAUSELESS = ("100 clients that never pause list of 200",)
CHANGE = ("first list of 2000 after a change",)
HISTORY = ("history first page of 100", "history page of 100 from the middle")

_FLOORS = (FLASK, NO_OP)
_ANY = Numbers(0, 1, again=True)  # nothing here is numbered
_PAGE = 1000


class Page(NamedTuple):
    """What is asked for, and how many bytes its body has."""

    message: Message
    body_bytes: int

    @property
    def beside(self) -> Message:
        """What floors are asked: for as many bytes."""
        return messages.filling(self.body_bytes) if self.body_bytes else self.message.with_status(200)


class Way(NamedTuple):
    """How the pages of a group are asked for, and what their floor is made of."""

    ask: Callable[[Gunicorn, Page], Sample]
    turns: int
    combined: Callable[[Sequence[Sample]], Figures]
    floor: Callable[[list[tuple[str, Figures]]], Floor]


def throughput_names(count: int, *, kept: bool) -> tuple[str, str]:
    """The cases of a list of so many streams."""
    how = " on kept connections" if kept else ""
    return f"throughput list of {count}{how}", f"throughput 304 of {count}{how}"


def burst(stage: Stage, wanted: Sequence[str]) -> None:
    """A hundred at once want the list of 200."""

    def ask(server: Gunicorn, page: Page) -> Sample:
        return auth.bursts(server, auth.Question(page.message, lambda count: _ANY), stage.effort.bursts)

    way = Way(ask, stage.effort.burst_turns, middle, lambda parts: Floor.of(latency=parts))
    _measure_live(stage, wanted, 200, way)


def throughput(stage: Stage, wanted: Sequence[str], *, count: int, kept: bool) -> None:
    """As many as they can take, whole lists and 304, from 32 clients."""
    way = Way(
        partial(_ask_busily, stage, auth.BUSY, kept),
        stage.effort.busy_turns,
        middle,
        lambda parts: Floor.of(rate=parts),
    )
    _measure_live(stage, wanted, count, way)


def pauseless(stage: Stage, wanted: Sequence[str]) -> None:
    """A hundred clients that never pause, each on a new connection for each list of 200."""
    way = Way(
        partial(_ask_busily, stage, auth.AT_ONCE, False),
        stage.effort.busy_turns,
        middle,
        lambda parts: Floor.of(latency=parts, rate=parts),
    )
    _measure_live(stage, wanted, 200, way)


def change(stage: Stage, wanted: Sequence[str]) -> None:
    """The first list after one of 2,000 live streams was changed: a worker must make it anew."""
    service = stage.service()
    stage.database.make_live(2000)
    warm(service, stage.database)
    stream_id = stage.database.live_stream_id()
    changes = iter(range(1_000_000))
    each = stage.effort.changes // stage.effort.busy_turns

    def ask(server: Gunicorn, page: Page) -> Sample:
        samples = []
        for _ in range(each):
            if server is service:
                members: dict[str, Any] = {"metadata": {"change": next(changes)}}
                _expect(server, messages.send("PATCH", f"/streams/{stream_id}", members, status=200))
            samples.append(load.one_by_one(server.port, page.message, [0]))
        return joined(samples)

    way = Way(ask, stage.effort.busy_turns, pooled, lambda parts: Floor.of(latency=parts))
    pages = {name: _page(service, messages.live_list()) for name in wanted}
    _measure(stage, service, stage.database, pages, way, {})


def history(stage: Stage, wanted: Sequence[str]) -> None:
    """Pages of history in a database with very many ended streams, one by one."""
    count = stage.effort.history
    with stage.apart() as (database, start):
        click.echo(f"(making {count} ended streams)")
        database.make_keys(10_000)
        database.make_ended(count)
        database.settle()
        service = start(WARMING)
        first, middle_page = HISTORY
        pages = {}
        if first in wanted:
            pages[first] = _page(service, messages.get("/streams?status=ended"))
        if middle_page in wanted:
            cursor = _cursor(service, count // 2)
            pages[middle_page] = _page(service, messages.get(f"/streams?status=ended&cursor={cursor}"))
        each = stage.effort.serial

        def ask(server: Gunicorn, page: Page) -> Sample:
            return load.one_by_one(server.port, page.message, range(each))

        way = Way(ask, stage.effort.serial_turns, pooled, lambda parts: Floor.of(latency=parts))
        _measure(stage, service, database, pages, way, {"ended streams": count})


def _ask_busily(stage: Stage, connections: int, kept: bool, server: Gunicorn, page: Page) -> Sample:
    return busy(
        server,
        page.message,
        _ANY,
        connections=connections,
        seconds=stage.effort.busy_seconds,
        kept=kept,
        body_bytes=page.body_bytes,
    )


def _measure_live(stage: Stage, wanted: Sequence[str], count: int, way: Way) -> None:
    service = stage.service()
    stage.database.make_live(count)
    warm(service, stage.database)
    whole = messages.live_list()
    etag = _expect(service, whole).header("ETag")
    known = {name: Page(messages.live_list(etag), 0) if " 304 " in name else _page(service, whole) for name in wanted}
    _measure(stage, service, stage.database, known, way, {})


def _measure(
    stage: Stage,
    service: Gunicorn,
    database: data.Database,
    pages: Mapping[str, Page],
    way: Way,
    notes: dict[str, Any],
) -> None:
    """Measure the service and the floors in turns, and report each case beside its floors."""
    subjects: dict[str, Subject] = {}
    for case, page in pages.items():
        subjects[case] = Subject(case, partial(watched, service, database, partial(way.ask, service, page)))
        for floor in _FLOORS:
            name = _beside(floor, page)
            run = partial(way.ask, stage.floor(floor), Page(page.beside, page.body_bytes))
            subjects.setdefault(name, Subject(name, partial(watched, stage.floor(floor), None, run)))
    figures = {name: way.combined(found) for name, found in in_turns(list(subjects.values()), way.turns).items()}
    for case, page in pages.items():
        floors = {_beside(floor, page): figures[_beside(floor, page)] for floor in _FLOORS}
        flask, no_op = floors.items()
        size = {"bytes": page.body_bytes} if page.body_bytes else {}
        stage.report.add(Result(case, figures[case], floors, way.floor([flask]), way.floor([no_op]), size | notes))


def _beside(floor: str, page: Page) -> str:
    """The name of a floor that answers with as many bytes."""
    return f"{floor}, {page.body_bytes} bytes"


def _page(service: Gunicorn, message: Message) -> Page:
    return Page(message, len(_expect(service, message).body))


def _expect(service: Gunicorn, message: Message) -> load.Answer:
    """The answer to a request that must have the right status. ServerError."""
    answer = load.ask(service.port, message.of(0))
    if answer.status != message.status:
        raise ServerError(f"{answer.status} instead of {message.status}: {answer.body.decode(errors='replace')[:500]}")
    return answer


def _cursor(service: Gunicorn, count: int) -> str:
    """The cursor of the page that follows so many ended streams."""
    cursor = ""
    for _ in range(count // _PAGE):
        target = f"/streams?status=ended&limit={_PAGE}" + (f"&cursor={cursor}" if cursor else "")
        cursor = msgspec.json.decode(_expect(service, messages.get(target)).body)["next_cursor"]
    return cursor
