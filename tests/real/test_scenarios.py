"""What may happen to one publisher, with a real MediaMTX and a real encoder: every protocol, every version found."""

import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import requests

from tests.real.conftest import Measured
from tests.real.world import Key, World, throughout, until

pytestmark = [pytest.mark.mediamtx, pytest.mark.slow]

# How long MediaMTX takes to miss an encoder whose process was killed.
MISSED_AFTER = {"rtmp": 0, "rtsp": 0, "srt": 10, "whip": 31}
# An encoder takes up to so long to give up when it is refused (MediaMTX lets it wait for up to 4 s).
REFUSED_WITHIN = 15


def plays_by_rtsp(url: str) -> bool:
    """Does ffprobe find moving pictures there?"""
    probe = ["ffprobe", "-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_type", "-of", "csv=p=0"]
    try:
        found = subprocess.run([*probe, url], capture_output=True, text=True, check=False, timeout=15)
    except subprocess.TimeoutExpired:
        return False
    return found.stdout.strip() == "video"


def has_playlist(url: str) -> bool:
    """Does HLS answer 200 there, wherever it redirects to?"""
    with requests.Session() as player:
        reply = player.get(url, timeout=15)
    return reply.status_code == 200 and reply.text.startswith("#EXTM3U")


def is_out(world: World, key: Key) -> Callable[[], bool]:
    """The condition that nobody publishes with this key, in the list or in MediaMTX."""
    return lambda: not world.api.live(key) and key.path not in world.media.publishers()


def assert_refused(world: World, protocol: str, key: Key) -> None:
    """A new encoder with this key gives up, and there was never a stream."""
    before = world.api.live_ids(key)
    newcomer = world.encoder(protocol, key)
    until(lambda: not newcomer.is_running, REFUSED_WITHIN, "the encoder gives up")
    assert newcomer.wait(0) != 0
    assert world.api.live_ids(key) == before


def test_a_publisher_is_live_and_its_urls_play(world: World, protocol: str, measured: Measured) -> None:
    key = world.api.key()
    world.encoder(protocol, key)
    measured["live"] = until(lambda: world.api.live(key), 15, "live")
    (stream,) = world.api.live(key)
    measured["from auth to live"] = (
        datetime.fromisoformat(stream["started_at"]) - datetime.fromisoformat(stream["claimed_at"])
    ).total_seconds()
    assert stream["path"] == key.path
    assert world.media.publishers()[key.path] == stream["source_id"]
    measured["rtsp plays"] = until(lambda: plays_by_rtsp(stream["urls"]["rtsp"]), 15, "RTSP plays")
    measured["hls plays"] = until(lambda: has_playlist(stream["urls"]["hls"]), 15, "HLS has a playlist")
    measured["media known"] = until(lambda: world.media_flows(key), 5, "media flows")
    shown = world.api.stream(stream["id"])
    assert shown["tracks"][0]["codec"] == "H264"
    assert shown["bytes"] > 0


def test_a_wrong_key_is_refused(world: World, protocol: str) -> None:
    key = world.api.key()
    assert_refused(world, protocol, key.forged())
    assert world.api.history(key) == []
    assert is_out(world, key)()


def test_a_second_encoder_is_refused_and_the_first_goes_on(world: World, protocol: str, measured: Measured) -> None:
    key, first, stream = world.live(protocol)
    with world.api.watching(key) as seen:
        second = world.encoder(protocol, key)
        measured["refused"] = until(lambda: not second.is_running, REFUSED_WITHIN, "the second encoder gives up")
        throughout(lambda: first.is_running, 1, "the first encoder goes on")
    assert second.wait(0) != 0
    assert seen == [[stream["id"]]]
    before = world.api.stream(stream["id"])["bytes"] or 0
    until(lambda: world.api.stream(stream["id"])["bytes"] > before, 5, "its bytes grow")
    assert len(world.api.history(key)) == 1


def test_a_newcomer_takes_the_place_of_a_frozen_encoder(world: World, protocol: str, measured: Measured) -> None:
    key, frozen, old = world.live(protocol)
    until(lambda: world.media_flows(key), 5, "media flows")
    with world.api.watching(key) as seen:
        frozen.freeze()
        newcomer = world.encoder(protocol, key)
        measured["taken over"] = world.comes_live(key, besides=old["id"], seconds=12)
        new_id = world.api.live_ids(key)[0]
        frozen.thaw()
        throughout(lambda: newcomer.is_running, 3, "the newcomer goes on")
    assert seen == [[old["id"]], [new_id]]
    ended = world.api.stream(old["id"])
    assert (ended["end_reason"], ended["replaced_by"]) == ("superseded", new_id)


def test_a_killed_encoder_is_missed_in_time_and_comes_back_at_once(
    world: World, protocol: str, measured: Measured
) -> None:
    key, first, old = world.live(protocol)
    first.kill()
    second = world.encoder(protocol, key)
    measured["back"] = world.comes_live(key, besides=old["id"], seconds=12)
    assert world.api.stream(old["id"])["end_reason"] in ("disconnected", "superseded")
    second.kill()
    measured["missed"] = until(lambda: not world.api.live(key), MISSED_AFTER[protocol] + 5, "the list is right")
    assert world.api.history(key)[0]["end_reason"] == "disconnected"
    assert is_out(world, key)()


