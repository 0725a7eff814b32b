"""The tracks of a stream, in one form whatever version of MediaMTX told of them."""

from typing import Any, TypedDict

import msgspec


class Track(TypedDict):
    """A track, and what is known of it; `properties` depends on the codec."""

    codec: str | None
    properties: dict[str, Any]


def in_one_form(described: bytes | str | None) -> list[Track]:
    """Tracks of whatever version in one form: codec, and what is known of it (codecProps of MediaMTX)."""
    found = msgspec.json.decode(described) if described else []
    return [
        {"codec": track, "properties": {}}
        if isinstance(track, str)
        else {"codec": track.get("codec"), "properties": track.get("codecProps") or {}}
        for track in (found if isinstance(found, list) else ())
        if isinstance(track, (str, dict))
    ]
