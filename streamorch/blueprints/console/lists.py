"""What the lists have in common: filters by moment and by key, and where their rows lead."""

import datetime
from typing import Any
from uuid import UUID

import flask
import msgspec

from streamorch import moments
from streamorch.blueprints import invalid
from streamorch.blueprints.console import moment_of
from streamorch.keys import redact
from streamorch.repositories import Connection, broadcasters, stream_keys

# So many a select still shows; of more, those that were made last.
CHOICES = 1000


def moment(field: str, text: str | None) -> datetime.datetime | None:
    """A moment among the filters, as a script or a browser without one sent it; Problem `invalid-request` of others."""
    if not text:
        return None
    try:
        return moments.moment(moment_of(text.replace(" ", "+")))
    except ValueError:
        raise invalid(field, "is no date with a time") from None


def owner_choices(conn: Connection, *, chosen: UUID | None) -> list[tuple[UUID, str]]:
    """Broadcasters to choose from, newest first; the chosen one is among them, also when it was deleted."""
    found = [(one.id, one.display_name) for one in broadcasters.page(conn, limit=CHOICES, after=None)]
    if chosen is not None and all(owner_id != chosen for owner_id, _ in found):
        gone = broadcasters.deleted(conn, [chosen])
        names = broadcasters.names(conn, [chosen])
        found += [(one, f"{name} (deleted)" if one in gone else name) for one, name in names.items()]
    return found


def key_choices(conn: Connection, *, broadcaster_id: UUID | None, chosen: UUID | None) -> list[tuple[UUID, str]]:
    """Keys to choose from, with what people call them; the chosen one is among them."""
    found = stream_keys.page(conn, broadcaster_id=broadcaster_id, status=None, limit=CHOICES, after=None)
    if chosen is not None and all(key.id != chosen for key in found):
        found += stream_keys.several(conn, [chosen])
    names = broadcasters.names(conn, {key.broadcaster_id for key in found})
    named = [
        (key.id, f"{names[key.broadcaster_id]} · {f'{key.label} ' if key.label else ''}…{key.hint}") for key in found
    ]
    return sorted(named, key=lambda one: one[1].casefold())


def filters_of_page(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """What the page was asked for, of what its query knows, without the cursor: for other addresses of its filters."""
    known = set(kind.__struct_fields__) - {"cursor"}
    return {name: redact(text) for name, text in flask.request.args.items() if text and name in known}
