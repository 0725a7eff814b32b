"""The look at the stream in the way of a claim: what is said of a connection, and how long that takes."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from streamorch.look import Looks, gives_way
from streamorch.mediamtx import ControlAPI
from streamorch.repositories.streams import Rival
from tests.fake_mediamtx import FakeMediaMTX, Publisher

PATH = "live/cam7"
BURST = 30_000
# The newest; and one in which auth names RTSP publishers by their connection.
KINDS = [("v1.20.1", protocol) for protocol in ("rtmp", "rtsp", "srt", "webrtc", "moq")] + [
    ("v1.12.3", "rtmp"),
    ("v1.12.3", "rtsp"),
]
each_kind = pytest.mark.parametrize(("version", "protocol"), KINDS)


def client(fake: FakeMediaMTX) -> ControlAPI:
    return ControlAPI(fake.url, user="streamorch", password="secret")


def rival(publisher: Publisher, **others: Any) -> Rival:
    """An active stream of this publisher, of which nothing was sampled yet."""
    told: dict[str, Any] = {
        "id": uuid.uuid4(),
        "node": "default",
        "path": publisher.path,
        "protocol": publisher.protocol.replace("ps", "p"),
        "connection_id": publisher.source_id,
        "is_active": True,
        "takeover": "stalled",
        "can_be_seen": True,
        "bytes": None,
        "sample_age": None,
        "moved_age": None,
    }
    return Rival(**told | others)


def look(fake: FakeMediaMTX, of: Rival, *, seconds: float = 2.5) -> tuple[bool, float]:
    """Does it give way, and how long did it take to say so?"""
    began = time.monotonic()
    found = gives_way(client(fake), of, deadline=began + seconds)
    return found, time.monotonic() - began


def lists_asked(fake: FakeMediaMTX) -> bool:
    """Was nothing asked but for connections by their id? (The paths wait while the server waits for us.)"""
    return all("/get/" in call.target and "/paths/" not in call.target for call in fake.calls)


# --- what has one answer at once ------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("is_active", [False, True])
@pytest.mark.parametrize("takeover", ["stalled", "never"])
def test_what_is_gone_gives_way_at_once(version, protocol, is_active, takeover):
    with FakeMediaMTX(version) as fake:
        publisher = fake.publish(PATH, protocol)
        fake.leave(publisher)
        gone, seconds = look(fake, rival(publisher, is_active=is_active, takeover=takeover))
        assert gone
        assert seconds < 0.5
        assert lists_asked(fake)


@each_kind
def test_a_claim_that_is_connected_does_not_give_way(version, protocol):
    """Its bytes stand still while the server waits for us, so they tell nothing."""
    with FakeMediaMTX(version) as fake:
        publisher = fake.publish(PATH, protocol, live=False)
        waiting = rival(publisher, is_active=False, connection_id=publisher.auth_id, bytes=0, sample_age=60)
        gone, seconds = look(fake, waiting)
        assert not gone
        assert seconds < 0.5


def test_where_nobody_takes_over_only_what_is_gone_gives_way(fake):
    publisher = fake.publish(PATH)
    assert not look(fake, rival(publisher, takeover="never", bytes=0, sample_age=60, moved_age=60))[0]
    fake.refuse()
    assert not look(fake, rival(publisher, takeover="never"))[0]


@pytest.mark.parametrize("sample_age", [1.5, 60])
def test_a_counter_that_stands_since_an_old_sample_is_stalled_at_once(fake, sample_age):
    publisher = fake.publish(PATH)
    fake.send(publisher, 1000)
    gone, seconds = look(fake, rival(publisher, bytes=1000, sample_age=sample_age, moved_age=sample_age))
    assert gone
    assert seconds < 0.5


def test_what_cannot_be_seen_is_not_looked_at(fake):
    assert not Looks(client(fake)).gives_way(
        rival(fake.publish(PATH), can_be_seen=False), deadline=time.monotonic() + 2
    )
    assert fake.calls == []


# --- what has to be watched -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "protocol"), [("v1.20.1", "rtmp"), ("v1.20.1", "rtsp"), ("v1.12.3", "srt")])
def test_a_connection_that_goes_on_sending_is_alive(version, protocol):
    with FakeMediaMTX(version) as fake:
        publisher = fake.publish(PATH, protocol, bytes_per_second=50_000)
        gone, seconds = look(fake, rival(publisher))
        assert not gone
        assert 0.5 < seconds < 1.6
        assert lists_asked(fake)


class Story(NamedTuple):
    """When bytes arrive, what was sampled before; is that alive, and within how many seconds is it said?"""

    moments: tuple[float, ...]
    sample: dict[str, float]
    is_alive: bool
    least: float
    most: float


STORIES = {
    "nothing": Story((), {}, False, 1.2, 1.6),
    "nothing since a fresh sample": Story((), {"bytes": 1000, "sample_age": 1.4, "moved_age": 1.4}, False, 1.2, 1.6),
    "something since an old sample": Story((0.1, 0.7), {"bytes": 1, "sample_age": 2, "moved_age": 2}, True, 0.6, 1.2),
    "the last of a dead connection": Story((0.1,), {}, False, 1.3, 2.0),
    "the last, in two parts": Story((0.1, 0.3), {}, False, 1.5, 2.2),
    "the last, late": Story((1.0,), {}, False, 2.2, 2.6),
    "a frame a second": Story((0.5, 1.5), {}, True, 1.5, 2.0),
    "two frames well apart": Story((0.1, 0.7), {}, True, 0.6, 1.2),
}


def burst_at(fake: FakeMediaMTX, publisher: Publisher, *moments: float) -> threading.Thread:
    """Bytes arrive so many seconds from now, all at once."""

    def send() -> None:
        began = time.monotonic()
        for moment in moments:
            time.sleep(max(0, began + moment - time.monotonic()))
            fake.send(publisher, BURST)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[bool, float]]:
    """All stories at once, each on its path: what was said, and after how long."""
    with FakeMediaMTX() as fake, ThreadPoolExecutor(len(STORIES)) as threads:

        def tell(story: Story) -> tuple[bool, float]:
            publisher = fake.publish(f"live/{uuid.uuid4()}")
            fake.send(publisher, 1000)
            sender = burst_at(fake, publisher, *story.moments)
            found = look(fake, rival(publisher, **story.sample))
            sender.join()
            return found

        return dict(zip(STORIES, threads.map(tell, STORIES.values()), strict=True))


@pytest.mark.parametrize("name", STORIES)
def test_bytes_tell_life_when_they_come_twice_well_apart(told, name):
    gone, seconds = told[name]
    assert gone == (not STORIES[name].is_alive)
    assert STORIES[name].least <= seconds < STORIES[name].most + 0.3


def test_who_leaves_while_being_watched_gives_way_at_once(fake):
    publisher = fake.publish(PATH, bytes_per_second=50_000)
    timer = threading.Timer(0.3, fake.leave, (publisher,))
    timer.start()
    gone, seconds = look(fake, rival(publisher))
    timer.join()
    assert gone
    assert seconds < 1


def test_who_is_undecided_at_the_deadline_does_not_give_way(fake):
    gone, seconds = look(fake, rival(fake.publish(PATH)), seconds=0.7)
    assert not gone
    assert 0.3 < seconds < 0.8


# --- no answer ------------------------------------------------------------------------------------------------

NO_ANSWERS: dict[str, Callable[[FakeMediaMTX], None]] = {
    "refused": FakeMediaMTX.refuse,
    "401": lambda fake: fake.answer(401),
    "500": lambda fake: fake.answer(500),
    "garbage": lambda fake: fake.answer(200, b"garbage"),
    "hanging": FakeMediaMTX.hang,
    "no such list": lambda fake: fake.switch_off("rtmpconns"),
}


@pytest.mark.parametrize("how", NO_ANSWERS)
@pytest.mark.parametrize("grew_lately", [False, True])
def test_without_an_answer_who_grew_lately_is_alive(fake, how, grew_lately):
    publisher = fake.publish(PATH)
    NO_ANSWERS[how](fake)
    gone, seconds = look(fake, rival(publisher, **{"sample_age": 2.0, "moved_age": 2.0} if grew_lately else {}))
    assert gone == (not grew_lately)
    assert seconds < 0.6


@pytest.mark.parametrize(
    ("samples", "gone"),
    [
        ({"sample_age": 4.9, "moved_age": 4.9}, False),
        ({"sample_age": 5.1, "moved_age": 5.1}, True),  # old news
        ({"sample_age": 2.0, "moved_age": 4.0}, True),  # none between the last two samples
        ({"is_active": False}, False),  # its lease is short
        ({"is_active": False, "sample_age": 60, "moved_age": 60}, False),
    ],
)
def test_without_an_answer_the_samples_decide(fake, samples, gone):
    fake.answer(500)
    assert look(fake, rival(fake.publish(PATH), bytes=1000, **samples))[0] == gone


@pytest.mark.parametrize(
    ("has_grown", "is_fresh", "gone"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_an_answer_that_breaks_off_leaves_what_was_seen(fake, has_grown, is_fresh, gone):
    publisher = fake.publish(PATH)
    samples = {"sample_age": 1.0, "moved_age": 1.0} if is_fresh else {}
    timer = threading.Timer(0.5, fake.answer, (500,))
    timer.start()
    threads: list[threading.Thread] = [timer]
    if has_grown:
        threads.append(burst_at(fake, publisher, 0.05))
    found, seconds = look(fake, rival(publisher, **samples))
    for thread in threads:
        thread.join()
    assert found == gone
    assert seconds < 1


def test_a_slow_server_is_looked_at_no_longer_than_the_deadline(fake):
    fake.slow(0.25)
    publisher = fake.publish(PATH)
    sender = burst_at(fake, publisher, 0.5, 1.9)
    _, seconds = look(fake, rival(publisher))
    sender.join()
    assert seconds < 2.8


# --- many who ask at once ---------------------------------------------------------------------------------------


def ask(looks: Looks, of: Rival, *, seconds: float = 2.5) -> bool:
    return looks.gives_way(of, deadline=time.monotonic() + seconds)


def test_those_who_ask_at_once_share_one_look(fake):
    looks, of = Looks(client(fake)), rival(fake.publish(PATH))
    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(lambda _: ask(looks, of), range(5))) == [True] * 5
    moments = [call.time for call in fake.calls]
    # Not closer together than one look polls.
    assert all(later - earlier > 0.1 for earlier, later in pairwise(moments))


def test_who_waits_for_the_look_of_another_waits_no_longer_than_its_own_deadline(fake):
    looks, of = Looks(client(fake)), rival(fake.publish(PATH))
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, looks, of, seconds=0.9)
        time.sleep(0.1)
        began = time.monotonic()
        assert not ask(looks, of, seconds=0.3)
        assert 0.25 < time.monotonic() - began < 0.5
        assert not first.done()


def test_looks_at_different_streams_do_not_wait_for_each_other(fake):
    looks = Looks(client(fake))
    gone = fake.publish("live/gone")
    fake.leave(gone)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, looks, rival(fake.publish("live/silent")), seconds=0.9)
        time.sleep(0.1)
        assert ask(looks, rival(gone))
        assert not first.done()


def test_alive_holds_for_a_second_and_gone_for_no_time(fake):
    looks = Looks(client(fake))
    there, left = fake.publish("live/there"), fake.publish("live/left")
    fake.leave(left)
    alive, gone = rival(there, is_active=False), rival(left, is_active=False)
    for of, calls in ((alive, 1), (gone, 4)):
        fake.forget_calls()
        assert {ask(looks, of), ask(looks, of)} == {of is gone}
        assert len(fake.calls) == calls
    time.sleep(1.05)
    fake.forget_calls()
    assert not ask(looks, alive)
    assert len(fake.calls) == 1


def test_a_look_that_fails_is_over_for_those_who_wait(fake):
    looks, of = Looks(client(fake)), rival(fake.publish(PATH))
    with pytest.raises(TypeError):
        ask(looks, of._replace(connection_id=7))  # type: ignore[arg-type]
    began = time.monotonic()
    ask(looks, of)
    assert time.monotonic() - began < 0.5
