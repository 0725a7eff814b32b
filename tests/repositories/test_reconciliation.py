"""Who leads, the fence around all that the reconciler writes, and its statements one by one."""

import datetime
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from streamorch import keys
from streamorch.mediamtx import LISTS
from streamorch.repositories import Connection, nodes, reconciliation, streams
from streamorch.repositories.reconciliation import Publishers
from tests.blueprints import only, rows

NODE = "default"
PATH = "live/cam7"
NOBODY = Publishers([], [], [], [])
TABLES = ("streams", "stream_stats", "nodes", "live_list")


@pytest.fixture
def lead(conn) -> Iterator[Callable[..., reconciliation.Lead | None]]:
    """Ask for the lead as `holder`; at first nobody has it."""
    conn.execute("UPDATE leaders SET holder = '', expires_at = '-infinity'")
    yield lambda holder="a", seconds=4.0, **how: reconciliation.lead(conn, holder=holder, seconds=seconds, **how)
    conn.execute("UPDATE leaders SET holder = '', expires_at = '-infinity'")


@pytest.fixture
def epoch(lead) -> int:
    """Of a lease that lasts."""
    made: int = lead(seconds=600).epoch
    return made


@pytest.fixture
def other(database_url) -> Iterator[psycopg.Connection]:
    """Another session, in a transaction."""
    with psycopg.connect(database_url) as connection:
        yield connection
        connection.rollback()


def expire(conn: Connection) -> None:
    conn.execute("UPDATE leaders SET expires_at = clock_timestamp()")


# --- the lead -------------------------------------------------------------------------------------------------


def test_one_leads_and_keeps_the_lead(conn, lead):
    before = only(conn, "SELECT epoch FROM leaders")["epoch"]
    first = lead()
    assert first.epoch == before + 1
    again = lead()
    assert again.epoch == first.epoch
    assert again.moment > first.moment
    row = only(conn, "SELECT holder, expires_at FROM leaders")
    assert row["holder"] == "a"
    assert datetime.timedelta(seconds=3.9) < row["expires_at"] - again.moment <= datetime.timedelta(seconds=4)
    assert lead("b") is None
    assert only(conn, "SELECT holder, expires_at FROM leaders") == row


def test_a_lease_that_ran_out_goes_to_who_asks_first_under_a_new_epoch(conn, lead):
    first = lead("a")
    expire(conn)
    second = lead("b")
    assert second.epoch == first.epoch + 1
    assert lead("a") is None
    expire(conn)
    assert lead("b").epoch == second.epoch + 1  # what was decided under the old one is void for itself as well


def test_a_resignation_lets_another_lead_at_once(conn, lead):
    first = lead("a")
    reconciliation.resign(conn, first.epoch - 1)  # of a time long ago
    assert lead("b") is None
    reconciliation.resign(conn, first.epoch)
    assert lead("b").epoch == first.epoch + 1
    reconciliation.resign(conn, first.epoch)
    assert lead("a") is None


def test_the_lead_can_be_taken_by_force(lead):
    first = lead("a")
    assert lead("b", force=True).epoch == first.epoch + 1
    assert lead("a") is None


