"""The pictures, in a browser: who plays, by what, and what is said where nothing does.

What the media server would answer is answered here; by WebRTC another page of the same browser plays the encoder.
"""

import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.console.studio import Studio
from tests.running import Service

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WEBRTC, HLS = "http://media.test:8889", "http://media.test:8888"
OPEN = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Location, Link"}
PREFLIGHT = OPEN | {"Access-Control-Allow-Methods": "*", "Access-Control-Allow-Headers": "*"}
# Answers an offer with a picture of one colour, and keeps the connections that it has answered.
ENCODER = """async (offer) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 36];
    const paint = () => {
        const context = canvas.getContext("2d");
        context.fillStyle = "rgb(0, 200, 0)";
        context.fillRect(0, 0, 64, 36);
    };
    setInterval(paint, 50);
    paint();
    const peer = new RTCPeerConnection();
    (window.peers ??= []).push(peer);
    for (const track of canvas.captureStream(20).getTracks()) peer.addTrack(track);
    await peer.setRemoteDescription({ type: "offer", sdp: offer });
    await peer.setLocalDescription(await peer.createAnswer());
    await new Promise((done) => {
        const look = () => peer.iceGatheringState === "complete" && done();
        peer.addEventListener("icegatheringstatechange", look);
        look();
    });
    return peer.localDescription.sdp;
}"""
# The middle of what a tile shows, as a colour.
MIDDLE = """(shown) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.drawImage(shown, 0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
}"""


@pytest.fixture(scope="module")
def running(media_server):
    folder = Path(tempfile.mkdtemp(prefix="streamorch-console-"))
    settings = {"MEDIAMTX_WEBRTC_URL": WEBRTC, "MEDIAMTX_HLS_URL": HLS, "RECONCILE_SECONDS": "0.5"}
    service = Service(folder, MEDIAMTX_API_URL=media_server.url, **settings)
    yield service
    service.close()


@pytest.fixture
def studio(running, media_server):
    made = Studio(running, media_server)
    yield made
    made.close()


class Media:
    """What answers in place of the media server; `asked` counts (method, path)."""

    def __init__(self, page):
        self.page = page
        self.asked: Counter[tuple[str, str]] = Counter()
        self.answers = {}
        page.route("http://media.test:*/**", self._answer)

    def on(self, method, ending, answer):
        """Answer what ends so: by a status, or by what a function of the route does. What is not named is held."""
        self.answers[method, ending] = answer

    def started(self):
        """The paths of which a picture was asked for by WebRTC."""
        return {path.removesuffix("/whep") for method, path in self.asked if method == "POST"}

    def _answer(self, route):
        method = route.request.method
        path = re.sub(r"^http://media\.test:\d+/|\?.*", "", route.request.url)
        self.asked[method, path] += 1
        if method == "OPTIONS":
            route.fulfill(status=204, headers=PREFLIGHT)
            return
        answer = next((one for (by, end), one in self.answers.items() if by == method and path.endswith(end)), None)
        if isinstance(answer, int):
            route.fulfill(status=answer, headers=OPEN)
        elif answer:
            answer(route)


@pytest.fixture
def open_wall(open_page, studio):
    """A page that has signed in, before anything is on the wall, and what answers it."""

    def open_one(**options):
        page = open_page(None, **options)
        return page, Media(page)

    return open_one


def until(page, expression):
    """Wait for it. (What Playwright has for this is an eval, which the policy of the pages forbids.)"""
    deadline = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def screen(page, name):
    return page.locator(".tile", has=page.get_by_role("link", name=name, exact=True)).locator(".screen")


def encoder_of(page):
    """Another page, which sends a picture to whoever asks for one."""
    other = page.context.new_page()
    other.goto("/livez")

    def answer(route):
        sdp = other.evaluate(ENCODER, route.request.post_data)
        headers = OPEN | {"Location": f"{route.request.url}/session", "Content-Type": "application/sdp"}
        route.fulfill(status=201, body=sdp, headers=headers)

    return other, answer


