"""The wall and the page of a stream in a browser, before the running service: what happens shows by itself."""

import os
import re
import signal
import tempfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.conftest import API_SECRET
from tests.console.studio import Studio
from tests.running import Service

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EVIL = '<img src=x onerror="window.evil = true">'


@pytest.fixture(scope="module")
def running(media_server):
    """Without pictures: nobody answers where they would be."""
    folder = Path(tempfile.mkdtemp(prefix="streamorch-console-"))
    settings = {"MEDIAMTX_WEBRTC_URL": "off", "MEDIAMTX_HLS_URL": "off", "RECONCILE_SECONDS": "0.5"}
    service = Service(folder, MEDIAMTX_API_URL=media_server.url, **settings)
    yield service
    service.close()


@pytest.fixture
def studio(running, media_server):
    made = Studio(running, media_server)
    yield made
    made.close()


def tile(page, name):
    return page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name, exact=True))


def marked(page):
    """The page, with a mark that a reload would take away."""
    page.evaluate("window.mark = 'mine'")
    return page


def is_as_it_was(page):
    return page.evaluate("window.mark === 'mine'")


def test_what_goes_live_and_ends_is_seen_without_a_reload(open_page, studio, accessible):
    page = marked(open_page())
    expect(page.get_by_role("heading", name="No stream is live")).to_be_visible()
    expect(page.get_by_text("my-camera?pass=YOUR-STREAM-KEY")).to_be_visible()
    show = studio.go_live("Team 7", "live/stage", label="front")
    shown = tile(page, "Team 7")
    expect(shown).to_be_visible()
    expect(shown).to_contain_text("live/stage front")
    expect(shown).to_contain_text("4.0 Mbit/s")
    expect(shown).to_contain_text("H264 160×120, MPEG-4 Audio")  # noqa: RUF001
    expect(shown).to_contain_text("0 viewers")
    expect(shown.locator(".age")).to_have_text(re.compile(r"^0:\d\d$"))
    expect(shown).to_contain_text("WebRTC and HLS are switched off")
    expect(page).to_have_title("(1) Live · streamorch")
    expect(page.locator("#heard")).to_have_text("Team 7 on live/stage went live.")
    accessible(page)
    studio.media_server.read("live/stage", n=3)
    expect(shown).to_contain_text("3 viewers")
    studio.media_server.freeze(show.publisher)
    expect(shown).to_contain_text("stalled")
    studio.leave(show)
    expect(shown).to_be_hidden()
    expect(page.locator("#heard")).to_have_text("Team 7 on live/stage ended.")
    expect(page.get_by_role("heading", name="No stream is live")).to_be_visible()
    assert is_as_it_was(page)


def test_the_bitrate_is_drawn_as_it_comes(open_page, studio):
    studio.go_live("Team 7")
    page = open_page()
    line = tile(page, "Team 7").locator("polyline")
    expect(line).to_have_attribute("points", re.compile(r"^\S+ \S+ \S+"))


def names(page):
    return page.locator(".tile:not([hidden]) .cover").all_text_contents()


