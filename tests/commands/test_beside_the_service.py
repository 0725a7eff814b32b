"""Commands beside the running service: it cuts off what they take back, and they outlive its database."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.fake_mediamtx import FakeMediaMTX
from tests.running import ROOT, Service
from tests.test_run import Program

pytestmark = pytest.mark.slow

PATIENCE = 30


@pytest.fixture(scope="module")
def media() -> Iterator[FakeMediaMTX]:
    with FakeMediaMTX() as fake:
        yield fake


@pytest.fixture(scope="module")
def service(media: FakeMediaMTX) -> Iterator[Service]:
    running = Service(Path(tempfile.mkdtemp(prefix="streamorch-shell-")), MEDIAMTX_API_URL=media.url)
    media.callback_url = running.url
    yield running
    running.close()


@pytest.fixture
def shell(service: Service) -> Callable[..., str]:
    """Runs `streamorch` in a process of its own, and gives what it prints."""

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "streamorch", *arguments],
            cwd=ROOT,
            env=service.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def until(done: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Live:
    """A publisher that is live, by keys made from the shell."""

    def __init__(self, shell: Callable[..., str], media: FakeMediaMTX):
        self.path = f"live/{uuid.uuid4().hex[:8]}"
        self.broadcaster_id = shell("broadcasters", "create", "Boat 3").strip()
        key = json.loads(shell("keys", "create", self.broadcaster_id, "--path", self.path, "--json"))
        self.key_id = key["id"]
        self.publisher = media.publish(self.path, live=False, bytes_per_second=100_000)
        assert media.ask(self.publisher, key["key_value"]) == 200
        media.go_live(self.publisher)
        assert media.hook_ready(self.publisher) == 204
        (stream,) = json.loads(shell("streams", "--path", self.path, "--json"))["streams"]
        self.stream_id = stream["id"]


@pytest.mark.parametrize(
    "command",
    [
        "keys revoke {0.key_id}",
        "keys disable {0.key_id}",
        "broadcasters disable {0.broadcaster_id}",
        "broadcasters delete --yes {0.broadcaster_id}",
        "streams stop {0.stream_id}",
    ],
)
def test_the_service_cuts_off_what_a_command_takes_back(command, shell, media):
    live = Live(shell, media)
    shell(*command.format(live).split())
    began = time.monotonic()
    until(lambda: live.publisher.source_id in media.kicks)
    # Two seconds, and a machine that has other things to do.
    assert time.monotonic() - began < 10
    until(lambda: json.loads(shell("streams", "show", live.stream_id, "--json"))["kick"] == "done")


class Tail(Program):
    """`streamorch tail --json`."""

    def __init__(self, service: Service):
        super().__init__("tail", "--json", cwd=ROOT, **service.environ)
        self.told = 0

    def next(self, count: int) -> list[dict[str, Any]]:
        """The next events."""
        until(lambda: len(self.lines) >= self.told + count)
        lines = self.lines[self.told : self.told + count]
        self.told += count
        return [json.loads(line) for line in lines]


@pytest.fixture
def tail(service: Service, shell: Callable[..., str], media: FakeMediaMTX) -> Iterator[Tail]:
    """One that is looking already: it has told of a claim that was made after it had begun."""
    tail = Tail(service)
    try:
        last = ""
        while not any('"ended"' in line and last in line for line in tail.lines):
            last = Live(shell, media).stream_id
            shell("streams", "stop", last)
            time.sleep(2)
        tail.told = len(tail.lines)
        yield tail
    finally:
        tail.process.kill()
        tail.exit_code()


def test_tail_tells_a_life_as_it_happens(tail, service, shell, media):
    live = Live(shell, media)
    told = tail.next(2)
    assert [(event["event"], event["stream"]["path"]) for event in told] == [
        ("claimed", live.path),
        ("live", live.path),
    ]
    listed = json.loads(shell("streams", "--path", live.path, "--json"))["streams"][0]
    assert told[1]["stream"].keys() == listed.keys()
    shell("keys", "revoke", live.key_id)
    (end,) = tail.next(1)
    assert (end["event"], end["reason"], end["stream"]["id"]) == ("ended", "revoked", live.stream_id)
    assert (tail.end(signal.SIGINT), tail.error_lines) == (0, [])


def test_tail_waits_for_a_database_that_is_away(tail, service, shell, media):
    postmaster = service.postmaster()
    os.kill(postmaster, signal.SIGQUIT)
    tail.wait_for("does not answer, and is waited for")
    until(lambda: not Path(f"/proc/{postmaster}").exists())
    service.start_database()
    tail.wait_for("the database answers again")
    service.wait_until_up()
    live = Live(shell, media)
    assert [event["stream"]["path"] for event in tail.next(2)] == [live.path] * 2
    assert tail.end(signal.SIGINT) == 0
    assert len(tail.error_lines) == 2


def test_the_shell_completes_commands_and_ids(service, shell, media):
    live = Live(shell, media)

    def completed(words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "streamorch"],
            cwd=ROOT,
            env=service.environ
            | {"_STREAMORCH_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert "keys" in completed("streamorch ke")
    assert "hold" in completed("streamorch keys ho")
    assert "--broadcaster" in completed("streamorch streams --ended --bro")
    assert completed(f"streamorch streams stop {live.stream_id[:8]}") == ["plain", live.stream_id, live.path]
    assert live.broadcaster_id in completed(f"streamorch broadcasters disable {live.broadcaster_id[:4]}")
    assert live.key_id in completed(f"streamorch keys revoke {live.key_id[:4]}")
    client = json.loads(shell("clients", "create", "Watch page", "--json"))["id"]
    assert completed(f"streamorch clients revoke {client}") == ["plain", client, "Watch page"]


def test_an_api_client_that_a_command_revokes_is_out_in_every_worker(service, shell):
    made = json.loads(shell("clients", "create", "Stage", "--scope", "operate", "--json"))

    def statuses() -> set[int]:
        headers = {"X-API-Key": made["secret"]}
        # Each on a connection of its own, which any worker may take.
        return {
            requests.get(f"{service.url}/streams", headers=headers, timeout=PATIENCE).status_code for _ in range(20)
        }

    assert statuses() == {200}
    until(lambda: json.loads(shell("clients", made["id"], "--json"))["last_used_at"])
    shell("clients", "revoke", made["id"])
    until(lambda: statuses() == {401})