def test_a_picture_comes_by_webrtc_and_leaves_a_still(open_wall, studio):
    page, media = open_wall()
    other, answer = encoder_of(page)
    media.on("POST", "/whep", answer)
    page.bring_to_front()
    show = studio.go_live("Team 7", "live/stage")
    shown = screen(page, "Team 7")
    expect(shown).to_have_attribute("data-state", "playing")
    until(page, "document.querySelector('.screen video')?.videoWidth === 64")
    video = shown.locator("video")
    assert video.evaluate("video => [video.muted, video.autoplay, video.playsInline]") == [True, True, True]
    red, green, blue, _ = video.evaluate(MIDDLE)
    assert green > 150 > 80 > max(red, blue)
    page.get_by_label("Pictures").uncheck()
    expect(shown).to_contain_text("Pictures are off.")
    expect(video).to_have_count(0)
    red, green, blue, _ = shown.locator("canvas").evaluate(MIDDLE)
    assert green > 150 > 80 > max(red, blue)
    until(other, "peers[0].connectionState !== 'connected'")
    page.reload()
    expect(shown).to_contain_text("Pictures are off.")  # as it was left
    assert media.asked["POST", "live/stage/whep"] == 1
    page.goto(f"/console/streams/{show.stream_id}")
    expect(page.locator("#screen video")).to_have_attribute("controls", "")
    expect(page.locator("#screen")).to_have_attribute("data-state", "playing")
    page.locator("#screen video").evaluate("video => { video.muted = false; video.mine = true; }")
    other.evaluate("peers.at(-1).close()")
    until(page, "document.querySelector('#screen video')?.mine === undefined")
    until(page, "document.querySelector('#screen video')?.videoWidth === 64")
    assert page.locator("#screen video").evaluate("video => video.muted") is False  # as it was
    studio.leave(show)
    expect(page.locator("#screen")).to_contain_text("This stream has ended.")
    expect(page.locator("#screen video")).to_have_count(0)


def test_a_connection_that_is_lost_is_made_again(open_wall, studio):
    page, media = open_wall()
    other, answer = encoder_of(page)
    media.on("POST", "/whep", answer)
    page.bring_to_front()
    studio.go_live("Team 7")
    until(page, "document.querySelector('.screen video')?.videoWidth === 64")
    other.evaluate("peers[0].close()")
    until(other, "peers.length === 2 && peers[1].connectionState === 'connected'")
    until(page, "document.querySelector('.screen video')?.videoWidth === 64")


def test_hls_takes_over_when_webrtc_does_not_come_up(open_wall, studio):
    page, media = open_wall()
    page.add_init_script("HTMLMediaElement.prototype.canPlayType = () => ''")  # a browser without HLS of its own
    media.on("POST", "/whep", 400)
    media.on("GET", "index.m3u8", 200)
    media.on("GET", "live/stage/", lambda route: route.fulfill(body="<p>the player of the media server</p>"))
    page.reload()  # for the script
    show = studio.go_live("Team 7", "live/stage")
    frame = screen(page, "Team 7").locator("iframe")
    expect(frame).to_have_attribute("title", "Picture of Team 7")
    assert frame.get_attribute("src") == f"{HLS}/live/stage/?muted=true&autoplay=true&playsinline=true&controls=false"
    expect(frame.content_frame.get_by_text("the player of the media server")).to_be_visible()
    expect(screen(page, "Team 7")).to_contain_text("HLS: some seconds late")
    studio.leave(show)
    expect(frame).to_have_count(0)
    page.complaints.clear()  # of the 400


