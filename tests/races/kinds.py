"""The kinds of races, and what each must come to."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import LiteralString

import psycopg

from streamorch.repositories import Connection, broadcasters, only, reconciliation, stream_keys, streams
from streamorch.repositories.reconciliation import Publishers
from tests.races.rounds import EPOCH, Kind, Place, Role, Round, Seed

# What claim_v1 says when only the unique index was left to refuse: the locks should have seen to it before.
REFUSED_BY_INDEX = "stream-key-in-use, by the index alone"

_HOLD_SECONDS = 3600

Judge = Callable[[Round], Iterator[str]]


# --- what a worker may do ------------------------------------------------------------------------------------


def _claim(*refusals: str, key: int = 0, path: int = 0, shared_connection: bool = False) -> Role:
    """A claim by a connection of the worker's own, or by one that all workers share."""

    def act(conn: Connection, place: Place) -> str:
        claim = streams.claim(
            conn,
            key_hash=place.key_hash(key),
            node=place.node,
            path=place.path(path),
            connection_id=place.connection_id("shared" if shared_connection else f"w{place.worker}"),
            protocol="rtmp",
            remote_address="192.0.2.7",
            user_agent="FMLE/3.0",
            lease_seconds=20,
        )
        unexplained = claim.outcome == "stream-key-in-use" and claim.rival_id is None
        return REFUSED_BY_INDEX if unexplained else claim.outcome

    return Role(f"claim path {path} with key {key}", act, frozenset(("claimed", *refusals)), claims_with=key)


def _start(source: str, *others: str, source_type: str = "rtmpConn") -> Role:
    def act(conn: Connection, place: Place) -> str:
        source_id = place.connection_id(source)
        return streams.start(conn, node=place.node, path=place.path(0), source_type=source_type, source_id=source_id)[0]

    return Role(f"ready {source}", act, frozenset(("active", "replay", *others)))


def _end(source: str, *others: str, source_type: str = "rtmpConn") -> Role:
    def act(conn: Connection, place: Place) -> str:
        source_id = place.connection_id(source)
        return streams.end(conn, node=place.node, path=place.path(0), source_type=source_type, source_id=source_id)[0]

    return Role(f"not-ready {source}", act, frozenset(("ended", "late", *others)))


def _create_key(conn: Connection, place: Place, *, path: str | None) -> str:
    return stream_keys.create(
        conn,
        stream_key_id=place.key_id(2),
        broadcaster_id=place.broadcaster_id,
        key_hash=place.key_hash(2),
        hint="xxxx",
        label=None,
        path=path,
        takeover="stalled",
        expires_at=None,
        disabled=False,
        metadata={},
    )


def _create_and_claim(conn: Connection, place: Place) -> str:
    created = _create_key(conn, place, path=None)
    return _claim(key=2, path=1).act(conn, place) if created == "created" else created


_BOTH = "active and superseded, by a tick"


def _rotate(overlap_seconds: int) -> Role:
    """Give key 0 a value of the worker's own."""

    def act(conn: Connection, place: Place) -> str:
        hint = f"w{place.worker}"
        key_hash = place.new_hash(hint)
        return stream_keys.rotate(conn, place.key_id(0), key_hash=key_hash, hint=hint, overlap_seconds=overlap_seconds)

    return Role(f"rotate key 0, overlap {overlap_seconds} s", act, frozenset(("rotated",)))


