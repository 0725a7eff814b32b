"""The reconciler, tick by tick, against a media server on a real socket: each row of the table in design 2.4."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamorch import keys, tracks
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler, Report
from streamorch.repositories import Connection, PatientConnection, connect, nodes, reconciliation, stream_keys, streams
from streamorch.settings import Settings
from tests.blueprints import FUTURE, only, rows
from tests.conftest import Key
from tests.fake_mediamtx import LISTS as FAKE_LISTS
from tests.fake_mediamtx import FakeMediaMTX, Publisher, recording
from tests.passing import pass_time

PATH = "live/cam7"
# The newest; one in which auth names RTSP publishers by their connection, and which does not tell when it started; one
# that does not even tell which session is of which connection.
VERSIONS = ("v1.20.1", "v1.12.3", "v1.9.3")
KINDS = [("v1.20.1", protocol) for protocol in ("rtmp", "rtsp", "srt", "webrtc", "moq")] + [
    ("v1.12.3", "rtmp"),
    ("v1.12.3", "rtsp"),
    ("v1.9.3", "rtsp"),
    ("v1.9.3", "webrtc"),
]
NODE = "SELECT * FROM nodes WHERE node = 'default'"
OPEN = "SELECT * FROM streams WHERE ended_at IS NULL ORDER BY claimed_at"


class Scene:
    """A media server, the table, and a reconciler that ticks when it is told."""

    def __init__(
        self, fake: FakeMediaMTX, conn: PatientConnection, settings: Settings, make_key: Callable[..., Key]
    ) -> None:
        self.fake = fake
        self.conn = conn
        self.settings = settings
        self.make_key = make_key
        self.api = ControlAPI(fake.url, user="streamorch", password="secret")
        self.reconciler = Reconciler(settings, self.api)

    def tick(self) -> Report:
        report = self.reconciler.tick(self.conn)
        assert report is not None
        return report

    def pass_time(self, seconds: float) -> None:
        pass_time(self.conn, seconds)

    # --- publishers; each is made of what the one before is ---

    def claim(self, publisher: Publisher, key: Key | None = None, **others: Any) -> streams.Claim:
        """What POST /auth asks for it."""
        asked: dict[str, Any] = {
            "key_hash": keys.digest((key or self.make_key()).value),
            "node": "default",
            "path": publisher.path,
            "connection_id": publisher.auth_id,
            "protocol": in_auth(publisher),
            "remote_address": "192.0.2.7",
            "user_agent": "",
            "lease_seconds": 20,
        }
        return streams.claim(self.conn, **asked | others)

    def pending(self, path: str = PATH, protocol: str = "rtmp", key: Key | None = None, **others: Any) -> Publisher:
        """Connected and let in, on no path yet."""
        publisher = self.fake.publish(path, protocol, live=False)
        assert self.claim(publisher, key, **others).outcome == "claimed"
        return publisher

    def live(self, path: str = PATH, protocol: str = "rtmp", key: Key | None = None, **others: Any) -> Publisher:
        """Live, and its hook was lost."""
        publisher = self.pending(path, protocol, key, **others)
        self.fake.go_live(publisher)
        return publisher

    def active(self, path: str = PATH, protocol: str = "rtmp", key: Key | None = None, **others: Any) -> Publisher:
        """Live, and its hook came."""
        publisher = self.live(path, protocol, key, **others)
        assert self.hook_ready(publisher) == "active"
        return publisher

    def hook_ready(self, publisher: Publisher) -> str:
        return streams.start(self.conn, **_told(publisher))[0]

    def hook_not_ready(self, publisher: Publisher) -> str:
        return streams.end(self.conn, **_told(publisher))[0]

    # --- what there is ---

    def stream(self, publisher: Publisher) -> dict[str, Any]:
        """The last row of its connection."""
        return rows(self.conn, "SELECT * FROM streams WHERE auth_id = %s ORDER BY claimed_at DESC", publisher.auth_id)[
            0
        ]

    def reason(self, publisher: Publisher) -> str | None:
        reason: str | None = self.stream(publisher)["end_reason"]
        return reason

    def is_active(self, publisher: Publisher) -> bool:
        row = self.stream(publisher)
        return row["started_at"] is not None and row["ended_at"] is None

    def is_pending(self, publisher: Publisher) -> bool:
        row = self.stream(publisher)
        return row["started_at"] is None and row["ended_at"] is None

    def is_connected(self, publisher: Publisher) -> bool:
        """Does the media server have it in a list?"""
        return self.api.connection(in_auth(publisher), publisher.source_id, seconds=2) is not None

    def version(self) -> int:
        """Of the live list."""
        version: int = only(self.conn, "SELECT version FROM live_list")["version"]
        return version

    def stats(self, publisher: Publisher) -> dict[str, Any]:
        """One stream as the API shows it, with what only one shows."""
        shown = streams.get(self.conn, self.stream(publisher)["id"])
        assert shown is not None
        names = ("viewers", "media", "bytes", "bitrate", "tracks", "kick")
        return {name: getattr(shown, name) for name in names}

    def node(self) -> nodes.Node:
        return nodes.every(self.conn, default="default")[0]


def in_auth(publisher: Publisher) -> str:
    """What auth calls its protocol: it does not tell RTMPS from RTMP."""
    return publisher.protocol.replace("ps", "p")


def _told(publisher: Publisher) -> dict[str, str]:
    return {
        "node": "default",
        "path": publisher.path,
        "source_type": publisher.source_type,
        "source_id": publisher.source_id,
    }


@pytest.fixture(scope="module")
def patient(shared_url) -> Iterator[PatientConnection]:
    """One for all: the first tick over a connection costs as much as ten, since the server reads the functions."""
    with connect(shared_url) as conn:
        yield conn


@pytest.fixture
def make_scene(patient, database_url, make_settings, make_key) -> Iterator[Callable[..., Scene]]:
    """A scene with a media server of that version, and these settings."""
    fakes: list[FakeMediaMTX] = []
    forget_leader(patient)

    def make(version: str = "v1.20.1", **settings: str) -> Scene:
        fake = FakeMediaMTX(version)
        fake.__enter__()
        fakes.append(fake)
        return Scene(fake, patient, make_settings(MEDIAMTX_API_URL=fake.url, **settings), make_key)

    yield make
    for fake in fakes:
        fake.__exit__()
    forget_leader(patient)


def forget_leader(conn: Connection) -> None:
    conn.execute("UPDATE leaders SET holder = '', expires_at = '-infinity'")


@pytest.fixture
def scene(make_scene) -> Scene:
    made: Scene = make_scene()
    return made


each_version = pytest.mark.parametrize("version", VERSIONS)
each_kind = pytest.mark.parametrize(("version", "protocol"), KINDS)


def changes(report: Report) -> list[tuple[str, str]]:
    """What became of which path."""
    return sorted((change.what, change.path) for change in report.changes)


# --- a claim that is live -----------------------------------------------------------------------------------


@each_kind
def test_a_claim_that_is_live_becomes_active_though_its_hook_was_lost(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.live(protocol=protocol)
    before = scene.version()
    report = scene.tick()
    row = scene.stream(publisher)
    assert (row["source_id"], row["source_type"]) == (publisher.source_id, publisher.source_type)
    assert scene.is_active(publisher)
    assert changes(report) == [("active", PATH)]
    assert (report.live, report.unclaimed) == (1, [])
    assert scene.version() > before
    before = scene.version()
    assert scene.hook_ready(publisher) == "replay"  # the hook was only late
    assert changes(scene.tick()) == []


@each_kind
def test_a_claim_that_is_not_live_yet_waits(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.pending(protocol=protocol)
    before = scene.version()
    for _ in range(3):
        assert changes(scene.tick()) == []
    assert scene.is_pending(publisher)
    assert scene.version() == before


@pytest.mark.parametrize("protocol", ["rtmps", "rtsps"])
def test_encrypted_publishers_stand_in_lists_of_their_own(scene, protocol):
    scene.fake.switch_on("rtmpsconns", "rtspsconns", "rtspssessions")
    publisher = scene.live(protocol=protocol)
    waiting = scene.pending("live/waiting", protocol)
    scene.tick()
    scene.tick()
    assert scene.is_active(publisher)
    assert scene.is_pending(waiting)
    scene.fake.leave(publisher)
    scene.tick()
    assert scene.reason(publisher) == "disconnected"


def test_a_claim_is_not_started_by_its_connection_on_another_path(scene):
    publisher = scene.pending("live/claimed")
    publisher.path = "live/other"
    scene.fake.go_live(publisher)
    scene.tick()
    assert scene.is_pending(publisher)


def test_a_lapsed_claim_that_is_live_becomes_active(scene):
    publisher = scene.live()
    scene.pass_time(60)
    scene.tick()
    assert scene.is_active(publisher)
    assert scene.fake.kicks == []


@pytest.mark.parametrize("path", [PATH, "live/other"])
def test_a_claim_that_is_live_ends_what_it_takes_over_from(scene, path):
    scene.tick()  # the server has been seen, so a key may move to another path
    key = scene.make_key(takeover="always")
    old = scene.active(key=key)
    scene.fake.freeze(old)
    new = scene.live(path, key=key)
    report = scene.tick()
    assert changes(report) == sorted([("active", path), ("superseded", PATH)])
    old_row, new_row = scene.stream(old), scene.stream(new)
    assert (old_row["end_reason"], old_row["replaced_by"]) == ("superseded", new_row["id"])
    assert old_row["ended_at"] == new_row["started_at"]
    assert not scene.is_connected(old)
    # On its own path the media server itself closes it.
    assert scene.fake.kicks == ([] if path == PATH else [old.source_id])


def test_a_connection_that_is_let_in_again_after_a_stop_is_not_closed(scene):
    """An RTSP publisher that is not live yet cannot be closed: the stop still waits for it."""
    key = scene.make_key()
    publisher = scene.pending(protocol="rtsp", key=key)
    streams.stop(scene.conn, scene.stream(publisher)["id"], hold_seconds=0)
    scene.tick()
    assert scene.claim(publisher, key).outcome == "claimed"
    scene.fake.go_live(publisher)
    scene.tick()
    scene.tick()
    assert scene.is_connected(publisher)
    assert scene.is_active(publisher)


def test_the_watchers_of_a_publisher_that_came_back_follow(scene):
    key = scene.make_key()
    first = scene.active(key=key)
    scene.fake.leave(first)
    scene.tick()
    second = scene.live(key=key)
    scene.tick()
    assert scene.stream(first)["replaced_by"] == scene.stream(second)["id"]


def claim_many(scene: Scene, publishers: list[Publisher]) -> None:
    """A key and a claim for each."""
    scene.conn.execute(
        """
        WITH claims AS (
            SELECT gen_random_uuid() AS key_id, path, id FROM unnest(%s::text[], %s::text[]) AS u (path, id)
        ), made AS (
            INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
            SELECT key_id, %s, sha256(key_id::text::bytea), 'xxxx' FROM claims
        )
        INSERT INTO streams (id, stream_key_id, node, path, protocol, auth_id, claimed_at, lease_expires_at)
        SELECT gen_random_uuid(), key_id, 'default', path, 'rtmp', id, clock_timestamp(), 'infinity' FROM claims
        """,
        [[p.path for p in publishers], [p.source_id for p in publishers], scene.make_key().broadcaster_id],
    )


def test_more_claims_than_one_statement_takes_become_active_in_one_tick(scene):
    claim_many(scene, scene.fake.publish_many(1003))
    report = scene.tick()
    assert report.change_count == 1003
    assert len(report.changes) < 1003  # what is told of them is bounded
    assert only(scene.conn, "SELECT count(*) FROM streams WHERE started_at IS NOT NULL")["count"] == 1003


# --- RTSP before v1.19.3: auth names the connection, everything else the session ------------------------------


@pytest.mark.parametrize("version", ["v1.12.3", "v1.9.3"])
def test_a_session_that_is_another_stream_is_not_taken_for_a_claim(make_scene, version):
    scene = make_scene(version)
    scene.tick()
    key = scene.make_key(takeover="always")
    old = scene.active(protocol="rtsp", key=key)
    new = scene.pending(protocol="rtsp", key=key)
    scene.tick()
    scene.tick()
    assert scene.is_active(old)
    assert scene.is_pending(new)
    scene.fake.go_live(new)
    scene.tick()
    assert (scene.reason(old), scene.is_active(new)) == ("superseded", True)
    assert scene.stream(new)["source_id"] == new.source_id


def test_a_session_is_told_from_another_by_its_connection(make_scene):
    """The path alone would be wrong: an older session is live there, which nobody claimed."""
    scene = make_scene("v1.12.3")
    stranger = scene.fake.publish(PATH, "rtsp")
    publisher = scene.pending(protocol="rtsp")
    report = scene.tick()
    assert scene.is_pending(publisher)
    assert [entry["source_id"] for entry in report.unclaimed] == [stranger.source_id]


# --- a stream that is over ----------------------------------------------------------------------------------


@each_kind
def test_a_stream_whose_connection_is_gone_ends_though_its_hook_was_lost(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.active(protocol=protocol)
    other = scene.active("live/other", protocol=protocol)
    scene.tick()
    scene.fake.leave(publisher)
    before = scene.version()
    report = scene.tick()
    assert changes(report) == [("disconnected", PATH)]
    assert scene.reason(publisher) == "disconnected"
    assert scene.is_active(other)
    assert scene.version() == before + 1
    assert scene.hook_not_ready(publisher) == "late"
    assert changes(scene.tick()) == []


def test_a_stream_that_is_in_one_of_both_lists_goes_on(scene):
    nothing = b'{"itemCount":0,"pageCount":0,"items":[]}'
    publisher = scene.active()
    for route in ("/v3/rtmpconns/list", "/v3/paths/list"):
        scene.fake.answer(200, nothing, route=route)
        assert changes(scene.tick()) == []
        assert scene.is_active(publisher)
        scene.fake.heal(route)
    scene.fake.answer(200, nothing, route="/v3/rtmpconns/list")
    scene.fake.answer(200, nothing, route="/v3/paths/list")
    assert changes(scene.tick()) == [("disconnected", PATH)]


def test_a_stream_of_another_node_is_none_of_this_ones_business(scene):
    publisher, lapsed = scene.active(), scene.pending("live/lapsed")
    scene.conn.execute("UPDATE streams SET node = 'other'")
    scene.fake.leave(publisher)
    scene.pass_time(60)
    assert changes(scene.tick()) == []
    assert scene.is_active(publisher)
    assert scene.is_pending(lapsed)


# --- a claim that came to nothing ---------------------------------------------------------------------------


@each_kind
def test_a_claim_without_connection_ends_when_it_was_missed_twice(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.pending(protocol=protocol)
    scene.fake.leave(publisher)
    before = scene.version()
    assert changes(scene.tick()) == []
    assert scene.is_pending(publisher)
    assert changes(scene.tick()) == [("never_started", PATH)]
    assert scene.reason(publisher) == "never_started"
    assert scene.stats(publisher)["kick"] is None
    assert scene.version() == before  # no list showed it


def test_missed_twice_is_twice_in_a_row(scene):
    publisher = scene.pending()
    scene.fake.leave(publisher)
    scene.tick()
    again = scene.fake.publish(PATH, connection_id=publisher.auth_id, live=False)
    scene.tick()
    scene.fake.leave(again)
    scene.tick()
    assert scene.is_pending(publisher)
    scene.tick()
    assert scene.reason(publisher) == "never_started"


def test_a_list_that_did_not_answer_misses_nobody(scene):
    publisher = scene.pending()
    scene.fake.leave(publisher)
    for is_broken in (False, True, False, True):
        if is_broken:
            scene.fake.answer(500, route="/v3/rtmpconns")
        scene.tick()
        scene.fake.heal("/v3/rtmpconns")
        assert scene.is_pending(publisher)
    scene.tick()
    scene.tick()
    assert scene.reason(publisher) == "never_started"


def test_a_new_leader_has_missed_nobody_yet(scene):
    publisher = scene.pending()
    scene.fake.leave(publisher)
    scene.tick()
    scene.reconciler.resign(scene.conn)
    scene.reconciler = Reconciler(scene.settings, scene.api)
    scene.tick()
    assert scene.is_pending(publisher)
    scene.tick()
    assert scene.reason(publisher) == "never_started"


def test_who_lost_the_lead_and_has_it_again_has_missed_nobody_yet(scene):
    publisher = scene.pending()
    scene.fake.leave(publisher)
    scene.tick()
    other = reconciliation.lead(scene.conn, holder="another", seconds=4, force=True)
    assert other is not None
    assert scene.reconciler.tick(scene.conn) is None
    reconciliation.resign(scene.conn, other.epoch)
    scene.tick()
    assert scene.is_pending(publisher)
    scene.tick()
    assert scene.reason(publisher) == "never_started"


@each_kind
def test_a_lapsed_claim_ends_and_its_connection_is_closed(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.pending(protocol=protocol)
    scene.pass_time(20)
    scene.tick()
    assert scene.reason(publisher) == "never_started"
    if protocol == "rtsp":  # which is left alone until it is live
        assert scene.stats(publisher)["kick"] == "pending"
        return
    assert not scene.is_connected(publisher)
    scene.tick()
    assert scene.stats(publisher)["kick"] == "done"


def test_a_claim_that_lapsed_a_minute_ago_ends_though_nobody_can_be_asked(scene):
    publisher = scene.pending()
    scene.fake.refuse()
    scene.pass_time(79)
    scene.tick()
    assert scene.is_pending(publisher)
    scene.pass_time(2)
    assert changes(scene.tick()) == [("never_started", PATH)]
    assert scene.stats(publisher)["kick"] is None


def test_a_lapsed_claim_without_connection_is_not_kicked(scene):
    publisher = scene.pending()
    scene.fake.leave(publisher)
    scene.pass_time(20)
    scene.tick()
    assert scene.reason(publisher) == "never_started"
    assert scene.stats(publisher)["kick"] is None
    assert scene.fake.kicks == []


# --- keys that lost their right -------------------------------------------------------------------------------

LOST_RIGHTS = [
    ("UPDATE stream_keys SET revoked_at = clock_timestamp()", "revoked"),
    ("UPDATE stream_keys SET expires_at = clock_timestamp()", "expired"),
    ("UPDATE stream_keys SET disabled_at = clock_timestamp()", "disabled"),
    ("UPDATE broadcasters SET disabled_at = clock_timestamp()", "disabled"),
]


@pytest.mark.parametrize("is_active", [False, True], ids=["claim", "stream"])
@pytest.mark.parametrize(("statement", "reason"), LOST_RIGHTS)
def test_a_key_that_lost_its_right_loses_its_publisher(scene, statement, reason, is_active):
    publisher = (scene.active if is_active else scene.pending)()
    before = scene.version()
    scene.conn.execute(statement)
    assert changes(scene.tick()) == [(reason, PATH)]
    assert scene.reason(publisher) == reason
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"
    assert scene.version() == before + is_active


@pytest.mark.parametrize("state", ["live", "active"])
@each_kind
def test_a_publisher_is_cut_off_in_each_protocol(make_scene, version, protocol, state):
    scene = make_scene(version)
    publisher = getattr(scene, state)(protocol=protocol)
    scene.tick()
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.tick()
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"


@each_version
def test_a_claim_that_went_live_unnoticed_is_cut_off_when_its_key_is_revoked(make_scene, version):
    """Nothing but auth has named an RTSP publisher yet; before v1.19.3 by the id of its connection."""
    scene = make_scene(version)
    scene.tick()
    publisher = scene.live(protocol="rtsp")
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.tick()
    assert scene.reason(publisher) == "revoked"
    assert not scene.is_connected(publisher)


@each_version
def test_a_claim_whose_key_is_revoked_is_cut_off_at_its_hook(make_scene, version):
    scene = make_scene(version)
    scene.tick()
    publisher = scene.live(protocol="rtsp")
    scene.conn.execute(LOST_RIGHTS[0][0])
    assert scene.hook_ready(publisher) == "revoked"
    scene.tick()
    assert not scene.is_connected(publisher)


def test_who_survives_a_kick_is_kicked_until_gone(scene):
    publisher = scene.active()
    scene.fake.ignore_kicks(publisher)
    scene.conn.execute(LOST_RIGHTS[0][0])
    for _ in range(2):
        scene.tick()
        assert scene.stats(publisher)["kick"] == "pending"
    assert scene.fake.kicks == [publisher.source_id] * 2
    scene.fake.leave(publisher)
    scene.tick()
    assert scene.stats(publisher)["kick"] == "done"
    assert scene.fake.kicks == [publisher.source_id] * 2


def test_the_right_ends_while_the_media_server_is_away_and_the_kick_follows(scene):
    publisher = scene.active()
    scene.tick()
    scene.fake.refuse()
    scene.conn.execute(LOST_RIGHTS[0][0])
    assert changes(scene.tick()) == [("revoked", PATH)]
    scene.fake.heal()
    scene.tick()
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"


def test_a_connection_that_left_by_itself_needs_no_kick(scene):
    publisher = scene.active()
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.fake.vanish_before_kick(publisher)
    scene.tick()
    assert scene.stats(publisher)["kick"] == "done"
    assert scene.fake.kicks == []


def test_a_kick_is_carried_out_though_the_paths_cannot_be_listed(scene):
    publisher = scene.active()
    scene.fake.answer(500, route="/v3/paths")
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.tick()
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"


# --- live, although its stream has ended ------------------------------------------------------------------------

MISTAKES = ("disconnected", "server_lost", "server_restarted", "never_started")
ON_PURPOSE = ("revoked", "expired", "disabled", "stopped", "superseded")


def end(scene: Scene, publisher: Publisher, reason: str, *, seconds_ago: float = 2) -> None:
    """As if its stream had ended so."""
    scene.conn.execute(
        """
        UPDATE streams SET ended_at = clock_timestamp() - make_interval(secs => %(seconds)s), end_reason = %(reason)s,
                           started_at = CASE WHEN %(reason)s <> 'never_started' THEN started_at END
        WHERE auth_id = %(auth_id)s
        """,
        {"seconds": seconds_ago, "reason": reason, "auth_id": publisher.auth_id},
    )


@pytest.mark.parametrize(
    ("version", "protocol", "reason"),
    [(*kind, "disconnected") for kind in KINDS] + [("v1.20.1", "rtmp", reason) for reason in MISTAKES[1:]],
)
def test_a_stream_that_ended_by_mistake_is_opened_again(make_scene, version, protocol, reason):
    scene = make_scene(version)
    publisher = scene.active(protocol=protocol)
    was = scene.stream(publisher)
    end(scene, publisher, reason)
    before = scene.version()
    assert changes(scene.tick()) == [("reopened", PATH)]
    now = scene.stream(publisher)
    assert (now["id"], now["end_reason"], now["kick_requested_at"]) == (was["id"], None, None)
    assert scene.is_active(publisher)
    assert reason == "never_started" or now["started_at"] == was["started_at"]
    assert scene.version() > before
    assert scene.fake.kicks == []
    assert changes(scene.tick()) == []


def test_a_claim_that_was_given_up_and_went_live_is_opened(scene):
    """Its hook is refused, since a hook revives nothing; the reconciler knows better."""
    publisher = scene.pending()
    end(scene, publisher, "never_started")
    scene.fake.go_live(publisher)
    assert scene.hook_ready(publisher) == "not-found"
    assert changes(scene.tick()) == [("reopened", PATH)]
    assert scene.is_active(publisher)


def test_an_end_of_this_moment_is_believed(scene):
    """Its hook may have come after the list was read."""
    publisher = scene.active()
    assert scene.hook_not_ready(publisher) == "ended"
    report = scene.tick()
    assert (changes(report), report.unclaimed) == ([], [])
    assert scene.reason(publisher) == "disconnected"
    scene.pass_time(1)
    assert changes(scene.tick()) == [("reopened", PATH)]


def test_a_reopened_stream_is_what_a_claim_under_way_takes_over_from(scene):
    key = scene.make_key()
    old = scene.active(key=key)
    end(scene, old, "disconnected")
    new = scene.pending(key=key)
    scene.tick()
    assert scene.is_active(old)
    assert scene.stream(new)["replaces"] == scene.stream(old)["id"]
    scene.fake.go_live(new)
    assert scene.hook_ready(new) == "active"
    assert scene.reason(old) == "superseded"


def lost_right(scene: Scene, key: Key) -> None:
    scene.conn.execute("UPDATE stream_keys SET revoked_at = clock_timestamp()")


def on_hold(scene: Scene, key: Key) -> None:
    scene.conn.execute("UPDATE stream_keys SET hold_until = %s", [FUTURE])


def key_in_use(scene: Scene, key: Key) -> None:
    scene.active("live/other", key=key)


def path_claimed(scene: Scene, key: Key) -> None:
    scene.pending()


def key_bound_elsewhere(scene: Scene, key: Key) -> None:
    scene.conn.execute("UPDATE stream_keys SET path = 'live/other'")


def path_bound(scene: Scene, key: Key) -> None:
    scene.make_key(path=PATH)


OBSTACLES = {
    "revoked": lost_right,
    "stopped": on_hold,
    "stream-key-in-use": key_in_use,
    "path-in-use": path_claimed,
    "path-not-allowed": key_bound_elsewhere,
    "path-in-use by binding": path_bound,
}


@pytest.mark.parametrize("outcome", OBSTACLES)
def test_what_cannot_be_opened_again_is_closed(scene, outcome):
    key = scene.make_key()
    publisher = scene.active(key=key)
    end(scene, publisher, "disconnected")
    OBSTACLES[outcome](scene, key)
    report = scene.tick()
    assert (outcome.split(" ")[0], PATH) in changes(report)
    assert scene.reason(publisher) == "disconnected"
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"
    assert publisher.source_id in scene.fake.kicks


@pytest.mark.parametrize("reason", ON_PURPOSE)
@pytest.mark.parametrize("was_kicked", [False, True])
def test_who_is_live_after_an_end_on_purpose_is_kicked(scene, reason, was_kicked):
    publisher = scene.active()
    end(scene, publisher, reason)
    if was_kicked:  # in vain, as it turns out
        scene.conn.execute("UPDATE streams SET kick_requested_at = ended_at, kicked_at = ended_at")
    assert changes(scene.tick()) == []
    assert scene.reason(publisher) == reason
    assert scene.fake.kicks == [publisher.source_id]
    assert scene.stats(publisher)["kick"] == "done"


@each_kind
def test_who_is_live_after_an_end_on_purpose_is_kicked_in_each_protocol(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.active(protocol=protocol)
    end(scene, publisher, "stopped")
    scene.tick()
    assert not scene.is_connected(publisher)
    assert scene.stats(publisher)["kick"] == "done"


# --- kicks, one after another -----------------------------------------------------------------------------------


def test_a_kick_that_cannot_be_done_holds_up_no_other(scene):
    """RTSP was switched off since: no list tells whether the connection is gone."""
    gone, publisher = scene.active("live/gone", "rtsp"), scene.active()
    end(scene, gone, "stopped")
    scene.conn.execute("UPDATE streams SET kick_requested_at = ended_at")
    scene.fake.leave(gone)
    scene.fake.switch_off("rtspconns", "rtspsessions")
    end(scene, publisher, "stopped")
    scene.tick()
    assert not scene.is_connected(publisher)


def test_connections_that_stay_hold_up_no_other_for_ever(scene):
    """An RTSP publisher that is not live yet is left alone; so many of them are asked for first, tick after tick."""
    for number in range(8):
        scene.pending(f"live/waiting{number}", "rtsp")
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.tick()
    publisher = scene.active()
    scene.conn.execute(LOST_RIGHTS[0][0])
    scene.tick()
    scene.tick()
    assert not scene.is_connected(publisher)


# --- who publishes without a claim ------------------------------------------------------------------------------


def test_a_publisher_that_nobody_claimed_is_shown_and_left_alone(scene, caplog):
    rightful = scene.active()
    stranger = scene.fake.publish("open/door")
    caplog.set_level(logging.WARNING, "streamorch")
    for _ in range(3):
        report = scene.tick()
        (entry,) = report.unclaimed
        assert (entry["path"], entry["source_type"], entry["source_id"]) == (
            "open/door",
            "rtmpConn",
            stranger.source_id,
        )
    assert [record.message for record in caplog.records] == ["a live publisher that nobody claimed"]
    assert msgspec.json.decode(scene.node().unclaimed) == [entry]
    assert scene.is_connected(stranger)
    assert scene.is_active(rightful)
    scene.fake.leave(stranger)
    assert scene.tick().unclaimed == []


def kicking(make_scene: Callable[..., Scene], version: str = "v1.20.1", unknown_publishers: str = "kick") -> Scene:
    """A scene in which strangers are kicked; two streams are live, and both have been seen."""
    scene = make_scene(version, UNKNOWN_PUBLISHERS=unknown_publishers)
    scene.tick()
    scene.active("live/a")
    scene.active("live/b")
    scene.tick()
    return scene


@each_kind
def test_a_newcomer_that_nobody_claimed_is_kicked(make_scene, version, protocol):
    scene = kicking(make_scene, version)
    stranger = scene.fake.publish("open/door", protocol)
    scene.tick()
    # v1.9.3 does not tell which session is of which connection, and nobody is closed on a guess.
    assert scene.is_connected(stranger) == ((version, protocol) == ("v1.9.3", "rtsp"))


def test_a_newcomer_that_nobody_claimed_is_left_alone_unless_told_to_kick(make_scene):
    scene = kicking(make_scene, unknown_publishers="report")
    stranger = scene.fake.publish("open/door")
    assert [entry["path"] for entry in scene.tick().unclaimed] == ["open/door"]
    scene.tick()
    assert scene.is_connected(stranger)


@pytest.mark.parametrize("is_seen_before", [False, True])
def test_nobody_is_kicked_who_may_have_come_before_the_first_claim(make_scene, is_seen_before):
    scene = make_scene(UNKNOWN_PUBLISHERS="kick")
    scene.tick()
    stranger = scene.fake.publish("open/door")
    if is_seen_before:
        scene.tick()
    scene.active("live/a")
    scene.active("live/b")
    for _ in range(3):
        scene.tick()
    assert scene.is_connected(stranger)
    assert scene.fake.kicks == []


def test_nobody_is_kicked_who_came_while_nobody_looked(make_scene):
    scene = kicking(make_scene)
    scene.pass_time(11)
    stranger = scene.fake.publish("open/door")
    scene.tick()
    scene.tick()
    assert scene.is_connected(stranger)


def test_nobody_is_kicked_for_a_claim_of_an_earlier_run_of_the_server(make_scene):
    scene = kicking(make_scene)
    scene.fake.restart()
    scene.tick()
    rightful = [scene.fake.publish(f"live/{name}") for name in "ab"]
    stranger = scene.fake.publish("open/door")
    scene.tick()
    assert all(map(scene.is_connected, [*rightful, stranger]))
    assert scene.fake.kicks == []


def test_five_strangers_are_kicked_in_a_tick_and_the_others_in_the_next(make_scene):
    scene = kicking(make_scene)
    for number in range(6):
        scene.active(f"live/{number}")
    strangers = [scene.fake.publish(f"open/{number}") for number in range(7)]
    scene.tick()
    assert len(scene.fake.kicks) == 5
    scene.tick()
    assert sorted(scene.fake.kicks) == sorted(stranger.source_id for stranger in strangers)


@pytest.mark.parametrize("count", [2, 3])
def test_nobody_is_kicked_when_more_than_half_are_strangers(make_scene, count, caplog):
    scene = kicking(make_scene)
    strangers = [scene.fake.publish(f"open/{number}") for number in range(count)]
    scene.tick()
    assert len(scene.fake.kicks) == (2 if count == 2 else 0)
    assert any(map(scene.is_connected, strangers)) == (count == 3)
    assert ("most live publishers are unknown: none is kicked" in caplog.messages) == (count == 3)


def test_nobody_is_kicked_when_more_than_half_of_very_many_are_strangers(make_scene):
    scene = kicking(make_scene)
    claim_many(scene, scene.fake.publish_many(1000, prefix="live/known"))
    scene.tick()
    scene.fake.publish_many(1100, prefix="another/stranger")
    scene.tick()
    scene.tick()
    assert scene.fake.kicks == []


def test_very_many_strangers_hide_nobody(scene):
    """Their paths stand first in the list."""
    by_mistake, on_purpose = scene.active(), scene.active("live/other")
    scene.fake.publish_many(3000, prefix="another/stranger")
    end(scene, by_mistake, "disconnected")
    end(scene, on_purpose, "stopped")
    scene.tick()
    scene.tick()
    assert scene.is_active(by_mistake)
    assert not scene.is_connected(on_purpose)


def test_a_stranger_whose_path_is_a_key_is_shown_without_it(scene, caplog):
    value = keys.mint()
    scene.fake.publish(f"live/{value}")
    report = scene.tick()
    assert [entry["path"] for entry in report.unclaimed] == ["live/sk_[redacted]"]
    assert value not in str(scene.node().unclaimed)
    assert value not in caplog.text


def test_an_emptied_database_cuts_nobody(make_scene):
    scene = kicking(make_scene)
    before = [scene.fake.publish(f"live/{name}") for name in "ab"]
    for table in ("streams", "stream_keys", "broadcasters", "nodes"):
        scene.conn.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
    scene.tick()
    for name in "cde":  # more than half are known again
        scene.active(f"live/{name}")
    for _ in range(3):
        report = scene.tick()
    assert len(report.unclaimed) == 2
    assert all(map(scene.is_connected, before))
    assert scene.fake.kicks == []


def test_a_restored_database_cuts_nobody(make_scene):
    """It remembers the server and its last tick, and not who came since."""
    scene = kicking(make_scene)
    scene.pass_time(3600)
    newcomers = [scene.fake.publish("live/c")]
    for _ in range(3):
        scene.tick()
    assert all(map(scene.is_connected, newcomers))


def test_a_stranger_who_cannot_be_kicked_stops_no_tick(make_scene):
    scene = kicking(make_scene)
    stranger = scene.fake.publish("open/door")
    scene.fake.answer(500, route="/v3/rtmpconns/kick")
    report = scene.tick()
    assert (report.api, [entry["source_id"] for entry in report.unclaimed]) == ("ok", [stranger.source_id])
    assert msgspec.json.decode(scene.node().unclaimed) == report.unclaimed
    scene.fake.heal()
    scene.tick()
    assert not scene.is_connected(stranger)


# --- a restart of the media server --------------------------------------------------------------------------


def test_a_restart_ends_what_was_live_and_what_waited(scene):
    publisher, waiting = scene.active(), scene.pending("live/waiting")
    scene.tick()
    scene.fake.restart()
    again = scene.live("live/new")
    assert changes(scene.tick()) == [("active", "live/new"), ("server_restarted", PATH)]
    assert changes(scene.tick()) == [("never_started", "live/waiting")]
    assert scene.reason(publisher) == "server_restarted"
    assert scene.reason(waiting) == "never_started"
    assert scene.is_active(again)
    assert only(scene.conn, NODE)["started_at"].isoformat() == scene.fake.started.replace("Z", "+00:00")
    scene.fake.leave(again)
    assert changes(scene.tick()) == [("disconnected", "live/new")]


def test_a_restart_is_remembered_until_everything_was_seen(scene):
    rtmp, srt = scene.active(), scene.active("live/srt", "srt")
    scene.tick()
    scene.fake.restart()
    scene.fake.answer(500, route="/v3/srtconns")
    assert changes(scene.tick()) == [("server_restarted", PATH)]
    assert scene.is_active(srt)
    scene.fake.heal()
    assert changes(scene.tick()) == [("server_restarted", "live/srt")]
    assert scene.reason(rtmp) == "server_restarted"


@pytest.mark.parametrize(
    ("was_refused", "is_empty", "reason"),
    [(True, True, "server_restarted"), (False, True, "disconnected"), (True, False, "disconnected")],
)
def test_a_server_that_does_not_tell_when_it_started_has_restarted(make_scene, was_refused, is_empty, reason):
    """When it was refused at the tick before, and has no connection at all."""
    scene = make_scene("v1.12.3")
    publisher = scene.active()
    scene.tick()
    if was_refused:
        scene.fake.refuse()
        scene.tick()
    scene.fake.restart()
    if not is_empty:
        scene.fake.publish("live/other")
    scene.tick()
    assert scene.reason(publisher) == reason


def test_who_comes_back_after_a_restart_is_replaced_by_its_new_stream(scene):
    key = scene.make_key()
    old = scene.active(key=key)
    scene.tick()
    scene.fake.restart()
    new = scene.live(key=key, judged_gone=scene.stream(old)["id"])
    scene.tick()
    assert scene.is_active(new)
    assert scene.reason(old) == "superseded"


# --- a media server that is not there ---------------------------------------------------------------------------


def lose(scene: Scene) -> Report:
    """Refused for two ticks."""
    scene.fake.refuse()
    scene.tick()
    return scene.tick()


def test_a_server_that_is_refused_for_two_ticks_is_lost(scene):
    publisher, waiting = scene.active(), scene.pending("live/waiting")
    scene.tick()
    before = scene.version()
    scene.fake.refuse()
    report = scene.tick()
    assert (report.api, report.lost, scene.is_active(publisher)) == ("refused", 0, True)
    report = scene.tick()
    assert (report.api, report.lost) == ("refused", 2)
    assert (scene.reason(publisher), scene.reason(waiting)) == ("server_lost", "never_started")
    assert scene.version() == before + 1
    assert scene.tick().lost == 0
    assert scene.version() == before + 1
    assert scene.node().api == "refused"


def test_a_server_that_is_silent_for_fifteen_seconds_is_lost(scene):
    publisher = scene.active()
    scene.tick()
    scene.fake.answer(503)
    for _ in range(3):
        assert (scene.tick().api, scene.is_active(publisher)) == ("silent", True)
    scene.pass_time(14)
    assert scene.tick().lost == 0
    scene.pass_time(1.5)
    assert scene.tick().lost == 1
    assert scene.reason(publisher) == "server_lost"


def test_a_server_that_answers_now_and_then_is_not_lost(scene):
    publisher = scene.active()
    scene.tick()
    for _ in range(3):
        scene.fake.refuse()
        scene.tick()
        scene.pass_time(10)
        scene.fake.heal()
        scene.tick()
    assert scene.is_active(publisher)


@pytest.mark.parametrize("sign", ["claim", "start"])
def test_a_server_that_asks_or_calls_is_not_lost(scene, sign):
    publisher = scene.active()
    waiting = scene.fake.publish("live/waiting", live=False)
    scene.claim(waiting)
    scene.tick()
    scene.fake.refuse()
    scene.tick()
    if sign == "claim":
        assert scene.claim(scene.fake.publish("live/new", live=False)).outcome == "claimed"
    else:
        scene.pass_time(2)
        scene.hook_ready(waiting)
    scene.tick()
    scene.pass_time(60)
    assert scene.tick().lost == 0
    assert scene.is_active(publisher)


def test_an_end_hook_is_what_a_dying_server_sends(scene):
    publisher, leaver = scene.active(), scene.active("live/leaver")
    scene.tick()
    scene.fake.refuse()
    scene.tick()
    scene.pass_time(2)
    nodes.heard(scene.conn, "default")
    scene.hook_not_ready(leaver)
    assert scene.tick().lost == 1
    assert scene.reason(publisher) == "server_lost"


def test_a_hook_of_before_is_no_sign_of_life(scene):
    publisher = scene.active()
    nodes.heard(scene.conn, "default")
    scene.tick()
    scene.pass_time(2)
    lose(scene)
    assert scene.reason(publisher) == "server_lost"


@each_kind
def test_what_was_lost_is_opened_again_when_the_same_connections_are_there(make_scene, version, protocol):
    scene = make_scene(version)
    publisher, leaver = scene.active(protocol=protocol), scene.active("live/leaver", protocol)
    scene.tick()
    lose(scene)
    scene.fake.leave(leaver)
    scene.pass_time(1)
    scene.fake.heal()
    assert changes(scene.tick()) == [("reopened", PATH)]
    assert scene.is_active(publisher)
    assert scene.reason(leaver) == "server_lost"


def test_a_claim_that_went_live_while_the_server_was_lost_is_opened(scene):
    publisher = scene.pending()
    scene.tick()
    lose(scene)
    scene.fake.go_live(publisher)
    scene.pass_time(1)
    scene.fake.heal()
    assert changes(scene.tick()) == [("reopened", PATH)]
    assert scene.is_active(publisher)


def test_a_server_that_was_never_there_is_not_judged(scene):
    publisher, waiting = scene.active(), scene.pending("live/waiting")
    scene.fake.refuse()
    for _ in range(3):
        assert scene.tick().lost == 0
        scene.pass_time(30)
    assert scene.is_active(publisher)
    assert scene.is_pending(waiting)
    assert scene.node().api == "never"


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_does_not_accept_us_is_not_lost(scene, status):
    publisher = scene.active()
    scene.tick()
    scene.fake.answer(status)
    for _ in range(3):
        assert (scene.tick().api, scene.node().api) == ("unauthorized", "unauthorized")
        scene.pass_time(30)
    assert scene.is_active(publisher)


def test_a_server_that_did_not_accept_us_was_there(scene):
    """Once refused, then hours of 401, then refused once more: that is not two ticks in a row."""
    publisher = scene.active()
    scene.tick()
    scene.fake.refuse()
    scene.tick()
    scene.fake.heal()
    scene.fake.answer(401)
    scene.tick()
    scene.pass_time(3600)
    scene.fake.refuse()
    assert scene.tick().lost == 0
    assert scene.is_active(publisher)


def test_a_server_whose_paths_alone_do_not_answer_is_not_lost(scene):
    """Its lists have the connections: they are news, and it is there."""
    publisher = scene.active()
    scene.tick()
    scene.fake.answer(500, route="/v3/paths")
    scene.tick()
    scene.pass_time(16)
    scene.tick()
    assert scene.is_active(publisher)


def test_the_log_tells_once_that_a_server_is_away_and_back(scene, caplog):
    caplog.set_level(logging.INFO, "streamorch")
    scene.active()
    scene.tick()
    for _ in range(4):
        lose(scene)
    scene.fake.heal()
    for _ in range(3):
        scene.tick()
    told = [m for m in caplog.messages if "media server" in m]
    assert told == [
        "the media server answers",
        "the Control API of the media server cannot be asked",
        "the media server is lost",
        "the media server answers",
    ]


# --- answers that are none --------------------------------------------------------------------------------------

SEEN = {
    "rtmp": "rtmpconns",
    "rtsp": "rtspsessions",
    "srt": "srtconns",
    "webrtc": "webrtcsessions",
    "moq": "moqsessions",
}
BREAKS: dict[str, Callable[[FakeMediaMTX, str], None]] = {
    "500": lambda fake, route: fake.answer(500, b'{"error":"x"}', route=route),
    "401": lambda fake, route: fake.answer(401, route=route),
    "302": lambda fake, route: fake.answer(302, route=route, location="/v3/other"),
    "garbage": lambda fake, route: fake.answer(200, b"\x00garbage", route=route),
    "another form": lambda fake, route: fake.answer(200, b'{"items":{"a":1}}', route=route),
    "null": lambda fake, route: fake.answer(200, b'{"itemCount":0,"pageCount":0,"items":null}', route=route),
    "empty": lambda fake, route: fake.answer(200, b"", route=route),
    "half": lambda fake, route: fake.break_off(route),
    "reset": lambda fake, route: fake.reset(route),
}


@pytest.mark.parametrize(
    ("protocol", "how"), [*((protocol, "500") for protocol in SEEN), *(("rtmp", b) for b in BREAKS)]
)
def test_a_list_that_did_not_answer_is_unknown_and_not_empty(scene, protocol, how):
    live = {protocol: scene.active(f"live/{protocol}", protocol) for protocol in SEEN}
    scene.tick()
    for publisher in live.values():
        scene.fake.leave(publisher)
    route = f"/v3/{SEEN[protocol]}/list"
    BREAKS[how](scene.fake, route)
    report = scene.tick()
    assert (report.api, report.unknown) == ("ok", [protocol])
    assert scene.is_active(live[protocol])
    assert len(rows(scene.conn, OPEN)) == 1
    scene.fake.heal(route)
    assert changes(scene.tick()) == [("disconnected", f"live/{protocol}")]


@pytest.mark.parametrize("name", ["rtmpsconns", "rtspssessions", "rtspconns", "rtspsconns"])
def test_all_lists_of_a_protocol_must_have_answered(make_scene, name):
    scene = make_scene("v1.12.3")
    protocol = name[:4]
    publisher = scene.active(protocol=protocol)
    scene.tick()
    scene.fake.leave(publisher)
    scene.fake.answer(500, route=f"/v3/{name}/list")
    assert scene.tick().unknown == [protocol]
    assert scene.is_active(publisher)


def test_a_protocol_that_is_off_has_no_publishers(scene):
    publisher = scene.active(protocol="srt")
    scene.tick()
    scene.fake.leave(publisher)
    scene.fake.switch_off("srtconns")
    assert changes(scene.tick()) == [("disconnected", PATH)]


@pytest.mark.parametrize("how", BREAKS)
def test_without_the_list_of_paths_nothing_is_concluded(scene, how):
    scene.tick()
    live, leaver, gone = scene.live("live/a"), scene.active("live/b"), scene.pending("live/c")
    scene.fake.leave(leaver)
    scene.fake.leave(gone)
    BREAKS[how](scene.fake, "/v3/paths/list")
    for _ in range(3):
        report = scene.tick()
        assert (report.api, changes(report)) == ("unauthorized" if how == "401" else "silent", [])
    assert scene.is_pending(live)
    assert scene.is_active(leaver)
    assert scene.is_pending(gone)


def test_a_server_that_hangs_keeps_a_tick_no_longer_than_its_lease(scene):
    publisher = scene.active()
    scene.tick()
    scene.fake.hang()
    report = scene.tick()
    assert (report.api, report.seconds < 1.5) == ("silent", True)
    scene.fake.heal()
    for route in ("/v3/rtmp", "/v3/rtsp", "/v3/srt", "/v3/webrtc", "/v3/moq"):
        scene.fake.hang(route)
    report = scene.tick()
    assert (report.api, len(report.unknown), report.seconds < 3.5) == ("ok", 5, True)
    assert scene.is_active(publisher)


def test_a_list_that_was_laid_out_prettily_is_read(scene):
    scene.active()
    pretty = msgspec.json.format(msgspec.json.encode({"items": [msgspec.json.decode(_path_of(scene))]}), indent=2)
    scene.fake.answer(200, pretty, route="/v3/paths/list")
    assert scene.tick().live == 1


def _path_of(scene: Scene) -> bytes:
    path = scene.fake._paths[PATH].encoded(0)
    assert isinstance(path, bytes)
    return path


# --- what is no publisher ---------------------------------------------------------------------------------------


@each_version
def test_a_path_without_a_publisher_is_left_alone(make_scene, version):
    scene = make_scene(version, UNKNOWN_PUBLISHERS="kick")
    scene.fake.static("cam/static")
    scene.fake.static("cam/waiting", "rtmpSource", available=False)
    scene.fake.idle_path("cam/idle")
    scene.fake.read("cam/static", n=2)
    if version == "v1.20.1":
        scene.fake.always_available("studio")
    paths = scene.fake.config_paths
    for _ in range(2):
        report = scene.tick()
        assert (report.live, report.unclaimed, changes(report)) == (0, [], [])
        assert report.paths == len(paths)
    assert scene.fake.config_paths == paths
    assert rows(scene.conn, "SELECT id FROM streams") == []


def test_a_path_that_is_always_available_is_live_while_somebody_publishes(scene):
    scene.fake.always_available(PATH)
    publisher = scene.live()
    assert changes(scene.tick()) == [("active", PATH)]
    scene.fake.leave(publisher)
    assert changes(scene.tick()) == [("disconnected", PATH)]
    assert scene.tick().live == 0


# --- a takeover under way -----------------------------------------------------------------------------------------


def takeover(scene: Scene, key: Key | None = None) -> tuple[Publisher, Publisher]:
    """An old stream whose connection the media server has closed, and a newcomer that is not live yet."""
    scene.tick()
    key = key or scene.make_key(takeover="always")
    old = scene.active(key=key)
    scene.tick()
    new = scene.pending(key=key)
    scene.fake.leave(old)
    return old, new


@pytest.mark.parametrize("is_told", [False, True])
def test_an_old_stream_is_listed_until_its_successor_is_live(scene, is_told):
    old, new = takeover(scene)
    assert not is_told or scene.hook_not_ready(old) == "interrupted"
    for _ in range(3):
        assert changes(scene.tick()) == []
    assert scene.is_active(old)
    assert scene.stream(old)["interrupted_at"] is not None  # seen, when it is not told
    scene.fake.go_live(new)
    assert changes(scene.tick()) == [("active", PATH), ("superseded", PATH)]
    assert scene.reason(old) == "superseded"
    assert scene.is_active(new)


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("way", ["leaves", "lapses"])
def test_an_old_stream_ends_when_its_successor_comes_to_nothing(scene, is_told, way):
    old, new = takeover(scene)
    assert not is_told or scene.hook_not_ready(old) == "interrupted"
    scene.tick()
    if way == "leaves":
        scene.fake.leave(new)
        scene.tick()
    else:
        scene.pass_time(20)
    before = scene.version()
    assert changes(scene.tick()) == [("disconnected", PATH), ("never_started", PATH)]
    row = scene.stream(old)
    assert row["end_reason"] == "disconnected"
    assert row["ended_at"] == row["interrupted_at"]
    assert scene.reason(new) == "never_started"
    assert scene.version() == before + 1


@pytest.mark.parametrize("is_told", [False, True])
def test_an_encoder_that_tries_again_and_again_keeps_no_dead_stream_in_the_list(scene, is_told):
    key = scene.make_key(takeover="always")
    old, new = takeover(scene, key)
    assert not is_told or scene.hook_not_ready(old) == "interrupted"
    scene.tick()
    for _ in range(3):
        scene.fake.leave(new)
        new = scene.pending(key=key, judged_gone=scene.stream(new)["id"])
        scene.pass_time(1)
        scene.tick()
    assert scene.reason(old) == "disconnected"
    scene.fake.go_live(new)
    scene.tick()
    assert scene.is_active(new)
    assert scene.stream(old)["replaced_by"] == scene.stream(new)["id"]  # its watchers follow all the same


def test_an_interrupted_stream_that_is_live_after_all_goes_on(scene):
    scene.tick()
    key = scene.make_key(takeover="always")
    old = scene.active(key=key)
    new = scene.pending(key=key)
    assert scene.hook_not_ready(old) == "interrupted"
    scene.fake.leave(new)
    scene.pass_time(1)
    seen = [changes(scene.tick()) for _ in range(3)]
    assert seen == [[], [("never_started", PATH)], []]
    assert scene.is_active(old)


def test_an_interrupted_stream_ends_also_without_the_media_server(scene):
    old, new = takeover(scene)
    scene.hook_not_ready(old)
    scene.conn.execute("UPDATE nodes SET last_hook_at = clock_timestamp()")
    scene.fake.refuse()
    scene.tick()
    scene.pass_time(20)
    assert ("disconnected", PATH) in changes(scene.tick())
    assert not scene.is_active(old)
    assert scene.reason(new) in (None, "never_started")


def test_where_nobody_can_look_an_interrupted_stream_ends_at_once(scene):
    key = scene.make_key()
    old = scene.active(key=key)
    scene.pending(key=key)
    assert scene.hook_not_ready(old) == "ended"


# --- statistics ---------------------------------------------------------------------------------------------------


def test_viewers_are_readers_that_are_clients(scene):
    publisher = scene.active()
    scene.fake.read(PATH, "webRTCSession", 2)
    scene.fake.read(PATH, "hlsSession", 3)
    scene.fake.read(PATH, "hlsMuxer")
    scene.fake.read(PATH, "rtmpConn")
    scene.tick()
    assert scene.stats(publisher)["viewers"] == 6
    scene.fake.unread(PATH)
    scene.tick()
    assert scene.stats(publisher)["viewers"] == 0


def test_before_v1_18_viewers_of_hls_cannot_be_counted(make_scene):
    scene = make_scene("v1.12.3")
    publisher = scene.active()
    scene.fake.read(PATH, "hlsMuxer")
    scene.fake.read(PATH, "webRTCSession")
    scene.tick()
    assert scene.stats(publisher)["viewers"] == 1


@each_kind
def test_bytes_and_bitrate_are_those_of_the_connection(make_scene, version, protocol):
    scene = make_scene(version)
    publisher = scene.active(protocol=protocol)
    scene.fake.send(publisher, 50_000)
    scene.tick()
    assert (scene.stats(publisher)["bytes"], scene.stats(publisher)["bitrate"]) == (50_000, None)
    scene.fake.send(publisher, 1_000_000)
    scene.pass_time(4)
    scene.tick()
    stats = scene.stats(publisher)
    assert stats["bytes"] == 1_050_000
    assert stats["bitrate"] == pytest.approx(2_000_000, rel=0.1)


@pytest.mark.parametrize("count", [2**59, 2**63, 2**64 - 1, 10**30])
def test_a_counter_of_any_size_stops_nothing(scene, count):
    publisher = scene.active()
    scene.tick()
    scene.fake.send(publisher, count)
    scene.pass_time(2)
    assert scene.tick().api == "ok"
    assert scene.stats(publisher)["bytes"] == min(count, 2**63 - 1)


def test_media_flows_or_is_stalled_and_the_list_tells_it_once(scene):
    publishers = [scene.active(f"live/{number}") for number in range(3)]
    before = scene.version()
    scene.tick()
    assert [scene.stats(publisher)["media"] for publisher in publishers] == ["flowing"] * 3
    assert scene.version() == before + 1

    for seconds, media, more in ((1, "flowing", 0), (1, "stalled", 1), (1, "stalled", 0)):
        before = scene.version()
        scene.pass_time(seconds)
        scene.tick()
        assert [scene.stats(publisher)["media"] for publisher in publishers] == [media] * 3
        assert scene.version() == before + more

    scene.fake.send(publishers[1], 1)
    before = scene.version()
    scene.tick()
    assert [scene.stats(publisher)["media"] for publisher in publishers] == ["stalled", "flowing", "stalled"]
    assert scene.version() == before + 1


@pytest.mark.parametrize("how", ["interrupted", "connected"])
def test_a_stream_that_is_listed_and_on_no_live_path_is_stalled(scene, how):
    old, new = takeover(scene) if how == "interrupted" else (scene.active(), None)
    if how == "connected":
        scene.fake.read(PATH)
        scene.tick()
        scene.fake.leave(old)
        scene.fake.publish(PATH, connection_id=old.auth_id, live=False)
    before = scene.version()
    scene.tick()
    assert (new is None) == (how == "connected")
    assert (scene.stats(old)["media"], scene.stats(old)["viewers"], scene.stats(old)["bitrate"]) == ("stalled", 0, 0)
    after = scene.version()
    assert after > before
    scene.tick()
    assert scene.version() == after


def test_it_is_known_when_media_last_moved(scene):
    publisher = scene.active()
    read = "SELECT sampled_at, moved_at FROM stream_stats"
    scene.tick()
    scene.fake.send(publisher, 100)
    scene.tick()
    first = only(scene.conn, read)
    assert first["sampled_at"] == first["moved_at"]
    scene.tick()
    second = only(scene.conn, read)
    assert second["sampled_at"] > second["moved_at"] == first["moved_at"]


def test_more_bytes_bump_no_version(scene):
    publisher = scene.active()
    scene.fake.flow(publisher, 1_000_000)
    scene.tick()
    before = scene.version()
    for _ in range(3):
        scene.pass_time(2)
        scene.tick()
    assert scene.version() == before
    assert scene.stats(publisher)["media"] == "flowing"


def test_viewers_and_media_that_change_at_once_bump_the_version_once(scene):
    publisher = scene.active()
    scene.tick()
    scene.pass_time(2)
    scene.fake.read(PATH)
    before = scene.version()
    scene.tick()
    assert (scene.stats(publisher)["viewers"], scene.stats(publisher)["media"]) == (1, "stalled")
    assert scene.version() == before + 1


@each_version
def test_tracks_are_told_in_the_form_of_the_version(make_scene, version):
    scene = make_scene(version)
    publisher = scene.active()
    scene.tick()
    scene.tick()
    told = tracks.in_one_form(scene.stats(publisher)["tracks"])
    assert [track["codec"] for track in told] == recording(version)["paths"]["rtmp"]["tracks"]
    assert bool(told[0]["properties"]) == (version == "v1.20.1")


def test_a_list_that_did_not_answer_leaves_its_statistics_as_they_were(scene):
    publisher = scene.active()
    scene.fake.send(publisher, 100)
    scene.tick()
    before = only(scene.conn, "SELECT bytes, media, sampled_at, moved_at FROM stream_stats")
    version = scene.version()
    scene.fake.answer(500, route="/v3/rtmpconns")
    scene.tick()
    assert only(scene.conn, "SELECT bytes, media, sampled_at, moved_at FROM stream_stats") == before
    assert scene.version() == version


@pytest.mark.parametrize("how", ["refused", "unauthorized"])
def test_without_news_nothing_is_told_of_viewers_and_media(scene, how):
    publisher = scene.active()
    scene.fake.send(publisher, 100)
    scene.tick()
    before = scene.version()
    if how == "refused":
        scene.fake.refuse()
    else:
        scene.fake.answer(401)
    scene.tick()
    scene.claim(scene.fake.publish("live/new", live=False))  # so that the server is not lost
    scene.pass_time(16)
    scene.tick()
    stats = scene.stats(publisher)
    assert scene.is_active(publisher)
    assert (stats["viewers"], stats["media"], stats["bitrate"], stats["bytes"]) == (None, None, None, 100)
    assert scene.version() == before + 1
    scene.tick()
    assert scene.version() == before + 1
    scene.fake.heal()
    scene.tick()
    assert scene.stats(publisher)["viewers"] == 0


def test_of_a_stream_that_has_ended_the_bytes_are_told(scene):
    publisher = scene.active()
    scene.fake.send(publisher, 100)
    scene.tick()
    scene.hook_not_ready(publisher)
    stats = scene.stats(publisher)
    assert (stats["viewers"], stats["media"], stats["bitrate"], stats["bytes"]) == (None, None, None, 100)


def test_nothing_is_observed_of_a_stranger(scene):
    scene.fake.publish("open/door")
    scene.tick()
    scene.tick()
    assert rows(scene.conn, "SELECT stream_id FROM stream_stats") == []


# --- what somebody else has locked --------------------------------------------------------------------------------


@pytest.fixture
def locked(database_url) -> Callable[[LiteralString], AbstractContextManager[None]]:
    """Within it another session holds what this statement takes."""

    @contextmanager
    def hold(statement: LiteralString) -> Iterator[None]:
        with psycopg.connect(database_url) as other:
            assert other.execute(statement).rowcount > 0
            yield
            other.rollback()

    return hold


KEY = "SELECT 1 FROM stream_keys FOR UPDATE"
STREAM = "SELECT 1 FROM streams FOR UPDATE"
PATH_LOCK = "SELECT lock_path_v1('live/cam7')"
OLD_STREAM = "SELECT 1 FROM streams WHERE started_at IS NOT NULL FOR UPDATE"


def quick_tick(scene: Scene) -> Report:
    report = scene.tick()
    assert report.seconds < 0.5
    return report


@pytest.mark.parametrize("lock", [KEY, STREAM, PATH_LOCK])
def test_a_claim_of_which_something_is_locked_starts_at_the_next_tick(scene, locked, lock):
    publisher, other = scene.live(), scene.pending("live/other")
    with locked(lock):
        quick_tick(scene)
        assert scene.is_pending(publisher)
    scene.fake.go_live(other)
    quick_tick(scene)
    assert scene.is_active(publisher)
    assert scene.is_active(other)


def test_a_takeover_waits_for_the_old_stream(scene, locked):
    scene.tick()
    key = scene.make_key(takeover="always")
    old = scene.active("live/other", key=key)
    new, unconcerned = scene.live(key=key), scene.live("live/free")
    with locked(OLD_STREAM):
        quick_tick(scene)
        assert (scene.is_active(old), scene.is_pending(new)) == (True, True)
        assert scene.is_active(unconcerned)
    quick_tick(scene)
    assert (scene.reason(old), scene.is_active(new)) == ("superseded", True)


@pytest.mark.parametrize("lock", [KEY, STREAM, PATH_LOCK])
def test_a_stream_that_is_over_ends_as_soon_as_it_can_be_had(scene, locked, lock):
    publisher = scene.active()
    scene.tick()
    scene.fake.leave(publisher)
    with locked(lock):
        quick_tick(scene)
        assert scene.is_active(publisher) == (lock == STREAM)  # an end needs no more than its row
    quick_tick(scene)
    assert scene.reason(publisher) == "disconnected"


def test_a_claim_that_came_to_nothing_ends_as_soon_as_it_can_be_had(scene, locked):
    publisher = scene.pending()
    scene.pass_time(20)
    with locked(STREAM):
        quick_tick(scene)
        assert scene.is_pending(publisher)
    quick_tick(scene)
    assert scene.reason(publisher) == "never_started"


def test_a_lapsed_claim_that_is_live_is_not_cut_off_for_a_lock(scene, locked):
    publisher = scene.live()
    scene.pass_time(20)
    with locked(KEY):
        quick_tick(scene)
        assert scene.is_connected(publisher)
    quick_tick(scene)
    assert scene.is_active(publisher)


@pytest.mark.parametrize("lock", [KEY, STREAM])
def test_a_right_that_was_lost_is_enforced_as_soon_as_it_can_be(scene, locked, lock):
    publisher = scene.active()
    scene.conn.execute(LOST_RIGHTS[1][0])
    with locked(lock):
        quick_tick(scene)
        assert scene.is_active(publisher) == (lock == STREAM)
    quick_tick(scene)
    assert scene.reason(publisher) == "expired"
    assert not scene.is_connected(publisher)


@pytest.mark.parametrize("lock", [KEY, STREAM])
def test_statistics_wait_for_nobody(scene, locked, lock):
    publisher = scene.active()
    with locked(lock):
        quick_tick(scene)
    quick_tick(scene)
    assert scene.stats(publisher)["viewers"] == 0


@pytest.mark.parametrize("lock", [KEY, STREAM, PATH_LOCK])
def test_a_stream_that_cannot_be_had_is_opened_again_at_the_next_tick(scene, locked, lock):
    publisher, other = scene.active(), scene.active("live/other")
    end(scene, publisher, "disconnected")
    scene.fake.leave(other)
    with locked(lock):
        report = quick_tick(scene)
        assert report.api == "ok"
        assert scene.node().last_tick_at is not None
        assert scene.reason(publisher) == "disconnected"
    quick_tick(scene)
    assert scene.is_active(publisher)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_kick_waits_for_nobody(scene, locked, is_gone):
    publisher, other = scene.active(), scene.active("live/other")
    end(scene, publisher, "stopped")
    if is_gone:
        scene.conn.execute("UPDATE streams SET kick_requested_at = ended_at WHERE ended_at IS NOT NULL")
        scene.fake.leave(publisher)
    scene.fake.leave(other)
    with locked("SELECT 1 FROM streams WHERE end_reason = 'stopped' FOR UPDATE"):
        quick_tick(scene)
        assert scene.reason(other) == "disconnected"
    quick_tick(scene)
    assert scene.stats(publisher)["kick"] == "done"


def test_a_stream_of_yesterday_that_is_locked_stops_no_start(scene, locked):
    key = scene.make_key()
    old = scene.active(key=key)
    scene.fake.leave(old)
    scene.tick()
    new = scene.live(key=key)
    with locked("SELECT 1 FROM streams WHERE ended_at IS NOT NULL FOR UPDATE"):
        quick_tick(scene)
    quick_tick(scene)
    assert scene.is_active(new)


def test_a_lost_server_loses_what_can_be_had(scene, locked):
    publisher, other = scene.active(), scene.active("live/other")
    scene.tick()
    scene.fake.refuse()
    scene.tick()
    with locked("SELECT 1 FROM streams WHERE path = 'live/other' FOR UPDATE"):
        assert quick_tick(scene).lost == 1
    assert quick_tick(scene).lost == 1
    assert (scene.reason(publisher), scene.reason(other)) == ("server_lost", "server_lost")


# --- any mess -------------------------------------------------------------------------------------------------------

which = st.integers(0, 9)
key, path = st.sampled_from([0, 1, 2]), st.sampled_from([0, 1])
is_told = st.booleans()
connects = st.tuples(st.just("connect"), key, path, st.sampled_from(["rtmp", "rtsp"]), is_told, is_told)
STEPS = st.one_of(
    connects,
    connects,
    st.tuples(st.just("go_live"), which, is_told, is_told),
    st.tuples(st.just("leave"), which, is_told),
    st.tuples(st.just("hook"), which, st.booleans()),
    st.tuples(st.just("hook"), which, st.just(False)),
    st.tuples(st.just("intrude"), path),
    st.tuples(st.sampled_from(["revoke", "expire"]), key),
    st.tuples(st.just("tick")),
    st.tuples(st.just("tick")),
    st.tuples(st.just("wait"), st.sampled_from([1, 6, 21])),
    st.tuples(st.sampled_from(["restart", "lose"])),
)


class Mess:
    """Two paths, three keys, and whatever may happen to their publishers."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.keys = [scene.make_key(takeover=takeover) for takeover in ("stalled", "always", "stalled")]
        self.let_in: list[Publisher] = []  # all that ever were
        self.waiting: list[Publisher] = []
        self.live: list[Publisher] = []

    def connect(self, key: int, path: int, protocol: str, goes_live: bool, is_told: bool) -> None:
        publisher = self.scene.fake.publish(f"live/{path}", protocol, live=False)
        claim = self.scene.claim(publisher, self.keys[key])
        if claim.outcome == "stream-key-in-use" and self.is_gone(claim.rival_id):
            claim = self.scene.claim(publisher, self.keys[key], judged_gone=claim.rival_id)
        if claim.outcome != "claimed":
            self.scene.fake.leave(publisher)
            return
        self.let_in.append(publisher)
        self.waiting.append(publisher)
        if goes_live:
            self.go_live(-1, is_told, is_told)

    def is_gone(self, rival_id: object) -> bool:
        return all(
            self.scene.stream(publisher)["id"] != rival_id for publisher in self.let_in if publisher in self.connected
        )

    @property
    def connected(self) -> list[Publisher]:
        return [*self.waiting, *self.live]

    def go_live(self, number: int, is_told: bool, is_end_told: bool) -> None:
        if not self.waiting:
            return
        publisher = self.waiting.pop(number % len(self.waiting))
        if not self.is_there(publisher):
            return
        ousted = [other for other in self.live if other.path == publisher.path]
        self.scene.fake.go_live(publisher)
        self.live = [*(other for other in self.live if other.path != publisher.path), publisher]
        if is_told:
            self.scene.hook_ready(publisher)
        for other in ousted if is_end_told else ():
            self.scene.hook_not_ready(other)

    def is_there(self, publisher: Publisher) -> bool:
        """Not kicked while it waited?"""
        lists = self.scene.fake._lists
        return publisher.source_id in lists[FAKE_LISTS[publisher.protocol]]

    def leave(self, number: int, is_told: bool) -> None:
        if not self.connected:
            return
        publisher = self.connected[number % len(self.connected)]
        self.scene.fake.leave(publisher)
        if is_told and publisher in self.live:
            self.scene.hook_not_ready(publisher)
        self.waiting = [other for other in self.waiting if other is not publisher]
        self.live = [other for other in self.live if other is not publisher]

    def hook(self, number: int, is_ready: bool) -> None:
        """One that comes late, or twice, or that is wrong."""
        if self.let_in:
            publisher = self.let_in[number % len(self.let_in)]
            (self.scene.hook_ready if is_ready else self.scene.hook_not_ready)(publisher)

    def intrude(self, path: int) -> None:
        self.live = [other for other in self.live if other.path != f"live/{path}"]
        self.live.append(self.scene.fake.publish(f"live/{path}"))

    def revoke(self, key: int) -> None:
        stream_keys.revoke(self.scene.conn, self.keys[key].id)

    def expire(self, key: int) -> None:
        self.scene.conn.execute(
            "UPDATE stream_keys SET expires_at = clock_timestamp() WHERE id = %s", [self.keys[key].id]
        )

    def tick(self) -> None:
        self.scene.tick()

    def wait(self, seconds: int) -> None:
        self.scene.pass_time(seconds)

    def restart(self) -> None:
        self.scene.fake.restart()
        self.waiting, self.live = [], []

    def lose(self) -> None:
        lose(self.scene)
        self.scene.fake.heal()

    def settle(self) -> None:
        """Nobody is under way any more."""
        for publisher in self.waiting:
            self.scene.fake.leave(publisher)

    def quiet_tick(self) -> Report:
        self.scene.pass_time(1)
        return self.scene.tick()

    def assert_right(self, report: Report) -> None:
        """The table equals the media server."""
        conn = self.scene.conn
        live = {path.publisher_id for path in self.scene.api.paths(seconds=2)} - {None}
        claimed = {publisher.source_id for publisher in self.let_in}
        active = rows(conn, "SELECT source_id FROM streams WHERE ended_at IS NULL AND started_at IS NOT NULL")
        assert {row["source_id"] for row in active} == live & claimed
        assert {entry["source_id"] for entry in report.unclaimed} == live - claimed
        rights = "SELECT k.revoked_at, k.expires_at FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id"
        assert {tuple(row.values()) for row in rows(conn, rights + " WHERE s.ended_at IS NULL")} <= {(None, None)}
        assert rows(conn, "SELECT id FROM streams WHERE ended_at IS NULL AND started_at IS NULL") == []
        assert rows(conn, "SELECT id FROM streams WHERE kick_requested_at IS NOT NULL AND kicked_at IS NULL") == []
        # Nobody was closed for a mistake, unless somebody else had come in the meantime.
        cut = """
            SELECT s.id FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id
            WHERE s.kick_requested_at IS NOT NULL AND k.revoked_at IS NULL AND k.expires_at IS NULL
              AND s.end_reason IN ('disconnected', 'server_lost', 'server_restarted')
              AND NOT EXISTS (SELECT 1 FROM streams AS o WHERE o.claimed_at > s.claimed_at
                              AND (o.stream_key_id = s.stream_key_id OR o.path = s.path))
        """
        assert rows(conn, cut) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(version=st.sampled_from(["v1.20.1", "v1.12.3"]), steps=st.lists(STEPS, min_size=12, max_size=40))
