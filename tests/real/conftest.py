"""One world for each MediaMTX that is found, one after another; and a table of what was measured."""

import importlib.util
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.real.world import PROTOCOLS, Binary, World, binaries, make_clip

NO_BINARY = "no MediaMTX: name one or several with MEDIAMTX_BIN, or have `mediamtx` on PATH"
NO_FFMPEG = "no encoder: ffmpeg and ffprobe are not on PATH"
NO_WHIP = "no WHIP encoder: pip install aiortc aiohttp"

_FOUND: list[Binary | None] = [*binaries()] or [None]
_HAS_WHIP = all(importlib.util.find_spec(name) for name in ("aiortc", "aiohttp"))
_LOGGED = 12_000
_CASE = re.compile(r"/real/.*::test_(?P<scenario>\w+)\[(?P<version>[^]]+?)(-(?P<protocol>rtmp|rtsp|srt|whip))?\]")


@pytest.fixture(scope="session", params=_FOUND, ids=lambda found: found.version if found else "none")
def binary(request: pytest.FixtureRequest) -> Binary:
    if request.param is None:
        pytest.skip(NO_BINARY)
    found: Binary = request.param
    return found


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip(NO_FFMPEG)
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def one_world(binary: Binary, clip: Path) -> Iterator[World]:
    """Of one version; pytest ends it before that of the next begins."""
    made = World(binary, clip)
    yield made
    made.close()


@pytest.fixture
def world(one_world: World, request: pytest.FixtureRequest) -> Iterator[World]:
    """The world, without an encoder before and after."""
    begins = {name: len(text) for name, text in one_world.logs().items()}
    request.node.stash[_logs] = lambda: {name: text[begins[name] :] for name, text in one_world.logs().items()}
    yield one_world
    assert one_world.restore(), "MediaMTX does not run any more"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    if request.param == "whip" and not _HAS_WHIP:
        pytest.skip(NO_WHIP)
    name: str = request.param
    return name


@pytest.fixture
def protocols() -> tuple[str, ...]:
    """All that an encoder is there for."""
    return tuple(name for name in PROTOCOLS if name != "whip" or _HAS_WHIP)


class Measured:
    """The seconds that a test measured, by what it calls them, and remarks; the table at the end shows them."""

    def __init__(self, node: pytest.Item):
        self._node = node

    def __setitem__(self, name: str, seconds: float) -> None:
        self._node.user_properties.append((name, f"{seconds:.2f}"))

    def remark(self, text: str) -> None:
        self._node.user_properties.append((text, ""))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    return Measured(request.node)


# --- reports ----------------------------------------------------------------------------------------------

_logs = pytest.StashKey[Callable[[], dict[str, str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what everybody logged during the test."""
    report = yield
    if report.when == "call" and report.failed and (logs := item.stash.get(_logs, None)):
        report.sections += [(f"log of {name}", text[-_LOGGED:]) for name, text in logs().items()]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Version, protocol, scenario; how it went, and the seconds it measured."""
    rows = []
    for outcome, word in (("passed", "ok"), ("failed", "FAILED")):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when == "call" and (case := _CASE.search(report.nodeid)):
                figures = "  ".join(f"{name} {seconds}".strip() for name, seconds in report.user_properties)
                rows.append((case["version"], case["scenario"], case["protocol"] or "all", word, figures))
    if rows:
        terminalreporter.section("MediaMTX: what was measured, in seconds")
    for version, scenario, protocol, word, figures in sorted(rows):
        terminalreporter.write_line(f"{version:8}  {scenario:72}  {protocol:4}  {word:6}  {figures}")
