"""One round of a race: the keys and paths that it owns, how they are prepared, and what became of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import LiteralString, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from streamorch import keys
from streamorch.repositories import Connection

# Of the leader in whose name the workers tick: the first that a database has.
EPOCH = 1
_KEYS_PER_ROUND = 16
_LEAD_SECONDS = 4 * 3600.0


class Place(NamedTuple):
    """Where a worker acts: everything in a round is named by its number, so workers need no word from one another."""

    round_number: int
    worker: int

    @property
    def node(self) -> str:
        """A media server of the round's own: a tick judges all of one."""
        return f"node{self.round_number}"

    def key_id(self, key: int) -> UUID:
        return UUID(int=self.round_number * _KEYS_PER_ROUND + key)

    @property
    def broadcaster_id(self) -> UUID:
        return UUID(int=self.round_number * _KEYS_PER_ROUND)

    def key_hash(self, key: int) -> bytes:
        return keys.digest(f"{self.round_number}/{key}")

    def new_hash(self, hint: str) -> bytes:
        """Of the value that a rotation brought."""
        return keys.digest(f"{self.round_number}/{hint}")

    def path(self, path: int) -> str:
        return f"live/{self.round_number}/{path}"

    def connection_id(self, name: str) -> str:
        return f"{self.round_number}/{name}"

    def stream_id(self, name: str) -> UUID:
        """The id of a stream that was there before the round."""
        return UUID(bytes=keys.digest(self.connection_id(name))[:16])


class Seed(NamedTuple):
    """A stream that is there before the round; state is 'lapsed', 'pending', 'active' or 'disconnected'."""

    name: str
    state: str
    key: int = 0
    path: int = 0
    protocol: str = "rtmp"
    replaces: str | None = None


class Role(NamedTuple):
    """What a worker does in a round, and every outcome that it may be told; `claims_with` is the key of a claim."""

    name: str
    act: Callable[[Connection, Place], str]
    outcomes: frozenset[str]
    claims_with: int | None = None


class Stream(NamedTuple):
    """A stream after the round: `name` is that of its seed or of the worker that claimed it."""

    name: str
    key: int
    path: int
    state: str
    was_live: bool
    replaces: str
    replaced_by: str
    is_late: bool  # it was claimed after a rotation of its key

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "active")


class Key(NamedTuple):
    """A key after the round."""

    revoked: bool
    disabled: bool
    held: bool
    path: str | None
    value: str  # the hint, when the hash is of the same value
    previous_value: str


@dataclass
class Round:
    """What became of a round: told holds role, worker and outcome of each worker."""

    number: int
    seeded: frozenset[str]
    told: list[tuple[Role, int, str]] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)
    keys: dict[int, Key] = field(default_factory=dict)

    def count(self, outcome: str) -> int:
        """How many workers were told this."""
        return sum(told == outcome for _, _, told in self.told)

    def winners(self) -> list[tuple[Role, int]]:
        """The claims that were granted: role and worker."""
        return [(role, worker) for role, worker, outcome in self.told if outcome == "claimed"]

    def new_streams(self) -> list[Stream]:
        """The streams that were not there before."""
        return [stream for name, stream in self.streams.items() if name not in self.seeded]

    def __str__(self) -> str:
        told = ", ".join(f"{role.name} (w{worker}): {outcome}" for role, worker, outcome in self.told)
        rows = "; ".join(
            f"{s.name} of key {s.key} on path {s.path} {s.state}"
            + (f" replaces {s.replaces}" if s.replaces else "")
            + (f" replaced by {s.replaced_by}" if s.replaced_by else "")
            for s in self.streams.values()
        )
        return f"round {self.number}: {told} | streams: {rows or 'none'}"


@dataclass(frozen=True)
class Kind:
    """A kind of race; `prize` is the outcome whose winners are counted.

    Worker w plays role w + round number, so every worker plays every role.
    """

    name: str
    roles: Sequence[Role]
    judge: Callable[[Round], Iterator[str]]
    key_count: int = 1
    seeds: Sequence[Seed] = ()
    prize: str = "claimed"

    def role(self, round_number: int, worker: int) -> Role:
        return self.roles[(round_number + worker) % len(self.roles)]


_COPY_BROADCASTERS: LiteralString = "COPY broadcasters (id, display_name) FROM STDIN"
_COPY_KEYS: LiteralString = "COPY stream_keys (id, broadcaster_id, key_hash, hint) FROM STDIN"
# Through a table without times, since only the database's clock counts.
_MAKE_SEEDS: LiteralString = """
    CREATE TEMPORARY TABLE seeds (
        id uuid, stream_key_id uuid, node text, path text, protocol text, auth_id text, state text, replaces uuid)
"""
_COPY_SEEDS: LiteralString = "COPY seeds (id, stream_key_id, node, path, protocol, auth_id, state, replaces) FROM STDIN"
_INSERT_SEEDS: LiteralString = """
    INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, source_id, claimed_at, lease_expires_at,
                         started_at, ended_at, end_reason, replaces)
    SELECT id, stream_key_id, node, path, protocol, auth_id,
           CASE WHEN state IN ('active', 'disconnected') THEN auth_id END,
           clock_timestamp() - interval '30 seconds',
           clock_timestamp() + CASE state WHEN 'pending' THEN interval '1 hour' ELSE interval '-10 seconds' END,
           CASE WHEN state IN ('active', 'disconnected') THEN clock_timestamp() - interval '28 seconds' END,
           CASE WHEN state = 'disconnected' THEN clock_timestamp() - interval '5 seconds' END,
           CASE WHEN state = 'disconnected' THEN state END,
           replaces
    FROM seeds
    ORDER BY state  -- the active ones first: others refer to them
"""


