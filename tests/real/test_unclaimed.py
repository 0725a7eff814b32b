"""Publishers that MediaMTX let in without asking: reported, left alone, closed only when that is wanted and certain."""

import psycopg
import pytest

from tests.real.conftest import Measured
from tests.real.world import World, throughout, until

pytestmark = [pytest.mark.mediamtx, pytest.mark.slow]

OPEN_PATH = "open/door"


def test_a_publisher_that_nobody_claimed_is_reported_and_left_alone(
    world: World, protocol: str, measured: Measured
) -> None:
    with world.admitting_all_at(OPEN_PATH):
        intruder = world.encoder(protocol, world.api.key(path=OPEN_PATH))
        until(lambda: OPEN_PATH in world.media.publishers(), 15, "the intruder publishes")
        source_id = world.media.publishers()[OPEN_PATH]
        measured["reported"] = until(lambda: world.api.unclaimed() == {OPEN_PATH: source_id}, 5, "it is reported")
        throughout(lambda: intruder.is_running, 5, "it is left alone")
        assert world.media.publishers()[OPEN_PATH] == source_id
        assert world.api("GET", "/streams")["streams"] == []
        intruder.stop()
        measured["forgotten"] = until(lambda: world.api.unclaimed() == {}, 5, "it is reported no more")


def test_a_publisher_that_nobody_claimed_is_closed_when_that_is_wanted(
    world: World, protocol: str, measured: Measured
) -> None:
    with world.admitting_all_at(OPEN_PATH), world.setting(UNKNOWN_PUBLISHERS="kick"):
        rightful = [world.live(protocol) for _ in range(2)]
        until(lambda: all(world.media_flows(key) for key, _, _ in rightful), 6, "the reconciler saw them")
        intruder = world.encoder(protocol, world.api.key(path=OPEN_PATH))
        until(lambda: OPEN_PATH in world.media.publishers(), 15, "the intruder publishes")
        if protocol == "rtsp" and world.binary.number < (1, 11, 0):
            # There is no telling here which connection of RTSP is whose: it is reported alone.
            throughout(lambda: OPEN_PATH in world.media.publishers(), 6, "nobody is closed on a guess")
        else:
            measured["closed"] = until(lambda: OPEN_PATH not in world.media.publishers(), 6, "it is closed")
            until(lambda: not intruder.is_running, 10 if protocol != "whip" else 40, "its encoder gives up")
        assert all(encoder.is_running for _, encoder, _ in rightful)
        assert all(world.api.live_ids(key) == [stream["id"]] for key, _, stream in rightful)


def test_an_emptied_database_cuts_nobody(world: World, protocol: str) -> None:
    with world.setting(UNKNOWN_PUBLISHERS="kick"):
        before = [world.live(protocol) for _ in range(2)]
        sources = {key.path: stream["source_id"] for key, _, stream in before}
        with psycopg.connect(world.service.database_url, autocommit=True) as conn:
            conn.execute(
                "DELETE FROM streams; DELETE FROM stream_keys; DELETE FROM broadcasters; DELETE FROM departures;"
                " DELETE FROM nodes"
            )
        # Those who come now are known, and more than those who are not.
        after = [world.live(protocol) for _ in range(3)]
        until(lambda: world.api.unclaimed() == sources, 6, "they are reported")
        throughout(lambda: sources.items() <= world.media.publishers().items(), 8, "nobody is cut off")
        assert all(encoder.is_running for _, encoder, _ in before + after)
        assert all(len(world.api.live(key)) == 1 for key, _, _ in after)
