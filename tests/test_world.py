"""The model of the world, in short: stories that need a promise kept, and some hundred examples, always the same."""

from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.fake_mediamtx import FakeMediaMTX
from tests.world.actors import World, run
from tests.world.machine import FAULTS, PROTOCOLS, VERSIONS, Draw, machine, settings_of

# So that the whole takes a minute or two; more by `python -m tests.world`.
EXAMPLES = {"v1.20.1": 80, "v1.12.3": 45, "v1.9.3": 35}

NOW, HELD = 3, 0
LIVE, LIVE_AND_TOLD, WAITING = Draw(0, 0, 0, False), Draw(0, 0, 0, True), Draw(6, 0, 2, False)
THE_FIRST, WITH_A_BAD_KEY = Draw(0, 1, 0, False), Draw(0, 1, 0, False)
SRT = PROTOCOLS.index("srt")

# Four keys, two of them bound to live/a; the media server has been seen.
STORIES: dict[str, list[tuple[str, Draw]]] = {
    "an expired key comes back": [("expire_key", Draw(0, NOW, 0, False)), ("connect", WITH_A_BAD_KEY)],
    "a held key comes back": [
        ("publish", LIVE_AND_TOLD),
        ("stop_stream", Draw(0, HELD, 0, False)),
        ("connect", WITH_A_BAD_KEY),
    ],
    "a replaced value comes back": [("rotate_key", Draw(0, 2, 0, True))],
    "a value comes back while it works on": [("rotate_key", Draw(0, 0, 0, True))],
    "a replaced value comes back in time": [
        ("rotate_key", Draw(0, 1, 0, False)),
        ("pass_time", Draw(5, 0, 0, False)),
        ("connect", Draw(0, 0, 1, False)),
    ],
    "an overlap is ended": [
        ("rotate_key", LIVE),
        ("move_overlap", LIVE),
        ("publish", LIVE_AND_TOLD),
        ("rival", Draw(1, 1, 0, False)),
    ],
    "a key is revoked while it is live": [("publish", LIVE_AND_TOLD), ("revoke_key", THE_FIRST)],
    "a key is revoked while it is asked for": [("be_too_late", THE_FIRST)],
    "a broadcaster is disabled by hand": [("publish", LIVE_AND_TOLD), ("disable_in_the_table", THE_FIRST)],
    "a newcomer is let in and never live": [
        ("publish", LIVE_AND_TOLD),
        ("freeze_or_flow", Draw(0, 0, 0, False)),
        ("rival", Draw(0, 1, 0, False)),
        ("pass_time", Draw(5, 0, 0, False)),
    ],
    "the end of the one before is told late": [
        ("publish", LIVE_AND_TOLD),
        ("leave", THE_FIRST),
        ("rival", Draw(0, 1, 0, True)),
        ("hook", Draw(0, 0, 0, False)),
    ],
    "the end is told before the start": [("publish", LIVE), ("leave", LIVE_AND_TOLD), ("hook", Draw(0, 0, 0, False))],
    "a stopped stream whose kick does nothing": [
        ("publish", LIVE_AND_TOLD),
        ("foil_kick", Draw(0, 2, 0, False)),
        ("stop_stream", Draw(0, 2, 0, False)),
    ],
    "the end is told in time": [("publish", LIVE_AND_TOLD), ("leave", LIVE_AND_TOLD)],
    "a list fails while a claim waits": [
        ("publish", WAITING),
        ("fail", Draw(FAULTS.index("list 500"), SRT, 0, False)),
        ("tick", THE_FIRST),
        ("tick", THE_FIRST),
    ],
    "a protocol is switched off under a claim": [
        ("publish", WAITING),
        ("fail", Draw(FAULTS.index("off"), SRT, 0, False)),
    ],
    "another key takes the path of a forgotten stream": [
        ("publish", LIVE_AND_TOLD),
        ("be_forgotten", Draw(0, 1, 1, True)),
    ],
    "a stream begins while a tick looks elsewhere": [("tick_while", Draw(0, 0, 0, True)), ("tick", THE_FIRST)],
}


@pytest.fixture
def world(make_app, database_url) -> Iterator[World]:
    """With a media server of the newest version."""
    with FakeMediaMTX() as fake:
        app = make_app(MEDIAMTX_API_URL=fake.url, LOG_LEVEL="error")
        with run(app, fake, database_url) as world:
            yield world


@pytest.mark.parametrize("story", STORIES)
def test_a_story_ends_as_it_must(world, story):
    told = machine(world)()
    told.begin(kinds=((0, 0, 0),) * 4, sees=True)
    for what, draw in STORIES[story]:
        told.happens(what=what, draw=draw)
    told.settle()


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_service_keeps_its_promises(make_app, database_url, version):
    with FakeMediaMTX(version) as fake:
        app = make_app(MEDIAMTX_API_URL=fake.url, LOG_LEVEL="error")
        with run(app, fake, database_url) as world:
            run_state_machine_as_test(machine(world), settings=settings_of(EXAMPLES[version], derandomize=True))
