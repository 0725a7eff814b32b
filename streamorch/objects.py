"""The objects of the API that are made of more than a row: over HTTP and from the shell they are the same."""

from typing import Any

import msgspec

from streamorch import tracks, urls
from streamorch.repositories import Moment
from streamorch.repositories.nodes import APIState, Node
from streamorch.repositories.streams import Kicked, Listed, Owner, Stream
from streamorch.settings import MediaURLs


class ListedStream(Listed, frozen=True):
    """A stream as lists show it, with its playback URLs in every status."""

    urls: urls.Playback


class LoneStream(ListedStream, frozen=True):
    """A stream asked for by id, with what lists leave out."""

    remote_address: str | None
    bytes: int | None
    bitrate: int | None
    tracks: list[tracks.Track]
    kick: Kicked | None


class Unclaimed(msgspec.Struct, frozen=True):
    """A live publisher that nobody claimed. (What the reconciler thinks of it is its own affair.)"""

    path: str
    source_type: str
    source_id: str
    since: Moment


class MediaServer(msgspec.Struct, frozen=True):
    """A media server: does its Control API answer, when did a hook come, who publishes without a claim.

    `problem` tells in words what is wrong with it, null when nothing is.
    """

    name: str
    version: str | None
    started_at: Moment | None
    api: APIState
    last_tick_at: Moment | None
    last_hook_at: Moment | None
    active: int
    unclaimed: list[Unclaimed]
    problem: str | None


_unclaimed = msgspec.json.Decoder(list[Unclaimed])
_DEAF = (
    "publishers are let in, but neither a hook nor the Control API tells what became of them: no stream becomes live"
)


def listed_stream(stream: Stream, media_urls: MediaURLs) -> ListedStream:
    """A stream as lists show it."""
    return ListedStream(**_members(stream, media_urls))


def lone_stream(stream: Stream, media_urls: MediaURLs) -> LoneStream:
    """A stream asked for by its id."""
    return LoneStream(
        **_members(stream, media_urls),
        remote_address=stream.remote_address,
        bytes=stream.bytes,
        bitrate=stream.bitrate,
        tracks=tracks.in_one_form(stream.tracks),
        kick=stream.kick,
    )


def _members(stream: Stream, media_urls: MediaURLs) -> dict[str, Any]:
    """Those of ListedStream."""
    listed = {name: getattr(stream, name) for name in Listed.__struct_fields__}
    return listed | {"urls": urls.playback(media_urls, stream.path)}


def owner(stream: Stream) -> Owner:
    """The broadcaster of a stream."""
    # It comes from the database as bytes, which go out as they are.
    return msgspec.json.decode(msgspec.json.encode(stream.broadcaster), type=Owner)


def broadcaster_name(stream: Stream) -> str:
    """The name of the broadcaster of a stream."""
    return owner(stream).display_name


def media_server(node: Node) -> MediaServer:
    """A media server, with what is wrong in words."""
    return MediaServer(
        node.name,
        node.version,
        node.started_at,
        node.api,
        node.last_tick_at,
        node.last_hook_at,
        node.active,
        _unclaimed.decode(node.unclaimed),
        _DEAF if node.is_deaf else None,
    )
