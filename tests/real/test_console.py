"""The console with a real media server: the picture of what an encoder publishes plays, and goes with its key."""

import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import API_SECRET
from tests.console.conftest import CHROMIUM
from tests.console.conftest import browser as browser  # a fixture
from tests.real.world import World, until

pytestmark = [
    pytest.mark.mediamtx,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: neither on PATH nor named by CHROMIUM_BIN"),
]

PATIENCE_MS = 15_000


@pytest.fixture
def wall(browser: Browser, world: World) -> Iterator[Page]:
    context = browser.new_context(base_url=world.service.url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto("/console/sign-in")
    page.get_by_label("API secret").fill(API_SECRET)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console")
    yield page
    context.close()


def moment(page: Page) -> Callable[[], float]:
    """Where the picture is, in seconds."""
    return lambda: float(page.evaluate("document.querySelector('video')?.currentTime ?? 0"))


def plays(page: Page) -> float:
    """Waits until the picture goes on; returns how long that took."""
    at = moment(page)
    took = until(lambda: at() > 0, 20, "a picture plays")
    begun = at()
    until(lambda: at() > begun + 1, 10, "it goes on")
    assert page.evaluate("document.querySelector('video').videoWidth") == 160
    return took


def test_the_picture_of_a_stream_plays_and_ends_with_its_key(world, wall, measured):
    key = world.api.key(label="Helmet")
    encoder = world.encoder("rtmp", key)
    until(lambda: world.api.live(key), 15, "it is live")
    begun = time.monotonic()
    tile = wall.get_by_role("link", name="Team 7")
    expect(tile).to_be_visible()
    measured["on the wall after"] = time.monotonic() - begun
    measured["its picture after"] = plays(wall)

    tile.click()
    expect(wall.get_by_role("heading", level=1)).to_contain_text(key.path)
    measured["on its page after"] = plays(wall)
    wall.get_by_role("button", name="Revoke").click()
    dialog = wall.get_by_role("dialog", name="Revoke the key of this stream?")
    expect(dialog).to_contain_text("It cuts off what is live now")
    dialog.get_by_role("button", name="Revoke the key").click()
    expect(wall.get_by_text("Its stream key was revoked").first).to_be_visible()
    until(lambda: not encoder.is_running, 10, "the encoder is cut off")


def test_hls_takes_the_place_of_webrtc_that_does_not_come_up(world, wall):
    wall.route("**/whep", lambda route: route.abort())
    world.live("rtmp")
    frame = wall.frame_locator("iframe")
    expect(frame.locator("video")).to_be_attached(timeout=30_000)
    at = lambda: float(frame.locator("video").evaluate("video => video.currentTime"))  # noqa: E731
    until(lambda: at() > 0, 30, "a picture plays")
    begun = at()
    until(lambda: at() > begun + 1, 15, "it goes on")