def test_a_revoked_key_is_cut_off_while_live(world: World, protocol: str, measured: Measured) -> None:
    key, _, stream = world.live(protocol)
    neighbour, neighbours, _ = world.live(protocol)
    connections = {world.claim(key), stream["source_id"]}
    measured["gone"] = gone_after = until_gone(world, protocol, key, connections, lambda: world.api.revoke(key))
    assert gone_after < 1
    assert world.api.live(key) == []
    assert world.api.stream(stream["id"])["end_reason"] == "revoked"
    assert_refused(world, protocol, key)
    throughout(is_out(world, key), 1, "it stays out")
    until(lambda: world.api.stream(stream["id"])["kick"] == "done", 5, "the kick is done")
    assert world.media.entries() == ["all_others"]
    assert neighbours.is_running
    assert len(world.api.live(neighbour)) == 1


def until_gone(world: World, protocol: str, key: Key, connections: set[str], act: Callable[[], None]) -> float:
    """Do it; returns after how long MediaMTX has none of these connections any more, and no publisher of the path."""
    began = time.monotonic()
    act()
    until(
        lambda: key.path not in world.media.publishers() and not connections & world.media.connections(protocol),
        6,
        "gone from MediaMTX",
    )
    return time.monotonic() - began


def test_a_key_revoked_while_its_claim_is_pending_never_gets_live(
    world: World, protocol: str, measured: Measured
) -> None:
    key = world.api.key()
    encoder = world.encoder(protocol, key)
    with world.api.watching(key) as seen:
        connections = {world.claim(key)}
        measured["gone"] = gone_after = until_gone(world, protocol, key, connections, lambda: world.api.revoke(key))
        throughout(is_out(world, key), 4, "it stays out")
    (stream,) = world.api.history(key)
    assert stream["end_reason"] == "revoked"
    if stream["started_at"] is None:
        measured.remark("was pending")
        assert seen == [[]]
    else:  # too late: the window of this protocol is short
        measured.remark("was live")
    if protocol != "rtsp":
        assert gone_after < 1
    until(lambda: not encoder.is_running, REFUSED_WITHIN, "the encoder gives up")
    assert world.media.entries() == ["all_others"]


def test_a_key_revoked_before_its_start_is_known_is_cut_off(world: World, protocol: str, measured: Measured) -> None:
    """Live in MediaMTX, pending here: no hook told of it, and the reconciler may not have seen it yet."""
    with world.without_hooks():
        key = world.api.key()
        encoder = world.encoder(protocol, key)
        connections = {world.claim(key)}
        until(lambda: key.path in world.media.publishers(), 15, "media flows")
        connections.add(world.media.publishers()[key.path])
        measured["gone"] = until_gone(world, protocol, key, connections, lambda: world.api.revoke(key))
        throughout(is_out(world, key), 3, "it stays out")
        (stream,) = world.api.history(key)
        assert stream["end_reason"] == "revoked"
        measured.remark("was live" if stream["started_at"] else "was pending")
        until(lambda: not encoder.is_running, REFUSED_WITHIN, "the encoder gives up")
        assert world.api.unclaimed() == {}
    assert world.media.entries() == ["all_others"]


def test_a_stopped_stream_stays_out_until_its_hold_is_lifted(world: World, protocol: str, measured: Measured) -> None:
    key, _, stream = world.live(protocol)
    measured["gone"] = until_gone(world, protocol, key, {stream["source_id"]}, lambda: world.api.stop(stream["id"]))
    assert world.api.stream(stream["id"])["end_reason"] == "stopped"
    assert_refused(world, protocol, key)
    throughout(is_out(world, key), 1, "it stays out")
    world.api.change_key(key, hold_until=None)
    world.encoder(protocol, key)
    measured["back"] = world.comes_live(key, besides=stream["id"], seconds=10)


def test_an_expired_key_is_cut_off(world: World, protocol: str, measured: Measured) -> None:
    key, _, stream = world.live(protocol)
    expires_at = datetime.now(UTC) + timedelta(seconds=3)
    world.api.change_key(key, expires_at=expires_at.isoformat())
    until(is_out(world, key), 8, "cut off")
    measured["cut off"] = (datetime.now(UTC) - expires_at).total_seconds()
    assert world.api.stream(stream["id"])["end_reason"] == "expired"
    assert_refused(world, protocol, key)


def test_without_hooks_the_list_is_right_within_five_seconds(world: World, protocol: str, measured: Measured) -> None:
    with world.without_hooks():
        key = world.api.key()
        encoder = world.encoder(protocol, key)
        until(lambda: key.path in world.media.publishers(), 15, "media flows")
        measured["live"] = until(lambda: world.api.live(key), 5, "live")
        (stream,) = world.api.live(key)
        assert world.media.publishers()[key.path] == stream["source_id"]
        with Watcher(stream["urls"]["rtsp"], "-rtsp_transport", "tcp"), Watcher(stream["urls"]["hls"]):
            viewers = 2 if world.binary.number >= (1, 18, 0) else 1  # before, viewers of HLS are nobody's session
            measured["viewers"] = until(lambda: world.api.live(key)[0]["viewers"] == viewers, 12, "viewers are counted")
        encoder.stop()
        until(lambda: key.path not in world.media.publishers(), 3, "MediaMTX knows the end")
        measured["ended"] = until(lambda: not world.api.live(key), 5, "ended")
        assert world.api.stream(stream["id"])["end_reason"] == "disconnected"


class Watcher:
    """Somebody who looks at a stream, as long as the block lasts."""

    def __init__(self, url: str, *options: str):
        self.command = ["ffmpeg", "-v", "error", *options, "-i", url, "-c", "copy", "-f", "null", "-"]

    def __enter__(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