def _tick(*live: str, outcomes: tuple[str, ...] = ()) -> Role:
    """A snapshot of the round's media server: these connections are live on path 0, and nobody else is there.

    Told is what it changed. It waits for nobody, so that 'nothing' is always right.
    """

    def act(conn: Connection, place: Place) -> str:
        snapshot_at: datetime = only(conn, "SELECT clock_timestamp()")[0]
        ids = [place.connection_id(name) for name in live]
        outcome = reconciliation.reconcile(
            conn,
            EPOCH,
            node=place.node,
            snapshot_at=snapshot_at,
            present=ids,
            known=["rtmp"],
            live=Publishers(ids, [*ids], [place.path(0)] * len(ids), ["rtmpConn"] * len(ids)),
            missing_before=[],
            restarted=False,
        )
        if outcome is None:
            return "not leading"
        changes = " and ".join(sorted(change.what for change in outcome.changes))
        return f"{changes}, by a tick" if changes else "nothing"

    return Role(f"tick that sees {', '.join(live) or 'nobody'}", act, frozenset(("nothing", *outcomes)))


_INSERT: LiteralString = """
    INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at)
    VALUES (gen_random_uuid(), %(key)s, %(node)s, %(path)s, 'rtmp', %(connection)s,
            clock_timestamp(), clock_timestamp() + interval '20 seconds')
"""


def _insert(*, shared: str) -> Role:
    """A stream that goes into the table past every function and lock; the workers share a key, or a path."""

    def act(conn: Connection, place: Place) -> str:
        values = {
            "key": place.key_id(0 if shared == "key" else place.worker),
            "node": place.node,
            "path": place.path(0 if shared == "path" else place.worker),
            "connection": place.connection_id(f"w{place.worker}"),
        }
        try:
            conn.execute(_INSERT, values)
        except psycopg.errors.UniqueViolation as refusal:
            return str(refusal.diag.constraint_name)
        return "claimed"

    return Role("insert", act, frozenset(("claimed", f"streams_one_pending_one_active_per_{shared}")))


def _settle(conn: Connection, place: Place) -> str:
    return "not leading" if reconciliation.settle(conn, EPOCH) is None else "settled"


_SETTLE = Role("settle", _settle, frozenset(("settled",)))
_REOPEN = Role(
    "reopen old",
    lambda conn, place: reconciliation.reopen(
        conn, EPOCH, place.stream_id("old"), source_type="rtmpConn", source_id=place.connection_id("old")
    ),
    frozenset(("reopened", "open", "busy")),
)
_ABANDON = Role(
    "find new gone",
    lambda conn, place: streams.abandon(conn, place.stream_id("new")),
    frozenset(("ended", "late")),
)
_REVOKE = Role(
    "revoke key 0",
    lambda conn, place: stream_keys.revoke(conn, place.key_id(0)),
    frozenset(("revoked", "already")),
)
_DISABLE_KEY = Role(
    "disable key 0",
    lambda conn, place: stream_keys.update(conn, place.key_id(0), {"disabled": True}),
    frozenset(("updated",)),
)
_EXPIRE = Role(
    "expire key 0",
    lambda conn, place: stream_keys.update(conn, place.key_id(0), {"expires_at": "2020-01-01T00:00:00+00:00"}),
    frozenset(("updated",)),
)
_BIND = Role(
    "bind key 0 to path 0",
    lambda conn, place: stream_keys.update(conn, place.key_id(0), {"path": place.path(0)}),
    frozenset(("updated", "path-in-use")),
)
_CREATE_BOUND = Role(
    "create key 2 bound to path 0",
    lambda conn, place: _create_key(conn, place, path=place.path(0)),
    frozenset(("created", "conflict", "path-in-use")),
)
_CREATE_AND_CLAIM = Role(
    "create key 2 and claim path 1 with it",
    _create_and_claim,
    frozenset(("unknown-broadcaster", "conflict", "claimed", "stream-key-revoked")),
    claims_with=2,
)
_STOP_NEW = Role(
    "stop new",
    lambda conn, place: streams.stop(conn, place.stream_id("new"), hold_seconds=_HOLD_SECONDS),
    frozenset(("stopped", "already")),
)
_DISABLE_BROADCASTER = Role(
    "disable broadcaster",
    lambda conn, place: broadcasters.update(conn, place.broadcaster_id, {"disabled": True}),
    frozenset(("updated",)),
)
_DELETE_BROADCASTER = Role(
    "delete broadcaster",
    lambda conn, place: broadcasters.delete(conn, place.broadcaster_id),
    frozenset(("deleted", "already")),
)
_STOP = Role(
    "stop old",
    lambda conn, place: streams.stop(conn, place.stream_id("old"), hold_seconds=_HOLD_SECONDS),
    frozenset(("stopped", "already")),
)