def test_two_ticks_after_any_mess_the_table_equals_the_media_server(
    patient, make_settings, make_key, conn, version, steps
):
    for table in ("streams", "stream_keys", "broadcasters", "departures", "nodes"):
        conn.execute(psycopg.sql.SQL("DELETE FROM {}").format(psycopg.sql.Identifier(table)))
    forget_leader(conn)
    with FakeMediaMTX(version) as fake:
        scene = Scene(fake, patient, make_settings(MEDIAMTX_API_URL=fake.url), make_key)
        mess = Mess(scene)
        for name, *arguments in steps:
            getattr(mess, name)(*arguments)
        mess.settle()
        mess.quiet_tick()
        for _ in range(3):
            mess.assert_right(mess.quiet_tick())
        before = scene.version()
        assert changes(mess.quiet_tick()) == []
        assert scene.version() == before


def test_a_second_signal_in_the_middle_of_the_first_does_not_wait_for_it(make_settings, monkeypatch):
    reconciler = Reconciler(make_settings(), ControlAPI("http://127.0.0.1:9", user="", password=""))
    signals = []

    def interrupted() -> None:
        signals.append("set")
        reconciler.begin_to_stop()

    monkeypatch.setattr(reconciler._stopping, "set", interrupted)
    reconciler.begin_to_stop()
    assert signals == ["set"]
