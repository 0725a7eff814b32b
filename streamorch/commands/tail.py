"""`streamorch tail`."""

import signal
import time
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

import click
import msgspec
import psycopg

from streamorch import objects, tables
from streamorch.commands import one_line, settings
from streamorch.repositories import Connection, connect, migrate, streams, tail
from streamorch.repositories.streams import Stream
from streamorch.repositories.tail import State
from streamorch.settings import MediaURLs

_PAUSE_SECONDS = 0.5
_AWAY_PAUSE_SECONDS = 1.0


class Event(NamedTuple):
    """What happened to a stream, when (RFC 3339), and why, if there is a why."""

    at: str
    what: str
    stream_id: UUID
    reason: str | None = None


class Watch:
    """What is known of the open streams, and so what is new of them."""

    def __init__(self, conn: Connection):
        self.pulse = tail.pulse(conn)
        self.known = {state.id: state for state in tail.states(conn, since=self.pulse.moment)}

    def look(self, conn: Connection) -> list[Event]:
        """What has happened since the last look, in order. After an outage, what happened in it."""
        before, pulse = self.pulse, tail.pulse(conn)
        waits = any(state.started_at is None and state.ended_at is None for state in self.known.values())
        if pulse.version == before.version and not pulse.has_claims and not waits:
            self.pulse = pulse
            return []
        found = {state.id: state for state in tail.states(conn, since=before.moment)}
        gone = [state.id for state in self.known.values() if state.ended_at is None and state.id not in found]
        found |= {state.id: state for state in tail.states_of(conn, gone, since=before.moment)} if gone else {}
        made = [event for state in found.values() for event in self._events(state, pulse.moment)]
        # Those that have ended are forgotten when `states` tells of them no more.
        self.known = {state.id: state for state in found.values() if state.id not in gone or not state.ended_at}
        self.pulse = pulse
        return sorted(made)

    def _events(self, state: State, now: str) -> Iterator[Event]:
        known = self.known.get(state.id)
        if known is None and state.is_new:
            yield Event(state.claimed_at, "claimed", state.id)
        elif known is None or (known.ended_at and not state.ended_at):
            yield Event(now, "reopened", state.id)
            known = state
        if state.started_at and not (known and known.started_at):
            yield Event(state.started_at, "live", state.id)
        if state.interrupted_at and not (known and known.interrupted_at):
            yield Event(state.interrupted_at, "interrupted", state.id)
        elif known and known.interrupted_at and not state.interrupted_at:
            yield Event(now, "resumed", state.id)
        if state.media == "stalled" and not (known and known.media == "stalled"):
            yield Event(now, "stalled", state.id)
        elif known and known.media == "stalled" and state.media == "flowing":
            yield Event(now, "flowing", state.id)
        if state.ended_at and not (known and known.ended_at):
            yield Event(state.ended_at, "ended", state.id, state.end_reason)


@click.command("tail")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the stream as the HTTP API has it.")
def command(as_json: bool) -> None:
    """What happens to streams, as it happens, until Ctrl-C.

    claimed: accepted, not live yet. live. interrupted: its end was told, its successor is awaited. stalled and
    flowing: no bytes come in, and come in again. ended, and why. resumed and reopened: it goes on after all.

    \b
    Examples:
      streamorch tail
      streamorch tail --json | jq -r 'select(.event == "ended") | [.at, .stream.path, .reason] | @tsv'
    """
    with one_line():
        of = settings()
        migrate.check(of.database_url)
    # `__main__` let it end the process on the spot; here a connection is to be closed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _follow(of.database_url, of.media_urls, as_json)
    except KeyboardInterrupt:
        return


def _follow(database_url: str, media_urls: MediaURLs, as_json: bool) -> None:
    """Print events for ever; an outage of the database is told once, and so is its end."""
    watch: Watch | None = None
    events: list[Event] = []
    is_away = False
    while True:
        try:
            with connect(database_url) as conn:
                while True:
                    watch = watch or Watch(conn)
                    events += watch.look(conn)
                    if is_away:
                        is_away = False
                        click.echo("streamorch: the database answers again", err=True)
                    if events:
                        _print(conn, events, media_urls, as_json)
                        events.clear()
                    time.sleep(_PAUSE_SECONDS)
        except psycopg.OperationalError as error:
            if not is_away:
                is_away = True
                reason = " ".join(str(error).split())
                click.echo(f"streamorch: the database does not answer, and is waited for: {reason}", err=True)
        time.sleep(_AWAY_PAUSE_SECONDS)


def _print(conn: Connection, events: list[Event], media_urls: MediaURLs, as_json: bool) -> None:
    shown = {stream.id: stream for stream in streams.several(conn, {event.stream_id for event in events})}
    for event in events:
        stream = shown.get(event.stream_id)
        if stream is None:  # deleted with the history since
            continue
        if as_json:
            told = {"event": event.what, "at": event.at, "reason": event.reason}
            line = msgspec.json.encode(told | {"stream": objects.listed_stream(stream, media_urls)}).decode()
        else:
            line = _line(event, stream)
        click.echo(line)


def _line(event: Event, stream: Stream) -> str:
    parts = [objects.broadcaster_name(stream), stream.label, stream.protocol, stream.remote_address, event.reason]
    if event.what == "ended" and stream.duration_seconds is not None:
        parts.append(f"was live for {tables.duration(stream.duration_seconds)}")
    about = " · ".join(part for part in parts if part)
    return tables.clean(f"{tables.moment(event.at)}  {event.what:11}  {stream.path}  {about}")
