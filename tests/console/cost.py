"""`python -m tests.console.cost`: what an update of the wall costs with 500 live streams, and how soon one is seen.

At each update some differ, as they do: a tenth have another number of viewers, one goes and one comes.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from playwright.sync_api import Page, sync_playwright

from tests.conftest import API_SECRET
from tests.console.conftest import CHROMIUM, FLAGS
from tests.console.studio import Studio
from tests.fake_mediamtx import FakeMediaMTX
from tests.running import Service

STREAMS, UPDATES, ARRIVALS = 500, 50, 10

# Parses a list, puts it in, and has the browser lay out the page; milliseconds. Then what was measured, the same way.
UPDATE = """async ([script, list, measured]) => {
    const wall = await import(script);
    const took = (work) => {
        const begun = performance.now();
        work();
        document.body.getBoundingClientRect();
        return performance.now() - begun;
    };
    return [took(() => wall.update(JSON.parse(list))), took(() => wall.measure(JSON.parse(measured)))];
}"""


def updates(page: Page, streams: list[dict[str, Any]], measured: dict[str, Any]) -> None:
    """Print what they cost."""
    page.route("**/console/live", lambda route: None)  # held: nobody else changes the wall
    page.route("**/console/measures", lambda route: None)
    script = page.locator("script[src*='/wall.js']").get_attribute("src")
    costs = []
    for number in range(UPDATES):
        for at in range(number % 10, len(streams), 10):
            streams[at] = streams[at] | {"viewers": number}
        gone = streams.pop(number * 7 % len(streams))
        streams.insert(0, gone | {"id": gone["id"][:-4] + f"{number:04}"})
        measured = {one["id"]: [4_000_000 + 1000 * number, "H264 1920x1080, Opus"] for one in streams}
        told = [script, msgspec.json.encode(streams).decode(), msgspec.json.encode(measured).decode()]
        costs.append(page.evaluate(UPDATE, told))
    for name, of in zip(("list", "measures"), zip(*costs, strict=True), strict=True):
        print(f"{name}: median {statistics.median(of):.1f} ms, worst {max(of):.1f} ms of the main thread")


def arrivals(page: Page, studio: Studio) -> None:
    """Print how soon one is on the wall after its media server told of it."""
    took = []
    for number in range(ARRIVALS):
        show = studio.go_live(f"Newcomer {number}")
        begun = time.perf_counter()
        page.locator(f"[data-id='{show.stream_id}']").wait_for(state="attached")
        took.append(time.perf_counter() - begun)
        time.sleep(0.37)
    print(f"on the wall: median {statistics.median(took):.2f} s, last {max(took):.2f} s after it went live")


def main() -> None:
    """Measure."""
    with FakeMediaMTX() as media_server, sync_playwright() as playwright:
        off = {"MEDIAMTX_WEBRTC_URL": "off", "MEDIAMTX_HLS_URL": "off"}
        service = Service(Path(tempfile.mkdtemp(prefix="streamorch-cost-")), MEDIAMTX_API_URL=media_server.url, **off)
        try:
            studio = Studio(service, media_server)
            for number in range(STREAMS):
                studio.go_live(f"Team {number}", f"live/{number}")
            page = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS)).new_page(base_url=service.url)
            page.goto("/console/sign-in")
            page.get_by_label("API secret").fill(API_SECRET)
            page.keyboard.press("Enter")
            page.locator(".tile").nth(STREAMS - 1).wait_for(state="attached")
            arrivals(page, studio)
            updates(page, studio.ask("GET", "/streams").json()["streams"], {})
        finally:
            service.close()


if __name__ == "__main__":
    main()