def test_filter_and_order_stand_in_the_address(open_page, studio):
    for name, path, label in (
        ("Ada", "live/b", "front"),
        ("Bob", "live/c", None),
        ("Cy 10", "live/a", "back"),
        ("Cy 9", "x", None),
    ):
        studio.go_live(name, path, label)
    page = open_page()
    expect(page.locator(".tile")).to_have_count(4)
    assert names(page) == ["Cy 9", "Cy 10", "Bob", "Ada"]
    page.get_by_label("Sort by").select_option("name")
    assert names(page) == ["Ada", "Bob", "Cy 9", "Cy 10"]
    page.get_by_label("Sort by").select_option("path")
    assert names(page) == ["Cy 10", "Ada", "Bob", "Cy 9"]
    page.keyboard.press("/")  # a select takes letters, so not from there
    page.locator("h1").click()
    page.keyboard.press("/")
    expect(page.get_by_label("Filter")).to_be_focused()
    page.keyboard.type("LIVE fro")
    assert names(page) == ["Ada"]
    expect(page.locator("#count")).to_have_text("1 of 4")
    assert page.url.endswith("/console?sort=path&q=LIVE+fro")
    page.reload()
    expect(page.locator(".tile:not([hidden])")).to_have_count(1)
    assert names(page) == ["Ada"]
    expect(page.get_by_label("Sort by")).to_have_value("path")
    page.get_by_label("Filter").fill("nobody")
    expect(page.get_by_role("heading", name="No stream is like that")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    assert names(page) == ["Cy 10", "Ada", "Bob", "Cy 9"]
    page.get_by_label("Media").select_option("stalled")
    expect(page.get_by_role("heading", name="No stream is like that")).to_be_visible()
    studio.media_server.freeze(studio.shows[1].publisher)
    expect(tile(page, "Bob")).to_be_visible()
    assert names(page) == ["Bob"]
    page.get_by_label("Media").select_option("")
    page.get_by_label("Sort by").select_option("viewers")
    studio.media_server.read("live/b", n=2)
    expect(page.locator(".tile .cover").first).to_have_text("Ada")
    page.get_by_label("Sort by").select_option("")
    assert names(page) == ["Cy 9", "Cy 10", "Bob", "Ada"]
    assert page.url.endswith("/console")


def test_a_key_in_the_filter_stays_out_of_the_address(open_page, studio):
    show = studio.go_live()
    page = open_page()
    page.get_by_label("Filter").fill(show.key)
    expect(page.get_by_role("heading", name="No stream is like that")).to_be_visible()
    assert show.key not in page.url


def test_no_tile_is_made_anew(open_page, studio):
    """Which would begin its picture anew, and take the focus from it."""
    shows = [studio.go_live(name) for name in ("Ada", "Bob", "Cy")]
    page = open_page()
    expect(page.locator(".tile")).to_have_count(3)
    page.evaluate("document.querySelectorAll('.tile').forEach(tile => tile.mine = true)")
    tile(page, "Bob").get_by_role("link").focus()
    studio.media_server.read(shows[2].path)
    expect(tile(page, "Cy")).to_contain_text("1 viewer")
    page.get_by_label("Sort by").evaluate("select => { select.value = 'name'; select.form.requestSubmit(); }")
    page.get_by_label("Sort by").dispatch_event("input", {"bubbles": True})
    assert names(page) == ["Ada", "Bob", "Cy"]
    studio.go_live("Dora")
    expect(page.locator(".tile")).to_have_count(4)
    assert page.evaluate("[...document.querySelectorAll('.tile')].map(tile => tile.mine ?? false)") == [
        True,
        True,
        True,
        False,
    ]
    expect(tile(page, "Bob").get_by_role("link")).to_be_focused()
    studio.leave(shows[1])
    expect(tile(page, "Bob")).to_be_hidden()
    expect(tile(page, "Cy").get_by_role("link")).to_be_focused()


def test_the_arrows_go_from_tile_to_tile_and_enter_opens_one(open_page, studio):
    for name in ("Cy", "Bob", "Ada"):
        studio.go_live(name)
    page = open_page(viewport={"width": 700, "height": 900})  # two columns
    expect(page.locator(".tile")).to_have_count(3)
    tile(page, "Ada").get_by_role("link").focus()
    for key, name in (
        ("ArrowRight", "Bob"),
        ("ArrowLeft", "Ada"),
        ("ArrowDown", "Cy"),
        ("ArrowUp", "Ada"),
        ("End", "Cy"),
    ):
        page.keyboard.press(key)
        expect(tile(page, name).get_by_role("link")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Cy")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_are_accessible(scheme, open_page, studio, accessible):
    show = studio.go_live("Team 7", label="front")
    studio.media_server.freeze(studio.go_live("Team 8").publisher)
    page = open_page(color_scheme=scheme)
    expect(tile(page, "Team 8")).to_contain_text("stalled")
    accessible(page)
    page.goto(f"/console/streams/{show.stream_id}")
    expect(page.get_by_role("img", name=re.compile("^Bitrate: from"))).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    accessible(page)
    page.keyboard.press("Escape")
    studio.leave(show)
    expect(page.get_by_text("Its encoder disconnected.").first).to_be_visible()
    accessible(page)


def test_a_phone_has_both_pages(open_page, studio):
    show = studio.go_live(
        "A name that is rather long, as they are", "live/a-path-that-is-rather-long-too/and-goes-on-and-on"
    )
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect(page.locator(".tile")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".tile").tap()
    expect(page.get_by_text("Connection", exact=True).first).to_be_visible()
    assert page.url.endswith(show.stream_id)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_what_others_wrote_is_text_and_no_secret_is_in_the_page(open_page, studio):
    show = studio.go_live(EVIL, label=EVIL)
    studio.ask("PATCH", f"/streams/{show.stream_id}", json={"metadata": {EVIL: EVIL}, "recording_ref": EVIL})
    page = open_page()
    expect(tile(page, EVIL)).to_contain_text(EVIL)
    held = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    for place in (None, f"/console/streams/{show.stream_id}"):
        if place:
            page.goto(place)
            expect(page.get_by_role("img", name=re.compile("^Bitrate: from"))).to_be_visible()  # the parts came
        assert page.evaluate("window.evil") is None
        assert page.locator("main img").count() == 0
        for secret in (API_SECRET, show.key):
            assert secret not in page.content()
            assert secret not in page.evaluate(held)


def test_the_page_of_a_stream_tells_its_end_by_itself(open_page, studio):
    show = studio.go_live()
    page = marked(open_page(f"/console/streams/{show.stream_id}"))
    expect(page.locator("#state")).to_contain_text("flowing")
    page.get_by_role("button", name="Revoke its key").click()
    studio.media_server.freeze(show.publisher)
    expect(page.locator("#state")).to_contain_text("stalled: no bytes came in since")
    expect(page.locator("#bitrate-plot rect.still").first).to_be_attached()
    studio.leave(show)
    expect(page.locator("#state")).to_contain_text("Its encoder disconnected.")
    expect(page.locator("#heard")).to_contain_text("Its encoder disconnected.")
    expect(page.get_by_text("It ended. Its encoder disconnected.")).to_be_visible()
    expect(page.get_by_text("Where to watch it")).to_have_count(0)
    expect(page.locator("#bitrate-plot polyline")).to_be_attached()  # level where no byte came: a box of no height
    expect(page.locator("#viewers-now")).to_have_text("")
    expect(page).to_have_title(re.compile("^Ended: "))
    expect(page.get_by_role("dialog")).to_be_hidden()  # there is nothing left to revoke for
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    expect(page.locator("#screen")).to_contain_text("switched off")
    assert is_as_it_was(page)


def test_one_that_is_not_live_yet_becomes_live(open_page, studio):
    show = studio.go_live(live=False)
    page = marked(open_page(f"/console/streams/{show.stream_id}"))
    expect(page.locator("#state")).to_contain_text("Not live yet")
    studio.media_server.go_live(show.publisher)
    expect(page.locator("#state")).to_contain_text("Live since")
    assert is_as_it_was(page)


def test_stopping_says_what_it_cuts_off_and_does_it(open_page, studio):
    show = studio.go_live("Team 7", "live/stage")
    page = open_page(f"/console/streams/{show.stream_id}")
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog = page.get_by_role("dialog", name="Stop this stream?")
    expect(dialog).to_contain_text("Team 7 is off the air")
    expect(dialog.get_by_role("button", name="Keep as it is")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog.get_by_label("Refuse its key for").select_option(label="5 minutes")
    dialog.get_by_role("button", name="Stop it").click()
    expect(page.locator("#said")).to_contain_text("The stream is stopped")
    expect(page.locator("#state")).to_contain_text("An operator stopped it.")
    expect(page.locator("#state")).to_contain_text("Its connection is closed.")
    assert not studio.media_server.is_connected(show.publisher)
    assert studio.media_server.ask(show.publisher, show.key) == 401


def test_without_scripts_one_sees_what_is_live_and_can_stop_it(open_page, studio):
    show = studio.go_live("Team 7", "live/stage")
    page = open_page(java_script_enabled=False)
    page.get_by_role("link", name="Team 7").click()
    expect(page.locator("#state")).to_contain_text("UTC")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    expect(page.get_by_role("button", name="Copy RTSP")).to_be_hidden()
    page.locator("summary", has_text="Stop").click()
    expect(page.locator("details").get_by_text("Team 7 is off the air")).to_be_visible()
    page.get_by_role("button", name="Stop it").click()
    expect(page.locator("#state")).to_contain_text("An operator stopped it.")
    assert studio.ask("GET", f"/streams/{show.stream_id}").json()["end_reason"] == "stopped"


def test_an_outage_of_the_database_is_told_and_the_tiles_stay(open_page, studio, running):
    studio.go_live("Team 7")
    page = marked(open_page())
    expect(tile(page, "Team 7")).to_be_visible()
    os.kill(running.postmaster(), signal.SIGKILL)
    try:
        expect(page.get_by_role("alert")).to_contain_text("The database does not answer")
        expect(tile(page, "Team 7")).to_be_visible()
    finally:
        running.start_database()
    expect(page.get_by_role("alert")).to_be_hidden()
    studio.go_live("Team 8")
    expect(tile(page, "Team 8")).to_be_visible()
    assert is_as_it_was(page)
    page.complaints.clear()  # of each 503


def test_a_service_that_does_not_answer_is_told_of(open_page, studio):
    studio.go_live("Team 7")
    page = open_page()
    expect(tile(page, "Team 7")).to_be_visible()
    page.route("**/console/live", lambda route: None)
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.unroute("**/console/live")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_tab_that_nobody_sees_asks_for_nothing(open_page, studio):
    studio.go_live("Team 7")
    page = open_page()
    expect(tile(page, "Team 7")).to_be_visible()
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    page.evaluate(hide % "true")
    page.wait_for_timeout(1500)  # one may be on its way
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3000)
    assert asked == []
    page.evaluate(hide % "false")
    with page.expect_response("**/console/live"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_session_that_is_over_is_told_on_the_page_of_a_stream(open_page, studio):
    show = studio.go_live()
    page = open_page(f"/console/streams/{show.stream_id}")
    page.context.clear_cookies()
    expect(page.get_by_role("alert")).to_contain_text("Your session is over")
    page.get_by_role("alert").get_by_role("link", name="Sign in").click()
    page.get_by_label("API secret").fill(API_SECRET)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(show.stream_id))
    page.complaints.clear()  # of the 401
