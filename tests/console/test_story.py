"""An evening in the control room, from the first sign-in to the key that is taken back, in one browser."""

import re
import time

import pytest
from playwright.sync_api import expect

from tests.console.studio import Studio

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# So soon after it went live a stream must be seen.
SEEN_MS = 3000


@pytest.fixture
def studio(running, media_server):
    made = Studio(running, media_server)
    yield made
    made.close()


def test_a_broadcaster_gets_a_key_goes_live_is_watched_and_loses_it(open_page, studio):
    page = open_page(None, permissions=["clipboard-read", "clipboard-write"])
    page.goto("/console/broadcasters")
    page.get_by_label("New broadcaster").fill("Mountain rescue 4")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The broadcaster is made. Give it a key.")
    page.get_by_role("link", name="New key").click()
    page.get_by_label("Label").fill("Helmet")
    page.get_by_label("Path").fill("rescue/helmet4")
    page.get_by_role("button", name="Make the key").click()

    def copied(button: str) -> str:
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("copied")
        return str(page.evaluate("navigator.clipboard.readText()"))

    assert copied("Copy Server") == "rtmp://localhost:1935/rescue"
    field = re.fullmatch(r"(helmet4)\?pass=(sk_\w+)", copied("Copy Stream key"))
    assert field
    name, value = field.groups()

    page.get_by_role("link", name="To the live streams").click()
    expect(page.get_by_role("heading", name="No stream is live")).to_be_visible()
    page.evaluate("window.mark = 'mine'")
    publisher = studio.media_server.publish(f"rescue/{name}", live=False, bytes_per_second=500_000)
    assert studio.media_server.ask(publisher, value) == 200
    studio.media_server.go_live(publisher)
    assert studio.media_server.hook_ready(publisher) == 204
    begun = time.monotonic()
    tile = page.get_by_role("link", name="Mountain rescue 4")
    expect(tile).to_be_visible(timeout=SEEN_MS)
    print(f"on the wall after {time.monotonic() - begun:.2f} s")
    assert page.evaluate("window.mark") == "mine"

    tile.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("rescue/helmet4")
    page.evaluate("window.mark = 'mine'")
    page.get_by_role("button", name="Revoke its key").click()
    dialog = page.get_by_role("dialog", name="Revoke the key of this stream?")
    expect(dialog).to_contain_text("It cuts off what is live now")
    expect(dialog).to_contain_text("rescue/helmet4")
    dialog.get_by_role("button", name="Revoke the key").click()
    expect(page.get_by_text("Its stream key was revoked.").first).to_be_visible()
    assert studio.media_server.ask(publisher, value) == 401
    studio.media_server.leave(publisher)

    page.keyboard.press("g")
    page.keyboard.press("b")
    page.get_by_role("link", name="Mountain rescue 4").click()
    expect(
        page.get_by_role("row", name="rescue/helmet4").filter(has_text="Its stream key was revoked.")
    ).to_be_visible()
    expect(page.get_by_role("row", name="Helmet").get_by_text("revoked", exact=True)).to_be_visible()
    assert value not in page.content()
    # Nobody serves pictures here.
    page.complaints[:] = [one for one in page.complaints if "localhost:8889" not in one and "localhost:8888" not in one]
