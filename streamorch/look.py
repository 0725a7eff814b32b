"""The look: is the stream that is in the way of a claim really alive? Asked of the media server, on a conflict alone.

From v1.20.1 on OBS stops reconnecting when it is refused, so "in use" must never be said on old news. The old
connection is looked at by its id, in the connection lists, which do not wait for the loop that waits for us.
"""

import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from uuid import UUID

from streamorch.mediamtx import ControlAPI, NoAnswer
from streamorch.repositories.streams import Rival

_REQUEST_SECONDS = 0.3
_POLL_SECONDS = 0.2
# Nothing came in for so long: stalled. Also how old a sample must be to say so by itself.
_SILENCE_SECONDS = 1.2
_OLD_SAMPLE_SECONDS = 1.5
# Two growths at least so far apart: alive. Closer together they may be one burst, the last bytes of a dead connection.
_APART_SECONDS = 0.4
_FRESH_SAMPLE_SECONDS = 5.0
_ALIVE_SECONDS = 1.0


class Looks:
    """The looks of one worker: one at a time for each stream, and "alive" holds for a second."""

    def __init__(self, api: ControlAPI):
        self._api = api
        self._lock = threading.Lock()
        self._under_way: dict[UUID, Future[bool]] = {}
        self._alive_until: dict[UUID, float] = {}

    def gives_way(self, rival: Rival, *, deadline: float) -> bool:
        """May a newcomer of the same key take the place of this stream? `deadline`: monotonic; then it may not."""
        if not rival.can_be_seen:
            return False
        with self._lock:
            now = time.monotonic()
            self._alive_until = {of: until for of, until in self._alive_until.items() if until > now}
            if rival.id in self._alive_until:
                return False
            first = self._under_way.get(rival.id)
            if first is None:
                mine = self._under_way[rival.id] = Future()
        if first is not None:
            try:
                return first.result(deadline - now)
            except FutureTimeoutError:
                return False
        gone = False
        try:
            gone = gives_way(self._api, rival, deadline=deadline)
        finally:
            with self._lock:
                del self._under_way[rival.id]
                if not gone:
                    self._alive_until[rival.id] = time.monotonic() + _ALIVE_SECONDS
            mine.set_result(gone)
        return gone


def gives_way(api: ControlAPI, rival: Rival, *, deadline: float) -> bool:
    """The look itself: 0.6 to 1.6 s for what is alive, at most 2 for what is not, a moment for what is gone.

    A claim that is not live yet is only looked for: its bytes stand still while the server waits for us. The same for
    a key whose takeover is `never`: only what is gone gives way.
    """
    try:
        found = api.connection(rival.protocol, rival.connection_id, seconds=_REQUEST_SECONDS)
    except NoAnswer:
        return rival.is_active and rival.takeover != "never" and not _grew_lately(rival)
    if found is None:
        return True
    if not rival.is_active or rival.takeover == "never":
        return False
    is_old_sample = rival.sample_age is not None and rival.sample_age >= _OLD_SAMPLE_SECONDS
    if is_old_sample and found.received == rival.bytes:
        return True
    return _stalls(api, rival, found.received, deadline)


def _stalls(api: ControlAPI, rival: Rival, received: int, deadline: float) -> bool:
    """Read the counter of the connection until it has grown twice, well apart, or not at all for a while."""
    last_growth = time.monotonic()
    first_growth: float | None = None
    while time.monotonic() + _POLL_SECONDS < deadline:
        time.sleep(_POLL_SECONDS)
        try:
            found = api.connection(rival.protocol, rival.connection_id, seconds=_REQUEST_SECONDS)
        except NoAnswer:
            return first_growth is None and not _grew_lately(rival)
        now = time.monotonic()
        if found is None:
            return True
        if found.received > received:
            if first_growth is not None and now - first_growth >= _APART_SECONDS:
                return False
            first_growth = first_growth or now
            last_growth, received = now, found.received
        elif now - last_growth >= _SILENCE_SECONDS:
            return True
    return False


def _grew_lately(rival: Rival) -> bool:
    """Did the last two samples of the reconciler, the newer a few seconds old at most, show growth?"""
    if rival.sample_age is None or rival.moved_age is None:
        return False
    return rival.sample_age <= _FRESH_SAMPLE_SECONDS and rival.moved_age <= rival.sample_age