def prepare(conn: psycopg.Connection[TupleRow], kind: Kind, rounds: int) -> None:
    """Store the keys and streams that `rounds` rounds of this kind start from; the workers lead."""
    if conn.execute("SELECT epoch FROM lead_v1('races', %s, true)", [_LEAD_SECONDS]).fetchone() != (EPOCH,):
        raise psycopg.InternalError("this database had a leader before")
    places = [Place(number, 0) for number in range(rounds)]
    with conn.transaction(), conn.cursor() as cursor:
        with cursor.copy(_COPY_BROADCASTERS) as copy:
            for place in places:
                copy.write_row((place.broadcaster_id, "Team 7"))
        with cursor.copy(_COPY_KEYS) as copy:
            for place in places:
                for key in range(kind.key_count):
                    copy.write_row((place.key_id(key), place.broadcaster_id, place.key_hash(key), "xxxx"))
        cursor.execute(_MAKE_SEEDS)
        with cursor.copy(_COPY_SEEDS) as copy:
            for place in places:
                for seed in kind.seeds:
                    copy.write_row(
                        (
                            place.stream_id(seed.name),
                            place.key_id(seed.key),
                            place.node,
                            place.path(seed.path),
                            seed.protocol,
                            place.connection_id(seed.name),
                            seed.state,
                            place.stream_id(seed.replaces) if seed.replaces else None,
                        )
                    )
        cursor.execute(_INSERT_SEEDS)
        cursor.execute("DROP TABLE seeds")
    conn.execute("VACUUM (ANALYZE) broadcasters, stream_keys, streams")


_STREAMS: LiteralString = """
    SELECT s.stream_key_id, s.path, s.auth_id, s.started_at IS NOT NULL,
           CASE WHEN s.ended_at IS NOT NULL THEN s.end_reason
                WHEN s.started_at IS NOT NULL THEN 'active' ELSE 'pending' END,
           older.auth_id, newer.auth_id,
           s.claimed_at > (SELECT min(a.changed_at) FROM audit AS a
                           WHERE a.subject_id = s.stream_key_id AND a.action = 'rotate')
    FROM streams AS s
    LEFT JOIN streams AS older ON older.id = s.replaces
    LEFT JOIN streams AS newer ON newer.id = s.replaced_by
"""
_KEYS: LiteralString = """
    SELECT k.id, k.revoked_at IS NOT NULL, k.disabled_at IS NOT NULL OR b.disabled_at IS NOT NULL,
           coalesce(k.hold_until > clock_timestamp(), false), k.path, k.hint, k.key_hash, k.previous_hint,
           k.previous_key_hash
    FROM stream_keys AS k
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
"""


def read(conn: psycopg.Connection[TupleRow], kind: Kind, told: Sequence[Sequence[str]]) -> list[Round]:
    """Every round, from what each worker was told (by worker, then by round) and from what the tables hold."""
    seeded = frozenset(seed.name for seed in kind.seeds)
    rounds = [Round(number, seeded) for number in range(len(told[0]))]
    for worker, outcomes in enumerate(told):
        for of, outcome in zip(rounds, outcomes, strict=True):
            of.told.append((kind.role(of.number, worker), worker, outcome))
    for key_id, path, auth_id, was_live, state, replaces, replaced_by, is_late in conn.execute(_STREAMS):
        number, key = divmod(key_id.int, _KEYS_PER_ROUND)
        name = _name(auth_id)
        rounds[number].streams[name] = Stream(
            name, key, int(path.rpartition("/")[2]), state, was_live, _name(replaces), _name(replaced_by), bool(is_late)
        )
    for key_id, revoked, disabled, held, path, hint, key_hash, previous_hint, previous_hash in conn.execute(_KEYS):
        number, key = divmod(key_id.int, _KEYS_PER_ROUND)
        place = Place(number, 0)
        values = [
            hint if hash_ == place.new_hash(hint) else ""
            for hint, hash_ in ((hint, key_hash), (previous_hint, previous_hash))
        ]
        rounds[number].keys[key] = Key(revoked, disabled, held, path, *values)
    return rounds


def _name(connection_id: str | None) -> str:
    return (connection_id or "").rpartition("/")[2]


def complaints(kind: Kind, of: Round) -> Iterator[str]:
    """What is wrong with a round: first what no round may show, then what this kind may not."""
    for role, worker, outcome in of.told:
        if outcome not in role.outcomes:
            yield f"{role.name} (w{worker}) was told {outcome}"
    if len(of.winners()) != len(of.new_streams()):
        yield f"{len(of.winners())} claims granted, {len(of.new_streams())} streams"
    open_streams = [stream for stream in of.streams.values() if stream.is_open]
    taken = Counter((place, s.state) for s in open_streams for place in (f"key {s.key}", f"path {s.path}"))
    for (place, state), count in taken.items():
        if count > 1:
            yield f"{count} {state} streams of {place}"
    for stream in open_streams:
        key = of.keys[stream.key]
        if key.revoked or key.disabled or key.held:
            yield f"{stream.name} is {stream.state} although its key is revoked, disabled or on hold"
    yield from kind.judge(of)