# --- what it must come to ------------------------------------------------------------------------------------


def _states(of: Round, **expected: str) -> Iterator[str]:
    for name, state in expected.items():
        found = of.streams[name].state if name in of.streams else "not there"
        if found != state:
            yield f"{name} is {found}, not {state}"


def _one_winner(of: Round) -> Iterator[str]:
    """One claim is granted and waits; the same key is told that it is in use, another that the path is."""
    winners = of.winners()
    if len(winners) != 1:
        yield f"{len(winners)} winners"
        return
    winner, winning_worker = winners[0]
    yield from _states(of, **{f"w{winning_worker}": "pending"})
    for role, worker, outcome in of.told:
        if role.claims_with is None or worker == winning_worker:
            continue
        in_use = "stream-key-in-use" if role.claims_with == winner.claims_with else "path-in-use"
        if outcome != in_use:
            yield f"{role.name} (w{worker}) was refused with {outcome}, not {in_use}"


def _one_winner_after_lapse(of: Round) -> Iterator[str]:
    yield from _one_winner(of)
    yield from _states(of, lapsed="never_started")


def _refusal_ends_nothing(of: Round) -> Iterator[str]:
    """Key 0's lapsed claim of another path ends when key 0 wins, and only then."""
    yield from _one_winner(of)
    won = any(role.claims_with == 0 for role, _ in of.winners())
    yield from _states(of, lapsed="never_started" if won else "pending")


def _one_claim_the_rest_replays(of: Round) -> Iterator[str]:
    if (of.count("claimed"), of.count("replay")) != (1, len(of.told) - 1):
        yield "not one claimed and the rest replays"
    yield from _states(of, shared="pending")


def _both_win(of: Round) -> Iterator[str]:
    paths = {stream.key: stream.path for stream in of.new_streams() if stream.state == "pending"}
    if len(of.winners()) != 2 or paths != {0: 1, 1: 0}:
        yield "the two keys did not exchange their paths"
    yield from _states(of, lapsed0="never_started", lapsed1="never_started")


def _one_takes_over(of: Round) -> Iterator[str]:
    yield from _one_winner(of)
    yield from _states(of, old="active")
    for stream in of.new_streams():
        if stream.replaces != "old":
            yield f"{stream.name} does not say that it replaces the old one"


def _all_ended(reason: str, once: str | None = None) -> Judge:
    """Nothing stays open: what was claimed in time ends with this reason. `once` is told to one worker."""

    def judge(of: Round) -> Iterator[str]:
        if len(of.winners()) > 1:
            yield f"{len(of.winners())} winners"
        if once and of.count(once) != 1:
            yield f"{of.count(once)} times {once}"
        yield from _states(of, **dict.fromkeys(of.streams, reason))

    return judge


def _keys_and_streams_are_gone(of: Round) -> Iterator[str]:
    if of.count("deleted") != 1:
        yield f"{of.count('deleted')} times deleted"
    for number, key in of.keys.items():
        if not key.revoked:
            yield f"key {number} outlives its broadcaster"
    yield from _states(of, **dict.fromkeys(of.streams, "revoked"))


def _two_values_work(of: Round) -> Iterator[str]:
    """Of all that were told, the last two."""
    key, workers = of.keys[0], {f"w{worker}" for _, worker, _ in of.told}
    if not {key.value, key.previous_value} <= workers or key.value == key.previous_value:
        yield f"the values of the key are {key.value} and {key.previous_value}"


