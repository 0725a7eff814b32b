"""History: what was live, who it was and why it ended, as a list and as CSV."""

import csv
import io
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import flask
import msgspec

from streamorch import keys, objects
from streamorch.blueprints import Cursor, Service, Word, after, one_page, query, service
from streamorch.blueprints.console import lists, page, room, words
from streamorch.contract import aside
from streamorch.problems import Problem
from streamorch.repositories import broadcasters, streams
from streamorch.repositories.streams import Stream

bp = room("history")

_PAGE = 100
# Of an export: rows at most, some 5 MB, which the worker keeps until the browser has taken them; rows of a question.
MOST = 20_000
_BATCH = 500
# It takes a thread of few, on which publishers wait, too: in each worker one at a time.
_EXPORTING = threading.Lock()
_EXPORT_SECONDS = 5

COLUMNS = (
    *("stream_id", "path", "broadcaster", "broadcaster_id", "key_label", "stream_key_id", "protocol", "node"),
    *("status", "claimed_at", "started_at", "ended_at", "duration_seconds", "end_reason", "remote_address"),
    "recording_ref",
)
# What a spreadsheet may take for the beginning of a formula, in East Asian scripts too.
_BEGINS = "=+@\uff1d\uff0b\uff0d\uff20-"
# At the start; or behind a semicolon, where a comma is in the numbers: cells are parted there then, whatever is quoted.
_FORMULA = re.compile(rf"^ *[\t\r\n{_BEGINS}]\s*[{_BEGINS}]?|(?<=[;\t\r\n]) *[{_BEGINS}]")
# Without it, spreadsheets take UTF-8 for something else.
_MARK = "\ufeff"

Filters = dict[str, Any]


class WhichStreams(msgspec.Struct, frozen=True):
    """The query of the list and of its export."""

    status: streams.Status = "ended"
    broadcaster_id: UUID | None = None
    stream_key_id: UUID | None = None
    path: Word | None = None
    end_reason: streams.EndReason | None = None
    since: Word | None = None
    until: Word | None = None
    cursor: Cursor | None = None

    def filters(self) -> Filters:
        """As the repository has them."""
        given = {name: getattr(self, name) for name in ("broadcaster_id", "stream_key_id", "path", "end_reason")}
        return given | {"since": lists.moment("since", self.since), "until": lists.moment("until", self.until)}


@bp.get("/history")
@aside
def index() -> flask.Response:
    """A page of streams, last claimed first."""
    wanted = query(WhichStreams)
    filters = wanted.filters()
    bound = filters | {"status": wanted.status}
    last = after(wanted.cursor, bound)
    with service().database.connection() as conn:
        found = streams.page(conn, status=wanted.status, filters=filters, limit=_PAGE + 1, after=last)
        owners = lists.owner_choices(conn, chosen=wanted.broadcaster_id)
        choices = lists.key_choices(conn, broadcaster_id=wanted.broadcaster_id, chosen=wanted.stream_key_id)
        shown, cursor = one_page(found, _PAGE, bound, lambda stream: (stream.claimed_at, stream.id))
        rows = [(stream, objects.owner(stream)) for stream in shown]
        # In one question for all: of these neither the broadcaster nor the key has a page any more.
        deleted = broadcasters.deleted(conn, {owner.id for _, owner in rows}) if rows else {}
    given = lists.filters_of_page(WhichStreams)
    return page(
        "history.html",
        rows=rows,
        deleted=deleted,
        cursor=cursor,
        wanted=wanted,
        filters=filters,
        is_filtered=bool(given),
        owners=owners,
        keys=choices,
        reasons=words.ENDED,
        export=flask.url_for(".export", **given),
        most=f"{MOST:,}",
        days=service().settings.history_days,
    )


@bp.get("/history.csv")
@aside
def export() -> flask.Response:
    """What the filters find, as CSV: pages of it one after another, each with a connection of its own."""
    wanted = query(WhichStreams)
    filters = wanted.filters()
    of = service()
    if not _EXPORTING.acquire(blocking=False):
        raise Problem("rate-limited", "another export is being made", retry_after=_EXPORT_SECONDS)
    turn = ExitStack()
    turn.callback(_EXPORTING.release)
    try:
        # Before the answer begins, while a problem can still be told.
        first = _batch(of, wanted.status, filters, None)
    except BaseException:
        turn.close()
        raise
    made = flask.Response(_lines(turn, of, wanted.status, filters, first), content_type="text/csv; charset=utf-8")
    made.call_on_close(turn.close)  # also when nobody reads it
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    made.headers["Content-Disposition"] = f'attachment; filename="streams-{moment}.csv"'
    made.headers["Cache-Control"] = "no-store"
    made.headers["X-Content-Type-Options"] = "nosniff"
    return made


def _batch(of: Service, status: streams.Status, filters: Filters, last: Stream | None) -> list[Stream]:
    place = (last.claimed_at, str(last.id)) if last else None
    return of.database.run(partial(streams.page, status=status, filters=filters, limit=_BATCH, after=place))


def _lines(
    turn: ExitStack, of: Service, status: streams.Status, filters: Filters, first: list[Stream]
) -> Iterator[bytes]:
    """The file, a batch at a time; a last line says so when it has not all of it. Then it is another's turn."""
    with turn:
        yield from _batches(of, status, filters, first)


def _batches(of: Service, status: streams.Status, filters: Filters, first: list[Stream]) -> Iterator[bytes]:
    yield (_MARK + _csv([COLUMNS])).encode()
    batch, count = first, 0
    while batch:
        count += len(batch)
        yield _csv(map(_row, batch)).encode()
        if len(batch) < _BATCH:
            return
        last = batch[-1]
        batch = _batch(of, status, filters, last)
        if batch and count >= MOST:
            yield _csv([[f"only the newest {MOST}: for the rest, ask for what is before {last.claimed_at}"]]).encode()
            return


def _row(stream: Stream) -> list[str]:
    owner = objects.owner(stream)
    return [
        cell(value)
        for value in (
            *(stream.id, stream.path, owner.display_name, owner.id, stream.label, stream.stream_key_id),
            *(stream.protocol, stream.node, stream.status, stream.claimed_at, stream.started_at, stream.ended_at),
            *(stream.duration_seconds, stream.end_reason, stream.remote_address, stream.recording_ref),
        )
    ]


def cell(value: object) -> str:
    """A value as text that no spreadsheet runs: a quote stands before what it would take for a formula."""
    text = keys.redact("" if value is None else str(value))
    return _FORMULA.sub(r"'\g<0>", text)


def _csv(rows: Any) -> str:
    made = io.StringIO()
    csv.writer(made).writerows(rows)
    return made.getvalue()