def test_hls_takes_over_when_webrtc_connects_and_brings_nothing(open_wall, studio):
    """As MediaMTX does with the B-frames of H264: it connects, and then ends the connection."""
    page, media = open_wall()
    page.add_init_script("HTMLMediaElement.prototype.canPlayType = () => ''")
    other, answer = encoder_of(page)
    other.evaluate("HTMLCanvasElement.prototype.captureStream = () => ({ getTracks: () => [] })")
    media.on("POST", "/whep", answer)
    media.on("GET", "index.m3u8", 200)
    media.on("GET", "live/stage/", lambda route: route.fulfill(body="<p>the player of the media server</p>"))
    page.reload()  # for the script
    page.bring_to_front()
    studio.go_live("Team 7", "live/stage")
    expect(screen(page, "Team 7")).to_contain_text("No picture yet")
    until(other, "window.peers?.[0].connectionState === 'connected'")
    other.evaluate("peers[0].close()")
    expect(screen(page, "Team 7").locator("iframe")).to_have_count(1)
    expect(screen(page, "Team 7")).to_contain_text("HLS: some seconds late")
    assert media.asked["POST", "live/stage/whep"] == 1


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "the media server does not have it now"),
        (401, "the media server lets nobody watch without a credential"),
        (503, "the media server answers 503"),
    ],
)
def test_what_keeps_a_picture_away_is_said_and_it_is_tried_again(status, sentence, open_wall, studio):
    page, media = open_wall()
    media.on("POST", "/whep", status)
    media.on("GET", "index.m3u8", status)
    show = studio.go_live("Team 7")
    expect(screen(page, "Team 7")).to_contain_text(f"No picture: {sentence}. Trying again.")
    if status == 404:
        until(page, f"performance.getEntriesByName('{WEBRTC}/{show.path}/whep').length > 4")
        assert media.asked["POST", f"{show.path}/whep"] > 1
    page.complaints.clear()  # of each of them


def test_pictures_play_where_one_looks_and_not_too_many(open_wall, studio):
    """Everything is held, so each that is begun goes on."""
    page, media = open_wall(viewport={"width": 620, "height": 700})  # two columns
    page.goto("/console/nowhere")
    page.complaints.clear()
    for number in range(30):
        studio.go_live(f"Team {number:02}", f"live/{number:02}")
    page.goto("/console?sort=name")
    expect(page.locator(".tile")).to_have_count(30)
    until(page, "document.querySelectorAll('[data-state=connecting]').length >= 4")
    page.wait_for_timeout(1000)
    first = media.started()
    assert {"live/00", "live/01", "live/02", "live/03"} <= first <= {f"live/{number:02}" for number in range(8)}
    screen(page, "Team 29").scroll_into_view_if_needed()
    expect(screen(page, "Team 29")).to_have_attribute("data-state", "connecting")
    expect(page.locator(".screen[data-state=connecting]")).to_have_count(len(first), timeout=15_000)
    expect(screen(page, "Team 00")).to_have_attribute("data-state", "idle")
    assert not {f"live/{number:02}" for number in range(10, 20)} & media.started()
    page.set_viewport_size({"width": 2000, "height": 2400})  # all of them in sight
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator(".screen[data-state=connecting]")).to_have_count(12)
    expect(page.get_by_text("Not played: 12 pictures play at once.")).to_have_count(18)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [({"READ_POLICY": "deny"}, "nobody may watch"), ({"READ_POLICY": "secret"}, "asks for READ_SECRET")],
)
def test_where_nobody_may_watch_nothing_is_tried(policy, sentence, browser, media_server):
    folder = Path(tempfile.mkdtemp(prefix="streamorch-console-"))
    settings = {"MEDIAMTX_WEBRTC_URL": WEBRTC, "READ_SECRET": "read-secret", "WEB_CONCURRENCY": "1"} | policy
    service = Service(folder, MEDIAMTX_API_URL=media_server.url, **settings)
    try:
        Studio(service, media_server).go_live("Team 7")
        page = browser.new_context(base_url=service.url).new_page()
        media = Media(page)
        page.goto("/console/sign-in")
        page.get_by_label("API secret").fill(service.environ["API_SECRET"])
        page.keyboard.press("Enter")
        expect(screen(page, "Team 7")).to_contain_text(sentence)
        assert not media.asked
        assert "read-secret" not in page.content()
        page.context.close()
    finally:
        service.close()