def _replaced_or_claimed(of: Round) -> Iterator[str]:
    """Who came before the value was replaced is in, and stays; everybody after it is refused."""
    for stream in of.new_streams():
        if stream.is_late:
            yield f"{stream.name} was let in with a value that had been replaced"
        yield from _states(of, **{stream.name: "pending"})
    if len(of.winners()) > 1:
        yield f"{len(of.winners())} winners"


def _newcomer_is_live(of: Round) -> Iterator[str]:
    """The old one has ended, by its own hook or by the newcomer's, and says where its watchers shall go."""
    if of.count("active") != 1:
        yield f"{of.count('active')} times active"
    if of.count("ended") > 1:
        yield f"{of.count('ended')} times ended"
    yield from _states(of, new="active", old="disconnected" if of.count("ended") else "superseded")
    if of.streams["old"].replaced_by != "new":
        yield "the old one does not say what replaced it"


def _connection_is_over(of: Round) -> Iterator[str]:
    """In whatever order its two hooks came."""
    if of.count("active") > 1:
        yield f"{of.count('active')} times active"
    if of.count("ended") + of.count("unknown") == 0:
        yield "nobody ended it"
    yield from _states(of, new="disconnected")
    if not of.streams["new"].was_live:
        yield "it does not count as having been live"


def _bound_or_claimed(of: Round) -> Iterator[str]:
    """Either the path is bound and each claim of another key refused, or it is claimed and each binding refused."""
    bound = of.count("updated") + of.count("created")
    if bound and of.winners():
        yield "bound and claimed"
    elif bound:
        for role, worker, outcome in of.told:
            if role.claims_with is not None and outcome != "path-in-use":
                yield f"{role.name} (w{worker}) was refused with {outcome}, not path-in-use"
    else:
        yield from _one_winner(of)


def _started_once(of: Round) -> Iterator[str]:
    """By the hook or by the tick, and in that moment it took over from the old one."""
    if of.count("active") + of.count(_BOTH) != 1:
        yield f"{of.count('active')} times active, {of.count(_BOTH)} times {_BOTH}"
    yield from _states(of, new="active", old="superseded")
    if of.streams["old"].replaced_by != "new":
        yield "the old one does not say what replaced it"


def _ended_once(of: Round) -> Iterator[str]:
    ends = of.count("ended") + of.count("disconnected, by a tick")
    if ends != 1:
        yield f"ended {ends} times"
    yield from _states(of, old="disconnected")


def _started_or_abandoned(of: Round) -> Iterator[str]:
    starts, ends = of.count("active"), of.count("ended")
    if (starts, ends) not in ((1, 0), (0, 1)):
        yield f"{starts} times active, {ends} times abandoned"
    yield from _states(of, new="active" if starts else "never_started")


def _reopened_or_claimed(of: Round) -> Iterator[str]:
    """Whoever comes first has the path."""
    reopened = of.count("reopened")
    if (reopened, len(of.winners())) not in ((1, 0), (0, 1)):
        yield f"{reopened} times reopened, {len(of.winners())} winners"
    yield from _states(of, old="active" if reopened else "disconnected")


def _reopened_beside_a_claim(of: Round) -> Iterator[str]:
    """What is live goes on, and the claim of its own key is to take over from it, whichever came first."""
    yield from _one_winner(of)
    reopened = of.count("reopened")
    yield from _states(of, old="active" if reopened else "disconnected")
    for stream in of.new_streams():
        if stream.replaces != ("old" if reopened else ""):
            yield f"{stream.name} replaces {stream.replaces or 'nothing'}"


def _nothing_is_reopened(of: Round) -> Iterator[str]:
    """The key is taken back: what was opened again before that has ended with it."""
    if of.count("reopened") > 1 or of.count("revoked") < 1:
        yield f"{of.count('reopened')} times reopened, {of.count('revoked')} times revoked"
    yield from _states(of, old="revoked" if of.count("reopened") else "disconnected")