def test_of_many_who_ask_at_once_one_leads(conn, lead, database_url):
    lead("a")
    expire(conn)
    start = threading.Barrier(6)
    found: list[reconciliation.Lead | None] = []

    def ask(holder: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as mine:
            start.wait()
            found.append(reconciliation.lead(mine, holder=holder, seconds=4))  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask, args=(f"holder {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lead is not None for lead in found) == 1


def test_nobody_takes_over_before_a_write_of_the_leader_is_through(conn, lead, other):
    led = lead("a")
    other.execute("SELECT leads_v1(%s)", [led.epoch])
    expired = "UPDATE leaders SET expires_at = clock_timestamp()"
    other.execute("ROLLBACK")
    conn.execute(expired.replace("clock_timestamp()", "clock_timestamp() + interval '0.2 seconds'"))
    assert other.execute("SELECT leads_v1(%s)", [led.epoch]).fetchone() == (True,)
    time.sleep(0.25)
    started = time.monotonic()
    with pytest.raises(psycopg.errors.LockNotAvailable):
        lead("b")
    assert time.monotonic() - started < 0.8
    other.rollback()
    assert lead("b").epoch == led.epoch + 1


# --- the fence ------------------------------------------------------------------------------------------------


def claim(conn: Connection, key: Any, path: str = PATH, connection_id: str = "c1", protocol: str = "rtmp") -> uuid.UUID:
    made = streams.claim(
        conn,
        key_hash=keys.digest(key.value),
        node=NODE,
        path=path,
        connection_id=connection_id,
        protocol=protocol,
        remote_address="",
        user_agent="",
        lease_seconds=20,
    )
    assert made.stream_id is not None
    return made.stream_id


def start(conn: Connection, path: str = PATH, connection_id: str = "c1") -> None:
    assert streams.start(conn, node=NODE, path=path, source_type="rtmpConn", source_id=connection_id)[0] == "active"


def publishers(*of: tuple[str, str]) -> Publishers:
    """RTMP, by id and path."""
    return Publishers([i for i, _ in of], [i for i, _ in of], [path for _, path in of], ["rtmpConn"] * len(of))


def clock(conn: Connection) -> datetime.datetime:
    moment: datetime.datetime = only(conn, "SELECT clock_timestamp() AS moment")["moment"]
    return moment


def reconcile(conn: Connection, epoch: int, **others: Any) -> reconciliation.Outcome:
    """A snapshot of now in which there is nobody, unless the others say otherwise."""
    outcome = try_to_reconcile(conn, epoch, **others)
    assert outcome is not None
    return outcome


def try_to_reconcile(conn: Connection, epoch: int, **others: Any) -> reconciliation.Outcome | None:
    """The same; None without the lead."""
    snapshot: dict[str, Any] = {
        "node": NODE,
        "snapshot_at": others.get("snapshot_at") or clock(conn),
        "present": [],
        "known": list(LISTS),
        "live": NOBODY,
        "missing_before": [],
        "restarted": False,
    }
    live = others.get("live", NOBODY)
    return reconciliation.reconcile(conn, epoch, **snapshot | {"present": live.ids} | others)


def observe(conn: Connection, epoch: int, received: int | None, **others: Any) -> None:
    seen: dict[str, Any] = {
        "sampled_at": clock(conn),
        "source_ids": ["c1"],
        "viewers": [0],
        "received": [received],
        "tracks": ["[]"],
    }
    reconciliation.observe(conn, epoch, node=NODE, **seen | others)


def answered(conn: Connection, epoch: int, **others: Any) -> None:
    news: dict[str, Any] = {"version": "v1", "started_at": None, "snapshot_at": clock(conn), "is_complete": True}
    reconciliation.answered(conn, epoch, node=NODE, **news | others)


WRITES: dict[str, tuple[Callable[[Connection, int, uuid.UUID], object], object]] = {
    "settle": (lambda conn, epoch, stream_id: reconciliation.settle(conn, epoch), None),
    "reconcile": (lambda conn, epoch, stream_id: try_to_reconcile(conn, epoch), None),
    "observe": (lambda conn, epoch, stream_id: observe(conn, epoch, 100), None),
    "reopen": (
        lambda conn, epoch, stream_id: reconciliation.reopen(
            conn, epoch, stream_id, source_type="rtmpConn", source_id="c2"
        ),
        "not-leading",
    ),
    "name rtsp session": (
        lambda conn, epoch, stream_id: reconciliation.name_rtsp_session(
            conn, epoch, node=NODE, path="live/rtsp", source_type="rtspSession", source_id="c9"
        ),
        None,
    ),
    "request kicks": (lambda conn, epoch, stream_id: reconciliation.request_kicks(conn, epoch, [stream_id]), None),
    "answered": (lambda conn, epoch, stream_id: answered(conn, epoch), None),
    "note unclaimed": (
        lambda conn, epoch, stream_id: reconciliation.note_unclaimed(conn, epoch, node=NODE, unclaimed=[{"a": 1}]),
        None,
    ),
    "failed": (
        lambda conn, epoch, stream_id: reconciliation.failed(conn, epoch, node=NODE, state="refused", is_there=False),
        None,
    ),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("way", ["succeeded", "lapsed", "resigned"])
def test_who_leads_no_more_writes_nothing(conn, lead, make_key, write, way):
    do, nothing = WRITES[write]
    expired, ended = make_key(), make_key()
    claim(conn, expired)
    start(conn)
    ended_id = claim(conn, ended, "live/ended", "c2")
    start(conn, "live/ended", "c2")
    streams.end(conn, node=NODE, path="live/ended", source_type="rtmpConn", source_id="c2")
    streams.stop(conn, claim(conn, make_key(), "live/rtsp", "c3", "rtsp"), hold_seconds=0)
    nodes.heard(conn, NODE)
    conn.execute("UPDATE stream_keys SET expires_at = clock_timestamp() WHERE id = %s", [expired.id])
    nodes.heard(conn, NODE)
    epoch = lead("a").epoch
    if way == "succeeded":
        lead("b", force=True)
    elif way == "lapsed":
        expire(conn)
    else:
        reconciliation.resign(conn, epoch)

    def table() -> list[Any]:
        return [
            rows(conn, psycopg.sql.SQL("SELECT *, xmin FROM {}").format(psycopg.sql.Identifier(name)))  # type: ignore[arg-type]
            for name in TABLES
        ]

    before = table()
    assert do(conn, epoch, ended_id) == nothing
    assert table() == before
    do(conn, lead("c", force=True).epoch, ended_id)  # while this would have written
    assert table() != before


# --- a snapshot against the table --------------------------------------------------------------------------------


def reasons(conn: Connection) -> dict[str, str | None]:
    """Of every stream, by its connection."""
    return {row["auth_id"]: row["end_reason"] for row in rows(conn, "SELECT auth_id, end_reason FROM streams")}


def test_what_began_after_the_snapshot_is_not_judged_by_it(conn, epoch, make_key):
    snapshot_at = clock(conn)
    claim(conn, make_key())
    start(conn)
    waiting = claim(conn, make_key(), "live/waiting", "c2")
    outcome = reconcile(conn, epoch, snapshot_at=snapshot_at)
    assert (outcome.changes, outcome.missing) == ([], [])
    assert reconcile(conn, epoch).missing == [waiting]
    assert reasons(conn) == {"c1": "disconnected", "c2": None}


def test_a_claim_is_missed_in_two_snapshots(conn, epoch, make_key):
    stream_id = claim(conn, make_key())
    outcome = reconcile(conn, epoch, missing_before=[uuid.uuid4()])
    assert (outcome.missing, reasons(conn)) == ([stream_id], {"c1": None})
    outcome = reconcile(conn, epoch, missing_before=outcome.missing)
    assert [(change.what, change.stream_id) for change in outcome.changes] == [("never_started", stream_id)]


@pytest.mark.parametrize(("known", "reason"), [(["srt", "rtsp"], None), ([], None), (["rtmp"], "disconnected")])
def test_of_an_unknown_protocol_nothing_ends(conn, epoch, make_key, known, reason):
    claim(conn, make_key())
    start(conn)
    waiting = claim(conn, make_key(), "live/waiting", "c2")
    outcome = reconcile(conn, epoch, known=known, missing_before=[waiting])
    assert reasons(conn) == {"c1": reason, "c2": reason and "never_started"}
    assert outcome.missing == ([] if reason is None else [waiting])


@pytest.mark.parametrize(("restarted", "reason"), [(False, "disconnected"), (True, "server_restarted")])
def test_a_restart_is_told(conn, epoch, make_key, restarted, reason):
    claim(conn, make_key())
    start(conn)
    reconcile(conn, epoch, restarted=restarted)
    assert reasons(conn) == {"c1": reason}


@pytest.mark.parametrize("protocol", ["rtmp", "srt", "rtsp"])
def test_a_kick_is_done_when_no_list_has_the_connection(conn, epoch, make_key, protocol):
    """For RTSP after ten seconds: there may be an entry of the configuration to take back."""
    streams.stop(conn, claim(conn, make_key(), protocol=protocol), hold_seconds=0)
    read = "SELECT kicked_at IS NOT NULL AS is_done FROM streams"
    reconcile(conn, epoch, present=["c1"])
    reconcile(conn, epoch, known=[])
    assert only(conn, read) == {"is_done": False}
    reconcile(conn, epoch)
    assert only(conn, read) == {"is_done": protocol != "rtsp"}
    conn.execute("UPDATE streams SET kick_requested_at = kick_requested_at - interval '11 seconds'")
    reconcile(conn, epoch)
    assert only(conn, read) == {"is_done": True}


def test_who_is_live_and_no_open_stream_is_a_stranger(conn, epoch, make_key):
    claim(conn, make_key())
    start(conn)
    claim(conn, make_key(), "live/waiting", "c2")
    live = publishers(("c1", PATH), ("c2", "live/elsewhere"), ("c3", "live/nobodys"))
    assert sorted(reconcile(conn, epoch, live=live).strangers) == ["c2", "c3"]
    found = reconciliation.strangers(
        conn, node=NODE, snapshot_at=clock(conn), source_ids=["c1", "c2", "c3"], auth_ids=["c1", "c2", "c3"]
    )
    # One that is open is about to start.
    assert [(stranger.source_id, stranger.stream_id) for stranger in found] == [("c3", None)]


def test_changes_are_counted_and_told_up_to_a_bound(conn, epoch, make_key):
    key = make_key()
    conn.execute(
        """
        WITH many AS (SELECT gen_random_uuid() AS id, number FROM generate_series(1, 300) AS number), made AS (
            INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
            SELECT id, %s, sha256(id::text::bytea), '' FROM many
        )
        INSERT INTO streams (
            id, stream_key_id, node, path, protocol, auth_id, source_id, claimed_at, lease_expires_at, started_at)
        SELECT id, id, 'default', 'live/' || number, 'rtmp', id::text, id::text, m, m, m
        FROM many, clock_timestamp() AS m
        """,
        [key.broadcaster_id],
    )
    outcome = reconcile(conn, epoch)
    assert (outcome.change_count, len(outcome.changes), outcome.more) == (300, 200, False)
    assert set(reasons(conn).values()) == {"disconnected"}


@pytest.mark.parametrize("value", ["a\nb", "\n"])
def test_a_value_with_a_line_break_is_refused(conn, epoch, value):
    with pytest.raises(ValueError, match="line break"):
        reconcile(conn, epoch, present=["c1", value])


def test_columns_may_hold_nothing_and_single_values(conn, epoch, make_key):
    stream_id = claim(conn, make_key(), protocol="rtsp")
    live = Publishers(["session"], [None], [PATH], ["rtspSession"])
    assert [change.stream_id for change in reconcile(conn, epoch, live=live).changes] == [stream_id]
    observe(conn, epoch, None, source_ids=["session"], tracks=[None])
    assert only(conn, "SELECT viewers, media, bytes, tracks FROM stream_stats") == {
        "viewers": 0,
        "media": None,
        "bytes": None,
        "tracks": None,
    }


# --- statistics ----------------------------------------------------------------------------------------------------

STATS = "SELECT viewers, media, bytes, bitrate, tracks, sampled_at, moved_at FROM stream_stats"


@pytest.fixture
def live(conn, make_key) -> uuid.UUID:
    stream_id = claim(conn, make_key())
    start(conn)
    return stream_id


def after(seconds: float) -> datetime.datetime:
    return datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


def test_samples_make_bitrate_and_media(conn, epoch, live):
    """Second, counter; then what is told: media, bitrate, and the second at which media last moved."""
    story: list[tuple[float, int | None, str, int | None, float]] = [
        (0, 1000, "flowing", None, 0),
        (2, 1000, "stalled", 0, 0),
        (4, 3000, "flowing", 8000, 4),
        (5, 3000, "flowing", 0, 4),
        (5.4, 3000, "flowing", 0, 4),
        (5.5, 3000, "stalled", 0, 4),
        (5.55, 4000, "flowing", None, 5.55),  # too soon after the last to tell
        (7.55, None, "flowing", None, 5.55),  # its list did not answer
        (9.55, 3000, "stalled", 0, 5.55),  # no counter goes back; this one has not moved on
        (11.55, 8000, "flowing", 20000, 11.55),
    ]
    for second, received, media, bitrate, moved in story:
        observe(conn, epoch, received, sampled_at=after(second))
        row = only(conn, STATS)
        assert (row["media"], row["bitrate"], row["moved_at"]) == (media, bitrate, after(moved)), second
        if received is not None:
            assert (row["bytes"], row["sampled_at"]) == (received, after(second))


def test_tracks_stay_when_they_are_not_told_again(conn, epoch, live):
    observe(conn, epoch, 1, tracks=['["H264"]'])
    observe(conn, epoch, 2, tracks=[None])
    assert only(conn, STATS)["tracks"] == '["H264"]'
    observe(conn, epoch, 3, tracks=['["AV1"]'])
    assert only(conn, STATS)["tracks"] == '["AV1"]'


def test_only_live_streams_are_observed(conn, epoch, make_key):
    claim(conn, make_key())
    observe(conn, epoch, 1)
    start(conn)
    conn.execute("UPDATE streams SET node = 'other'")
    observe(conn, epoch, 1)
    conn.execute("UPDATE streams SET node = 'default'")
    streams.end(conn, node=NODE, path=PATH, source_type="rtmpConn", source_id="c1")
    observe(conn, epoch, 1)
    assert rows(conn, STATS) == []


def test_statistics_are_not_waited_for(conn, epoch, live):
    with conn.transaction():
        observe(conn, epoch, 1)
        assert only(conn, "SHOW synchronous_commit") == {"synchronous_commit": "off"}


# --- nodes -----------------------------------------------------------------------------------------------------------


def known_of(conn: Connection) -> reconciliation.Known:
    known = reconciliation.known(conn, NODE)
    assert known is not None
    return known


def test_nothing_is_known_of_a_node_before_its_first_tick(conn, epoch):
    assert reconciliation.known(conn, NODE) is None
    snapshot_at = clock(conn)
    answered(conn, epoch, snapshot_at=snapshot_at)
    reconciliation.note_unclaimed(conn, epoch, node=NODE, unclaimed=[{"path": "x"}])
    known = known_of(conn)
    assert (known.api_state, known.last_tick_at, known.unclaimed) == ("ok", snapshot_at, [{"path": "x"}])
    assert known.last_tick_age is not None
    assert 0 <= known.last_tick_age < 5
    assert (known.started_at, known.first_claim_at) == (None, None)


def test_a_tick_that_did_not_see_everything_is_none_to_compare_with(conn, epoch):
    answered(conn, epoch, started_at=after(0))
    before = known_of(conn)
    answered(conn, epoch, started_at=after(60), is_complete=False, version="v2")
    known = known_of(conn)
    assert (
        (known.started_at, known.last_tick_at)
        == (before.started_at, before.last_tick_at)
        == (
            after(0),
            before.last_tick_at,
        )
    )
    assert nodes.every(conn, default=NODE)[0].version == "v2"
    answered(conn, epoch, started_at=after(60))
    assert known_of(conn).started_at == after(60)


def test_the_first_claim_counts_in_this_run_of_the_server(conn, epoch, make_key):
    claim(conn, make_key())
    answered(conn, epoch, started_at=after(0))
    assert known_of(conn).first_claim_at is None
    claim(conn, make_key(), "live/second", "c2")
    claim(conn, make_key(), "live/third", "c3")
    second = only(conn, "SELECT claimed_at FROM streams WHERE auth_id = 'c2'")["claimed_at"]
    answered(conn, epoch, started_at=after(0))
    assert known_of(conn).first_claim_at == second
    answered(conn, epoch, started_at=after(60))
    assert known_of(conn).first_claim_at is None


def test_an_answer_ends_what_failed(conn, epoch, live):
    answered(conn, epoch)
    reconciliation.failed(conn, epoch, node=NODE, state="refused", is_there=False)
    answered(conn, epoch)
    assert reconciliation.failed(conn, epoch, node=NODE, state="refused", is_there=False) == 0
    assert reconciliation.failed(conn, epoch, node=NODE, state="refused", is_there=False) == 1


# --- what is to be kicked ------------------------------------------------------------------------------------------


def wanted(conn: Connection, **whose: Any) -> list[str]:
    return [kick.connection_id for kick in streams.kicks(conn, node=NODE, limit=100, **whose)]


def test_kicks_are_those_of_a_stream_with_its_key_of_a_key_or_of_a_broadcaster(conn, make_key, make_broadcaster):
    owner = make_broadcaster()
    first, second, third = make_key(broadcaster_id=owner), make_key(broadcaster_id=owner), make_key()
    live = claim(conn, first, "live/1", "c1")
    start(conn, "live/1", "c1")
    newcomer = claim(conn, first, "live/1", "c2")
    claim(conn, second, "live/2", "c3")
    other = claim(conn, third, "live/3", "c4")
    assert wanted(conn) == []
    streams.stop(conn, live, hold_seconds=30)
    for key in (second, third):
        conn.execute("SELECT revoke_stream_key_v1(%s)", [key.id])
    assert sorted(wanted(conn, stream_id=live)) == sorted(wanted(conn, stream_id=newcomer)) == ["c1", "c2"]
    assert sorted(wanted(conn, stream_key_id=first.id)) == ["c1", "c2"]
    assert sorted(wanted(conn, broadcaster_id=owner)) == ["c1", "c2", "c3"]
    assert sorted(wanted(conn)) == ["c1", "c2", "c3", "c4"]
    assert wanted(conn)[-1] == "c4"  # the oldest first
    assert [kick.connection_id for kick in streams.kicks(conn, node="other", limit=9)] == []
    assert len(streams.kicks(conn, node=NODE, limit=2)) == 2
    streams.kicked(conn, other)
    assert "c4" not in wanted(conn)


def test_what_nobody_asked_to_kick_was_not_kicked(conn, live):
    streams.kicked(conn, live)
    assert only(conn, "SELECT kicked_at FROM streams")["kicked_at"] is None


def test_a_stream_that_is_open_is_not_to_be_kicked(conn, epoch, live):
    reconciliation.request_kicks(conn, epoch, [live])
    assert wanted(conn) == []


def test_a_kick_that_was_done_can_be_asked_for_again(conn, epoch, live):
    streams.stop(conn, live, hold_seconds=0)
    asked_at = only(conn, "SELECT kick_requested_at FROM streams")["kick_requested_at"]
    streams.kicked(conn, live)
    reconciliation.request_kicks(conn, epoch, [live])
    assert wanted(conn) == ["c1"]
    assert only(conn, "SELECT kick_requested_at FROM streams")["kick_requested_at"] == asked_at


# --- a stream is opened again ---------------------------------------------------------------------------------------


def test_a_stream_that_is_open_cannot_be_opened_again(conn, epoch, live):
    before = only(conn, "SELECT *, xmin FROM streams")
    assert reconciliation.reopen(conn, epoch, live, source_type="rtmpConn", source_id="c1") == "open"
    assert only(conn, "SELECT *, xmin FROM streams") == before


def test_a_stream_that_is_opened_again_is_as_if_it_had_never_ended(conn, epoch, live):
    was = only(conn, "SELECT * FROM streams")
    streams.end(conn, node=NODE, path=PATH, source_type="rtmpConn", source_id="c1")
    conn.execute("UPDATE streams SET interrupted_at = ended_at, kick_requested_at = ended_at, kicked_at = ended_at")
    assert reconciliation.reopen(conn, epoch, live, source_type="rtmpConn", source_id="c1") == "reopened"
    assert only(conn, "SELECT * FROM streams") == was
