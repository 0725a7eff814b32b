"""The live list of this process, as the bytes that go out: built once for each version, whoever asks and how often."""

import binascii
import threading
import time
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

import msgspec
import psycopg

from streamorch import __version__, urls
from streamorch.repositories import Connection, Database, Moment, streams
from streamorch.settings import MediaURLs

_STALE_SECONDS = 30.0

Item = TypeVar("Item")


class LiveStreams(msgspec.Struct, Generic[Item], frozen=True):
    """All live streams, last started first; `stale` when the database is away. `as_of`: they were so then, at least."""

    streams: list[Item]
    count: int
    stale: bool
    as_of: Moment


class Built(NamedTuple):
    """The live list of one version, and its encoded streams by their marks.

    `etag` is None of a list that is not current, because the database is away.
    """

    version: str
    encoded: bytes
    etag: str | None
    items: dict[str, bytes]


class LiveList:
    """The last live list. Always as fresh as the database: its version is read for every answer."""

    def __init__(self, database: Database, media_urls: MediaURLs):
        self.built: Built | None = None
        self.building = threading.Lock()
        # When it was last known to be current: by time.monotonic(), and by the clock.
        self.seen = (0.0, 0.0)
        self._database = database
        self._media_urls = media_urls
        # Another release or other URLs make other bytes of the same version.
        self._looks = binascii.crc32(f"{__version__} {media_urls}".encode())

    def current(self) -> Built:
        """The list of the database's version.

        Without the database the last one, told as stale, for 30 seconds; an OperationalError after that.
        """
        try:
            with self._database.connection() as conn:
                version = streams.version(conn)
                built = self.built
                if built is None or built.version != version:
                    with self.building:  # the first to see a change builds; the others wait for it
                        built = self.built
                        if built is None or built.version != version:
                            self.built = built = self._build(conn)
        except psycopg.OperationalError:
            seen, seen_at = self.seen
            if self.built is None or time.monotonic() - seen > _STALE_SECONDS:
                raise
            # Better an old list, told as such, than an empty wall.
            return self.built._replace(encoded=_joined(self.built.items, stale=True, as_of=rfc3339(seen_at)), etag=None)
        self.seen = (time.monotonic(), time.time())
        return built

    def _build(self, conn: Connection) -> Built:
        """Only what has changed is fetched and encoded; a stream that is as it was goes out as it did."""
        known = self.built.items if self.built else {}
        live = streams.live(conn, known)
        changed = {item.mark: self._encode(item) for item in live.items}
        items = {mark: changed.get(mark) or known[mark] for mark in live.marks}
        # as_of is the moment of the last change, not of this answer: each worker must make the same bytes for an ETag.
        encoded = _joined(items, stale=False, as_of=live.changed_at)
        return Built(live.version, encoded, f'"{live.version}-{self._looks:08x}"', items)

    def _encode(self, item: streams.LiveItem) -> bytes:
        return b'%b,"urls":%b}' % (
            item.encoded.encode()[:-1],
            msgspec.json.encode(urls.playback(self._media_urls, item.path)),
        )


def _joined(items: Mapping[str, bytes], *, stale: bool, as_of: str) -> bytes:
    """The envelope around items that are encoded already."""
    outside = msgspec.json.encode(LiveStreams(list[str](), len(items), stale, as_of))
    before, _, after = outside.partition(b"[]")
    return b"".join((before, b"[", b",".join(items.values()), b"]", after))


def rfc3339(seconds: float) -> str:
    """A time.time() as the database writes moments."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e6):06d}Z"
