"""One of the three programs dies under live streams of every protocol; soon after the list is right again."""

import os
import signal
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import requests

from tests.real.conftest import Measured
from tests.real.world import Encoder, Key, World, until

pytestmark = [pytest.mark.mediamtx, pytest.mark.slow]

Live = dict[str, tuple[Key, Encoder, dict[str, Any]]]


def all_live(world: World, protocols: tuple[str, ...]) -> Live:
    """One stream of every protocol, each seen by the reconciler."""
    live = {protocol: world.live(protocol) for protocol in protocols}
    for key, _, _ in live.values():
        until(partial(world.media_flows, key), 6, "media flows")
    return live


def assert_untouched(world: World, live: Live, *, seconds: float) -> None:
    """For so long: each is the stream that it was, and its encoder never noticed."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        assert_untouched_now(world, live)
        time.sleep(0.2)


def assert_untouched_now(world: World, live: Live) -> None:
    for protocol, (key, encoder, stream) in live.items():
        assert encoder.is_running, protocol
        assert world.api.live_ids(key) == [stream["id"]], protocol
        assert len(world.api.history(key)) == 1, protocol
        assert world.media.publishers()[key.path] == stream["source_id"], protocol


def test_a_restart_of_streamorch_leaves_live_streams_alone(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    before = {protocol: world.api.stream(stream["id"])["bytes"] for protocol, (_, _, stream) in live.items()}
    began = time.monotonic()
    world.service.stop()
    stopped_at = datetime.now(UTC)
    world.service.start()
    measured["away"] = time.monotonic() - began
    measured["reconciler back"] = until(lambda: world.api.has_ticked_since(stopped_at), 5, "the reconciler goes on")
    assert_untouched(world, live, seconds=7)
    for protocol, (_, _, stream) in live.items():
        assert world.api.stream(stream["id"])["bytes"] > before[protocol]


def test_a_killed_streamorch_leaves_live_streams_alone_and_learns_what_it_missed(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    leaver, leaving, stream = live.pop("rtmp")
    for pid in (world.service.process.pid, *world.service.workers()):
        os.kill(pid, signal.SIGKILL)
    world.service.process.wait(10)
    leaving.stop()
    time.sleep(4)  # its hook is tried in vain, again and again
    world.service.start()
    measured["learnt"] = until(lambda: not world.api.live(leaver), 6, "the end that it missed is known")
    assert world.api.stream(stream["id"])["end_reason"] == "disconnected"
    assert_untouched(world, live, seconds=5)


def come_back(world: World, live: Live) -> dict[str, float]:
    """Every encoder connects again, as each does by itself; how long each took to be live."""
    for _, encoder, _ in live.values():
        encoder.kill()
    for protocol, (key, _, _) in live.items():
        world.encoder(protocol, key)
    began = time.monotonic()
    took: dict[str, float] = {}
    while len(took) < len(live):
        assert time.monotonic() - began < 15, f"only {sorted(took)} came back"
        for protocol, (key, _, stream) in live.items():
            if protocol not in took and stream["id"] not in (ids := world.api.live_ids(key)) and ids:
                took[protocol] = time.monotonic() - began
    return took


def test_streams_come_back_at_once_when_mediamtx_was_killed_and_is_back(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    world.media.kill()
    world.media.start()
    for protocol, seconds in come_back(world, live).items():
        measured[protocol] = seconds
    for key, _, stream in live.values():
        assert world.api.stream(stream["id"])["end_reason"] in ("superseded", "server_restarted", "disconnected")
        assert len(world.api.history(key)) == 2


def test_streams_end_when_mediamtx_was_killed_and_nobody_comes_back(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    world.media.kill()
    world.media.start()
    measured["ended"] = until(lambda: not any(world.api.live(key) for key, _, _ in live.values()), 5, "all ended")
    # Before v1.15.2 the server does not tell when it was started.
    allowed = {"server_restarted"} if world.binary.number >= (1, 15, 2) else {"server_restarted", "disconnected"}
    assert {world.api.stream(stream["id"])["end_reason"] for _, _, stream in live.values()} <= allowed


def test_streams_are_lost_with_a_mediamtx_that_stays_away(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    world.media.kill()
    measured["lost"] = until(lambda: not any(world.api.live(key) for key, _, _ in live.values()), 10, "all are lost")
    assert {world.api.stream(stream["id"])["end_reason"] for _, _, stream in live.values()} == {"server_lost"}
    world.media.start()
    for protocol, seconds in come_back(world, live).items():
        measured[protocol] = seconds


def test_a_restart_of_postgresql_loses_and_cuts_no_live_stream(
    world: World, protocols: tuple[str, ...], measured: Measured
) -> None:
    live = all_live(world, protocols)
    os.kill(world.service.postmaster(), signal.SIGINT)
    time.sleep(4)
    world.service.start_database()
    measured["list back"] = until(lambda: list_is_fresh(world), 5, "the list is fresh")
    assert_untouched(world, live, seconds=8)
    newcomer, _, _ = world.live("rtmp")
    assert len(world.api.live(newcomer)) == 1


def list_is_fresh(world: World) -> bool:
    """Is there a live list again, and not an old one?"""
    try:
        return not world.api("GET", "/streams")["stale"]
    except requests.HTTPError:
        return False
