"""The Control API refused, silent, broken and wrong, while an encoder comes back, a stream is stopped, and at a tick.

Whatever it answers: nothing that is live and rightful is ended or closed, no question is answered late, and what is to
be closed is closed when the media server is well again.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import requests

from tests.fake_mediamtx import FakeMediaMTX, Publisher
from tests.faults.crowd import BEARER, SECONDS, hold_log, make_keys, wait_until
from tests.running import Service

pytestmark = pytest.mark.slow

HUGE = json.dumps({"itemCount": 200_000, "pageCount": 1, "items": [{"id": str(uuid.uuid4())}] * 200_000}).encode()

FAULTS: dict[str, Callable[[FakeMediaMTX], None]] = {
    "refused": lambda fake: fake.refuse(),
    "silent": lambda fake: fake.hang(),
    "500": lambda fake: fake.answer(500, b'{"status":"error","error":"out of order"}'),
    "401": lambda fake: fake.answer(401, b'{"status":"error","error":"authentication error"}'),
    "half a body": lambda fake: fake.break_off(),
    "reset": lambda fake: fake.reset(),
    "dripping": lambda fake: fake.drip(0.2),
    "dripping head": lambda fake: fake.drip(0.2, head=True),
    "redirected": lambda fake: fake.answer(302, location="http://127.0.0.1:9/"),
    "garbage": lambda fake: fake.answer(200, b"{\xff garbage"),
    "a list that is none": lambda fake: fake.answer(200, b'{"items": null}'),
    "empty objects": lambda fake: fake.answer(200, b"{}"),
    "a huge list of others": lambda fake: fake.answer(200, HUGE),
}
# What it was asked it does all the same.
DONE_ALL_THE_SAME = ("half a body", "reset", "dripping", "dripping head")
# A claim without a conflict, and one that has to look (2.8 s), with room for a busy machine.
SOON, LOOKED = 2.0, 5.0


class Stage(NamedTuple):
    service: Service
    fake: FakeMediaMTX


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with FakeMediaMTX() as fake:
        service = Service(
            Path(tempfile.mkdtemp(prefix="streamorch-fault-")), MEDIAMTX_API_URL=fake.url, RECONCILE_SECONDS="1"
        )
        fake.callback_url = service.url
        yield Stage(service, fake)
        fake.heal()
        service.close()


def streams(service: Service) -> list[dict[str, Any]]:
    answer = requests.get(f"{service.url}/streams", headers=BEARER, timeout=10)
    assert answer.status_code == 200
    assert not answer.json()["stale"]
    found: list[dict[str, Any]] = answer.json()["streams"]
    return found


def listed(service: Service) -> dict[str, dict[str, Any]]:
    return {stream["source_id"]: stream for stream in streams(service)}


def ask(fake: FakeMediaMTX, publisher: Publisher, key: str, *, within: float) -> int:
    begun = time.monotonic()
    status = fake.ask(publisher, key)
    assert time.monotonic() - begun < within
    return status


def go_live(stage: Stage, key: str, path: str) -> Publisher:
    publisher = stage.fake.publish(path, live=False, bytes_per_second=100_000)
    assert stage.fake.ask(publisher, key) == 200
    stage.fake.go_live(publisher)
    assert stage.fake.hook_ready(publisher) == 204
    return publisher


@pytest.fixture(autouse=True)
def well_again(stage: Stage) -> Iterator[None]:
    yield
    stage.fake.heal()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_control_api_that_fails(stage: Stage, fault: str) -> None:
    service, fake = stage
    workers = service.workers()
    service.log.write_text("")
    fake.forget_calls()
    mark = uuid.uuid4().hex[:8]
    rightful_key, stopped_key, *others = make_keys(service.database_url, 30)
    rightful = go_live(stage, rightful_key, f"live/{mark}-rightful")
    stopped = go_live(stage, stopped_key, f"live/{mark}-stopped")
    wait_until(lambda: listed(service).get(rightful.source_id, {}).get("media") == "flowing")
    stopped_id = listed(service)[stopped.source_id]["id"]

    FAULTS[fault](fake)
    broken_at = time.monotonic()
    # An encoder with the key of a live stream: on the news of a moment ago, that one is alive.
    rival = fake.publish(f"live/{mark}-rightful", live=False)
    refused = ask(fake, rival, rightful_key, within=LOOKED)
    fake.leave(rival)
    assert refused == 401
    begun = time.monotonic()
    ended = requests.delete(f"{service.url}/streams/{stopped_id}", headers=BEARER, timeout=10)
    assert ended.status_code == 204
    assert time.monotonic() - begun < SOON
    # Others come and go, so that the media server is known not to be lost.
    number = 0
    while time.monotonic() < broken_at + 1 + SECONDS:
        other = fake.publish(f"live/{mark}-{number}", live=False)
        assert ask(fake, other, others[number % len(others)], within=SOON) == 200
        fake.go_live(other)
        assert fake.hook_ready(other) == 204
        fake.leave(other)
        assert fake.hook_not_ready(other) == 204
        assert rightful.source_id in listed(service)
        assert stopped.source_id not in listed(service)
        number += 1
        time.sleep(0.2)
    assert stopped.is_live or fault in DONE_ALL_THE_SAME
    assert ask(fake, stopped, stopped_key, within=SOON) == 401  # its key is on hold

    fake.heal()
    took = wait_until(lambda: not stopped.is_live)
    wait_until(lambda: kick_of(service, stopped_id) == "done")
    wait_until(lambda: api_of(service) == "ok")
    print(f"\n{fault}: {number} others let in meanwhile; closed {took:.1f} s after it was well")
    assert set(fake.kicks) == {stopped.source_id}
    assert rightful.source_id in listed(service)
    assert rightful.is_live
    fake.leave(rightful)
    assert fake.hook_not_ready(rightful) == 204
    with psycopg.connect(service.database_url) as conn:
        ends = conn.execute("SELECT DISTINCT end_reason FROM streams WHERE path LIKE %s", [f"live/{mark}-%"]).fetchall()
    assert {reason for (reason,) in ends} == {"disconnected", "stopped"}
    assert service.workers() == workers
    hold_log(service)


def kick_of(service: Service, stream_id: str) -> object:
    return requests.get(f"{service.url}/streams/{stream_id}", headers=BEARER, timeout=10).json()["kick"]


def api_of(service: Service) -> object:
    return requests.get(f"{service.url}/nodes", headers=BEARER, timeout=10).json()["nodes"][0]["api"]
