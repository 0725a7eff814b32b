"""A visitor without scripts, and a browser with the running service."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from axe_playwright_python.base import AXE_SCRIPT  # type: ignore[import-untyped]
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.conftest import API_SECRET
from tests.console import Visitor
from tests.fake_mediamtx import FakeMediaMTX
from tests.running import Service

PATIENCE_MS = 15_000
expect.set_options(timeout=PATIENCE_MS)

CHROMIUM = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # which is small in containers
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    # Two pages of one browser find each other without a name service of the network.
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser") and not CHROMIUM:
            item.add_marker(pytest.mark.skip(reason="no Chromium: neither on PATH nor named by CHROMIUM_BIN"))


@pytest.fixture
def visitor(app: flask.Flask) -> Visitor:
    """Somebody who has not signed in."""
    return Visitor(app)


@pytest.fixture
def operator(visitor: Visitor) -> Visitor:
    """Somebody who has signed in with the API secret."""
    assert visitor.sign_in().status_code == 303
    return visitor


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def media_server() -> Iterator[FakeMediaMTX]:
    """What the service looks at; its lists follow what a test puts there."""
    with FakeMediaMTX() as server:
        yield server


@pytest.fixture(scope="module")
def running(media_server: FakeMediaMTX) -> Iterator[Service]:
    """The service as it runs, which looks twice in a second."""
    folder = Path(tempfile.mkdtemp(prefix="streamorch-console-"))
    service = Service(folder, MEDIAMTX_API_URL=media_server.url, RECONCILE_SECONDS="0.5")
    yield service
    service.close()


@pytest.fixture
def open_page(browser: Browser, running: Service) -> Iterator[Callable[..., Page]]:
    """A page in a browser of its own; what it complains of in its console fails the test.

    `complaints` of a page may be cleared by a test that causes some.
    """
    contexts = []
    pages: list[Page] = []

    def open_one(path: str | None = "/console", secret: str | None = API_SECRET, **options: Any) -> Page:
        context = browser.new_context(
            base_url=running.url, **{"locale": "en-GB", "timezone_id": "Europe/Zurich"} | options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        complaints: list[str] = []
        page.complaints = complaints  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _note(complaints, message))
        pages.append(page)
        if secret is not None:
            page.goto("/console/sign-in")
            page.get_by_label("API secret").fill(secret)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/console")
        if path is not None:
            page.goto(path)
        return page

    yield open_one
    told = [page.complaints for page in pages]  # type: ignore[attr-defined]
    for context in contexts:
        context.close()
    assert told == [[] for _ in pages]


def _note(complaints: list[str], message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        complaints.append(f"{message.text} {message.location.get('url', '')}")


@pytest.fixture
def accessible() -> Callable[[Page], None]:
    """Fails when axe-core finds something serious or critical on this page, or anything of WCAG 2.1 AA."""

    def look(page: Page) -> None:
        page.evaluate(AXE_SCRIPT)
        found = page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations'], runOnly: "
            "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})).violations.map("
            "v => [v.impact, v.id, v.nodes.map(n => n.target.join(' ')).slice(0, 5).join('; ')])"
        )
        assert [one for one in found if one[0] in ("serious", "critical")] == []

    return look