def _one_is_in(of: Round) -> Iterator[str]:
    if len(of.winners()) != 1:
        yield f"{len(of.winners())} winners"


# --- the kinds -----------------------------------------------------------------------------------------------

_RTSP = "rtspSession"

_KINDS = (
    Kind("same-connection", [_claim("replay", shared_connection=True)], _one_claim_the_rest_replays),
    Kind("one-key", [_claim("stream-key-in-use")], _one_winner),
    Kind("one-key-two-paths", [_claim("stream-key-in-use"), _claim("stream-key-in-use", path=1)], _one_winner),
    Kind(
        "two-keys-one-path",
        [_claim("stream-key-in-use", "path-in-use"), _claim("stream-key-in-use", "path-in-use", key=1)],
        _refusal_ends_nothing,
        key_count=2,
        seeds=[Seed("lapsed", "lapsed", path=1)],
    ),
    Kind(
        "exchange-paths",
        [_claim("stream-key-in-use", key=0, path=1), _claim("stream-key-in-use", key=1, path=0)],
        _both_win,
        key_count=2,
        seeds=[Seed("lapsed0", "lapsed", key=0, path=0), Seed("lapsed1", "lapsed", key=1, path=1)],
    ),
    Kind(
        "lapsed-one-key",
        [_claim("stream-key-in-use")],
        _one_winner_after_lapse,
        seeds=[Seed("lapsed", "lapsed")],
    ),
    Kind(
        "lapsed-three-keys",
        [_claim("stream-key-in-use", "path-in-use", key=key) for key in range(3)],
        _one_winner_after_lapse,
        key_count=3,
        seeds=[Seed("lapsed", "lapsed", key=2)],
    ),
    Kind("takeover", [_claim("stream-key-in-use")], _one_takes_over, seeds=[Seed("old", "active")]),
    Kind(
        "claim-revoke",
        [_claim("stream-key-in-use", "stream-key-revoked"), _REVOKE],
        _all_ended("revoked", once="revoked"),
    ),
    Kind(
        "claim-disable-key",
        [_claim("stream-key-in-use", "stream-key-disabled"), _DISABLE_KEY],
        _all_ended("disabled"),
    ),
    Kind(
        "claim-disable-broadcaster",
        [_claim("stream-key-in-use", "broadcaster-disabled"), _DISABLE_BROADCASTER],
        _all_ended("disabled"),
    ),
    Kind("rotate-rotate", [_rotate(60)], _two_values_work, prize="rotated"),
    Kind(
        "claim-rotate",
        # By the second rotation the value is forgotten.
        [_claim("stream-key-in-use", "stream-key-revoked", "invalid-stream-key"), _rotate(0)],
        _replaced_or_claimed,
    ),
    Kind("claim-expire", [_claim("stream-key-in-use", "stream-key-expired"), _EXPIRE], _all_ended("expired")),
    Kind(
        "claim-stop-hold",
        [_claim("stream-key-in-use", "stream-stopped"), _STOP],
        _all_ended("stopped", once="stopped"),
        seeds=[Seed("old", "active")],
    ),
    Kind(
        "claim-bind",
        [_claim("stream-key-in-use", "path-in-use", key=1), _BIND],
        _bound_or_claimed,
        key_count=2,
    ),
    Kind(
        "claim-create-bound",
        [_claim("stream-key-in-use", "path-in-use", key=1), _CREATE_BOUND],
        _bound_or_claimed,
        key_count=2,
    ),
    Kind(
        "delete-create-claim",
        [_DELETE_BROADCASTER, _CREATE_AND_CLAIM, _claim("stream-key-in-use", "stream-key-revoked")],
        _keys_and_streams_are_gone,
    ),
    Kind(
        "ready-revoke",
        [_start("new", "not-found"), _REVOKE],
        _all_ended("revoked", once="revoked"),
        seeds=[Seed("new", "pending")],
        prize="active",
    ),
    Kind(
        "ready-new-not-ready-old",
        [_start("new"), _end("old")],
        _newcomer_is_live,
        seeds=[Seed("old", "active"), Seed("new", "pending", replaces="old")],
        prize="active",
    ),
    # RTSP before v1.19.3: the hook names a session that auth has not heard of.
    Kind(
        "ready-new-not-ready-old-rtsp",
        [_start("session", source_type=_RTSP), _end("old", source_type=_RTSP)],
        _newcomer_is_live,
        seeds=[Seed("old", "active", protocol="rtsp"), Seed("new", "pending", protocol="rtsp", replaces="old")],
        prize="active",
    ),
    Kind(
        "ready-not-ready",
        [_start("new", "not-found"), _end("new")],
        _connection_is_over,
        seeds=[Seed("new", "pending")],
        prize="active",
    ),
    Kind(
        "ready-not-ready-rtsp",
        [_start("session", "not-found", source_type=_RTSP), _end("session", "unknown", source_type=_RTSP)],
        _connection_is_over,
        seeds=[Seed("new", "pending", protocol="rtsp")],
        prize="active",
    ),
    Kind(
        "ready-stop",
        [_start("new", "not-found"), _STOP_NEW],
        _all_ended("stopped", once="stopped"),
        seeds=[Seed("new", "pending")],
        prize="active",
    ),
    Kind(
        "ready-abandon",
        [_start("new", "not-found"), _ABANDON],
        _started_or_abandoned,
        seeds=[Seed("new", "pending")],
        prize="active",
    ),
    Kind(
        "tick-ready",
        [_tick("new", outcomes=(_BOTH,)), _start("new")],
        _started_once,
        seeds=[Seed("old", "active"), Seed("new", "pending", replaces="old")],
        prize=_BOTH,
    ),
    Kind(
        "tick-revoke",
        [_tick("new", outcomes=("active, by a tick",)), _REVOKE],
        _all_ended("revoked", once="revoked"),
        seeds=[Seed("new", "pending")],
        prize="active, by a tick",
    ),
    Kind(
        "tick-not-ready",
        [_tick(outcomes=("disconnected, by a tick",)), _end("old")],
        _ended_once,
        seeds=[Seed("old", "active")],
        prize="ended",
    ),
    Kind(
        "tick-claim-lapsed",
        [_tick(outcomes=("never_started, by a tick",)), _claim("stream-key-in-use")],
        _one_winner_after_lapse,
        seeds=[Seed("lapsed", "lapsed")],
    ),
    Kind(
        "settle-claim-disable",
        [_SETTLE, _claim("stream-key-in-use", "stream-key-disabled"), _DISABLE_KEY],
        _all_ended("disabled"),
        seeds=[Seed("old", "active")],
    ),
    Kind(
        "reopen-claim",
        [
            _REOPEN._replace(outcomes=_REOPEN.outcomes | {"path-in-use"}),
            _claim("stream-key-in-use", "path-in-use", key=1),
        ],
        _reopened_or_claimed,
        key_count=2,
        seeds=[Seed("old", "disconnected")],
    ),
    Kind(
        "reopen-claim-one-key",
        [_REOPEN, _claim("stream-key-in-use")],
        _reopened_beside_a_claim,
        seeds=[Seed("old", "disconnected")],
    ),
    Kind(
        "reopen-revoke",
        [_REOPEN._replace(outcomes=_REOPEN.outcomes | {"revoked"}), _REVOKE],
        _nothing_is_reopened,
        seeds=[Seed("old", "disconnected")],
        prize="reopened",
    ),
    # What is behind the locks: the indexes alone.
    Kind("insert-one-key", [_insert(shared="key")], _one_is_in, key_count=8),
    Kind("insert-one-path", [_insert(shared="path")], _one_is_in, key_count=8),
)
KINDS = {kind.name: kind for kind in _KINDS}
