"""`make screenshots`: pictures of every page of the console, with real video, into docs/console.

It needs a MediaMTX (MEDIAMTX_BIN, or on PATH), ffmpeg and Chromium; everything runs on loopback and ends with it.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import API_SECRET
from tests.console.conftest import CHROMIUM, FLAGS
from tests.real.world import Api, World, binaries, until
from tests.running import ROOT

OUT = ROOT / "docs" / "console"
SIZES: dict[str, Any] = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")

# Who is live: broadcaster, label, path, picture, protocol.
LIVE = (
    ("Mountain rescue 4", "Helmet camera", "rescue/helmet4", "mandelbrot=size=640x360:rate=15", "rtmp"),
    ("Helicopter Juliet", "Gimbal", "air/juliet", "testsrc2=size=640x360:rate=15", "srt"),
    ("Harbour", "Pier north", "harbour/north", "smptehdbars=size=640x360:rate=15", "rtmp"),
    ("Harbour", "Pier south", "harbour/south", "gradients=size=640x360:rate=15:speed=0.02", "rtsp"),
    (
        "Ski patrol",
        "Drone",
        "patrol/drone",
        "life=size=320x180:rate=15:mold=10:ratio=0.1:life_color=#8fd3ff,scale=640:360",
        "rtmp",
    ),
)
# Who may call; the last one had its secret taken back.
CLIENTS = (("Watch page", "read"), ("Control room", "operate"), ("Duty officer", "admin"), ("Old stage", "operate"))
_FORMATS = {"rtmp": ("flv",), "srt": ("mpegts",), "rtsp": ("rtsp", "-rtsp_transport", "tcp")}


def picture(source: str, protocol: str, url: str) -> "subprocess.Popen[bytes]":
    """An encoder that publishes this picture."""
    coded = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-profile:v", "baseline")
    command = ["ffmpeg", "-loglevel", "error", "-re", "-f", "lavfi", "-i", source, *coded]
    command += ["-pix_fmt", "yuv420p", "-g", "15", "-b:v", "400k", "-f", *_FORMATS[protocol], url]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def a_day(world: World) -> Iterator[dict[str, str]]:
    """A day of a control room; gives the ids that pages are opened with."""
    api = world.api
    owners: dict[str, str] = {}
    ids: dict[str, str] = {}
    with ExitStack() as running:

        def key(owner: str, label: str, path: str) -> Any:
            if owner not in owners:
                owners[owner] = api("POST", "/broadcasters", json={"display_name": owner})["id"]
            return api("POST", "/stream-keys", json={"broadcaster_id": owners[owner], "label": label, "path": path})

        def begin(source: str, protocol: str, url: str) -> "subprocess.Popen[bytes]":
            encoder = picture(source, protocol, url)
            running.callback(encoder.wait)
            running.callback(encoder.kill)
            return encoder

        # What was: one that left, one that was stopped, one whose key was taken back.
        for number, end in enumerate(("leave", "stop", "revoke")):
            made = key("Ski patrol", f"Sledge {number + 1}", f"patrol/sledge{number + 1}")
            encoder = begin("testsrc2=size=320x180:rate=10", "rtmp", made["publish"]["rtmp"])
            until(partial(is_live, api, made["id"]), 20)
            time.sleep(3)
            if end == "leave":
                encoder.terminate()
            elif end == "stop":
                api("DELETE", f"/streams/{api('GET', '/streams?stream_key_id=' + made['id'])['streams'][0]['id']}")
            else:
                api("DELETE", f"/stream-keys/{made['id']}")
                ids["revoked"] = made["publish"]["rtmp"]
        for name, scope in CLIENTS:
            made = api("POST", "/api-clients", json={"name": name, "scope": scope})
        api("DELETE", f"/api-clients/{made['id']}")
        for owner, label, path, source, protocol in LIVE:
            made = key(owner, label, path)
            ids.setdefault("key", made["id"])
            begin(source, protocol, made["publish"][protocol])
        # Who was not let in.
        for url in (ids.pop("revoked"), f"rtmp://127.0.0.1:{world.ports.rtmp}/live/phone?pass={'sk_' + 'x' * 43}"):
            begin("testsrc2=size=320x180:rate=10", "rtmp", url).wait(20)
        until(lambda: api("GET", "/streams")["count"] == len(LIVE), 30)
        until(lambda: all(one["media"] == "flowing" for one in api("GET", "/streams")["streams"]), 30)
        ids["stream"] = next(
            one["id"] for one in api("GET", "/streams")["streams"] if one["stream_key_id"] == ids["key"]
        )
        ids["broadcaster"] = owners["Harbour"]
        yield ids


def is_live(api: Api, stream_key_id: str) -> bool:
    """Is there a stream of this key?"""
    return bool(api("GET", f"/streams?stream_key_id={stream_key_id}")["count"])


def pages(ids: dict[str, str]) -> dict[str, str]:
    """Every page, by the name of its picture."""
    return {
        "wall": "/console",
        "stream": f"/console/streams/{ids['stream']}",
        "keys": "/console/keys",
        "key": f"/console/keys/{ids['key']}",
        "new-key": "/console/keys/new",
        "broadcasters": "/console/broadcasters",
        "broadcaster": f"/console/broadcasters/{ids['broadcaster']}",
        "history": "/console/history",
        "refusals": "/console/refusals",
        "clients": "/console/clients",
        "new-client": "/console/clients/new",
        "system": "/console/system",
    }


def take(browser: Browser, url: str, ids: dict[str, str], size: str, scheme: Any) -> None:
    """The pictures of one size and scheme."""
    context = browser.new_context(
        base_url=url, viewport=SIZES[size], color_scheme=scheme, locale="en-GB", timezone_id="Europe/Zurich"
    )
    page = context.new_page()
    page.goto("/console/sign-in")
    shot(page, f"sign-in-{size}-{scheme}")
    page.get_by_label("API secret").fill(API_SECRET)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console")
    for name, path in pages(ids).items():
        page.goto(path)
        page.wait_for_timeout(6000 if name in ("wall", "stream") else 800)
        shot(page, f"{name}-{size}-{scheme}")
    context.close()


def shot(page: Page, name: str) -> None:
    page.screenshot(path=OUT / f"{name}.jpg", type="jpeg", quality=72)


def main() -> None:
    """Take them all."""
    found = binaries()
    if not found or not CHROMIUM:
        sys.exit("screenshots: needs MediaMTX (MEDIAMTX_BIN, or on PATH), ffmpeg and Chromium")
    OUT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir(), "streamorch")  # which the page of the system shows
    folder.mkdir()
    world = World(found[0], Path("none"), folder)
    try:
        with a_day(world) as ids, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
            for size in SIZES:
                for scheme in SCHEMES:
                    take(browser, world.service.url, ids, size, scheme)
            browser.close()
    finally:
        world.close()
    kept = sorted(OUT.glob("*.jpg"))
    print(f"{len(kept)} pictures, {sum(file.stat().st_size for file in kept) // 1024} KiB, in {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
