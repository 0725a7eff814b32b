"""Broadcasters, keys and encoders before the running service: what is on the wall."""

import uuid
from dataclasses import dataclass

import requests

from tests.conftest import API_SECRET
from tests.fake_mediamtx import FakeMediaMTX, Publisher
from tests.running import Service

HEADERS = {"Authorization": f"Bearer {API_SECRET}"}


@dataclass
class Show:
    """A stream that is live, or was let in."""

    stream_id: str
    key_id: str
    key: str
    path: str
    publisher: Publisher


class Studio:
    """Puts streams on the air; all of them leave it with `close`."""

    def __init__(self, service: Service, media_server: FakeMediaMTX):
        self.service = service
        self.media_server = media_server
        media_server.callback_url = service.url
        self.shows: list[Show] = []

    def ask(self, method: str, path: str, **options: object) -> requests.Response:
        """A call of the API, which must be granted."""
        answer = requests.request(method, self.service.url + path, headers=HEADERS, timeout=10, **options)  # type: ignore[arg-type]
        assert answer.ok, answer.text
        return answer

    def go_live(
        self, name: str = "Team 7", path: str | None = None, label: str | None = None, *, live: bool = True
    ) -> Show:
        """A stream of a broadcaster and a key of its own, whose bytes come in."""
        path = path or f"live/{uuid.uuid4().hex[:8]}"
        owner = self.ask("POST", "/broadcasters", json={"display_name": name}).json()
        minted = self.ask("POST", "/stream-keys", json={"broadcaster_id": owner["id"], "label": label}).json()
        publisher = self.media_server.publish(path, live=False, bytes_per_second=500_000)
        assert self.media_server.ask(publisher, minted["key_value"]) == 200
        if live:
            self.media_server.go_live(publisher)
            assert self.media_server.hook_ready(publisher) == 204
        found = self.ask("GET", f"/streams?status=all&path={path}").json()["streams"]
        show = Show(found[0]["id"], minted["id"], minted["key_value"], path, publisher)
        self.shows.append(show)
        return show

    def leave(self, show: Show) -> None:
        """Its encoder goes."""
        self.media_server.leave(show.publisher)
        assert self.media_server.hook_not_ready(show.publisher) == 204

    def close(self) -> None:
        """Everybody leaves."""
        for show in self.shows:
            self.ask("DELETE", f"/streams/{show.stream_id}?hold_seconds=0")
            self.media_server.leave(show.publisher)
