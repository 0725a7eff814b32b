"""What the doctor knows when it judges, and what it says. Plain values: how they were learned is told in asking.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from streamorch.mediamtx import Options, PathOptions
from streamorch.repositories.diagnosis import State
from streamorch.repositories.nodes import Node
from streamorch.settings import Settings

Health = Literal["ok", "warning", "wrong", "unknown", "skipped"]


class Finding(NamedTuple):
    """What one check says: `mend` has the line that mends it, and where it belongs; empty when all is well.

    `warning`: it works, but should be looked at. `unknown`: it could not be judged. `skipped`: it depends on something
    that is not there, which another check tells.
    """

    name: str
    state: Health
    text: str
    mend: str = ""


class Verdict(NamedTuple):
    """A finding before it has its name."""

    state: Health
    text: str
    mend: str = ""


class Absent(NamedTuple):
    """In the place of a fact: why it is not known."""

    reason: str
    kind: Literal["refused", "unauthorized", "silent", "unknown-host", "certificate", "broken", "unasked"] = "broken"


@dataclass(frozen=True)
class Database:
    """A database that answered. Seconds; `skew` is how far its clock is ahead of ours."""

    version: int
    """Like 140011 for 14.11."""
    round_trip: float = 0.0
    skew: float = 0.0
    state: State | None = None
    """None when the server is too old to be asked."""
    schema_error: str | None = None
    """Why the schema is not that of this release."""
    not_applied: tuple[str, ...] = ()
    node: Node | None = None
    """What is written down of our media server; None unless the schema is current."""


class Answer(NamedTuple):
    """An answer to an HTTP request; or `status` 0 for a protocol that only took the connection."""

    status: int = 0
    location: str | None = None
    body: bytes = b""


class Instance(NamedTuple):
    """What /readyz says somewhere. `version` is None when that is no streamorch."""

    status: int
    version: str | None
    database: str | None = None
    schema: str | None = None
    media_server: str | None = None
    location: str | None = None


@dataclass(frozen=True)
class MediaServer:
    """A media server whose Control API lets us in, and its configuration."""

    options: Options
    defaults: PathOptions
    entries: tuple[PathOptions, ...] = ()
    version: str | None = None
    skew: float | None = None
    """How many seconds its clock is ahead of ours; None when it does not tell."""
    asked: Instance | Absent | None = None
    """Who answers at authHTTPAddress; None when that is CALLBACK_URL's host and port."""


_UNASKED = Absent("not asked", "unasked")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All of it. What could not be learned is Absent."""

    settings: Settings | Absent
    database: Database | Absent = _UNASKED
    service: Instance | Absent = _UNASKED
    """Who answers at API_HOST and API_PORT."""
    callback: Instance | Absent = _UNASKED
    """Who answers at CALLBACK_URL."""
    question: Answer | Absent = _UNASKED
    """The answer to POST /auth at CALLBACK_URL, asked whether we may use the Control API."""
    media_server: MediaServer | Absent = _UNASKED
    public: Mapping[str, Answer | Absent] = field(default_factory=dict)
    """Who answers at each public URL, by protocol; those that are off are missing."""
